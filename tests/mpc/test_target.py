"""Steady-state targets: closed forms of the double integrator and the tanks, spare inputs, set-points out of reach."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from lipctrl.envs.linear import double_integrator
from lipctrl.envs.quad_tank import equilibrium_levels, quad_tank_plant
from lipctrl.files import UserError
from lipctrl.mpc.observer import DisturbanceModel
from lipctrl.mpc.problem import regulation
from lipctrl.mpc.target import TargetSelector

INTEGRATOR, Q, R = double_integrator()
FORCE = DisturbanceModel(np.array([[1.0, 0.0]]), np.array([[0.0], [1.0]]), np.zeros((1, 1)))
TANKS = quad_tank_plant()
LOWER = DisturbanceModel(np.eye(2, 4), np.vstack([np.zeros((2, 2)), np.eye(2)]), np.zeros((2, 2)))
TANK_PROBLEM = regulation(TANKS, np.diag([1.0, 1.0, 0.1, 0.1]), 0.1 * np.eye(2), horizon=5)


def test_double_integrator_rests_at_the_setpoint_and_cancels_the_force() -> None:
    selector = TargetSelector(INTEGRATOR, regulation(INTEGRATOR, Q, R, horizon=5), FORCE, np.eye(1))
    for d, r in ((0.0, 2.0), (0.3, -1.0), (-0.7, 4.0)):
        target = selector.target([d], [r])
        np.testing.assert_allclose(target.x, [r, 0.0], atol=1e-9)
        np.testing.assert_allclose(target.u, [-d], atol=1e-9)
        np.testing.assert_allclose(target.offset, 0.0, atol=1e-9)


def test_sensor_bias_moves_the_state_not_the_output() -> None:
    bias = DisturbanceModel(np.eye(2, 4), np.zeros((4, 2)), np.eye(2))
    target = TargetSelector(TANKS, TANK_PROBLEM, bias, np.eye(2)).target([0.5, -1.0], [12.0, 13.0])
    np.testing.assert_allclose(target.x[:2], [11.5, 14.0], atol=1e-6)


def test_tanks_rest_where_the_closed_form_says() -> None:
    selector = TargetSelector(TANKS, TANK_PROBLEM, LOWER, np.eye(2))
    for v in ([3.0, 3.0], [3.6, 2.5], [2.2, 3.3]):
        levels = equilibrium_levels(np.array(v))
        target = selector.target([0.0, 0.0], levels[:2])
        np.testing.assert_allclose(target.u, v, rtol=1e-6)
        np.testing.assert_allclose(target.x, levels, rtol=1e-6)


def test_of_the_rests_at_a_setpoint_the_nearest_to_the_reference_is_taken() -> None:
    """One level, two pumps: an independent solver finds the same point of the curve of voltages that hold it."""
    target = TargetSelector(TANKS, TANK_PROBLEM, LOWER, np.array([[1.0, 0.0]])).target([0.0, 0.0], [14.0])
    np.testing.assert_allclose(target.x, equilibrium_levels(target.u), rtol=1e-6)
    middle, ocp = TANKS.equilibrium[0], TANK_PROBLEM

    def distance(v: np.ndarray) -> float:
        offsets = [(equilibrium_levels(v) - middle) / ocp.x_scale, (v - 3) / ocp.u_scale]
        return float((np.concatenate(offsets) ** 2).sum())

    level = {"type": "eq", "fun": lambda v: equilibrium_levels(v)[0] - 14.0}
    found = minimize(distance, [3.2, 3.2], constraints=level, method="SLSQP", options={"ftol": 1e-12})
    np.testing.assert_allclose(target.u, found.x, atol=1e-4)


def test_a_setpoint_out_of_reach_gives_the_nearest_outputs() -> None:
    """Level 1 low and level 2 high: pump 1 would have to suck."""
    target = TargetSelector(TANKS, TANK_PROBLEM, LOWER, np.eye(2)).target([0.0, 0.0], [3.0, 19.0])
    np.testing.assert_allclose(TANKS.step(target.x, target.u), target.x, atol=1e-8)
    np.testing.assert_allclose(target.x[:2] - [3.0, 19.0], target.offset, atol=1e-9)
    low, high = np.array([0.0, 0.0]), np.array([10.0, 10.0])
    assert (target.u >= low).all() and (target.u <= high).all()
    grid = [(a, b) for a in np.linspace(0, 2, 41) for b in np.linspace(4, 7, 121)]
    distances = [np.hypot(*(equilibrium_levels(np.array(v))[:2] - [3.0, 19.0])) for v in grid]
    assert np.hypot(*target.offset) == pytest.approx(min(distances), abs=2e-3)


def test_refusals() -> None:
    problem = regulation(INTEGRATOR, Q, R, horizon=5)
    with pytest.raises(UserError, match="at most 1 rows"):
        both = DisturbanceModel(np.eye(2), np.eye(2), np.zeros((2, 2)))
        TargetSelector(INTEGRATOR, problem, both, np.eye(2))
    with pytest.raises(UserError, match="H needs 1 columns"):
        TargetSelector(INTEGRATOR, problem, FORCE, np.eye(2)[:1])
    with pytest.raises(UserError, match="same numbers"):
        TargetSelector(TANKS, TANK_PROBLEM, FORCE, np.eye(1))
    selector = TargetSelector(INTEGRATOR, problem, FORCE, np.eye(1))
    with pytest.raises(UserError, match=r"set-point needs shape \(1,\)"):
        selector.target([0.0], [1.0, 2.0])
    with pytest.raises(UserError, match="disturbance needs shape"):
        selector.target([np.nan], [1.0])
    weak = replace(problem, u_low=np.array([-0.1]), u_high=np.array([0.1]))
    with pytest.raises(UserError, match="no rest within its limits"):  # a force that the input cannot cancel
        TargetSelector(INTEGRATOR, weak, FORCE, np.eye(1)).target([0.5], [0.0])
