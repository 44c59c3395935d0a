"""Matrices with a proved error: midpoint, radius, and arithmetic that never loses the exact result.

An `Enclosure` holds every matrix C with |C - mid| <= rad entrywise. Each operation returns an enclosure of all exact
results. With u = 2^-53 and gamma_k = k u / (1 - k u), a floating-point product over k terms satisfies, in any order of
summation and with or without fused multiply-add, |fl(AB) - AB| <= gamma_k |A||B| (Higham, Accuracy and Stability of
Numerical Algorithms, 3.5). Radii are themselves computed in floating point, so each is enlarged by a factor that
covers its own rounding (`_up`) and by a term that covers underflow.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
UNIT: float = 2.0**-53
FLOOR: float = 2.0**-400  # no smaller norm is claimed: its square must stay far above what underflow loses
SLACKS = (1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)
TINY: float = 2.0**-1000  # far above anything that underflow can lose in sums of fewer than 2^60 terms


def gamma(k: int) -> float:
    """gamma_k = k u / (1 - k u), rounded up."""
    return float(k * UNIT / (1 - k * UNIT) * (1 + 8 * UNIT))


def _up(radius: Array, terms: int) -> Array:
    """A radius computed as sums of at most `terms` nonnegative products, enlarged to cover its own rounding."""
    return np.asarray(radius * (1 + (terms + 8) * 8 * UNIT) + terms * TINY)


@dataclass(frozen=True)
class Enclosure:
    """All matrices within `rad` of `mid`, entrywise."""

    mid: Array
    rad: Array

    @staticmethod
    def exact(a: Array) -> "Enclosure":
        """The enclosure of one stored matrix."""
        return Enclosure(a, np.zeros_like(a))

    @staticmethod
    def zeros(*shape: int) -> "Enclosure":
        """The zero matrix."""
        return Enclosure.exact(np.zeros(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrices."""
        return self.mid.shape

    @property
    def T(self) -> "Enclosure":
        """Transposes."""
        return Enclosure(self.mid.T, self.rad.T)

    @property
    def magnitude(self) -> Array:
        """Entrywise upper bound of |C|."""
        return _up(np.abs(self.mid) + self.rad, 1)

    def __getitem__(self, key: Any) -> "Enclosure":
        return Enclosure(self.mid[key], self.rad[key])

    def __matmul__(self, other: "Enclosure") -> "Enclosure":
        k = self.mid.shape[1]
        a, b = np.abs(self.mid), np.abs(other.mid)
        rad = a @ (other.rad + gamma(k) * b + TINY)  # TINY: gamma(k) b may underflow before a large a multiplies it
        if self.rad.any():
            rad = rad + self.rad @ (b + other.rad)
        return Enclosure(self.mid @ other.mid, _up(rad, k + 4))

    def plus_at(self, start: int, other: "Enclosure") -> "Enclosure":
        """Add a square block whose first row and column are `start`, or a vector to the diagonal from there on."""
        end, mid, rad = start + len(other.mid), self.mid.copy(), self.rad.copy()
        where: Any = (slice(start, end),) * 2 if other.mid.ndim == 2 else (np.arange(start, end),) * 2
        total = self[where] + other
        mid[where], rad[where] = total.mid, total.rad
        return Enclosure(mid, rad)

    def __add__(self, other: "Enclosure") -> "Enclosure":
        mid = self.mid + other.mid
        return Enclosure(mid, _up(self.rad + other.rad + UNIT * np.abs(mid), 4))

    def __neg__(self) -> "Enclosure":
        return Enclosure(-self.mid, self.rad)

    def __sub__(self, other: "Enclosure") -> "Enclosure":
        return self + (-other)

    def __mul__(self, other: "Enclosure") -> "Enclosure":
        """Entrywise product, with numpy's broadcasting."""
        mid = self.mid * other.mid
        a, b = np.abs(self.mid), np.abs(other.mid)
        rad = a * other.rad + self.rad * (b + other.rad) + 2 * UNIT * np.abs(mid)
        return Enclosure(mid, _up(rad, 4))


def quotient(numerator: Array, denominator: Array) -> Enclosure:
    """Enclosure of an entrywise quotient of stored numbers; zeros stay exact."""
    mid = np.asarray(numerator / denominator)
    return Enclosure(mid, np.where(numerator == 0, 0.0, 2 * UNIT * np.abs(mid) + TINY))


def is_positive_definite(matrix: Enclosure) -> float | None:
    """Prove that every symmetric matrix in the enclosure is positive definite.

    If the floating-point Cholesky factorisation of B runs to completion, then the smallest eigenvalue of B is above
    -c with c = gamma_{n+2} / (1 - gamma_{n+2}) tr(B) plus an underflow term (Rump, BIT 46, 2006). It is run on
    mid - c I - D, where D is the diagonal of the radius' row sums: a symmetric E with |E| <= rad has x'Ex <= x'Dx. Only
    lower triangles are read. Rows and columns are first scaled by powers of two, which is exact up to underflow, so
    that widely spread diagonals do not enlarge c.

    Returns:
        The largest entry of c I + D (after scaling) if the proof succeeds, else None.
    """
    n = len(matrix.mid)
    if not (np.isfinite(matrix.mid).all() and np.isfinite(matrix.rad).all()) or (np.diag(matrix.mid) <= 0).any():
        return None
    scale = np.exp2(-np.round(np.log2(np.diag(matrix.mid)) / 2))
    mid, rad = scale[:, None] * matrix.mid * scale, scale[:, None] * matrix.rad * scale
    diagonal = np.diag(mid)
    row_sums = np.tril(rad).sum(1) + np.tril(rad, -1).sum(0)
    ratio = gamma(n + 2) / (1 - gamma(n + 2))
    underflow = n * n * max(TINY, float(scale.max()) * 2.0**-1070)
    shift = (row_sums + ratio * diagonal.sum()) * (1 + (n + 16) * 8 * UNIT) + underflow
    mid[np.diag_indices(n)] = np.nextafter(diagonal - shift, -np.inf)
    try:
        factor = np.linalg.cholesky(mid)
    except np.linalg.LinAlgError:
        return None
    return float(shift.max()) if np.isfinite(factor).all() else None


def norm_at_most(matrix: Enclosure, bound: float) -> bool:
    """Prove that the spectral norm of every matrix in the enclosure is below `bound`: bound^2 I - C'C is positive."""
    square = np.nextafter(bound * bound, 0.0)
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gap = Enclosure.exact(square * np.eye(tall.shape[1])) - tall.T @ tall
    return is_positive_definite(gap) is not None


def norm_bound(matrix: Enclosure) -> float:
    """A proved upper bound of the spectral norm, usually a few units in the twelfth digit above the exact one.

    Returns:
        The bound, never below FLOOR; infinity if the entries are so large that nothing can be proved.
    """
    if not matrix.mid.size:
        return FLOOR
    with np.errstate(over="ignore", invalid="ignore"):
        frobenius = float(np.linalg.norm(matrix.magnitude))
        if not np.isfinite(frobenius):
            return float("inf")
        estimate = float(np.linalg.norm(matrix.mid, 2))
        for value in [estimate * (1 + slack) for slack in SLACKS] + [frobenius * (1 + 1e-6)]:
            if norm_at_most(matrix, value + FLOOR):
                return value + FLOOR
    return float("inf")
