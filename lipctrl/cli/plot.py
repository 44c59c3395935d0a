"""`lipctrl plot`: return and the four curves of the mechanism of runs of `lipctrl train mbpo`, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipctrl.config import parse
from lipctrl.evaluation.plots import mechanism_figure
from lipctrl.files import UserError, write_text
from lipctrl.runs import Run, read_metrics

Rows = list[dict[str, float]]


@dataclass(frozen=True)
class PlotSettings:
    """Settings of `lipctrl plot`."""

    runs: tuple[str, ...] = ()
    """Run folders of `lipctrl train mbpo`, also interrupted or running ones."""
    out: str = "mechanism.svg"
    """Figure to write."""


def seeds_of(path: Path) -> list[Rows]:
    """Metrics and diagnostics of every seed of a run, in order of the real steps.

    Raises:
        UserError: no run folder, or one without diagnostics.
    """
    Run.open(path)
    folders = sorted(path.glob("seed-*")) or [path]
    found = [folder for folder in folders if (folder / "mechanism.csv").is_file()]
    if not found:
        raise UserError(f"{path} holds no mechanism.csv: it is no run of `lipctrl train mbpo`, or has not begun")
    return [read_metrics(folder / "metrics.csv") + read_metrics(folder / "mechanism.csv") for folder in found]


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    paths = list(arguments[: arguments.index(flags[0])] if flags else arguments)
    settings = parse(
        PlotSettings(),
        group="plot",
        prog="lipctrl plot",
        description="Draw return, model error, spread of the predictions, slope of the critics and value-aware model "
        "error over the real steps: lipctrl plot RUN [RUN ...] [--out FILE].",
        args=[*(["--runs", *paths] if paths else []), *arguments[len(paths) :]],
    )
    if not settings.runs:
        raise UserError("name at least one run folder: lipctrl plot RUN [RUN ...]")
    runs = {Path(name).name: seeds_of(Path(name)) for name in settings.runs}
    write_text(Path(settings.out), mechanism_figure(runs))
    print(f"{settings.out}: {len(runs)} runs, {sum(map(len, runs.values()))} seeds")
