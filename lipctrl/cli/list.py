"""`lipctrl list`: environments, agents, attacks, layer families and presets."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from rich.console import Console
from rich.table import Table

from lipctrl.config import parse, presets


@dataclass(frozen=True)
class ListSettings:
    """`lipctrl list` takes no settings."""


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    parse(
        ListSettings(),
        group="list",
        prog="lipctrl list",
        description="List environments, agents, attacks, layer families and presets.",
        args=arguments,
    )
    from lipctrl.agents import AGENTS
    from lipctrl.attacks import DESCRIPTIONS
    from lipctrl.attacks.channels import CHANNELS
    from lipctrl.cli.experts import NAMES
    from lipctrl.envs import ENVIRONMENTS
    from lipctrl.models.cells import CELLS
    from lipctrl.nn.network import FAMILIES

    groups = sorted(entry.name for entry in resources.files("lipctrl.configs").iterdir() if entry.is_dir())
    console = Console()
    for title, content in (
        ("environments", ENVIRONMENTS | {name: "gymnasium's MuJoCo task" for name in NAMES}),
        ("agents", AGENTS),
        ("attacks", DESCRIPTIONS),
        ("channels of a threat", {name: kind.verb for name, kind in CHANNELS.items()}),
        ("layer families", {name: (family.__doc__ or "").strip().split("\n")[0] for name, family in FAMILIES.items()}),
        ("process models", {name: (cell.__doc__ or "").strip().split("\n")[0] for name, cell in CELLS.items()}),
        ("presets (--config)", {group: ", ".join(presets(group)) for group in groups if presets(group)}),
    ):
        table = Table(title, "", title_justify="left", show_edge=False)
        for name, text in content.items():
            table.add_row(name, text)
        console.print(table)
        console.print()
