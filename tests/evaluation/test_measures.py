"""Measures of closed loops from hand-made sequences, and in a loop whose numbers are known."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import RandomVertex
from lipctrl.attacks.threat import Threat
from lipctrl.evaluation.measures import Measures
from lipctrl.evaluation.rollout import Loops, surrounded
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy
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
