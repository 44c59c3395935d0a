"""Lipschitz behaviour cloning: least squares on an expert's answers over policies of bounded sensitivity.

    minimise over theta   1/(2N) sum_i |pi(x_i) - u_i|^2   subject to   |pi(x) - pi(y)| <= L |x - y| for all x, y

(Al Makdah, Krishnan, Pasqualetti, "Learning Lipschitz Feedback Policies from Expert Demonstrations", 2022,
arXiv 2103.16629.) They solve it on a graph of data points; here the constraint holds by construction of the network
(sandwich layers; Wang and Manchester 2023, arXiv 2301.11526), so that every iterate is feasible everywhere.

Two converse problems are solved by primal-dual steps:

* `target_loss`: the smallest bound for a loss margin. The bound is the dual variable: the least loss within a bound
  falls as the bound grows, so log L rises while the loss is above the margin and falls while it is below;
* an unconstrained network with `lip`: the smallest loss for a bound that is only estimated, at the data:
  minimise loss + mu (max_i |J(x_i)| / L - 1) with mu >= 0 rising while it is violated. Such a network is not bounded by
  construction: certify it afterwards.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from torch import Tensor

from lipctrl.agents.bc_policy import BCPolicy, Units
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError
from lipctrl.nn.network import FAMILIES
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.seeding import generator

Array = NDArray[np.float64]
DUAL_RATE = 0.01  # of the multiplier, per update and relative excess


@dataclass(frozen=True)
class BCSettings:
    """Settings of Lipschitz behaviour cloning."""

    env: str = "lipctrl/DoubleIntegrator-v0"
    """Gymnasium id of the environment that the demonstrations come from."""
    demos: str = ""
    """Path of a demonstration file (see `lipctrl demos collect`)."""
    lip: float | None = 2.0
    """Lipschitz bound of the policy, l2, in raw units of action per observation; null for none. With target_loss: the
    bound to start from. With the family unconstrained: imposed on the Jacobians at the data only."""
    units: Units = "raw"
    """Units of the bound and the loss: raw, or normalised by the data's standard deviation of each signal."""
    target_loss: float | None = None
    """Minimise the bound such that the relative training loss is at most this; null: keep the bound."""
    jacobian_weight: float = 0.0
    """Weight of the relative mismatch of Jacobians, for an expert that has one."""
    dagger_rounds: int = 0
    """Times that the expert labels what the learner visits (DAgger), spread evenly over the updates."""
    dagger_episodes: int = 5
    """Episodes of the learner per round."""
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
        if self.lip is None and self.family != "unconstrained":
            raise ValueError("lip may be null only for the family 'unconstrained'")
        if self.target_loss is not None and (self.family == "unconstrained" or not 0 < self.target_loss < np.inf):
            raise ValueError("target_loss must be positive, and needs a Lipschitz family whose bound it minimises")
        if not 0 <= self.jacobian_weight < np.inf or self.dagger_rounds < 0:
            raise ValueError("jacobian_weight and dagger_rounds must not be negative")
        for name in ("updates", "batch_size", "log_interval", "dagger_episodes"):
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


class BC(BaseAlgorithm):
    """Lipschitz behaviour cloning as a Stable-Baselines3 algorithm; one timestep is one gradient step.

    Args:
        policy: "BCPolicy" or a subclass of BCPolicy.
        env: environment that the demonstrations come from (its spaces are used, it is never stepped).
        demos: the demonstrations.
        learning_rate: Adam's initial rate; it falls linearly to zero over `learn`.
        batch_size: pairs per gradient step.
        validation: share of episodes kept for validation.
        target_loss: see `BCSettings`.
        jacobian_weight: of the mismatch of Jacobians; needs `expert`.
        expert: whose Jacobians are matched, a `PlainPolicy`.
        policy_kwargs: of BCPolicy: lip, family, activation, hidden, units.
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
        target_loss: float | None = None,
        jacobian_weight: float = 0.0,
        expert: Policy | None = None,
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
        self.target_loss, self.jacobian_weight = target_loss, jacobian_weight
        self.history: list[dict[str, float]] = []
        if _init_setup_model:
            self._setup_model()
            if demos is not None:
                self.set_demonstrations(demos, expert)
                observations, labels = self._train
                self.policy.set_scales(observations.cpu().numpy(), labels.cpu().numpy())
                self._measure()

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        policy = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, seed=self.seed, **self.policy_kwargs
        )
        assert isinstance(policy, BCPolicy)
        self.policy = policy.to(self.device)

    def set_demonstrations(self, demos: Demonstrations, expert: Policy | None = None) -> None:
        """Split into training and validation episodes and move them to the device.

        Args:
            expert: needed for matching Jacobians, which are evaluated here once.

        Raises:
            UserError: sizes do not fit the environment, or Jacobians are to be matched and the expert has none.
        """
        if self.jacobian_weight > 0 and not isinstance(expert, PlainPolicy):
            raise UserError(
                "matching Jacobians needs a differentiable expert: a network or a linear gain (PlainPolicy)"
            )
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
        self._jacobians = torch.zeros(0)
        if self.jacobian_weight > 0:
            assert isinstance(expert, PlainPolicy)
            jacobians = expert.net.jacobian(self._train[0].cpu().numpy())
            self._jacobians = torch.from_numpy(jacobians).float().to(self.device)

        self._measure()

    def _measure(self) -> None:
        """The mean square of the labels in the bound's units, to which losses are relative."""
        self._label_size = float((self._train[1] / self.policy.action_unit.float()).square().mean()) or 1.0

    def _batch(self, update: int) -> Tensor:
        """Indices of the pairs of one update: a function of seed and update alone, so that a resumed run repeats it."""
        count = len(self._train[0])
        size = min(self.batch_size, count)
        per_epoch = count // size
        order = generator(self.seed or 0, "batches", update // per_epoch).permutation(count)
        return torch.from_numpy(order[(update % per_epoch) * size : (update % per_epoch + 1) * size])

    def train(self, learning_rate: float) -> float:
        """One primal step, and one dual step where there is a constraint. Returns the batch's relative loss.

        It is 1/2 |pi(x) - u|^2 relative to the labels' mean square; the mismatch of Jacobians is put in the same unit.
        """
        self.policy.set_training_mode(True)
        for group in self.policy.optimizer.param_groups:
            group["lr"] = learning_rate
        chosen = self._batch(self.num_timesteps)
        x, u = self._train[0][chosen], self._train[1][chosen]
        unit = self.policy.action_unit.float()
        loss = 0.5 * ((self.policy(x) - u) / unit).square().mean() / self._label_size
        objective = loss
        if self.jacobian_weight > 0:
            wanted = self._jacobians[chosen] * self.policy.observation_unit.float() / unit[:, None]
            mismatch = (self.policy.jacobian(x) - wanted) * self.policy.observation_scale.float()
            objective = objective + self.jacobian_weight * 0.5 * mismatch.square().sum((1, 2)).mean() / self._label_size
        if self.target_loss is not None:
            step = float((objective.detach() / self.target_loss - 1).clamp(-1, 1)) * learning_rate
            self.policy.net.log_lip.add_(step)
        elif self.policy.lip is not None and not self.policy.by_construction:
            excess = torch.linalg.matrix_norm(self.policy.jacobian(x), ord=2).max() / self.policy.lip - 1
            multiplier = self.policy.multiplier
            objective = (objective + multiplier.float() * excess) / (1 + multiplier.float())
            multiplier.add_(DUAL_RATE * float(excess.detach())).clamp_(min=0)
        self.policy.optimizer.zero_grad()
        objective.backward()
        self.policy.optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """Relative loss and largest residual (l2, in the bound's units) on the training and validation pairs."""
        self.policy.set_training_mode(False)
        result, unit = {}, self.policy.action_unit.float()
        for name, (x, u) in (("train", self._train), ("validation", self._validate)):
            residual = (self.policy(x) - u) / unit
            result[f"{name}/loss"] = float(0.5 * residual.square().mean() / self._label_size)
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
        if self.target_loss is not None:
            row["train/bound"] = float(self.policy.bound().detach())
        self.history.append(row)
        for key, value in row.items():
            self.logger.record(key, value)
        self.logger.dump(self.num_timesteps)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_train", "_validate", "_jacobians"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []


def build(settings: BCSettings, env: GymEnv, demos: Demonstrations, expert: Policy | None = None) -> BC:
    """A BC agent with these settings, ready to `learn(settings.updates)`."""
    return BC(
        "BCPolicy",
        env,
        demos,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        validation=settings.validation,
        target_loss=settings.target_loss,
        jacobian_weight=settings.jacobian_weight,
        expert=expert,
        policy_kwargs={name: getattr(settings, name) for name in ("lip", "family", "activation", "hidden", "units")},
        seed=settings.seed,
        device=settings.device,
    )


def load(
    path: Path,
    env: GymEnv,
    demos: Demonstrations | None = None,
    expert: Policy | None = None,
    *,
    device: str = "cpu",
) -> BC:
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
        agent.set_demonstrations(demos, expert)
    return agent
