"""Lipschitz behaviour cloning: least squares on an expert's answers over policies of bounded sensitivity.

    minimise over theta   1/(2N) sum_i |pi(x_i) - u_i|^2   subject to   |pi(x) - pi(y)| <= L |x - y| for all x, y

(Al Makdah, Krishnan, Pasqualetti, "Learning Lipschitz Feedback Policies from Expert Demonstrations", 2022,
arXiv 2103.16629.) They solve it on a graph of data points; here the constraint holds by construction of the network
(sandwich layers; Wang and Manchester 2023, arXiv 2301.11526), so that every iterate is feasible everywhere.

The bound L is in raw units of observation and action. With mean c and one scale s for all observations (one scale,
because a scale per component would cost the l2 bound a factor), the policy is

    pi(x) = clip( u_0 + L s g((x - c) / s) ),   g 1-Lipschitz.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import Tensor

from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError
from lipctrl.nn.network import FAMILIES, lipschitz_mlp
from lipctrl.nn.normalise import deployed
from lipctrl.nn.plain import PlainNet
from lipctrl.seeding import generator, seed_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BCSettings:
    """Settings of Lipschitz behaviour cloning."""

    env: str = "lipctrl/DoubleIntegrator-v0"
    """Gymnasium id of the environment that the demonstrations come from."""
    demos: str = ""
    """Path of a demonstration file (see `lipctrl demos collect`)."""
    lip: float | None = 2.0
    """Lipschitz bound of the policy, l2, in raw units of action per observation; null for none (unconstrained)."""
    family: str = "sandwich"
    """Layer family, see `lipctrl list`."""
    activation: str = "tanh"
    """Activation of the hidden layers."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    updates: int = 3000
    """Number of gradient steps."""
    learning_rate: float = 3e-3
    """Adam's initial learning rate; it falls linearly to zero."""
    batch_size: int = 256
    """Pairs per gradient step."""
    validation: float = 0.1
    """Share of the episodes kept for validation (at least one where there are two or more)."""
    log_interval: int = 100
    """Gradient steps between logged rows and checkpoints."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """Torch device: auto, cpu, cuda."""

    def __post_init__(self) -> None:
        if self.lip is not None and not (np.isfinite(self.lip) and self.lip > 0):
            raise ValueError(f"lip must be a positive finite number, found {self.lip}")
        if self.family not in FAMILIES:
            raise ValueError(f"unknown family {self.family!r}; known: {', '.join(FAMILIES)}")
        if (self.family == "unconstrained") != (self.lip is None):
            raise ValueError("lip must be null exactly for the family 'unconstrained'")
        for name in ("updates", "batch_size", "log_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, each at least 1, found {self.hidden}")
        if not (np.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be a positive finite number, found {self.learning_rate}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, found {self.device!r}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be in [0, 1), found {self.validation}")


class BCPolicy(BasePolicy):
    """Deterministic policy pi(x) = clip(u_0 + scale * g((x - c) / s)) with g from a Lipschitz family."""

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        lip: float | None = 2.0,
        family: str = "sandwich",
        activation: str = "tanh",
        hidden: tuple[int, ...] = (64, 64),
        seed: int = 0,
    ) -> None:
        super().__init__(observation_space, action_space)
        n, m = observation_space.shape[0], action_space.shape[0]
        self.lip = lip
        self.net = lipschitz_mlp(
            family, (n, *hidden, m), None if lip is None else 1.0, activation=activation, seed=seed_of(seed, "network")
        )
        self.observation_mean: Tensor
        self.observation_std: Tensor
        self.observation_scale: Tensor
        self.action_offset: Tensor
        self.action_scale: Tensor
        self.register_buffer("observation_mean", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("observation_std", torch.ones(n, dtype=torch.float64))
        self.register_buffer("observation_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("action_offset", torch.zeros(m, dtype=torch.float64))
        self.register_buffer("action_scale", torch.ones((), dtype=torch.float64))
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1))

    def set_scales(self, observations: Array, labels: Array) -> None:
        """Take centre and scale from training data (N, n) and labels (N, m)."""
        std = observations.std(0)
        scale = float(np.sqrt((std**2).mean())) or 1.0
        action_scale = self.lip * scale if self.lip is not None else float(labels.std()) or 1.0
        for buffer, value in (
            (self.observation_mean, observations.mean(0)),
            (self.observation_std, np.where(std > 0, std, 1.0)),
            (self.observation_scale, np.array(scale)),
            (self.action_offset, labels.mean(0)),
            (self.action_scale, np.array(action_scale)),
        ):
            buffer.copy_(torch.from_numpy(np.asarray(value, dtype=np.float64)))

    def forward(self, observation: Tensor) -> Tensor:
        """Actions (batch, m) before clipping, for observations (batch, n)."""
        x = (observation.double() - self.observation_mean) / self.observation_scale
        y = self.net(x.float())
        action: Tensor = self.action_offset.float() + self.action_scale.float() * y
        return action

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.forward(observation)

    def to_plain(self, *, input_names: tuple[str, ...] = (), output_names: tuple[str, ...] = ()) -> PlainNet:
        """The deployed policy in raw units, float64, clipped to the action limits.

        Args:
            input_names, output_names: names with units, for certificates and reports.
        """
        space = self.action_space
        assert isinstance(space, spaces.Box)
        n = len(self.observation_mean)
        net = deployed(
            self.net.to_plain(),
            mean=self.observation_mean.cpu().numpy(),
            scale=np.full(n, float(self.observation_scale)),
            output_offset=self.action_offset.cpu().numpy(),
            output_scale=np.full(len(self.action_offset), float(self.action_scale)),
            low=space.low.astype(np.float64),
            high=space.high.astype(np.float64),
        )
        return replace(
            net,
            input_mean=self.observation_mean.cpu().numpy(),
            input_scale=self.observation_std.cpu().numpy(),
            input_names=input_names,
            output_names=output_names,
        )


class BC(BaseAlgorithm):
    """Lipschitz behaviour cloning as a Stable-Baselines3 algorithm; one timestep is one gradient step.

    Args:
        policy: "BCPolicy" or a subclass of BCPolicy.
        env: environment that the demonstrations come from (its spaces are used, it is never stepped).
        demos: the demonstrations.
        learning_rate: Adam's initial rate; it falls linearly to zero over `learn`.
        batch_size: pairs per gradient step.
        validation: share of episodes kept for validation.
        policy_kwargs: of BCPolicy: lip, family, activation, hidden.
        seed, device, verbose, tensorboard_log: as in Stable-Baselines3.
    """

    policy: BCPolicy
    policy_aliases = {"BCPolicy": BCPolicy}

    def __init__(
        self,
        policy: str | type[BCPolicy] = "BCPolicy",
        env: GymEnv | str | None = None,
        demos: Demonstrations | None = None,
        *,
        learning_rate: float = 3e-3,
        batch_size: int = 256,
        validation: float = 0.1,
        policy_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        device: torch.device | str = "auto",
        verbose: int = 0,
        tensorboard_log: str | None = None,
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            policy_kwargs=policy_kwargs,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            supported_action_spaces=(spaces.Box,),
        )
        self.batch_size, self.validation = batch_size, validation
        self.history: list[dict[str, float]] = []
        if _init_setup_model:
            self._setup_model()
            if demos is not None:
                self.set_demonstrations(demos)
                observations, labels = self._train
                self.policy.set_scales(observations.cpu().numpy(), labels.cpu().numpy())

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        policy = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, seed=self.seed, **self.policy_kwargs
        )
        assert isinstance(policy, BCPolicy)
        self.policy = policy.to(self.device)

    def set_demonstrations(self, demos: Demonstrations) -> None:
        """Split into training and validation episodes and move them to the device.

        Raises:
            UserError: sizes do not fit the environment.
        """
        spaces_fit = (demos.observations.shape[1:], demos.actions.shape[1:])
        if spaces_fit != (self.observation_space.shape, self.action_space.shape):
            raise UserError(
                f"demonstrations have observations {spaces_fit[0]} and actions {spaces_fit[1]} per step; "
                f"the environment has {self.observation_space.shape} and {self.action_space.shape}"
            )
        episodes = list(demos.trajectories())
        kept = min(max(1, round(self.validation * len(episodes))), len(episodes) - 1) if self.validation > 0 else 0
        order = generator(self.seed or 0, "validation").permutation(len(episodes))

        def pairs(indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            chosen = [episodes[int(i)] for i in indices]
            x = np.concatenate([t.observations[:-1] for t in chosen])
            u = np.concatenate([t.labels for t in chosen])
            return torch.from_numpy(x).to(self.device), torch.from_numpy(u).float().to(self.device)

        self._train = pairs(order[kept:])
        self._validate = pairs(order[:kept]) if kept else self._train
        self._loss_scale = float(self._train[1].square().mean()) or 1.0

    def _batch(self, update: int) -> tuple[Tensor, Tensor]:
        """The batch of one update: a function of seed and update alone, so that a resumed run repeats it."""
        x, u = self._train
        size = min(self.batch_size, len(x))
        per_epoch = len(x) // size
        order = generator(self.seed or 0, "batches", update // per_epoch).permutation(len(x))
        chosen = torch.from_numpy(order[(update % per_epoch) * size : (update % per_epoch + 1) * size])
        return x[chosen], u[chosen]

    def train(self, learning_rate: float) -> float:
        """One gradient step on 1/2 |pi(x) - u|^2, relative to the labels' mean square. Returns that loss."""
        self.policy.set_training_mode(True)
        for group in self.policy.optimizer.param_groups:
            group["lr"] = learning_rate
        x, u = self._batch(self.num_timesteps)
        loss = 0.5 * (self.policy(x) - u).square().mean() / self._loss_scale
        self.policy.optimizer.zero_grad()
        loss.backward()
        self.policy.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """Relative loss and largest residual on the training and validation pairs."""
        self.policy.set_training_mode(False)
        result = {}
        for name, (x, u) in (("train", self._train), ("validation", self._validate)):
            residual = self.policy(x) - u
            result[f"{name}/loss"] = float(0.5 * residual.square().mean() / self._loss_scale)
            result[f"{name}/worst_residual"] = float(residual.norm(dim=1).max())
        return result

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "BC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for `total_timesteps` gradient steps (in all, if `reset_num_timesteps` is False: a resumed run).

        Raises:
            UserError: there are no demonstrations.
        """
        if not hasattr(self, "_train"):
            raise UserError("behaviour cloning needs demonstrations: BC(..., demos=...) or set_demonstrations(...)")
        remaining = total_timesteps if reset_num_timesteps else total_timesteps - self.num_timesteps
        total, callback = self._setup_learn(remaining, callback, reset_num_timesteps, tb_log_name, progress_bar)
        callback.on_training_start(locals(), globals())
        rate = float(self.lr_schedule(1))
        while self.num_timesteps < total:
            self.train(rate * (1 - self.num_timesteps / total))
            self.num_timesteps += 1
            if self.num_timesteps % log_interval == 0 or self.num_timesteps == total:
                self._log()
            if not callback.on_step():
                break
        callback.on_training_end()
        self.policy.set_training_mode(False)
        return self

    def _log(self) -> None:
        row = {"update": float(self.num_timesteps), **self.errors()}
        self.history.append(row)
        for key, value in row.items():
            self.logger.record(key, value)
        self.logger.dump(self.num_timesteps)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_train", "_validate"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []


def build(settings: BCSettings, env: GymEnv, demos: Demonstrations) -> BC:
    """A BC agent with these settings, ready to `learn(settings.updates)`."""
    return BC(
        "BCPolicy",
        env,
        demos,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        validation=settings.validation,
        policy_kwargs={name: getattr(settings, name) for name in ("lip", "family", "activation", "hidden")},
        seed=settings.seed,
        device=settings.device,
    )


def load(path: Path, env: GymEnv, demos: Demonstrations | None = None, *, device: str = "cpu") -> BC:
    """Load an agent from its zip, to predict or (with demonstrations) to go on training.

    Raises:
        UserError: missing, truncated or not a BC checkpoint.
    """
    try:
        agent = BC.load(path, env=env, device=device)
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}") from error
    except Exception as error:  # SB3 raises whatever zip, pickle or torch raised
        raise UserError(f"{path} is not a whole BC checkpoint ({type(error).__name__}: {error})") from error
    if demos is not None:
        agent.set_demonstrations(demos)
    return agent
