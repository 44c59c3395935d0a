"""One update of twin delayed deterministic policy gradients (Fujimoto et al. 2018, arXiv 1802.09477) for many agents.

Like `update.py` it is one function of stacked parameters that holds no Python state, so that it can be compiled whole.
Critics are scalar, categorical (C51, Bellemare et al. 2017, arXiv 1707.06887) or quantile (Dabney et al. 2018, arXiv
1710.10044). The mathematics and its order are those of `stable_baselines3.TD3.train`, but that the target networks move
after every update; with one update per policy step, plain minimum and squared errors both are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.files import UserError

from .stacked import Stacked, gradients
from .update import Adam, Batch, along, critic_values

SUPPORT = (-100.0, 100.0)  # of the categorical critic's atoms
CriticKind = Literal["scalar", "c51", "quantile"]


@dataclass(frozen=True)
class Td3Settings:
    """What distinguishes TD3 from SAC."""

    critic: CriticKind = "scalar"
    """What a critic predicts: a value, 51 probabilities over [-100, 100], or quantiles."""
    atoms: int = 51
    """Atoms or quantiles of a critic that predicts a distribution."""
    soft_minimum: float = 0.75
    """Weight of the smaller of the critics' values in a target; the larger one has the rest. 1: the plain minimum."""
    loss: Literal["huber", "squared"] = "huber"
    """Loss of scalar critics; huber is quadratic up to an error of one."""
    noise: float = 0.1
    """Standard deviation of the exploration noise on the scaled action."""
    smoothing: tuple[float, float] = (0.2, 0.5)
    """Standard deviation and limit of the noise on target actions."""
    delay: int = 2
    """Updates of the critics per update of the actor."""
    wait: int = 0
    """Updates of the critics before the first of the actor."""
    clip: float = 40.0
    """Largest norm of the actor's gradient."""

    def __post_init__(self) -> None:
        if self.atoms < 2 or self.delay < 1 or self.wait < 0:
            raise ValueError(
                "atoms must be at least 2, delay at least 1 and wait not negative, found "
                f"{self.atoms}, {self.delay} and {self.wait}"
            )
        if not 0 <= self.soft_minimum <= 1:
            raise ValueError(f"soft_minimum must be in [0, 1], found {self.soft_minimum}")
        if min(self.noise, *self.smoothing) < 0 or not 0 < self.clip < np.inf:
            raise ValueError(
                f"noise and smoothing must not be negative and clip positive, found {self.noise}, "
                f"{self.smoothing} and {self.clip}"
            )


@dataclass
class Td3Update:
    """Parameters and constants of the update of all agents.

    Attributes:
        actors, actor_targets: of states to scaled actions in [-1, 1]. critics, targets: run-major.
        discount, tau, settings: equal for all agents.
        count: updates of each agent, (agents,). actor_count: of its actor. rate: learning rate, (agents,).
    """

    actors: Stacked
    actor_targets: Stacked
    critics: Stacked
    targets: Stacked
    discount: float
    tau: float
    settings: Td3Settings
    count: Tensor
    actor_count: Tensor
    rate: Tensor
    adam: dict[str, Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.adam = {"actor": Adam(self.actors.leaves), "critics": Adam(self.critics.leaves)}

    def state(self) -> dict[str, Tensor]:
        """What it remembers besides the networks' parameters, by name; every agent's part side by side."""
        found = {name: value for part, adam in self.adam.items() for name, value in adam.moments(part).items()}
        return found | {"count": self.count, "actor_count": self.actor_count}

    @torch.no_grad()
    def step(self, batch: Batch, *, act: bool) -> Tensor:
        """One update; critics' loss, actor's loss (0 without its update) and a 0, (agents, 3).

        Args:
            batch: `rewards` may be sums over several steps, `going` then holds their discount beyond one step.
            act: update the actor too.
        """
        self.count.add_(1)
        critic_loss = self._critics_step(batch)
        actor_loss = self._actor_step(batch) if act else torch.zeros_like(critic_loss)
        for of, by in ((self.targets, self.critics), (self.actor_targets, self.actors)):
            for mean, leaf in zip(of.leaves, by.leaves, strict=True):
                mean.lerp_(leaf, self.tau)
        return torch.stack([critic_loss, actor_loss, torch.zeros_like(critic_loss)], -1)

    def _critics_step(self, batch: Batch) -> Tensor:
        std, limit = self.settings.smoothing
        smoothing = (std * batch.next_noise).clamp(-limit, limit)
        next_actions = (self.actor_targets(self.actor_targets.leaves, batch.next_states) + smoothing).clamp(-1, 1)
        predicted = critic_values(self.targets, self.targets.leaves, batch.next_states, next_actions)
        discount = self.discount * batch.going
        target = bootstrapped(self.settings, predicted, batch.rewards, discount)

        def objective(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
            found = critic_values(self.critics, leaves, batch.states, batch.actions)
            losses = critic_loss(self.settings, found, target)
            return losses.sum(), losses

        slopes, losses = gradients(objective, self.critics.leaves)
        self.adam["critics"].step(slopes, self.count, self.rate)
        return losses  # type: ignore[no-any-return]

    def _actor_step(self, batch: Batch) -> Tensor:
        def objective(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
            actions = self.actors(leaves, batch.states)
            first = critic_values(self.critics, self.critics.leaves, batch.states, actions)[:, 0]
            losses = -expectation(self.settings, first).mean(-1)
            return losses.sum(), losses

        slopes, losses = gradients(objective, self.actors.leaves)
        self.actor_count.add_(1)
        self.adam["actor"].step(clipped(slopes, self.settings.clip), self.actor_count, self.rate)
        return losses  # type: ignore[no-any-return]


def clipped(slopes: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Gradients (agents, ...) scaled so that the norm over all tensors is at most the limit for each agent."""
    norms = torch.stack([slope.flatten(1).square().sum(1) for slope in slopes]).sum(0).sqrt()
    factors = (limit / (norms + 1e-6)).clamp(max=1)
    return [along(slope, factors) * slope for slope in slopes]


def outputs(settings: Td3Settings) -> int:
    """Numbers that a critic predicts."""
    return 1 if settings.critic == "scalar" else settings.atoms


def predict_distributions(critic: Any, count: int) -> None:
    """Let every Q network predict so many numbers, in place.

    Raises:
        UserError: critics that are not made of linear layers.
    """
    for k, net in enumerate(critic.q_networks):
        if not isinstance(net, nn.Sequential) or not isinstance(net[-1], nn.Linear):
            raise UserError("critics that predict distributions are made of linear layers")
        net[-1] = nn.Linear(net[-1].in_features, count, device=net[-1].weight.device)
        setattr(critic, f"qf{k}", net)


def support(settings: Td3Settings, like: Tensor) -> Tensor:
    """Values of the categorical critic's atoms, (atoms,)."""
    return torch.linspace(*SUPPORT, settings.atoms, dtype=like.dtype, device=like.device)


def expectation(settings: Td3Settings, predicted: Tensor) -> Tensor:
    """Expected values (...) of what a critic predicts, (..., outputs)."""
    if settings.critic == "c51":
        return predicted.softmax(-1) @ support(settings, predicted)
    return predicted.mean(-1)


def bootstrapped(settings: Td3Settings, predicted: Tensor, rewards: Tensor, discount: Tensor) -> Tensor:
    """What critics should predict.

    Args:
        predicted: of the target critics at the next states, (agents, critics, batch, outputs).
        rewards, discount: (agents, batch).

    Returns:
        Values, probabilities or quantiles, (agents, batch, outputs). Of two distributions the one of the smaller mean
        is taken.
    """
    if settings.critic == "scalar":
        low, high, share = predicted.amin(1), predicted.amax(1), settings.soft_minimum
        return rewards[..., None] + discount[..., None] * (share * low + (1 - share) * high)
    chosen = expectation(settings, predicted).argmin(1)[:, None, :, None].expand(-1, 1, -1, predicted.shape[-1])
    worse = predicted.gather(1, chosen)[:, 0]
    if settings.critic == "quantile":
        return rewards[..., None] + discount[..., None] * worse
    atoms = support(settings, predicted)
    moved = (rewards[..., None] + discount[..., None] * atoms).clamp(*SUPPORT)
    near = 1 - (moved[..., :, None] - atoms).abs() / (atoms[1] - atoms[0])
    return (worse.softmax(-1)[..., :, None] * near.clamp(min=0)).sum(-2)


def critic_loss(settings: Td3Settings, found: Tensor, target: Tensor) -> Tensor:
    """Losses of the agents (agents,), summed over their critics.

    Args:
        found: (agents, critics, batch, outputs). target: of `bootstrapped`.
    """
    if settings.critic == "c51":
        return -(target[:, None] * found.log_softmax(-1)).sum(-1).mean(-1).sum(-1)
    if settings.critic == "quantile":
        count = found.shape[-1]
        levels = (torch.arange(count, dtype=found.dtype, device=found.device) + 0.5) / count
        errors = target[:, None, :, None, :] - found[..., :, None]
        size = functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
        weight = (levels[:, None] - (errors.detach() < 0).to(found.dtype)).abs()
        return (weight * size).mean(-1).sum(-1).mean(-1).sum(-1)
    errors = found - target[:, None]
    if settings.loss == "squared":
        each = errors.square()
    else:
        each = functional.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none")
    return each.squeeze(-1).mean(-1).sum(-1)
