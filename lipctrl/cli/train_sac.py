"""`lipctrl train sac`."""

from collections.abc import Sequence
from dataclasses import dataclass

from lipctrl.agents.off_policy import SacSettings
from lipctrl.cli.off_policy import start
from lipctrl.config import parse


@dataclass(frozen=True)
class TrainSettings(SacSettings):
    """Settings of `lipctrl train sac`."""

    out: str | None = None
    """Run folder; by default the first free runs/sac-<environment>-<k>."""
    resume: str | None = None
    """Run folder of an interrupted run to go on with, exactly; all other settings are read from it."""


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
    start(settings, "sac")
