"""Settings of SAC, MBPO and GAIL, and the agents that they describe: one per seed."""

import shutil
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError
from lipctrl.models.dynamics import DynamicsSettings
from lipctrl.nn.network import FAMILIES

from .discriminator import RewardSettings
from .gail import GAIL, GailSettings
from .mbpo import MBPO, RolloutSettings
from .regularisation import Smoothness
from .sac import SAC
from .sqil import LS_IQ, SQIL, SqilSettings
from .td3 import Td3Settings

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
WORTH_COMPILING = 20_000  # updates of all agents


@dataclass(frozen=True)
class OffPolicySettings:
    """Settings that all trainings have in common."""

    env: str = "InvertedPendulum-v5"
    """Gymnasium id of the environment."""
    timesteps: int = 5000
    """Environment steps of each agent."""
    seeds: int = 1
    """Number of agents, trained side by side as one batch, with seeds from `seed` on."""
    seed: int = 0
    """Seed of everything random."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critics."""
    activation: Literal["relu", "tanh"] = "relu"
    """Activation of ordinary networks."""
    lip: float | None = None
    """Lipschitz bound of the policy (l2, raw action per raw observation); null: an ordinary actor."""
    family: str = "sandwich"
    """Layer family of bounded networks, see `lipctrl list`."""
    updates: int = 1
    """Updates after every environment step."""
    batch: int = 256
    """Transitions per update."""
    learning_starts: int = 500
    """Environment steps with random actions before the first update."""
    learning_rate: float = 3e-4
    """Adam's learning rate of actor and critics, and of SAC's temperature."""
    discount: float = 0.99
    """Discount factor of the return."""
    tau: float = 0.005
    """Share of the critics that the target critics take over in every update."""
    log_interval: int = 500
    """Environment steps between evaluations, each with a checkpoint."""
    episodes: int = 5
    """Deterministic episodes of an evaluation."""
    compiled: bool | None = None
    """Compile the update (half a minute once, then faster); null: where a C++ compiler is found and it pays."""
    products: Literal["float32", "bfloat16"] = "float32"
    """Precision of the update's matrix products; bfloat16 is faster on some processors, see docs/algorithms/sac.md.
    Bounded networks and certificates do not use it."""
    threads: int = 1
    """Threads that step the environments of several seeds; the result does not depend on their number."""
    device: str = "cpu"
    """Torch device: cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("timesteps", "seeds", "updates", "batch", "log_interval", "episodes", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.learning_starts < 2:
            raise ValueError(f"learning_starts must be at least 2, found {self.learning_starts}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, each at least 1, found {self.hidden}")
        if self.lip is not None and not 0 < self.lip < np.inf:
            raise ValueError(f"lip must be a positive finite number, found {self.lip}")
        if self.family not in FAMILIES or self.family == "unconstrained":
            known = ", ".join(name for name in FAMILIES if name != "unconstrained")
            raise ValueError(f"unknown family {self.family!r} of bounded networks; known: {known}")
        if not 0 < self.learning_rate < np.inf or not 0 <= self.discount < 1 or not 0 < self.tau <= 1:
            raise ValueError(
                "learning_rate must be positive, discount in [0, 1) and tau in (0, 1], found "
                f"{self.learning_rate}, {self.discount}, {self.tau}"
            )


@dataclass(frozen=True)
class SacSettings(OffPolicySettings):
    """Settings of a training with soft actor-critic."""

    critic_lip: float | None = None
    """Proved Lipschitz bound of each critic in observation and scaled action; null: ordinary critics."""
    target_entropy: float | None = None
    """What the temperature is tuned to; null: minus the number of actions."""
    smoothness: Smoothness = field(default_factory=Smoothness)
    """Regularisation of the critics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_lip is not None and not 0 < self.critic_lip < np.inf:
            raise ValueError(f"critic_lip must be a positive finite number, found {self.critic_lip}")
        if self.critic_lip is not None and self.lip is None:
            raise ValueError("critic_lip needs a bounded actor too: add --lip")


@dataclass(frozen=True)
class MbpoSettings(SacSettings):
    """Settings of a training with model-based policy optimisation."""

    updates: int = 10
    """Updates after every environment step."""
    dynamics: DynamicsSettings = field(default_factory=lambda: DynamicsSettings(width=100, depth=3, cap=500))
    """The dynamics model."""
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    """Its fits and rollouts."""


@dataclass(frozen=True)
class ImitationSettings(OffPolicySettings):
    """Settings of a training that imitates demonstrations."""

    method: Literal["gail", "sqil", "ls-iq", "bc"] = "gail"
    """gail: TD3 or SAC on a learned reward; sqil, ls-iq: SAC on constant ones of demonstrations and of replay; bc:
    behaviour cloning, whose gradient steps are `timesteps` and which uses no setting of the interaction."""
    env: str = "Pendulum-v1"
    """Gymnasium id of the environment; its reward is only used to evaluate."""
    timesteps: int = 25_000
    """Environment steps of each agent."""
    batch: int = 128
    """Transitions per update."""
    learning_starts: int = 1000
    """Environment steps with random actions before the first update."""
    learning_rate: float = 1e-3
    """Adam's learning rate of actor and critics, and of SAC's temperature."""
    log_interval: int = 2500
    """Environment steps between evaluations, each with a checkpoint."""
    demos: str = ""
    """Demonstration file, see `lipctrl demos collect`, or minari:DATASET_ID."""
    demonstrations: int | None = None
    """Imitate the first so many episodes of the file; null: all."""
    train_every: int = 20
    """Environment steps per round; after a round follow the updates of all its steps, as one batch of all seeds."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    """The learned reward: its form, its network, and what bounds its slope."""
    imitation: GailSettings = field(default_factory=GailSettings)
    """Stem, steps per target, use of the demonstrations."""
    td3: Td3Settings = field(default_factory=Td3Settings)
    """Of the stem td3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        every = 1 if self.method == "bc" else self.train_every  # cloning has no rounds
        if every < 1 or self.timesteps % every or self.log_interval % every:
            raise ValueError(
                "timesteps and log_interval must be whole rounds of train_every steps, found "
                f"{self.timesteps} and {self.log_interval} with {self.train_every}"
            )
        if self.demonstrations is not None and self.demonstrations < 1:
            raise ValueError(f"demonstrations must be at least 1, found {self.demonstrations}")
        self._check_baseline()

    def _check_baseline(self) -> None:
        """That a method without a learned reward is given none of its settings but the units of its inputs.

        Raises:
            ValueError: it is.
        """
        if self.method == "gail":
            return
        taken = ["imitation.subsample", *(["imitation.layer_norm"] if self.method != "bc" else [])]
        groups: dict[str, Any] = {"reward": self.reward, "td3": self.td3, "imitation": self.imitation}
        changed = [
            f"{group}.{one.name}"
            for group, found in groups.items()
            for one in fields(found)
            if getattr(found, one.name) != getattr(type(found)(), one.name)
            and (one.name != "hidden" or self.reward.widths != RewardSettings().widths)  # written out is not changed
        ]
        refused = [name for name in changed if name not in (*taken, "imitation.units")]
        if refused:
            raise ValueError(
                f"{self.method} learns no reward and does not take {', '.join(refused)}; of the settings reward, td3 "
                f"and imitation it takes {' and '.join(taken)} only"
            )


def build(
    settings: OffPolicySettings,
    environments: list[gymnasium.Env[Any, Any]],
    demonstrations: Demonstrations | None = None,
) -> list[SAC]:
    """The agents of these settings, one per environment.

    Args:
        demonstrations: what agents of `ImitationSettings` imitate.

    Raises:
        UserError: unlimited actions, no such device, or what the agents refuse.
    """
    for env in environments:
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not np.isfinite([space.low, space.high]).all():
            raise UserError(f"{settings.env} has actions in {space}; the algorithms here need a box with limits")
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {settings.device} is not there: use cpu")
    return [_agent(settings, env, settings.seed + k, demonstrations) for k, env in enumerate(environments)]


def _agent(
    settings: OffPolicySettings, env: gymnasium.Env[Any, Any], seed: int, demonstrations: Demonstrations | None
) -> SAC:
    arguments = _arguments(settings, seed)
    vector = DummyVecEnv([lambda: Monitor(env)])
    policy = "MlpPolicy" if settings.lip is None else "LipschitzMlpPolicy"
    if isinstance(settings, ImitationSettings):
        arguments |= {"train_freq": settings.train_every, "gradient_steps": settings.updates * settings.train_every}
        if settings.method != "gail":
            mixed = replace(
                LS_IQ if settings.method == "ls-iq" else SqilSettings(), subsample=settings.imitation.subsample
            )
            arguments |= {"imitation": mixed, "smoothness": Smoothness(layer_norm=settings.imitation.layer_norm)}
            return SQIL(policy, vector, demonstrations=demonstrations, **arguments)
        arguments |= {"reward": settings.reward, "imitation": settings.imitation, "td3": settings.td3}
        return GAIL(policy, vector, demonstrations=demonstrations, **arguments)
    assert isinstance(settings, SacSettings)
    arguments["target_entropy"] = "auto" if settings.target_entropy is None else settings.target_entropy
    arguments["smoothness"] = settings.smoothness
    if settings.lip is not None:
        arguments["policy_kwargs"]["critic_lip"] = settings.critic_lip
    if isinstance(settings, MbpoSettings):
        return MBPO(policy, vector, dynamics=settings.dynamics, rollouts=settings.rollouts, **arguments)
    return SAC(policy, vector, **arguments)


def _arguments(settings: OffPolicySettings, seed: int) -> dict[str, Any]:
    """What all agents are made with."""
    shape: dict[str, Any] = {"net_arch": list(settings.hidden)}
    if settings.lip is None:
        shape["activation_fn"] = ACTIVATIONS[settings.activation]
    else:
        shape |= {"lip": settings.lip, "family": settings.family, "hidden": settings.hidden, "lipschitz_seed": seed}
    return {
        "policy_kwargs": shape,
        "seed": seed,
        "device": settings.device,
        "learning_starts": settings.learning_starts,
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch,
        "buffer_size": settings.timesteps,
        "gradient_steps": settings.updates,
        "gamma": settings.discount,
        "tau": settings.tau,
        "compiled": compiles(settings),
        "products": settings.products,
    }


def compiles(settings: OffPolicySettings) -> bool:
    """Whether the update is compiled."""
    if settings.compiled is not None:
        return settings.compiled
    wanted = settings.seeds * settings.updates * max(0, settings.timesteps - settings.learning_starts)
    able = shutil.which("g++") is not None or settings.device.startswith("cuda")
    return able and wanted >= WORTH_COMPILING
