"""Enclosures against exact rational arithmetic."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipctrl.certify.enclosure import Enclosure, is_positive_definite, norm_at_most, norm_bound, quotient

Array = NDArray[np.float64]
Exact = list[list[Fraction]]


def exact(a: Array) -> Exact:
    return [[Fraction(float(x)) for x in row] for row in a]


def member(e: Enclosure, rng: np.random.Generator) -> Exact:
    """An exact matrix in the enclosure, often at its edge."""
    theta = rng.choice([-1, 0, 1, 0.5], size=e.shape)
    return [
        [Fraction(float(m)) + Fraction(float(r)) * Fraction(float(t)) for m, r, t in zip(*rows, strict=True)]
        for rows in zip(e.mid, e.rad, theta, strict=True)
    ]


def contains(e: Enclosure, matrix: Exact) -> bool:
    return all(
        abs(x - Fraction(float(m))) <= Fraction(float(r))
        for mids, rads, row in zip(e.mid, e.rad, matrix, strict=True)
        for m, r, x in zip(mids, rads, row, strict=True)
    )


def random_enclosure(rng: np.random.Generator, rows: int, columns: int, *, spread: int) -> Enclosure:
    mid = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-spread, spread + 1, size=(rows, columns))
    rad = np.abs(mid) * 10.0 ** rng.integers(-17, 1) * rng.integers(0, 2, size=mid.shape)
    return Enclosure(mid, rad)


def times(a: Exact, b: Exact) -> Exact:
    return [
        [sum((x * y for x, y in zip(row, col, strict=True)), Fraction(0)) for col in zip(*b, strict=True)] for row in a
    ]


def entrywise(op: Callable[[Fraction, Fraction], Fraction], a: Exact, b: Exact) -> Exact:
    return [[op(x, y) for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), spread=st.sampled_from([0, 3, 20, 150]))
def test_operations_contain_the_exact_results(seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    n, k, m = rng.integers(1, 6, size=3)
    a, b = random_enclosure(rng, n, k, spread=spread), random_enclosure(rng, k, m, spread=spread)
    c = random_enclosure(rng, n, k, spread=spread)
    exact_a, exact_b, exact_c = member(a, rng), member(b, rng), member(c, rng)
    assert contains(a @ b, times(exact_a, exact_b))
    assert contains(a + c, entrywise(lambda x, y: x + y, exact_a, exact_c))
    assert contains(a - c, entrywise(lambda x, y: x - y, exact_a, exact_c))
    assert contains(a * c, entrywise(lambda x, y: x * y, exact_a, exact_c))
    assert contains(a.T, [list(row) for row in zip(*exact_a, strict=True)])
    assert all(
        abs(x) <= Fraction(float(u))
        for r, us in zip(exact_a, a.magnitude, strict=True)
        for x, u in zip(r, us, strict=True)
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_additions_to_blocks_and_quotients_contain_the_exact_results(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, block = random_enclosure(rng, 5, 5, spread=5), random_enclosure(rng, 3, 3, spread=5)
    vector = random_enclosure(rng, 1, 2, spread=5)
    exact_a, exact_block, (exact_vector,) = member(a, rng), member(block, rng), member(vector, rng)
    total = a.plus_at(1, block).plus_at(3, vector[0])
    for i in range(3):
        for j in range(3):
            exact_a[i + 1][j + 1] += exact_block[i][j]
    for i in range(2):
        exact_a[i + 3][i + 3] += exact_vector[i]
    assert contains(total, exact_a)
    numerator, denominator = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)) * 10.0 ** rng.integers(-300, 300)
    ratio = quotient(numerator, denominator)
    assert contains(ratio, entrywise(lambda x, y: x / y, exact(numerator), exact(denominator)))


def test_products_that_underflow_stay_enclosed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        large, small = (
            Enclosure.exact(rng.normal(size=(2, 2)) * 1e200),
            Enclosure.exact(rng.normal(size=(2, 2)) * 1e-311),
        )
        assert contains(large @ small, times(exact(large.mid), exact(small.mid)))
    a, b = Enclosure.exact(np.array([[1e-200, 1e200]])), Enclosure.exact(np.array([[1e-200], [5e-324]]))
    assert contains(a @ b, times(exact(a.mid), exact(b.mid)))


def pivots(matrix: Exact) -> list[Fraction] | None:
    """Exact pivots of LDL', or None at the first that is not positive."""
    a, n = [list(row) for row in matrix], len(matrix)
    for k in range(n):
        if a[k][k] <= 0:
            return None
        for i in range(k + 1, n):
            factor = a[i][k] / a[k][k]
            for j in range(k + 1, n):
                a[i][j] -= factor * a[k][j]
    return [a[k][k] for k in range(n)]


def near_singular(rng: np.random.Generator) -> Array:
    """A symmetric matrix with an eigenvalue within rounding of zero, sometimes badly scaled."""
    n = int(rng.integers(2, 7))
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    values = np.abs(rng.normal(size=n)) + 0.1
    values[0] = rng.choice([-1, 0, 1]) * 10.0 ** rng.uniform(-18, -12)
    a = q @ np.diag(values) @ q.T
    scale = np.exp2(rng.integers(-30, 31, size=n)) if rng.random() < 0.5 else np.ones(n)
    a = scale[:, None] * a * scale
    return np.asarray(np.tril(a) + np.tril(a, -1).T)


def test_no_matrix_with_an_eigenvalue_at_or_below_zero_is_called_positive() -> None:
    rng = np.random.default_rng(0)
    proved = refused = 0
    for _ in range(1500):
        a = near_singular(rng)
        positive = pivots(exact(a)) is not None
        claim = is_positive_definite(Enclosure.exact(a)) is not None
        assert positive or not claim
        proved, refused = proved + claim, refused + (not positive)
    assert proved > 100 and refused > 300  # both sides of the border were visited


def test_the_radius_counts() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        n = int(rng.integers(2, 6))
        a = rng.normal(size=(n, n))
        a = a @ a.T + 0.1 * np.eye(n)
        smallest = float(np.linalg.eigvalsh(a)[0])
        rad = np.full((n, n), smallest / n * rng.uniform(0.5, 2))
        worst = a - rad * np.outer(*[np.sign(np.linalg.eigh(a)[1][:, 0])] * 2)
        if is_positive_definite(Enclosure(a, rad)) is not None:
            assert pivots(exact((worst + worst.T) / 2)) is not None
        assert is_positive_definite(Enclosure(a, rad * 1e-3)) is not None  # rows sum to 1e-3 of the smallest eigenvalue


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_matrices_that_prove_nothing(bad: float) -> None:
    a = np.eye(3)
    a[1, 1] = bad
    assert is_positive_definite(Enclosure.exact(a)) is None
    assert is_positive_definite(Enclosure(np.eye(3), np.full((3, 3), 0.5))) is None


def test_norm_bounds_are_never_below_and_hardly_above_the_exact_norm() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        rows, columns = rng.integers(1, 7, size=2)
        scale = 10.0 ** rng.integers(-8, 9)
        a = rng.normal(size=(rows, columns)) * scale
        bound = norm_bound(Enclosure.exact(a))
        tall = exact(a) if rows >= columns else [list(r) for r in zip(*exact(a), strict=True)]
        gram = times([list(r) for r in zip(*tall, strict=True)], tall)
        gap = [
            [(Fraction(bound) ** 2 if i == j else Fraction(0)) - x for j, x in enumerate(r)] for i, r in enumerate(gram)
        ]
        assert pivots(gap) is not None
        assert bound <= np.linalg.norm(a, 2) * (1 + 1e-11)
        assert not norm_at_most(Enclosure.exact(a), np.linalg.norm(a, 2) * (1 - 1e-13))


def test_norm_bounds_of_extreme_matrices() -> None:
    assert norm_bound(Enclosure.exact(np.full((2, 2), 1e-170))) >= 2e-170
    assert 0 < norm_bound(Enclosure.zeros(2, 3)) < 1e-100
    assert norm_at_most(Enclosure.zeros(2, 3), norm_bound(Enclosure.zeros(2, 3)))
    assert norm_bound(Enclosure.exact(np.full((2, 2), 1e200))) == np.inf
