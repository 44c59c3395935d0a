"""The disturbance observer: Kalman gains in closed form, detectability, convergence on pushed and wrong plants."""

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

from lipctrl.envs.linear import double_integrator, linear_plant
from lipctrl.envs.quad_tank import quad_tank_plant
from lipctrl.files import UserError
from lipctrl.mpc.observer import DisturbanceModel, Estimate, Observer, kalman_observer

INTEGRATOR, _, _ = double_integrator()
TANKS = quad_tank_plant()
# the two lower levels are measured; the disturbances are flows into the upper tanks, as levels per step
LOWER = np.eye(2, 4)
TANK_MODEL = DisturbanceModel(LOWER, np.vstack([np.zeros((2, 2)), np.eye(2)]), np.zeros((2, 2)))
POSITION = DisturbanceModel(np.array([[1.0, 0.0]]), np.array([[0.0], [1.0]]), np.zeros((1, 1)))


def test_kalman_gain_of_two_random_walks_is_the_scalar_closed_form() -> None:
    """y = x + d + noise with a disturbance in the state alone: x is known exactly if nothing else moves."""
    still = linear_plant([[0.0]], [1.0])
    model = DisturbanceModel(np.eye(1), np.zeros((1, 1)), np.eye(1))
    q, r = 0.3, 2.0
    observer = kalman_observer(still, model, process=[[0.0]], disturbance=[[q]], measurement=[[r]])
    # a random walk of step q seen with noise r: P^2 - q P - q r = 0
    predicted = (q + np.sqrt(q**2 + 4 * q * r)) / 2
    np.testing.assert_allclose(observer.gain.ravel(), [0.0, predicted / (predicted + r)], atol=1e-12)


@pytest.mark.parametrize(("plant", "model"), [(INTEGRATOR, POSITION), (TANKS, TANK_MODEL)])
def test_kalman_gain_is_the_limit_of_the_filter(plant, model) -> None:  # type: ignore[no-untyped-def]
    p, n = model.C.shape
    rng = np.random.default_rng(0)
    root = rng.normal(size=(n, n))
    W, D, V = root @ root.T, 0.5 * np.eye(p), 0.1 * np.eye(p)
    observer = kalman_observer(plant, model, process=W, disturbance=D, measurement=V)
    A = plant.linearise(*plant.equilibrium)[0]
    system = np.block([[A, model.Bd], [np.zeros((p, n)), np.eye(p)]])
    outputs, noise = np.hstack([model.C, model.Cd]), np.block([[W, np.zeros((n, p))], [np.zeros((p, n)), D]])
    covariance = np.eye(n + p)
    for _ in range(3000):  # the recursion of the time-varying filter
        gain = covariance @ outputs.T @ np.linalg.inv(outputs @ covariance @ outputs.T + V)
        covariance = system @ (covariance - gain @ outputs @ covariance) @ system.T + noise
    np.testing.assert_allclose(observer.gain, gain, rtol=1e-8, atol=1e-10)
    stationary = solve_discrete_are(system.T, outputs.T, noise, V)
    np.testing.assert_allclose(covariance, stationary, rtol=1e-8)


def test_constant_disturbance_is_found_exactly() -> None:
    """Double integrator, position measured, unknown constant force: both states and the force."""
    observer = kalman_observer(INTEGRATOR, POSITION, process=np.eye(2), disturbance=[[0.1]], measurement=[[1.0]])
    x, force, rng = np.array([3.0, -1.0]), 0.7, np.random.default_rng(0)
    estimate = observer.start([x[0]])
    np.testing.assert_array_equal(estimate.d, [0.0])
    for _ in range(150):
        estimate = observer.correct(estimate, [x[0]])
        u = rng.normal(size=1)
        estimate, x = observer.predict(estimate, u), INTEGRATOR.step(x, u) + [0.0, force]
    np.testing.assert_allclose(estimate.x, x, atol=1e-9)
    np.testing.assert_allclose(estimate.d, [force], atol=1e-9)


def test_sensor_bias_is_found_as_an_output_disturbance() -> None:
    model = DisturbanceModel(LOWER, np.zeros((4, 2)), np.eye(2))
    observer = kalman_observer(TANKS, model, process=np.eye(4), disturbance=np.eye(2), measurement=0.01 * np.eye(2))
    x, u, bias = TANKS.equilibrium[0] + [1.0, -1.0, 0.2, 0.1], np.array([3.1, 2.9]), np.array([0.4, -0.2])
    estimate = observer.start(LOWER @ x + bias)
    for _ in range(800):  # the tanks forget slowly
        estimate = observer.predict(observer.correct(estimate, LOWER @ x + bias), u)
        x = TANKS.step(x, u)
    np.testing.assert_allclose(estimate.d, bias, atol=1e-6)
    np.testing.assert_allclose(estimate.x, x, atol=1e-6)


def test_prediction_of_a_wrong_model_becomes_exact_in_the_outputs() -> None:
    """Leaks and weaker pumps: the states are not the plant's, the outputs are (the innovation vanishes)."""
    observer = kalman_observer(
        TANKS, TANK_MODEL, process=0.01 * np.eye(4), disturbance=0.1 * np.eye(2), measurement=0.01 * np.eye(2)
    )
    x, u = TANKS.equilibrium[0].copy(), np.array([3.2, 2.9])
    estimate = observer.start(LOWER @ x)
    for _ in range(400):
        estimate = observer.predict(observer.correct(estimate, LOWER @ x), u)
        x = TANKS.step(x, 0.9 * u, [0.5, -0.3])
    np.testing.assert_allclose(LOWER @ estimate.x, LOWER @ x, atol=1e-6)
    assert np.abs(estimate.x - x).max() > 0.01


def test_the_rank_condition_is_checked() -> None:
    """A push on the position is not told from the velocity if only the position is measured."""
    with pytest.raises(UserError, match="not detectable: the mode with eigenvalue 1"):
        kalman_observer(
            INTEGRATOR,
            DisturbanceModel(POSITION.C, np.array([[1.0], [0.0]]), np.zeros((1, 1))),
            process=np.eye(2),
            disturbance=[[1.0]],
            measurement=[[1.0]],
        )
    # and the velocity alone never shows where the integrator stands
    with pytest.raises(UserError, match="not detectable"):
        Observer(INTEGRATOR, DisturbanceModel(np.array([[0.0, 1.0]]), POSITION.Bd, np.zeros((1, 1))), np.zeros((3, 1)))


def test_rank_condition_is_that_of_the_paper() -> None:
    """rank [[A - I, Bd], [C, Cd]] = n + p for random systems whose only modes on the circle are the disturbances."""
    rng = np.random.default_rng(1)
    found = set()
    for trial in range(60):
        A, C = 0.5 * rng.normal(size=(3, 3)) / 3, rng.normal(size=(2, 3))
        Bd, Cd = rng.normal(size=(3, 2)), rng.normal(size=(2, 2))
        if trial % 2:  # make the steady response of the outputs to the disturbances singular
            Cd = -C @ np.linalg.solve(np.eye(3) - A, Bd) + np.outer(rng.normal(size=2), rng.normal(size=2))
        full = np.linalg.matrix_rank(np.block([[A - np.eye(3), Bd], [C, Cd]])) == 5
        try:
            DisturbanceModel(C, Bd, Cd).augmented(A)
            assert full
        except UserError:
            assert not full
        found.add(full)
    assert found == {True, False}


def test_luenberger_gain_by_pole_placement_and_a_bad_gain() -> None:
    """The error of the double integrator with gain placed by hand decays as the poles say; with none it does not."""
    from scipy.signal import place_poles

    system, outputs = POSITION.augmented(np.array([[1.0, 1.0], [0.0, 1.0]]))
    poles = np.array([0.2, 0.3, 0.4])
    gain = np.linalg.solve(system, place_poles(system.T, outputs.T, poles).gain_matrix.T)
    observer = Observer(INTEGRATOR, POSITION, gain)
    error = system - system @ observer.gain @ outputs
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(error).real), poles, atol=1e-8)
    estimate, x = Estimate(np.zeros(2), np.zeros(1)), np.array([5.0, 1.0])
    for _ in range(40):
        estimate, x = observer.predict(observer.correct(estimate, x[:1]), [0.0]), INTEGRATOR.step(x, [0.0])
    np.testing.assert_allclose(estimate.x, x, atol=1e-9)
    with pytest.raises(UserError, match="estimation error grow"):
        Observer(INTEGRATOR, POSITION, np.zeros((3, 1)))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"Bd needs shape \(2, 1\)"):
        DisturbanceModel(POSITION.C, np.eye(2), np.zeros((1, 1)))
    with pytest.raises(UserError, match="has 2 states, the plant 4"):
        Observer(TANKS, POSITION, np.zeros((3, 1)))
    with pytest.raises(UserError, match=r"gain needs shape \(3, 1\)"):
        Observer(INTEGRATOR, POSITION, np.zeros((2, 1)))
    with pytest.raises(UserError, match="symmetric"):
        kalman_observer(INTEGRATOR, POSITION, process=np.eye(3), disturbance=[[1.0]], measurement=[[1.0]])
    with pytest.raises(UserError, match="positive semidefinite"):
        kalman_observer(INTEGRATOR, POSITION, process=-np.eye(2), disturbance=[[1.0]], measurement=[[1.0]])
    with pytest.raises(UserError, match="positive definite"):
        kalman_observer(INTEGRATOR, POSITION, process=np.eye(2), disturbance=[[0.0]], measurement=[[1.0]])
    observer = kalman_observer(INTEGRATOR, POSITION, process=np.eye(2), disturbance=[[1.0]], measurement=[[1.0]])
    with pytest.raises(UserError, match="measurement needs shape"):
        observer.start([1.0, 2.0])
    with pytest.raises(UserError, match="finite"):
        observer.correct(observer.start([0.0]), [np.nan])
