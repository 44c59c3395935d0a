"""Linear tasks against the Riccati equation, published gains and exact stability limits."""

import gymnasium
import numpy as np
import pytest
from scipy.linalg import solve_discrete_are, solve_discrete_lyapunov

import lipctrl.envs  # noqa: F401  registers
from lipctrl.envs.base import Array, PlantEnv, Quadratic
from lipctrl.envs.linear import LinearEnv, double_integrator, linear_plant, sampled_double_integrator
from lipctrl.files import UserError
from lipctrl.plant import Plant


def riccati(plant: Plant, Q: Array, R: Array) -> tuple[Array, Array, Array, Array]:
    """(K, P, S, A_cl) from the linearisation of the plant at its equilibrium."""
    A, B, _ = plant.linearise(*plant.equilibrium)
    P = solve_discrete_are(A, B, Q, R)
    S = R + B.T @ P @ B
    K = np.linalg.solve(S, B.T @ P @ A)
    return K, P, S, A - B @ K


def test_double_integrator_riccati_values() -> None:
    K, P, S, closed = riccati(*double_integrator())
    np.testing.assert_allclose(K, [[0.57917087, 1.54562698]], rtol=1e-7)
    np.testing.assert_allclose(P, [[2.66868908, 1.72660617], [1.72660617, 2.88116887]], rtol=1e-7)
    np.testing.assert_allclose(S, [[2.98116887]], rtol=1e-7)
    np.testing.assert_allclose(sorted(np.linalg.eigvals(closed)), [0.09276248, 0.36161054], rtol=1e-6)
    norms = [np.linalg.norm(K, order) for order in (1, 2, np.inf)]
    np.testing.assert_allclose(norms, [1.54562698, 1.65057616, 2.12479785], rtol=1e-7)
    A, _, E = double_integrator()[0].linearise([0, 0], [0])
    np.testing.assert_allclose([np.linalg.norm(A, 2), np.linalg.norm(closed, 2)], [1.61803399, 1.62256597], rtol=1e-7)
    np.testing.assert_array_equal(E, np.eye(2))


def test_double_integrator_lyapunov_values() -> None:
    plant, Q, R = double_integrator()
    K, P, _, closed = riccati(plant, Q, R)
    B = plant.linearise(*plant.equilibrium)[1]
    root = np.linalg.cholesky(P).T  # W(x) = norm(root x)
    rate = np.linalg.norm(root @ closed @ np.linalg.inv(root), 2)
    b, c = np.linalg.norm(root @ B, 2), np.linalg.norm(np.linalg.inv(root), 2)
    np.testing.assert_allclose([rate, b, c], [0.85398918, 1.69740062, 0.97820513], rtol=1e-7)
    np.testing.assert_allclose((1 - rate) / (b * c), 0.08793682, rtol=1e-6)
    gain, power = 0.0, np.eye(2)
    for _ in range(200):
        gain, power = gain + float(np.linalg.norm(power @ B)), closed @ power
    np.testing.assert_allclose(gain, 2.99616132, rtol=1e-7)
    grid = np.exp(1j * np.linspace(0, np.pi, 2001))
    peak = max(np.linalg.norm(np.linalg.solve(z * np.eye(2) - closed, B)) for z in grid)
    np.testing.assert_allclose([peak, 1 / K[0, 0]], [1.72660617, 1.72660617], rtol=1e-7)
    np.testing.assert_allclose(
        solve_discrete_lyapunov(closed.T, np.eye(2)),
        [[2.62203576, 1.62542961], [1.62542961, 2.63178473]],
        rtol=1e-7,
    )
    # the stability limit of the gain error is exact to seven digits
    for error, stable in ((0.5791708, True), (0.5791709, False)):
        radius = max(abs(np.linalg.eigvals(closed + B @ [[error, 0.0]])))
        assert bool(radius < 1) is stable


def test_sampled_double_integrator_riccati_values() -> None:
    K, P, S, closed = riccati(*sampled_double_integrator())
    np.testing.assert_allclose(K, [[2.5857, 3.4434]], atol=5e-5)
    np.testing.assert_allclose(P, [[13.3172, 3.2016], [3.2016, 4.6035]], atol=5e-5)
    np.testing.assert_allclose(S, [[0.14957]], atol=5e-6)
    np.testing.assert_allclose(max(abs(np.linalg.eigvals(closed))), 0.8992, atol=5e-5)
    plant = gymnasium.make("lipctrl/Linear-v0").unwrapped.plant  # type: ignore[attr-defined]
    np.testing.assert_array_equal(
        plant.linearise([0, 0], [0])[0], sampled_double_integrator()[0].linearise([0, 0], [0])[0]
    )


@pytest.mark.parametrize("name", ["lipctrl/DoubleIntegrator-v0", "lipctrl/Linear-v0"])
def test_the_optimal_gain_earns_the_optimal_cost(name: str) -> None:
    env = gymnasium.make(name).unwrapped
    assert isinstance(env, PlantEnv) and env.Q is not None and env.R is not None
    K, P, _, _ = riccati(env.plant, env.Q, env.R)
    x, _ = env.reset(options={"state": (1.0, 0.0)})
    total = 0.0
    for _ in range(300):
        x, reward, *_ = env.step(-K @ x)
        total += reward
    np.testing.assert_allclose(-total, P[0, 0], rtol=1e-9)


def test_regret_equals_the_sum_of_squared_gain_errors() -> None:
    """The completion-of-squares identity holds for any inputs, so it checks dynamics and cost together."""
    env = gymnasium.make("lipctrl/DoubleIntegrator-v0").unwrapped
    assert isinstance(env, PlantEnv) and env.Q is not None and env.R is not None
    K, P, S, _ = riccati(env.plant, env.Q, env.R)
    rng = np.random.default_rng(0)
    x0 = x = env.reset(seed=4)[0]
    cost = squares = 0.0
    for _ in range(30):
        u = -K @ x + rng.normal(size=1)
        squares += float((u + K @ x) @ S @ (u + K @ x))
        x, reward, *_ = env.step(u)
        cost -= reward
    assert abs(cost + x @ P @ x - x0 @ P @ x0 - squares) < 1e-10


def test_fixed_start() -> None:
    env = gymnasium.make("lipctrl/DoubleIntegrator-v0", fixed_start=True)
    for seed in range(3):
        np.testing.assert_array_equal(env.reset(seed=seed)[0], [1.0, 0.0])
    free = gymnasium.make("lipctrl/DoubleIntegrator-v0")
    assert not np.array_equal(free.reset(seed=0)[0], free.reset(seed=1)[0])


def test_arbitrary_matrices() -> None:
    A = [[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.1, 0.0, 0.7]]
    B = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    env = LinearEnv(
        A=A,
        B=B,
        Q=np.diag([1.0, 2.0, 3.0]),
        R=np.diag([0.1, 0.2]),
        dt=0.25,
        state_names=("a [m]", "b [m]", "c [m]"),
        input_names=("p [N]", "q [N]"),
        state_limit=10.0,
        input_limit=2.0,
    )
    x, u = np.array([1.0, 2.0, 3.0]), np.array([0.5, -1.0])
    env.reset(options={"state": x})
    following, reward, *_ = env.step(u)
    np.testing.assert_allclose(following, np.array(A) @ x + np.array(B) @ u, rtol=1e-15)
    assert reward == pytest.approx(-(1 + 8 + 27 + 0.025 + 0.2))
    assert env.plant.dt == 0.25 and env.plant.state.names == ("a [m]", "b [m]", "c [m]")
    assert env.plant.state.high == (10.0,) * 3 and env.plant.input.low == (-2.0,) * 2
    assert env.plant.input.names == ("p [N]", "q [N]")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([[1.0, 0.0]], [1.0]),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0]),
        ([[np.nan]], [1.0]),
        ([[1.0]], [np.inf]),
        (3.0, [1.0]),
    ],
)
def test_bad_matrices_are_refused(a: object, b: object) -> None:
    with pytest.raises(UserError, match="A needs shape"):
        linear_plant(a, b)  # type: ignore[arg-type]


def test_bad_weights_are_refused() -> None:
    with pytest.raises(UserError, match="weight Q needs shape"):
        LinearEnv(Q=np.eye(3))
    with pytest.raises(UserError, match="weight R needs shape"):
        Quadratic(np.eye(2), np.eye(2), np.zeros(2), np.zeros(1))
