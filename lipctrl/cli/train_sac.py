"""`lipctrl train sac`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipctrl.agents.off_policy import SacSettings, build
from lipctrl.cli.experts import make_env
from lipctrl.cli.off_policy import Prepared, Training, start
from lipctrl.config import parse
from lipctrl.nn.reward import LearnedReward
from lipctrl.nn.reward_wrapper import RewardWrapper


@dataclass(frozen=True)
class TrainSettings(SacSettings):
    """Settings of `lipctrl train sac`."""

    reward: str | None = None
    """File of a learned reward (reward.npz of `lipctrl train gail`) to train on in the place of the environment's own,
    by which evaluations go on to be measured; null: the environment's."""
    out: str | None = None
    """Run folder; by default the first free runs/sac-<environment>-<k>."""
    resume: str | None = None
    """Run folder of an interrupted run to go on with, exactly; all other settings are read from it."""


class SacTraining(Training):
    """A training in progress, on a learned reward if the settings name one."""

    @staticmethod
    def prepare(settings: Any) -> Prepared:
        """See `Training`.

        Raises:
            UserError: no such reward, or one of another environment.
        """
        if settings.reward is None:
            return Training.prepare(settings)
        reward = LearnedReward.load(Path(settings.reward))
        discount = None if reward.absorbing is None else settings.discount
        environments: list[Any] = [
            RewardWrapper(make_env(settings.env), reward, discount=discount) for _ in range(settings.seeds)
        ]
        return Prepared(build(settings, environments), {"reward_sha256": reward.sha256()})


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        TrainSettings(),
        group="sac",
        prog="lipctrl train sac",
        description="Soft actor-critic with smooth critics and a bounded actor on request, several seeds as one batch. "
        "Writes policy.npz, model.zip, metrics.csv and a checkpoint into a run folder; an interrupted run is "
        "resumed exactly.",
        args=arguments,
    )
    start(settings, "sac", SacTraining)
