"""Measures of closed loops from hand-made sequences, and in a loop whose numbers are known."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import NoAttack, RandomVertex
from lipctrl.attacks.threat import Threat
from lipctrl.evaluation.measures import Measures
from lipctrl.evaluation.rollout import Loops, surrounded
from lipctrl.evaluation.summary import rows
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import FunctionPolicy, PlainPolicy
from lipctrl.seeding import seed_of

LIMITED = spaces.Box(np.array([-2.0, -1.0]), np.array([2.0, 1.0]), dtype=np.float64)
FREE = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float64)


def double_integrator() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("lipctrl/DoubleIntegrator-v0", max_episode_steps=20)


def test_measures_of_a_hand_made_episode() -> None:
    measures = Measures(2, LIMITED, np.array([1.0]))
    both, first = np.array([True, True]), np.array([True, False])
    # the second row ends after one step: what stands there afterwards does not count
    measures.step(np.array([[1.0], [4.0]]), np.array([[0.0, 0.0], [0.5, 0.0]]), both)
    measures.step(np.array([[4.0], [99.0]]), np.array([[2.0, 1.0], [9.0, 9.0]]), first)
    measures.step(np.array([[5.0], [99.0]]), np.array([[7.0, 0.0], [-9.0, 9.0]]), first)
    # in half widths (2, 1): a change of (1, 1), then of (0, -1) because the action is applied within its limits
    assert measures.roughness == pytest.approx([(np.sqrt(2) + 1) / 2, 0.0])
    assert measures.saturated == pytest.approx([2 / 3, 0.0])
    assert measures.tracking == pytest.approx([np.sqrt((0 + 9 + 16) / 3), 3.0])


def test_constraints_and_solves_of_a_hand_made_episode() -> None:
    measures = Measures(2, LIMITED, None)
    both, first = np.array([True, True]), np.array([True, False])
    for violation, fell, count, running in (
        ([0.2, 0.0], [True, False], [3, 1], both),
        ([0.0, 9.0], [False, True], [4, 9], first),
        ([0.1, 9.0], [True, True], [5, 9], first),
    ):
        measures.step(np.zeros((2, 1)), np.zeros((2, 2)), running)
        measures.solved(np.array(fell), np.array(count, dtype=np.float64), running)
        measures.reached(np.array(violation), running)
    assert measures.violation.tolist() == [0.2, 0.0]
    assert measures.fallbacks.tolist() == [2.0, 0.0] and measures.iterations.tolist() == [4.0, 1.0]
    measures.reached(np.full(2, np.nan), first)  # a task that declares no constraint
    assert np.isnan(measures.violation[0])
    nothing = Measures(1, LIMITED, None)
    assert np.isnan(nothing.fallbacks[0]) and np.isnan(nothing.iterations[0])


def test_a_violation_is_in_half_ranges() -> None:
    """Full force turns the pole over: the episode ends at its first violation, whose size is that of its last state."""
    loops = Loops(lambda: gymnasium.make("lipctrl/CartPole-v0"))
    push = FunctionPolicy(lambda x: np.full((len(x), 1), 10.0))
    threat = Threat.parse("observation:l2:raw", np.ones(4), ("a", "b", "c", "d"))
    found = loops.run(push, NoAttack(), threat, (0.0,), episodes=3, seed=0)
    assert found.terminated.all()
    over = np.abs(found.final[0]) / np.array([2.4, 0.8, 20.0, 20.0]) - 1
    assert found.violation[0] == pytest.approx(over.max(1)) and (found.violation > 0).all()
    (row,) = rows("push", "none", found, [None])
    assert row.violation == found.violation.max() and row.fallbacks is None and row.iterations is None
    still = Loops(lambda: gymnasium.make("InvertedPendulum-v5"))
    idle = FunctionPolicy(lambda x: np.zeros((len(x), 1)))
    (row,) = rows("idle", "none", still.run(idle, NoAttack(), threat, (0.0,), episodes=1, seed=0), [None])
    assert row.failures == 1 and row.violation is None  # it ends, and declares no limits


def test_without_limits_and_reference() -> None:
    measures = Measures(1, FREE, None)
    for action in (0.0, 5.0, -5.0):
        measures.step(np.zeros((1, 3)), np.array([[action]]), np.array([True]))
    assert measures.roughness == pytest.approx([7.5]) and measures.saturated[0] == 0
    assert np.isnan(measures.tracking).all()


def test_the_worst_episode_is_recorded_with_what_was_done_to_it() -> None:
    """Stepping the environment again under the recorded disturbances and actions gives its return to the last digit."""
    threat = Threat.parse("disturbance:linf:raw", np.ones(2), ("a", "b"), double_integrator())
    loops = Loops(lambda: surrounded(double_integrator(), threat), np.zeros(2))
    policy = PlainPolicy(PlainNet(({0: np.array([[-0.5, -1.4]])},), (np.zeros(1),), ()))
    found = loops.run(policy, RandomVertex(), threat, (0.0, 0.3), episodes=4, seed=3)
    for r, trace in enumerate(found.worst):
        assert trace.episode == found.returns[r].argmin()
        env = loops.envs[0]
        x, total = env.reset(seed=seed_of(3, "episode", trace.episode))[0], 0.0
        for d, action, seen in zip(trace.disturbances, trace.actions, trace.seen, strict=True):
            assert np.array_equal(x, seen)
            env.apply("disturbance", d)
            x, reward, *_ = env.step(action)
            total += float(reward)
        assert total == found.returns[r].min() and np.array_equal(x, trace.last)
        whole = np.vstack([trace.observations])
        assert found.tracking[r, trace.episode] == pytest.approx(np.sqrt((whole**2).sum(1).mean()), rel=1e-12)
