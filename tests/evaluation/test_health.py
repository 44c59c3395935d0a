"""Every sign of a misleading result on planted cases: one that is sound, one that is not, one that cannot be judged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.attacks import Cost
from lipctrl.evaluation import health as h
from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.summary import rows
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import FunctionPolicy, PlainPolicy

Array = NDArray[np.float64]
RADII, EPISODES = (0.0, 0.1, 0.2), 12
NOISE = np.random.default_rng(0).normal(0, 1, EPISODES)


def loops(
    *means: float,
    radii: tuple[float, ...] = RADII,
    saturated: float = 0.0,
    deviation: float = 0.0,
    fallbacks: float = 0.0,
) -> Rollouts:
    """Returns that differ between episodes by the same noise, so that paired differences are exact."""
    shape = (len(radii), EPISODES)
    returns = np.array(means)[:, None] + NOISE
    known: dict[str, Any] = {
        "radii": np.array(radii),
        "returns": returns,
        "lengths": np.full(shape, 100),
        "terminated": np.zeros(shape, bool),
        "deviation": np.array(radii)[:, None] * deviation + np.zeros(shape),
        "roughness": np.zeros(shape),
        "saturated": np.full(shape, saturated),
        "tracking": np.full(shape, np.nan),
        "violation": np.full(shape, np.nan),
        "fallbacks": np.full(shape, fallbacks),
        "iterations": np.full(shape, 1.0),
        "final": np.zeros((*shape, 1)),
    }
    return Rollouts(**known, traces=(), worst=(), cost=Cost())


NET = PlainNet(({0: np.array([[1.0, -2.0]])},), (np.zeros(1),), ())
SOUND: dict[str, tuple[h.Family, Rollouts]] = {
    "none": ("none", loops(100.0, radii=(0.0,))),
    "vertex": ("blind", loops(100.0, 90.0, 80.0)),
    "mad": ("gradient", loops(100.0, 80.0, 60.0, deviation=2.0)),
    "search": ("query", loops(100.0, 85.0, 65.0)),
}


def evidence(certified: float = 3.0, **changed: Rollouts) -> h.Evidence:
    """A sound evaluation with some of its attacks replaced."""
    results = {name: changed.get(name, found) for name, (_, found) in SOUND.items()}
    table = [
        row
        for name, found in results.items()
        for row in rows("p", name, found, [certified * radius for radius in found.radii])
    ]
    last = results["mad"].returns[-1]
    rungs = {"mad": [h.Rung("mad", 0.0, 5, last + 10), h.Rung("mad", 0.3, 9, last + 1), h.Rung("mad", 1.0, 30, last)]}
    states = np.random.default_rng(1).normal(size=(20, 2))
    families = {name: family for name, (family, _) in SOUND.items()}
    return h.Evidence(PlainPolicy(NET), NET, results, families, table, rungs, states)


def test_a_sound_evaluation_has_no_bad_sign() -> None:
    found = h.signs(evidence())
    assert {sign.status for sign in found} == {"good"} and len(found) == 12
    assert len({sign.name for sign in found}) == 12


def bad(sign: h.Sign, words: str) -> None:
    """The sign is bad and says why."""
    assert sign.status == "bad" and words in sign.text, sign


def test_an_attack_at_radius_zero_that_changes_the_return() -> None:
    bad(h.zero_radius(evidence(mad=loops(100.0 + 1e-12, 80.0, 60.0))), "mad")
    alone = replace(evidence(), results={"mad": SOUND["mad"][1]})
    assert h.zero_radius(alone).status == "open"


def test_a_larger_radius_that_finds_less() -> None:
    bad(h.monotone(evidence(mad=loops(100.0, 60.0, 70.0))), "mad does less damage at radius 0.2 than at 0.1")
    # chance does not aim: it may do less damage at a larger radius
    assert h.monotone(evidence(vertex=loops(100.0, 60.0, 70.0))).status == "good"
    assert h.monotone(replace(evidence(), results={"none": SOUND["none"][1]})).status == "open"


def test_noise_is_no_sign() -> None:
    mad = loops(100.0, 80.0, 79.9)
    wobble = np.random.default_rng(2).normal(0, 5, EPISODES)
    noisy = replace(mad, returns=mad.returns + np.array([[0], [1], [-1]]) * (wobble - wobble.mean() - 0.2))
    assert noisy.returns[2].mean() > noisy.returns[1].mean() and h.monotone(evidence(mad=noisy)).status == "good"


def test_more_effort_that_still_finds_more() -> None:
    sound = evidence()
    last = sound.rungs["mad"][-1].returns
    rising = {"mad": [h.Rung("mad", 0.3, 9, last + 8), h.Rung("mad", 1.0, 30, last)]}
    bad(h.converged(replace(sound, rungs=rising)), "20 % of its damage")
    assert h.converged(replace(sound, rungs={})).status == "open"


def test_iterations_that_are_worse_than_one_step() -> None:
    sound = evidence()
    last = sound.rungs["mad"][-1].returns
    misled = {"mad": [h.Rung("mad", 0.0, 5, last - 3), h.Rung("mad", 1.0, 30, last)]}
    bad(h.beats_one_step(replace(sound, rungs=misled)), "single step")
    assert h.beats_one_step(replace(sound, rungs={"mad": sound.rungs["mad"][1:]})).status == "open"


def test_chance_that_beats_gradients() -> None:
    bad(h.beats_blind(evidence(vertex=loops(100.0, 80.0, 40.0))), "vertex does more damage than mad")
    bad(h.beats_blind(evidence(search=loops(100.0, 80.0, 40.0))), "search does more damage than mad")
    without = {name: found for name, (_, found) in SOUND.items() if name != "mad"}
    assert h.beats_blind(replace(evidence(), results=without)).status == "open"


def test_an_attack_that_helps() -> None:
    bad(h.harmful(evidence(mad=loops(100.0, 101.0, 103.0))), "mad raises the return")


def test_actions_at_their_limits() -> None:
    bad(h.limits(evidence(mad=loops(100.0, 80.0, 60.0, saturated=0.9))), "90 %")


def test_an_mpc_whose_fallback_acts() -> None:
    assert "in at most 0 %" in h.solvable(evidence()).text
    bad(h.solvable(evidence(mad=loops(100.0, 80.0, 60.0, fallbacks=3.0))), "none in 3 % of the steps under mad")
    table = [replace(row, fallbacks=None) for row in evidence().table]
    assert h.solvable(replace(evidence(), table=table)).status == "open"


def test_a_saturated_policy_has_no_gradient() -> None:
    """The note's 7.4: a bias of 1e6 before tanh gives a zero gradient everywhere, and the block must warn."""
    flat = PlainNet.mlp([np.ones((3, 2)), np.ones((1, 3))], [np.full(3, 1e6), np.zeros(1)], "tanh")
    bad(h.gradients(replace(evidence(), policy=PlainPolicy(flat), net=flat)), "100 %")
    assert h.gradients(replace(evidence(), net=None)).status == "open"
    assert h.gradients(replace(evidence(), disturbs_observation=False)).status == "open"


def test_gradients_that_are_not_those_of_the_policy() -> None:
    rng = np.random.default_rng(3)
    net = PlainNet.mlp([rng.normal(size=(8, 2)), rng.normal(size=(1, 8))], [rng.normal(size=8), np.zeros(1)], "tanh")
    x = rng.normal(size=(20, 2))
    exact = net.jacobian(x, clipped=False)
    assert h.difference_error(net, x, exact) < 1e-6
    assert h.difference_error(net, x, 1.1 * exact) > 1e-2


def test_a_policy_that_answers_at_random() -> None:
    rng = np.random.default_rng(4)
    noisy = FunctionPolicy(lambda x: rng.normal(size=(len(x), 1)))
    bad(h.deterministic(replace(evidence(), policy=noisy)), "differently")


def test_a_witness_above_the_certificate() -> None:
    bad(h.certificate(evidence(certified=1.9)), "more than the proved")
    assert h.certificate(evidence(certified=2.0)).status == "good"
    table = [replace(row, certified=None) for row in evidence().table]
    assert h.certificate(replace(evidence(), table=table)).status == "open"


def test_few_episodes() -> None:
    table = [replace(row, episodes=9) for row in evidence().table]
    bad(h.enough_episodes(replace(evidence(), table=table)), "9 episodes")
    # the note's 2.3: no failure in 50 episodes leaves 5.8 %
    many = [replace(row, episodes=50) for row in evidence().table]
    assert "5.8 %" in h.enough_episodes(replace(evidence(), table=many)).text


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.0), (1e-12, 0.0), (1e-3, 1e-3)])
def test_a_difference_without_noise_is_decided_down_to_rounding(mean: float, expected: float) -> None:
    assert h.decided(np.full(5, mean)) == pytest.approx(expected)
    assert h.decided(np.array([mean])) == pytest.approx(expected)
