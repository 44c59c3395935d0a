"""A policy as terminal controller: short horizons against the long one, costs against a rollout in numpy."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.envs.cstr import LEVEL, P, cstr_plant
from lipctrl.envs.linear import linear_plant
from lipctrl.files import UserError
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.linear import terminal_set
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import Controller, MPCPolicy
from lipctrl.mpc.policy_mpc import policy_trajectory
from lipctrl.mpc.problem import OCP, Softness, regulation
from lipctrl.mpc.terminal import PolicyTerminalMPC
from lipctrl.nn.plain import PlainNet
from lipctrl.plant import Plant
from lipctrl.policy import PlainPolicy

Array = np.ndarray
REACTOR = cstr_plant()
Q_REACTOR, R_REACTOR = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])
MASS = linear_plant([[1.0, 0.1], [0.0, 1.0]], [0.005, 0.1], dt=0.1, state_limit=10.0, input_limit=1.0)
Q_MASS, R_MASS = np.eye(2), np.array([[0.1]])


def affine(plant: Plant, Q: Array, R: Array) -> PlainNet:
    """LQR about the equilibrium as a network without hidden layers."""
    x_ref, u_ref = plant.equilibrium
    K = lqr(*plant.linearise(x_ref, u_ref)[:2], Q, R).K
    return PlainNet(
        ({0: -K},), (u_ref + K @ x_ref,), (), low=np.array(plant.input.low), high=np.array(plant.input.high)
    )


def learned(plant: Plant, Q: Array, R: Array, spread: Array) -> PlainNet:
    """The same law, not quite: random tanh features fitted by least squares on a box about the equilibrium."""
    rng, x_ref = np.random.default_rng(0), plant.equilibrium[0]
    x = x_ref + spread * rng.uniform(-1, 1, (2000, len(x_ref)))
    W, b = rng.normal(size=(40, len(x_ref))) / spread, rng.uniform(-1, 1, 40)
    features = np.hstack([np.tanh(x @ W.T - W @ x_ref + b), np.ones((len(x), 1))])
    weights = np.linalg.lstsq(features, affine(plant, Q, R)(x), rcond=None)[0]
    net = PlainNet.mlp([W, weights[:-1].T], [b - W @ x_ref, weights[-1]], "tanh")
    return replace(net, low=np.array(plant.input.low), high=np.array(plant.input.high))


def loop(plant: Plant, controller: Controller, Q: Array, R: Array, x: Array, steps: int) -> ClosedLoop:
    def stage_cost(state: Array, u: Array) -> float:
        dx, du = state - plant.equilibrium[0], u - plant.equilibrium[1]
        return float(dx @ Q @ dx + du @ R @ du)

    return simulate(plant, MPCPolicy(controller), x, steps, stage_cost=stage_cost)


def reactor_start(angle: float) -> Array:
    to_region = np.sqrt(LEVEL) * np.linalg.inv(np.linalg.cholesky(P).T)
    return np.asarray(REACTOR.equilibrium[0] + to_region @ [np.cos(angle), np.sin(angle)])


@pytest.mark.parametrize("angle", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("net", [affine(REACTOR, Q_REACTOR, R_REACTOR), None], ids=["lqr", "learned"])
def test_three_free_steps_cost_what_twenty_do_on_the_reactor(net: PlainNet | None, angle: float) -> None:
    exact = net is not None
    net = net or learned(REACTOR, Q_REACTOR, R_REACTOR, np.array([2.2, 95.0]))
    x = reactor_start(angle)
    problem = regulation(REACTOR, Q_REACTOR, R_REACTOR, horizon=3)
    short = PolicyTerminalMPC(plant=REACTOR, ocp=problem, net=net, rollout=17)
    found = loop(REACTOR, short, Q_REACTOR, R_REACTOR, x, 60)
    long = NMPC(REACTOR, regulation(REACTOR, Q_REACTOR, R_REACTOR, horizon=20))
    best = loop(REACTOR, long, Q_REACTOR, R_REACTOR, x, 60)
    assert found.stopped is None and found.cost == pytest.approx(best.cost, rel=1e-6 if exact else 3e-4)
    assert found.state_excess.max() == 0


def test_five_free_steps_cost_what_forty_do_where_a_short_horizon_alone_does_not() -> None:
    x, steps = np.array([-8.0, 0.0]), 120
    best = loop(
        MASS, NMPC(MASS, regulation(MASS, Q_MASS, R_MASS, horizon=40), "sqpmethod-piqp"), Q_MASS, R_MASS, x, steps
    )
    problem = regulation(MASS, Q_MASS, R_MASS, horizon=5)
    alone = loop(MASS, NMPC(MASS, problem), Q_MASS, R_MASS, x, steps)
    with_policy = PolicyTerminalMPC(plant=MASS, ocp=problem, net=affine(MASS, Q_MASS, R_MASS), rollout=15)
    found = loop(MASS, with_policy, Q_MASS, R_MASS, x, steps)
    assert found.stopped is None and found.cost == pytest.approx(best.cost, rel=2.5e-4)
    assert alone.cost > best.cost * 1.005


def problem(horizon: int, **changes: object) -> OCP:
    return replace(regulation(MASS, Q_MASS, R_MASS, horizon=horizon), **changes)  # type: ignore[arg-type]


def test_cost_is_that_of_plan_and_rollout() -> None:
    net, x = affine(MASS, Q_MASS, R_MASS), np.array([-4.0, 1.0])
    solution = PolicyTerminalMPC(plant=MASS, ocp=problem(4), net=net, rollout=6).solve(x)
    states, inputs = policy_trajectory(MASS, PlainPolicy(net), solution.states[-1], 6)
    every, actions = np.vstack([solution.states, states[1:]]), np.vstack([solution.inputs, inputs])
    expected = sum(s @ Q_MASS @ s for s in every[:-1]) + sum(u @ R_MASS @ u for u in actions)
    assert solution.feasible and solution.cost == pytest.approx(
        expected + every[-1] @ problem(4).P @ every[-1], rel=1e-7
    )


def test_cost_is_between_the_policys_own_and_the_long_plans() -> None:
    net, x, P_tail = affine(MASS, Q_MASS, R_MASS), np.array([-4.6, 2.6]), problem(5).P
    states, inputs = policy_trajectory(MASS, PlainPolicy(net), x, 60)
    own = (
        sum(s @ Q_MASS @ s for s in states[:-1])
        + sum(u @ R_MASS @ u for u in inputs)
        + states[-1] @ P_tail @ states[-1]
    )
    between = PolicyTerminalMPC(plant=MASS, ocp=problem(5), net=net, rollout=55).solve(x).cost
    best = NMPC(MASS, problem(60), "sqpmethod-piqp").solve(x).cost
    assert best + 1e-3 < between < own - 1e-3


def test_a_plan_at_a_kink_counts_and_costs_less_than_the_shifted_one() -> None:
    net, x = affine(MASS, Q_MASS, R_MASS), np.array([-8.0, 0.0])
    controller = PolicyTerminalMPC(plant=MASS, ocp=problem(5), net=net, rollout=80)
    last, statuses = controller.solve(x), []
    for _ in range(60):
        x = MASS.step(x, last.inputs[0])
        spent = last.states[0] @ Q_MASS @ last.states[0] + last.inputs[0] @ R_MASS @ last.inputs[0]
        solution = controller.solve(x, last.shifted())
        # P is the policy's own cost-to-go inside its limits, so that the cost falls by what was spent
        assert solution.feasible and solution.cost <= last.cost - spent + 1e-11 * last.cost
        statuses.append(solution.status)
        last = solution
    assert any("SUCCESS" not in status for status in statuses)


def test_limits_and_terminal_set_hold_along_the_rollout() -> None:
    net, x = affine(MASS, Q_MASS, R_MASS), np.array([-6.0, 1.0])
    slow = problem(3, x_low=np.array([-10.0, -1.2]), x_high=np.array([10.0, 1.2]))
    states, _ = policy_trajectory(MASS, PlainPolicy(net), x, 20)
    assert states[:, 1].max() > 1.5  # the policy alone would be too fast
    final = terminal_set(MASS, slow)
    controller = PolicyTerminalMPC(plant=MASS, ocp=replace(slow, terminal_set=final), net=net, rollout=1)
    assert not controller.solve(x).feasible  # four steps do not reach the set
    near = np.array([-1.5, 1.0])
    solution = controller.solve(near)
    after, _ = policy_trajectory(MASS, PlainPolicy(net), solution.states[-1], 1)
    assert solution.feasible and final.contains(after[-1], 1e-6)
    controller = PolicyTerminalMPC(plant=MASS, ocp=slow, net=net, rollout=8)
    solution = controller.solve(np.array([-2.2, 1.1]))
    after, _ = policy_trajectory(MASS, PlainPolicy(net), solution.states[-1], 8)
    assert solution.feasible and np.abs(after[:, 1]).max() <= 1.2 + 1e-5


def test_refusals() -> None:
    net = affine(MASS, Q_MASS, R_MASS)
    with pytest.raises(UserError, match="1 inputs|2 inputs and 1 outputs"):
        PolicyTerminalMPC(plant=MASS, ocp=problem(3), net=affine(REACTOR, Q_REACTOR, R_REACTOR), rollout=3)
    with pytest.raises(UserError, match="at least 1 step"):
        PolicyTerminalMPC(plant=MASS, ocp=problem(3), net=net, rollout=0)
    with pytest.raises(UserError, match="hard state limits"):
        soft = problem(3, soft=Softness(np.ones(2), np.ones(2)))
        PolicyTerminalMPC(plant=MASS, ocp=soft, net=net, rollout=3)
    with pytest.raises(UserError, match="fatrop"):
        PolicyTerminalMPC(plant=MASS, ocp=problem(3), net=net, rollout=3, solver="fatrop")


class Broken:
    """A solver that returns NaN."""

    def __call__(self, x0: Array, **_: object) -> dict[str, Array]:
        return {"x": np.full_like(x0, np.nan)}

    def stats(self) -> dict[str, object]:
        return {"success": False, "unified_return_status": "SOLVER_RET_NAN"}


def test_when_the_solver_fails_the_shifted_plan_with_the_policys_last_input_acts() -> None:
    net, x = affine(MASS, Q_MASS, R_MASS), np.array([-2.0, 0.5])
    controller = PolicyTerminalMPC(plant=MASS, ocp=problem(5), net=net, rollout=80)
    last = controller.solve(x)
    object.__setattr__(controller, "_solve", Broken())
    solution = controller.solve(last.states[1], last.shifted())
    assert solution.feasible and "the start is kept" in solution.status
    np.testing.assert_allclose(solution.inputs[:-1], last.inputs[1:])
    np.testing.assert_allclose(solution.inputs[-1], net(last.states[-1]))
    assert not controller.solve(np.array([9.9, 1.0])).feasible  # leaves its limits, whatever it does
