"""Nonlinear MPC: the optimal control problem solved at one measured state, with every returned point checked.

What a solver says about itself is reported and never trusted: a `Solution` counts as feasible only if its point,
put back into the problem, violates nothing.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.problem import OCP
from lipctrl.mpc.shooting import Programme, Trajectory, transcribe
from lipctrl.plant import Plant

Array = NDArray[np.float64]
FEASIBLE = 1e-6  # largest violation, in scaled units, of a solution that counts as feasible

_QUIET = {"print_time": False, "error_on_fail": False}
_IPOPT = {"print_level": 0, "sb": "yes", "tol": 1e-9, "constr_viol_tol": 1e-9}
_SQP = {
    "print_header": False,
    "print_iteration": False,
    "print_status": False,
    "convexify_strategy": "eigen-reflect",
    "tol_pr": 1e-9,
    "tol_du": 1e-7,
    "max_iter": 50,
    "min_step_size": 1e-16,  # by default a start beside the optimum, whose first step is tiny, counts as failed
}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sqpmethod-daqp": ("sqpmethod", {**_SQP, "qpsol": "daqp", "qpsol_options": {"error_on_fail": False}}),
    "sqpmethod-piqp": ("sqpmethod", {**_SQP, "qpsol": "piqp", "qpsol_options": {"error_on_fail": False}}),
    "fatrop": ("fatrop", {"fatrop": {"print_level": 0, "tol": 1e-9}, "structure_detection": "auto"}),
    "ipopt": ("ipopt", {"ipopt": _IPOPT}),
}
_OTHER_MINIMUM = "it returned NaN and other minima than every other solver on our problems"
UNSAFE = {
    "qrqp": _OTHER_MINIMUM,
    "sqpmethod-qrqp": _OTHER_MINIMUM,
    "sqpmethod-fatrop": "fatrop as a QP plugin returned points that break the dynamics",
}


@dataclass(frozen=True)
class Solution:
    """One solved problem, in the plant's units.

    Attributes:
        states, inputs: planned trajectory, shapes (N+1, n) and (N, m).
        cost: of the OCP at that plan, recomputed.
        feasible: the recomputed violation is at most 1e-6 and the solver reports success.
        violation: largest violation of dynamics, limits and terminal set, recomputed, in scaled units (`OCP.x_scale`).
        status: what the solver says about itself. iterations: its iterations, 0 if it does not count.
        wall_time: seconds for this call, all of it.
    """

    states: Array
    inputs: Array
    cost: float
    feasible: bool
    violation: float
    status: str
    iterations: int
    wall_time: float

    def shifted(self) -> Trajectory:
        """The plan one step later, last input and last state repeated: the guess for the next problem."""
        return np.vstack([self.states[1:], self.states[-1:]]), np.vstack([self.inputs[1:], self.inputs[-1:]])


def check_solver(solver: str, known: Mapping[str, object], unsafe: Mapping[str, str]) -> None:
    """Refuse a solver that is unknown, or known to be wrong, with the reason."""
    if solver in unsafe:
        raise UserError(f"solver {solver!r} is refused: {unsafe[solver]}; use {', '.join(known)}")
    if solver not in known:
        raise UserError(f"unknown solver {solver!r}; known: {', '.join(known)}")


def solve_programme(
    solver: ca.Function, programme: Programme, x: ArrayLike, guess: Trajectory | None, extra: ArrayLike = ()
) -> Solution:
    """Call a solver of `programme` at the measured state x (n,) and judge what comes back.

    `extra` are the entries of the programme's parameter p behind those of the state.

    Raises:
        UserError: x or the guess has the wrong shape or is not finite.
    """
    begin, ocp = time.perf_counter(), programme.ocp
    state, n, m = np.asarray(x, np.float64), len(ocp.x_ref), len(ocp.u_ref)
    if state.shape != (n,) or not np.isfinite(state).all():
        raise UserError(f"the state needs shape ({n},) and finite numbers, found {state}")
    if guess is None:
        share = np.linspace(0, 1, ocp.horizon + 1)[:, None]
        guess = state + share * (ocp.x_ref - state), np.tile(ocp.u_ref, (ocp.horizon, 1))
    if np.shape(guess[0]) != (ocp.horizon + 1, n) or np.shape(guess[1]) != (ocp.horizon, m):
        raise UserError(
            f"a guess needs states ({ocp.horizon + 1}, {n}) and inputs ({ocp.horizon}, {m}), "
            f"found {np.shape(guess[0])} and {np.shape(guess[1])}"
        )
    p = np.append(programme.parameter(state), np.asarray(extra, np.float64))
    limits = {"lbx": programme.lbx, "ubx": programme.ubx, "lbg": programme.lbg, "ubg": programme.ubg}
    found = np.asarray(solver(x0=programme.pack(guess), p=p, **limits)["x"], np.float64).ravel()
    z = np.clip(found, programme.lbx, programme.ubx)  # interior-point solvers widen bounds by about 1e-8
    report = solver.stats()
    cost, violation = programme.judge(z, p)
    states, inputs = programme.unpack(z)
    return Solution(
        states=states,
        inputs=inputs,
        cost=cost,
        feasible=violation <= FEASIBLE and bool(report["success"]),
        violation=violation,
        status=str(report["unified_return_status"]),
        iterations=max(int(report.get("iter_count", 0)), 0),
        wall_time=time.perf_counter() - begin,
    )


@dataclass(frozen=True)
class NMPC:
    """Nonlinear MPC of a plant by direct multiple shooting. Holds no state: a warm start is an argument.

    Attributes:
        plant, ocp: model and problem.
        solver: "sqpmethod-daqp" (fastest for horizons up to about 10), "sqpmethod-piqp" (longer ones), "fatrop" or
            "ipopt" (slowest, the reference).
    """

    plant: Plant
    ocp: OCP
    solver: str = "sqpmethod-daqp"
    _programme: Programme = field(init=False, repr=False)
    _solve: ca.Function = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_solver(self.solver, SOLVERS, UNSAFE)
        programme = transcribe(self.plant.update, self.ocp)
        plugin, options = SOLVERS[self.solver]
        options = {**_QUIET, **options}
        if plugin == "fatrop":
            options["equality"] = programme.equality
        # the record is frozen for its users; these two are made here once
        object.__setattr__(self, "_programme", programme)
        object.__setattr__(self, "_solve", ca.nlpsol("nmpc", plugin, programme.nlp, options))

    def solve(self, x: ArrayLike, guess: Trajectory | None = None) -> Solution:
        """The optimal plan from the measured state.

        Args:
            x: state (n,) in the plant's units.
            guess: states (N+1, n) and inputs (N, m) to start from, for example `Solution.shifted()`; by default a
                straight line to the reference.

        Raises:
            UserError: a shape does not match or a number is not finite.
        """
        return solve_programme(self._solve, self._programme, x, guess)
