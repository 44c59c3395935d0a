"""Requirements on an evaluation that a pipeline can gate on: "worst>=900", "failure<=0.1", several with commas.

    requirement  =  condition {"," condition}        condition  =  quantity (">=" | "<=") number

The quantities are those of `QUANTITIES`, of one policy, over everything that was run.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lipctrl.evaluation.summary import Row
from lipctrl.files import UserError, nearest

Table = Sequence[Row]


def _nominal(table: Table) -> float:
    return min(row.mean for row in table if row.radius == 0)


def _worst(table: Table) -> float:
    return min(row.mean for row in table)


def _drop(table: Table) -> float:
    nominal, worst = _nominal(table), _worst(table)
    return 0.0 if worst == nominal else (nominal - worst) / abs(nominal) if nominal else float("inf")


QUANTITIES: dict[str, tuple[Callable[[Table], float], str]] = {
    "nominal": (_nominal, "mean return at radius 0"),
    "worst": (_worst, "lowest mean return of any attack and radius"),
    "drop": (_drop, "(nominal - worst) / |nominal|"),
    "cvar": (lambda table: min(row.cvar for row in table), "lowest mean of the lowest tenth of returns"),
    "failure": (
        lambda table: max(row.failures / row.episodes for row in table),
        "largest share of episodes that failed",
    ),
    "failure_high": (lambda table: max(row.failure_high for row in table), "upper end of its 95 % interval"),
    "deviation": (lambda table: max(row.deviation for row in table), "largest change of the action that was found"),
}
"""Quantity of a table of one policy, and what it is, by name."""


@dataclass(frozen=True)
class Condition:
    """One condition."""

    quantity: str
    sign: Literal[">=", "<="]
    limit: float

    def __str__(self) -> str:
        return f"{self.quantity}{self.sign}{self.limit:g}"

    def value(self, table: Table) -> float:
        """The quantity in the rows of one policy.

        Raises:
            UserError: radius 0, which it refers to, was not run.
        """
        if self.quantity in ("nominal", "drop") and all(row.radius for row in table):
            raise UserError(
                f"the requirement {self} needs the nominal loop: put 0 among --radii or none among --attacks"
            )
        return QUANTITIES[self.quantity][0](table)

    def holds(self, value: float) -> bool:
        """Whether a value satisfies it; what is not a number does not."""
        return value >= self.limit if self.sign == ">=" else value <= self.limit


def parse_requirement(text: str) -> tuple[Condition, ...]:
    """The conditions of a requirement.

    Raises:
        UserError: it is not of the form in the module.
    """
    conditions = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*([a-z_]+)\s*(>=|<=)\s*(\S+)\s*", part)
        try:
            limit = float(found[3]) if found else float("nan")
        except ValueError:
            limit = float("nan")
        if found is None or limit != limit:
            raise UserError(
                f'a requirement is QUANTITY>=NUMBER or QUANTITY<=NUMBER, as in "worst>=900"; found {part!r}'
            )
        if found[1] not in QUANTITIES:
            raise nearest(found[1], QUANTITIES, "quantity to require")
        conditions.append(Condition(found[1], found[2], limit))  # type: ignore[arg-type]  # matched
    return tuple(conditions)


def violated(conditions: Sequence[Condition], table: Table) -> list[str]:
    """A sentence for every condition that the rows of one policy do not satisfy."""
    values = [(one, one.value(table)) for one in conditions]
    return [f"{one} does not hold: {one.quantity} is {value:.6g}" for one, value in values if not one.holds(value)]
