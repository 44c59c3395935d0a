"""Stacks of networks of linear layers and leaky rectifiers, with Jacobians that are themselves forward computations.

One network per agent: matrices (agents, out, in) and biases (agents, out). The activation is piecewise linear, so the
Jacobian at a point is a product of matrices and slopes; a loss of it needs no second backward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAK = 0.1  # slope of the activation for negative inputs


def orthogonal(sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Initial matrices and biases of one network, in turns: orthogonal, gain of the activation, 0.01 at the output."""
    draws, leaves = torch.Generator().manual_seed(seed), list[Tensor]()
    for k, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False)):
        gain = 0.01 if k + 2 == len(sizes) else (2 / (1 + LEAK**2)) ** 0.5
        leaves.append(nn.init.orthogonal_(torch.empty(fan_out, fan_in), gain, generator=draws))
        leaves.append(torch.zeros(fan_out))
    return leaves


def forward(
    matrices: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Outputs (agents, rows, out) of inputs (agents, rows, d), and the slopes of the hidden activations.

    Args:
        keep: multiplies the hidden neurons, all layers side by side, (agents, rows, neurons).
    """
    slopes: list[Tensor] = []
    h, at = x, 0
    for matrix, bias in zip(matrices[:-1], biases[:-1], strict=True):
        z = torch.baddbmm(bias[:, None], h, matrix.transpose(1, 2))
        slope = torch.where(z > 0, 1.0, LEAK)
        if keep is not None:
            slope = slope * keep[..., at : at + z.shape[-1]]
            at += z.shape[-1]
        slopes.append(slope)
        h = z * slope
    return torch.baddbmm(biases[-1][:, None], h, matrices[-1].transpose(1, 2)), slopes


def jacobian(matrices: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
    """Jacobians (agents, rows, out, d) where the hidden activations have these slopes."""
    agents, rows, outputs = len(slopes[0]), slopes[0].shape[1], matrices[-1].shape[1]
    found = matrices[-1][:, None].expand(-1, rows, -1, -1)
    for matrix, slope in zip(reversed(matrices[:-1]), reversed(slopes), strict=True):
        found = torch.bmm((found * slope[:, :, None]).flatten(1, 2), matrix).view(agents, rows, outputs, -1)
    return found
