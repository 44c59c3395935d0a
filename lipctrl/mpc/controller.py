"""Nonlinear MPC: the optimal control problem solved at one measured state, with every returned point checked.

What a solver says about itself is reported and never trusted: a `Solution` is feasible if and only if its point, put
back into the problem, violates nothing.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.collocation import collocation_of
from lipctrl.mpc.compiled import compiled
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import HERE, Programme, Trajectory, transcribe
from lipctrl.plant import Plant

Array = NDArray[np.float64]
Transcription = Literal["shooting", "collocation"]
BROKEN = "broke down"
FEASIBLE = 1e-6  # largest violation, in scaled units, of a solution that counts as feasible

_QUIET = {"print_time": False, "error_on_fail": False}
_IPOPT = {"print_level": 0, "sb": "yes", "tol": 1e-9, "constr_viol_tol": 1e-9}
_SQP = {
    "print_header": False,
    "print_iteration": False,
    "print_status": False,
    "convexify_strategy": "eigen-reflect",
    "convexify_margin": 1e-4,  # with the default 1e-7 daqp fails on collocation, whose inner states cost nothing
    "tol_pr": 1e-9,
    "tol_du": 1e-7,
    "max_iter": 50,
    "min_step_size": 1e-16,  # by default a start beside the optimum, whose first step is tiny, counts as failed
}
_QP = {"error_on_fail": False}
_HPIPM = {**_QP, "inf": 1e6, "hpipm": {f"res_{c}_max": 1e-8 for c in "gbdm"}}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sqpmethod-daqp": ("sqpmethod", {**_SQP, "qpsol": "daqp", "qpsol_options": _QP}),
    "sqpmethod-piqp": ("sqpmethod", {**_SQP, "qpsol": "piqp", "qpsol_options": _QP}),
    "sqpmethod-hpipm": ("sqpmethod", {**_SQP, "qpsol": "hpipm", "qpsol_options": _HPIPM}),
    "fatrop": ("fatrop", {"fatrop": {"print_level": 0, "tol": 1e-9}, "structure_detection": "auto"}),
    "ipopt": ("ipopt", {"ipopt": _IPOPT}),
}
STAGEWISE = ("fatrop", "sqpmethod-hpipm")  # rows must belong to one stage each, in the order of `transcribe`
GENERAL = tuple(name for name in SOLVERS if name not in STAGEWISE)  # take any rows behind those
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
        feasible: the recomputed violation is at most 1e-6: the plan can be applied, whatever the solver says.
        converged: the solver reports an optimum. A plan that is feasible and not converged is a plan, not the best.
        violation: largest violation, recomputed: of dynamics and limits in scaled units (`OCP.x_scale`), of terminal
            set and margin in their own.
        status: what the solver says about itself. iterations: its iterations, 0 if it does not count.
        wall_time: seconds for this call, all of it.
        gap: proved: no plan costs less than cost - gap; None where nothing is proved.
    """

    states: Array
    inputs: Array
    cost: float
    feasible: bool
    converged: bool
    violation: float
    status: str
    iterations: int
    wall_time: float
    gap: float | None = None

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
    solver: ca.Function,
    programme: Programme,
    x: ArrayLike,
    guess: Trajectory | None,
    given: Given = HERE,
    *,
    repair: Callable[[Trajectory], Trajectory] | None = None,
) -> Solution:
    """Call a solver of `programme` at the measured state x (n,) and judge what comes back.

    Args:
        repair: made of the returned plan before it is judged.

    Raises:
        UserError: x, the guess or what is given has the wrong shape or is not finite.
    """
    begin = time.perf_counter()
    p = programme.parameter(x, given)
    start = programme.pack(_checked_guess(programme.ocp, np.asarray(x, np.float64), guess, given))
    found, report = call_solver(solver, programme, start, p)
    z = np.clip(found, programme.lbx, programme.ubx)  # interior-point solvers widen bounds by about 1e-8
    if repair is not None:
        z = programme.pack(repair(programme.unpack(z)))
    cost, violation = programme.judge(z, p)
    states, inputs = programme.unpack(z)
    return Solution(
        states=states,
        inputs=inputs,
        cost=cost,
        feasible=violation <= FEASIBLE,
        converged=violation <= FEASIBLE and bool(report["success"]),
        violation=violation,
        status=str(report["unified_return_status"]),
        iterations=max(int(report.get("iter_count", 0)), 0),
        wall_time=time.perf_counter() - begin,
    )


def second_try(
    found: Solution,
    name: str,
    spare: list[ca.Function],
    programme: Programme,
    x: ArrayLike,
    guess: Trajectory | None,
    given: Given,
    *,
    repair: Callable[[Trajectory], Trajectory] | None = None,
) -> Solution:
    """`found`, or where sqpmethod broke down on it, what it finds with Hessians that are shifted, not reflected.

    CasADi's reflection needs eigenvalues, which it cannot always compute. The second solver is made once, into `spare`.
    """
    if not (name.startswith("sqpmethod") and found.status.startswith(BROKEN)):
        return found
    if not spare:
        plugin, options = SOLVERS[name]
        spare.append(
            ca.nlpsol("second", plugin, programme.nlp, {**_QUIET, **options, "convexify_strategy": "regularize"})
        )
    again = solve_programme(spare[0], programme, x, guess, given, repair=repair)
    return replace(again, wall_time=found.wall_time + again.wall_time)


def _checked_guess(ocp: OCP, x: Array, guess: Trajectory | None, given: Given) -> Trajectory:
    """The guess, by default a straight line to the reference with the inputs of the reference."""
    n, m = len(ocp.x_ref), len(ocp.u_ref)
    if guess is None:
        goal = ocp.x_ref if given.x_ref is None else np.atleast_2d(given.x_ref)[-1]
        share = np.linspace(0, 1, ocp.horizon + 1)[:, None]
        guess = (
            x + share * (goal - x),
            np.broadcast_to(ocp.u_ref if given.u_ref is None else given.u_ref, (ocp.horizon, m)),
        )
    if np.shape(guess[0]) != (ocp.horizon + 1, n) or np.shape(guess[1]) != (ocp.horizon, m):
        raise UserError(
            f"a guess needs states ({ocp.horizon + 1}, {n}) and inputs ({ocp.horizon}, {m}), "
            f"found {np.shape(guess[0])} and {np.shape(guess[1])}"
        )
    if not all(np.isfinite(part).all() for part in guess):
        raise UserError("a guess needs finite numbers, found NaN or infinity")
    return guess


def call_solver(solver: ca.Function, programme: Programme, start: Array, p: Array) -> tuple[Array, Mapping[str, Any]]:
    """(returned point, what the solver says); a solver that breaks down has returned its start and no success."""
    limits = {"lbx": programme.lbx, "ubx": programme.ubx, "lbg": programme.lbg, "ubg": programme.ubg}
    try:
        found = np.asarray(solver(x0=start, p=p, **limits)["x"], np.float64).ravel()
        return found, solver.stats()
    except RuntimeError as error:  # CasADi's only exception, also for "no statistics available"
        reason = str(error).strip().splitlines()[-1] if str(error) else "unknown error"
        return start, {"success": False, "unified_return_status": f"{BROKEN}: {reason}"}


class _Watch(ca.Callback):
    """Stops a solver at its first iteration after `end` (seconds of time.perf_counter)."""

    def __init__(self, programme: Programme) -> None:
        super().__init__()
        sizes = {"x": len(programme.lbx), "g": len(programme.lbg), "p": programme.nlp["p"].numel(), "f": 1}
        self.sizes = {**sizes, **{f"lam_{name}": size for name, size in sizes.items()}}
        self.end = np.inf
        self.construct("watch", {})

    def get_n_in(self) -> int:
        """Everything that a solver returns."""
        return int(ca.nlpsol_n_out())

    def get_n_out(self) -> int:
        """Whether to stop."""
        return 1

    def get_sparsity_in(self, i: int) -> ca.Sparsity:
        """Columns."""
        return ca.Sparsity.dense(self.sizes[ca.nlpsol_out(i)])

    def eval(self, _: Any) -> list[float]:
        """1: stop."""
        return [float(time.perf_counter() > self.end)]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How NMPC solves its problem; the problem stays the same.

    Attributes:
        deadline: seconds after which the solver is stopped at its next iteration; the plan that it has by then is
            judged as any other. None: no limit.
        compiled: the functions of the problem as machine code. It takes a C compiler and seconds once, and makes a
            solve two to three times faster.
        real_time: a real-time iteration: one quadratic programme from the guess, whose plan is simulated before it is
            judged (Diehl, Bock and Schloeder, SIAM Journal on Control and Optimization 43, 2005). The guess should be
            the shifted plan of the step before; only for "sqpmethod-..." with shooting.
    """

    deadline: float | None = None
    compiled: bool = False
    real_time: bool = False


@dataclass(frozen=True)
class NMPC:
    """Nonlinear MPC of a plant. Holds no state: a warm start is an argument.

    Attributes:
        plant, ocp: model and problem.
        solver: "sqpmethod-daqp" (fastest for horizons up to about 10), "sqpmethod-piqp" or "sqpmethod-hpipm" (longer
            ones), "fatrop" or "ipopt" (slowest, the reference).
        transcription: "shooting" over the plant's sampled model, or "collocation" of its continuous equations.
        speed: deadline and compilation.

    Raises:
        UserError: the solver is unknown, refused or cannot take the problem's rows, sizes of plant and problem
            differ, or there is no C compiler.
    """

    plant: Plant
    ocp: OCP
    solver: str = "sqpmethod-daqp"
    transcription: Transcription = "shooting"
    speed: Speed = Speed()
    _programme: Programme = field(init=False, repr=False)
    _solve: ca.Function = field(init=False, repr=False)
    _watch: _Watch | None = field(init=False, repr=False)
    _spare: list[ca.Function] = field(init=False, repr=False, default_factory=list)

    def __post_init__(self) -> None:
        check_solver(self.solver, SOLVERS, UNSAFE)
        self._check_combination()
        collocated = self.transcription == "collocation"
        programme = transcribe(self.plant.update, self.ocp, collocation_of(self.plant) if collocated else None)
        plugin, options = SOLVERS[self.solver]
        options = {**_QUIET, **options}
        if plugin == "fatrop":
            options["equality"] = programme.equality
        if self.speed.real_time:
            options |= {"max_iter": 1, "max_iter_ls": 0}
        watch = None if self.speed.deadline is None else _Watch(programme)
        if watch is not None:
            options["iteration_callback"] = watch
        solve = ca.nlpsol("nmpc", plugin, programme.nlp, options)
        if self.speed.compiled:
            solve = ca.nlpsol("nmpc", plugin, str(compiled(solve)), options)
        # the record is frozen for its users; these are made here once
        object.__setattr__(self, "_programme", programme)
        object.__setattr__(self, "_solve", solve)
        object.__setattr__(self, "_watch", watch)

    def _check_combination(self) -> None:
        collocated, speed = self.transcription == "collocation", self.speed
        if self.solver in STAGEWISE and (collocated or self.ocp.u_rate is not None):
            what = "collocation" if collocated else "rate limits"
            raise UserError(
                f"solver {self.solver!r} takes rows of one stage only, not {what}; use {', '.join(GENERAL)}"
            )
        if self.solver == "sqpmethod-hpipm" and self.ocp.soft is not None:
            raise UserError("solver 'sqpmethod-hpipm' takes states and inputs only, not the slacks of soft limits")
        if self.solver == "sqpmethod-daqp" and (self.ocp.margin is not None or not self.ocp.definite):
            what = "at a plan through an obstacle" if self.ocp.margin is not None else "where a state costs nothing"
            raise UserError(f"solver 'sqpmethod-daqp' fails {what}; use ipopt, fatrop, sqpmethod-piqp")
        if speed.real_time and (collocated or not self.solver.startswith("sqpmethod")):
            raise UserError(
                "a real-time iteration is one of sqpmethod over the sampled model; use sqpmethod-daqp, shooting"
            )
        if speed.deadline is not None and (self.solver == "fatrop" or not speed.deadline > 0):
            raise UserError(
                f"a deadline must be positive, and fatrop takes none; found {speed.deadline} for {self.solver}"
            )

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        """The optimal plan from the measured state.

        Args:
            x: state (n,) in the plant's units.
            guess: states (N+1, n) and inputs (N, m) to start from, for example `Solution.shifted()`; by default a
                straight line to the reference.
            given: what is known beside the state.

        Raises:
            UserError: a shape does not match or a number is not finite.
        """
        if self._watch is not None and self.speed.deadline is not None:
            self._watch.end = time.perf_counter() + self.speed.deadline
        repair = self._simulated(given) if self.speed.real_time else None
        found = solve_programme(self._solve, self._programme, x, guess, given, repair=repair)
        if self._watch is not None:  # no time for another
            return found
        return second_try(found, self.solver, self._spare, self._programme, x, guess, given, repair=repair)

    def _simulated(self, given: Given) -> Callable[[Trajectory], Trajectory]:
        """The plan's inputs with the states that they lead to."""
        push_of = 0.0 if given.disturbance is None else given.disturbance

        def simulated(plan: Trajectory) -> Trajectory:
            # here, behind the check of what is given
            w = np.broadcast_to(push_of, (self.ocp.horizon, len(self.plant.disturbance)))
            states = [plan[0][0]]
            for u, push in zip(plan[1], w, strict=True):
                states.append(self.plant.step(states[-1], u, push))
            return np.array(states), plan[1]

        return simulated
