"""Covering radius against grids and Voronoi vertices, slopes against the expert, the error bound against the error."""

import numpy as np
import pytest
from scipy.spatial import Voronoi

from lipctrl.demos import cover
from lipctrl.demos.cover import ErrorBound, expert_slope, next_states
from lipctrl.files import UserError


def grid(k: int, n: int = 2) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, k)] * n, indexing="ij"), -1).reshape(-1, n)


def distance(points: np.ndarray) -> ErrorBound:
    return ErrorBound(points, np.zeros(len(points)), 1.0)


@pytest.mark.parametrize(("k", "n"), [(21, 2), (5, 2), (5, 3)])
def test_covering_radius_of_a_grid_is_half_a_cell_diagonal(k: int, n: int) -> None:
    found = distance(grid(k, n)).largest(-np.ones(n), np.ones(n), tolerance=1e-3)
    exact = np.sqrt(n) / (k - 1)
    assert found.lower <= exact * (1 + 1e-12) and exact <= found.upper * (1 + 1e-12)
    assert found.upper <= found.lower * 1.002 and distance(grid(k, n))(found.at[None])[0] == found.lower


def test_covering_radius_of_random_data_is_attained_at_a_voronoi_vertex() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    low, high = -0.7 * np.ones(2), 0.7 * np.ones(2)
    vertices = Voronoi(points).vertices
    inside = vertices[(np.abs(vertices) <= 0.7).all(1)]
    found = distance(points).largest(low, high, tolerance=1e-4)
    assert found.upper >= distance(points)(inside).max() * (1 - 1e-12)
    fine = np.stack(np.meshgrid(*[np.linspace(-0.7, 0.7, 701)] * 2), -1).reshape(-1, 2)
    assert distance(points)(fine).max() <= found.upper and found.upper <= found.lower * (1 + 2e-4)


def test_a_budget_leaves_an_honest_gap() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (50, 4))
    few, many = (distance(points).largest(-np.ones(4), np.ones(4), cells=c, tolerance=0.1) for c in (500, 50_000))
    assert few.lower <= many.lower <= many.upper <= few.upper and few.upper - few.lower > many.upper - many.lower


def test_the_bound_is_above_the_error_of_a_lipschitz_policy() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-1, 1, (200, 2))

    def expert(x: np.ndarray) -> np.ndarray:  # gradient at most 2.2 in norm
        return np.stack([np.sin(2 * x[:, 0]), np.cos(x[:, 1])], 1)

    def policy(x: np.ndarray) -> np.ndarray:
        return 0.9 * expert(x) + 0.02

    residuals = np.linalg.norm(policy(points) - expert(points), axis=1)
    bound = ErrorBound(points, residuals, 2.0 + 1.8)
    x = rng.uniform(-1, 1, (20_000, 2))
    error = np.linalg.norm(policy(x) - expert(x), axis=1)
    assert (error <= bound(x)).all() and error.max() <= bound.largest(-np.ones(2), np.ones(2)).upper


def test_a_far_point_with_a_small_residual_counts() -> None:
    points = np.random.default_rng(3).uniform(-1, 1, (100, 2))
    residuals = np.where(np.arange(100) == 0, 0.0, 10.0)
    x = np.random.default_rng(4).uniform(-1, 1, (50, 2))
    all_values = residuals + 2.0 * np.linalg.norm(x[:, None] - points, axis=-1)
    assert np.allclose(ErrorBound(points, residuals, 2.0)(x), all_values.min(1), rtol=1e-12)


def test_slopes_are_attained_by_the_pair_and_below_the_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(3000, 2)), np.array([[0.57917087, 1.54562698], [0.3, -0.2]])
    exact = float(np.linalg.norm(gain, 2))
    u = x @ gain.T
    for limit in (20_000, 100):  # all pairs, then neighbours
        monkeypatch.setattr(cover, "ALL_PAIRS", limit)
        found = expert_slope(x, u)
        i, j = found.pair
        assert found.value == pytest.approx(np.linalg.norm(u[i] - u[j]) / np.linalg.norm(x[i] - x[j]), rel=1e-12)
        assert 0.99 * exact < found.value <= exact * (1 + 1e-9)
    noisy = u + 0.05 * rng.uniform(-1, 1, u.shape) / np.sqrt(2)
    assert expert_slope(x, noisy, noise=0.05).value <= exact < expert_slope(x, noisy).value


def test_next_states_are_the_farthest_and_reduce_the_bound() -> None:
    points = np.array([[-1.0, -1.0], [1.0, 1.0]])
    chosen = next_states(distance(points), -np.ones(2), np.ones(2), 2)
    assert np.allclose(np.sort(chosen[:, 0] * chosen[:, 1]), [-1, -1], atol=0.3)  # the two free corners
    more = np.vstack([points, next_states(distance(points), -np.ones(2), np.ones(2), 20)])
    assert distance(more).largest(-np.ones(2), np.ones(2)).upper < 0.55


def test_bad_input() -> None:
    with pytest.raises(UserError, match="two different"):
        expert_slope(np.zeros((5, 2)), np.zeros((5, 1)))
    with pytest.raises(UserError, match="box needs 2"):
        distance(grid(3)).largest(np.ones(2), -np.ones(2))
    with pytest.raises(UserError, match="slope must"):
        ErrorBound(grid(3), np.zeros(9), 0.0)
    with pytest.raises(UserError, match="residuals"):
        ErrorBound(grid(3), np.zeros(8), 1.0)
