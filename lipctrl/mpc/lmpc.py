"""Lyapunov-based MPC: the optimal plan among those that bring a Lyapunov function down.

With V(x) = (x - x_ref)' P (x - x_ref), every planned state satisfies

    V(x_k) <= max(decay V(x_0), small),   k = 1..N.

Outside the set V <= small the plan contracts; inside it the plan stays inside. With decay = 1 these are the constraints
of Lyapunov-based MPC on learned models (Wu et al., AIChE Journal 65, 2019; Wang and Wu, arXiv 2401.07494), which demand
no rate. Ours differs there: decay < 1 bounds the steps to the small set by log(small / V(x_0)) / log(decay).

If everywhere in V <= level some admissible input satisfies the constraint for one step, and hard state limits contain
that region, the problem without terminal set is feasible, and stays so along the loop, for any horizon. All of this is
about the model at the ends of sampling periods: on another plant, watch V there.
"""

from dataclasses import dataclass, field, replace

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import GENERAL, SOLVERS, UNSAFE, Solution, check_solver, second_try, solve_programme
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import HERE, Programme, Trajectory, transcribe

Array = NDArray[np.float64]


def contractive(programme: Programme, lyapunov: Array, *, decay: float, small: float) -> Programme:
    """The same programme with V(x_k) <= max(decay V(x_0), small) for k = 1..N, in units of `small`.

    Args:
        programme: of any OCP. lyapunov: matrix of V, shape (n, n). decay, small: see the head of this file.
    """
    ocp, nlp = programme.ocp, programme.nlp
    matrix = ca.DM(ocp.x_scale[:, None] * lyapunov * ocp.x_scale / small)
    start = nlp["p"][: len(ocp.x_ref)]
    limit = ca.fmax(decay * ca.bilin(matrix, start, start), 1)
    states = [nlp["x"][row.tolist()] for row in programme.at_x[1:]]
    g = ca.vertcat(nlp["g"], *(ca.bilin(matrix, x, x) - limit for x in states))
    return replace(
        programme,
        nlp={**nlp, "g": g},
        lbg=np.append(programme.lbg, np.full(ocp.horizon, -np.inf)),
        ubg=np.append(programme.ubg, np.zeros(ocp.horizon)),
        rows=ca.Function("rows", [nlp["x"], nlp["p"]], [nlp["f"], g]),
    )


@dataclass(frozen=True, kw_only=True)
class LMPC:
    """Lyapunov-based MPC of a plant or of a learned model. Holds no state: a warm start is an argument.

    Attributes:
        model: function (x, u, w) -> x+ in the plant's units: `Plant.update`, or a learned model.
        ocp: the problem; its reference is where V is zero.
        lyapunov: P of V, shape (n, n), symmetric positive definite.
        level: rho, the region V <= rho in which a contracting input exists. A start outside is not feasible.
        small: the level of the set around the reference that need not contract further, between 0 and `level`.
        decay: V(x_k) <= decay V(x_0) outside the small set, in (0, 1].
        solver: "sqpmethod-daqp", "sqpmethod-piqp" or "ipopt".

    Raises:
        UserError: sizes differ, P is not positive definite, a level or the decay is out of range, or the solver is
            refused.
    """

    model: ca.Function
    ocp: OCP
    lyapunov: Array
    level: float
    small: float
    decay: float = 1.0
    solver: str = "sqpmethod-daqp"
    _programme: Programme = field(init=False, repr=False)
    _solve: ca.Function = field(init=False, repr=False)
    _spare: list[ca.Function] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        check_solver(self.solver, dict.fromkeys(GENERAL), UNSAFE)
        n, matrix = len(self.ocp.x_ref), self.lyapunov
        if np.shape(matrix) != (n, n) or not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix).min() <= 0:
            raise UserError(f"the Lyapunov matrix must be symmetric positive definite of shape ({n}, {n})")
        if not 0 < self.small < self.level < np.inf:
            raise UserError(f"LMPC needs levels 0 < small < level, found small {self.small} and level {self.level}")
        if not 0 < self.decay <= 1:
            raise UserError(f"the decay must be in (0, 1], found {self.decay}")
        programme = contractive(transcribe(self.model, self.ocp), matrix, decay=self.decay, small=self.small)
        plugin, options = SOLVERS[self.solver]
        options = {"print_time": False, "error_on_fail": False, **options}
        # the record is frozen for its users; these two are made here once
        object.__setattr__(self, "_programme", programme)
        object.__setattr__(self, "_solve", ca.nlpsol("lmpc", plugin, programme.nlp, options))

    def value(self, x: ArrayLike) -> Array:
        """V of states (..., n), shape (...)."""
        deviation = np.asarray(x, np.float64) - self.ocp.x_ref
        return np.asarray(np.einsum("...i,ij,...j->...", deviation, self.lyapunov, deviation))

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        """The optimal contracting plan from the measured state; arguments as for `NMPC.solve`.

        From outside the region V <= level the solution is never feasible, and its status says so.

        Raises:
            UserError: a shape does not match or a number is not finite.
        """
        first = solve_programme(self._solve, self._programme, x, guess, given)
        solution = second_try(first, self.solver, self._spare, self._programme, x, guess, given)
        start = float(self.value(x))
        if start <= self.level:
            return solution
        status = f"the start is outside the level set: V = {start:.6g}, above {self.level:.6g}"
        return replace(solution, feasible=False, converged=False, status=status)
