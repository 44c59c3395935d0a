"""Termination rules against the simulators, also near their limits; the learned rule on a known one."""

import gymnasium
import numpy as np
import pytest
import torch

import lipctrl.envs
from lipctrl.agents.termination import LearnedTermination, never, termination_of
from lipctrl.files import UserError

MUJOCO = [
    "Hopper-v5", "Walker2d-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5", "Swimmer-v5", "Reacher-v5",
]  # fmt: skip
STEPS = 10_000


def transitions(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Next observations and the simulator's verdict under random actions, going on for a while after a failure."""
    env = gymnasium.make(name).unwrapped
    env.action_space.seed(0)
    seen, ended, after = [], [], 0
    env.reset(seed=0)
    for _ in range(steps):
        y, _, terminated, _, _ = env.step(env.action_space.sample())
        seen.append(y)
        ended.append(terminated)
        after = after + 1 if terminated else 0
        if after >= 3:
            env.reset()
            after = 0
    return np.array(seen), np.array(ended)


@pytest.mark.parametrize("name", MUJOCO)
def test_rules_agree_with_the_simulator(name: str) -> None:
    seen, ended = transitions(name, STEPS)
    found = termination_of(gymnasium.make(name))(torch.as_tensor(seen)).numpy()
    sure = np.ones(len(seen), bool)
    if name == "InvertedDoublePendulum-v5":  # the simulator's tip is that of the integrator's last stage
        tip = 0.6 * (seen[:, 3] + seen[:, 3] * seen[:, 4] - seen[:, 1] * seen[:, 2])
        sure = np.abs(tip - 1) > 1e-2
        assert sure.mean() > 0.9
    assert (found == ended)[sure].all()
    if name not in ("HalfCheetah-v5", "Swimmer-v5", "Reacher-v5"):
        assert 0.001 < ended.mean() < 0.99


@pytest.mark.parametrize("name", ["Hopper-v5", "Walker2d-v5"])
def test_rules_agree_at_the_limits(name: str) -> None:
    """States a hair inside and outside every limit, judged by gymnasium itself."""
    env = gymnasium.make(name).unwrapped
    env.reset(seed=0)
    rule, position = termination_of(gymnasium.make(name)), env.data.qpos.copy()  # type: ignore[attr-defined]
    checked = set()
    for index, limits in ((1, env._healthy_z_range), (2, env._healthy_angle_range)):  # type: ignore[attr-defined]
        for limit in filter(np.isfinite, limits):
            for offset in (-1e-6, 0.0, 1e-6):
                q = position.copy()
                q[1], q[2] = 1.25, 0.0
                q[index] = limit + offset
                env.set_state(q, np.zeros(env.model.nv))  # type: ignore[attr-defined]
                verdict = not env.is_healthy  # type: ignore[attr-defined]
                assert bool(rule(torch.as_tensor(env._get_obs())[None])) == verdict  # type: ignore[attr-defined]
                checked.add(verdict)
    assert checked == {True, False}


@pytest.mark.parametrize("name", sorted(lipctrl.envs.ENVIRONMENTS))
def test_rules_of_our_plants_agree_with_their_environments(name: str) -> None:
    env = gymnasium.make(name)
    if not hasattr(env.unwrapped, "plant"):
        with pytest.raises(UserError, match="learned"):
            termination_of(env)
        return
    seen, ended = transitions(name, 400)
    assert np.array_equal(termination_of(env)(torch.as_tensor(seen)).numpy(), ended)


def test_what_is_not_finite_ends_an_episode() -> None:
    rows = torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [0.0, torch.inf]])
    assert never(rows).tolist() == [False, True, True]
    assert termination_of(gymnasium.make("Pendulum-v1"))(rows).tolist() == [False, True, True]


def test_unknown_tasks_and_wrapped_observations_are_refused() -> None:
    with pytest.raises(UserError, match="no termination rule is known for CartPoleEnv"):
        termination_of(gymnasium.make("CartPole-v1"))
    with pytest.raises(UserError, match="behind"):
        termination_of(gymnasium.wrappers.FlattenObservation(gymnasium.make("Hopper-v5")))
    with pytest.raises(UserError, match="no termination rule"):
        termination_of(gymnasium.make("Hopper-v5", exclude_current_positions_from_observation=False))


def test_a_learned_rule_finds_a_known_one() -> None:
    draws = torch.Generator().manual_seed(0)
    seen = 2 * torch.randn(5000, 4, generator=draws)
    ended = (seen[:, 1].abs() > 3).float()
    learned = LearnedTermination(4, seed=0)
    assert not learned(seen).any()
    for _ in range(5):
        learned.fit(seen, ended)
    fresh = 2 * torch.randn(5000, 4, generator=draws)
    truth = fresh[:, 1].abs() > 3
    assert (learned(fresh) == truth).float().mean() > 0.97
    assert bool(learned(torch.full((1, 4), torch.nan)))
