"""Steady-state targets: the rest at which the controlled outputs are at their set-point under a known disturbance.

Rao and Rawlings, "Steady states and constraints in model predictive control", AIChE Journal 45, 1999, for nonlinear
models. First the set-point is demanded, and of all rests at it the one nearest to the reference is chosen; if no rest
within the limits reaches it, the nearest outputs that can be held are taken. Nearest is in the scales of the OCP.
"""

from dataclasses import dataclass, field

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import FEASIBLE, SOLVERS
from lipctrl.mpc.observer import DisturbanceModel
from lipctrl.mpc.problem import OCP
from lipctrl.plant import Plant

Array = NDArray[np.float64]
SOLVER = "sqpmethod-daqp"
CLOSENESS = 1e-8  # weight of the distance to the reference beside the offset where the set-point cannot be reached


@dataclass(frozen=True)
class Target:
    """A rest of the disturbed model: state x (n,), input u (m,), and what is left of the set-point, offset (r,)."""

    x: Array
    u: Array
    offset: Array


def _succeeded(solver: ca.Function) -> bool:
    try:
        return bool(solver.stats()["success"])
    except RuntimeError:  # CasADi has no statistics of an SQP method that stopped in its first step
        return False


@dataclass(frozen=True)
class TargetSelector:
    """Finds targets x = f(x, u) + Bd d within the limits, with H (C x + Cd d) at the set-point.

    Attributes:
        plant: the model f. ocp: gives limits, scales and the reference.
        model: the disturbances and outputs.
        H: which outputs, or combinations of them, are controlled, shape (r, p), at most as many as inputs.

    Raises:
        UserError: sizes do not match, or more outputs are controlled than there are inputs.
    """

    plant: Plant
    ocp: OCP
    model: DisturbanceModel
    H: Array
    _exact: ca.Function = field(init=False, repr=False)
    _nearest: ca.Function = field(init=False, repr=False)
    _residual: ca.Function = field(init=False, repr=False)

    def __post_init__(self) -> None:
        (p, n), (rows, columns), m = self.model.C.shape, np.atleast_2d(self.H).shape, len(self.ocp.u_ref)
        if (n, m) != (len(self.plant.state), len(self.plant.input)) or len(self.ocp.x_ref) != n:
            raise UserError("plant, OCP and disturbance model need the same numbers of states and inputs")
        if columns != p or rows > m:
            raise UserError(f"H needs {p} columns and at most {m} rows, one per input, found shape {np.shape(self.H)}")
        z, d, r = ca.MX.sym("z", n + m), ca.MX.sym("d", p), ca.MX.sym("r", rows)
        x = self.ocp.x_ref + self.ocp.x_scale * z[:n]
        u = self.ocp.u_ref + self.ocp.u_scale * z[n:]
        after = self.plant.update(x, u, np.zeros(len(self.plant.disturbance))) + ca.mtimes(ca.DM(self.model.Bd), d)
        rest = (after - x) / self.ocp.x_scale
        outputs = ca.mtimes(ca.DM(self.model.C), x) + ca.mtimes(ca.DM(self.model.Cd), d)
        scale = np.linalg.norm(self.H @ self.model.C * self.ocp.x_scale, axis=1)
        offset = (ca.mtimes(ca.DM(self.H), outputs) - r) / np.where(scale > 0, scale, 1.0)
        # of states and inputs: with a singular Hessian the solver returned points that were not optimal
        distance, parameters = ca.sumsqr(z), ca.vertcat(d, r)
        plugin, options = SOLVERS[SOLVER]
        options = {"print_time": False, "error_on_fail": False, **options}
        exact = {"x": z, "p": parameters, "f": distance, "g": ca.vertcat(rest, offset)}
        nearest = {"x": z, "p": parameters, "f": ca.sumsqr(offset) + CLOSENESS * distance, "g": rest}
        # the record is frozen for its users; these are made here once
        object.__setattr__(self, "_exact", ca.nlpsol("target", plugin, exact, options))
        object.__setattr__(self, "_nearest", ca.nlpsol("nearest_target", plugin, nearest, options))
        object.__setattr__(self, "_residual", ca.Function("residual", [z, parameters], [rest, offset * scale, offset]))

    def target(self, d: ArrayLike, setpoint: ArrayLike) -> Target:
        """The rest for a disturbance d (p,) and a set-point (r,).

        Raises:
            UserError: a shape does not match, a number is not finite, or no rest within the limits was found.
        """
        sizes = len(self.model.C), len(np.atleast_2d(self.H))
        given = [np.asarray(value, np.float64) for value in (d, setpoint)]
        for name, value, size in zip(("disturbance", "set-point"), given, sizes, strict=True):
            if value.shape != (size,) or not np.isfinite(value).all():
                raise UserError(f"the {name} needs shape ({size},) and finite numbers, found {value}")
        ocp, parameters, n = self.ocp, np.concatenate(given), len(self.ocp.x_ref)
        low = np.concatenate([(ocp.x_low - ocp.x_ref) / ocp.x_scale, (ocp.u_low - ocp.u_ref) / ocp.u_scale])
        high = np.concatenate([(ocp.x_high - ocp.x_ref) / ocp.x_scale, (ocp.u_high - ocp.u_ref) / ocp.u_scale])
        start = np.clip(np.zeros(len(low)), low, high)
        for solver in (self._exact, self._nearest):
            found = solver(x0=start, p=parameters, lbx=low, ubx=high, lbg=0, ubg=0)["x"]
            z = np.clip(np.asarray(found, np.float64).ravel(), low, high)
            rest, offset, scaled = (np.asarray(part, np.float64).ravel() for part in self._residual(z, parameters))
            wanted = np.append(rest, scaled) if solver is self._exact else rest
            if _succeeded(solver) and np.isfinite(wanted).all() and np.abs(wanted).max() <= FEASIBLE:
                return Target(ocp.x_ref + ocp.x_scale * z[:n], ocp.u_ref + ocp.u_scale * z[n:], offset)
        raise UserError(f"the model has no rest within its limits for the disturbance {given[0]}")
