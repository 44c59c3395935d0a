"""Linear MPC against LQR, published values, dense quadratic programming, and the solver traps."""

from dataclasses import replace

import casadi as ca
import numpy as np
import pytest

from lipctrl.envs.cstr import cstr_plant
from lipctrl.envs.linear import double_integrator, linear_plant
from lipctrl.envs.pendulum import pendulum_plant
from lipctrl.files import UserError
from lipctrl.mpc.controller import NMPC, solve_programme
from lipctrl.mpc.invariant import box
from lipctrl.mpc.linear import SOLVERS, LinearMPC, is_linear, linear_model, terminal_set
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.problem import OCP, Softness, regulation
from lipctrl.mpc.shooting import transcribe
from lipctrl.plant import Plant


def limited_double_integrator(horizon: int = 10) -> tuple[Plant, OCP]:
    """|x| <= 10, |u| <= 1, terminal cost and terminal set of LQR: the problem of arXiv 2206.13374."""
    plant, Q, R = double_integrator()
    ocp = replace(
        regulation(plant, Q, R, horizon=horizon),
        x_low=np.full(2, -10.0),
        x_high=np.full(2, 10.0),
        u_low=np.array([-1.0]),
        u_high=np.array([1.0]),
    )
    return plant, replace(ocp, terminal_set=terminal_set(plant, ocp))


@pytest.mark.parametrize("solver", SOLVERS)
def test_without_active_limits_it_is_lqr(solver: str) -> None:
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    Q, R = np.diag([1.0, 4.0, 0.5]), np.diag([0.3, 2.0])
    plant = linear_plant(A, B)
    controller = LinearMPC(plant, regulation(plant, Q, R, horizon=8), solver)
    regulator = lqr(A, B, Q, R)
    for x in rng.uniform(-2, 2, size=(5, 3)):
        solution = controller.solve(x)
        assert solution.feasible
        np.testing.assert_allclose(solution.inputs[0], -regulator.K @ x, rtol=0, atol=1e-8)
        assert solution.cost == pytest.approx(x @ regulator.P @ x, rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("x", "cost", "u"),
    [((1.0, 0.0), 2.668689, -0.579171), ((3.0, 0.0), 25.639734, -1.0), ((8.0, -2.0), 128.316943, -0.941840)],
)
def test_published_problem(solver: str, x: tuple[float, float], cost: float, u: float) -> None:
    solution = LinearMPC(*limited_double_integrator(), solver).solve(x)
    assert solution.feasible
    assert solution.cost == pytest.approx(cost, abs=1e-4)
    assert solution.inputs[0, 0] == pytest.approx(u, abs=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_terminal_set_acts(solver: str) -> None:
    """From (9, 0) two steps with |u| <= 1 reach at best (8, -2), where |Kx| > 1; ten steps reach the set."""
    assert LinearMPC(*limited_double_integrator(), solver).solve([9.0, 0.0]).feasible
    short = LinearMPC(*limited_double_integrator(horizon=2), solver).solve([9.0, 0.0])
    assert not short.feasible and short.violation > 1e-3


def test_terminal_set_is_invariant_under_saturated_lqr_of_the_reactor() -> None:
    """In absolute units, about a reference that is not the origin."""
    plant = cstr_plant()
    Q, R = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])
    ocp = regulation(plant, Q, R, horizon=5)
    found = terminal_set(plant, ocp)
    A, B, _ = plant.linearise(*plant.equilibrium)
    K = lqr(A, B, Q, R).K
    rng = np.random.default_rng(1)
    x = plant.equilibrium[0] + rng.uniform(-1, 1, size=(5000, 2)) * [2.0, 60.0]
    inside = found.contains(x)
    assert 100 < inside.sum() < 4900
    u = plant.equilibrium[1] - (x[inside] - plant.equilibrium[0]) @ K.T
    assert (u >= plant.input.low).all() and (u <= plant.input.high).all()
    moved = plant.equilibrium[0] + (x[inside] - plant.equilibrium[0]) @ (A - B @ K).T
    assert found.contains(moved, tolerance=1e-9).all()


def test_model_is_the_tangent_of_the_plant() -> None:
    plant = cstr_plant()
    x, u = plant.equilibrium[0] + [0.1, 3.0], plant.equilibrium[1] + [0.5, 1e4]  # not a steady state
    model = linear_model(plant, x, u)
    np.testing.assert_allclose(np.asarray(model(x, u, [0, 0])).ravel(), plant.step(x, u), rtol=1e-14)
    dx, du = np.array([1e-5, 1e-3]), np.array([1e-4, 10.0])
    shifted = np.asarray(model(x + dx, u + du, [0, 0])).ravel()
    np.testing.assert_allclose(shifted, plant.step(x + dx, u + du), rtol=1e-10)


def test_wrong_answer_of_fatrop_as_qp_plugin_is_caught() -> None:
    """It returns the zero plan from (3, 0), which breaks the first row."""
    plant, ocp = limited_double_integrator()
    programme = transcribe(plant.update, ocp)
    options = {"print_time": False, "error_on_fail": False, "fatrop": {"print_level": 0}}
    solver = ca.qpsol("wrong", "fatrop", programme.nlp, options)
    solution = solve_programme(solver, programme, [3.0, 0.0], None)
    assert not solution.feasible and solution.violation > 1


@pytest.mark.parametrize("solver", ["fatrop", "qrqp"])
def test_unsafe_solvers_are_refused(solver: str) -> None:
    with pytest.raises(UserError, match="is refused"):
        LinearMPC(*limited_double_integrator(), solver)


@pytest.mark.parametrize("solver", ["daqp", "piqp"])
def test_soft_limits_give_the_same_plan_as_nonlinear_programming(solver: str) -> None:
    plant, ocp = limited_double_integrator()
    soft = Softness(np.array([20.0, 30.0]), np.array([5.0, 2.0]))
    ocp = replace(ocp, x_low=np.array([-10.0, -0.3]), soft=soft, terminal_set=None)
    found, expected = LinearMPC(plant, ocp, solver).solve([6.0, 0.0]), NMPC(plant, ocp, "ipopt").solve([6.0, 0.0])
    assert found.feasible and found.states[:, 1].min() < -0.31  # it pays to exceed the limit
    np.testing.assert_allclose(found.inputs, expected.inputs, atol=1e-5)


def test_hpipm_refuses_soft_limits() -> None:
    plant, ocp = limited_double_integrator()
    with pytest.raises(UserError, match="slacks"):
        LinearMPC(plant, replace(ocp, soft=Softness(np.ones(2), np.ones(2))), "hpipm")


def test_terminal_set_in_absolute_units_holds_the_last_state() -> None:
    """A small box about the reactor's steady state, which the plan without it misses."""
    plant = cstr_plant()
    free = regulation(plant, np.diag([10.0, 0.01]), np.diag([0.01, 3e-12]), horizon=8)
    half = np.array([0.002, 1.0])
    target = box(free.x_ref - half, free.x_ref + half)
    start = free.x_ref + [0.6, -10.0]
    missed, held = (LinearMPC(plant, ocp).solve(start) for ocp in (free, replace(free, terminal_set=target)))
    assert missed.feasible and not target.contains(missed.states[-1], tolerance=1e-3)
    assert held.feasible and target.contains(held.states[-1], tolerance=1e-6)
    assert held.cost > missed.cost


def test_only_constant_derivatives_make_a_plant_linear() -> None:
    assert is_linear(linear_plant([[1.1, 0.3], [0.0, 0.9]], [[0.2], [1.0]]))
    assert not is_linear(pendulum_plant())  # discrete by nature, and with a sine
    assert not is_linear(cstr_plant())


def test_no_terminal_set_about_a_reference_that_drifts() -> None:
    """LQR about (4, 0.9), where the position moves on, ends at 4 + 0.9 K_2 / K_1: beyond the limit of 5."""
    plant = linear_plant([[1.0, 1.0], [0.0, 1.0]], [0.0, 1.0], state_limit=5.0, input_limit=1.0)
    drifting = regulation(plant, np.eye(2), [[0.1]], horizon=5, x_ref=[4.0, 0.9], u_ref=[0.0])
    gain = lqr(*plant.linearise(drifting.x_ref, drifting.u_ref)[:2], drifting.Q, drifting.R).K[0]
    assert 4 + 0.9 * gain[1] / gain[0] > 5
    with pytest.raises(UserError, match="rests"):
        terminal_set(plant, drifting)
    terminal_set(plant, replace(drifting, x_ref=np.array([4.0, 0.0])))
