"""Polytopes and the largest set in which a linear closed loop respects its limits for ever: the terminal set of MPC.

Algorithm of Gilbert and Tan, "Linear systems with state and control constraints", IEEE TAC 36 (1991): add the
constraints of one more step until they all are implied by those before.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog

from lipctrl.files import UserError

Array = NDArray[np.float64]
IMPLIED = 1e-9  # a constraint counts as implied if it is exceeded by no more than this, relative to its normal
MOST_STEPS = 1000


@dataclass(frozen=True)
class Polytope:
    """The set {x : H x <= h}, H of shape (rows, n), h of shape (rows,)."""

    H: Array
    h: Array

    def contains(self, x: ArrayLike, tolerance: float = 0.0) -> NDArray[np.bool_]:
        """Whether states (..., n) are in the set."""
        return np.asarray((np.asarray(x, np.float64) @ self.H.T <= self.h + tolerance).all(-1))


def box(low: ArrayLike, high: ArrayLike) -> Polytope:
    """The box low <= x <= high; infinite limits give no inequality."""
    lower, upper = np.asarray(low, np.float64), np.asarray(high, np.float64)
    rows = np.vstack([np.eye(len(upper)), -np.eye(len(lower))])
    values = np.concatenate([upper, -lower])
    finite = np.isfinite(values)
    return Polytope(rows[finite], values[finite])


def _largest(direction: Array, H: Array, h: Array) -> float:
    """max direction'x over H x <= h."""
    result = linprog(-direction, A_ub=H, b_ub=h, bounds=(None, None), method="highs")
    if result.status == 3:
        return np.inf
    if result.status != 0:
        raise UserError(f"the linear programme over a polytope of {len(h)} rows failed: {result.message}")
    return float(-result.fun)


def without_redundant(polytope: Polytope) -> Polytope:
    """The same set without the inequalities that the others imply; rows have unit length."""
    lengths = np.linalg.norm(polytope.H, axis=1)
    H, h = polytope.H[lengths > 0] / lengths[lengths > 0, None], polytope.h[lengths > 0] / lengths[lengths > 0]
    keep = list(range(len(h)))
    for i in range(len(h)):
        others = [j for j in keep if j != i]
        if others and _largest(H[i], H[others], h[others]) <= h[i] + IMPLIED:
            keep = others
    return Polytope(H[keep], h[keep])


def maximal_invariant_set(A_cl: ArrayLike, limits: Polytope) -> Polytope:
    """The largest subset of `limits` that x+ = A_cl x never leaves.

    Args:
        A_cl: closed loop, shape (n, n), all eigenvalues inside the unit circle.
        limits: every constraint of the loop in terms of x, with 0 inside (h > 0); input limits enter through u = -K x.

    Raises:
        UserError: the loop is not stable, 0 is not inside the limits, or the set needs more than 1000 steps.
    """
    closed = np.asarray(A_cl, np.float64)
    if closed.ndim != 2 or closed.shape != (limits.H.shape[1],) * 2:
        raise UserError(f"A_cl needs shape (n, n) with n = {limits.H.shape[1]}, found {closed.shape}")
    radius = np.abs(np.linalg.eigvals(closed)).max()
    if not radius < 1:
        raise UserError(f"an invariant set needs a stable closed loop, found spectral radius {radius:.6g}")
    if not (limits.h > 0).all():
        raise UserError("an invariant set needs the origin strictly inside all limits")
    found, step = without_redundant(limits), limits.H
    for _ in range(MOST_STEPS):
        step = step @ closed
        scale = np.maximum(np.linalg.norm(step, axis=1), 1e-300)
        new = [
            i
            for i, row in enumerate(step)
            if _largest(row / scale[i], found.H, found.h) > limits.h[i] / scale[i] + IMPLIED
        ]
        if not new:
            return found
        found = without_redundant(
            Polytope(np.vstack([found.H, step[new] / scale[new, None]]), np.append(found.h, limits.h[new] / scale[new]))
        )
    raise UserError(f"the invariant set is not finished after {MOST_STEPS} steps (spectral radius {radius:.9g})")
