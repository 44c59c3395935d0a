"""Stock Stable-Baselines3 algorithms with an ordinary or a Lipschitz actor: experts to clone, and policies to attack.

The update is Stable-Baselines3's own. With a bound the actor comes from `nn.sb3`; without one it is SB3's MlpPolicy.
"""

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

import lipctrl.nn.sb3  # noqa: F401  # registers LipschitzMlpPolicy
from lipctrl.nn.network import FAMILIES

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC, "td3": TD3}
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(frozen=True)
class Sb3Settings:
    """Settings of a stock Stable-Baselines3 training."""

    env: str = "Pendulum-v1"
    """Gymnasium id of the environment."""
    algorithm: Literal["ppo", "sac", "td3"] = "ppo"
    """Algorithm, with Stable-Baselines3's defaults where nothing else is said here."""
    lip: float | None = None
    """Lipschitz bound of the policy (l2, raw action per observation that it receives); null: an ordinary network."""
    family: str = "sandwich"
    """Layer family of a bounded policy, see `lipctrl list`."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation of the actor's (and an ordinary critic's) hidden layers."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of actor and critic."""
    timesteps: int = 100_000
    """Environment steps in all."""
    normalize: bool = False
    """Normalise observations and rewards by running statistics (VecNormalize), as PPO needs on MuJoCo tasks; the
    exported policy holds the observation's. A bound is then in normalised units of the observation."""
    learning_rate: float = 3e-4
    """Learning rate."""
    discount: float = 0.99
    """Discount factor of the return."""
    log_interval: int = 10_000
    """Environment steps between logged rows and checkpoints."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "cpu"
    """Torch device: cpu, cuda, auto. Small networks are fastest on the CPU."""

    def __post_init__(self) -> None:
        if self.lip is not None and not 0 < self.lip < float("inf"):
            raise ValueError(f"lip must be a positive finite number, found {self.lip}")
        if self.family not in FAMILIES or self.family == "unconstrained":
            known = ", ".join(name for name in FAMILIES if name != "unconstrained")
            raise ValueError(f"unknown family {self.family!r} of a bounded policy; known: {known}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, each at least 1, found {self.hidden}")
        for name in ("timesteps", "log_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf") or not 0 <= self.discount <= 1:
            raise ValueError(
                f"learning_rate must be positive and discount in [0, 1], found {self.learning_rate}, {self.discount}"
            )


def build(settings: Sb3Settings, env: gymnasium.Env[Any, Any], *, info_keywords: tuple[str, ...] = ()) -> BaseAlgorithm:
    """The algorithm of these settings on an environment, ready to `learn(settings.timesteps)`.

    Args:
        info_keywords: keys of the last info of an episode that are kept with its return, see SB3's Monitor.
    """
    arguments: dict[str, Any] = {"learning_rate": settings.learning_rate, "gamma": settings.discount}
    if settings.lip is None:
        shape = {"net_arch": list(settings.hidden), "activation_fn": ACTIVATIONS[settings.activation]}
    else:
        shape = {name: getattr(settings, name) for name in ("lip", "family", "hidden", "activation")}
        shape["lipschitz_seed"] = settings.seed
    environments: VecEnv = DummyVecEnv([lambda: Monitor(env, info_keywords=info_keywords)])
    if settings.normalize:
        environments = VecNormalize(environments, gamma=settings.discount)
    return ALGORITHMS[settings.algorithm](
        "MlpPolicy" if settings.lip is None else "LipschitzMlpPolicy",
        environments,
        policy_kwargs=shape,
        seed=settings.seed,
        device=settings.device,
        **arguments,
    )
