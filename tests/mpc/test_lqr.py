"""LQR: published values, the cost identity, and plants that cannot be stabilised."""

import numpy as np
import pytest

from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr

DOUBLE_INTEGRATOR = ([[1.0, 1.0], [0.0, 1.0]], [[0.0], [1.0]])


def test_double_integrator() -> None:
    """The system of arXiv 2206.13374 with Q = I, R = 0.1."""
    solution = lqr(*DOUBLE_INTEGRATOR, np.eye(2), 0.1)
    np.testing.assert_allclose(solution.K, [[0.57917087, 1.54562698]], atol=5e-9)
    np.testing.assert_allclose(solution.P, [[2.66868908, 1.72660617], [1.72660617, 2.88116887]], atol=5e-9)
    np.testing.assert_allclose(solution.S, [[2.98116887]], atol=5e-9)
    np.testing.assert_allclose(np.sort(solution.eigenvalues.real), [0.09276248, 0.36161054], atol=5e-9)
    assert np.abs(solution.eigenvalues.imag).max() == 0


def test_sampled_double_integrator() -> None:
    solution = lqr([[1.0, 0.1], [0.0, 1.0]], [[0.005], [0.1]], np.eye(2), 0.1)
    np.testing.assert_allclose(solution.K, [[2.5857, 3.4434]], atol=5e-5)


def test_cost_to_go_is_the_cost_of_the_closed_loop() -> None:
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(4, 4)), rng.normal(size=(4, 2))
    Q, R = np.diag([1.0, 2.0, 0.0, 3.0]), np.diag([0.5, 2.0])
    solution = lqr(A, B, Q, R)
    start = rng.normal(size=4)
    x, cost = start, 0.0
    for _ in range(2000):
        u = -solution.K @ x
        cost += x @ Q @ x + u @ R @ u
        x = A @ x + B @ u
    assert np.abs(solution.eigenvalues).max() < 1
    assert cost == pytest.approx(start @ solution.P @ start, rel=1e-10)


def test_plant_that_cannot_be_stabilised() -> None:
    with pytest.raises(UserError, match="no stabilising solution"):
        lqr([[2.0, 0.0], [0.0, 0.5]], [[0.0], [1.0]], np.eye(2), 1.0)


def test_shapes_are_checked() -> None:
    with pytest.raises(UserError, match=r"B \(n, m\)"):
        lqr(np.eye(2), np.ones((2, 1)), np.eye(3), 1.0)


def test_mode_on_the_unit_circle_without_cost_is_not_stabilised() -> None:
    with pytest.raises(UserError, match="no stabilising solution"):
        lqr([[1.0, 0.0], [0.0, 0.5]], [[1.0], [1.0]], np.diag([0.0, 1.0]), 1.0)
