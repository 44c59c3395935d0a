"""Offset-free MPC: no offset under unmeasured constant disturbances and on plants that are not the model."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.envs.linear import double_integrator
from lipctrl.envs.quad_tank import quad_tank_plant
from lipctrl.files import UserError
from lipctrl.mpc.controller import GENERAL, NMPC
from lipctrl.mpc.invariant import box
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.observer import DisturbanceModel, kalman_observer
from lipctrl.mpc.offset_free import OffsetFreeDecision, OffsetFreeMPC
from lipctrl.mpc.problem import regulation
from lipctrl.plant import Plant, discrete
from lipctrl.policy import Policy

INTEGRATOR, Q, R = double_integrator()
TANKS = quad_tank_plant()
LOWER = np.eye(2, 4)
SETPOINT = np.array([13.5, 12.0])


def free(x: np.ndarray, u: np.ndarray) -> float:
    return 0.0


def integrator_policy(setpoint: float, solver: str = GENERAL[0]) -> OffsetFreeMPC:
    """Position measured, a constant force estimated."""
    model = DisturbanceModel(np.array([[1.0, 0.0]]), np.array([[0.0], [1.0]]), np.zeros((1, 1)))
    observer = kalman_observer(INTEGRATOR, model, process=np.eye(2), disturbance=[[0.3]], measurement=[[1.0]])
    ocp = regulation(INTEGRATOR, Q, R, horizon=8)
    return OffsetFreeMPC(observer=observer, ocp=ocp, H=np.eye(1), setpoint=np.array([setpoint]), solver=solver)


def tank_policy(setpoint: np.ndarray = SETPOINT, *, everything: bool = False) -> OffsetFreeMPC:
    """Lower levels measured with flows into the upper tanks, or all four levels measured and pushed."""
    upper = np.vstack([np.zeros((2, 2)), np.eye(2)])
    model = DisturbanceModel(LOWER, upper, np.zeros((2, 2)))
    if everything:
        model = DisturbanceModel(np.eye(4), np.eye(4), np.zeros((4, 4)))
    p = len(model.C)
    observer = kalman_observer(
        TANKS, model, process=0.1 * np.eye(4), disturbance=0.1 * np.eye(p), measurement=0.1 * np.eye(p)
    )
    ocp = regulation(TANKS, np.diag([1.0, 1.0, 0.1, 0.1]), 0.1 * np.eye(2), horizon=10)
    return OffsetFreeMPC(observer=observer, ocp=ocp, H=np.eye(2, p), setpoint=setpoint)


def weaker_tanks() -> Plant:
    """Pumps 10 and 5 per cent weaker than the model's, and outflows of a model that is 3 per cent slower."""
    gain = np.array([0.9, 0.95])
    update = discrete(lambda x, u, w: x + 0.97 * (TANKS.update(x, gain * u, w) - x), 4, 2, 2)
    return replace(TANKS, name="weak tanks", update=update, equilibrium=(np.ones(4), np.ones(2)))


def run(plant: Plant, policy: Policy, x: np.ndarray, steps: int, C: np.ndarray, push: list[float]) -> ClosedLoop:
    loop = simulate(
        plant, policy, x, steps, stage_cost=free, observe=lambda s: C @ s, disturbances=np.tile(push, (steps, 1))
    )
    assert loop.stopped is None, loop.stopped
    return loop


@pytest.mark.parametrize("solver", GENERAL)
def test_double_integrator_under_a_constant_force(solver: str) -> None:
    force, C = 0.4, np.array([[1.0, 0.0]])
    loop = run(INTEGRATOR, integrator_policy(2.0, solver), np.array([-1.0, 0.5]), 120, C, [0.0, force])
    np.testing.assert_allclose(loop.states[-1], [2.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(loop.inputs[-1], [-force], atol=1e-6)
    last = loop.decisions[-1]
    assert isinstance(last, OffsetFreeDecision)
    np.testing.assert_allclose(last.estimate.d, [force], atol=1e-6)


def test_without_the_observer_the_offset_is_that_of_the_gain() -> None:
    """Near the origin MPC is u = -K x: at rest K_1 p = force, and the velocity is zero."""
    force = 0.04
    controller = MPCPolicy(NMPC(INTEGRATOR, regulation(INTEGRATOR, Q, R, horizon=8)))
    plain = run(INTEGRATOR, controller, np.zeros(2), 80, np.eye(2), [0.0, force])
    gain = lqr([[1.0, 1.0], [0.0, 1.0]], [[0.0], [1.0]], Q, R).K
    np.testing.assert_allclose(plain.states[-1], [force / gain[0, 0], 0.0], atol=1e-8)
    assert plain.states[-1, 0] > 0.05
    observed = run(INTEGRATOR, integrator_policy(0.0), np.zeros(2), 80, np.eye(1, 2), [0.0, force])
    np.testing.assert_allclose(observed.states[-1], 0.0, atol=1e-7)


@pytest.mark.parametrize("everything", [False, True], ids=["two levels", "four levels"])
def test_weaker_tanks_with_leaks_reach_the_setpoint(everything: bool) -> None:
    policy = tank_policy(everything=everything)
    loop = run(weaker_tanks(), policy, TANKS.equilibrium[0], 300, policy.observer.model.C, [-0.6, 0.4])
    np.testing.assert_allclose(loop.states[-1, :2], SETPOINT, atol=1e-6)
    assert loop.input_excess.max() < 1e-9
    assert all(decision.solution.feasible for decision in loop.decisions)


def test_weaker_tanks_without_the_observer_do_not() -> None:
    policy = tank_policy()
    target = policy.target([0.0, 0.0])  # the rest that the model alone believes in
    ocp = replace(policy.ocp, x_ref=target.x, u_ref=target.u)
    loop = run(weaker_tanks(), MPCPolicy(NMPC(TANKS, ocp)), TANKS.equilibrium[0], 300, np.eye(4), [-0.6, 0.4])
    assert np.abs(loop.states[-1, :2] - SETPOINT).max() > 0.2
    np.testing.assert_allclose(loop.states[-1], loop.states[-2], atol=1e-6)  # at rest, beside the set-point


def test_where_the_model_is_right_the_plan_is_that_of_nmpc_at_the_target() -> None:
    policy = tank_policy()
    x = TANKS.equilibrium[0] + [1.0, -1.0, 0.3, 0.2]
    target = policy.target([0.0, 0.0])
    found = policy.solve(replace(policy.observer.start(LOWER @ x), x=x), target)
    ocp = replace(policy.ocp, x_ref=target.x, u_ref=target.u)
    expected = NMPC(TANKS, ocp).solve(x)
    np.testing.assert_allclose(found.inputs, expected.inputs, atol=1e-6)
    np.testing.assert_allclose(found.states, expected.states, atol=1e-5)
    assert found.cost == pytest.approx(expected.cost, rel=1e-7)


def test_a_plan_of_a_pushed_model_moves_as_pushed() -> None:
    policy = integrator_policy(1.0)
    estimate = replace(policy.observer.start([0.0]), d=np.array([0.3]))
    target = policy.target([0.3])
    plan = policy.solve(estimate, target)
    moved = INTEGRATOR.step(plan.states[:-1], plan.inputs) + [0.0, 0.3]
    np.testing.assert_allclose(plan.states[1:], moved, atol=1e-7)
    dx, du = plan.states - target.x, plan.inputs - target.u
    cost = (
        np.einsum("ki,ij,kj", dx[:-1], Q, dx[:-1]) + np.einsum("ki,ij,kj", du, R, du) + dx[-1] @ policy.ocp.P @ dx[-1]
    )
    assert plan.cost == pytest.approx(cost, rel=1e-7)


def test_a_new_setpoint_keeps_the_estimate() -> None:
    policy, C, force = integrator_policy(2.0), np.array([1.0, 0.0]), np.array([0.0, 0.4])
    x, hidden = np.zeros(2), None
    for k in range(100):
        policy = replace(policy, setpoint=np.array([-1.0])) if k == 60 else policy
        action, hidden = policy.predict([C @ x], hidden)
        if k >= 60:
            np.testing.assert_allclose(hidden[0].estimate.d, [0.4], atol=1e-5)
        x = INTEGRATOR.step(x, action) + force
    np.testing.assert_allclose(x, [-1.0, 0.0], atol=1e-5)


def test_hidden_state_batches_and_episode_starts() -> None:
    policy = integrator_policy(1.0)
    first, hidden = policy.predict(np.array([[0.0], [3.0]]))
    assert first.shape == (2, 1) and len(hidden) == 2
    again, _ = policy.predict(np.array([[0.0], [3.0]]))
    np.testing.assert_array_equal(first, again)  # pure
    second, _ = policy.predict(np.array([[0.5], [3.5]]), hidden)
    single, _ = policy.predict(np.array([3.5]), (hidden[1],))
    np.testing.assert_allclose(single, second[1], atol=1e-9)
    fresh, _ = policy.predict(np.array([[0.5], [3.5]]), hidden, episode_start=np.array([True, False]))
    cold, _ = policy.predict(np.array([0.5]))
    np.testing.assert_allclose(fresh, [cold, second[1]], atol=1e-9)
    assert np.abs(fresh[0] - second[0]).max() > 1e-3
    with pytest.raises(UserError, match="2 observations came with 1 hidden"):
        policy.predict(np.zeros((2, 1)), hidden[:1])


def test_the_last_plan_is_the_next_start() -> None:
    policy, x = tank_policy(), TANKS.equilibrium[0] + [4.0, -4.0, 0.5, 0.5]
    action, hidden = policy.predict(LOWER @ x)
    after = LOWER @ TANKS.step(x, action)
    _, (warm,) = policy.predict(after, hidden)
    cold = policy.solve(warm.estimate, warm.target)
    assert warm.solution.iterations < cold.iterations
    np.testing.assert_allclose(warm.solution.inputs[0], cold.inputs[0], atol=1e-6)


def test_refusals() -> None:
    policy = integrator_policy(1.0)
    with pytest.raises(UserError, match="no terminal set"):
        replace(policy, ocp=replace(policy.ocp, terminal_set=box([-1, -1], [1, 1])))
    with pytest.raises(UserError, match="unknown solver"):
        replace(policy, solver="fatrop")
    with pytest.raises(UserError, match="measurement needs shape"):
        policy.predict(np.zeros(2))
    with pytest.raises(UserError, match="H needs 1 columns"):
        replace(policy, H=np.eye(2))
    tight = replace(policy, ocp=replace(policy.ocp, x_low=np.array([-1.0, -0.1]), x_high=np.array([1.0, 0.1])))
    with pytest.raises(UserError, match="no usable solution"):
        tight.predict([30.0])
