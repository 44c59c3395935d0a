"""Convex MPC with an input-convex model: solved to global optimality by quadratic programmes, with a proved gap.

With states x_1..x_T convex in the inputs u (a model unrolled from x_0, never fed back) the problem

    minimise  sum_k  price' x_k + sum_i weight_i max(0, x_{k,i} - limit_i)^2 + sum_k |u_k - u_ref|_R^2
    over      u_low <= u_k <= u_high,        price, weight >= 0,

is convex, because the cost of a state never falls when the state rises. It is not so with a set-point inside the range
of a state, a lower limit on a state, or a Lyapunov constraint: those go to `NMPC` and `LMPC`.

At inputs v the model lies above its tangent, x(u) >= x(v) + J(v) (u - v). Tangents in the place of the states give a
quadratic programme whose optimum is below that of the problem; its solution is the next v, and its tangents join the
others (Kelley's method with the quadratic cost kept). The models are nearly affine, so that few tangents are needed.
The gap that is reported needs no solver: for convex V with gradient g at u, no admissible input is cheaper than
V(u) - max_v g'(u - v), which is a sum over single inputs.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.models.convexity import is_convex
from lipctrl.mpc.controller import Solution
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import HERE, Trajectory
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
MOST = 30  # quadratic programmes
OPTIONS: dict[str, dict[str, float]] = {
    "daqp": {"primal_tol": 1e-9, "dual_tol": 1e-12},
    "piqp": {"eps_abs": 1e-10, "eps_rel": 1e-11},
}


@dataclass(frozen=True)
class ConvexCost:
    """The cost and the admissible inputs, in raw units.

    Attributes:
        price, weight, limit: of the states, (n,); price and weight not negative.
        R: of the inputs, (m, m), positive definite. u_ref, u_low, u_high: (m,), finite.
    """

    price: Array
    weight: Array
    limit: Array
    R: Array
    u_ref: Array
    u_low: Array
    u_high: Array

    def __post_init__(self) -> None:
        n, m = len(self.limit), len(self.u_ref)
        for name, value in (("price", self.price), ("weight", self.weight)):
            if value.shape != (n,) or not (value >= 0).all():
                raise UserError(
                    f"{name} needs shape ({n},) and no negative number: otherwise the problem is not convex"
                )
        if self.R.shape != (m, m) or not np.allclose(self.R, self.R.T) or not np.linalg.eigvalsh(self.R).min() > 0:
            raise UserError(f"weight R must be symmetric positive definite of shape ({m}, {m})")
        if self.u_low.shape != (m,) or self.u_high.shape != (m,) or not (self.u_low < self.u_high).all():
            raise UserError(f"u_low and u_high need shape ({m},) with low below high")
        if not np.isfinite([self.u_low, self.u_high]).all():
            raise UserError("convex MPC needs finite input limits: its gap is a sum over them")


@dataclass(frozen=True)
class ConvexPlan:
    """A plan and how far from the global optimum it can be.

    Attributes:
        inputs (T, m), states (T, n): the plan, states as predicted for x_1..x_T.
        cost: of the plan. gap: proved: no plan costs less than cost - gap (in exact arithmetic of the gradient).
        iterations: quadratic programmes solved. wall_time: seconds.
    """

    inputs: Array
    states: Array
    cost: float
    gap: float
    iterations: int
    wall_time: float


@dataclass(frozen=True)
class ConvexMPC:
    """Holds no state: the plan of the step before can be handed in as a start.

    Attributes:
        net: the unrolled model, from (x_0, u_0, .., u_{T-1}) to (x_1, .., x_T) in raw units; convex by structure.
        cost: see `ConvexCost`; its sizes give n, m and T.
        tolerance: proved relative gap at which it stops; below about 1e-5 the precision of the programmes ends.

    Raises:
        UserError: the network is not convex, or sizes differ.
    """

    net: PlainNet
    cost: ConvexCost
    tolerance: float = 1e-4
    _programmes: "dict[int, _Tangents]" = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        n, m = len(self.cost.limit), len(self.cost.u_ref)
        T, rest = divmod(self.net.output_size, n)
        if rest or self.net.input_size != n + T * m:
            raise UserError(
                f"a model with {n} states and {m} inputs maps {n} + T {m} numbers to T {n}; the network maps "
                f"{self.net.input_size} to {self.net.output_size}"
            )
        if not is_convex(self.net):
            raise UserError("the model is not convex in its inputs by structure: use nonlinear MPC")

    @property
    def horizon(self) -> int:
        """T."""
        return self.net.output_size // len(self.cost.limit)

    def value(self, inputs: Array, states: Array) -> float:
        """The cost of a plan with its predicted states."""
        c = self.cost
        du, over = inputs - c.u_ref, np.maximum(states - c.limit, 0)
        return float((states @ c.price).sum() + (over**2 @ c.weight).sum() + np.einsum("ki,ij,kj", du, c.R, du))

    def solve(self, x: ArrayLike, guess: Array | None = None) -> ConvexPlan:
        """The globally optimal plan from state x (n,), to the tolerance.

        Args:
            guess: inputs (T, m) to start from; by default the reference.

        Raises:
            UserError: a shape does not match or a number is not finite.
        """
        begin, c, T = time.perf_counter(), self.cost, self.horizon
        n, m = len(c.limit), len(c.u_ref)
        state = np.asarray(x, np.float64)
        if state.shape != (n,) or not np.isfinite(state).all():
            raise UserError(f"the state needs shape ({n},) and finite numbers, found {state}")
        start = np.tile(c.u_ref, (T, 1)) if guess is None else np.asarray(guess, np.float64)
        if start.shape != (T, m) or not np.isfinite(start).all():
            raise UserError(f"a guess needs inputs of shape ({T}, {m}), found {start.shape}")
        inputs = np.clip(start, c.u_low, c.u_high)
        cuts: list[tuple[Array, Array]] = []
        best: ConvexPlan | None = None
        for k in range(MOST):
            states, J = self._evaluate(state, inputs)
            plan = ConvexPlan(inputs, states, self.value(inputs, states), self._gap(inputs, states, J), k, 0.0)
            if best is None or plan.cost < best.cost:
                best = plan
            if best.gap <= self.tolerance * max(1.0, abs(best.cost)):
                break
            cuts.append((J, states.ravel() - J @ inputs.ravel()))
            inputs = self._step(cuts, inputs)
        assert best is not None
        return ConvexPlan(best.inputs, best.states, best.cost, best.gap, len(cuts), time.perf_counter() - begin)

    def _evaluate(self, x: Array, inputs: Array) -> tuple[Array, Array]:
        """Predicted states (T, n) and their Jacobian with respect to the inputs (T n, T m)."""
        n = len(self.cost.limit)
        states, J = self.net.linearised(np.concatenate([x, inputs.ravel()]))
        return states.reshape(self.horizon, n), J[:, n:]

    def _gap(self, inputs: Array, states: Array, J: Array) -> float:
        c = self.cost
        slope = c.price + 2 * c.weight * np.maximum(states - c.limit, 0)  # of the cost with respect to the states
        g = (J.T @ slope.ravel()).reshape(inputs.shape) + 2 * (inputs - c.u_ref) @ c.R
        return float(np.maximum(g * (inputs - c.u_low), g * (inputs - c.u_high)).sum())

    def _step(self, cuts: list[tuple[Array, Array]], inputs: Array) -> Array:
        """The solution of the quadratic programme of all tangents."""
        c, T = self.cost, self.horizon
        if len(cuts) not in self._programmes:
            self._programmes[len(cuts)] = _Tangents(c, T, len(cuts))
        scaled = np.clip(self._programmes[len(cuts)].solve(cuts), 0, 1)
        return np.asarray(np.tile(c.u_low, T) + np.tile(c.u_high - c.u_low, T) * scaled).reshape(inputs.shape)


def why_not_convex(ocp: OCP) -> str | None:
    """Why the convex path does not take this problem, or None: cost and limits never ask for a state to be higher."""
    for found, reason in (
        (ocp.Q.any() or ocp.P.any(), "a set-point of a state is approached from both sides"),
        (np.isfinite(ocp.x_low).any(), "a lower limit on a state is not a convex set of inputs"),
        (
            ocp.soft is None and np.isfinite(ocp.x_high).any(),
            "hard upper limits on states are convex, but not implemented there: make them soft",
        ),
        (ocp.terminal_set is not None, "a terminal set bounds states from below"),
        (ocp.margin is not None, "a margin is an arbitrary function of the state"),
        (ocp.u_rate is not None, "rate limits are convex, but not implemented there"),
    ):
        if found:
            return reason
    return None


@dataclass(frozen=True)
class ConvexController:
    """`ConvexMPC` in the place of any other controller: the problem as an `OCP`, the answer as a `Solution`.

    Attributes:
        net: as in `ConvexMPC`. problem: one for which `why_not_convex` is None; the quadratic price of its soft limits
            counts, the linear one does not.

    Raises:
        UserError: a problem that is not taken, or a model that is not convex.
    """

    net: PlainNet
    problem: OCP
    tolerance: float = 1e-4
    _mpc: ConvexMPC = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ocp, reason = self.problem, why_not_convex(self.problem)
        if reason is not None:
            raise UserError(f"the convex path does not take this problem: {reason}")
        limited = np.isfinite(ocp.x_high)
        quadratic = np.zeros(len(limited)) if ocp.soft is None else ocp.soft.quadratic
        cost = ConvexCost(
            np.zeros(len(limited)),
            np.where(limited, quadratic, 0.0),
            ocp.x_high,
            ocp.R,
            ocp.u_ref,
            ocp.u_low,
            ocp.u_high,
        )
        # the record is frozen for its users; this is made here once
        object.__setattr__(self, "_mpc", ConvexMPC(self.net, cost, self.tolerance))
        if self._mpc.horizon != ocp.horizon:
            raise UserError(f"the network predicts {self._mpc.horizon} steps, the problem has {ocp.horizon}")

    @property
    def ocp(self) -> OCP:
        """The problem."""
        return self.problem

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        """The globally optimal plan from state x (n,); see `Controller`.

        Raises:
            UserError: a shape does not match, or something is given beside the state.
        """
        if given != HERE:
            raise UserError("convex MPC knows neither disturbances nor changing references")
        plan = self._mpc.solve(x, None if guess is None else guess[1])
        close = plan.gap <= self.tolerance * max(1.0, abs(plan.cost))
        return Solution(
            states=np.vstack([np.asarray(x, np.float64), plan.states]),
            inputs=plan.inputs,
            cost=plan.cost,
            feasible=True,  # inputs are clipped to their limits, and nothing else is hard
            converged=close,
            violation=0.0,
            status="within the gap" if close else "precision of the programmes reached",
            iterations=plan.iterations,
            wall_time=plan.wall_time,
            gap=plan.gap,
        )


class _Tangents:
    """The quadratic programme of a number of tangents: inputs in [0, 1], excesses h >= 0, and one price t if any.

    Handing numpy arrays to CasADi copies them element by element, which took longer than solving: its buffers do not.
    """

    def __init__(self, cost: ConvexCost, horizon: int, cuts: int) -> None:
        m, T = len(cost.u_ref), horizon
        self.width, self.low, self.inputs = np.tile(cost.u_high - cost.u_low, T), np.tile(cost.u_low, T), T * m
        weight, self.limit, self.price = np.tile(cost.weight, T), np.tile(cost.limit, T), np.tile(cost.price, T)
        self.used, priced = np.flatnonzero(weight), int(cost.price.any())
        self.scale = np.sqrt(weight[self.used])  # h in the unit in which it costs its square
        excesses, self.rows = len(self.used), len(self.used) + priced
        size = self.inputs + self.rows
        R = np.kron(np.eye(T), cost.R)
        H = 2 * np.eye(size)
        H[: self.inputs, : self.inputs] = 2 * self.width[:, None] * R * self.width
        g, lowest, highest = np.zeros(size), np.zeros(size), np.full(size, np.inf)
        g[: self.inputs] = 2 * (self.low - np.tile(cost.u_ref, T)) @ R * self.width
        highest[: self.inputs] = 1.0
        if priced:
            H[-1, -1], g[-1], lowest[-1] = 0.0, 1.0, -np.inf
        # one column-major matrix for all tangents; what multiplies the excesses and the price never changes
        self.A, self.b = np.zeros((self.rows * cuts, size), order="F"), np.zeros(self.rows * cuts)
        for k in range(cuts):
            self.A[k * self.rows : (k + 1) * self.rows, self.inputs :] = np.eye(excesses + priced)
        self.found, solver = np.zeros(size), "piqp" if priced else "daqp"
        # an active-set solver is fastest, and wrong where the Hessian is singular, as in the price
        shapes = {"h": ca.Sparsity.dense(size, size), "a": ca.Sparsity.dense(*self.A.shape)}
        options: dict[str, Any] = {"error_on_fail": False, solver: OPTIONS[solver]}
        programme = ca.conic("tangents", solver, shapes, options)
        never = np.full(len(self.b), np.inf)
        given = {"h": H, "g": g, "a": self.A, "lba": self.b, "uba": never, "lbx": lowest, "ubx": highest}
        buffer, self.trigger = programme.buffer()
        self.kept = (programme, buffer, given)  # CasADi holds no reference to what it reads
        for name, value in given.items():
            buffer.set_arg(programme.index_in(name), memoryview(value.ravel(order="K")))  # type: ignore[call-arg,arg-type]  # CasADi's stubs know C++ only
        buffer.set_res(programme.index_out("x"), memoryview(self.found))  # type: ignore[call-arg,arg-type]

    def solve(self, cuts: list[tuple[Array, Array]]) -> Array:
        """Inputs in [0, 1], (T m,), for tangents (Jacobian (T n, T m), states at inputs zero (T n,))."""
        for k, (J, offset) in enumerate(cuts):
            A, b, first = J * self.width, offset + J @ self.low, k * self.rows
            last = first + len(self.used)
            self.A[first:last, : self.inputs] = -A[self.used] * self.scale[:, None]
            self.b[first:last] = self.scale * (b[self.used] - self.limit[self.used])
            if self.price.any():
                self.A[last, : self.inputs], self.b[last] = -self.price @ A, self.price @ b
        self.trigger()
        return self.found[: self.inputs].copy()
