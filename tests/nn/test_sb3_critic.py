"""Critics of zips in raw units, against Stable-Baselines3's own critic networks."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import lipctrl.nn.sb3  # noqa: F401  # registers LipschitzMlpPolicy
from lipctrl.files import UserError
from lipctrl.nn.sb3 import actor_to_plain
from lipctrl.nn.sb3_critic import load_critic

OFF: dict[str, Any] = {"learning_starts": 20, "batch_size": 16}
ON: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 1}


def make() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("Pendulum-v1")


def reference(model: Any, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """What SB3 computes, on observations as its networks receive them: (batch, networks)."""
    seen = torch.tensor(x, dtype=torch.float32)
    with torch.no_grad():
        if hasattr(model, "critic"):
            scaled = torch.tensor(model.policy.scale_action(u), dtype=torch.float32)
            return torch.cat(model.critic(seen, scaled), dim=1).numpy()
        return np.asarray(model.policy.predict_values(seen).numpy())


@pytest.mark.parametrize("kind", [SAC, TD3, PPO, A2C], ids=lambda k: k.__name__)
@pytest.mark.parametrize("policy", ["MlpPolicy", "LipschitzMlpPolicy"])
def test_values_are_those_of_stable_baselines(kind: Any, policy: str, tmp_path: Path) -> None:
    if policy != "MlpPolicy" and kind is A2C:
        pytest.skip("not registered")
    on = kind in (PPO, A2C)
    arguments = (ON if kind is PPO else {}) if on else OFF
    bounded = {"policy_kwargs": {"critic_lip": 4.0}} if policy != "MlpPolicy" else {}
    model = kind(policy, make(), seed=0, **arguments, **bounded)
    model.learn(64)
    model.save(tmp_path / "m.zip")
    nets = load_critic(tmp_path / "m.zip")
    r = np.random.default_rng(0)
    x, u = r.normal(size=(40, 3)), r.uniform(-2, 2, size=(40, 1))
    inputs = x if on else np.hstack([x, u])
    found = np.hstack([net(inputs) for net in nets])
    assert np.allclose(found, reference(model, x, u), atol=1e-4, rtol=1e-4)
    assert len(nets) == (1 if on else 2)


@pytest.mark.parametrize("kind", [SAC, PPO], ids=lambda k: k.__name__)
def test_behind_vecnormalize_observations_stay_raw(kind: Any, tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([make]), clip_obs=1.5)
    model = kind("MlpPolicy", env, seed=0, **(ON if kind is PPO else OFF))
    model.learn(64)
    model.save(tmp_path / "m.zip")
    nets = load_critic(tmp_path / "m.zip", policy=actor_to_plain(model.policy, normalizer=env))
    r = np.random.default_rng(0)
    x, u = r.normal(size=(40, 3)) * [1, 1, 8], r.uniform(-2, 2, size=(40, 1))
    seen = env.normalize_obs(x)
    assert (np.abs(seen) == 1.5).any()  # the clipping counts
    found = np.hstack([net(x if kind is PPO else np.hstack([x, u])) for net in nets])
    assert np.allclose(found, reference(model, seen, u), atol=1e-4, rtol=1e-4)


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "m.zip").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="not a whole"):
        load_critic(tmp_path / "m.zip")
    model = SAC("MlpPolicy", make(), **OFF)
    with pytest.raises(UserError, match="holds no critic"):
        from lipctrl.nn import sb3_critic

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sb3_critic, "load_policy", lambda path: model.actor)
            load_critic(tmp_path / "m.zip")
