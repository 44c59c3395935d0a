"""`lipctrl demos plan`: what a data set covers, what a wanted certificate needs, and which states to label next."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipctrl.certify.guarantees import Guarantee, grid_for_cover, samples_for_cover
from lipctrl.cli.demos_info import read
from lipctrl.cli.loading import load_network
from lipctrl.cli.progress import CONSOLE
from lipctrl.config import parse
from lipctrl.demos.cover import ErrorBound, Extremum, expert_slope, next_states
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.evaluation.plots import error_map
from lipctrl.files import UserError, write_text

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PlanSettings:
    """Settings of `lipctrl demos plan`."""

    file: tyro.conf.Positional[str] = ""
    """Demonstration file, or minari:DATASET_ID."""
    policy: str | None = None
    """A cloned policy (run folder or network file), for its residuals and its constant; none: residuals 0."""
    lip: float | None = None
    """Lipschitz bound of the policy; none: that of --policy's certificate search, or the expert's."""
    expert_lip: float | None = None
    """Upper bound of the expert's constant. None: the data's steepest slope, which is a lower bound: no proof then."""
    box: str | None = None
    """Set of states, "LOW:HIGH" per observation separated by commas; none: the data's bounding box."""
    error: float | None = None
    """Wanted bound of the policy's error, in the action's unit."""
    risk: float = 0.01
    """Probability with which independent samples may fail to cover."""
    points: int = 10
    """How many states to propose."""
    out: str | None = None
    """Folder for next.csv (and plan.svg for two observations); none: print only."""

    def __post_init__(self) -> None:
        for name in ("lip", "expert_lip", "error"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite, found {value}")
        if self.points < 0 or not 0 < self.risk < 1:
            raise ValueError(f"points must not be negative and risk between 0 and 1, found {self.points}, {self.risk}")


@dataclass(frozen=True)
class Planned:
    """What a plan is made of: the pointwise bound on a box, and where its constants come from."""

    bound: ErrorBound
    low: Array
    high: Array
    lip: float
    expert_lip: float
    proved: bool


def planned(settings: PlanSettings, demos: Demonstrations) -> Planned:
    """Constants and residuals of a plan.

    Raises:
        UserError: the policy or the box does not fit the data.
    """
    x, u = demos.pairs()
    slope = expert_slope(x, u)
    if settings.expert_lip is not None and settings.expert_lip < slope.value * (1 - 1e-9):
        raise UserError(
            f"the expert's constant cannot be {settings.expert_lip:g}: the data hold a pair of slope {slope.value:.6g}"
        )
    expert_lip, residuals, lip = settings.expert_lip or slope.value, np.zeros(len(x)), settings.lip
    if settings.policy is not None:
        from lipctrl.certify.bracket import certify

        net = load_network(Path(settings.policy))
        if (net.input_size, net.output_size) != (x.shape[1], u.shape[1]):
            raise UserError(
                f"the policy maps {net.input_size} to {net.output_size}; the data {x.shape[1]}, {u.shape[1]}"
            )
        residuals = np.linalg.norm(net(x) - u, axis=1)
        lip = lip or certify(net).upper.bound
    lip = lip or expert_lip
    if settings.box is None:
        low, high = x.min(0), x.max(0)
    else:
        low, high = _box(settings.box, x.shape[1])
    return Planned(
        ErrorBound(x, residuals, lip + expert_lip), low, high, lip, expert_lip, settings.expert_lip is not None
    )


def _box(text: str, size: int) -> tuple[Array, Array]:
    try:
        ends = np.array([[float(end) for end in part.split(":")] for part in text.split(",")])
    except ValueError as error:
        raise UserError(f"a box is LOW:HIGH per observation separated by commas; found {text!r}") from error
    if ends.shape != (size, 2) or not (ends[:, 0] < ends[:, 1]).all():
        raise UserError(f"the box needs {size} intervals with LOW below HIGH; found {text!r}")
    return ends[:, 0], ends[:, 1]


def table_of(plan: Planned, cover: Extremum, worst: Extremum, settings: PlanSettings) -> Table:
    """What is covered, what the error can be, what a wanted error needs."""
    label = "bound" if plan.proved else "estimate"
    source = "" if plan.proved else "the expert's constant from the data alone: give --expert-lip for a bound"
    table = Table("quantity", "value", "label", "assumes")
    table.add_row(
        "covering radius", f"{cover.lower:.5g} .. {cover.upper:.5g} observation", "bound", "states in the box"
    )
    table.add_row("policy's constant, expert's", f"{plan.lip:.5g}, {plan.expert_lip:.5g}", label, source)
    table.add_row("largest error of the policy", f"{worst.lower:.5g} .. {worst.upper:.5g} action", label, source)
    table.add_row("where", " ".join(f"{v:.4g}" for v in worst.at), "witness", "attains the lower value of the bound")
    if settings.error is not None:
        radius = (settings.error - float(plan.bound.residuals.max())) / plan.bound.slope
        if radius <= 0:
            reason = (
                f"the residuals alone reach {plan.bound.residuals.max():.5g}: a better fit is needed, not more data"
            )
            rows = [Guarantee("covering radius needed", None, "observation", "bound", (), reason)]
        else:
            sides = (plan.high - plan.low).tolist()
            needed = Guarantee("covering radius needed", radius, "observation", "bound")
            rows = [needed, samples_for_cover(sides, radius, settings.risk), grid_for_cover(sides, radius)]
        for row in rows:
            value = f"vacuous: {row.reason}" if row.value is None else f"{row.value:.6g} {row.unit}"
            table.add_row(row.quantity, value, row.label if plan.proved else "estimate", "; ".join(row.assumptions))
    return table


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        PlanSettings(),
        group="demos-plan",
        prog="lipctrl demos plan",
        description="How well demonstrations cover a set of states, how far a policy can be from the expert there, how "
        "many samples a wanted error needs, and which states to label next.",
        args=arguments,
    )
    if not settings.file:
        raise UserError("demos plan needs a file: lipctrl demos plan FILE")
    folder = None if settings.out is None else Path(settings.out)
    if folder is not None and folder.exists():
        raise UserError(f"output folder {folder} exists; choose another --out or remove it")
    demos = read(settings.file)
    plan = planned(settings, demos)
    with CONSOLE.status("searching the box"):
        cover = ErrorBound(plan.bound.points, np.zeros(len(plan.bound.points)), 1.0).largest(plan.low, plan.high)
        worst = plan.bound.largest(plan.low, plan.high)
        chosen = next_states(plan.bound, plan.low, plan.high, settings.points)
    console = Console()
    console.print(table_of(plan, cover, worst, settings))
    states = Table(*(f"observation {i}" for i in range(len(plan.low))), title="states to label next, in this order")
    for state in chosen:
        states.add_row(*(escape(f"{v:.5g}") for v in state))
    if len(chosen):
        console.print(states)
    if folder is not None:
        folder.mkdir(parents=True)
        lines = [",".join(f"observation_{i}" for i in range(len(plan.low)))]
        lines += [",".join(repr(float(v)) for v in state) for state in chosen]
        write_text(folder / "next.csv", "\n".join(lines) + "\n")
        if len(plan.low) == 2:
            write_text(folder / "plan.svg", error_map(plan.bound, plan.bound.points, chosen, plan.low, plan.high))
        print(f"written to {folder}")
