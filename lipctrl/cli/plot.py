"""`lipctrl plot`: what trainings report over their steps, runs side by side.

Of `lipctrl train mbpo` return and the four curves of the mechanism, of `lipctrl train gail` return, slope, accuracy and
C-validity of the learned reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipctrl.config import parse, read_config
from lipctrl.evaluation.plots import imitation_figure, mechanism_figure
from lipctrl.files import UserError, write_text
from lipctrl.runs import Run, read_metrics

Rows = list[dict[str, float]]
COMMANDS = {"mechanism": "lipctrl train mbpo", "imitation": "lipctrl train gail"}  # by the name of their diagnostics


@dataclass(frozen=True)
class PlotSettings:
    """Settings of `lipctrl plot`."""

    runs: tuple[str, ...] = ()
    """Run folders of `lipctrl train mbpo` or of `lipctrl train gail`, also interrupted or running ones."""
    out: str | None = None
    """Figure to write; by default mechanism.svg or imitation.svg in the current folder."""


def diagnostics_of(path: Path) -> str:
    """Which diagnostics a run has: a key of `COMMANDS`.

    Raises:
        UserError: no run folder, or one without diagnostics.
    """
    Run.open(path)
    for name in COMMANDS:
        if (path / f"{name}.csv").is_file() or any(path.glob(f"seed-*/{name}.csv")):
            return name
    files, commands = (" nor ".join(f"{name}.csv" for name in COMMANDS), " or ".join(COMMANDS.values()))
    raise UserError(f"{path} holds neither {files}: it is no run of {commands}, or has not begun")


def seeds_of(path: Path, diagnostics: str) -> list[Rows]:
    """Metrics and diagnostics of every seed of a run, in order of the real steps."""
    folders = sorted(path.glob("seed-*")) or [path]
    found = [folder for folder in folders if (folder / f"{diagnostics}.csv").is_file()]
    return [read_metrics(folder / "metrics.csv") + read_metrics(folder / f"{diagnostics}.csv") for folder in found]


def levels_of(path: Path) -> tuple[float | None, float]:
    """The expert's mean return, if the run knows it, and the slope k of its reward."""
    run = Run.open(path)
    return run.record.get("expert_return"), float(read_config(str(path / "settings.yaml"), "gail")[0]["reward"]["k"])


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    paths = list(arguments[: arguments.index(flags[0])] if flags else arguments)
    settings = parse(
        PlotSettings(),
        group="plot",
        prog="lipctrl plot",
        description="Draw what trainings report over their steps: lipctrl plot RUN [RUN ...] [--out FILE]. Of train "
        "mbpo return, model error, spread of the predictions, slope of the critics and value-aware model error; of "
        "train gail return, slope of the reward, accuracy of the discriminator and C-validity.",
        args=[*(["--runs", *paths] if paths else []), *arguments[len(paths) :]],
    )
    if not settings.runs:
        raise UserError("name at least one run folder: lipctrl plot RUN [RUN ...]")
    folders = {Path(name).name: Path(name) for name in settings.runs}
    kinds = {diagnostics_of(path) for path in folders.values()}
    if len(kinds) > 1:
        raise UserError(f"runs of {' and of '.join(sorted(COMMANDS[kind] for kind in kinds))} do not share a figure")
    kind = kinds.pop()
    runs = {name: seeds_of(path, kind) for name, path in folders.items()}
    if kind == "mechanism":
        figure = mechanism_figure(runs)
    else:
        figure = imitation_figure(runs, {name: levels_of(path) for name, path in folders.items()})
    out = settings.out or f"{kind}.svg"
    write_text(Path(out), figure)
    print(f"{out}: {len(runs)} runs, {sum(map(len, runs.values()))} seeds")
