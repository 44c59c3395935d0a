"""Residual blocks of norm one: h -> h - 2 G'T^-1 phi(G h + b) with T >= G G' (slopes of phi in [0, 1]).

CPL takes T = |G|^2 I (Meunier et al. 2022, arXiv 2110.12690), SLL T = diag(sum_j |G G'|_ij q_j / q_i) with free q > 0
(Araujo et al. 2023, arXiv 2303.03169). A zero-padded input is the first state, a contraction maps the last one to the
output, and sqrt(lip) stands at both ends. Along a block |dh|^2 - |dh'|^2 is at least the quadratic form of phi with
Lambda = 2 T^-1, so lip times these multipliers prove the bound end to end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipctrl.nn.activations import Activation
from lipctrl.nn.cayley import orthonormal
from lipctrl.nn.graph import GraphNet, Weights, needs_slopes_in_unit_interval, xavier

MARGIN = 1 + 1e-6  # T strictly above G G', so that the LMI is strictly feasible and can be proved


class _Residual(GraphNet):
    def __init__(
        self, sizes: Sequence[int], lip: float, *, activation: str, learnable_lip: bool, generator: torch.Generator
    ) -> None:
        super().__init__(sizes, lip, activation=activation, learnable_lip=learnable_lip, generator=generator)
        self.state = max(sizes[:2])
        self.free = nn.ParameterList([xavier(inner, self.state, generator) for inner in sizes[1:-1]])
        self.last = xavier(sizes[-1], self.state, generator)

    def accepts(self, activation: Activation) -> None:
        """Slopes in [0, 1] only."""
        needs_slopes_in_unit_interval(activation, "residual family")

    def diagonal(self, g: Tensor, block: int) -> Tensor:
        """The diagonal of a T >= G G'."""
        raise NotImplementedError

    def weights(self, dtype: torch.dtype) -> Weights:
        """The blocks written out: every layer sees the input and all earlier activations."""
        lip = self.factor(dtype)
        sources = {0: lip.sqrt() * torch.eye(self.state, self.sizes[0], dtype=dtype, device=lip.device)}
        blocks, multipliers = [], []
        for k, free in enumerate(self.free):
            g = free.to(dtype)
            t = self.diagonal(g, k)
            blocks.append({j: g @ w for j, w in sources.items()})
            sources[k + 1] = -2 * g.mT / t[..., None, :]
            multipliers.append(2 * lip[..., 0] / t)
        last = orthonormal(self.last.to(dtype))
        blocks.append({j: lip.sqrt() * last @ w for j, w in sources.items()})
        return Weights(blocks, [b.to(dtype) for b in self.bias], multipliers)


class Cpl(_Residual):
    """convex potential residual blocks (CPL), bound per block"""

    def diagonal(self, g: Tensor, block: int) -> Tensor:
        """|G|^2, by a singular value decomposition."""
        square: Tensor = torch.linalg.matrix_norm(g, 2).square()
        return (MARGIN * square).clamp(min=1e-12)[..., None].expand(g.shape[:-1])


class Sll(_Residual):
    """SDP-based residual blocks (SLL), bound per block"""

    def __init__(
        self, sizes: Sequence[int], lip: float, *, activation: str, learnable_lip: bool, generator: torch.Generator
    ) -> None:
        super().__init__(sizes, lip, activation=activation, learnable_lip=learnable_lip, generator=generator)
        self.log_q = nn.ParameterList([nn.Parameter(torch.zeros(inner)) for inner in sizes[1:-1]])

    def diagonal(self, g: Tensor, block: int) -> Tensor:
        """Row sums of |G G'| after a diagonal scaling (Gershgorin)."""
        q = self.log_q[block].to(g.dtype).exp()
        sums: Tensor = ((g @ g.mT).abs() * q[..., None, :] / q[..., None]).sum(-1)
        return (MARGIN * sums).clamp(min=1e-12)
