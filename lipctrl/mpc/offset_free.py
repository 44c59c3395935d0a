"""Offset-free MPC: the controlled outputs reach their set-point although the plant is pushed, or not quite its model.

Pannocchia and Rawlings, "Disturbance models for offset-free model-predictive control", AIChE Journal 49, 2003, with the
nonlinear model: an observer estimates state and disturbance from the outputs, a target is the rest at which the
disturbed model holds the set-point, and the optimal plan leads the disturbed model to the target. If the loop comes to
rest at a reachable target, the outputs are at their set-points, because at rest the observer leaves no innovation.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import SOLVERS, UNSAFE, Solution, check_solver, solve_programme
from lipctrl.mpc.lmpc import USABLE
from lipctrl.mpc.mpc_policy import Decision
from lipctrl.mpc.observer import DisturbanceModel, Estimate, Observer
from lipctrl.mpc.problem import OCP
from lipctrl.mpc.shooting import Programme, Trajectory, transcribe
from lipctrl.mpc.target import Target, TargetSelector
from lipctrl.plant import Plant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OffsetFreeDecision(Decision):
    """What happened at one step: the solution, the estimate that it starts from, and the target that it leads to."""

    estimate: Estimate
    target: Target


def _with_disturbance(plant: Plant, ocp: OCP, model: DisturbanceModel) -> Programme:
    """min sum |x_k - x_s|_Q^2 + |u_k - u_s|_R^2 over x+ = f(x, u) + Bd d, with parameter ((x_0, d), x_s, u_s), scaled.

    The disturbance is a constant part of the state. Its weight is that of deviations from d, which are zero.
    """
    n, p, m = *reversed(model.C.shape), len(ocp.u_ref)
    z, u, w = ca.SX.sym("z", n + p), ca.SX.sym("u", m), ca.SX.sym("w", len(plant.disturbance))
    after = plant.update(z[:n], u, w) + ca.mtimes(ca.DM(model.Bd), z[n:])
    update = ca.Function("update", [z, u, w], [ca.vertcat(after, z[n:])])
    unlimited = np.full(p, np.inf)
    programme = transcribe(
        update,
        replace(
            ocp,
            Q=_padded(ocp.Q, p),
            P=_padded(ocp.P, p),
            x_ref=np.append(ocp.x_ref, np.zeros(p)),
            x_low=np.append(ocp.x_low, -unlimited),
            x_high=np.append(ocp.x_high, unlimited),
        ),
    )
    size, nlp, augmented = len(programme.lbx), programme.nlp, programme.ocp
    states, inputs = programme.unpack(np.arange(size, dtype=np.float64))  # where they are among the variables
    target = ca.MX.sym("target", n + m)
    shift = ca.MX.zeros(size)
    for row in np.rint((states - augmented.x_ref) / augmented.x_scale).astype(int):
        shift[row.tolist()] = ca.vertcat(target[:n], nlp["p"][n:])
    for row in np.rint((inputs - augmented.u_ref) / augmented.u_scale).astype(int):
        shift[row.tolist()] = target[n:]
    cost, parameters = programme.rows(nlp["x"] - shift, nlp["p"])[0], ca.vertcat(nlp["p"], target)
    rows = ca.Function("rows", [nlp["x"], parameters], [cost, nlp["g"]])
    return replace(programme, nlp={**nlp, "p": parameters, "f": cost}, rows=rows)


def _padded(weight: Array, size: int) -> Array:
    n = len(weight)
    return np.block([[weight, np.zeros((n, size))], [np.zeros((size, n)), np.eye(size)]])


@dataclass(frozen=True, kw_only=True)
class OffsetFreeMPC:
    """A policy of the measured outputs. Pure: estimate and warm start travel in `predict`'s hidden state, as in SB3.

    Attributes:
        observer: estimates state and disturbance; its plant is the model of the MPC.
        ocp: horizon, weights, limits and the nominal reference; without terminal set, which would have to move along.
        H: which outputs, or combinations of them, are controlled, shape (r, p).
        setpoint: their set-point (r,); `dataclasses.replace` changes it in a running loop.
        solver: as for `NMPC`, without "fatrop".

    Raises:
        UserError: sizes do not match, a terminal set, or a solver that is refused.
    """

    observer: Observer
    ocp: OCP
    H: Array
    setpoint: Array
    solver: str = "sqpmethod-daqp"
    _programme: Programme = field(init=False, repr=False)
    _solve: ca.Function = field(init=False, repr=False)
    _selector: TargetSelector = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_solver(self.solver, dict.fromkeys(USABLE), UNSAFE)
        if self.ocp.terminal_set is not None:
            raise UserError("offset-free MPC takes no terminal set: it belongs to one reference, and targets move")
        plant, model = self.observer.plant, self.observer.model
        selector = TargetSelector(plant, self.ocp, model, self.H)
        programme = _with_disturbance(plant, self.ocp, model)
        plugin, options = SOLVERS[self.solver]
        options = {"print_time": False, "error_on_fail": False, **options}
        # the record is frozen for its users; these are made here once
        object.__setattr__(self, "_selector", selector)
        object.__setattr__(self, "_programme", programme)
        object.__setattr__(self, "_solve", ca.nlpsol("offset_free", plugin, programme.nlp, options))

    def target(self, d: ArrayLike) -> Target:
        """The rest that the loop is led to while the estimated disturbance is d (p,).

        Raises:
            UserError: see `TargetSelector.target`.
        """
        return self._selector.target(d, self.setpoint)

    def solve(self, estimate: Estimate, target: Target, guess: Trajectory | None = None) -> Solution:
        """The optimal plan from an estimate to a target.

        Args:
            estimate, target: of the observer and of the target selector.
            guess: states (N+1, n) and inputs (N, m); by default a straight line to the target.
        """
        ocp, n = self.ocp, len(estimate.x)
        if guess is None:
            share = np.linspace(0, 1, ocp.horizon + 1)[:, None]
            guess = estimate.x + share * (target.x - estimate.x), np.tile(target.u, (ocp.horizon, 1))
        start = np.hstack([guess[0], np.tile(estimate.d, (len(guess[0]), 1))]), guess[1]
        extra = np.append((target.x - ocp.x_ref) / ocp.x_scale, (target.u - ocp.u_ref) / ocp.u_scale)
        found = solve_programme(self._solve, self._programme, np.append(estimate.x, estimate.d), start, extra)
        return replace(found, states=found.states[:, :n])

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, tuple[OffsetFreeDecision, ...]]:
        """Action and hidden state; see `Policy.predict`. It is assumed that the last action was applied as it was.

        Args:
            observation: measured outputs, one (p,) or a batch (batch, p).
            state: the decisions that the last call returned, or None at the start of an episode.
            episode_start: where true, the estimate starts anew; shape () or (batch,), or None.
            deterministic: no effect.

        Raises:
            UserError: a wrong observation, no rest within the limits, or a problem without a feasible solution.
        """
        observations = np.asarray(observation, dtype=np.float64)
        rows = np.atleast_2d(observations)
        before: list[OffsetFreeDecision | None] = [None] * len(rows) if state is None else list(state)
        fresh = np.zeros(len(rows), bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
        if len(before) != len(rows) or len(fresh) != len(rows):
            raise UserError(f"{len(rows)} observations came with {len(before)} hidden states and {len(fresh)} starts")
        decisions = [self._decide(y, None if new else last) for y, last, new in zip(rows, before, fresh, strict=True)]
        actions = np.array([decision.solution.inputs[0] for decision in decisions])
        return actions.reshape(*observations.shape[:-1], -1), tuple(decisions)

    def _decide(self, y: Array, last: OffsetFreeDecision | None) -> OffsetFreeDecision:
        if last is None:
            predicted, guess = self.observer.start(y), None
        else:
            predicted = self.observer.predict(last.estimate, last.solution.inputs[0])
            guess = last.solution.shifted()
        estimate = self.observer.correct(predicted, y)
        target = self.target(estimate.d)
        solution = self.solve(estimate, target, guess)
        if not solution.feasible:
            raise UserError(
                f"offset-free MPC has no usable solution at the estimate {estimate.x} (solver says {solution.status}, "
                f"violation {solution.violation:.2g})"
            )
        return OffsetFreeDecision(solution, None, estimate, target)
