"""Quadruple tank: closed-form rest levels, mass balance, published time constants, empty tanks."""

import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  registers
from lipctrl.envs import quad_tank
from lipctrl.envs.base import PlantEnv


def torricelli(v: tuple[float, float]) -> np.ndarray:
    """Rest levels of the exact square-root law, written out by hand."""
    upper3 = ((1 - 0.60) * 3.35 * v[1] / 0.071) ** 2 / (2 * 981)
    upper4 = ((1 - 0.70) * 3.33 * v[0] / 0.057) ** 2 / (2 * 981)
    lower1 = ((0.70 * 3.33 * v[0] + (1 - 0.60) * 3.35 * v[1]) / 0.071) ** 2 / (2 * 981)
    lower2 = ((0.60 * 3.35 * v[1] + (1 - 0.70) * 3.33 * v[0]) / 0.057) ** 2 / (2 * 981)
    return np.array([lower1, lower2, upper3, upper4])


@pytest.mark.parametrize("v", [(3.0, 3.0), (2.5, 3.5), (4.0, 3.0)])
def test_rest_levels(v: tuple[float, float]) -> None:
    plant = quad_tank.quad_tank_plant()
    levels = quad_tank.equilibrium_levels(np.array(v))
    np.testing.assert_allclose(levels, torricelli(v), rtol=6e-5)  # the smoothing of the root
    np.testing.assert_allclose(plant.step(levels, v), levels, rtol=1e-12)
    # from elsewhere the tanks settle there
    h = np.array([5.0, 5.0, 1.0, 1.0])
    for _ in range(400):
        h = plant.step(h, v)
    np.testing.assert_allclose(h, levels, rtol=1e-6)


def test_operating_point_of_the_paper() -> None:
    """Johansson measured (12.4, 12.7, 1.8, 1.4) cm on his apparatus; the model predicts within 0.2 cm."""
    np.testing.assert_allclose(quad_tank.quad_tank_plant().equilibrium[0], [12.4, 12.7, 1.8, 1.4], atol=0.2)


def test_linearisation_has_the_time_constants_of_the_paper() -> None:
    """T_i = A_i / a_i sqrt(2 h_i / g): 62, 90, 23 and 30 s at the measured levels."""
    plant = quad_tank.quad_tank_plant()
    assert plant.ode is not None
    levels = np.array([12.4, 12.7, 1.8, 1.4])
    jacobian = plant.ode.factory("jacobian", ["x", "u", "w"], ["jac:dx:x", "jac:dx:u"])
    A, B = (np.asarray(part) for part in jacobian(levels, [3.0, 3.0], [0.0, 0.0]))
    np.testing.assert_allclose(-1 / np.diag(A), [62, 90, 23, 30], atol=0.9)
    assert A[0, 2] == pytest.approx(-A[2, 2] * 28 / 28) and A[1, 3] == pytest.approx(-A[3, 3] * 32 / 32)
    np.testing.assert_allclose(
        B, [[0.7 * 3.33 / 28, 0], [0, 0.6 * 3.35 / 32], [0, 0.4 * 3.35 / 28], [0.3 * 3.33 / 32, 0]], rtol=1e-12
    )


def test_water_is_conserved() -> None:
    """d/dt of the stored volume = pumped in + disturbance - outflow of the two lower tanks."""
    plant = quad_tank.quad_tank_plant()
    assert plant.ode is not None
    rng = np.random.default_rng(0)
    for _ in range(20):
        h, v, w = rng.uniform(1, 18, 4), rng.uniform(0, 10, 2), rng.uniform(-1, 1, 2)
        stored = quad_tank.AREAS @ np.asarray(plant.ode(h, v, w)).ravel()
        drained = 0.071 * np.sqrt(2 * 981 * h[0]) + 0.057 * np.sqrt(2 * 981 * h[1])
        assert stored == pytest.approx(3.33 * v[0] + 3.35 * v[1] + w.sum() - drained, rel=1e-3, abs=1e-3)


def test_an_emptying_tank_follows_torricelli_and_stops_at_nothing() -> None:
    """sqrt(h) falls linearly: sqrt(h(t)) = sqrt(h0) - a sqrt(g / 2) t / A; then the tank stays empty."""
    plant = quad_tank.quad_tank_plant()
    h = np.array([10.0, 10.0, 4.0, 4.0])
    for _ in range(3):
        h = plant.step(h, [0.0, 0.0])
    expected = (2.0 - np.array([0.071 / 28, 0.057 / 32]) * np.sqrt(981 / 2) * 15) ** 2
    np.testing.assert_allclose(h[2:], expected, rtol=1e-3)
    for _ in range(100):
        h = plant.step(h, [0.0, 0.0], [-1.0, -1.0])
        assert np.all(h >= 0)
    np.testing.assert_allclose(h, 0.0, atol=1e-3)


def test_overflow_fails() -> None:
    env = gymnasium.make("lipctrl/QuadTank-v0").unwrapped
    assert isinstance(env, PlantEnv)
    env.reset(options={"state": [19.9, 10.0, 2.0, 2.0]})
    assert env.step([10.0, 10.0])[2] is True
    env.reset(options={"state": [10.0, 10.0, 0.01, 0.01]})
    assert env.step([0.0, 0.0])[2] is False  # an empty upper tank is allowed
