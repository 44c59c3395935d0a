"""One update of soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905) for a batch of agents, as one function.

The mathematics and its order are those of `stable_baselines3.SAC.train`: temperature, critics, actor, target critics.
Parameters, Adam's moments, power-iteration vectors and noise are arguments or tensors that are written in place, so
that the function holds no Python state: `torch.compile` takes it whole, and not compiled it is the reference that the
compiled one is tested against.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from .regularisation import Smoothness, largest_singular_values, perturb, power_iteration
from .stacked import Stacked, gradients

BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8  # Adam's, as in torch
HALF_LOG_TAU = 0.5 * float(np.log(2 * np.pi))


@dataclass
class Batch:
    """Transitions and noise of one update, or of several with a further leading axis.

    Attributes:
        states, next_states: (agents, batch, n). actions: scaled to [-1, 1], (agents, batch, m).
        rewards: (agents, batch). going: 1 where the episode goes on after the step: truncation is not termination.
        noise, next_noise: standard normal, (agents, batch, m), of the actions at states and next states.
        start: uniform in [-1, 1], (agents, critics, batch, n), where the search of the robust term begins; (agents, 1,
            1, 1) where there is none.
        scale: unit of the robust term's radius, (agents, 1 or batch, n).
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    going: Tensor
    noise: Tensor
    next_noise: Tensor
    start: Tensor
    scale: Tensor

    def tensors(self) -> list[Tensor]:
        """All fields in order."""
        return list(vars(self).values())


@dataclass
class Adam:
    """Adam (Kingma and Ba 2014, arXiv 1412.6980) on given tensors, in place; its moments are tensors like theirs."""

    leaves: list[Tensor]
    first: list[Tensor] = field(init=False)
    second: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.first = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.second = [torch.zeros_like(leaf) for leaf in self.leaves]

    def moments(self, name: str) -> dict[str, Tensor]:
        """Both moments of every leaf, by name."""
        pairs = (("first", self.first), ("second", self.second))
        return {f"{name}_{kind}_{k}": moment for kind, moments in pairs for k, moment in enumerate(moments)}

    def step(self, gradients: Sequence[Tensor], count: Tensor, rate: Tensor) -> None:
        """One step, the `count`-th of each agent.

        Args:
            gradients: of each leaf. count, rate: (agents,); the leading axis of a leaf is a multiple of it.
        """
        # exp and not a power: what holds an exp the compiler computes once, and not again in every loop over a leaf
        corrections = [1 - (count * math.log(beta)).exp() for beta in BETAS]
        size, root = rate / corrections[0], corrections[1].rsqrt()
        for leaf, gradient, first, second in zip(self.leaves, gradients, self.first, self.second, strict=True):
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            leaf.sub_(along(leaf, size) * first / (second.sqrt() * along(leaf, root) + ADAM_EPSILON))


def along(leaf: Tensor, of_agents: Tensor) -> Tensor:
    """A number of each agent (agents,), shaped to multiply a tensor whose leading axis is a multiple of the agents."""
    each = len(leaf) // len(of_agents)
    return of_agents.to(leaf.dtype)[:, None].expand(-1, each).reshape(-1, *[1] * (leaf.ndim - 1))


@dataclass
class Update:
    """Parameters and constants of the update of all agents.

    Attributes:
        actor: of parameters and states (agents, batch, n) to mean and log standard deviation (agents, batch, m) before
            squashing. actor_leaves: its parameters.
        critics, targets: run-major, every agent's critics side by side.
        log_temperature: (agents,). target_entropy: what the temperature is tuned to, or None: it is fixed.
        count: updates of each agent, (agents,). rate: learning rate, (agents,). beta: see `Smoothness`, (agents,).
        right: right singular vectors of the constrained matrices, kept between updates.
        limits: targets are clipped to these, or None.
    """

    actor: Callable[[Sequence[Tensor], Tensor], tuple[Tensor, Tensor]]
    actor_leaves: list[Tensor]
    critics: Stacked
    targets: Stacked
    log_temperature: Tensor
    target_entropy: float | None
    discount: float
    tau: float
    smoothness: Smoothness
    constrained: list[int]
    right: list[Tensor]
    count: Tensor
    rate: Tensor
    beta: Tensor
    limits: tuple[float, float] | None = None
    adam: dict[str, Adam] = field(init=False)

    def __post_init__(self) -> None:
        self.adam = {
            "actor": Adam(self.actor_leaves),
            "critics": Adam(self.critics.leaves),
            "temperature": Adam([self.log_temperature]),
        }

    def state(self) -> dict[str, Tensor]:
        """What it remembers besides the networks' parameters, by name; every agent's part side by side."""
        found = {name: value for part, adam in self.adam.items() for name, value in adam.moments(part).items()}
        found |= {f"right_{k}": vector for k, vector in enumerate(self.right)}
        return found | {"log_temperature": self.log_temperature, "count": self.count, "beta": self.beta}

    def values(self, critics: Stacked, leaves: Sequence[Tensor], states: Tensor, actions: Tensor) -> Tensor:
        """Q values (agents, critics, batch); arguments as of `critic_values`."""
        return critic_values(critics, leaves, states, actions).squeeze(-1)

    def act(self, leaves: Sequence[Tensor], states: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled actions (agents, batch, m) and log-probabilities (agents, batch) of SB3's squashed Gaussian."""
        mean, log_std = self.actor(leaves, states)
        actions = (mean + log_std.exp() * noise).tanh()
        density = -0.5 * noise.square() - log_std - HALF_LOG_TAU
        return actions, (density - (1 - actions.square() + 1e-6).log()).sum(-1)

    @torch.no_grad()
    def step(self, *tensors: Tensor) -> Tensor:
        """One update from the tensors of a `Batch`; critics' loss, actor's loss and temperature, (agents, 3)."""
        batch = Batch(*tensors)
        temperature = self.log_temperature.exp()
        next_actions, next_log_prob = self.act(self.actor_leaves, batch.next_states, batch.next_noise)
        value = smallest(self.values(self.targets, self.targets.leaves, batch.next_states, next_actions))
        soft = value - temperature[:, None] * next_log_prob
        target = batch.rewards + batch.going * self.discount * soft
        if self.limits is not None:
            target = target.clamp(*self.limits)
        self.count.add_(1)
        critic_loss = self._critics_step(batch, next_actions, target)
        actor_loss, log_prob = self._actor_step(batch, temperature)
        if self.target_entropy is not None:
            pull = -(log_prob + self.target_entropy).mean(-1)
            self.adam["temperature"].step([pull], self.count, self.rate)
        for mean, leaf in zip(self.targets.leaves, self.critics.leaves, strict=True):
            mean.lerp_(leaf, self.tau)
        return torch.stack([critic_loss, actor_loss, temperature], -1)

    def _critics_step(self, batch: Batch, next_actions: Tensor, target: Tensor) -> Tensor:
        """Towards the targets and smoothness; squared errors (agents,)."""
        smooth, chosen = self.smoothness, [self.critics.leaves[k] for k in self.constrained]
        at = (batch.states, batch.actions) if smooth.on == "state" else (batch.next_states, next_actions)
        moved = self._moved(batch, *at) if smooth.perturbation != "none" else None
        left = power_iteration(chosen, self.right) if smooth.spectral == "soft" else []

        def objective(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
            found = self.values(self.critics, leaves, batch.states, batch.actions)
            errors = 0.5 * (found - target[:, None]).square().mean(-1).sum(-1)
            total = errors.sum()
            if moved is not None:
                clean = found if smooth.on == "state" else self.values(self.critics, leaves, *at)
                change = self.values(self.critics, leaves, moved, at[1]) - clean
                total = total + smooth.weight * change.square().mean(-1).sum()
            if smooth.spectral == "soft":
                norms = largest_singular_values([leaves[k] for k in self.constrained], left, self.right)
                excess = [(norm - along(norm, self.beta)).relu().square().sum() for norm in norms]
                total = total + smooth.spectral_weight * torch.stack(excess).sum()
            return total, errors

        slopes, errors = gradients(objective, self.critics.leaves)
        self.adam["critics"].step(slopes, self.count, self.rate)
        if smooth.spectral == "hard":
            left = power_iteration(chosen, self.right)
            for matrix, norm in zip(chosen, largest_singular_values(chosen, left, self.right), strict=True):
                matrix.mul_(along(matrix, (along(norm, self.beta) / norm).clamp(max=1)))
        return errors  # type: ignore[no-any-return]

    @torch.no_grad()
    def project_exactly(self) -> None:
        """Under a hard spectral bound: the same as in an update, by the whole singular value decomposition."""
        if self.smoothness.spectral != "hard":
            return
        for k, right in zip(self.constrained, self.right, strict=True):
            matrix = self.critics.leaves[k]
            _, norms, vectors = torch.linalg.svd(matrix, full_matrices=False)
            right.copy_(vectors[:, 0])
            matrix.mul_(along(matrix, (along(norms[:, 0], self.beta) / norms[:, 0]).clamp(max=1)))

    def _moved(self, batch: Batch, states: Tensor, actions: Tensor) -> Tensor:
        """Perturbed states of each critic, (agents, critics, batch, n)."""
        each = self.critics.count // len(states)
        points = states[:, None].expand(-1, each, -1, -1)
        radius = self.smoothness.epsilon * batch.scale[:, None]

        def values(at: Tensor) -> Tensor:
            return self.values(self.critics, self.critics.leaves, at, actions)

        return perturb(
            values, points, radius, batch.start, kind=self.smoothness.perturbation, steps=self.smoothness.steps
        )

    def _actor_step(self, batch: Batch, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Towards higher soft values of the critics after their step; losses (agents,), log-probabilities before it."""

        def objective(leaves: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            actions, log_prob = self.act(leaves, batch.states, batch.noise)
            best = smallest(self.values(self.critics, self.critics.leaves, batch.states, actions))
            losses = (temperature[:, None] * log_prob - best).mean(-1)
            return losses.sum(), (losses, log_prob)

        slopes, (losses, log_prob) = gradients(objective, self.actor_leaves)
        self.adam["actor"].step(slopes, self.count, self.rate)
        return losses, log_prob


def smallest(values: Tensor) -> Tensor:
    """The least of critics' values (agents, critics, batch), (agents, batch).

    In pairs, whose gradient the compiler carries into the layers before at less cost than that of `amin`.
    """
    return reduce(torch.minimum, values.unbind(1))


def critic_values(critics: Stacked, leaves: Sequence[Tensor], states: Tensor, actions: Tensor) -> Tensor:
    """What critics predict, (agents, critics, batch, outputs).

    Args:
        leaves: parameters of the critics. states: (agents, batch, n), or each critic's own with one more axis.
        actions: (agents, batch, m).
    """
    agents, each = len(actions), critics.count // len(actions)
    if states.ndim == 3:
        states = states[:, None].expand(-1, each, -1, -1)
    pairs = torch.cat([states, actions[:, None].expand(-1, each, -1, -1)], -1)
    found: Tensor = critics(leaves, pairs.flatten(0, 1))
    return found.view(agents, each, *found.shape[1:])
