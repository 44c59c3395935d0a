"""Linear MPC: the plant linearised at the reference, so that the problem is one convex quadratic programme."""

from dataclasses import dataclass, field
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import FEASIBLE, Solution, check_solver, solve_programme
from lipctrl.mpc.invariant import Polytope, box, maximal_invariant_set
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import HERE, Programme, Trajectory, transcribe
from lipctrl.plant import Plant, discrete

Array = NDArray[np.float64]

SOLVERS: dict[str, dict[str, Any]] = {
    "daqp": {"daqp": {"primal_tol": 1e-9, "dual_tol": 1e-12}},
    "piqp": {"piqp": {"eps_abs": 1e-10, "eps_rel": 1e-11}},
    # with its default 1e8 for absent limits the residuals never get small enough
    "hpipm": {"inf": 1e6, "hpipm": {f"res_{c}_max": 1e-8 for c in "gbdm"}},
}
UNSAFE = {
    "fatrop": "as a QP plugin it returned points that break the dynamics",
    "qrqp": "it returned NaN and other minima than every other solver on our problems",
}


def is_linear(plant: Plant) -> bool:
    """Whether the plant is x+ = A x + B u + E w + c, also one in discrete time."""
    x, u, w = (ca.SX.sym(name, plant.update.size1_in(i)) for i, name in enumerate("xuw"))
    return bool(ca.jacobian(plant.update(x, u, w), ca.vertcat(x, u, w)).is_constant())


def at_rest(plant: Plant, ocp: OCP) -> bool:
    """Whether the plant, under the reference's input, stays at the reference."""
    drift = np.abs(plant.step(ocp.x_ref, ocp.u_ref) - ocp.x_ref) / ocp.x_scale
    return bool(drift.max() <= FEASIBLE / 10)


def linear_model(plant: Plant, x_ref: ArrayLike, u_ref: ArrayLike) -> ca.Function:
    """x+ = f(x_ref, u_ref, 0) + A (x - x_ref) + B (u - u_ref) + E w as a function (x, u, w) -> x+."""
    state, control = np.asarray(x_ref, np.float64), np.asarray(u_ref, np.float64)
    A, B, E = plant.linearise(state, control)
    after = plant.step(state, control)
    offset = ca.SX(after - A @ state - B @ control)
    sizes = len(plant.state), len(plant.input), len(plant.disturbance)
    return discrete(
        lambda x, u, w: ca.mtimes(ca.DM(A), x) + ca.mtimes(ca.DM(B), u) + ca.mtimes(ca.DM(E), w) + offset, *sizes
    )


@dataclass(frozen=True)
class LinearMPC:
    """MPC of the plant's linearisation at the reference. Holds no state: a warm start is an argument.

    Attributes:
        plant, ocp: model and problem.
        solver: "daqp" (active set, exact, fastest for few variables), "piqp" or "hpipm" (interior point; hpipm
            without soft limits, and a limit more than 1e6 scales away counts as that far).

    Raises:
        UserError: the solver is refused, or sizes of plant and problem differ.
    """

    plant: Plant
    ocp: OCP
    solver: str = "daqp"
    _programme: Programme = field(init=False, repr=False)
    _solve: ca.Function = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_solver(self.solver, SOLVERS, UNSAFE)
        if self.solver == "hpipm" and self.ocp.soft is not None:
            raise UserError(
                "solver 'hpipm' takes states and inputs only, not the slacks of soft limits; use daqp, piqp"
            )
        if self.solver == "hpipm" and self.ocp.u_rate is not None:
            raise UserError("solver 'hpipm' knows limits of one stage only, not rate limits; use daqp, piqp")
        if self.solver == "daqp" and not self.ocp.definite:
            raise UserError("solver 'daqp' fails where a state costs nothing; use piqp, hpipm")
        if self.ocp.margin is not None:
            raise UserError("linear MPC takes no margin, which would have to be linear; use NMPC")
        programme = transcribe(linear_model(self.plant, self.ocp.x_ref, self.ocp.u_ref), self.ocp)
        options = {"print_time": False, "error_on_fail": False, **SOLVERS[self.solver]}
        # the record is frozen for its users; these two are made here once
        object.__setattr__(self, "_programme", programme)
        object.__setattr__(self, "_solve", ca.qpsol("linear_mpc", self.solver, programme.nlp, options))

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        """The optimal plan from the measured state; arguments as for `NMPC.solve`."""
        return solve_programme(self._solve, self._programme, x, guess, given)


def terminal_set(plant: Plant, ocp: OCP) -> Polytope:
    """The largest set, in the plant's units, in which LQR about the reference holds all limits of the OCP for ever.

    For ever is so on linear plants; of another plant it is the set of the linearisation.
    With it as `OCP.terminal_set` and the LQR cost-to-go as P, linear MPC stays feasible and stable (Mayne et al. 2000).

    Raises:
        UserError: the reference is not strictly inside the limits or the plant does not rest there, or the problem has
            rate limits or a margin.
    """
    ocp.plain_limits("the terminal set")
    if not at_rest(plant, ocp):
        raise UserError(f"the terminal set needs a reference at which the plant rests, found x_ref {ocp.x_ref}")
    A, B, _ = plant.linearise(ocp.x_ref, ocp.u_ref)
    regulator = lqr(A, B, ocp.Q, ocp.R)
    states = box(ocp.x_low - ocp.x_ref, ocp.x_high - ocp.x_ref)
    inputs = box(ocp.u_low - ocp.u_ref, ocp.u_high - ocp.u_ref)
    limits = Polytope(np.vstack([states.H, -inputs.H @ regulator.K]), np.append(states.h, inputs.h))
    found = maximal_invariant_set(regulator.A_cl, limits)
    return Polytope(found.H, found.h + found.H @ ocp.x_ref)
