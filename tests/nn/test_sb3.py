"""Lipschitz policies in stock Stable-Baselines3, and the plain network of anybody's zip."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import lipctrl.nn.sb3  # noqa: F401  # registers LipschitzMlpPolicy
from lipctrl.agents.bc import BC
from lipctrl.agents.gail import GAIL, GailSettings
from lipctrl.agents.regularisation import Smoothness
from lipctrl.agents.sac import SAC as SmoothSAC
from lipctrl.agents.td3 import Td3Settings
from lipctrl.certify.bracket import certify
from lipctrl.files import UserError
from lipctrl.nn.sb3 import actor_to_plain, load_zip
from lipctrl.nn.sb3_critic import load_critic

SHORT: dict[type, dict[str, Any]] = {
    SAC: {"learning_starts": 20, "batch_size": 16},
    TD3: {"learning_starts": 20, "batch_size": 16},
    DDPG: {"learning_starts": 20, "batch_size": 16},
    PPO: {"n_steps": 32, "batch_size": 16, "n_epochs": 1},
    A2C: {},
}
BOUNDED = (SAC, TD3, PPO)


def env() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("Pendulum-v1")


def agreement(model: Any, net: Any) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)) * [1, 1, 5]
    expected = np.array([model.predict(row.astype(np.float32), deterministic=True)[0] for row in x])
    assert np.allclose(net(x), expected, atol=2e-5)


@pytest.mark.parametrize("algorithm", BOUNDED, ids=lambda a: a.__name__)
@pytest.mark.parametrize("critic_lip", [None, 10.0])
def test_bounded_policies_train_save_load_and_are_certified(
    algorithm: Any, critic_lip: float | None, tmp_path: Path
) -> None:
    kwargs = {"lip": 3.0, "hidden": (16, 16), "critic_lip": critic_lip}
    model = algorithm("LipschitzMlpPolicy", env(), policy_kwargs=kwargs, seed=0, **SHORT[algorithm])
    model.learn(64)
    net = actor_to_plain(model.policy)
    agreement(model, net)
    bracket = certify(net)
    assert bracket.lower.bound <= bracket.upper.bound <= 3.0 * (1 + 1e-5) and bracket.upper.verify(net)
    model.save(tmp_path / "m.zip")
    assert load_zip(tmp_path / "m.zip").sha256() == net.sha256()
    agreement(algorithm.load(tmp_path / "m.zip"), net)


@pytest.mark.parametrize("algorithm", BOUNDED, ids=lambda a: a.__name__)
def test_policies_alone_are_saved_with_their_settings(algorithm: Any, tmp_path: Path) -> None:
    kwargs = {"lip": 3.0, "hidden": (8,), "activation": "relu", "family": "ldlt", "critic_lip": 5.0}
    model = algorithm("LipschitzMlpPolicy", env(), policy_kwargs=kwargs, seed=0, **SHORT[algorithm])
    model.policy.save(tmp_path / "p.zip")
    again = type(model.policy).load(tmp_path / "p.zip")
    assert (again.lip, again.critic_lip) == (3.0, 5.0)
    assert actor_to_plain(again).sha256() == actor_to_plain(model.policy).sha256()


@pytest.mark.parametrize("algorithm", [SAC, TD3], ids=lambda a: a.__name__)
def test_target_networks_follow(algorithm: Any) -> None:
    kwargs = {"lip": 3.0, "hidden": (8,), "critic_lip": 5.0}
    arguments = SHORT[algorithm] | {"learning_rate": 0.01}
    model = algorithm("LipschitzMlpPolicy", env(), policy_kwargs=kwargs, seed=0, **arguments)
    model.learn(100)
    x, u = torch.randn(9, 3), torch.randn(9, 1)
    with torch.no_grad():
        kept = model.critic_target(x, u)[0]
    # gradients make it build the maps anew
    assert torch.equal(model.critic_target(x, u)[0], kept)


@pytest.mark.parametrize("algorithm", SHORT, ids=lambda a: a.__name__)
@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU, torch.nn.ELU])
def test_anybodys_mlp_policy_can_be_exported(algorithm: Any, activation: Any, tmp_path: Path) -> None:
    kwargs = {"net_arch": [12, 12], "activation_fn": activation}
    model = algorithm("MlpPolicy", env(), policy_kwargs=kwargs, seed=1, **SHORT[algorithm])
    net = actor_to_plain(model.policy)
    agreement(model, net)
    model.save(tmp_path / "m.zip")
    assert load_zip(tmp_path / "m.zip").sha256() == net.sha256()


def imitator(stem: str, critic: str) -> GAIL:
    settings: dict[str, Any] = {"imitation": GailSettings(stem=stem), "td3": Td3Settings(critic=critic)}  # type: ignore[arg-type]
    return GAIL("MlpPolicy", env(), policy_kwargs={"net_arch": [8, 8]}, seed=3, buffer_size=100, **settings)


OWN: dict[str, Callable[[], Any]] = {
    "gail-td3": lambda: imitator("td3", "scalar"),
    "gail-sac": lambda: imitator("sac", "scalar"),
    "gail-c51": lambda: imitator("td3", "c51"),
    "gail-quantile": lambda: imitator("td3", "quantile"),
    "sac-layer-norm": lambda: SmoothSAC(
        "LipschitzMlpPolicy", env(), smoothness=Smoothness(layer_norm=True), seed=3, buffer_size=100
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_actors_of_our_agents_are_exported_whatever_their_critics_are(name: str, tmp_path: Path) -> None:
    """And the critics, with LayerNorm or distributions, are refused in one sentence, not read as others."""
    model = OWN[name]()
    net = actor_to_plain(model.policy)
    agreement(model, net)
    model.save(tmp_path / "m.zip")
    assert load_zip(tmp_path / "m.zip").sha256() == net.sha256()
    with pytest.raises(UserError, match=r"m\.zip have LayerNorm or predict distributions.*attack fit"):
        load_critic(tmp_path / "m.zip")


def test_plain_critics_of_an_imitator_are_read(tmp_path: Path) -> None:
    """Without LayerNorm they are those of the policy class; its list of diagnostics is no sign of behaviour cloning."""
    settings = GailSettings(layer_norm=False)
    model = GAIL("MlpPolicy", env(), policy_kwargs={"net_arch": [8]}, imitation=settings, seed=3, buffer_size=100)
    model.save(tmp_path / "m.zip")
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with torch.no_grad():
        expected = model.critic(torch.tensor(x[:, :3]), torch.tensor(x[:, 3:] / 2))
    for net, values in zip(load_critic(tmp_path / "m.zip"), expected, strict=True):
        assert np.allclose(net(x), values.numpy(), atol=1e-5)


def test_a_cloned_policy_is_loaded_with_its_own_settings(tmp_path: Path) -> None:
    model = BC("BCPolicy", env(), policy_kwargs={"lip": 3.0, "hidden": (8,), "family": "orthogonal"}, seed=5)
    model.save(tmp_path / "m.zip")
    assert load_zip(tmp_path / "m.zip").sha256() == actor_to_plain(model.policy).sha256()


@pytest.mark.parametrize("key", ["actor.mu.0.weight", "actor_target.mu.0.weight"])
def test_an_actor_must_be_stored_whole(key: str, tmp_path: Path) -> None:
    model = imitator("td3", "c51")
    state = model.policy.state_dict()
    del state[key]
    model.policy.state_dict = lambda: state  # type: ignore[method-assign]
    model.save(tmp_path / "m.zip")
    with pytest.raises(UserError, match="not a whole"):
        load_zip(tmp_path / "m.zip")


def test_normaliser_is_folded_in_with_its_clipping() -> None:
    venv = VecNormalize(DummyVecEnv([env]), clip_obs=2.0)
    model = PPO("LipschitzMlpPolicy", venv, policy_kwargs={"lip": 1.5, "hidden": (8,)}, seed=0, **SHORT[PPO])
    model.learn(128)
    net = actor_to_plain(model.policy, normalizer=venv)
    x = np.random.default_rng(0).normal(size=(80, 3)) * [2, 2, 20]
    expected = model.predict(venv.normalize_obs(x.astype(np.float32)), deterministic=True)[0]
    assert np.allclose(net(x), expected, atol=2e-5)
    assert net.input_scale is not None
    assert certify(net).upper.bound <= 1.5 / net.input_scale.min() * (1 + 1e-5)


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="continuous"):
        PPO("LipschitzMlpPolicy", gymnasium.make("CartPole-v1"))
    PPO("MlpPolicy", gymnasium.make("CartPole-v1")).save(tmp_path / "d.zip")
    with pytest.raises(UserError, match="box of actions"):
        load_zip(tmp_path / "d.zip")
    SAC("MlpPolicy", env()).save(tmp_path / "m.zip")
    (tmp_path / "m.zip").write_bytes((tmp_path / "m.zip").read_bytes()[:-500])
    with pytest.raises(UserError, match="not a whole"):
        load_zip(tmp_path / "m.zip")
    with pytest.raises(UserError, match="net_arch"):
        PPO("LipschitzMlpPolicy", env(), policy_kwargs={"net_arch": [8]})
    SAC("MlpPolicy", env(), use_sde=True).save(tmp_path / "s.zip")  # clips its mean by a Hardtanh of its own
    with pytest.raises(UserError, match="Hardtanh"):
        load_zip(tmp_path / "s.zip")
    with pytest.raises(UserError, match="positive"):
        SAC("LipschitzMlpPolicy", env(), policy_kwargs={"lip": -1.0})


def test_state_dependent_exploration_with_squashing_is_exported_with_its_squash() -> None:
    model = PPO("MlpPolicy", env(), use_sde=True, policy_kwargs={"squash_output": True}, seed=2, **SHORT[PPO])
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)
    agreement(model, actor_to_plain(model.policy))


def test_activations_with_other_settings_are_not_taken_for_the_standard_ones() -> None:
    for activation in (partial(torch.nn.Softplus, beta=3), partial(torch.nn.GELU, approximate="tanh")):
        with pytest.raises(UserError, match="cannot be exported"):
            actor_to_plain(TD3("MlpPolicy", env(), policy_kwargs={"activation_fn": activation}).policy)
