"""Closed loop of a plant and a policy, with what a control engineer asks of it: cost, limits, solve times."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.mpc_policy import Decision
from lipctrl.plant import Plant
from lipctrl.policy import Policy

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ClosedLoop:
    """A simulated run of T steps, fewer than asked for if it was stopped.

    Attributes:
        states: (T+1, n). inputs: (T, m), as applied, that is clipped to the plant's limits.
        costs: stage cost of each step, (T,), at the state before the step.
        times: seconds the policy took at each step, (T,).
        state_excess: (T+1,), the most by which a state exceeds its limits, as a share of the limits' half range
            (in the state's unit where the range is infinite). input_excess: (T,), the same for what the policy asked.
        decisions: T decisions of an MPC, empty for other policies.
        stopped: why the run ended early, or None.
        records: one per step, of a policy whose hidden state is a tuple of one record (MPC, monitor, safety filter).
    """

    states: Array
    inputs: Array
    costs: Array
    times: Array
    state_excess: Array
    input_excess: Array
    decisions: tuple[Decision, ...]
    stopped: str | None
    records: tuple[Any, ...] = ()

    @property
    def cost(self) -> float:
        """Sum of the stage costs."""
        return float(self.costs.sum())

    @property
    def fallbacks(self) -> int:
        """Steps in which the fallback policy of an MPC acted."""
        return sum(decision.fallback is not None for decision in self.decisions)


def _excess(values: Array, low: ArrayLike, high: ArrayLike) -> Array:
    lower, upper = np.asarray(low, np.float64), np.asarray(high, np.float64)
    half = (upper - lower) / 2
    beyond = np.maximum(np.maximum(lower - values, values - upper), 0)
    return np.asarray((beyond / np.where(np.isfinite(half), half, 1.0)).max(-1))


def _same(state: Array) -> Array:
    return state


def _checked(plant: Plant, x: ArrayLike, steps: int, disturbances: ArrayLike | None) -> tuple[Array, Array]:
    """Start state and disturbances as arrays of the right shape."""
    state, size = np.asarray(x, np.float64), (steps, len(plant.disturbance))
    if state.shape != (len(plant.state),) or not np.isfinite(state).all():
        raise UserError(f"the start state needs shape ({len(plant.state)},) and finite numbers, found {state}")
    pushes = np.zeros(size) if disturbances is None else np.asarray(disturbances, np.float64)
    if pushes.shape != size or not np.isfinite(pushes).all():
        raise UserError(f"the disturbances need shape {size} and finite numbers, found shape {pushes.shape}")
    return state, pushes


def _ask(policy: Policy, observation: Array, hidden: Any, size: int) -> tuple[Array, Any]:
    action, hidden = policy.predict(observation, hidden, deterministic=True)
    u = np.asarray(action, np.float64)
    if u.shape != (size,) or not np.isfinite(u).all():
        raise UserError(f"the policy needs {size} finite inputs, found {u}")
    return u, hidden


def simulate(
    plant: Plant,
    policy: Policy,
    x: ArrayLike,
    steps: int,
    *,
    stage_cost: Callable[[Array, Array], float],
    observe: Callable[[Array], Array] = _same,
    disturbances: ArrayLike | None = None,
) -> ClosedLoop:
    """Run the loop from state x (n,) for a number of steps.

    Args:
        plant: simulated as it is; the policy may know another model.
        policy: its hidden state is carried from step to step.
        x: start state (n,). steps: number of steps.
        stage_cost: function (state, applied input) -> cost.
        observe: what the policy sees of a state.
        disturbances: (steps, d), zero if not given.

    Returns:
        What was simulated. A policy that has no answer (`UserError`), asks for a number that is not finite, or a
        state that becomes so, ends the run early with the reason in `stopped`.

    Raises:
        UserError: the start state or the disturbances have the wrong shape or are not finite.
    """
    state, pushes = _checked(plant, x, steps, disturbances)
    states, asked, applied, costs, times = [state], [], [], [], []
    decisions: list[Decision] = []
    records: list[Any] = []
    hidden, stopped = None, None
    for k in range(steps):
        begin = time.perf_counter()
        try:
            u, hidden = _ask(policy, observe(state), hidden, len(plant.input))
        except UserError as error:
            stopped = f"step {k}: {error}"
            break
        times.append(time.perf_counter() - begin)
        asked.append(u)
        applied.append(np.clip(u, plant.input.low, plant.input.high))
        costs.append(stage_cost(state, applied[-1]))
        if isinstance(hidden, tuple):
            decisions += [item for item in hidden if isinstance(item, Decision)]
            records += hidden if len(hidden) == 1 else ()
        state = plant.step(state, applied[-1], pushes[k])
        states.append(state)
        if not np.isfinite(state).all():
            stopped = f"step {k}: the state is {state}"
            break
    inputs = np.reshape(applied, (-1, len(plant.input)))
    return ClosedLoop(
        states=np.array(states),
        inputs=inputs,
        costs=np.array(costs),
        times=np.array(times),
        state_excess=_excess(np.array(states), plant.state.low, plant.state.high),
        input_excess=_excess(np.reshape(asked, inputs.shape), plant.input.low, plant.input.high),
        decisions=tuple(decisions),
        stopped=stopped,
        records=tuple(records),
    )
