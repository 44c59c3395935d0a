"""The optimal control problem of MPC: horizon, quadratic cost, limits and soft limits, as data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.invariant import Polytope
from lipctrl.mpc.lqr import lqr
from lipctrl.plant import Plant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Softness:
    """The price of a state limit exceeded by s: linear's + s' diag(quadratic) s per stage, both shape (n,), positive.

    With a linear price above the multiplier of the hard limit the limit holds whenever it can (exact penalty).
    """

    linear: Array
    quadratic: Array


@dataclass(frozen=True)
class OCP:
    """Minimise sum_{k<N} |x_k - x_ref|_Q^2 + |u_k - u_ref|_R^2 + |x_N - x_ref|_P^2 in the plant's units.

    State limits hold for x_1..x_N (x_0 is measured, not chosen), input limits for u_0..u_{N-1}.

    Attributes:
        horizon: N, number of steps.
        Q, R, P: stage and terminal weights, shapes (n, n), (m, m), (n, n), symmetric; R positive definite.
        x_ref, u_ref: reference, shapes (n,) and (m,).
        x_low, x_high, u_low, u_high: limits, may be infinite.
        soft: price of exceeding the state limits; None: they are hard. All other limits always are.
        terminal_set: polytope that holds x_N, or None.
        u_rate: the most that each input may change from step to step, (m,), or None.
        margin: function of a state (n,), numbers or CasADi symbols, that gives one or more numbers which must not be
            negative at x_1..x_N (an obstacle), or None.
    """

    horizon: int
    Q: Array
    R: Array
    P: Array
    x_ref: Array
    u_ref: Array
    x_low: Array
    x_high: Array
    u_low: Array
    u_high: Array
    soft: Softness | None = None
    terminal_set: Polytope | None = None
    u_rate: Array | None = None
    margin: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        n, m = len(self.x_ref), len(self.u_ref)
        if self.horizon < 1:
            raise UserError(f"the horizon must be at least 1 step, found {self.horizon}")
        for name, size in (("Q", n), ("R", m), ("P", n)):
            weight = getattr(self, name)
            if weight.shape != (size, size) or not np.isfinite(weight).all():
                raise UserError(f"weight {name} needs shape ({size}, {size}), all finite, found {weight.shape}")
            lowest = np.linalg.eigvalsh((weight + weight.T) / 2).min()
            if not np.allclose(weight, weight.T, rtol=1e-9, atol=0) or lowest < -1e-9 * np.abs(weight).max():
                raise UserError(f"weight {name} must be symmetric and positive semidefinite")
        if not np.linalg.eigvalsh(self.R).min() > 0:
            raise UserError("weight R must be positive definite")
        for name, size in (("x", n), ("u", m)):
            low, high = getattr(self, f"{name}_low"), getattr(self, f"{name}_high")
            if low.shape != (size,) or high.shape != (size,) or not (low < high).all():
                raise UserError(f"{name}_low and {name}_high need shape ({size},) with low below high")
        if self.soft is not None:
            for price in (self.soft.linear, self.soft.quadratic):
                if price.shape != (n,) or not (price > 0).all():
                    raise UserError(f"the prices of soft limits need shape ({n},), all positive")
        if self.terminal_set is not None and self.terminal_set.H.shape[1] != n:
            raise UserError(f"the terminal set needs {n} columns, found {self.terminal_set.H.shape[1]}")
        if self.u_rate is not None and (self.u_rate.shape != (m,) or not (self.u_rate > 0).all()):
            raise UserError(f"the rate limits need shape ({m},), all positive, found {self.u_rate}")

    def plain_limits(self, purpose: str) -> None:
        """Refuse what a set or proof about constant limits does not know.

        Raises:
            UserError: the problem has rate limits or a margin.
        """
        for name, value in (("rate limits", self.u_rate), ("a margin", self.margin)):
            if value is not None:
                raise UserError(f"{purpose} knows limits of states and inputs only, the problem has {name}")

    def with_reserve(self, reserve: Array) -> "OCP":
        """The problem with state limits tightened by a reserve (n,), in the states' units, not negative.

        Raises:
            UserError: nothing is left between two limits.
        """
        low, high = self.x_low + reserve, self.x_high - reserve
        if not (low < high).all():
            k = int(np.argmin(high - low))
            raise UserError(
                f"a reserve of {reserve[k]:.4g} leaves nothing between the limits {self.x_low[k]:g} and "
                f"{self.x_high[k]:g} of state {k}"
            )
        return replace(self, x_low=low, x_high=high)

    @property
    def definite(self) -> bool:
        """Whether every deviation of a state costs something: Q and P are positive definite."""
        return all(np.linalg.eigvalsh(w).min() > 1e-9 * np.abs(w).max() for w in (self.Q, self.P))

    @property
    def x_scale(self) -> Array:
        """A typical deviation of each state: where it costs 1, or half the range of its limits if that is less."""
        return _scale(self.Q, self.x_low, self.x_high)

    @property
    def u_scale(self) -> Array:
        """The same for each input."""
        return _scale(self.R, self.u_low, self.u_high)


@dataclass(frozen=True)
class Given:
    """What is known at one step beside the state; what is None is as the OCP says.

    Attributes:
        previous: the input before, (m,), from which rate limits count; None: u_0 is free of them.
        disturbance: estimate of w, (d,) for the whole horizon or one per step, (N, d); None: zero.
        x_ref: reference of the cost, (n,) or one per stage (N+1, n). u_ref: the same, (m,) or (N, m).
    """

    previous: Array | None = None
    disturbance: Array | None = None
    x_ref: Array | None = None
    u_ref: Array | None = None


def _scale(weight: Array, low: Array, high: Array) -> Array:
    diagonal = np.diag(weight)
    by_cost = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), np.inf)
    smaller = np.minimum(by_cost, (high - low) / 2)
    return np.where(np.isfinite(smaller), smaller, 1.0)


def regulation(
    plant: Plant,
    Q: ArrayLike,
    R: ArrayLike,
    *,
    horizon: int,
    P: ArrayLike | None = None,
    x_ref: ArrayLike | None = None,
    u_ref: ArrayLike | None = None,
    soft: Softness | None = None,
    terminal_set: Polytope | None = None,
    margin: Callable[[Any], Any] | None = None,
) -> OCP:
    """The problem of holding a plant at a steady state, with the plant's limits.

    Args:
        plant: gives limits, and the linearisation at the reference for P.
        Q, R: weights (n, n) and (m, m) in the plant's units.
        horizon: number of steps.
        P: terminal weight (n, n); by default the LQR cost-to-go at the reference.
        x_ref, u_ref: reference; by default the plant's equilibrium.
        soft, terminal_set, margin: see `OCP`. To override limits use `dataclasses.replace` on the result.

    Raises:
        UserError: shapes do not match, or P is needed and the linearisation cannot be stabilised.
    """
    q, r = np.atleast_2d(np.asarray(Q, np.float64)), np.atleast_2d(np.asarray(R, np.float64))
    state = plant.equilibrium[0] if x_ref is None else np.asarray(x_ref, np.float64)
    control = plant.equilibrium[1] if u_ref is None else np.asarray(u_ref, np.float64)
    if P is None:
        A, B, _ = plant.linearise(state, control)
        P = lqr(A, B, q, r).P
    return OCP(
        horizon=horizon,
        Q=q,
        R=r,
        P=np.atleast_2d(np.asarray(P, np.float64)),
        x_ref=state,
        u_ref=control,
        x_low=np.array(plant.state.low, np.float64),
        x_high=np.array(plant.state.high, np.float64),
        u_low=np.array(plant.input.low, np.float64),
        u_high=np.array(plant.input.high, np.float64),
        soft=soft,
        terminal_set=terminal_set,
        margin=margin,
    )
