"""Offset-free MPC: the controlled outputs reach their set-point although the plant is pushed, or not quite its model.

Pannocchia and Rawlings, "Disturbance models for offset-free model-predictive control", AIChE Journal 49, 2003, with the
nonlinear model: an observer estimates state and disturbance from the outputs, a target is the rest at which the
disturbed model holds the set-point, and the optimal plan leads the disturbed model to the target. If the loop comes to
rest at a reachable target, the outputs are at their set-points, because at rest the observer leaves no innovation.
"""

from dataclasses import dataclass, field
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import GENERAL, SOLVERS, UNSAFE, Solution, check_solver, solve_programme
from lipctrl.mpc.mpc_policy import Decision
from lipctrl.mpc.observer import DisturbanceModel, Estimate, Observer
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import Programme, Trajectory, transcribe
from lipctrl.mpc.target import Target, TargetSelector
from lipctrl.plant import Plant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class OffsetFreeDecision(Decision):
    """What happened at one step: the solution, the estimate that it starts from, and the target that it leads to."""

    estimate: Estimate
    target: Target


def disturbed(plant: Plant, model: DisturbanceModel) -> ca.Function:
    """(x, u, d) -> f(x, u, 0) + Bd d: the plant with the estimated disturbance in the place of its own."""
    x, u, d = ca.SX.sym("x", len(plant.state)), ca.SX.sym("u", len(plant.input)), ca.SX.sym("d", model.Bd.shape[1])
    after = plant.update(x, u, ca.SX.zeros(len(plant.disturbance))) + ca.mtimes(ca.DM(model.Bd), d)
    return ca.Function("update", [x, u, d], [after])


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
        check_solver(self.solver, dict.fromkeys(GENERAL), UNSAFE)
        if self.ocp.terminal_set is not None:
            raise UserError("offset-free MPC takes no terminal set: it belongs to one reference, and targets move")
        plant, model = self.observer.plant, self.observer.model
        selector = TargetSelector(plant, self.ocp, model, self.H)
        programme = transcribe(disturbed(plant, model), self.ocp)
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
        given = Given(disturbance=estimate.d, x_ref=target.x, u_ref=target.u)
        return solve_programme(self._solve, self._programme, estimate.x, guess, given)

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
        return OffsetFreeDecision(solution, None, solution.inputs[0], estimate, target)
