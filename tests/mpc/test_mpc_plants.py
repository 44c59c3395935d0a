"""Every plant of the library under NMPC: four independent solvers find one plan."""

import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  registers the tasks
from lipctrl.files import UserError
from lipctrl.mpc.controller import NMPC, SOLVERS
from lipctrl.mpc.problem import regulation

TASKS = ["DoubleIntegrator", "Linear", "Pendulum", "PendulumSwingUp", "Cstr", "QuadTank", "Vehicle", "CartPole"]


@pytest.mark.parametrize("task", TASKS)
def test_solvers_agree(task: str) -> None:
    env = gymnasium.make(f"lipctrl/{task}-v0").unwrapped
    n, m = len(env.plant.state), len(env.plant.input)
    Q = np.eye(n) if env.Q is None else env.Q
    R = np.eye(m) if env.R is None else env.R
    ocp = regulation(env.plant, Q, R, horizon=10)
    observation, _ = env.reset(seed=1)
    x = env.state_of(observation)
    solutions = [NMPC(env.plant, ocp, solver).solve(x) for solver in SOLVERS]
    assert all(solution.feasible for solution in solutions)
    first = np.array([solution.inputs[0] for solution in solutions]) / ocp.u_scale
    assert np.ptp(first, axis=0).max() < 1e-5
    costs = np.array([solution.cost for solution in solutions])
    assert np.ptp(costs) < 1e-6 * (1 + costs.max())


def test_plant_without_a_regulator_needs_its_own_terminal_weight() -> None:
    """A standing differential-drive robot cannot be stabilised by linear feedback."""
    plant = gymnasium.make("lipctrl/Robot-v0").unwrapped.plant
    n, m = len(plant.state), len(plant.input)
    with pytest.raises(UserError, match="no stabilising solution"):
        regulation(plant, np.eye(n), np.eye(m), horizon=10)
    ocp = regulation(plant, np.eye(n), np.eye(m), horizon=10, P=5 * np.eye(n))
    np.testing.assert_array_equal(ocp.P, 5 * np.eye(n))
    assert NMPC(plant, ocp, "ipopt").solve(plant.equilibrium[0] + 0.1).feasible
