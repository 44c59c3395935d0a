"""Cayley transform of a free matrix: orthonormal columns, differentiable (torch).

For F = [U; V] with U square, A = U - U' + V'V has a positive semidefinite symmetric part, so I + A is invertible, and
Q = [(I + A)^-1 (I - A); -2 V (I + A)^-1] satisfies Q'Q = I (Trockman and Kolter 2021, arXiv 2104.07167).
"""

import torch
from torch import Tensor


def cayley(free: Tensor) -> Tensor:
    """Q with orthonormal columns from F of shape (rows, columns), rows >= columns."""
    columns = free.shape[1]
    upper, lower = free[:columns], free[columns:]
    a = upper - upper.T + lower.T @ lower
    eye = torch.eye(columns, dtype=free.dtype, device=free.device)
    inverse = torch.linalg.inv(eye + a)
    return torch.cat([inverse @ (eye - a), -2 * lower @ inverse])
