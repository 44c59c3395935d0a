"""`lipctrl train sb3`: a stock Stable-Baselines3 algorithm, with a bounded actor on request, into a run folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from lipctrl.agents.sb3 import Sb3Settings, build
from lipctrl.cli.experts import make_env
from lipctrl.cli.interrupt import deferred_interrupt
from lipctrl.cli.progress import bar
from lipctrl.config import parse
from lipctrl.files import UserError, write_atomically
from lipctrl.nn.reward import LearnedReward
from lipctrl.nn.reward_wrapper import RewardWrapper
from lipctrl.nn.sb3 import actor_to_plain
from lipctrl.runs import Run, write_metrics

OWN = "environment_return"  # of an episode, where a learned reward takes the place of the environment's


@dataclass(frozen=True)
class TrainSettings(Sb3Settings):
    """Settings of `lipctrl train sb3`."""

    reward: str | None = None
    """File of a learned reward (reward.npz) to train on in the place of the environment's own, which is logged beside
    it; null: the environment's."""
    out: str | None = None
    """Run folder; by default the first free runs/<algorithm>-<environment>-<k>."""


class _Checkpoint(BaseCallback):
    """Advances a bar, logs the mean return of the last episodes with a checkpoint, stops when interrupted."""

    def __init__(
        self, run: Run, interval: int, advance: Callable[[int], None], interrupted: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.run, self.interval, self.advance, self.interrupted = run, interval, advance, interrupted
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        if self.num_timesteps % 100 == 0:
            self.advance(100)
        if self.num_timesteps % self.interval == 0:
            self.save()
        return not self.interrupted()

    def save(self) -> None:
        """Write metrics, checkpoint and the plain network."""
        episodes = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        if episodes and (not self.rows or self.rows[-1]["timesteps"] < self.num_timesteps):
            row = {"timesteps": float(self.num_timesteps), "train/mean_return": float(np.mean(episodes))}
            own = [episode[OWN] for episode in self.model.ep_info_buffer or () if OWN in episode]
            if own:
                row["environment/mean_return"] = float(np.mean(own))
            self.rows.append(row)
            write_metrics(self.run.path / "metrics.csv", self.rows)
        write_atomically(self.run.path / "model.zip", lambda stream: self.model.save(stream))  # type: ignore[arg-type]
        net = actor_to_plain(self.model.policy, normalizer=self.model.get_vec_normalize_env())
        net.save(self.run.path / "policy.npz")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        TrainSettings(),
        group="sb3",
        prog="lipctrl train sb3",
        description="Train a stock Stable-Baselines3 algorithm, with a policy of bounded sensitivity on request. "
        "Writes model.zip, policy.npz (normalisation folded in), metrics.csv and settings.yaml into a run "
        "folder. An interrupted run keeps its last policy; stock algorithms cannot be resumed exactly.",
        args=arguments,
    )
    env = make_env(settings.env)
    if not np.isfinite(env.action_space.low).all() or not np.isfinite(env.action_space.high).all():  # type: ignore[attr-defined]  # a Box, see make_env
        raise UserError(f"{settings.env} has unlimited actions; the algorithms here need limits")
    if settings.reward is None:
        model = build(settings, env)
    else:
        model = build(settings, rewarded(env, settings), info_keywords=(OWN,))
    name = f"{settings.algorithm}-{settings.env.split('/')[-1]}"
    run = Run.create(settings.out, name, settings, seed=settings.seed)
    rows = _train(model, settings, run)
    run.finish(results=rows[-1] if rows else {})
    returns = f"mean return of the last episodes {rows[-1]['train/mean_return']:.4g}" if rows else "no whole episode"
    print(f"{run.path}: {returns}; next: lipctrl certify {run.path}")


def rewarded(env: gymnasium.Env[Any, Any], settings: TrainSettings) -> RewardWrapper:
    """The environment with the learned reward of the settings.

    Raises:
        UserError: no such reward, or one of another environment.
    """
    reward = LearnedReward.load(Path(str(settings.reward)))
    return RewardWrapper(env, reward, discount=None if reward.absorbing is None else settings.discount)


def _train(model: BaseAlgorithm, settings: Sb3Settings, run: Run) -> list[dict[str, float]]:
    """Train to the end, or to an interrupt, after which the run folder holds the policy so far."""
    try:
        with (
            deferred_interrupt() as interrupted,
            bar(f"{settings.algorithm}, {settings.env}", settings.timesteps) as advance,
        ):
            callback = _Checkpoint(run, settings.log_interval, advance, interrupted)
            model.learn(settings.timesteps, callback=callback)
            callback.save()
            if interrupted() and model.num_timesteps < settings.timesteps:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        run.finish("interrupted")
        print(f"interrupted after {model.num_timesteps} steps; the policy so far is in {run.path}")
        raise
    return callback.rows
