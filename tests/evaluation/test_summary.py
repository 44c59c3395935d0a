"""Statistics against closed forms, and the units of certified deviations."""

import numpy as np
import pytest

from lipctrl.evaluation.summary import certified_deviation, clopper_pearson


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


def test_certified_deviation_in_every_unit() -> None:
    r = np.random.default_rng(1)
    matrix, scale = r.normal(size=(2, 3)), r.uniform(0.1, 3, 3)
    bound = float(np.linalg.norm(matrix, 2))
    for norm in ("l2", "linf"):
        proved = certified_deviation(bound, norm, 0.3, scale)
        z = r.normal(size=(20000, 3))
        z /= np.linalg.norm(z, ord=2 if norm == "l2" else np.inf, axis=1, keepdims=True)
        assert np.linalg.norm(0.3 * z * scale @ matrix.T, axis=1).max() <= proved
