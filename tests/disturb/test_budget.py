"""Budgets: whatever an attack asks for, what is paid stays in the set; and the set is what the module says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.disturb.budget import Budget, Purse
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError

STEPS, ROWS, N = 12, 6, 2
Array = NDArray[np.float64]


def ball(norm: str) -> Ball:
    return Ball(norm, np.repeat([0.0, 0.5, 1.0], 2), np.array([1.0, 3.0]))  # type: ignore[arg-type]  # both are norms


def spent(text: str, norm: str, *, spread: bool) -> Array:
    """A greedy attack: random extreme points of whatever is offered."""
    random = np.random.default_rng(1)
    purse = Purse(Budget.parse(text), ball(norm), steps=STEPS, episodes=2, spread=spread, random=random)
    return np.stack([purse.pay(purse.offer().boundary(random.standard_normal((ROWS, N)))) for _ in range(STEPS)])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("text", ["step", "sparse=3", "rate=0.25", "episode"])
@pytest.mark.parametrize("spread", [True, False])
def test_what_is_paid_stays_in_the_set_and_uses_it(text: str, norm: str, spread: bool) -> None:
    if text == "episode" and norm == "linf":
        return  # an energy is a sum of squares
    d, whole = spent(text, norm, spread=spread), ball(norm)
    assert Budget.parse(text).contains(whole, d)
    size = np.stack([whole.size(row) for row in d])
    used = {
        "step": size.min(0),
        "episode": np.linalg.norm(size, axis=0),
        "sparse=3": np.sort(size, axis=0)[-3],
        "rate=0.25": size[0] * 4,
    }[text]
    assert np.allclose(used, whole.radius)
    if text == "sparse=3":
        assert ((size > 0).sum(0)[2:] == 3).all()


def test_membership_is_judged_from_the_sequence() -> None:
    one = Ball("l2", np.ones(1), np.ones(1))

    def inside(text: str, *values: float) -> bool:
        return Budget.parse(text).contains(one, np.array(values).reshape(-1, 1, 1))

    assert inside("step", 1, -1, 1) and not inside("step", 1.1)
    assert inside("episode", 0.6, 0.8) and not inside("episode", 0.6, 0.81)
    assert inside("sparse=2", 1, 0, 1) and not inside("sparse=2", 0.1, 0.1, 0.1) and not inside("sparse=2", 1.1)
    assert inside("rate=0.5", 0.5, 1, 0.5) and not inside("rate=0.5", 0.6) and not inside("rate=0.5", 0.5, 1, 1.4)


def test_an_energy_is_spread_evenly_for_attacks_that_do_not_choose_times() -> None:
    d = spent("episode", "l2", spread=True)
    size = np.stack([ball("l2").size(row) for row in d])
    assert np.allclose(size, ball("l2").radius / np.sqrt(STEPS))
    assert np.allclose(spent("episode", "l2", spread=False)[1:], 0, atol=1e-6)


def test_random_times_are_common_to_all_radii() -> None:
    size = np.abs(spent("sparse=3", "linf", spread=True)).max(2) > 0
    assert np.array_equal(size[:, 2:4], size[:, 4:6]) and not np.array_equal(size[:, 2], size[:, 3])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("episod", "episode"),
        ("sparse", "whole number"),
        ("sparse=2.5", "whole number"),
        ("rate=-1", "positive"),
        ("rate=x", "positive"),
        ("step=3", "no number"),
    ],
)
def test_bad_budgets_are_named(text: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        Budget.parse(text)


def test_a_budget_prints_as_it_is_read() -> None:
    for text in ("step", "episode", "sparse=5", "rate=0.1"):
        assert str(Budget.parse(text)) == text
