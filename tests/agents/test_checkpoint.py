"""Agents that go on in the middle of an episode do exactly what they would have done."""

from typing import Any

import pytest
import torch

import lipctrl.envs  # noqa: F401  # registers its environments
from lipctrl.agents.checkpoint import load_agents, save_agents
from lipctrl.agents.mbpo import MBPO, RolloutSettings
from lipctrl.agents.sac import SAC
from lipctrl.agents.together import learn_together
from lipctrl.files import UserError
from lipctrl.models.dynamics import DynamicsSettings

TASKS = ["InvertedPendulum-v5", "Hopper-v5", "Pendulum-v1", "lipctrl/DoubleIntegrator-v0"]


def agent(env: str, seed: int, kind: type[SAC] = MBPO, **others: Any) -> SAC:
    settings: dict[str, Any] = {
        "learning_starts": 40,
        "buffer_size": 90,
        "batch_size": 32,
        "device": "cpu",
        "seed": seed,
    }
    if kind is MBPO:
        settings["dynamics"] = DynamicsSettings(width=16, depth=2, cap=30, members=2, elites=1)
        settings["rollouts"] = RolloutSettings(refit_every=25, rows=60, epoch=50, schedule=(0, 2, 1, 3))
    settings["policy_kwargs"] = {"net_arch": [16]}
    return kind("MlpPolicy", env, **settings | others)


@pytest.mark.parametrize("env", TASKS)
@pytest.mark.parametrize("kind", [SAC, MBPO])
def test_resumed_agents_go_on_exactly(env: str, kind: type[SAC]) -> None:
    """Interrupted after 103 of 160 steps, with a replay buffer that has begun to overwrite its oldest rows."""
    whole = [agent(env, seed, kind) for seed in (0, 1)]
    learn_together(whole, 160)
    part = [agent(env, seed, kind) for seed in (0, 1)]
    learn_together(part, 103)
    data = save_agents(part)
    fresh = [agent(env, seed, kind) for seed in (0, 1)]
    load_agents(fresh, data)
    learn_together(fresh, 57, reset_num_timesteps=False)
    for one, other in zip(whole, fresh, strict=True):
        assert one.num_timesteps == other.num_timesteps == 160 and one._n_updates == other._n_updates
        theirs = other.policy.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in one.policy.state_dict().items())
        if isinstance(one, MBPO) and isinstance(other, MBPO):
            assert str(one.history) == str(other.history) and len(one.history) == 5


def test_threads_change_nothing() -> None:
    one, other = ([agent("Hopper-v5", seed, SAC) for seed in (0, 1, 2)] for _ in range(2))
    learn_together(one, 90)
    learn_together(other, 90, threads=3)
    for first, second in zip(one, other, strict=True):
        theirs = second.policy.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in first.policy.state_dict().items())


def test_learned_termination_is_resumed() -> None:
    rollouts = RolloutSettings(refit_every=25, rows=60, epoch=50, termination="learned")
    whole, part, fresh = (agent("InvertedPendulum-v5", 0, rollouts=rollouts) for _ in range(3))
    learn_together([whole], 120)
    learn_together([part], 80)
    load_agents([fresh], save_agents([part]))
    learn_together([fresh], 40, reset_num_timesteps=False)
    assert isinstance(whole, MBPO) and isinstance(fresh, MBPO) and str(whole.history) == str(fresh.history)
    theirs = fresh.policy.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in whole.policy.state_dict().items())


def test_other_settings_and_damaged_files_are_refused() -> None:
    one = agent("Pendulum-v1", 0)
    learn_together([one], 45)
    data = save_agents([one])
    with pytest.raises(UserError, match="damaged"):
        load_agents([one], data[:1000])
    with pytest.raises(UserError, match="2 agents"):
        load_agents([one, one], data)
    with pytest.raises(UserError, match="does not fit"):
        load_agents([agent("Pendulum-v1", 0, policy_kwargs={"net_arch": [8]})], data)
