"""Pessimistic reward preconditioning (PURPLE, Blonde et al. 2022, arXiv 2006.16785): less reward where the dynamics are
steep. The learned reward r of a sampled window becomes kappa r with 0 < kappa <= 1.

A constant kappa scales every Lipschitz bound of reward and values by kappa. The other instance learns the dynamics
f(s, a) while it trains, pen = mean over the window of max(0, |df/d(s, a)| - threshold)^2 and
kappa = clip(exp(-pen / running standard deviation), smallest, 1). Our differences: the norm is the Frobenius norm of
the true Jacobian, not that of the gradient of the sum of the outputs, which can vanish where the Jacobian does not; it
is taken in standardised states and scaled actions; the running deviation is that of all windows sampled so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lipctrl.certify.guarantees import Guarantee
from lipctrl.certify.value_bounds import preconditioned_lip

from .leaky import forward, jacobian, orthogonal
from .stacked import gradients
from .update import Adam

SMALLEST_DEVIATION = 0.1  # of the penalty, the published floor


@dataclass(frozen=True)
class PessimismSettings:
    """Multiplier kappa of the learned reward."""

    kind: Literal["none", "constant", "dynamics"] = "none"
    """constant: kappa is `multiplier`; dynamics: smaller where learned dynamics are steep, not below `multiplier`."""
    multiplier: float = 0.7
    """The constant kappa, or the smallest one."""
    threshold: float = 1.1
    """Norm of the dynamics' Jacobian that is not penalised, as a multiple of that of a system that stands still: the
    root of the number of states."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the hidden layers of the dynamics network."""
    learning_rate: float = 2.5e-4
    """Adam's, of the dynamics network."""

    def __post_init__(self) -> None:
        if not 0 < self.multiplier <= 1:
            raise ValueError(f"multiplier must be in (0, 1], found {self.multiplier}")
        rate, threshold = self.learning_rate, self.threshold
        if not 0 <= threshold < np.inf or not 0 < rate < np.inf:
            raise ValueError(f"threshold must not be negative and learning_rate positive, found {threshold}, {rate}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden needs at least one width, each at least 1, found {self.hidden}")

    @property
    def learned(self) -> bool:
        """Whether kappa follows learned dynamics."""
        return self.kind == "dynamics"

    @property
    def constant(self) -> float:
        """The multiplier of what has no dynamics, the absorbing state."""
        return self.multiplier if self.kind == "constant" else 1.0


def preconditioned(settings: PessimismSettings, reward_lip: float) -> Guarantee:
    """Constant of the reward kappa r, where r has constant reward_lip.

    With learned dynamics nothing is claimed: their Jacobian is constant between the kinks of the network and jumps
    there, and so does kappa; it also depends on the rest of the window. What remains is that kappa r is within
    (1 - multiplier) sup |r| of r.
    """
    if not settings.learned:
        return preconditioned_lip(reward_lip, settings.constant)
    quantity, unit = "slope of the preconditioned reward", preconditioned_lip(reward_lip, 1.0).unit
    return Guarantee(quantity, None, unit, "bound", (), "the multiplier jumps where a neuron of the dynamics switches")


@dataclass
class Pessimism:
    """The multipliers of several agents and the dynamics that they learn, as one batch.

    Args:
        states, actions: their numbers n and m. settings: see there. seeds: of each agent. device: of all tensors.

    Attributes:
        leaves: parameters of the dynamics networks, from standardised state and scaled action to the state's change in
            standardised units; none of a constant multiplier.
        count: steps of each network, (agents,). rate: learning rate. seen, mean, squares: number, mean and sum of
            squared deviations of the penalties so far, (agents,).
    """

    states: int
    actions: int
    settings: PessimismSettings
    seeds: Sequence[int]
    device: torch.device
    leaves: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.settings.learned:
            sizes = (self.states + self.actions, *self.settings.hidden, self.states)
            drawn = [orthogonal(sizes, seed) for seed in self.seeds]
            self.leaves = [torch.stack(parts).to(self.device) for parts in zip(*drawn, strict=True)]
        self.adam = Adam(self.leaves)
        self.count, self.seen, self.mean, self.squares = (
            torch.zeros(len(self.seeds), dtype=torch.float64, device=self.device) for _ in range(4)
        )
        self.rate = torch.full_like(self.count, self.settings.learning_rate)

    def state(self) -> dict[str, Tensor]:
        """Everything that is learned or counted, by name; every agent's part side by side."""
        if not self.settings.learned:
            return {}
        found = {f"dynamics_{k}": leaf for k, leaf in enumerate(self.leaves)} | self.adam.moments("dynamics")
        counted = {"count": self.count, "seen": self.seen, "mean": self.mean, "squares": self.squares}
        return found | {f"dynamics_{name}": value for name, value in counted.items()}

    def parts(self, inputs: Tensor) -> Tensor:
        """Standardised states and scaled actions (..., n + m) of a discriminator's inputs (..., d)."""
        width = inputs.shape[-1] - self.actions
        return torch.cat([inputs[..., : self.states], inputs[..., width:]], -1)

    def changes(self, leaves: Sequence[Tensor], x: Tensor) -> Tensor:
        """Predicted changes of the standardised state, (agents, rows, n), at x (agents, rows, n + m)."""
        return forward(leaves[::2], leaves[1::2], x)[0]

    def jacobian(self, x: Tensor) -> Tensor:
        """Jacobians (agents, rows, n, n + m) of the next standardised state at x (agents, rows, n + m)."""
        matrices = self.leaves[::2]
        still = torch.eye(self.states, self.states + self.actions, dtype=x.dtype, device=x.device)
        return still + jacobian(matrices, forward(matrices, self.leaves[1::2], x)[1])

    def slopes(self, x: Tensor) -> Tensor:
        """Frobenius norms (agents, rows) of the Jacobians."""
        return self.jacobian(x).square().sum((-2, -1)).sqrt()

    @torch.no_grad()
    def multipliers(self, inputs: Tensor, inside: Tensor) -> Tensor | float:
        """Kappa of every window, (agents, batch), whose penalties are counted.

        Args:
            inputs: of the discriminator, (agents, batch, n_step, d). inside: before the window's end, of the same
                shape without d.
        """
        if not self.settings.learned:
            return self.settings.constant
        slopes = self.slopes(self.parts(inputs).flatten(1, 2)).view(inside.shape)
        penalty = (self._excess(slopes) * inside).sum(-1) / inside.sum(-1)
        self._count(penalty.double())
        return self._kappa(penalty)

    def _excess(self, slopes: Tensor) -> Tensor:
        excess: Tensor = (slopes - self.settings.threshold * self.states**0.5).relu().square()
        return excess

    def _kappa(self, penalty: Tensor) -> Tensor:
        deviation = (self.squares / self.seen).sqrt().clamp(min=SMALLEST_DEVIATION).to(penalty.dtype)
        return (-penalty / deviation[:, None]).exp().clamp(min=self.settings.multiplier)

    def _count(self, penalty: Tensor) -> None:
        """Add penalties (agents, batch) to the running moments (parallel form of Chan, Golub and LeVeque 1979)."""
        new, mean = penalty.shape[1], penalty.mean(1)
        total, shift = self.seen + new, mean - self.mean
        self.squares.add_((penalty - mean[:, None]).square().sum(1) + shift.square() * self.seen * new / total)
        self.mean.add_(shift * new / total)
        self.seen.copy_(total)

    @torch.no_grad()
    def learn(self, inputs: Tensor, changes: Tensor) -> None:
        """One step of the dynamics.

        Args:
            inputs: of the discriminator, (agents, batch, d). changes: of the standardised state, (agents, batch, n).
        """
        if not self.settings.learned:
            return
        x = self.parts(inputs)

        def objective(leaves: list[Tensor]) -> tuple[Tensor, tuple[()]]:
            return (self.changes(leaves, x) - changes).square().mean((-2, -1)).sum(), ()

        slopes, _ = gradients(objective, self.leaves)
        self.count.add_(1)
        self.adam.step(slopes, self.count, self.rate)

    def measure(self, agent: int, inputs: Tensor) -> dict[str, float]:
        """Slopes of one agent's learned dynamics at inputs (rows, d) of its discriminator, and multipliers there."""
        if not self.settings.learned:
            return {}
        slopes = self.slopes(self.parts(inputs).expand(len(self.seeds), -1, -1))
        kappa = self._kappa(self._excess(slopes))[agent] if self.seen[agent] else torch.ones(1)
        return {
            "dynamics/slope_mean": float(slopes[agent].mean()),
            "dynamics/slope_95": float(slopes[agent].quantile(0.95)),
            "dynamics/multiplier_mean": float(kappa.mean()),
        }
