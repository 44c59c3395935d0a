"""Less effort and confinement: what is left of an attack is what was asked for."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.attacks import ATTACKS, SEARCHES, Context, MaximalActionDeviation, RandomVertex, Search
from lipctrl.attacks.critic import ActionValue, CriticAttack
from lipctrl.attacks.effort import Confined, with_effort
from lipctrl.attacks.recorded import Recorded
from lipctrl.disturb.sets import Ball
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy

POLICY = PlainPolicy(PlainNet(({0: np.array([[1.0, -2.0, 3.0]])},), (np.zeros(1),), ()))


def context(rows: int = 4, norm: str = "linf") -> Context:
    r = np.random.default_rng(0)
    ball = Ball(norm, np.full(rows, 0.1), np.array([1.0, 2.0, 0.5]))  # type: ignore[arg-type]  # a norm
    return Context(r.normal(size=(rows, 3)), POLICY, ball, rows, r)


def test_effort_is_a_share_of_iterations_or_closed_loops() -> None:
    mad = MaximalActionDeviation(steps=10, jumps=4, restarts=2)
    half, one = with_effort(mad, 0.5), with_effort(mad, 0.0)
    assert half == MaximalActionDeviation(steps=5, jumps=2, restarts=1)
    assert one == MaximalActionDeviation(steps=1, jumps=0, restarts=1)
    search = with_effort(SEARCHES["constant-search"][0], 0.25)
    assert isinstance(search, Search) and search.loops == 25
    value = ActionValue((PlainNet(({0: np.ones((1, 4))},), (np.zeros(1),), ()),))
    critic = with_effort(CriticAttack(value), 0.0)
    assert isinstance(critic, CriticAttack) and critic.ascent.steps == 1 and critic.critic is value
    assert all(with_effort(ATTACKS[name][0](), 0.5) is None for name in ("none", "uniform", "vertex", "constant"))


def test_less_effort_costs_less() -> None:
    spent = []
    for attack in (with_effort(MaximalActionDeviation(), 0.0), with_effort(MaximalActionDeviation(), 0.5), None):
        now = context()
        (attack or MaximalActionDeviation()).perturb(now)  # type: ignore[union-attr]  # no search
        spent.append(now.cost.evaluations)
    assert spent[0] < spent[1] < spent[2]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_confined_attack_moves_one_component_to_its_end(i: int, norm: str) -> None:
    now = context(norm=norm)
    d = Confined(MaximalActionDeviation(), np.arange(3) == i, 0, 9).perturb(now)
    assert np.allclose(np.abs(d[:, i]), 0.1 * now.ball.scale[i], rtol=1e-6)
    assert (d[:, np.arange(3) != i] == 0).all() and now.cost.evaluations > 0


@pytest.mark.parametrize("name", ["uniform", "vertex", "constant", "mad", "spsa"])
def test_a_component_that_the_policy_ignores_is_harmless(name: str) -> None:
    deaf = PlainPolicy(PlainNet(({0: np.array([[1.0, 0.0, 3.0]])},), (np.zeros(1),), ()))
    now = replace(context(), policy=deaf)
    d = Confined(ATTACKS[name][0](), np.arange(3) == 1, 0, 9).perturb(now)
    assert np.array_equal(deaf.predict(now.observation + d)[0], deaf.predict(now.observation)[0])


def test_a_confined_attack_acts_in_its_time_only() -> None:
    attack, now = Confined(RandomVertex(), np.ones(3, bool), 2, 4), context()
    acted = [bool(attack.perturb(now).any()) for _ in range(6)]
    assert acted == [False, False, True, True, False, False]


def test_a_recording_is_the_same_in_every_row_and_ends() -> None:
    steps = np.random.default_rng(1).normal(size=(3, 3))
    attack, now = Recorded(steps), context()
    found = [attack.perturb(now) for _ in range(5)]
    assert all((found[t] == steps[t]).all() for t in range(3)) and not found[3].any() and not found[4].any()
