"""The numbers at the top of a report, from returns whose statistics are known."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.attacks import Cost
from lipctrl.evaluation.headline import envelope, headline, spent_steps
from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.summary import Row, rows

RADII = (0.0, 0.1, 0.2)


def loops(means: tuple[float, ...], radii: tuple[float, ...] = RADII, failed: int = 0) -> Rollouts:
    shape = (len(means), 10)
    ends = np.zeros(shape, bool)
    ends[-1, :failed] = True
    return Rollouts(
        np.array(radii),
        np.array(means)[:, None] + np.linspace(-1, 1, 10),
        np.full(shape, 50),
        ends,
        np.outer(radii, np.full(10, 2.0)),
        np.full(shape, 0.5),
        np.zeros(shape),
        np.full(shape, 0.25),
        0.3 * ends,
        np.full(shape, 5.0),
        np.full(shape, 2.5),
        np.zeros((*shape, 1)),
        (),
        (),
        Cost(evaluations=7, jacobians=3, steps=1000, loops=20),
    )


def table() -> list[Row]:
    weak = rows("p", "vertex", loops((100.0, 95.0, 90.0)), [0.0, 0.5, 1.0])
    strong = rows("p", "mad", loops((100.0, 96.0, 40.0)), [0.0, 0.5, 1.0])
    return weak + strong + rows("other", "mad", loops((9.0, 9.0, 9.0)), [0.0, 0.5, 1.0])


def test_the_envelope_is_the_worst_of_all_attacks_at_every_radius() -> None:
    radii, lowest = envelope([row for row in table() if row.policy == "p"])
    assert radii.tolist() == [0.0, 0.1, 0.2] and lowest == pytest.approx([100.0, 95.0, 40.0])


def test_headline_of_a_known_case() -> None:
    pair = loops((98.0, 49.0), (0.0, 0.2), failed=2)
    found = headline("p", table(), pair, True, 0.0)
    assert (found.attack, found.radius, found.fresh) == ("mad", 0.2, True)
    assert found.natural.value == pytest.approx(98) and found.worst.value == pytest.approx(49)
    assert found.natural.low < 98 < found.natural.high and found.natural.calibrated
    assert found.drop == pytest.approx(-0.5) and found.cvar == pytest.approx(48)
    # trapezoids of 1, 0.95, 0.4 over two equal intervals; half of 100 is crossed at 0.1 + 0.1 * 45 / 55
    assert found.area == pytest.approx((0.975 + 0.675) / 2)
    assert found.critical == pytest.approx(0.1 + 0.1 * 45 / 55)
    assert (found.failures, found.episodes) == (2, 10)
    assert found.violation == 0.3
    assert (found.fallbacks, found.iterations) == ((0.1, 0.1), (2.5, 2.5))  # 5 of the 50 steps of an episode
    assert (found.failure_low, found.failure_high) == pytest.approx(
        (0.0252, 0.5561), abs=1e-4
    )  # Clopper-Pearson tables
    assert found.deviation == pytest.approx(0.4) and found.certified == 1.0 and found.tightness == pytest.approx(0.4)
    assert found.tracking == pytest.approx((0.25, 0.25)) and found.roughness == pytest.approx((0.5, 0.5))
    assert found.steps == 2 * (3 * 10 * 50 + 1000) and found.calls == 2 * 10


def test_what_cannot_be_said_is_not() -> None:
    pair = replace(loops((0.0, -5.0), (0.0, 0.2)), tracking=np.full((2, 10), np.nan))
    found = headline("p", [replace(row, certified=None) for row in table()], pair, False, 100.0)
    assert found.area is None and found.critical is None  # it earns no more than doing nothing
    assert found.certified is None and found.tightness is None and found.tracking is None
    zero = replace(pair, returns=pair.returns - pair.returns[0].mean())
    assert headline("p", table(), zero, False, 0.0).drop is None


def test_spent_steps_count_every_search_once() -> None:
    own = [row for row in table() if row.policy == "other"]
    assert spent_steps(own) == 3 * 10 * 50 + 1000
