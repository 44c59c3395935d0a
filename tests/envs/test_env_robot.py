"""Differential drive: straight line, turn in place, circle in closed form, obstacle."""

import casadi as ca
import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  registers
from lipctrl.envs import robot
from lipctrl.envs.base import PlantEnv


def test_equal_wheels_drive_straight_and_opposite_wheels_turn_in_place() -> None:
    plant = robot.robot_plant()
    start = np.array([0.5, -0.2, 0.7])
    straight = plant.step(start, [10.0, 10.0])  # 0.5 m/s for 0.1 s
    np.testing.assert_allclose(straight, start + [0.05 * np.cos(0.7), 0.05 * np.sin(0.7), 0.0], rtol=1e-14)
    turned = plant.step(start, [-6.0, 6.0])  # 2 rad/s
    np.testing.assert_allclose(turned, start + [0.0, 0.0, 0.2], atol=1e-15)


def test_unequal_wheels_drive_a_circle() -> None:
    """Radius (b / 2)(right + left) / (right - left); centre to the left of the heading."""
    plant = robot.robot_plant()
    left, right = 8.0, 12.0
    radius = 0.15 * (right + left) / (right - left)
    x = np.array([0.3, 0.4, 0.2])
    centre = x[:2] + radius * np.array([-np.sin(0.2), np.cos(0.2)])
    for step in range(1, 60):
        x = plant.step(x, [left, right])
        heading = 0.2 + 0.05 * (right - left) / 0.3 * 0.1 * step
        assert x[2] == pytest.approx(heading, rel=1e-12)
        exact = centre + radius * np.array([np.sin(heading), -np.cos(heading)])
        np.testing.assert_allclose(x[:2], exact, atol=1e-7)


def test_drift_moves_the_robot() -> None:
    x = robot.robot_plant().step([0.0, 0.0, 1.0], [0.0, 0.0], [0.1, -0.05])
    np.testing.assert_allclose(x, [0.01, -0.005, 1.0], rtol=1e-13)


def test_the_obstacle_ends_the_episode_and_the_goal_does_not() -> None:
    env = gymnasium.make("lipctrl/Robot-v0").unwrapped
    assert isinstance(env, PlantEnv)
    env.reset(options={"state": [-1.45, 0.0, 0.0]})
    _, reward, failed, truncated, info = env.step([20.0, 20.0])  # 0.1 m ahead: inside
    assert failed and not truncated and reward == pytest.approx(-(1.45**2 + 0.4) - 1000.0)
    assert robot.obstacle_margin(info["state"]) == pytest.approx(0.35**2 - 0.16)
    env.reset(options={"state": [-1.45, 0.0, np.pi]})
    assert env.step([20.0, 20.0])[2] is False  # the same distance, away from it
    env.reset(options={"state": [0.0, 0.0, 0.0]})
    assert env.step([0.0, 0.0])[2] is False
    env.reset(options={"state": [3.95, 0.0, 0.0]})
    assert env.step([20.0, 20.0])[2] is True  # out of the arena


def test_the_margin_is_one_function_for_numbers_and_symbols() -> None:
    x = ca.SX.sym("x", 3)
    margin = ca.Function("margin", [x], [robot.obstacle_margin(x)])
    for point in ([-1.0, 0.0, 0.0], [-0.6, 0.0, 0.0], [2.0, 1.0, 0.0]):
        assert float(margin(point)) == pytest.approx(robot.obstacle_margin(point), abs=1e-15)
    assert robot.obstacle_margin([-0.6, 0.0, 0.0]) == pytest.approx(0.0, abs=1e-15)


def test_observation_and_its_inverse() -> None:
    x = np.array([1.0, 2.0, 2.5])
    np.testing.assert_allclose(robot.observe(x), [1.0, 2.0, np.cos(2.5), np.sin(2.5)], rtol=1e-15)
    np.testing.assert_allclose(robot.state_of(robot.observe(x)), x, rtol=1e-14)


@pytest.mark.parametrize(("state", "violation"), [((-1.2, 0.0), 0.75), ((-1.0, 0.0), 1.0), ((-0.5, 0.0), 0.0)])
def test_a_collision_is_counted_in_the_squared_radius_of_the_obstacle(
    state: tuple[float, float], violation: float
) -> None:
    env = gymnasium.make("lipctrl/Robot-v0")
    env.reset(options={"state": np.array([*state, 0.0])})
    _, _, failed, _, info = env.step(np.zeros(2))
    assert info["violation"] == pytest.approx(violation, abs=1e-12) and failed == (violation > 0)
