"""Statistics against closed forms, against scipy, and against coverage measured by others on a bimodal mixture."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from lipctrl.evaluation import statistics as s
from lipctrl.files import UserError


def test_interquartile_mean_ignores_the_outer_quarters() -> None:
    assert s.interquartile_mean(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1000.0])) == 4.5
    assert s.interquartile_mean(np.arange(8.0).reshape(4, 2)) == 3.5


def test_bootstrap_of_the_mean_has_the_normal_width() -> None:
    scores = np.random.default_rng(0).normal(size=(400, 1))
    found = s.stratified_bootstrap(scores, lambda x: float(x.mean()), seed=0)
    width = 2 * 1.96 * scores.std() / math.sqrt(400)
    assert found.high - found.low == pytest.approx(width, rel=0.08) and found.low < found.value < found.high
    assert found.calibrated and s.stratified_bootstrap(scores, seed=0) == s.stratified_bootstrap(scores, seed=0)


def test_bootstrap_resamples_within_tasks() -> None:
    """Tasks of very different size: mixing them would make the interval of the mean wide."""
    scores = np.array([0.0, 1000.0]) + np.random.default_rng(0).normal(size=(20, 2))
    found = s.stratified_bootstrap(scores, lambda x: float(x.mean()), seed=1)
    assert found.high - found.low < 2 and found.value == pytest.approx(500, abs=1)


def test_few_runs_are_marked_or_refused() -> None:
    assert "no interval" in str(s.stratified_bootstrap(np.array([1.0, 2.0]), seed=0))
    five = s.stratified_bootstrap(np.arange(5.0), seed=0)
    assert not five.calibrated and "not calibrated" in str(five)
    assert "calibrated" not in str(s.stratified_bootstrap(np.arange(10.0), seed=0))
    with pytest.raises(UserError, match="finite"):
        s.stratified_bootstrap(np.array([1.0, np.nan, 2.0]), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "coverage"), [(3, 0.63), (5, 0.80), (10, 0.90), (20, 0.93)])
def test_coverage_of_the_bimodal_mixture(runs: int, coverage: float) -> None:
    """70 % survive (mean -170, sd 15), 30 % fail (mean -450, sd 60): the nominal 95 % interval of the mean."""
    rng, truth, hits = np.random.default_rng(0), 0.7 * -170 + 0.3 * -450, 0
    for k in range(1500):
        fails = rng.random(runs) < 0.3
        scores = np.where(fails, rng.normal(-450, 60, runs), rng.normal(-170, 15, runs))
        found = s.stratified_bootstrap(scores, lambda x: float(x.mean()), seed=k, resamples=400)
        hits += found.low <= truth <= found.high
    assert hits / 1500 == pytest.approx(coverage, abs=0.03)


@pytest.mark.slow
def test_choosing_and_reporting_on_the_same_episodes_is_biased_and_on_fresh_ones_is_not() -> None:
    """216 attacks that are equally strong, sd 800, 50 episodes: the minimum is 312 too low; fresh episodes are fair."""
    rng = np.random.default_rng(0)
    same, fresh = [], []
    for _ in range(400):
        chosen = rng.normal(0, 800, (216, 50)).mean(1)
        same.append(chosen.min())
        fresh.append(rng.normal(0, 800, (216, 50)).mean(1)[chosen.argmin()])
    assert np.mean(same) == pytest.approx(-312, abs=10)
    assert abs(np.mean(fresh)) < 3 * 800 / math.sqrt(50 * 400)


def test_profile_and_improvement() -> None:
    scores = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert s.performance_profile(scores, np.array([0.0, 1.0, 2.5, 4.0])).tolist() == [1.0, 0.75, 0.5, 0.0]
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 12).astype(float), rng.integers(0, 5, 9).astype(float)
    assert s.probability_of_improvement(a, b) == pytest.approx(mannwhitneyu(a, b).statistic / (12 * 9))
    assert s.probability_of_improvement(scores, scores) == 0.5
    with pytest.raises(UserError, match="same tasks"):
        s.probability_of_improvement(scores, np.zeros((2, 3)))


def test_value_at_risk() -> None:
    assert s.conditional_value_at_risk(np.arange(10.0), 0.2) == 0.5
    assert s.conditional_value_at_risk(np.arange(10.0), 0.01) == 0.0
    assert s.conditional_value_at_risk(np.arange(10.0), 1.0) == 4.5
    with pytest.raises(UserError, match="share"):
        s.conditional_value_at_risk(np.arange(3.0), 0.0)


def test_curve() -> None:
    radii, returns = np.array([0.0, 1.0, 3.0]), np.array([100.0, 60.0, 20.0])
    found = s.return_curve(radii, returns, floor=0.0, threshold=50.0)
    assert found.area == pytest.approx((0.8 * 1 + 0.4 * 2) / 3) and found.critical == pytest.approx(1.5)
    assert s.return_curve(radii, returns, floor=0.0, threshold=10.0).critical == math.inf
    assert s.return_curve(radii, returns, floor=0.0, threshold=120.0).critical == 0.0
    with pytest.raises(UserError, match="floor"):
        s.return_curve(radii, returns, floor=200.0, threshold=50.0)
    with pytest.raises(UserError, match="increasing"):
        s.return_curve(radii[::-1], returns, floor=0.0, threshold=50.0)
