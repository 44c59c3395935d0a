"""Budgets: how much of a disturbance is allowed over an episode, beyond the radius of every step.

* "step": every d_t within the radius;
* "episode": the energy, sum over t of |d_t|_2^2 <= radius^2;
* "sparse=K": every d_t within the radius, at most K of them not zero;
* "rate=C": time-coupled (arXiv 2307.12062), every d_t within the radius and |d_t - d_{t-1}| <= C radius, d_{-1} = 0.

Norms are those of the set, in its units.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError, nearest

Array = NDArray[np.float64]
Kind = Literal["step", "episode", "sparse", "rate"]
SLACK = 1e-6  # relative; what rounding may add to a size


@dataclass(frozen=True)
class Budget:
    """See the module; `amount` is K or C, 0 for the others."""

    kind: Kind = "step"
    amount: float = 0.0

    @staticmethod
    def parse(text: str) -> "Budget":
        """A budget from "step", "episode", "sparse=5" or "rate=0.1".

        Raises:
            UserError: an unknown kind, or a number that is missing, superfluous or out of range.
        """
        kind, sign, number = text.partition("=")
        if kind not in get_args(Kind):
            raise nearest(kind, get_args(Kind), "budget")
        if kind in ("step", "episode"):
            if sign:
                raise UserError(f"the budget {kind!r} takes no number; found {text!r}")
            return Budget(kind)  # type: ignore[arg-type]  # checked
        try:
            amount = float(number)
        except ValueError:
            amount = np.nan
        whole = kind != "sparse" or amount == np.floor(amount)
        if not (np.isfinite(amount) and amount > 0 and whole):
            what = "a whole number of steps" if kind == "sparse" else "a positive share of the radius per step"
            raise UserError(
                f"the budget {kind!r} needs {what}, for example {kind}={'5' if whole else '3'}; found {text!r}"
            )
        return Budget(kind, amount)  # type: ignore[arg-type]  # checked

    def __str__(self) -> str:
        return self.kind if self.kind in ("step", "episode") else f"{self.kind}={self.amount:g}"

    def contains(self, ball: Ball, d: Array) -> bool:
        """Whether sequences (T, batch, n) lie in the set, recomputed from nothing but the sequences."""
        size = np.stack([ball.size(row) for row in d])
        limit = ball.radius * (1 + SLACK)
        if self.kind == "episode":
            return bool((np.linalg.norm(size, axis=0) <= limit).all())
        if self.kind == "sparse" and ((size > 0).sum(0) > self.amount).any():
            return False
        if self.kind == "rate":
            change = np.diff(d, axis=0, prepend=np.zeros((1, *d.shape[1:])))
            if (np.stack([ball.size(row) for row in change]) > self.amount * limit).any():
                return False
        return bool((size <= limit).all())


class Purse:
    """What is left of a budget while a batch of episodes runs.

    Attacks that choose their own times may spend all at once; for the others (`spread`) an energy is spread evenly over
    the steps that remain, and a sparse disturbance acts at random steps.
    """

    def __init__(
        self, budget: Budget, ball: Ball, *, steps: int, episodes: int, spread: bool, random: np.random.Generator
    ) -> None:
        """A full purse.

        Args:
            budget: of every row. ball: the set, one radius per row. steps: of an episode at most.
            episodes: rows per radius; random times are common to all radii. spread: see the class.
            random: chooses the times.
        """
        rows = len(ball.radius)
        self.budget, self.ball, self._steps, self._spread, self._time = budget, ball, steps, spread, 0
        self._last = np.zeros((rows, len(ball.scale)))
        self._energy, self._count = ball.radius**2, np.full(rows, budget.amount)
        self._times = np.ones((steps, rows), dtype=bool)
        if budget.kind == "sparse" and spread:
            chosen = np.argsort(random.random((steps, episodes)), axis=0).argsort(axis=0) < budget.amount
            self._times = np.tile(chosen, (1, rows // episodes))

    def offer(self) -> Ball:
        """The set in which the next disturbance may lie."""
        if self.budget.kind == "episode":
            left = max(1, self._steps - self._time) if self._spread else 1
            return replace(self.ball, radius=np.sqrt(np.maximum(self._energy, 0.0) / left))
        if self.budget.kind == "sparse":
            open_ = self._times[min(self._time, self._steps - 1)] & (self._count >= 1)
            return replace(self.ball, radius=np.where(open_, self.ball.radius, 0.0))
        return self.ball

    def pay(self, d: Array) -> Array:
        """The disturbance (batch, n) that the budget allows of one in the offered set; what it costs is gone."""
        if self.budget.kind == "rate":
            # between the last one and d, both in the ball, which is convex
            step = replace(self.ball, radius=self.budget.amount * self.ball.radius)
            d = self._last + step.project(d - self._last)
        size = self.ball.size(d)
        self._energy, self._count = self._energy - size**2, self._count - (size > 0)
        self._last, self._time = d, self._time + 1
        return d
