"""An OCP over a sampled model as one sparse nonlinear programme in scaled variables: multiple shooting or collocation.

Variables and rows are ordered stage by stage, rows as x_{k+1} - f(x_k, u_k) before the stage's own, which is the form
that structure-exploiting solvers recognise. The model stays one SX function that is called in an MX graph.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.collocation import POINTS, Collocation
from lipctrl.mpc.problem import OCP, Given

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Trajectory = tuple[Array, Array]  # states (N+1, n) and inputs (N, m)
HERE = Given()  # nothing is known beside the state


@dataclass(frozen=True)
class Programme:
    """min f(z, p) over lbx <= z <= ubx, lbg <= g(z, p) <= ubg, where p is what `parameter` returns.

    Attributes:
        ocp: the problem that this is the transcription of.
        nlp: the symbols x, p, f, g as CasADi's `nlpsol` takes them.
        lbx, ubx, lbg, ubg: bounds.
        rows: function (z, p) -> (f, g), by which a returned point is judged.
        at_x, at_u, at_slack: where states (N+1, n), inputs (N, m) and slacks (N, n or 0) are among the variables.
        at_inner: where collocation states are, (N, POINTS-1, n), or none of them, (N, 0, n).
        shares: the inner collocation points as shares of a period.
        disturbances: d, the size of the model's w.
    """

    ocp: OCP
    nlp: dict[str, ca.MX]
    lbx: Array
    ubx: Array
    lbg: Array
    ubg: Array
    rows: ca.Function
    at_x: Indices
    at_u: Indices
    at_slack: Indices
    at_inner: Indices
    shares: Array
    disturbances: int

    @property
    def equality(self) -> list[bool]:
        """Which rows are equalities."""
        return [bool(e) for e in self.lbg == self.ubg]

    def parameter(self, x: ArrayLike, given: Given = HERE) -> Array:
        """p of a measured state x (n,) and of what else is known: scaled x, previous input with a flag, w, reference.

        Raises:
            UserError: a shape does not match or a number is not finite.
        """
        ocp = self.ocp
        state = _filled("the state", x, ocp.x_ref.shape, ocp.x_ref)
        rest = self._nothing_given if given is HERE else self._given(given)
        return np.concatenate([(state - ocp.x_ref) / ocp.x_scale, rest])

    @cached_property
    def _nothing_given(self) -> Array:
        return self._given(HERE)

    def _given(self, given: Given) -> Array:
        ocp, N = self.ocp, self.ocp.horizon
        n, m = len(ocp.x_ref), len(ocp.u_ref)
        before = _filled("the previous input", given.previous, (m,), ocp.u_ref)
        w = _filled("the disturbance", given.disturbance, (N, self.disturbances), 0.0)
        x_ref = _filled("the reference x_ref", given.x_ref, (N + 1, n), ocp.x_ref)
        u_ref = _filled("the reference u_ref", given.u_ref, (N, m), ocp.u_ref)
        parts = [np.array([float(given.previous is not None)]), (before - ocp.u_ref) / ocp.u_scale, w.ravel()]
        parts += [((x_ref - ocp.x_ref) / ocp.x_scale).ravel(), ((u_ref - ocp.u_ref) / ocp.u_scale).ravel()]
        return np.concatenate(parts)

    def pack(self, trajectory: Trajectory) -> Array:
        """Variables z of a trajectory; slacks are what its states exceed their limits by, inner states interpolate."""
        ocp, (states, inputs) = self.ocp, trajectory
        z, scaled = np.empty(len(self.lbx)), (states - ocp.x_ref) / ocp.x_scale
        z[self.at_x], z[self.at_u] = scaled, (inputs - ocp.u_ref) / ocp.u_scale
        if self.at_slack.size:
            excess = np.maximum(ocp.x_low - states, states - ocp.x_high)[1:]
            z[self.at_slack] = np.maximum(excess, 0) / ocp.x_scale
        share = self.shares[:, None]
        z[self.at_inner] = (1 - share) * scaled[:-1, None] + share * scaled[1:, None]
        return z

    def unpack(self, z: Array) -> Trajectory:
        """States (N+1, n) and inputs (N, m) in the plant's units."""
        ocp = self.ocp
        return ocp.x_ref + ocp.x_scale * z[self.at_x], ocp.u_ref + ocp.u_scale * z[self.at_u]

    def judge(self, z: Array, p: Array) -> tuple[float, float]:
        """(cost, largest violation of any row or bound, in scaled units); infinite if a number is not finite."""
        cost, g = (np.asarray(value, np.float64).ravel() for value in self.rows(z, p))
        gaps = np.concatenate([self.lbg - g, g - self.ubg, self.lbx - z, z - self.ubx, [0.0]])
        worst = float(gaps.max())
        return (float(cost[0]), worst) if np.isfinite([cost[0], worst]).all() else (np.inf, np.inf)


def _filled(name: str, value: ArrayLike | None, shape: tuple[int, ...], default: ArrayLike) -> Array:
    """An argument in its full shape: given in it, or for all stages alike, or the default."""
    given = np.asarray(default if value is None else value, np.float64)
    if (value is not None and given.shape not in (shape, shape[-1:])) or not np.isfinite(given).all():
        raise UserError(f"{name} needs shape {shape[-1:]} and finite numbers, found {given}")
    return np.broadcast_to(given, shape)


@dataclass
class _Stacks:
    """Variables and rows with their bounds, in the order in which they are added."""

    variables: list[ca.MX] = field(default_factory=list)
    rows: list[ca.MX] = field(default_factory=list)
    bounds: list[tuple[Array, Array]] = field(default_factory=list)
    row_bounds: list[tuple[Array, Array]] = field(default_factory=list)
    size: int = 0

    def variable(self, name: str, low: Array, high: Array) -> tuple[ca.MX, Indices]:
        symbol = ca.MX.sym(name, len(low))
        self.variables.append(symbol)
        self.bounds.append((low, high))
        self.size += len(low)
        return symbol, np.arange(self.size - len(low), self.size)

    def row(self, value: ca.MX, low: ArrayLike, high: ArrayLike) -> None:
        self.rows.append(value)
        shape = (value.numel(),)
        self.row_bounds.append((np.broadcast_to(low, shape).astype(float), np.broadcast_to(high, shape).astype(float)))


def _scaled(model: ca.Function, ocp: OCP, *, rate: bool) -> ca.Function:
    """(x, u, w) -> x+, or dx/dt where `rate`, with x and u in deviations from the reference over the scales."""
    # a network stays in MX: expanded to scalars its derivatives take three times as long
    symbol = ca.SX.sym if model.is_a("SXFunction") else ca.MX.sym
    inputs: list[Any] = [symbol("x", len(ocp.x_ref)), symbol("u", len(ocp.u_ref)), symbol("w", model.size1_in(2))]
    x, u, w = inputs
    after = model(ocp.x_ref + ocp.x_scale * x, ocp.u_ref + ocp.u_scale * u, w)
    return ca.Function("model", inputs, [(after if rate else after - ocp.x_ref) / ocp.x_scale])


@dataclass
class _Stages:
    """The symbols of all stages; those that a problem does not have are missing."""

    x: list[ca.MX] = field(default_factory=list)
    u: list[ca.MX] = field(default_factory=list)
    inner: list[list[ca.MX]] = field(default_factory=list)
    slack: list[ca.MX] = field(default_factory=list)
    at: dict[str, list[Indices]] = field(default_factory=lambda: {"x": [], "u": [], "inner": [], "slack": []})


def _symbols(ocp: OCP, stacks: _Stacks, inner: int) -> _Stages:
    """All variables in stage order, with `inner` collocation states per period."""
    n = len(ocp.x_ref)
    free, unlimited = (np.full(n, -np.inf), np.full(n, np.inf)), np.full(n, np.inf)
    limits = ((ocp.x_low - ocp.x_ref) / ocp.x_scale, (ocp.x_high - ocp.x_ref) / ocp.x_scale)
    inputs = (ocp.u_low - ocp.u_ref) / ocp.u_scale, (ocp.u_high - ocp.u_ref) / ocp.u_scale
    stages = _Stages()

    def add(kind: str, low: Array, high: Array) -> ca.MX:
        symbol, where = stacks.variable(f"{kind}{len(stages.at[kind])}", low, high)
        stages.at[kind].append(where)
        return symbol

    for k in range(ocp.horizon + 1):
        stages.x.append(add("x", *(limits if k and ocp.soft is None else free)))
        if k < ocp.horizon:
            stages.u.append(add("u", *inputs))
            stages.inner.append([add("inner", *free) for _ in range(inner)])
        if k and ocp.soft is not None:
            stages.slack.append(add("slack", np.zeros(n), unlimited))
    return stages


@dataclass(frozen=True)
class _Parameters:
    """The symbols of `Programme.parameter`, and all of them in one column."""

    start: ca.MX
    known: ca.MX
    before: ca.MX
    w: list[ca.MX]
    x_ref: list[ca.MX]
    u_ref: list[ca.MX]
    column: ca.MX


def _parameters(ocp: OCP, disturbances: int) -> _Parameters:
    n, m, N = len(ocp.x_ref), len(ocp.u_ref), ocp.horizon
    sizes = [n, 1, m] + [disturbances] * N + [n] * (N + 1) + [m] * N
    column = ca.MX.sym("p", sum(sizes))
    ends = np.cumsum([0, *sizes])
    parts = [column[int(a) : int(b)] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    w, x_ref, u_ref = parts[3 : 3 + N], parts[3 + N : 4 + 2 * N], parts[4 + 2 * N :]
    return _Parameters(parts[0], parts[1], parts[2], w, x_ref, u_ref, column)


def _limit_rows(stacks: _Stacks, ocp: OCP, stages: _Stages, p: _Parameters, k: int) -> ca.MX:
    """The rows of stage k behind its dynamics; returns the price of its slacks."""
    if k < ocp.horizon and ocp.u_rate is not None:
        change = p.known * (stages.u[0] - p.before) if k == 0 else stages.u[k] - stages.u[k - 1]
        stacks.row(change, -ocp.u_rate / ocp.u_scale, ocp.u_rate / ocp.u_scale)
    if k == 0:
        stacks.row(stages.x[0] - p.start, 0, 0)
        return ca.MX(0)
    if ocp.margin is not None:
        stacks.row(ca.vertcat(ocp.margin(ocp.x_ref + ocp.x_scale * stages.x[k])), 0, np.inf)
    if ocp.soft is None:
        return ca.MX(0)
    slack, x = stages.slack[k - 1], stages.x[k]
    stacks.row(x - slack, -np.inf, (ocp.x_high - ocp.x_ref) / ocp.x_scale)
    stacks.row(x + slack, (ocp.x_low - ocp.x_ref) / ocp.x_scale, np.inf)
    excess = ocp.x_scale * slack
    return ca.dot(ca.MX(ocp.soft.linear), excess) + ca.dot(ca.MX(ocp.soft.quadratic), excess**2)


def _dynamics(
    update: ca.Function, collocation: Collocation | None, ocp: OCP, stages: _Stages, p: _Parameters
) -> list[ca.MX]:
    """What must vanish in each period."""
    x, u = stages.x, stages.u
    if collocation is None:
        model = _scaled(update, ocp, rate=False)
        return [x[k + 1] - model(x[k], u[k], p.w[k]) for k in range(ocp.horizon)]
    scaled = replace(collocation, ode=_scaled(collocation.ode, ocp, rate=True))
    return [scaled.residuals(x[k], stages.inner[k], x[k + 1], u[k], p.w[k]) for k in range(ocp.horizon)]


def transcribe(update: ca.Function, ocp: OCP, collocation: Collocation | None = None) -> Programme:
    """The nonlinear programme of an OCP over x+ = update(x, u, w).

    Args:
        update: function (x, u, w) -> x+, as `Plant.update`, in SX; in MX if there is a network inside.
        ocp: the problem, with n and m of the model.
        collocation: then its equations take the place of `update`.

    Raises:
        UserError: the sizes of model and problem differ.
    """
    n, m = len(ocp.x_ref), len(ocp.u_ref)
    if (update.size1_in(0), update.size1_in(1)) != (n, m):
        raise UserError(f"the model has {update.size1_in(0)} states and {update.size1_in(1)} inputs, the OCP {n}, {m}")
    stacks, p = _Stacks(), _parameters(ocp, update.size1_in(2))
    stages = _symbols(ocp, stacks, 0 if collocation is None else POINTS - 1)
    gaps = _dynamics(update, collocation, ocp, stages, p)
    Q, P = (ca.DM(ocp.x_scale[:, None] * weight * ocp.x_scale) for weight in (ocp.Q, ocp.P))
    R = ca.DM(ocp.u_scale[:, None] * ocp.R * ocp.u_scale)
    cost = ca.MX(0)
    for k in range(ocp.horizon + 1):
        dx = stages.x[k] - p.x_ref[k]
        if k < ocp.horizon:
            stacks.row(gaps[k], 0, 0)
            du = stages.u[k] - p.u_ref[k]
            cost += ca.bilin(Q, dx, dx) + ca.bilin(R, du, du)
        else:
            cost += ca.bilin(P, dx, dx)
        cost += _limit_rows(stacks, ocp, stages, p, k)
    if ocp.terminal_set is not None:
        H, h = ocp.terminal_set.H, ocp.terminal_set.h
        stacks.row(ca.mtimes(ca.DM(H * ocp.x_scale), stages.x[-1]), -np.inf, h - H @ ocp.x_ref)
    return _assembled(ocp, stacks, stages, p, cost, collocation)


def _assembled(
    ocp: OCP, stacks: _Stacks, stages: _Stages, p: _Parameters, cost: ca.MX, collocation: Collocation | None
) -> Programme:
    z, g = ca.vertcat(*stacks.variables), ca.vertcat(*stacks.rows)
    lbx, ubx = (np.concatenate(parts) for parts in zip(*stacks.bounds, strict=True))
    lbg, ubg = (np.concatenate(parts) for parts in zip(*stacks.row_bounds, strict=True))
    N, n = ocp.horizon, len(ocp.x_ref)
    return Programme(
        ocp=ocp,
        nlp={"x": z, "p": p.column, "f": cost, "g": g},
        lbx=lbx,
        ubx=ubx,
        lbg=lbg,
        ubg=ubg,
        rows=ca.Function("rows", [z, p.column], [cost, g]),
        at_x=np.array(stages.at["x"]),
        at_u=np.array(stages.at["u"]),
        at_slack=np.array(stages.at["slack"], dtype=np.int64).reshape(-1, n),
        at_inner=np.array(stages.at["inner"], dtype=np.int64).reshape(N, -1, n),
        shares=np.empty(0) if collocation is None else collocation.points[:-1],
        disturbances=p.w[0].numel(),
    )
