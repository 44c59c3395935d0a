"""Reactor: steady states, eigenvalues, Lyapunov region and integration error, from published and closed-form values."""

import itertools

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import lipctrl.envs  # noqa: F401  registers
from lipctrl.envs import cstr
from lipctrl.envs.base import PlantEnv
from lipctrl.files import UserError

Array = NDArray[np.float64]
VERTICES = np.array(list(itertools.product((0.5, 7.5), (-5e5, 5e5))))


def balances(x: Array, feed: float, heat: float, inlet: float = 300.0, flow: float = 5.0) -> Array:
    """The two balances, written out with the published constants and independent of the plant."""
    reaction = 8.46e6 * np.exp(-5e4 / (8.314 * x[1])) * x[0] ** 2
    return np.array([flow * (feed - x[0]) - reaction, flow * (inlet - x[1]) + 1.15e4 / 231.0 * reaction + heat / 231.0])


def test_steady_states() -> None:
    found = cstr.steady_states()
    np.testing.assert_allclose(found[0], [3.9364, 303.166], rtol=1e-5)
    np.testing.assert_allclose(found[1], [1.95368832, 401.87265959], rtol=3e-9)
    np.testing.assert_allclose(found[2], [1.2231, 438.246], rtol=5e-5)
    for x in found:
        np.testing.assert_allclose(balances(x, 4.0, 0.0), 0.0, atol=1e-8)
    # strong cooling leaves the cold state only, and its balances vanish too
    cold = cstr.steady_states(feed=2.0, heat=-1e4)
    assert len(cold) == 1
    np.testing.assert_allclose(balances(cold[0], 2.0, -1e4), 0.0, atol=1e-8)
    with pytest.raises(UserError, match="feed concentration must be positive"):
        cstr.steady_states(feed=0.0)


def test_linearisation_at_the_three_steady_states() -> None:
    plant = cstr.cstr_plant()
    assert plant.ode is not None
    jacobian = plant.ode.factory("jacobian", ["x", "u", "w"], ["jac:dx:x", "jac:dx:u"])
    A, B = (np.asarray(part) for part in jacobian(*plant.equilibrium, np.zeros(2)))
    np.testing.assert_allclose(A, [[-15.474, -0.38100], [521.44, 13.968]], rtol=4e-5)
    np.testing.assert_allclose(B, np.diag([5.0, 4.329e-3]), rtol=1e-4)
    np.testing.assert_allclose(sorted(np.linalg.eigvals(A)), [-5.0, 3.4934], rtol=2e-5)
    for x in (cstr.steady_states()[0], cstr.steady_states()[2]):
        stable = np.asarray(jacobian(x, [4.0, 0.0], np.zeros(2))[0])
        assert np.max(np.linalg.eigvals(stable).real) < 0
    # the sampled linearisation is the matrix exponential
    np.testing.assert_allclose(plant.linearise(*plant.equilibrium)[0], expm(A * 0.005), rtol=1e-8)


def test_sampling_agrees_with_an_independent_integrator() -> None:
    plant = cstr.cstr_plant()
    rng = np.random.default_rng(0)
    env = gymnasium.make("lipctrl/Cstr-v0").unwrapped
    assert isinstance(env, PlantEnv)
    for seed in range(10):
        env.reset(seed=seed)
        u, w = rng.uniform((0.5, -5e5), (7.5, 5e5)), rng.uniform((-10.0, -0.5), (10.0, 0.5))

        def motion(_: float, s: Array, u: Array = u, w: Array = w) -> Array:
            return balances(s, u[0], u[1], 300.0 + w[0], 5.0 + w[1])

        reference = solve_ivp(motion, (0, 0.005), env.state, rtol=1e-11, atol=1e-11).y[:, -1]
        np.testing.assert_allclose(plant.step(env.state, u, w), reference, rtol=1e-8)


def test_lyapunov_function_and_its_region() -> None:
    steady = cstr.cstr_plant().equilibrium[0]
    deviations = np.array([(1.5, -70.0), (-1.5, 70.0), (-1.25, 50.0), (1.25, -50.0)])
    np.testing.assert_allclose(cstr.lyapunov(steady + deviations, steady), [313.0, 313.0, 206.25, 206.25], rtol=1e-9)
    assert np.linalg.det(cstr.P) == pytest.approx(67.2)
    np.testing.assert_allclose(np.linalg.eigvalsh(cstr.P), [0.0634, 1060.5], rtol=1e-3)
    box = np.sqrt(cstr.LEVEL * np.diag(np.linalg.inv(cstr.P)))
    np.testing.assert_allclose(box, [1.697, 76.6], rtol=1e-3)
    # published grid of open-loop data: 100 x 100 in T [300, 600] and C_A [0, 6]
    T, c = np.meshgrid(np.linspace(300, 600, 100), np.linspace(0, 6, 100))
    nominal = np.array([1.9537, 401.8727])
    assert np.sum(cstr.lyapunov(np.stack([c, T], axis=-1), nominal) < 372.0) == 772


@pytest.mark.parametrize(("level", "worst"), [(372.0, -7512.0), (700.0, -11602.0), (900.0, -5689.0), (1200.0, 64790.0)])
def test_the_best_vertex_input_decreases_v(level: float, worst: float) -> None:
    """max over the level set of min over inputs of dV/dt; the minimum of an affine function is at a vertex."""
    plant = cstr.cstr_plant()
    assert plant.ode is not None
    steady = plant.equilibrium[0]
    angle = np.linspace(0, 2 * np.pi, 4001)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    deviation = (np.sqrt(level) * np.linalg.inv(np.linalg.cholesky(cstr.P).T) @ circle).T
    rates = np.stack(
        [np.sum(2 * deviation @ cstr.P * _rates(plant.ode, deviation + steady, vertex), axis=1) for vertex in VERTICES]
    )
    assert rates.min(axis=0).max() == pytest.approx(worst, rel=2e-3)


def _rates(ode: object, x: Array, u: Array) -> Array:
    columns = np.repeat(u[:, None], len(x), axis=1)
    return np.asarray(ode(x.T, columns, np.zeros((2, len(x))))).T  # type: ignore[operator]


def test_start_states_fill_the_region_evenly() -> None:
    env = gymnasium.make("lipctrl/Cstr-v0").unwrapped
    assert isinstance(env, PlantEnv)
    steady = env.plant.equilibrium[0]
    env.reset(seed=0)
    starts = np.array([env.reset()[0] for _ in range(2000)])
    values = cstr.lyapunov(starts, steady)
    assert values.max() <= cstr.LEVEL
    # uniform in an ellipse: V / LEVEL is uniform in [0, 1], and the mean is the centre
    assert abs(np.mean(values) / cstr.LEVEL - 0.5) < 4 * np.sqrt(1 / 12 / 2000)
    np.testing.assert_allclose(starts.mean(axis=0), steady, atol=4 * starts.std(axis=0).max() / np.sqrt(2000))


def test_without_control_the_reactor_leaves_its_steady_state() -> None:
    plant = cstr.cstr_plant()
    steady, u = plant.equilibrium
    for shift, end in ((0.1, 2), (-0.1, 0)):
        x = steady + [0.0, shift]
        for _ in range(1000):
            x = plant.step(x, u)
        np.testing.assert_allclose(x, cstr.steady_states()[end], rtol=1e-3)
