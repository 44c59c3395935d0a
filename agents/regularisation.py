"""What makes a critic smooth: noise it must not react to, and norms its matrices must not exceed.

Robust regularisation adds  lambda mean (Q(s + d, a) - Q(s, a))^2  with |d_j| <= epsilon sigma_j; spectral
regularisation bounds the singular values of the matrices (Zheng et al. 2023, arXiv 2302.01244, use both; the formulae
here are ours: the paper's settings were not reproduced from its code). To first order the penalty is
lambda epsilon^2 |sigma * grad Q|_1^2 for FGSM and lambda epsilon^2 / 3 |sigma * grad Q|_2^2 for uniform noise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .critics import StackedCritics

Perturbation = Literal["none", "uniform", "fgsm", "pgd"]


@dataclass(frozen=True)
class Smoothness:
    """Regularisation of the critics; by default none."""

    perturbation: Perturbation = "none"
    """Noise of the robust term: uniform in the box, one signed gradient step, or projected gradient ascent."""
    on: Literal["state", "next_state"] = "state"
    """Which states of the batch are perturbed."""
    epsilon: float = 0.05
    """Half width of the box, in standard deviations of each observation."""
    weight: float = 0.1
    """Weight lambda of the robust term."""
    steps: int = 3
    """Ascent steps of pgd."""
    layer_norm: bool = False
    """LayerNorm behind each hidden layer of the critics (a control: no global bound)."""
    spectral: Literal["none", "hard", "soft"] = "none"
    """hard: matrices are scaled by min(1, beta / sigma) after each update; soft: squared excess in the loss."""
    beta: float = 4.0
    """Largest singular value of a constrained matrix."""
    spectral_weight: float = 0.1
    """Weight of the soft term."""
    layers: Literal["all", "hidden", "penultimate"] = "all"
    """Constrained matrices: all, all but the output's, or the one before the output's."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "beta"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be positive and finite, found {getattr(self, name)}")
        for name in ("weight", "spectral_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be finite and not negative, found {getattr(self, name)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")


def perturb(
    values: Callable[[Tensor], Tensor], states: Tensor, radius: Tensor, *, kind: Perturbation, steps: int
) -> Tensor:
    """Perturbed states inside the box, without gradient.

    Args:
        values: from each critic's own states (critics, batch, n) to values (critics, batch).
        states: (critics, batch, n).
        radius: half widths, (n,) or broadcast to the states.
        kind: uniform, fgsm or pgd. The change (Q(s + d) - Q(s))^2 has no gradient at d = 0, so fgsm takes the sign of
            Q's own gradient and pgd starts from noise.
        steps: of pgd, each of 2.5 / steps half widths.
    """
    if kind == "fgsm":
        return (states + radius * _slope(values, states).sign()).detach()
    noise = radius * (2 * torch.rand_like(states) - 1)
    if kind == "uniform":
        return states + noise
    clean = values(states).detach()
    for _ in range(steps):
        moved = states + noise
        point = moved.detach().requires_grad_()
        (ascent,) = torch.autograd.grad((values(point) - clean).square().sum(), point)
        noise = torch.clamp(noise + 2.5 / steps * radius * ascent.sign(), -radius, radius)
    return (states + noise).detach()


def _slope(values: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    point = states.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(values(point).sum(), point)
    return gradient


def robust_penalty(
    critics: StackedCritics, states: Tensor, actions: Tensor, scale: Tensor, smoothness: Smoothness
) -> Tensor:
    """lambda mean (Q_i(s + d_i, a) - Q_i(s, a))^2, summed over the critics.

    Args:
        critics: Q_i, each with its own perturbation. states: (batch, n). actions: (batch, m), kept as they are.
        scale: standard deviation of each observation (n,), or a deviation of each state of the batch (batch, n).
    """
    count = critics.count
    x, a = states.expand(count, *states.shape), actions.expand(count, *actions.shape)

    def frozen(points: Tensor) -> Tensor:
        return critics(torch.cat([points, a], -1), frozen=True)

    radius = smoothness.epsilon * scale
    moved = perturb(frozen, x, radius, kind=smoothness.perturbation, steps=smoothness.steps)
    change = critics(torch.cat([moved, a], -1)) - critics(torch.cat([x, a], -1))
    return smoothness.weight * change.square().mean(1).sum()


class SpectralNorms:
    """Singular values of stacked matrices by power iteration; its vectors are kept from one update to the next.

    Args:
        critics: whose matrices are constrained. smoothness: which and how.
    """

    def __init__(self, critics: StackedCritics, smoothness: Smoothness) -> None:
        weights = [weight for weight, _ in critics.layers]
        chosen = {"all": weights, "hidden": weights[:-1], "penultimate": weights[-2:-1]}
        self.weights, self.beta = chosen[smoothness.layers], smoothness.beta
        self.right: list[Tensor] = []
        for weight in self.weights:
            self.right.append(torch.linalg.svd(weight.detach(), full_matrices=False).Vh[:, 0].clone())

    def _left(self, k: int) -> Tensor:
        """One power iteration; the right vector moves, the left one is returned."""
        weight = self.weights[k].detach()
        left = functional.normalize((weight @ self.right[k][..., None]).squeeze(-1), dim=-1)
        self.right[k] = functional.normalize((weight.transpose(1, 2) @ left[..., None]).squeeze(-1), dim=-1)
        return left

    def excess(self) -> Tensor:
        """Sum over matrices of max(0, sigma - beta)^2, differentiable in the matrices."""
        total = torch.zeros((), device=self.weights[0].device)
        for k, weight in enumerate(self.weights):
            left = self._left(k)
            sigma = (left[:, None] @ weight @ self.right[k][..., None]).flatten()
            total = total + functional.relu(sigma - self.beta).square().sum()
        return total

    @torch.no_grad()
    def project_(self) -> None:
        """Scale every matrix by min(1, beta / sigma): small matrices stay as they are."""
        for k, weight in enumerate(self.weights):
            left = self._left(k)
            sigma = (left[:, None] @ weight @ self.right[k][..., None]).flatten()
            weight.mul_((self.beta / sigma).clamp(max=1)[:, None, None])
