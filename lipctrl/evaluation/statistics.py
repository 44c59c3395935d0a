"""Statistics of returns over trainings and tasks: interquartile mean, stratified bootstrap, profiles, improvement.

Scores are arrays (runs, tasks): one row per training, one column per task (or radius), as in Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS 2021, arXiv 2108.13264). Intervals are over
trainings; an interval over episodes of one agent says nothing about the method, and the other way round.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from lipctrl.files import UserError

Array = NDArray[np.float64]
RESAMPLES = 2000
CALIBRATED = 10  # runs from which a bootstrap interval of a bimodal mixture covers about 90 % where it says 95 %
FEWEST = 3  # runs below which no interval is given


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval.

    Attributes:
        value: of the data. low, high: percentiles of the resamples; not a number with fewer than 3 runs.
        runs: trainings it is over.
    """

    value: float
    low: float
    high: float
    runs: int

    @property
    def calibrated(self) -> bool:
        """Whether there are enough runs for the interval to mean what it says."""
        return self.runs >= CALIBRATED

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.value:.5g} ({self.runs} runs: no interval)"
        mark = "" if self.calibrated else f"; {self.runs} runs: not calibrated"
        return f"{self.value:.5g} [{self.low:.5g}, {self.high:.5g}{mark}]"


def interquartile_mean(scores: Array) -> float:
    """Mean of the middle half of all scores, whatever run and task they are of."""
    return float(trim_mean(scores, 0.25, axis=None))


def stratified_bootstrap(
    scores: Array,
    statistic: Callable[[Array], float] = interquartile_mean,
    *,
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Percentile interval of a statistic when the runs of every task are resampled independently.

    Args:
        scores: (runs, tasks), or (runs,) for one task. statistic: of an array of that shape.
        seed: of the resamples. confidence: of the interval.

    Raises:
        UserError: no scores, or scores that are not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise UserError(f"scores need shape (runs, tasks) and finite numbers, found shape {np.shape(scores)}")
    runs, tasks = table.shape
    if runs < FEWEST:
        return Interval(statistic(table), float("nan"), float("nan"), runs)
    rng = np.random.default_rng(seed)
    values = [
        statistic(np.take_along_axis(table, rng.integers(0, runs, (runs, tasks)), axis=0)) for _ in range(resamples)
    ]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(statistic(table), float(low), float(high), runs)


def performance_profile(scores: Array, thresholds: Array) -> Array:
    """Share of all runs whose score is above each threshold, shape (thresholds,): whole distributions side by side."""
    return np.asarray((np.asarray(scores, np.float64).ravel()[:, None] > thresholds).mean(0))


def probability_of_improvement(a: Array, b: Array) -> float:
    """Probability that a random run of method a beats one of b on a random task; ties count half (Mann-Whitney U).

    Args:
        a, b: scores (runs, tasks) with the same tasks, or (runs,).

    Raises:
        UserError: different numbers of tasks.
    """
    first, second = (np.asarray(x, np.float64) for x in (a, b))
    first, second = (x[:, None] if x.ndim == 1 else x for x in (first, second))
    if first.shape[1] != second.shape[1]:
        raise UserError(f"both methods need the same tasks, found {first.shape[1]} and {second.shape[1]}")
    wins = first[:, None] > second
    ties = first[:, None] == second
    return float((wins + 0.5 * ties).mean())


def conditional_value_at_risk(returns: Array, share: float = 0.1) -> float:
    """Mean of the lowest share of returns (at least one of them).

    Raises:
        UserError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"share must be in (0, 1], found {share}")
    worst = np.sort(np.asarray(returns, np.float64).ravel())
    return float(worst[: max(1, int(np.ceil(share * len(worst) - 1e-12)))].mean())


@dataclass(frozen=True)
class Curve:
    """A curve of mean return against attack radius in two numbers.

    Attributes:
        area: mean over radii of (return - floor) / (nominal - floor), by the trapezoidal rule; 1: nothing is lost.
        critical: smallest radius at which the interpolated return falls below the threshold; infinite if it does not.
    """

    area: float
    critical: float


def return_curve(radii: Array, returns: Array, *, floor: float, threshold: float) -> Curve:
    """Area under the return-radius curve, and the radius at which the return crosses a threshold.

    Args:
        radii: increasing, the first 0. returns: mean return at each. floor: return of a controller that does nothing.

    Raises:
        UserError: radii that do not increase from 0, or a nominal return that is not above the floor.
    """
    x, y = np.asarray(radii, np.float64), np.asarray(returns, np.float64)
    if len(x) < 2 or x[0] != 0 or (np.diff(x) <= 0).any() or x.shape != y.shape:
        raise UserError(f"a curve needs increasing radii from 0 with one return each, found {x} and {y.shape}")
    if not y[0] > floor:
        raise UserError(f"the nominal return {y[0]:g} must be above the floor {floor:g}")
    area = float(np.trapezoid((y - floor) / (y[0] - floor), x) / x[-1])
    if y[0] < threshold:
        return Curve(area, 0.0)
    for k in range(1, len(x)):
        if y[k] < threshold:
            share = (y[k - 1] - threshold) / (y[k - 1] - y[k])
            return Curve(area, float(x[k - 1] + share * (x[k] - x[k - 1])))
    return Curve(area, float("inf"))
