"""Cayley transform of a free matrix: orthonormal columns, differentiable (torch).

For F = [U; V] with U square, A = U - U' + V'V has a positive semidefinite symmetric part, so I + A is invertible, and
Q = [(I + A)^-1 (I - A); -2 V (I + A)^-1] satisfies Q'Q = I (Trockman and Kolter 2021, arXiv 2104.07167). The upper part
is 2 (I + A)^-1 - I, which spares a product.
"""

import torch
from torch import Tensor


def cayley(free: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts of Q with orthonormal columns, (..., columns, columns) and (..., rows - columns, columns), from F of
    shape (..., rows, columns), rows >= columns."""
    columns = free.shape[-1]
    upper, lower = free[..., :columns, :], free[..., columns:, :]
    eye = torch.eye(columns, dtype=free.dtype, device=free.device)
    inverse = torch.linalg.inv(eye + upper - upper.mT + lower.mT @ lower)
    return torch.add(-eye, inverse, alpha=2), -2 * lower @ inverse


def orthonormal(free: Tensor) -> Tensor:
    """A matrix of the shape of F, (..., rows, columns), whose columns or rows, the fewer, are orthonormal."""
    if free.shape[-2] >= free.shape[-1]:
        return torch.cat(cayley(free), -2)
    return torch.cat(cayley(free.mT), -2).mT
