"""What makes a critic smooth: noise it must not react to, and norms its matrices must not exceed.

Robust regularisation adds  lambda mean (Q(s + d, a) - Q(s, a))^2  with |d_j| <= epsilon sigma_j; spectral
regularisation bounds the singular values of the matrices (Zheng et al. 2023, arXiv 2302.01244, use both; the formulae
here are ours: the paper's settings were not reproduced from its code). To first order the penalty is
lambda epsilon^2 |sigma * grad Q|_1^2 for FGSM and lambda epsilon^2 / 3 |sigma * grad Q|_2^2 for uniform noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .stacked import gradients

Perturbation = Literal["none", "uniform", "fgsm", "pgd"]


@dataclass(frozen=True)
class Smoothness:
    """Regularisation of the critics; by default none."""

    perturbation: Perturbation = "none"
    """Noise of the robust term: uniform in the box, one signed gradient step, or projected gradient ascent."""
    on: Literal["state", "next_state"] = "state"
    """Which states of the batch are perturbed."""
    epsilon: float = 0.05
    """Half width of the box, in the unit below."""
    unit: Literal["data", "model"] = "data"
    """Unit of epsilon: the standard deviation of each observation seen, or of the dynamics model's prediction there."""
    weight: float = 0.1
    """Weight lambda of the robust term."""
    steps: int = 3
    """Ascent steps of pgd."""
    layer_norm: bool = False
    """LayerNorm behind each hidden layer of the critics (a control: no global bound)."""
    spectral: Literal["none", "hard", "soft"] = "none"
    """hard: matrices are scaled by min(1, beta / sigma) after each update; soft: squared excess in the loss."""
    beta: float | None = 4.0
    """Largest singular value of a constrained matrix; null: after 10,000 updates without the constraint it is set so
    that the product over all matrices is the 95th percentile of the critics' gradient norm at states seen."""
    spectral_weight: float = 0.1
    """Weight of the soft term."""
    layers: Literal["all", "hidden", "penultimate"] = "all"
    """Constrained matrices: all, all but the output's, or the one before the output's."""

    def __post_init__(self) -> None:
        for name in ("epsilon", "beta"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be positive and finite, found {getattr(self, name)}")
        for name in ("weight", "spectral_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be finite and not negative, found {getattr(self, name)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")


def perturb(
    values: Callable[[Tensor], Tensor],
    states: Tensor,
    radius: Tensor,
    start: Tensor,
    *,
    kind: Perturbation,
    steps: int,
) -> Tensor:
    """Perturbed states inside the box, without gradient.

    Args:
        values: from each critic's own states (..., batch, n) to values (..., batch).
        states: (..., batch, n).
        radius: half widths, broadcast to the states.
        start: uniform in [-1, 1], of the shape of the states; not used by fgsm.
        kind: uniform, fgsm or pgd. The change (Q(s + d) - Q(s))^2 has no gradient at d = 0, so fgsm takes the sign of
            Q's own gradient and pgd starts from noise; where that ends lower, pgd takes the vertex of fgsm.
        steps: of pgd, each of 2.5 / steps half widths.
    """
    if kind == "uniform":
        return states + radius * start
    (slope,), _ = gradients(lambda at: (values(at[0]).sum(), states), [states])
    vertex = states + radius * slope.sign()
    if kind == "fgsm":
        return vertex
    clean, noise = values(states).detach(), radius * start
    for _ in range(steps):
        (slope,), _ = gradients(lambda at: ((values(at[0]) - clean).square().sum(), states), [states + noise])
        noise = torch.minimum(torch.maximum(noise + 2.5 / steps * radius * slope.sign(), -radius), radius)
    gain = [(values(at).detach() - clean).square() for at in (states + noise, vertex)]
    return torch.where((gain[0] >= gain[1])[..., None], states + noise, vertex)


def power_iteration(matrices: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    """One iteration for the largest singular values of stacked matrices.

    Args:
        matrices: (count, out, in). right: unit vectors (count, in), moved in place.

    Returns:
        The left unit vectors (count, out).
    """
    found = []
    for matrix, vector in zip(matrices, right, strict=True):
        left = functional.normalize((matrix @ vector[..., None]).squeeze(-1), dim=-1)
        vector.copy_(functional.normalize((matrix.transpose(1, 2) @ left[..., None]).squeeze(-1), dim=-1))
        found.append(left)
    return found


def largest_singular_values(
    matrices: Sequence[Tensor], left: Sequence[Tensor], right: Sequence[Tensor]
) -> list[Tensor]:
    """Estimates (count,), never above the exact ones, differentiable in the matrices; arguments as above."""
    return [(u[:, None] @ matrix @ v[..., None]).flatten() for matrix, u, v in zip(matrices, left, right, strict=True)]
