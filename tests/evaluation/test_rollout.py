"""Batched closed loops against a plain loop, the LQR oracle, and policies that misbehave."""

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import ATTACKS, MaximalActionDeviation, NoAttack
from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.attacks.threat import Threat
from lipctrl.evaluation.rollout import Loops, Rollouts
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.policy import FunctionPolicy, linear_policy
from lipctrl.seeding import seed_of

DI = "lipctrl/DoubleIntegrator-v0"
SOLUTION = lqr([[1, 1], [0, 1]], [[0], [1]], np.eye(2), [[0.1]])
POLICY = linear_policy(SOLUTION.K, np.array([-1e3]), np.array([1e3]))
RAW = Threat.parse("observation:l2:raw", np.array([0.4, 0.4]), ("a", "b"))
RADII = (0.0, 0.1, 0.2)


@pytest.fixture(scope="module")
def loops() -> Loops:
    return Loops(lambda: gymnasium.make(DI))


def test_nominal_returns_equal_a_plain_loop(loops: Loops) -> None:
    result = loops.run(POLICY, NoAttack(), RAW, [0.0], episodes=3, seed=7)
    env = gymnasium.make(DI)
    for e in range(3):
        x, _ = env.reset(seed=seed_of(7, "episode", e))
        total, done = 0.0, False
        while not done:
            x, reward, end, cut, _ = env.step(POLICY.predict(x)[0])
            total, done = total + float(reward), end or cut
        # a matrix product may round differently for one row and for a batch
        assert result.returns[0, e] == pytest.approx(total, rel=1e-12) and result.lengths[0, e] == 100
    assert not result.terminated.any() and np.allclose(result.final[0, 2], x, atol=1e-12)


@pytest.mark.parametrize("name", ATTACKS)
def test_radius_zero_is_the_nominal_loop_bitwise(name: str, loops: Loops) -> None:
    nominal = loops.run(POLICY, NoAttack(), RAW, [0.0], episodes=3, seed=1)
    attacked = loops.run(POLICY, ATTACKS[name][0](), RAW, RADII, episodes=3, seed=1)
    assert np.array_equal(attacked.returns[0], nominal.returns[0])
    assert (attacked.deviation[0] == 0).all()


@pytest.mark.parametrize("line", ["observation:l2:raw", "observation:linf:normalised"])
def test_attacks_reach_and_never_exceed_the_closed_form(line: str, loops: Loops) -> None:
    threat = Threat.parse(line, np.array([0.4, 0.7]), ("a", "b"))

    def extra(rollouts: Rollouts) -> NDArray[np.float64]:
        terminal = np.einsum("rei,ij,rej->re", rollouts.final, SOLUTION.P, rollouts.final)
        cost = terminal - rollouts.returns
        return np.asarray(cost - cost[:1])

    exact = [
        lqr_extra_cost(
            SOLUTION.K, SOLUTION.S, norm=threat.words.norm, radius=r, scale=threat.ball(np.zeros(1)).scale, steps=100
        )
        for r in RADII
    ]
    for name in ATTACKS:
        found = extra(loops.run(POLICY, ATTACKS[name][0](), threat, RADII, episodes=4, seed=3))
        for k, best in enumerate(exact):
            assert (found[k] <= best * (1 + 1e-9) + 1e-9).all()
            if name == "mad":
                assert np.allclose(found[k], best, rtol=1e-6)


def test_linear_cost_identity_holds_from_any_start(loops: Loops) -> None:
    nominal = loops.run(POLICY, NoAttack(), RAW, [0.0], episodes=3, seed=5)
    start = nominal.traces[0].observations[0]
    last = nominal.final[0, 0]
    assert -nominal.returns[0, 0] + last @ SOLUTION.P @ last == pytest.approx(start @ SOLUTION.P @ start, rel=1e-12)


def test_failure_ends_an_episode_and_is_not_truncation() -> None:
    loops = Loops(lambda: gymnasium.make("InvertedPendulum-v5"))
    still = FunctionPolicy(lambda x: np.zeros((len(x), 1)))
    threat = Threat.parse("observation:l2:raw", np.ones(4), ("a", "b", "c", "d"))
    result = loops.run(still, NoAttack(), threat, [0.0], episodes=2, seed=0)
    assert result.terminated.all() and (result.lengths < 1000).all()
    assert len(result.traces[0].observations) == result.lengths[0, 0]
    assert abs(result.traces[0].last[1]) > 0.2  # the task fails beyond 0.2 rad


Broken = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: np.full((len(x), 1), np.nan), "not finite"),
        (lambda x: np.zeros((len(x), 3)), "shape"),
    ],
)
def test_policies_that_misbehave_are_named(function: Broken, words: str, loops: Loops) -> None:
    with pytest.raises(UserError, match=words):
        loops.run(FunctionPolicy(function), NoAttack(), RAW, [0.0], episodes=1, seed=0)


def test_an_attack_outside_its_set_is_a_bug(loops: Loops) -> None:
    class Cheat(MaximalActionDeviation):
        def perturb(self, context: object) -> NDArray[np.float64]:
            return np.ones((2, 2))

    with pytest.raises(RuntimeError, match="Cheat"):
        loops.run(POLICY, Cheat(), RAW, [0.1], episodes=2, seed=0)
