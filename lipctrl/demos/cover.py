"""What a data set says of its expert: how steep it is at least, how far any state is from the data, where to ask next.

With a policy of Lipschitz constant L, an expert of constant l and residuals r_i at the data x_i,

    |pi(x) - pi*(x)| <= min_i r_i + (L + l) |x - x_i|

(insert pi(x_i) and pi*(x_i)). Its largest value on a box is found by branch and bound: the right side is
(L + l)-Lipschitz, so a cell with centre c and half diagonal d holds no value above that at c plus (L + l) d. Both ends
are proved, up to the rounding of distances.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from lipctrl.files import UserError

Array = NDArray[np.float64]
NEIGHBOURS = 32  # data points asked first: the rest only where one of them might still be smaller
BLOCK = 1000  # rows of pairs compared at once
ALL_PAIRS = 20_000  # data up to which all pairs are compared; above, every point with its neighbours
CLOSE = 1e-6  # pairs closer than this, relative to the data's spread, say more about rounding than about the expert


@dataclass(frozen=True)
class Slope:
    """The steepest pair of a data set: a witness of the expert's constant, never a bound of it.

    Attributes:
        value: (|u_i - u_j| - 2 noise) / |x_i - x_j|, the largest found. pair: i and j.
    """

    value: float
    pair: tuple[int, int]


def expert_slope(observations: Array, labels: Array, *, noise: float = 0.0) -> Slope:
    """A lower estimate of the expert's Lipschitz constant (l2) from the data alone.

    Args:
        observations: (N, n). labels: (N, m). noise: bound of the labels' error in the l2 norm.

    Raises:
        UserError: fewer than two different observations.
    """
    spread = float(np.sqrt(((observations - observations.mean(0)) ** 2).sum(1).mean()))
    if len(observations) < 2 or spread == 0:
        raise UserError("a slope needs at least two different observations")
    best = Slope(0.0, (0, 0))
    tree = cKDTree(observations) if len(observations) > ALL_PAIRS else None
    for start in range(0, len(observations), BLOCK):
        x, u = observations[start : start + BLOCK], labels[start : start + BLOCK]
        if tree is None:
            others = np.arange(start, len(observations))
            distance = np.sqrt(np.maximum(_squares(x, observations[others]), 0))
            gap = np.sqrt(np.maximum(_squares(u, labels[others]), 0))
        else:
            distance, others = tree.query(x, NEIGHBOURS)
            gap = np.linalg.norm(u[:, None] - labels[others], axis=-1)
        slopes = np.where(distance > CLOSE * spread, gap - 2 * noise, -np.inf) / np.where(distance > 0, distance, 1.0)
        i, j = np.unravel_index(int(slopes.argmax()), slopes.shape)
        pair = (start + int(i), int(others[j] if tree is None else others[i, j]))
        best = max(best, _exact(observations, labels, noise, pair), key=lambda slope: slope.value)
    return best


def _squares(a: Array, b: Array) -> Array:
    return np.asarray((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T)


def _exact(observations: Array, labels: Array, noise: float, pair: tuple[int, int]) -> Slope:
    """The slope of one pair, without the cancellation of `_squares`."""
    i, j = pair
    distance = np.linalg.norm(observations[i] - observations[j])
    if distance == 0:
        return Slope(0.0, pair)
    return Slope(float((np.linalg.norm(labels[i] - labels[j]) - 2 * noise) / distance), pair)


@dataclass(frozen=True)
class Extremum:
    """The largest value of a function on a box: lower <= largest <= upper, and `at` (n,) attains `lower`."""

    lower: float
    upper: float
    at: Array


@dataclass(frozen=True)
class ErrorBound:
    """x -> min_i residual_i + slope |x - x_i|: a pointwise bound of a policy's error.

    With residuals 0 and slope 1 it is the distance to the data, whose largest value is their covering radius.

    Attributes:
        points: x_i, (N, n). residuals: (N,). slope: L + l.
    """

    points: Array
    residuals: Array
    slope: float
    _tree: cKDTree = field(init=False, repr=False)

    def __call__(self, x: Array) -> Array:
        """Values (batch,) at states (batch, n)."""
        count = min(NEIGHBOURS, len(self.points))
        distance, index = self._tree.query(x, count)
        distance, index = np.reshape(distance, (len(x), count)), np.reshape(index, (len(x), count))
        values = np.asarray((self.residuals[index] + self.slope * distance).min(1))
        if count < len(self.points):
            for k in np.flatnonzero(self.residuals.min() + self.slope * distance[:, -1] < values):
                all_distances = np.linalg.norm(self.points - x[k], axis=1)
                values[k] = (self.residuals + self.slope * all_distances).min()
        return values

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.residuals.shape != (len(self.points),) or not len(self.points):
            raise UserError(f"an error bound needs points (N, n) and residuals (N,), found {self.points.shape}")
        if not (np.isfinite(self.slope) and self.slope > 0):
            raise UserError(f"the slope must be positive and finite, found {self.slope}")
        object.__setattr__(self, "_tree", cKDTree(self.points))

    def largest(self, low: Array, high: Array, *, tolerance: float = 0.02, cells: int = 200_000) -> Extremum:
        """Its largest value on a box, by branch and bound.

        Args:
            low, high: box, (n,).
            tolerance: relative gap at which to stop.
            cells: most cells to look at; the gap is then what it is.

        Raises:
            UserError: the box has another dimension, or no inside.
        """
        n = self.points.shape[1]
        if low.shape != (n,) or high.shape != (n,) or not (low < high).all() or not np.isfinite([low, high]).all():
            raise UserError(f"the box needs {n} finite lower limits below {n} finite upper ones")
        centres, halves = ((low + high) / 2)[None], ((high - low) / 2)[None]
        best, at, upper, seen = -np.inf, centres[0], np.inf, 0
        while True:
            values = self(centres)
            seen += len(centres)
            top = int(values.argmax())
            if values[top] > best:
                best, at = float(values[top]), centres[top]
            above = values + self.slope * np.linalg.norm(halves, axis=1)
            upper = float(max(above.max(), best))
            open_ = above > best * (1 + tolerance)
            if not open_.any() or seen + 2 * int(open_.sum()) > cells:
                return Extremum(best, upper, at)
            centres, halves = _split(centres[open_], halves[open_])


def _split(centres: Array, halves: Array) -> tuple[Array, Array]:
    """Every cell cut in two across its longest side."""
    shift = np.zeros_like(halves)
    rows, longest = np.arange(len(halves)), halves.argmax(1)
    shift[rows, longest] = halves[rows, longest] / 2
    return np.vstack([centres - shift, centres + shift]), np.vstack([halves - shift] * 2)


def next_states(bound: ErrorBound, low: Array, high: Array, count: int) -> Array:
    """States (count, n) to label next: each where the bound is largest once the ones before it are labelled exactly."""
    chosen: list[Array] = []
    for _ in range(count):
        chosen.append(bound.largest(low, high, tolerance=0.1, cells=20_000).at)
        bound = ErrorBound(np.vstack([bound.points, chosen[-1]]), np.append(bound.residuals, 0.0), bound.slope)
    return np.array(chosen)
