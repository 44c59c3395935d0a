"""Plant: a dynamical system written once, in CasADi, with names, units, limits and sampling time.

The gymnasium environment steps it, the MPC layer optimises over it, the certificate code linearises it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError

Array = NDArray[np.float64]
Expression = Callable[[ca.SX, ca.SX, ca.SX], ca.SX]


@dataclass(frozen=True)
class Signal:
    """A vector signal: one name with unit, lower and upper limit per component ("angle [rad]"; limits may be inf)."""

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.low) == len(self.high):
            raise UserError("a signal needs one lower and one upper limit per name")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Plant:
    """A sampled dynamical system x+ = f(x, u, w).

    Attributes:
        name: short name, for example "cstr".
        state, input, disturbance: the signals x, u and w.
        dt: sampling time, in `time_unit`.
        update: SX function (x, u, w) -> x+ over one sampling period, input and disturbance held.
        ode: SX function (x, u, w) -> dx/dt, or None if the plant is discrete by nature.
        equilibrium: (x_e, u_e) with f(x_e, u_e, 0) = x_e, the operating point.
        time_unit: "s" or "h".
        constants: the physical constants that can be changed, by name with unit; none where the plant has none.
        family: `update` as a function of these constants, in their order.
    """

    name: str
    state: Signal
    input: Signal
    disturbance: Signal
    dt: float
    update: ca.Function
    ode: ca.Function | None
    equilibrium: tuple[Array, Array]
    time_unit: str = "s"
    constants: Mapping[str, float] = field(default_factory=dict)
    family: Callable[..., ca.Function] | None = None

    def __post_init__(self) -> None:
        sizes = [len(self.state), len(self.input), len(self.disturbance)]
        found = [self.update.size1_in(i) for i in range(self.update.n_in())]
        if found != sizes:
            raise UserError(f"plant {self.name}: update takes (x, u, w) of sizes {found}, the signals have {sizes}")
        if self.update.size_out(0) != (sizes[0], 1) or not self.update.sparsity_out(0).is_dense():
            raise UserError(f"plant {self.name}: update must return a dense column of {sizes[0]} numbers")
        if not self.dt > 0:
            raise UserError(f"plant {self.name}: the sampling time must be positive, found {self.dt}")
        for value, name, size in zip(self.equilibrium, ("state", "input"), sizes, strict=False):
            if np.shape(value) != (size,):
                raise UserError(f"plant {self.name}: equilibrium {name} needs shape ({size},), found {np.shape(value)}")

    def step(self, x: ArrayLike, u: ArrayLike, w: ArrayLike | None = None) -> Array:
        """Next state from state (n,), input (m,) and disturbance (d,), which is zero if not given.

        A leading batch dimension, (batch, n) with (batch, m) and (batch, d), gives (batch, n).

        Raises:
            UserError: a size or batch does not match.
        """
        state, control = np.asarray(x, np.float64), np.asarray(u, np.float64)
        disturbance = np.zeros((*state.shape[:-1], len(self.disturbance))) if w is None else np.asarray(w, np.float64)
        if state.ndim > 2:
            raise UserError(f"plant {self.name}: x needs shape (n,) or (batch, n), found {state.shape}")
        self._check(state.shape[:-1], x=state, u=control, w=disturbance)
        if state.ndim == 1:
            return _evaluate(self.update, state, control, disturbance)
        # CasADi maps over columns
        x_next = self.update(state.T, control.T, disturbance.T)
        return np.ascontiguousarray(np.asarray(x_next, dtype=np.float64).T)

    def _check(self, batch: tuple[int, ...], **values: Array) -> None:
        signals = {"x": self.state, "u": self.input, "w": self.disturbance}
        for name, value in values.items():
            shape = (*batch, len(signals[name]))
            if value.shape != shape:
                raise UserError(f"plant {self.name}: {name} needs shape {shape}, found {value.shape}")

    def varied(self, factors: ArrayLike) -> "Plant":
        """The plant with its constants times factors (k,); its equilibrium and `ode` stay those of the nominal one.

        Raises:
            UserError: it has no constants, or the factors are not one positive number for each.
        """
        values = np.asarray(factors, np.float64)
        if self.family is None or values.shape != (len(self.constants),) or not (0 < values).all():
            raise UserError(
                f"plant {self.name} has {len(self.constants)} constants that can be changed, each by a positive "
                f"factor; found {values.tolist()}"
            )
        changed = [value * float(factor) for value, factor in zip(self.constants.values(), values, strict=True)]
        return replace(self, update=self.family(*changed))

    @cached_property
    def _derivatives(self) -> ca.Function:
        return self.update.factory("linearise", ["x", "u", "w"], ["jac:x_next:x", "jac:x_next:u", "jac:x_next:w"])

    def linearise(self, x: ArrayLike, u: ArrayLike) -> tuple[Array, Array, Array]:
        """(A, B, E): exact derivatives of `update` with respect to x (n,), u (m,) and w at (x, u, 0).

        Raises:
            UserError: a size does not match.
        """
        state, control = np.asarray(x, np.float64), np.asarray(u, np.float64)
        self._check((), x=state, u=control)
        parts = self._derivatives(state, control, np.zeros(len(self.disturbance)))
        a, b, e = (np.asarray(part, dtype=np.float64) for part in parts)
        return a, b, e


def _evaluate(function: ca.Function, *arguments: Array) -> Array:
    """One column through CasADi's buffers: five times faster than a call, which converts every argument."""
    buffer, evaluate = function.buffer()
    held = [np.ascontiguousarray(argument) for argument in arguments]
    result = np.empty(function.size1_out(0))
    # CasADi's annotations describe the C++ form with a pointer and a size
    for i, argument in enumerate(held):
        buffer.set_arg(i, argument.data)  # type: ignore[call-arg]
    buffer.set_res(0, result.data)  # type: ignore[call-arg]
    evaluate()
    return result


def symbols(n: int, m: int, d: int) -> tuple[ca.SX, ca.SX, ca.SX]:
    """SX symbols (x, u, w) of the given sizes."""
    return ca.SX.sym("x", n), ca.SX.sym("u", m), ca.SX.sym("w", d)


def discrete(expression: Expression, n: int, m: int, d: int) -> ca.Function:
    """The function (x, u, w) -> x_next of a discrete-time expression."""
    x, u, w = symbols(n, m, d)
    return ca.Function("update", [x, u, w], [ca.densify(expression(x, u, w))], ["x", "u", "w"], ["x_next"])


def continuous(expression: Expression, n: int, m: int, d: int) -> ca.Function:
    """The function (x, u, w) -> dx/dt of a continuous-time expression."""
    x, u, w = symbols(n, m, d)
    return ca.Function("ode", [x, u, w], [ca.densify(expression(x, u, w))], ["x", "u", "w"], ["dx"])


def rk4(ode: ca.Function, dt: float, substeps: int) -> ca.Function:
    """One sampling period of `ode` by the classical Runge-Kutta method with equal substeps, inputs held."""
    x, u, w = (ca.SX.sym(name, ode.size1_in(name)) for name in ("x", "u", "w"))
    h, state = dt / substeps, x
    for _ in range(substeps):
        k1 = ode(state, u, w)
        k2 = ode(state + h / 2 * k1, u, w)
        k3 = ode(state + h / 2 * k2, u, w)
        k4 = ode(state + h * k3, u, w)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return ca.Function("update", [x, u, w], [state], ["x", "u", "w"], ["x_next"])
