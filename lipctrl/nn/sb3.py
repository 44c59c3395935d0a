"""Lipschitz actors for stock Stable-Baselines3 algorithms, and the plain network of any SB3 policy.

Importing this module registers "LipschitzMlpPolicy" with SAC, TD3 and PPO:

    import lipctrl.nn.sb3
    model = SAC("LipschitzMlpPolicy", env, policy_kwargs=dict(lip=4.0))

`lip` bounds the deterministic policy in raw units of action per unit of the observation that it receives (l2). SAC and
TD3 squash and unscale to the action limits, which multiplies the constant by half the widest range; PPO clips, which
does not enlarge it. Behind VecNormalize the observation is a normalised one: divide by the smallest standard deviation.
SAC's exploration takes its spread from an ordinary network, which the deterministic policy does not use.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, ContinuousCritic
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import Actor as SacActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as Td3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.graph import GraphNet
from lipctrl.nn.network import lipschitz_mlp
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
SUPPORTED = "SAC, TD3, DDPG, PPO and A2C with MlpPolicy or LipschitzMlpPolicy, and lipctrl's own agents"
SCALAR_MODULES: dict[type[nn.Module], str] = {
    nn.Tanh: "tanh", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.Softplus: "softplus", nn.SiLU: "silu", nn.GELU: "gelu",
    nn.Hardtanh: "hardtanh", nn.Softsign: "softsign", nn.Mish: "mish", nn.Hardswish: "hardswish",
}  # fmt: skip


@runtime_checkable
class _Exports(Protocol):
    def to_plain(self) -> PlainNet: ...


def _half_range(space: spaces.Box) -> float:
    return float(np.max((space.high.astype(np.float64) - space.low.astype(np.float64)) / 2))


class _Bounded:
    """What the policies share: the settings of the Lipschitz actor and critics."""

    def _remember(
        self,
        lip: float,
        family: str,
        hidden: Sequence[int],
        activation: str,
        critic_lip: float | None,
        lipschitz_seed: int,
    ) -> None:
        self.lip, self.family, self.hidden, self.activation = lip, family, tuple(hidden), activation
        self.critic_lip, self.lipschitz_seed = critic_lip, lipschitz_seed

    def _settings(self) -> dict[str, Any]:
        """What `policy.save` must store for `load` to build the same networks."""
        names = ("lip", "family", "hidden", "activation", "critic_lip", "lipschitz_seed")
        return {name: getattr(self, name) for name in names}

    def _net(self, inputs: int, outputs: int, lip: float) -> GraphNet:
        sizes = (inputs, *self.hidden, outputs)
        return lipschitz_mlp(self.family, sizes, lip, activation=self.activation, seed=self.lipschitz_seed)


class LipschitzSacActor(SacActor):
    """SAC's actor with a Lipschitz mean; the spread keeps SB3's own network."""

    def get_action_dist_params(self, obs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mean, log standard deviation and keyword arguments of the action distribution."""
        features = self.extract_features(obs, self.features_extractor)
        log_std = torch.clamp(self.log_std(self.latent_pi(features)), -20, 2)  # type: ignore[operator]  # SB3's limits
        return self.mu(features), log_std, {}


class LipschitzSacPolicy(SACPolicy, _Bounded):
    """SAC's policy with a Lipschitz actor and, on request, Lipschitz critics.

    Args:
        lip: l2 bound of the deterministic policy in raw units.
        family, hidden, activation: of the actor (and of Lipschitz critics), see `nn.network`.
        critic_lip: l2 bound of each critic in (observation, scaled action), or None for ordinary critics.
        lipschitz_seed: of their initial weights.
        others: as in Stable-Baselines3.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        lip: float = 4.0,
        family: str = "sandwich",
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        critic_lip: float | None = None,
        lipschitz_seed: int = 0,
        **others: Any,
    ) -> None:
        self._remember(lip, family, hidden, activation, critic_lip, lipschitz_seed)
        if others.get("use_sde"):
            raise UserError("LipschitzMlpPolicy does not support use_sde")
        super().__init__(observation_space, action_space, lr_schedule, **others)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SacActor:
        """The actor."""
        arguments = self._update_features_extractor(self.actor_kwargs, features_extractor)
        actor = LipschitzSacActor(**arguments)
        assert isinstance(self.action_space, spaces.Box)
        bound = self.lip / _half_range(self.action_space)
        actor.mu = self._net(actor.features_dim, self.action_space.shape[0], bound)
        return actor.to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """The critics."""
        return _bounded_critic(super().make_critic(features_extractor), self)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._settings()


class LipschitzTd3Policy(TD3Policy, _Bounded):
    """TD3's policy with a Lipschitz actor and, on request, Lipschitz critics; arguments as in `LipschitzSacPolicy`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        lip: float = 4.0,
        family: str = "sandwich",
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        critic_lip: float | None = None,
        lipschitz_seed: int = 0,
        **others: Any,
    ) -> None:
        self._remember(lip, family, hidden, activation, critic_lip, lipschitz_seed)
        super().__init__(observation_space, action_space, lr_schedule, **others)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Td3Actor:
        """The actor."""
        actor = super().make_actor(features_extractor)
        assert isinstance(self.action_space, spaces.Box)
        bound = self.lip / _half_range(self.action_space)
        net = self._net(actor.features_dim, self.action_space.shape[0], bound)
        actor.mu = nn.Sequential(net, nn.Tanh())
        return actor.to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> ContinuousCritic:
        """The critics."""
        return _bounded_critic(super().make_critic(features_extractor), self)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._settings()


def _bounded_critic(critic: ContinuousCritic, policy: _Bounded) -> ContinuousCritic:
    """Replace each Q network by a Lipschitz one, if a bound is set."""
    if policy.critic_lip is None:
        return critic
    for k in range(len(critic.q_networks)):
        first = next(m for m in critic.q_networks[k].modules() if isinstance(m, nn.Linear))
        net = policy._net(first.in_features, 1, policy.critic_lip)
        with torch.no_grad():  # twins must differ
            for parameter in net.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        critic.q_networks[k] = nn.Sequential(net)
        setattr(critic, f"qf{k}", critic.q_networks[k])
    return critic.to(critic.device)


class LipschitzActorCriticPolicy(ActorCriticPolicy, _Bounded):
    """PPO's policy with a Lipschitz mean and, on request, a Lipschitz value; arguments as in `LipschitzSacPolicy`.

    `hidden` takes the place of `net_arch`, also for an ordinary value.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        lip: float = 4.0,
        family: str = "sandwich",
        hidden: Sequence[int] = (64, 64),
        activation: str = "tanh",
        critic_lip: float | None = None,
        lipschitz_seed: int = 0,
        **others: Any,
    ) -> None:
        self._remember(lip, family, hidden, activation, critic_lip, lipschitz_seed)
        if not isinstance(action_space, spaces.Box) or others.get("use_sde"):
            raise UserError("LipschitzMlpPolicy needs continuous actions and does not support use_sde")
        if "net_arch" in others:
            raise UserError("PPO's LipschitzMlpPolicy takes its widths from hidden; found net_arch")
        value = [] if critic_lip is not None else list(hidden)
        super().__init__(observation_space, action_space, lr_schedule, net_arch={"pi": [], "vf": value}, **others)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        assert isinstance(self.action_space, spaces.Box)
        self.action_net = self._net(self.features_dim, self.action_space.shape[0], self.lip)
        if self.critic_lip is not None:
            self.value_net = self._net(self.features_dim, 1, self.critic_lip)  # type: ignore[assignment]
        rate: dict[str, Any] = {"lr": lr_schedule(1)}
        self.optimizer = self.optimizer_class(self.parameters(), **rate, **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        del parameters["net_arch"]
        return parameters | self._settings()


SAC.policy_aliases["LipschitzMlpPolicy"] = LipschitzSacPolicy
TD3.policy_aliases["LipschitzMlpPolicy"] = LipschitzTd3Policy
PPO.policy_aliases["LipschitzMlpPolicy"] = LipschitzActorCriticPolicy


def actor_to_plain(policy: BasePolicy, *, normalizer: VecNormalize | None = None) -> PlainNet:
    """The deterministic deployed policy as a plain network in raw units.

    Args:
        policy: `model.policy` of SAC, TD3, DDPG, PPO or A2C with an MLP policy, or one with its own `to_plain`.
        normalizer: the VecNormalize wrapper that the policy was trained behind, if any: its observation statistics are
            folded in, its clipping included.

    Raises:
        UserError: a policy that is not an MLP from a flat observation to a box of actions.
    """
    if isinstance(policy, _Exports):
        return policy.to_plain()
    space = policy.action_space
    flat = isinstance(policy.observation_space, spaces.Box) and len(policy.observation_space.shape) == 1
    if not isinstance(space, spaces.Box) or not flat or policy.features_extractor_class is not FlattenExtractor:
        raise UserError(f"only policies from a flat observation to a box of actions can be exported ({SUPPORTED})")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if isinstance(policy, SACPolicy):
        actor = policy.actor
        parts = [actor.mu] if isinstance(actor.mu, GraphNet) else [*actor.latent_pi, actor.mu]
        net = _squashed(layers_to_plain(parts), low, high)
    elif isinstance(policy, TD3Policy):
        assert isinstance(policy.actor.mu, nn.Sequential)
        net = _squashed(layers_to_plain(list(policy.actor.mu)[:-1]), low, high)
    elif isinstance(policy, ActorCriticPolicy):
        parts = [*policy.mlp_extractor.policy_net, policy.action_net]
        net = layers_to_plain(parts)
        net = _squashed(net, low, high) if policy.squash_output else replace(net, low=low, high=high)
    else:
        raise UserError(f"{type(policy).__name__} is not one of the policies that can be exported: {SUPPORTED}")
    return net if normalizer is None else _normalised(net, normalizer)


def layers_to_plain(parts: Sequence[nn.Module]) -> PlainNet:
    """The plain network of a Lipschitz net alone, or of linear layers with activations between them."""
    if len(parts) == 1 and isinstance(parts[0], GraphNet):
        return parts[0].to_plain()
    weights, biases, activations = [], [], []
    for part in parts:
        if isinstance(part, nn.Linear):
            weights.append(part.weight.detach().double().cpu().numpy())
            biases.append(part.bias.detach().double().cpu().numpy())
        elif type(part) in SCALAR_MODULES and _has_default_settings(part):
            activations.append(Activation.parse(SCALAR_MODULES[type(part)]))
        elif isinstance(part, nn.ELU | nn.LeakyReLU):
            slope = part.alpha if isinstance(part, nn.ELU) else part.negative_slope
            activations.append(Activation("elu" if isinstance(part, nn.ELU) else "leaky_relu", float(slope)))
        else:
            raise UserError(f"layer {part} cannot be exported; supported: linear layers and activations")
    return PlainNet.mlp(weights, biases, activations)


def _has_default_settings(part: nn.Module) -> bool:
    """Whether an activation is the standard one: not, for example, Hardtanh(-2, 2) or Softplus(beta=2)."""
    return part.extra_repr() in ("inplace=True", type(part)().extra_repr())


def _squashed(net: PlainNet, low: Array, high: Array) -> PlainNet:
    """middle + half * tanh(net): the output becomes a hidden tanh layer."""
    half, layers = (high - low) / 2, len(net.blocks)
    multipliers = None
    if net.multipliers is not None or not net.widths:
        scale = float(np.max(half**2))
        multipliers = tuple([*(scale * m for m in net.multipliers or ()), np.full(net.output_size, scale)])
    return replace(
        net,
        blocks=(*net.blocks, {layers: np.diag(half)}),
        biases=(*net.biases, (high + low) / 2),
        activations=(*net.activations, Activation.parse("tanh")),
        multipliers=multipliers,
    )


def _normalised(net: PlainNet, normalizer: VecNormalize) -> PlainNet:
    """Put VecNormalize's (x - mean) / std, clipped, in front: a first hidden layer of hardtanh."""
    if not normalizer.norm_obs:
        return net
    statistics, clip = normalizer.obs_rms, normalizer.clip_obs
    if isinstance(statistics, dict):
        raise UserError("dictionary observations cannot be exported")
    std = np.sqrt(statistics.var + normalizer.epsilon)
    first = np.diag(1 / (std * clip))
    blocks = [{0: first}, *({j + 1: clip * w if j == 0 else w for j, w in row.items()} for row in net.blocks)]
    return replace(
        net,
        blocks=tuple(blocks),
        biases=(-first @ statistics.mean, *net.biases),
        activations=(Activation.parse("hardtanh"), *net.activations),
        input_mean=np.asarray(statistics.mean, dtype=np.float64),
        input_scale=std,
        multipliers=None,
    )


def load_zip(path: Path) -> PlainNet:
    """The plain network of a Stable-Baselines3 zip. Loading unpickles: open only files that you trust.

    Raises:
        UserError: damaged, not an SB3 zip, or of a policy that cannot be exported.
    """
    return actor_to_plain(load_policy(path))


def load_policy(path: Path) -> BasePolicy:
    """The policy of a Stable-Baselines3 zip; unpickles. Raises UserError as `load_zip`.

    Without `critic` and `critic_target` where these are not the ones that the policy class builds (our SAC and GAIL put
    LayerNorm into them, or let them predict distributions): nothing that acts needs them.
    """
    try:
        data, parameters, _ = load_from_zip_file(path, device="cpu")
        assert data is not None
        policy_class, arguments = data["policy_class"], data.get("policy_kwargs", {})
        policy = policy_class(
            data["observation_space"], data["action_space"], lambda _: 0.0, **(arguments | _sde(data))
        )
        stored: Any = parameters["policy"]  # a state dict, whatever SB3's annotation says
        policy.load_state_dict(_without_other_critics(policy, stored))
    except UserError:
        raise
    except Exception as error:  # SB3 raises whatever zip, pickle or torch raised
        raise UserError(
            f"{path} is not a whole Stable-Baselines3 zip of {SUPPORTED} ({type(error).__name__})"
        ) from error
    assert isinstance(policy, BasePolicy)
    return policy


def _without_other_critics(policy: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stored parameters without those of critics that do not fit the policy's, which it loses too."""
    for name in ("critic", "critic_target"):
        if not hasattr(policy, name):
            continue
        own = {f"{name}.{key}": value.shape for key, value in getattr(policy, name).state_dict().items()}
        if own != {key: value.shape for key, value in state.items() if key.startswith(f"{name}.")}:
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            delattr(policy, name)
    return state


def _sde(data: dict[str, Any]) -> dict[str, Any]:
    """On-policy algorithms pass `use_sde` to the policy apart from its keyword arguments; SAC keeps it among them."""
    return {"use_sde": True} if data.get("use_sde") else {}
