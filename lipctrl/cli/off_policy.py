"""What `lipctrl train sac`, `mbpo` and `gail` share: evaluation, checkpoints, resume, what a run folder holds.

With one seed policy.npz, model.zip and metrics.csv lie in the run folder, with several in a folder seed-<k> for each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.checkpoint import load_agents, save_agents
from lipctrl.agents.mbpo import MBPO
from lipctrl.agents.off_policy import OffPolicySettings, build
from lipctrl.agents.sac import SAC
from lipctrl.agents.together import learn_together
from lipctrl.cli.experts import make_env, signal_names
from lipctrl.cli.interrupt import deferred_interrupt
from lipctrl.cli.progress import bar
from lipctrl.config import read_config, updated
from lipctrl.files import UserError, write_atomically
from lipctrl.nn.sb3 import actor_to_plain
from lipctrl.runs import Run, read_metrics, write_metrics
from lipctrl.seeding import seed_of

TEST_SEED = 1000  # of the start states of every evaluation


@dataclass(frozen=True)
class Prepared:
    """What a training begins with.

    Attributes:
        agents: one per seed. inputs: hash of every input file, and what else is known of it, as run.json has it.
    """

    agents: list[SAC]
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Training:
    """A training in progress; a command whose agents need more than this derives from it.

    Attributes:
        settings, run: of the command. agents: one per seed. rows: metrics of each agent so far.
    """

    settings: Any
    run: Run
    agents: list[SAC]
    rows: list[list[dict[str, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = self.rows or [[] for _ in self.agents]
        self.test = Monitor(make_env(self.settings.env))

    @staticmethod
    def prepare(settings: Any) -> Prepared:
        """The agents of the settings.

        Raises:
            UserError: no such environment, or what the agents refuse.
        """
        return Prepared(environments_and_agents(settings))

    def folder(self, k: int) -> Path:
        """Where the files of an agent lie."""
        return self.run.path if len(self.agents) == 1 else self.run.path / f"seed-{self.settings.seed + k}"

    def train(self) -> None:
        """Train to the end; then write what is left to write.

        Raises:
            KeyboardInterrupt: interrupted between two steps, after a checkpoint was written.
            UserError: a model or critics that diverge; the last checkpoint is kept.
        """
        settings, first = self.settings, self.agents[0]
        before = first.num_timesteps
        label = f"{settings.env}, {len(self.agents)} seeds" if len(self.agents) > 1 else settings.env
        if first.compiled:
            label += " (compiles first, 30 s)"
        with deferred_interrupt() as interrupted, bar(label, settings.timesteps) as advance:
            advance(first.num_timesteps)

            def after_step() -> bool:
                advance(first.train_freq.frequency)  # type: ignore[union-attr]
                if first.num_timesteps % settings.log_interval == 0:
                    self.evaluate()
                    self.save()
                return not interrupted()

            learn_together(
                self.agents,
                settings.timesteps - before,
                reset_num_timesteps=before == 0,
                after_step=after_step,
                threads=settings.threads,
            )
            if first.num_timesteps < settings.timesteps:
                self.save()
                raise KeyboardInterrupt
        if first.num_timesteps % settings.log_interval:
            self.evaluate()
            self.save()

    def evaluate(self) -> None:
        """Returns of deterministic episodes from the same start states as ever, and the losses of now."""
        for agent, rows in zip(self.agents, self.rows, strict=True):
            row = evaluated(agent, self.test, self.settings.episodes)
            found = agent.logger.name_to_value
            rows.append(row | {name: float(found.get(name, np.nan)) for name in self.losses()})

    def losses(self) -> Sequence[str]:
        """Names of the losses in metrics.csv."""
        return "train/critic_loss", "train/actor_loss", "train/ent_coef"

    def save(self) -> None:
        """Write checkpoint, metrics and networks of every agent."""
        inputs, outputs = signal_names(self.test.env)
        for k, (agent, rows) in enumerate(zip(self.agents, self.rows, strict=True)):
            folder = self.folder(k)
            folder.mkdir(exist_ok=True)
            if rows:
                write_metrics(folder / "metrics.csv", rows)
            write_atomically(folder / "model.zip", lambda stream, a=agent: a.save(stream))  # type: ignore[misc]
            net = replace(actor_to_plain(agent.policy), input_names=inputs, output_names=outputs)
            net.save(folder / "policy.npz")
            self.save_more(agent, folder)
        data = save_agents(self.agents)
        write_atomically(self.run.path / "checkpoint.pt", lambda stream: stream.write(data))

    def save_more(self, agent: SAC, folder: Path) -> None:
        """Write what only this kind of agent has."""
        if isinstance(agent, MBPO) and agent.history:
            write_metrics(folder / "mechanism.csv", complete(agent.history))

    def closing(self) -> list[str]:
        """What is printed after the returns: findings, then the next commands. May add to `run.record`."""
        where = self.run.path if len(self.agents) == 1 else self.folder(0) / "policy.npz"
        plot = f"lipctrl plot {self.run.path} or " if isinstance(self.agents[0], MBPO) else ""
        return [f"next: {plot}lipctrl certify {where}"]


def evaluated(agent: BaseAlgorithm, test: Monitor, episodes: int) -> dict[str, float]:
    """Steps so far and mean return of deterministic episodes from the same start states as ever."""
    test.reset(seed=seed_of(TEST_SEED, "evaluation") % 2**31)
    returns, _ = evaluate_policy(agent, test, episodes, return_episode_rewards=True)
    return {"timesteps": float(agent.num_timesteps), "evaluation/mean_return": float(np.mean(returns))}


def environments_and_agents(settings: OffPolicySettings) -> list[SAC]:
    """An environment and an agent for each seed; errors as `build` and `make_env`."""
    return build(settings, [make_env(settings.env) for _ in range(settings.seeds)])


def complete(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Rows with the same keys; what was not measured in one is NaN."""
    keys = list(dict.fromkeys(key for row in reversed(history) for key in row))
    return [{key: row.get(key, float("nan")) for key in keys} for row in history]


def start(settings: Any, name: str, kind: type[Training] = Training) -> None:
    """Train from the beginning in a new run folder, or go on with the one that the settings name."""
    if settings.resume is not None:
        _resume(settings, name, kind)
        return
    prepared = kind.prepare(settings)
    run = Run.create(settings.out, f"{name}-{settings.env.split('/')[-1]}", settings, seed=settings.seed)
    run.record |= prepared.inputs
    run.write()
    _finish(kind(settings, run, prepared.agents), name)


def _resume(asked: Any, name: str, kind: type[Training]) -> None:
    path = Path(asked.resume)
    run = Run.open(path)
    if run.record.get("status") == "finished":
        raise UserError(f"run {path} is finished; there is nothing to resume")
    data, source = read_config(str(run.checked("settings.yaml")), name)
    settings = updated(type(asked)(), data, source)
    refuse_others(replace(asked, resume=None), replace(settings, out=str(path)))
    if not (path / "checkpoint.pt").is_file():
        raise UserError(f"run {path} was stopped before its first checkpoint; start it anew")
    prepared = kind.prepare(settings)
    for key, found in prepared.inputs.items():
        if run.record.get(key) != found:
            raise UserError(f"the file of {key.removesuffix('_sha256')} is not the one that run {path} began with")
    training = kind(settings, run, prepared.agents)
    load_agents(training.agents, run.checked("checkpoint.pt").read_bytes())
    steps = training.agents[0].num_timesteps
    for k, rows in enumerate(training.rows):
        metrics = training.folder(k) / "metrics.csv"
        rows += [row for row in (read_metrics(metrics) if metrics.exists() else []) if row["timesteps"] <= steps]
    _finish(training, name)


def refuse_others(asked: Any, used: Any) -> None:
    """What a command line asks for besides `--resume` must be what the run was started with.

    Raises:
        UserError: a setting that is neither its default nor the run's.
    """
    default, asked, used = (_flat(settings) for settings in (type(asked)(), asked, used))
    for name, value in asked.items():
        if value not in (default[name], used[name]):
            raise UserError(
                f"the run was started with {name} {used[name]} and goes on with it, but {value} is asked for: "
                "leave it out, or start a new run"
            )


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its name on the command line."""
    found: dict[str, Any] = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        found |= _flat(value, f"{one.name}.") if is_dataclass(value) else {prefix + one.name: value}
    return found


def _finish(training: Training, name: str) -> None:
    run, first = training.run, training.agents[0]
    try:
        training.train()
    except KeyboardInterrupt:
        run.finish("interrupted")
        print(f"interrupted after {first.num_timesteps} steps; go on with: lipctrl train {name} --resume {run.path}")
        raise
    except UserError:
        run.finish("failed")
        raise
    last = [rows[-1]["evaluation/mean_return"] for rows in training.rows]
    seconds = {phase: round(sum(agent.seconds[phase] for agent in training.agents), 1) for phase in first.seconds}
    lines = training.closing()
    run.finish(results={"mean_return": last}, seconds=seconds)
    spent = ", ".join(f"{phase} {value:g} s" for phase, value in seconds.items() if value)
    print(f"{run.path}: mean return {', '.join(f'{value:.4g}' for value in last)}; time: {spent}")
    print("\n".join(lines))
