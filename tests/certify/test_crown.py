"""Affine functions over a box: exact values, radii and rounding."""

from fractions import Fraction

import numpy as np

from lipctrl.certify.crown import Crown
from lipctrl.certify.enclosure import Enclosure
from lipctrl.certify.relaxation import Lines
from lipctrl.certify.scalar_form import Affine


def band(low: np.ndarray, high: np.ndarray) -> Lines:
    """t - 1 <= v <= t + 2."""
    one = np.ones_like(low)
    return Lines(one, -one, one, 2 * one, low - 1, high + 2)


def test_a_box_is_bounded_by_its_corners() -> None:
    crown = Crown(np.array([-1.0, 2.0]), np.array([3.0, 5.0]))
    target = Affine({0: Enclosure.exact(np.array([[2.0, -1.0]]))}, Enclosure.exact(np.array([[10.0]])))
    low, high = crown.bounds(target)
    np.testing.assert_allclose([low[0], high[0]], [3, 14], rtol=1e-14)


def test_nodes_are_replaced_by_their_lines_in_both_directions() -> None:
    crown = Crown(np.array([-1.0]), np.array([1.0]))
    identity = Affine({0: Enclosure.exact(np.eye(1))}, Enclosure.zeros(1, 1))
    for _ in range(2):
        crown.append(identity, *crown.bounds(identity), band)
        identity = Affine({len(crown.lines): Enclosure.exact(np.eye(1))}, Enclosure.zeros(1, 1))
    both = Affine(
        {2: Enclosure.exact(np.array([[1.0]])), 0: Enclosure.exact(np.array([[-1.0]]))}, Enclosure.zeros(1, 1)
    )
    low, high = crown.bounds(both)  # v_2 - v_0 in [-2, 4] although v_2 and v_0 both move by 2
    np.testing.assert_allclose([low[0], high[0]], [-2, 4], rtol=1e-14)


def test_every_matrix_of_an_enclosure_is_covered() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low = rng.normal(size=3)
        crown = Crown(low, low + rng.random(3))
        first = Enclosure(rng.normal(size=(4, 3)), 0.3 * rng.random((4, 3)))
        offset = Enclosure(rng.normal(size=(4, 1)), 0.3 * rng.random((4, 1)))
        argument = Affine({0: first}, offset)
        crown.append(argument, *crown.bounds(argument), band)
        second = Enclosure(rng.normal(size=(2, 4)), 0.3 * rng.random((2, 4)))
        skip = Enclosure(rng.normal(size=(2, 3)), 0.3 * rng.random((2, 3)))
        bounds = crown.bounds(Affine({1: second, 0: skip}, Enclosure(np.zeros((2, 1)), np.full((2, 1), 0.2))))
        for _ in range(30):
            a, b, c, d = (e.mid + rng.choice([-1, 0, 1], size=e.shape) * e.rad for e in (first, second, skip, offset))
            x = rng.uniform(*crown.values[0])
            v = a @ x + d[:, 0] + rng.uniform(-1, 2, size=4)
            y = b @ v + c @ x + rng.uniform(-0.2, 0.2, size=2)
            assert (bounds[0] <= y).all() and (y <= bounds[1]).all()


def test_rounding_is_covered() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        x = rng.normal(size=5) * 10.0 ** rng.integers(-12, 12, size=5)
        row = rng.normal(size=5) * 10.0 ** rng.integers(-12, 12, size=5)
        row, x = np.append(row, -row[::-1]), np.append(x, np.nextafter(x[::-1], 1e300))
        exact = sum((Fraction(a) * Fraction(b) for a, b in zip(row.tolist(), x.tolist(), strict=True)), Fraction(0))
        low, high = Crown(x, x).bounds(Affine({0: Enclosure.exact(row[None, :])}, Enclosure.zeros(1, 1)))
        assert Fraction(float(low[0])) <= exact <= Fraction(float(high[0]))


def test_undefined_values_are_not_taken_for_signs() -> None:
    crown, nan = Crown(np.array([1.0]), np.array([2.0])), np.full(1, np.nan)
    crown.append(Affine({}, Enclosure.zeros(1, 1)), nan, nan, lambda *_: Lines(nan, nan, nan, nan, nan, nan))
    low, high = crown.bounds(Affine({1: Enclosure.exact(np.eye(1))}, Enclosure.zeros(1, 1)))
    assert low[0] == -np.inf and high[0] == np.inf
