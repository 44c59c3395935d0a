"""Pendulums: the exactly linear loop, energy, and torque limits."""

import gymnasium
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import lipctrl.envs  # noqa: F401  registers
from lipctrl.envs import pendulum
from lipctrl.envs.base import PlantEnv

CLOSED = np.array([[1.0, 0.05], [-0.5, 0.7]])


def test_the_expert_makes_the_loop_exactly_linear() -> None:
    plant = pendulum.pendulum_plant()
    x = np.random.default_rng(0).uniform((-1.0, -3.0), (1.0, 3.0), size=(200, 2))
    u = pendulum.linearising_expert(x)
    assert u.shape == (200, 1)
    np.testing.assert_allclose(plant.step(x, u), x @ CLOSED.T, atol=1e-14)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(CLOSED)), 0.85146932, rtol=1e-7)
    np.testing.assert_array_equal(pendulum.linearising_expert(x[0]), u[0])


def test_constants_of_the_balancing_problem() -> None:
    plant = pendulum.pendulum_plant()
    slope = pendulum.GRAVITY + pendulum.GAIN[0]
    constant = np.hypot(slope, pendulum.GAIN[1])
    assert constant == pytest.approx(20.69869803, rel=1e-9)
    A, B, E = plant.linearise([0.0, 0.0], [0.0])
    assert np.linalg.norm(A, 2) == pytest.approx(1.29421780, rel=1e-7)  # largest where cos x1 = 1
    np.testing.assert_allclose(B, [[0.0], [0.05]], rtol=1e-15)
    np.testing.assert_allclose(E, B, rtol=1e-15)
    gain, power = 0.0, np.eye(2)
    for _ in range(400):
        gain, power = gain + float(np.linalg.norm(power @ B)), CLOSED @ power
    assert gain == pytest.approx(0.29582813, rel=1e-7)
    grid = np.exp(1j * np.linspace(0, np.pi, 200_001))
    adjugate = np.array([np.full_like(grid, 0.05), grid - 1.0]) * 0.05  # (zI - A_cl)^-1 B times the determinant
    peak = np.max(np.linalg.norm(adjugate, axis=0) / np.abs((grid - 1.0) * (grid - 0.7) + 0.025))
    assert peak == pytest.approx(0.19069252, rel=1e-7)


def test_the_experts_lipschitz_constant_is_attained_at_upright() -> None:
    x = np.random.default_rng(1).uniform((-1.0, -3.0), (1.0, 3.0), size=(2000, 2))
    y = x + np.random.default_rng(2).normal(size=x.shape)
    slopes = np.abs(pendulum.linearising_expert(x) - pendulum.linearising_expert(y))[:, 0] / np.linalg.norm(
        x - y, axis=1
    )
    constant = 20.69869803
    assert slopes.max() <= constant
    direction = np.array([pendulum.GRAVITY + 10.0, 6.0]) / constant * 1e-5
    attained = abs(pendulum.linearising_expert(direction) - pendulum.linearising_expert(-direction))[0] / 2e-5
    assert attained == pytest.approx(constant, rel=1e-8)


def test_the_expert_never_fails_and_is_never_clipped() -> None:
    env = gymnasium.make("lipctrl/Pendulum-v0").unwrapped
    assert isinstance(env, PlantEnv)
    # the loop is linear, so the corners of the start box are the worst cases
    for corner in [(a, b) for a in (-1.0, 1.0) for b in (-3.0, 3.0)]:
        x, _ = env.reset(options={"state": corner})
        for _ in range(100):
            u = pendulum.linearising_expert(x)
            assert u in env.action_space
            x, _, failed, *_ = env.step(u)
            assert not failed
        assert np.max(np.abs(x)) < 1e-5


def test_the_swing_up_rod_conserves_energy_without_torque() -> None:
    plant = pendulum.swing_up_plant()
    x = np.array([0.5, 2.0])
    start = pendulum.energy(x)
    for _ in range(200):
        x = plant.step(x, [0.0])
        assert pendulum.energy(x) == pytest.approx(start, abs=1e-6)


def test_torque_does_the_work_that_the_energy_shows() -> None:
    """Over a step with constant torque, the gain of energy is torque times angle; damping only takes."""
    x = np.array([2.0, -1.0])
    for torque in (-2.0, 1.5):
        y = pendulum.swing_up_plant().step(x, [torque])
        assert pendulum.energy(y) - pendulum.energy(x) == pytest.approx(torque * (y[0] - x[0]), abs=1e-8)
        damped = pendulum.swing_up_plant(damping=0.3).step(x, [torque])
        assert pendulum.energy(damped) - pendulum.energy(x) < torque * (damped[0] - x[0]) - 1e-3


def test_swing_up_agrees_with_an_independent_integrator() -> None:
    plant = pendulum.swing_up_plant(damping=0.1)

    def motion(_: float, s: np.ndarray) -> list[float]:
        return [s[1], 3 * 9.81 / 2 * np.sin(s[0]) + 3 * (1.3 + 0.2 - 0.1 * s[1])]

    reference = solve_ivp(motion, (0, 0.05), [2.5, -3.0], rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(plant.step([2.5, -3.0], [1.3], [0.2]), reference, rtol=1e-7)


def test_constant_torque_cannot_lift_the_rod() -> None:
    """From hanging at rest, full torque swings to less than horizontal: the task needs pumping."""
    plant = pendulum.swing_up_plant()
    x, angles = np.array([np.pi, 0.0]), []
    for _ in range(100):
        x = plant.step(x, [2.0])
        angles.append(x[0])
    assert max(angles) < 3 * np.pi / 2
    # energy balance at the turning point: 2 swing = (m g l / 2)(1 - cos swing)
    swing = max(angles) - np.pi
    assert 2.0 * swing == pytest.approx(9.81 / 2 * (1 - np.cos(swing)), abs=0.02)


def test_pumping_energy_solves_the_swing_up() -> None:
    """Push with the motion until the energy is that of upright, then a linear regulator: within the time limit."""
    env = gymnasium.make("lipctrl/PendulumSwingUp-v0")
    upright = pendulum.energy(np.zeros(2))
    for start in ([np.pi, 0.0], [np.pi, 0.5], [2.0, 0.0]):
        observation, _ = env.reset(options={"state": start})
        truncated = False
        while not truncated:
            x = pendulum.state_of(observation)
            near = abs(x[0]) < 0.3 and abs(x[1]) < 1.5
            lift = np.sign(x[1] or 1.0) * np.sign(upright - pendulum.energy(x))
            torque = -12.0 * x[0] - 3.0 * x[1] if near else 2.0 * lift
            observation, _, terminated, truncated, _ = env.step([torque])
            assert not terminated
        np.testing.assert_allclose(observation, [1.0, 0.0, 0.0], atol=1e-3)


def test_swing_up_observation_and_its_inverse() -> None:
    env = gymnasium.make("lipctrl/PendulumSwingUp-v0", damping=0.2).unwrapped
    assert isinstance(env, PlantEnv)
    observation, _ = env.reset(options={"state": (2 * np.pi + 0.3, 1.5)})
    np.testing.assert_allclose(observation, [np.cos(0.3), np.sin(0.3), 1.5], rtol=1e-14)
    np.testing.assert_allclose(pendulum.state_of(observation), [0.3, 1.5], rtol=1e-14)
    # the cost wraps the angle
    assert -env.step([1.0])[1] == pytest.approx(0.3**2 + 0.1 * 1.5**2 + 0.001)
    A = env.plant.linearise([0.0, 0.0], [0.0])[0]
    assert np.linalg.det(A) == pytest.approx(np.exp(-0.2 / pendulum.INERTIA * 0.05), rel=1e-6)  # Liouville
