"""The maximal invariant set: the published case, invariance, maximality against simulation, and refusals."""

import numpy as np
import pytest

from lipctrl.files import UserError
from lipctrl.mpc.invariant import Polytope, box, maximal_invariant_set, without_redundant
from lipctrl.mpc.lqr import lqr


def double_integrator_loop() -> tuple[np.ndarray, Polytope]:
    """(A - BK, limits |x| <= 10 and |Kx| <= 1) of the system of arXiv 2206.13374."""
    solution = lqr([[1.0, 1.0], [0.0, 1.0]], [[0.0], [1.0]], np.eye(2), 0.1)
    states = box([-10, -10], [10, 10])
    K = solution.K
    return solution.A_cl, Polytope(np.vstack([states.H, K, -K]), np.append(states.h, [1.0, 1.0]))


def test_double_integrator_needs_one_step_and_keeps_four_inequalities() -> None:
    """Four state and two input limits and one step of the input limits: eight inequalities.

    |Kx| <= 1 and |K A_cl x| <= 1 bound the state by (5.3953, 2.6687), so that the state limits are implied.
    """
    closed, limits = double_integrator_loop()
    K = limits.H[4:]
    expected = np.vstack([K, K @ closed])
    lengths = np.linalg.norm(expected, axis=1)
    expected, bound = expected / lengths[:, None], 1 / lengths
    found = maximal_invariant_set(closed, limits)
    assert found.H.shape == (4, 2)
    order, wanted = np.lexsort(found.H.T), np.lexsort(expected.T)
    np.testing.assert_allclose(found.H[order], expected[wanted], atol=1e-12)
    np.testing.assert_allclose(found.h[order], bound[wanted], atol=1e-12)


def test_set_is_exactly_the_states_that_never_break_a_limit() -> None:
    closed, limits = double_integrator_loop()
    found = maximal_invariant_set(closed, limits)
    points = np.random.default_rng(0).uniform(-12, 12, size=(40000, 2)) * [1.0, 0.3]
    x, respected = points, np.ones(len(points), dtype=bool)
    for _ in range(60):
        respected &= limits.contains(x)
        x = x @ closed.T
    inside = found.contains(points)
    assert 1000 < inside.sum() < 39000
    np.testing.assert_array_equal(inside, respected)


def test_redundant_rows_go() -> None:
    square = box([-1, -1], [1, 1])
    more = Polytope(np.vstack([square.H, [[1.0, 1.0], [2.0, 0.0], [1.0, 1.0]]]), np.append(square.h, [1.5, 2.0, 3.0]))
    found = without_redundant(more)
    assert found.H.shape == (5, 2)
    points = np.random.default_rng(1).uniform(-2, 2, size=(2000, 2))
    np.testing.assert_array_equal(found.contains(points), more.contains(points))


def test_box_leaves_infinite_limits_out() -> None:
    found = box([-np.inf, 0.0], [1.0, np.inf])
    np.testing.assert_array_equal(found.H, [[1.0, 0.0], [0.0, -1.0]])
    np.testing.assert_array_equal(found.h, [1.0, 0.0])


def test_refusals() -> None:
    with pytest.raises(UserError, match="stable closed loop"):
        maximal_invariant_set([[1.1]], box([-1], [1]))
    with pytest.raises(UserError, match="strictly inside"):
        maximal_invariant_set([[0.5]], box([0], [1]))
    with pytest.raises(UserError, match="shape"):
        maximal_invariant_set([[0.5]], box([-1, -1], [1, 1]))
