"""A policy inside the MPC loop: its closed loop, simulated on the model, is where the solver starts."""

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import NMPC, Solution
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import HERE, Trajectory
from lipctrl.plant import Plant
from lipctrl.policy import Policy

Array = NDArray[np.float64]


def policy_trajectory(plant: Plant, policy: Policy, x: ArrayLike, steps: int) -> Trajectory:
    """The undisturbed closed loop from state x (n,): states (steps+1, n) and inputs (steps, m), clipped to limits.

    Raises:
        UserError: x has the wrong shape or is not finite, or the loop leaves the finite numbers.
    """
    state = np.asarray(x, np.float64)
    if state.shape != (len(plant.state),) or not np.isfinite(state).all():
        raise UserError(f"the state needs shape ({len(plant.state)},) and finite numbers, found {state}")
    states, inputs, hidden = [state], [], None
    for k in range(steps):
        action, hidden = policy.predict(states[-1], hidden, deterministic=True)
        inputs.append(np.clip(np.asarray(action, np.float64), plant.input.low, plant.input.high))
        states.append(plant.step(states[-1], inputs[-1]))
        if not np.isfinite(states[-1]).all():
            raise UserError(f"the policy's loop is not finite after {k + 1} of {steps} steps")
    return np.array(states), np.reshape(inputs, (steps, len(plant.input)))


@dataclass(frozen=True)
class PolicyWarmStart:
    """NMPC that starts every solve from the policy's own trajectory. Only the start changes, never the problem.

    It saves iterations where there is no plan of the step before; a shifted plan needs fewer still.

    Attributes:
        controller: solves the problem. policy: acts on the plant's state.
    """

    controller: NMPC
    policy: Policy

    @property
    def ocp(self) -> OCP:
        """The controller's problem."""
        return self.controller.ocp

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        """As `NMPC.solve`; a given guess (the shifted plan) is not used. `wall_time` includes the rollout.

        Raises:
            UserError: see `policy_trajectory` and `NMPC.solve`.
        """
        begin = time.perf_counter()
        start = policy_trajectory(self.controller.plant, self.policy, x, self.controller.ocp.horizon)
        solution = self.controller.solve(x, start, given)
        return replace(solution, wall_time=time.perf_counter() - begin)
