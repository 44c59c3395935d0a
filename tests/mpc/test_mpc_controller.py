"""NMPC of the reactor: four solvers, one answer; plans against the plant; limits, soft limits, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.envs.cstr import LEVEL, P, cstr_plant
from lipctrl.envs.linear import double_integrator
from lipctrl.files import UserError
from lipctrl.mpc.controller import NMPC, SOLVERS, Solution, solve_programme
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.problem import OCP, Softness, regulation
from lipctrl.mpc.shooting import transcribe

PLANT = cstr_plant()
Q, R = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])  # the task's own stage cost


def reactor_problem(horizon: int = 10) -> OCP:
    return regulation(PLANT, Q, R, horizon=horizon)


def level_set_states(count: int, radius: float = 1.0) -> np.ndarray:
    """States spread on the border of V <= radius^2 LEVEL."""
    angles = np.linspace(0.3, 0.3 + 2 * np.pi, count, endpoint=False)
    to_region = np.sqrt(LEVEL) * np.linalg.inv(np.linalg.cholesky(P).T)
    return PLANT.equilibrium[0] + radius * (to_region @ [np.cos(angles), np.sin(angles)]).T


def test_solvers_agree_on_the_first_input() -> None:
    ocp = reactor_problem()
    controllers = {name: NMPC(PLANT, ocp, name) for name in SOLVERS}
    for x in [*level_set_states(5), *level_set_states(3, radius=0.3)]:
        solutions = {name: controller.solve(x) for name, controller in controllers.items()}
        assert all(s.feasible and s.violation <= 1e-6 for s in solutions.values())
        first = np.array([s.inputs[0] for s in solutions.values()])
        # relative to half the input range
        np.testing.assert_array_less(np.ptp(first, axis=0) / [3.5, 5e5], 1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_plan_is_a_motion_of_the_plant_within_limits(solver: str) -> None:
    x = level_set_states(1)[0]
    solution = NMPC(PLANT, reactor_problem(), solver).solve(x)
    np.testing.assert_allclose(solution.states[0], x, rtol=1e-7)
    moved = PLANT.step(solution.states[:-1], solution.inputs)
    np.testing.assert_allclose(solution.states[1:], moved, rtol=1e-6)
    assert (solution.inputs >= PLANT.input.low).all() and (solution.inputs <= PLANT.input.high).all()
    dx, du = solution.states - PLANT.equilibrium[0], solution.inputs - PLANT.equilibrium[1]
    terminal = reactor_problem().P
    cost = np.einsum("ki,ij,kj", dx[:-1], Q, dx[:-1]) + np.einsum("ki,ij,kj", du, R, du) + dx[-1] @ terminal @ dx[-1]
    assert solution.cost == pytest.approx(cost, rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_closed_loop_converges_to_the_unstable_steady_state(solver: str) -> None:
    controller = NMPC(PLANT, reactor_problem(), solver)
    target = PLANT.equilibrium[0]
    for x in level_set_states(4):
        guess = None
        for _ in range(120):
            solution = controller.solve(x, guess)
            assert solution.feasible
            guess = solution.shifted()
            x = PLANT.step(x, solution.inputs[0])
        np.testing.assert_allclose(x, target, atol=1e-3)


def test_near_the_steady_state_the_input_is_that_of_lqr() -> None:
    A, B, _ = PLANT.linearise(*PLANT.equilibrium)
    gain = lqr(A, B, Q, R).K
    offset = np.array([1e-5, 1e-3])
    solution = NMPC(PLANT, reactor_problem()).solve(PLANT.equilibrium[0] + offset)
    np.testing.assert_allclose(solution.inputs[0] - PLANT.equilibrium[1], -gain @ offset, rtol=2e-3)


def test_warm_start_needs_fewer_iterations() -> None:
    controller = NMPC(PLANT, reactor_problem())
    first = controller.solve(level_set_states(1)[0])
    x = PLANT.step(first.states[0], first.inputs[0])
    cold, warm = controller.solve(x), controller.solve(x, first.shifted())
    assert warm.iterations < cold.iterations
    np.testing.assert_allclose(warm.inputs[0] / [1, 5e5], cold.inputs[0] / [1, 5e5], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_infeasible_problem_is_never_feasible(solver: str) -> None:
    """Ten steps with |u| <= 0.01 cannot bring position 9 below 8 at the first of them."""
    plant, weight, price = double_integrator()
    ocp = regulation(plant, weight, price, horizon=10)
    tight = replace(ocp, x_high=np.array([8.0, 5.0]), u_low=np.array([-0.01]), u_high=np.array([0.01]))
    solution = NMPC(plant, tight, solver).solve([9.0, 0.0])
    assert not solution.feasible
    assert solution.violation > 1e-3


TAKES_SLACKS = [name for name in SOLVERS if name != "sqpmethod-hpipm"]


@pytest.mark.parametrize("solver", TAKES_SLACKS)
def test_soft_limits_yield_where_hard_ones_cannot_hold(solver: str) -> None:
    plant, weight, price = double_integrator()
    ocp = regulation(plant, weight, price, horizon=10, soft=Softness(np.full(2, 100.0), np.full(2, 10.0)))
    limits = {"x_high": np.array([8.0, 5.0]), "u_low": np.array([-1.0]), "u_high": np.array([1.0])}
    solution = NMPC(plant, replace(ocp, **limits), solver).solve([9.0, 0.0])
    assert solution.feasible
    # 9 + 0, then 9 + u with u >= -1: the first state is 9 whatever the input, the second can be 8
    np.testing.assert_allclose(solution.states[1:3, 0], [9.0, 8.0], atol=1e-5)


@pytest.mark.parametrize("solver", TAKES_SLACKS)
def test_soft_limits_are_exact_where_hard_ones_can_hold(solver: str) -> None:
    """With a linear price above the multiplier the solution is that of the hard limit."""
    plant, weight, price = double_integrator()
    hard = regulation(plant, weight, price, horizon=10)
    hard = replace(hard, x_low=np.array([-10.0, -0.5]), u_low=np.array([-1.0]), u_high=np.array([1.0]))
    soft = replace(hard, soft=Softness(np.full(2, 1000.0), np.full(2, 10.0)))
    expected, found = (NMPC(plant, ocp, solver).solve([5.0, 0.0]) for ocp in (hard, soft))
    assert expected.states[:, 1].min() == pytest.approx(-0.5, abs=1e-6)  # the limit acts
    np.testing.assert_allclose(found.states, expected.states, atol=1e-5)


@pytest.mark.parametrize("solver", ["qrqp", "sqpmethod-qrqp", "sqpmethod-fatrop"])
def test_solvers_that_were_wrong_are_refused(solver: str) -> None:
    with pytest.raises(UserError, match="is refused"):
        NMPC(PLANT, reactor_problem(), solver)


def test_bad_input_is_refused() -> None:
    ocp = reactor_problem()
    controller = NMPC(PLANT, ocp)
    with pytest.raises(UserError, match="unknown solver"):
        NMPC(PLANT, ocp, "simplex")
    with pytest.raises(UserError, match=r"shape \(2,\)"):
        controller.solve([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="finite"):
        controller.solve([1.0, np.nan])
    with pytest.raises(UserError, match="guess"):
        controller.solve(PLANT.equilibrium[0], (np.zeros((3, 2)), np.zeros((2, 2))))
    with pytest.raises(UserError, match="the OCP"):
        NMPC(double_integrator()[0], ocp)


class Claims:
    """A solver that returns a given point and says what it likes about it."""

    def __init__(self, point: np.ndarray, success: bool) -> None:
        self.point, self.success = point, success

    def __call__(self, **_: object) -> dict[str, np.ndarray]:
        return {"x": self.point}

    def stats(self) -> dict[str, object]:
        return {"success": self.success, "unified_return_status": "claimed"}


def test_the_point_alone_decides_feasibility_and_the_flag_convergence() -> None:
    ocp = reactor_problem()
    x = level_set_states(1)[0]
    programme = transcribe(PLANT.update, ocp)
    plan = NMPC(PLANT, ocp).solve(x)
    right = programme.pack((plan.states, plan.inputs))
    wrong = right + 1e-3 * np.ones_like(right)

    def judged(point: np.ndarray, success: bool) -> Solution:
        return solve_programme(Claims(point, success), programme, x, None)

    assert judged(right, True).feasible and judged(right, True).converged
    assert judged(right, False).feasible and not judged(right, False).converged
    found = judged(wrong, True)
    assert not found.feasible and not found.converged and found.violation > 1e-4
    assert not judged(np.full_like(right, np.nan), True).feasible


def test_price_of_soft_limits_is_in_the_plants_units() -> None:
    plant, _, price = double_integrator()
    weight = np.diag([4.0, 25.0])
    softness = Softness(np.array([100.0, 7.0]), np.array([10.0, 3.0]))
    ocp = regulation(plant, weight, price, horizon=6, soft=softness)
    ocp = replace(ocp, x_high=np.array([8.0, 5.0]), u_low=np.array([-1.0]), u_high=np.array([1.0]))
    solution = NMPC(plant, ocp).solve([9.5, 0.0])
    x, u = solution.states, solution.inputs
    excess = np.maximum(np.maximum(x - ocp.x_high, ocp.x_low - x), 0)[1:]
    assert excess.max() > 1
    tracking = np.einsum("ki,ij,kj", x[:-1], weight, x[:-1]) + 0.1 * (u**2).sum() + x[-1] @ ocp.P @ x[-1]
    paid = (excess @ softness.linear + excess**2 @ softness.quadratic).sum()
    assert solution.cost == pytest.approx(tracking + paid, rel=1e-7)
