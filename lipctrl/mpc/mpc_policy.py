"""MPC as a policy: an expert for demonstrations, a partner in evaluation, a target of attacks.

When the problem has no feasible solution or the solver was late, a fallback policy acts instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import Solution
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import HERE, Trajectory
from lipctrl.policy import Policy

Array = NDArray[np.float64]


class Controller(Protocol):
    """What solves one problem at one state: `NMPC`, `LinearMPC`, `LMPC`, and what is built of them."""

    @property
    def ocp(self) -> OCP:
        """The problem."""
        ...

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        """The plan from state x (n,), with what else is known."""
        ...


@dataclass(frozen=True)
class Decision:
    """What happened at one step: the solution, why the fallback acted ("infeasible", "late") or None, the action; and
    what is added to the shifted plan (states and inputs) before the next solve starts from it, None: nothing."""

    solution: Solution
    fallback: str | None
    action: Array
    offset: Trajectory | None = field(default=None, kw_only=True)

    def guess(self) -> Trajectory | None:
        """Where the next solve starts; None after an infeasible plan, which is a bad place to start from."""
        if not self.solution.feasible:
            return None
        states, inputs = self.solution.shifted()
        return (states, inputs) if self.offset is None else (states + self.offset[0], inputs + self.offset[1])


def _same(observation: Array) -> Array:
    return observation


@dataclass(frozen=True)
class MPCPolicy:
    """u = first input of the plan. Pure: the warm start travels in `predict`'s hidden state, as in SB3.

    Without the hidden state every solve starts cold, and the action depends on the observation alone.

    Attributes:
        controller: solves the problem.
        fallback: acts on the same observation when the solution is infeasible or late; None: that is an error.
        deadline: seconds per solve, or None. An answer that took longer is not used; `Speed.deadline` of the
            controller, somewhat shorter, stops the solver in time.
        state_of: state (n,) of the plant from one observation; by default they are the same.
    """

    controller: Controller
    fallback: Policy | None = None
    deadline: float | None = None
    state_of: Callable[[Array], Array] = _same

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, tuple[Decision, ...]]:
        """Action and hidden state; see `Policy.predict`.

        Args:
            observation: one (n,) or a batch (batch, n).
            state: the decisions that the last call returned, for the warm start, or None.
            episode_start: where true, the warm start is dropped; shape () or (batch,), or None.
            deterministic: no effect.

        Raises:
            UserError: infeasible or late without a fallback, or a wrong observation.
        """
        observations = np.asarray(observation, dtype=np.float64)
        rows = np.atleast_2d(observations)
        before: list[Decision | None] = [None] * len(rows) if state is None else list(state)
        fresh = np.zeros(len(rows), bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
        if len(before) != len(rows) or len(fresh) != len(rows):
            raise UserError(f"{len(rows)} observations came with {len(before)} hidden states and {len(fresh)} starts")
        decided = [self._decide(row, None if new else last) for row, last, new in zip(rows, before, fresh, strict=True)]
        actions = np.array([action for action, _ in decided])
        return actions.reshape(*observations.shape[:-1], -1), tuple(decision for _, decision in decided)

    def nudged(self, state: Any, offsets: Array) -> Any:
        """The hidden state with other warm starts, for an adversary between loop and solver.

        Args:
            state: decisions, as `predict` returned them, or None before the first solve, where nothing is warm.
            offsets: (batch, N m + (N+1) n), added to the shifted plans: inputs of all stages, then states.

        Raises:
            UserError: a size does not match.
        """
        if state is None:
            return None
        ocp = self.controller.ocp
        N, n, m = ocp.horizon, len(ocp.x_ref), len(ocp.u_ref)
        if offsets.shape != (len(state), N * m + (N + 1) * n):
            raise UserError(
                f"the warm starts of {len(state)} solves over {N} stages need offsets of shape "
                f"({len(state)}, {N * m + (N + 1) * n}), found {offsets.shape}"
            )
        inputs, states = offsets[:, : N * m].reshape(-1, N, m), offsets[:, N * m :].reshape(-1, N + 1, n)
        return tuple(replace(last, offset=(x, u)) for last, x, u in zip(state, states, inputs, strict=True))

    def solves(self, state: Any) -> tuple[NDArray[np.bool_], Array]:
        """Of the decisions that `predict` returned: where the fallback acted, and the solver's iterations, (batch,)."""
        fallbacks = np.array([decision.fallback is not None for decision in state])
        return fallbacks, np.array([float(decision.solution.iterations) for decision in state])

    def _decide(self, observation: Array, last: Decision | None) -> tuple[Array, Decision]:
        guess = None if last is None else last.guess()
        given = HERE if last is None or self.controller.ocp.u_rate is None else Given(previous=last.action)
        solution = self.controller.solve(self.state_of(observation), guess, given)
        reason = None
        if self.deadline is not None and solution.wall_time > self.deadline:
            reason = "late"
        elif not solution.feasible:
            reason = "infeasible"
        if reason is None:
            return solution.inputs[0], Decision(solution, None, solution.inputs[0])
        if self.fallback is None:
            raise UserError(
                f"MPC has no usable solution at state {self.state_of(observation)} and no fallback policy: {reason} "
                f"(solver says {solution.status}, violation {solution.violation:.2g}, {solution.wall_time:.3g} s)"
            )
        action = np.asarray(self.fallback.predict(observation, deterministic=True)[0], dtype=np.float64)
        return action, Decision(solution, reason, action)
