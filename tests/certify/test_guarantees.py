"""Error, cover and sample formulae against worked values, closed forms and simulation."""

import math

import numpy as np
import pytest

from lipctrl.certify import guarantees as g
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr

A, B = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [1.0]])
EXPERT = lqr(A, B, np.eye(2), [[0.1]])
LIP = float(np.linalg.norm(EXPERT.K, 2))


def grid(k: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, k)] * 2, indexing="ij"), -1).reshape(-1, 2)


def test_error_from_a_cover_on_the_pendulum_values() -> None:
    """Pendulum with feedback linearisation: alpha = l* = 20.69869803, h = 0.03535534 give 1.463619."""
    found = g.policy_error_bound(20.69869803, 20.69869803, math.sqrt(2) / 40, 0.0)
    assert found.value == pytest.approx(1.463619, abs=1e-6) and found.label == "bound" and not found.vacuous
    assert g.policy_error_bound(1.0, 2.0, 0.1, 0.05, 0.01).value == pytest.approx(0.36)


def test_error_bound_holds_for_lipschitz_maps() -> None:
    rng = np.random.default_rng(0)
    data = rng.uniform(-1, 1, (200, 2))
    x = rng.uniform(-1, 1, (4000, 2))
    cover = float(np.linalg.norm(x[:, None] - data, axis=-1).min(1).max())
    for _ in range(20):
        w, v = rng.normal(size=(2, 3, 2))

        def expert(s: np.ndarray, w: np.ndarray = w) -> np.ndarray:
            return np.sin(s @ w.T)

        def policy(s: np.ndarray, w: np.ndarray = w, v: np.ndarray = v) -> np.ndarray:
            return np.sin(s @ w.T) + 0.1 * np.tanh(s @ v.T)

        lips = np.linalg.norm(w, 2), np.linalg.norm(w, 2) + 0.1 * np.linalg.norm(v, 2)
        residual = float(np.linalg.norm(policy(data) - expert(data), axis=1).max())
        bound = g.policy_error_bound(float(lips[1]), float(lips[0]), cover, residual).value
        assert bound is not None and np.linalg.norm(policy(x) - expert(x), axis=1).max() <= bound


def test_midpoint_bound_needs_a_large_enough_constant() -> None:
    assert g.midpoint_error_bound(2.0, 1.5, 0.1, 0.01).value == pytest.approx(0.21)
    assert (
        g.midpoint_error_bound(1.0, 1.5, 0.1).vacuous and "below the expert" in g.midpoint_error_bound(1, 1.5, 1).reason
    )


@pytest.mark.parametrize(
    ("n", "radius", "samples"),
    [(1, 0.2, 70), (2, 0.5, 295), (2, 0.2, 2255), (2, 0.1, 9537), (3, 0.2, 77428), (4, 0.5, 52933), (4, 0.2, 2654096)],
)
def test_samples_for_a_cover_of_the_cube(n: int, radius: float, samples: int) -> None:
    found = g.samples_for_cover([2.0] * n, radius, 0.01)
    assert found.value == samples
    assert g.cover_failure(samples, g.cells_of_box([2.0] * n, radius)) <= 0.01


def test_uniform_samples_fail_to_cover_as_rarely_as_promised() -> None:
    """N for 20 % risk in one dimension, where cells are intervals: empty cells counted over 2000 draws."""
    needed = g.samples_for_cover([2.0], 0.2, 0.2).value
    assert needed is not None
    rng = np.random.default_rng(0)
    cells = np.floor(rng.uniform(0, 1, (2000, int(needed))) * g.cells_of_box([2.0], 0.2)).astype(int)
    failed = np.mean([len(np.unique(row)) < g.cells_of_box([2.0], 0.2) for row in cells])
    assert 0.05 < failed < 0.2 + 0.03


def test_samples_for_stability_of_the_double_integrator() -> None:
    sides = [2 * 0.78230572, 2 * 0.75290666]
    cover, samples, points = g.samples_for_stability(0.08602025, LIP, LIP, 0.0, 0.0, sides, 0.01)
    assert cover.value == pytest.approx(0.02605764, rel=1e-6)
    assert (samples.value, points.value) == (93779, 1763)
    none = g.samples_for_stability(0.08602025, LIP, LIP, 0.05, 0.03, sides, 0.01)
    assert all(x.vacuous for x in none) and "use up" in none[0].reason


@pytest.mark.parametrize(
    ("lip", "residual"), [(0.8, 0.993427), (1.0, 0.730391), (1.3, 0.381768), (1.5, 0.161746), (LIP, 0.0), (2.0, 0.0)]
)
def test_least_residual_of_the_grid(lip: float, residual: float) -> None:
    x = grid(21)
    assert g.least_residual(x, -x @ EXPERT.K.T, lip).value == pytest.approx(residual, abs=1e-6)


def test_least_residual_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    x, u = rng.normal(size=(300, 3)), rng.normal(size=(300, 2))
    whole = g.least_residual(x, u, 0.5).value
    monkeypatch.setattr(g, "BLOCK", 7)
    assert g.least_residual(x, u, 0.5).value == whole


def test_input_error_takes_the_smaller_form() -> None:
    assert g.input_error_bound(0.2, 3.0, 0.1, 1.0).value == pytest.approx(0.5)
    assert g.input_error_bound(0.2, 3.0, 0.1, 1.0, nearby_error=0.25).value == pytest.approx(0.35)


def test_tube_cover() -> None:
    assert g.tube_cover(2.0, 0.5, 0.1).value == pytest.approx(0.2)
    assert g.tube_cover(2.0, 0.5, 0.1, step=3).value == pytest.approx(0.025)
    assert g.tube_cover(2.0, 1.0, 0.1).vacuous


def test_trials() -> None:
    """Worked values of Hoeffding's bound and of the exact binomial."""
    assert [g.hoeffding_trials(*x) for x in ((0.01, 0.01), (0.01, 1e-6), (0.001, 0.01))] == [23026, 69078, 2302586]
    assert [g.trials_without_failure(*x) for x in ((0.01, 0.01), (0.001, 1e-6))] == [459, 13809]
    assert 0.99**459 <= 0.01 < 0.99**458
    assert g.success_rate(100, 100, 0.01).value == pytest.approx(1 - math.sqrt(math.log(100) / 200))
    assert g.success_rate(1, 100, 0.01).value == 0.0


def test_mpc_thresholds() -> None:
    """Values reported for the double integrator under MPC; the error threshold with their c2 = 27.586."""
    found = g.mpc_thresholds(EXPERT.A_cl, B, 1.0, 27.586, 180.0)
    assert found.slope.value == pytest.approx(0.0436530, rel=1e-5) and found.slope.label == "estimate"
    assert found.error.value == pytest.approx(0.167256, rel=1e-4)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="cover must be finite"):
        g.policy_error_bound(1.0, 1.0, -1.0, 0.0)
    with pytest.raises(UserError, match="risk"):
        g.samples_for_cover([1.0], 0.1, 1.0)
    with pytest.raises(UserError, match="sides"):
        g.cells_of_box([1.0, 0.0], 0.1)
    with pytest.raises(UserError, match="trials"):
        g.success_rate(5, 4, 0.1)
    assert "vacuous" in str(g.midpoint_error_bound(1.0, 1.5, 0.1)) and "0.3 action" in str(
        g.policy_error_bound(1.0, 2.0, 0.1, 0.0)
    )
