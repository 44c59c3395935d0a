"""A policy as the start of NMPC: same closed loop, fewer iterations; its trajectory against matrix powers."""

import numpy as np
import pytest

from lipctrl.envs.cstr import LEVEL, P, cstr_plant, lyapunov
from lipctrl.envs.linear import double_integrator
from lipctrl.files import UserError
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import Controller, MPCPolicy
from lipctrl.mpc.policy_mpc import PolicyWarmStart, policy_trajectory
from lipctrl.mpc.problem import regulation
from lipctrl.policy import FunctionPolicy, PlainPolicy, linear_policy

PLANT = cstr_plant()
Q, R = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])


def reactor_regulator() -> FunctionPolicy:
    (x_ref, u_ref), low, high = PLANT.equilibrium, PLANT.input.low, PLANT.input.high
    A, B, _ = PLANT.linearise(x_ref, u_ref)
    gain = lqr(A, B, Q, R).K
    return FunctionPolicy(lambda x: np.clip(u_ref - (x - x_ref) @ gain.T, low, high))


def border_state(angle: float) -> np.ndarray:
    factor = np.linalg.inv(np.linalg.cholesky(P).T)
    return PLANT.equilibrium[0] + np.sqrt(LEVEL) * factor @ [np.cos(angle), np.sin(angle)]


def reactor_loop(controller: Controller, x: np.ndarray) -> ClosedLoop:
    def stage_cost(state: np.ndarray, u: np.ndarray) -> float:
        dx, du = state - PLANT.equilibrium[0], u - PLANT.equilibrium[1]
        return float(dx @ Q @ dx + du @ R @ du)

    return simulate(PLANT, MPCPolicy(controller), x, 15, stage_cost=stage_cost)


@pytest.mark.parametrize("angle", [0.5, 2.0, 3.5, 5.0])
def test_same_closed_loop_and_fewer_iterations_in_the_transient(angle: float) -> None:
    nmpc = NMPC(PLANT, regulation(PLANT, Q, R, horizon=10))
    warm = PolicyWarmStart(nmpc, reactor_regulator())
    loop = reactor_loop(warm, border_state(angle))
    assert loop.stopped is None and loop.fallbacks == 0
    cold = [nmpc.solve(x) for x in loop.states[:-1]]
    started = [decision.solution for decision in loop.decisions]
    np.testing.assert_allclose([s.cost for s in started], [s.cost for s in cold], rtol=1e-6, atol=1e-8)
    # in the transient; beside the steady state a straight line is as good a start
    assert sum(s.iterations for s in started[:5]) < sum(s.iterations for s in cold[:5])
    assert loop.cost == pytest.approx(reactor_loop(nmpc, border_state(angle)).cost, rel=1e-6)
    V = [float(lyapunov(x, PLANT.equilibrium[0])) for x in loop.states[[0, -1]]]
    assert V[1] < 0.1 * V[0]


def test_trajectory_of_lqr_is_a_power_of_the_closed_loop() -> None:
    plant, Q_b1, R_b1 = double_integrator()
    regulator = lqr(*plant.linearise(*plant.equilibrium)[:2], Q_b1, R_b1)
    policy = linear_policy(regulator.K, np.array([-np.inf]), np.array([np.inf]))
    states, inputs = policy_trajectory(plant, policy, [0.1, 0.0], 5)
    for k in range(6):
        np.testing.assert_allclose(states[k], np.linalg.matrix_power(regulator.A_cl, k) @ [0.1, 0.0], atol=1e-12)
    np.testing.assert_allclose(inputs, -states[:-1] @ regulator.K.T, atol=1e-12)


def test_trajectory_keeps_input_limits() -> None:
    plant = double_integrator()[0]
    policy: PlainPolicy = linear_policy(np.array([[1e4, 0.0]]), np.array([-np.inf]), np.array([np.inf]))
    _, inputs = policy_trajectory(plant, policy, [1.0, 0.0], 1)
    np.testing.assert_array_equal(inputs, [plant.input.low])


def test_refusals() -> None:
    plant = double_integrator()[0]
    with pytest.raises(UserError, match=r"shape \(2,\) and finite"):
        policy_trajectory(plant, FunctionPolicy(lambda x: x[:, :1]), [np.nan, 0.0], 3)
    with pytest.raises(UserError, match="not finite after 1 of 3 steps"):
        policy_trajectory(plant, FunctionPolicy(lambda x: np.nan * x[:, :1]), [1.0, 0.0], 3)
