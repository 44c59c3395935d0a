"""`lipctrl train mbpo`."""

from collections.abc import Sequence
from dataclasses import dataclass

from lipctrl.agents.off_policy import MbpoSettings
from lipctrl.cli.off_policy import start
from lipctrl.config import parse


@dataclass(frozen=True)
class TrainSettings(MbpoSettings):
    """Settings of `lipctrl train mbpo`."""

    out: str | None = None
    """Run folder; by default the first free runs/mbpo-<environment>-<k>."""
    resume: str | None = None
    """Run folder of an interrupted run to go on with, exactly; all other settings are read from it."""


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        TrainSettings(),
        group="mbpo",
        prog="lipctrl train mbpo",
        description="Model-based policy optimisation: SAC on short rollouts of a learned dynamics model, with smooth "
        "critics on request, several seeds as one batch. Writes policy.npz, model.zip, metrics.csv and a "
        "checkpoint into a run folder; an interrupted run is resumed exactly.",
        args=arguments,
    )
    start(settings, "mbpo")
