"""The discriminators of adversarial imitation: logits of state-action pairs, their loss, their slopes, their reward.

Blonde, Strasser and Kalousis (arXiv 2006.16785) find that off-policy imitation needs a reward whose slope is bounded.
Two ways: a penalty on the gradient of the logit at sampled points, which bounds nothing between them; or a network that
is k-Lipschitz by construction, a proof. An input is (standardised state, absorbing bit, scaled action), without the
action, or with the standardised next state in its place; the networks of all agents are evaluated as one batch. In the
penalised network the gradient with respect to the input is itself a forward computation (activations are piecewise
linear), so that the penalty costs no second backward pass.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lipctrl.nn.graph import GraphNet, Weights
from lipctrl.nn.network import FAMILIES, lipschitz_mlp
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import Inputs
from lipctrl.nn.reward_forms import reward_tensor

from .leaky import LEAK, forward, jacobian, orthogonal
from .regularisation import power_iteration
from .stacked import Stacked, gradients
from .update import Adam, along


@dataclass(frozen=True)
class RewardSettings:
    """Settings of the learned reward."""

    form: Literal["softplus", "airl", "log-d", "d", "fairl"] = "softplus"
    """Reward of a logit z, D = sigmoid(z): softplus is -log(1 - D) > 0, airl is z, log-d is log D < 0, d is D, fairl is
    -z exp(z)."""
    inputs: Inputs = "state-action"
    """What the reward is a function of: state and action, the state alone, or state and next state."""
    clip: float | None = None
    """Logits are clipped to this size before the reward; null: not."""
    regulariser: Literal["one-sided", "two-sided", "r1", "certified", "none"] = "one-sided"
    """Penalty on the logit's gradient above k, away from k, or from 0 (r1); certified: k-Lipschitz by construction."""
    k: float = 1.0
    """Slope of the logit per standardised state and scaled action that is wanted, or proved."""
    points: Literal["segment", "rectangle", "dragan", "nagard"] = "segment"
    """Where the penalty acts: between agent and expert with one weight, or one for state and one for action; around the
    expert (dragan) or the agent (nagard) with noise of the size `spread`."""
    weight: float = 10.0
    """Weight of the penalty."""
    spread: float = 10.0
    """Standard deviation of the noise of dragan and nagard, in the units of k."""
    spectral: bool = False
    """Divide the hidden matrices by their largest singular value (the output's not)."""
    family: str = "sandwich"
    """Layer family of a certified network, see `lipctrl list`."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers; null: 64 64, and 32 32 of a certified reward, which on Pendulum was as good."""
    entropy: float = 1e-3
    """Weight of the entropy of the discriminator's answers, which is rewarded."""
    smoothing: tuple[float, float] = (1.0, 1.0)
    """Label of expert pairs, drawn uniformly between these; (0.7, 1.2) is the published label smoothing."""
    mixup: bool = False
    """Train on random mixtures of agent and expert pairs, labelled by their share."""
    dropout: float = 0.0
    """Share of hidden neurons that are left out in a training step."""
    weight_decay: float = 0.0
    """Decay of the weights per unit of learning rate."""
    learning_rate: float = 5e-4
    """Adam's learning rate."""
    batch: int = 128
    """Pairs of agent and of expert per step."""
    ratio: int = 1
    """Steps of the discriminator per update of the agent."""
    absorbing: bool = True
    """Continue episodes that end before their time limit in a state of its own, whose reward is learned too."""

    def __post_init__(self) -> None:
        for name in ("k", "weight", "spread", "learning_rate"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be positive and finite, found {getattr(self, name)}")
        if self.clip is not None and not 0 < self.clip < np.inf:
            raise ValueError(f"clip must be positive and finite, found {self.clip}")
        if self.form == "fairl" and self.clip is None:
            raise ValueError("the reward form fairl has an unbounded slope: set clip, for example 3")
        if not self.widths or min(*self.widths, self.batch, self.ratio) < 1:
            raise ValueError(f"hidden, batch and ratio must be at least 1, found {self.widths, self.batch, self.ratio}")
        if min(self.entropy, self.weight_decay) < 0 or not 0 <= self.dropout < 1:
            raise ValueError("entropy and weight_decay must not be negative and dropout in [0, 1)")
        low, high = self.smoothing
        if not 0 < low <= high or low + high > 2:  # above a mean of 1 the loss has no minimum
            raise ValueError(f"smoothing needs 0 < low <= high with a mean of at most 1, found {self.smoothing}")
        if self.mixup and self.smoothing != (1.0, 1.0):
            raise ValueError("mixup has labels of its own: it does not go with smoothing")
        if self.certified and (self.spectral or self.dropout or self.weight_decay):
            raise ValueError("a certified reward takes neither spectral normalisation nor dropout nor weight_decay")
        if self.family not in FAMILIES or self.family == "unconstrained":
            raise ValueError(f"unknown family {self.family!r} of bounded networks; see `lipctrl list`")

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the hidden layers."""
        return self.hidden if self.hidden is not None else (32, 32) if self.certified else (64, 64)

    @property
    def certified(self) -> bool:
        """Whether the logit is k-Lipschitz by construction."""
        return self.regulariser == "certified"

    @property
    def penalised(self) -> bool:
        """Whether the loss has a penalty on the gradient."""
        return self.regulariser in ("one-sided", "two-sided", "r1")


@dataclass
class Pairs:
    """Inputs and random numbers of one step of the discriminators, each with a leading axis of agents.

    Attributes:
        agent, expert: (agents, batch, d).
        share: uniform, (agents, batch, 2): weights of the penalty's points, for state and action.
        noise: standard normal, (agents, batch, d), of dragan and nagard, else (agents, batch, 0).
        label: uniform, (agents, batch). mixture: uniform, (agents, batch).
        keep: uniform, (agents, 2 batch, hidden neurons) of dropout, else (agents, 2 batch, 0).
    """

    agent: Tensor
    expert: Tensor
    share: Tensor
    noise: Tensor
    label: Tensor
    mixture: Tensor
    keep: Tensor

    def tensors(self) -> list[Tensor]:
        """All fields in order."""
        return list(vars(self).values())


@dataclass
class Discriminators:
    """One discriminator per agent, as one batch.

    Args:
        inputs: width d of an input. states: of them the first so many are the state and the absorbing bit.
        settings: see there. seeds: of the initial weights of each agent. device: of all tensors.

    Attributes:
        leaves: parameters, each with a leading axis of agents. nets: modules of certified networks.
        right: right singular vectors of the hidden matrices under spectral normalisation.
        maps: of certified networks, as the last step found them or `refresh` made them: what costs most, and what
            rewards are computed with.
        count: steps of each agent, (agents,).
    """

    inputs: int
    states: int
    settings: RewardSettings
    seeds: Sequence[int]
    device: torch.device
    leaves: list[Tensor] = field(init=False)
    nets: list[GraphNet] = field(init=False, default_factory=list)
    right: list[Tensor] = field(init=False, default_factory=list)
    maps: Weights = field(init=False)

    def __post_init__(self) -> None:
        sizes = (self.inputs, *self.settings.widths, 1)
        if self.settings.certified:
            activation = "maxmin" if self.settings.family in ("orthogonal", "aol") else f"leaky_relu:{LEAK}"
            self.nets = [
                lipschitz_mlp(self.settings.family, sizes, self.settings.k, activation=activation, seed=seed)
                for seed in self.seeds
            ]
            self._stacked = Stacked([net.to(self.device) for net in self.nets])
            self.leaves = self._stacked.leaves
            with torch.no_grad():
                self.maps = self._stacked.maps(self.leaves).copy()
        else:
            drawn = [orthogonal(sizes, seed) for seed in self.seeds]
            self.leaves = [torch.stack(parts).to(self.device) for parts in zip(*drawn, strict=True)]
        if self.settings.spectral:
            self.right = [torch.linalg.svd(m, full_matrices=False).Vh[:, 0].clone() for m in self._hidden(self.leaves)]
        self.adam = Adam(self.leaves)
        self.count = torch.zeros(len(self.seeds), dtype=torch.float64, device=self.device)
        self.rate = torch.full_like(self.count, self.settings.learning_rate)

    def state(self) -> dict[str, Tensor]:
        """Everything that is learned or counted, by name; every agent's part side by side."""
        found = {f"reward_{k}": leaf for k, leaf in enumerate(self.leaves)} | self.adam.moments("reward")
        return found | {f"reward_right_{k}": v for k, v in enumerate(self.right)} | {"reward_count": self.count}

    def alone(self, agent: int) -> "Discriminators":
        """The discriminator of one agent, which shares the memory of its parameters; its maps are those of now."""
        one = copy.copy(self)
        one.leaves = [leaf[agent : agent + 1] for leaf in self.leaves]
        one.right = [vector[agent : agent + 1] for vector in self.right]
        one.nets = self.nets[agent : agent + 1]
        if self.settings.certified:
            with torch.no_grad():
                one.maps = self._stacked.maps(one.leaves).copy()  # biases would be the parameters themselves
        return one

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the maps those of the parameters of now, where these were set otherwise than by a step."""
        if self.settings.certified:
            self._remember(self._stacked.maps(self.leaves).tensors())

    def _remember(self, maps: Sequence[Tensor]) -> None:
        for kept, new in zip(self.maps.tensors(), maps, strict=True):
            kept.copy_(new)

    def _hidden(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        return list(leaves[:-2:2])

    def _effective(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Matrices of the network that is evaluated: hidden ones divided by their largest singular value."""
        matrices = list(leaves[::2])
        for k, vector in enumerate(self.right):
            matrices[k] = matrices[k] / (matrices[k] @ vector[..., None]).norm(dim=1, keepdim=True)
        return matrices

    def logits(self, leaves: Sequence[Tensor], x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits (agents, rows) of inputs (agents, rows, d); `keep` multiplies the hidden neurons, side by side."""
        if self.settings.certified:
            return self._bounded(self._stacked.maps(leaves), x)
        return self._forward(leaves, x, keep)[0]

    def _bounded(self, maps: Weights, x: Tensor) -> Tensor:
        """Logits of certified networks by their maps."""
        return self.nets[0].evaluate(maps, x).squeeze(-1)

    def _forward(self, leaves: Sequence[Tensor], x: Tensor, keep: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the slopes of the hidden activations."""
        outputs, slopes = forward(self._effective(leaves), leaves[1::2], x, keep)
        return outputs.squeeze(-1), slopes

    def slopes(self, leaves: Sequence[Tensor], x: Tensor) -> Tensor:
        """Gradients (agents, rows, d) of the logits at inputs (agents, rows, d), differentiable in the leaves."""
        if self.settings.certified:
            return gradients(lambda at: (self.logits(leaves, at[0]).sum(), x), [x])[0][0]
        matrices = self._effective(leaves)
        return jacobian(matrices, forward(matrices, leaves[1::2], x)[1]).squeeze(2)

    def reward(self, x: Tensor) -> Tensor:
        """Rewards (agents, rows) of inputs (agents, rows, d); of certified networks as they were before their last
        step, which is as if it came after the agent's."""
        clip = math.inf if self.settings.clip is None else self.settings.clip
        logits = self._bounded(self.maps, x) if self.settings.certified else self.logits(self.leaves, x)
        return reward_tensor(self.settings.form, logits, clip)

    def points(self, pairs: Pairs) -> Tensor:
        """Where the gradient is penalised, (agents, batch, d)."""
        kind, settings = self.settings.points, self.settings
        if kind in ("dragan", "nagard"):
            return (pairs.expert if kind == "dragan" else pairs.agent) + settings.spread * pairs.noise
        second = pairs.share[..., 1:] if kind == "rectangle" else pairs.share[..., :1]
        of_state = pairs.share[..., :1].expand(-1, -1, self.states)
        weights = torch.cat([of_state, second.expand(-1, -1, self.inputs - self.states)], -1)
        return weights * pairs.agent + (1 - weights) * pairs.expert

    def penalty(self, leaves: Sequence[Tensor], points: Tensor) -> Tensor:
        """Mean over the points of the penalty of the gradient's norm, (agents,)."""
        squares = self.slopes(leaves, points).square().sum(-1)
        if self.settings.regulariser == "r1":
            return squares.mean(-1)
        excess = (squares + 1e-12).sqrt() - self.settings.k  # the root has no slope at 0
        return (excess.relu() if self.settings.regulariser == "one-sided" else excess).square().mean(-1)

    def loss(self, logits: Callable[..., Tensor], pairs: Pairs) -> Tensor:
        """Cross-entropy, as a sum of two means, less the weighted entropy of the answers; (agents,).

        Args:
            logits: of inputs (agents, rows, d) and what multiplies the hidden neurons.
        """
        settings = self.settings
        if settings.mixup:
            share = pairs.mixture[..., None]
            x, label = share * pairs.expert + (1 - share) * pairs.agent, pairs.mixture
            z = logits(x, self._kept(pairs.keep[:, : x.shape[1]]))
            classified = 2 * (functional.softplus(z) - label * z).mean(-1)
        else:
            low, high = settings.smoothing
            both = torch.cat([pairs.agent, pairs.expert], 1)
            z = logits(both, self._kept(pairs.keep))
            batch = pairs.agent.shape[1]
            fake, real = z[:, :batch], z[:, batch:]
            label = low + (high - low) * pairs.label
            classified = functional.softplus(fake).mean(-1) + (functional.softplus(real) - label * real).mean(-1)
        entropy = functional.softplus(z) - z * z.sigmoid()
        return classified - settings.entropy * entropy.mean(-1)

    def _kept(self, uniform: Tensor) -> Tensor | None:
        share = 1 - self.settings.dropout
        return (uniform < share).to(uniform.dtype) / share if self.settings.dropout else None

    @torch.no_grad()
    def step(self, *tensors: Tensor) -> Tensor:
        """One step from the tensors of `Pairs`; loss and penalty, (agents, 2)."""
        pairs, settings = Pairs(*tensors), self.settings
        if settings.spectral:
            power_iteration(self._hidden(self.leaves), self.right)
        points = self.points(pairs) if settings.penalised else None

        def objective(leaves: list[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, list[Tensor]]]:
            maps = self._stacked.maps(leaves) if settings.certified else None
            logits = partial(self.logits, leaves) if maps is None else lambda x, _: self._bounded(maps, x)
            loss = self.loss(logits, pairs)
            penalty = torch.zeros_like(loss) if points is None else self.penalty(leaves, points)
            return (loss + settings.weight * penalty).sum(), (loss, penalty, [] if maps is None else maps.tensors())

        slopes, (loss, penalty, maps) = gradients(objective, self.leaves)
        if settings.certified:
            self._remember(maps)
        self.count.add_(1)
        if settings.weight_decay:
            for matrix in self.leaves[::2]:
                matrix.mul_(along(matrix, 1 - settings.weight_decay * self.rate))
        self.adam.step(slopes, self.count, self.rate)
        return torch.stack([loss, penalty], -1)

    def plain(self) -> PlainNet:
        """The logit of the first agent as it is evaluated, of inputs in the units of k, in float64."""
        if self.settings.certified:
            return self.nets[0].to_plain()
        matrices = [matrix[0].double().cpu().numpy() for matrix in self._effective(self.leaves)]
        biases = [bias[0].double().cpu().numpy() for bias in self.leaves[1::2]]
        return PlainNet.mlp(matrices, biases, f"leaky_relu:{LEAK}")
