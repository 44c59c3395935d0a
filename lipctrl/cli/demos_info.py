"""`lipctrl demos info`: what is in a demonstration file, and conversion from and to Minari."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from lipctrl.config import parse
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError


@dataclass(frozen=True)
class InfoSettings:
    """Settings of `lipctrl demos info`."""

    file: tyro.conf.Positional[str] = ""
    """Demonstration file, or minari:DATASET_ID for a local Minari data set (extra `minari`)."""
    out: str | None = None
    """Convert: write the data to this .npz file, or to minari:DATASET_ID."""


def read(name: str) -> Demonstrations:
    """Demonstrations from a file or a Minari data set."""
    if not name:
        raise UserError("demos info needs a file: lipctrl demos info FILE")
    if name.startswith("minari:"):
        from lipctrl.demos.minari import from_minari

        return from_minari(name.removeprefix("minari:"))
    return Demonstrations.load(Path(name))


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        InfoSettings(),
        group="demos-info",
        prog="lipctrl demos info",
        description="Print what is in a demonstration file; convert from and to Minari.",
        args=arguments,
    )
    demos = read(settings.file)
    table = Table(title=settings.file, show_header=False)
    ends = (int(demos.terminations.sum()), int(demos.truncations.sum()))
    returns = demos.returns
    for key, value in (
        ("episodes", f"{len(demos.lengths)}, of {demos.lengths.min()} to {demos.lengths.max()} steps"),
        ("steps", f"{int(demos.lengths.sum())}"),
        ("ended by", f"termination {ends[0]}, truncation {ends[1]}"),
        ("return", f"mean {returns.mean():.6g}, lowest {returns.min():.6g}, highest {returns.max():.6g}"),
        ("observation std", " ".join(f"{s:.4g}" for s in demos.observations.std(0))),
        ("label std", " ".join(f"{s:.4g}" for s in demos.labels.std(0))),
        *((key, str(value)) for key, value in demos.provenance.items() if key != "env_spec"),
        ("sha256", demos.sha256()),
    ):
        table.add_row(key, value)
    Console().print(table)
    if settings.out is None:
        return
    if settings.out.startswith("minari:"):
        from lipctrl.demos.minari import to_minari

        print(f"wrote {to_minari(demos, settings.out.removeprefix('minari:'))}")
    elif Path(settings.out).exists():
        raise UserError(f"output file {settings.out} exists; choose another --out or remove it")
    else:
        demos.save(Path(settings.out))
        print(f"wrote {settings.out}")
