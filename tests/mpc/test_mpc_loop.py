"""The closed loop: cost of LQR, offsets, limits, disturbances, early ends."""

import numpy as np
import pytest

from lipctrl.envs.linear import double_integrator, linear_plant
from lipctrl.files import UserError
from lipctrl.mpc.linear import LinearMPC
from lipctrl.mpc.loop import simulate
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.problem import regulation
from lipctrl.policy import FunctionPolicy, linear_policy

PLANT, Q, R = double_integrator()
A, B = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [1.0]])
LQR = lqr(A, B, Q, R)


def quadratic(x: np.ndarray, u: np.ndarray) -> float:
    return float(x @ Q @ x + u @ R @ u)


def test_closed_loop_cost_of_lqr_and_of_mpc_is_the_cost_to_go() -> None:
    x = np.array([1.0, -0.5])
    for policy in (
        linear_policy(LQR.K, [-1e3], [1e3]),
        MPCPolicy(LinearMPC(PLANT, regulation(PLANT, Q, R, horizon=5))),
    ):
        run = simulate(PLANT, policy, x, 60, stage_cost=quadratic)
        assert run.stopped is None and run.states.shape == (61, 2) and run.inputs.shape == (60, 1)
        assert run.cost == pytest.approx(x @ LQR.P @ x, rel=1e-9)
        assert run.state_excess.max() == run.input_excess.max() == 0
        assert (run.times > 0).all() and run.times.shape == (60,)
    assert len(run.decisions) == 60 and run.fallbacks == 0


def test_disturbances_enter_as_given() -> None:
    pushes = np.random.default_rng(0).normal(size=(20, 2))
    run = simulate(PLANT, linear_policy(LQR.K, [-1e3], [1e3]), [0, 0], 20, stage_cost=quadratic, disturbances=pushes)
    np.testing.assert_allclose(run.states[1:], run.states[:-1] @ LQR.A_cl.T + pushes, atol=1e-12)


def test_inputs_saturate_and_excess_is_recorded() -> None:
    plant = linear_plant(A, B, state_limit=4.0, input_limit=2.0)
    asks_five = FunctionPolicy(lambda x: np.full((len(x), 1), 5.0))
    run = simulate(plant, asks_five, [3.0, 0.0], 2, stage_cost=quadratic)
    np.testing.assert_array_equal(run.inputs, [[2.0], [2.0]])
    np.testing.assert_array_equal(run.input_excess, [1.5, 1.5])  # 3 beyond a half range of 2
    np.testing.assert_array_equal(run.states, [[3, 0], [3, 2], [5, 4]])
    np.testing.assert_array_equal(run.state_excess, [0, 0, 0.25])
    np.testing.assert_array_equal(run.costs, [9 + 0.4, 9 + 4 + 0.4])


def test_what_was_simulated_is_kept_when_the_state_diverges() -> None:
    plant = linear_plant([[1e200]], [[1.0]])
    idle = FunctionPolicy(lambda x: np.zeros((len(x), 1)))
    with np.errstate(over="ignore"):
        run = simulate(plant, idle, [1.0], 10, stage_cost=lambda x, u: 0.0)
    assert run.stopped == "step 1: the state is [inf]"
    assert len(run.states) == 3 and len(run.inputs) == 2


def test_policy_without_an_answer_ends_the_run() -> None:
    broken = FunctionPolicy(lambda x: np.full((len(x), 1), np.nan))
    run = simulate(PLANT, broken, [1.0, 0.0], 5, stage_cost=quadratic)
    assert run.stopped is not None and "finite inputs" in run.stopped
    assert run.states.shape == (1, 2) and run.inputs.shape == (0, 1) and run.cost == 0
    late = MPCPolicy(LinearMPC(PLANT, regulation(PLANT, Q, R, horizon=5)), deadline=1e-9)
    run = simulate(PLANT, late, [1.0, 0.0], 5, stage_cost=quadratic)
    assert run.stopped is not None and "late" in run.stopped


def test_bad_start_and_disturbances_are_refused() -> None:
    policy = linear_policy(LQR.K, [-1.0], [1.0])
    with pytest.raises(UserError, match="start state"):
        simulate(PLANT, policy, [1.0, np.nan], 5, stage_cost=quadratic)
    with pytest.raises(UserError, match="disturbances"):
        simulate(PLANT, policy, [1.0, 0.0], 5, stage_cost=quadratic, disturbances=np.zeros((4, 2)))
