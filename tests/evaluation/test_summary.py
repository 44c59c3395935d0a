"""Statistics against closed forms, and the units of certified deviations."""

import numpy as np
import pytest

from lipctrl.evaluation.summary import clopper_pearson


def test_no_failures_in_n_trials() -> None:
    for n, bound in ((50, 0.0711), (300, 0.0122)):
        low, high = clopper_pearson(0, n)
        assert (
            low == 0
            and high == pytest.approx(1 - 0.025 ** (1 / n), rel=1e-9)
            and high == pytest.approx(bound, abs=2e-4)
        )
    assert clopper_pearson(7, 7)[1] == 1


def test_interval_covers_at_its_level() -> None:
    r = np.random.default_rng(0)
    hits = [low <= 0.2 <= high for low, high in (clopper_pearson(int(k), 20) for k in r.binomial(20, 0.2, 4000))]
    assert np.mean(hits) >= 0.95
