"""Kinematic bicycle: turning radius, circle on a straight road, rest on a curve."""

import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  registers
from lipctrl.envs import vehicle
from lipctrl.envs.base import PlantEnv
from lipctrl.files import UserError


def test_constant_steering_on_a_straight_road_drives_a_circle() -> None:
    """Radius L / tan(delta): after turning by psi the offset is radius (1 - cos psi)."""
    plant = vehicle.vehicle_plant(curvature=0.0)
    delta = 0.1
    radius = 2.7 / np.tan(delta)
    x = np.array([0.0, 0.0, 8.0])
    for step in range(1, 40):
        x = plant.step(x, [delta, 0.0])
        psi = 8.0 * 0.05 * step / radius
        np.testing.assert_allclose(x, [radius * (1 - np.cos(psi)), psi, 8.0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("curvature", [1 / 40, -1 / 30, 0.0, 0.2])
def test_the_middle_of_a_curved_lane_is_an_equilibrium(curvature: float) -> None:
    plant = vehicle.vehicle_plant(curvature=curvature)
    x, u = plant.equilibrium
    np.testing.assert_allclose(plant.step(x, u), x, atol=1e-14)
    assert np.tan(u[0]) / 2.7 == pytest.approx(curvature)


def test_any_concentric_circle_is_steady() -> None:
    """At offset e on a road of curvature k the circle of radius 1 / k - e needs tan(delta) = L k / (1 - k e)."""
    plant = vehicle.vehicle_plant(curvature=1 / 40)
    offset = 1.2
    steering = np.arctan(2.7 / (40 - offset))
    x = np.array([offset, 0.0, 9.0])
    np.testing.assert_allclose(plant.step(x, [steering, 0.0]), x, atol=1e-13)


def test_acceleration_drift_and_curvature_disturbance() -> None:
    plant = vehicle.vehicle_plant(curvature=0.0)
    x = plant.step([0.0, 0.0, 10.0], [0.0, 2.0], [0.4, 0.0])
    np.testing.assert_allclose(x, [0.02, 0.0, 10.1], rtol=1e-12, atol=1e-15)
    bent = plant.step([0.3, 0.1, 10.0], [0.05, 1.0], [0.0, 0.01])
    np.testing.assert_allclose(bent, vehicle.vehicle_plant(curvature=0.01).step([0.3, 0.1, 10.0], [0.05, 1.0]))


def test_leaving_the_lane_fails() -> None:
    env = gymnasium.make("lipctrl/Vehicle-v0", curvature=0.0).unwrapped
    assert isinstance(env, PlantEnv)
    assert env.plant.equilibrium[1][0] == 0.0
    env.reset(options={"state": [1.7, 0.3, 10.0]})
    _, reward, failed, truncated, info = env.step([0.0, 0.0])
    assert failed and not truncated and info["state"][0] > 1.75
    assert reward == pytest.approx(-(1.7**2 + 0.3**2) - 1000.0)


def test_an_undrivable_road_is_refused() -> None:
    with pytest.raises(UserError, match="curvature"):
        vehicle.vehicle_plant(curvature=0.3)
