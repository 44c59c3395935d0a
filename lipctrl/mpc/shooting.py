"""Direct multiple shooting: an OCP over a sampled model as one sparse nonlinear programme in scaled variables.

Variables and rows are ordered stage by stage, rows as x_{k+1} - f(x_k, u_k) before the stage's own, which is the form
that structure-exploiting solvers recognise. The model stays one SX function that is called in an MX graph.
"""

from dataclasses import dataclass
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.problem import OCP

Array = NDArray[np.float64]
Trajectory = tuple[Array, Array]  # states (N+1, n) and inputs (N, m)


@dataclass(frozen=True)
class Programme:
    """min f(z, p) over lbx <= z <= ubx, lbg <= g(z, p) <= ubg, where p is the measured state in scaled form.

    Attributes:
        ocp: the problem that this is the transcription of.
        nlp: the symbols x, p, f, g as CasADi's `nlpsol` takes them.
        lbx, ubx, lbg, ubg: bounds. equality: which rows of g are equalities.
        rows: function (z, p) -> (f, g), by which a returned point is judged.
    """

    ocp: OCP
    nlp: dict[str, ca.MX]
    lbx: Array
    ubx: Array
    lbg: Array
    ubg: Array
    rows: ca.Function

    @property
    def equality(self) -> list[bool]:
        """Which rows are equalities."""
        return [bool(e) for e in self.lbg == self.ubg]

    def parameter(self, x: Array) -> Array:
        """p of a measured state x (n,)."""
        return np.asarray((x - self.ocp.x_ref) / self.ocp.x_scale)

    def pack(self, trajectory: Trajectory) -> Array:
        """Variables z of a trajectory; slacks are what its states exceed their limits by."""
        ocp, (states, inputs) = self.ocp, trajectory
        scaled, excess = (states - ocp.x_ref) / ocp.x_scale, np.maximum(ocp.x_low - states, states - ocp.x_high)
        parts = []
        for k in range(ocp.horizon + 1):
            parts.append(scaled[k])
            if k < ocp.horizon:
                parts.append((inputs[k] - ocp.u_ref) / ocp.u_scale)
            if k and ocp.soft is not None:
                parts.append(np.maximum(excess[k], 0) / ocp.x_scale)
        return np.concatenate(parts)

    def unpack(self, z: Array) -> Trajectory:
        """States (N+1, n) and inputs (N, m) in the plant's units."""
        ocp = self.ocp
        n, m, slacks = len(ocp.x_ref), len(ocp.u_ref), 0 if ocp.soft is None else len(ocp.x_ref)
        starts = [0] + [n + m + k * (n + m + slacks) for k in range(ocp.horizon)]
        states = np.array([z[s : s + n] for s in starts])
        inputs = np.array([z[s + n : s + n + m] for s in starts[:-1]])
        return ocp.x_ref + ocp.x_scale * states, ocp.u_ref + ocp.u_scale * inputs

    def judge(self, z: Array, p: Array) -> tuple[float, float]:
        """(cost, largest violation of any row or bound, in scaled units); infinite if a number is not finite."""
        cost, g = (np.asarray(value, np.float64).ravel() for value in self.rows(z, p))
        gaps = np.concatenate([self.lbg - g, g - self.ubg, self.lbx - z, z - self.ubx, [0.0]])
        worst = float(gaps.max())
        return (float(cost[0]), worst) if np.isfinite([cost[0], worst]).all() else (np.inf, np.inf)


@dataclass
class _Stacks:
    """Variables and rows with their bounds, in the order in which they are added."""

    variables: list[ca.MX]
    rows: list[ca.MX]
    bounds: list[tuple[Array, Array]]
    row_bounds: list[tuple[Array, Array]]

    def variable(self, name: str, low: Array, high: Array) -> ca.MX:
        symbol = ca.MX.sym(name, len(low))
        self.variables.append(symbol)
        self.bounds.append((low, high))
        return symbol

    def row(self, value: ca.MX, low: ArrayLike, high: ArrayLike) -> None:
        self.rows.append(value)
        shape = (value.numel(),)
        self.row_bounds.append((np.broadcast_to(low, shape).astype(float), np.broadcast_to(high, shape).astype(float)))


def _scaled_model(update: ca.Function, ocp: OCP) -> ca.Function:
    """(x, u) -> x+ in deviations from the reference divided by the scales, without disturbance."""
    # a network stays in MX: expanded to scalars its derivatives take three times as long
    symbol = ca.SX.sym if update.is_a("SXFunction") else ca.MX.sym
    inputs: list[Any] = [symbol("x", len(ocp.x_ref)), symbol("u", len(ocp.u_ref))]
    x, u = inputs
    after = update(ocp.x_ref + ocp.x_scale * x, ocp.u_ref + ocp.u_scale * u, ca.DM.zeros(update.size1_in(2)))
    return ca.Function("model", inputs, [(after - ocp.x_ref) / ocp.x_scale])


def _symbols(ocp: OCP) -> tuple[_Stacks, list[ca.MX], list[ca.MX], list[ca.MX]]:
    """The stacks with all variables in stage order, and the states, inputs and slacks among them."""
    n = len(ocp.x_ref)
    free, unlimited = (np.full(n, -np.inf), np.full(n, np.inf)), np.full(n, np.inf)
    limits = ((ocp.x_low - ocp.x_ref) / ocp.x_scale, (ocp.x_high - ocp.x_ref) / ocp.x_scale)
    low, high = (ocp.u_low - ocp.u_ref) / ocp.u_scale, (ocp.u_high - ocp.u_ref) / ocp.u_scale
    stacks = _Stacks([], [], [], [])
    states, inputs, slacks = [], [], []
    for k in range(ocp.horizon + 1):
        states.append(stacks.variable(f"x{k}", *(limits if k and ocp.soft is None else free)))
        if k < ocp.horizon:
            inputs.append(stacks.variable(f"u{k}", low, high))
        if k and ocp.soft is not None:
            slacks.append(stacks.variable(f"s{k}", np.zeros(n), unlimited))
    return stacks, states, inputs, slacks


def transcribe(update: ca.Function, ocp: OCP) -> Programme:
    """The nonlinear programme of an OCP over x+ = update(x, u, 0).

    Args:
        update: function (x, u, w) -> x+, as `Plant.update`, in SX; in MX if there is a network inside.
        ocp: the problem, with n and m of the model.

    Raises:
        UserError: the sizes of model and problem differ.
    """
    n, m = len(ocp.x_ref), len(ocp.u_ref)
    if (update.size1_in(0), update.size1_in(1)) != (n, m):
        raise UserError(f"the model has {update.size1_in(0)} states and {update.size1_in(1)} inputs, the OCP {n}, {m}")
    model = _scaled_model(update, ocp)
    stacks, states, inputs, slacks = _symbols(ocp)
    start = ca.MX.sym("p", n)
    Q, P = (ca.DM(ocp.x_scale[:, None] * weight * ocp.x_scale) for weight in (ocp.Q, ocp.P))
    R = ca.DM(ocp.u_scale[:, None] * ocp.R * ocp.u_scale)
    low, high = (ocp.x_low - ocp.x_ref) / ocp.x_scale, (ocp.x_high - ocp.x_ref) / ocp.x_scale
    cost = ca.MX(0)
    for k in range(ocp.horizon + 1):
        if k < ocp.horizon:
            stacks.row(states[k + 1] - model(states[k], inputs[k]), 0, 0)
            cost += ca.bilin(Q, states[k], states[k]) + ca.bilin(R, inputs[k], inputs[k])
        if k == 0:
            stacks.row(states[0] - start, 0, 0)
        elif ocp.soft is not None:
            slack = slacks[k - 1]
            stacks.row(states[k] - slack, -np.inf, high)
            stacks.row(states[k] + slack, low, np.inf)
            excess = ocp.x_scale * slack
            cost += ca.dot(ocp.soft.linear, excess) + ca.dot(ocp.soft.quadratic, excess**2)
    cost += ca.bilin(P, states[-1], states[-1])
    if ocp.terminal_set is not None:
        H, h = ocp.terminal_set.H, ocp.terminal_set.h
        stacks.row(ca.mtimes(ca.DM(H * ocp.x_scale), states[-1]), -np.inf, h - H @ ocp.x_ref)
    z, g = ca.vertcat(*stacks.variables), ca.vertcat(*stacks.rows)
    lbx, ubx = (np.concatenate(parts) for parts in zip(*stacks.bounds, strict=True))
    lbg, ubg = (np.concatenate(parts) for parts in zip(*stacks.row_bounds, strict=True))
    nlp = {"x": z, "p": start, "f": cost, "g": g}
    return Programme(ocp, nlp, lbx, ubx, lbg, ubg, ca.Function("rows", [z, start], [cost, g]))
