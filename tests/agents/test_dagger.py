"""DAgger: whose states, whose labels, and what it is good for."""

import gymnasium
import numpy as np

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.agents.dagger import aggregate
from lipctrl.demos.collect import record
from lipctrl.policy import FunctionPolicy, linear_policy

DI = "lipctrl/DoubleIntegrator-v0"


def test_the_learner_acts_and_the_expert_labels() -> None:
    gain = np.array([[0.57917087, 1.54562698]])
    expert = linear_policy(gain, np.array([-1e3]), np.array([1e3]))
    learner = FunctionPolicy(lambda x: -0.3 * x[:, :1] - x[:, 1:])
    env = gymnasium.make(DI)
    demos = record(env, expert, expert="LQR", episodes=2, dither=0.1, seed=0, versions={}, max_steps=5)
    once = aggregate(demos, env, learner, expert, episodes=3, seed=0, max_steps=6)
    twice = aggregate(once, env, learner, expert, episodes=3, seed=0, max_steps=6)
    assert len(once.lengths) == 5 and len(twice.lengths) == 8
    episodes = list(twice.trajectories())
    for old, new in zip(demos.trajectories(), episodes, strict=False):
        assert np.array_equal(old.observations, new.observations)
    starts = {tuple(e.observations[0]) for e in episodes}
    assert len(starts) == 8  # every round has its own start states
    for episode in episodes[2:]:
        x = episode.observations[:-1]
        assert np.allclose(episode.labels, -x @ gain.T)
        assert np.allclose(episode.actions[:, 0], -0.3 * x[:, 0] - x[:, 1], atol=1e-6)
    assert twice.provenance["dagger_rounds"] == 2 and "dagger_rounds" not in demos.provenance
