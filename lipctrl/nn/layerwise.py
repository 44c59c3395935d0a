"""Layer-wise families: every map has norm at most one, the activation is 1-Lipschitz, sqrt(lip) at both ends.

With ReLU-type activations they use only part of their budget (they cannot represent |x|); with MaxMin, GroupSort or
Householder activations orthogonal layers are universal for scalar 1-Lipschitz functions (Anil et al. 2019, arXiv
1811.05381). `unconstrained` is the ordinary network that everything is compared with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipctrl.nn.activations import Activation
from lipctrl.nn.cayley import orthonormal
from lipctrl.nn.graph import GraphNet, Weights, xavier


class _Layerwise(GraphNet):
    def __init__(
        self, sizes: Sequence[int], lip: float, *, activation: str, learnable_lip: bool, generator: torch.Generator
    ) -> None:
        super().__init__(sizes, lip, activation=activation, learnable_lip=learnable_lip, generator=generator)
        self.free = nn.ParameterList([xavier(m, n, generator) for n, m in self.pairs])

    def contraction(self, free: Tensor) -> Tensor:
        """A map of norm at most one from a free matrix of the same shape."""
        raise NotImplementedError

    def weights(self, dtype: torch.dtype) -> Weights:
        """The contractions, with the root of the bound at both ends."""
        root = self.factor(dtype).sqrt()
        maps = [self.contraction(free.to(dtype)) for free in self.free]
        maps[0], maps[-1] = (root**2 * maps[0],) * 2 if len(maps) == 1 else (root * maps[0], root * maps[-1])
        multipliers = None
        if self.activation.is_scalar and min(self.activation.slopes) >= 0:
            # with every map a contraction, Lambda = lip I satisfies the LMI for slopes in [0, 1]
            multipliers = [root[..., 0] ** 2 * torch.ones(m, dtype=dtype, device=root.device) for m in self.sizes[1:-1]]
        blocks = [{k: w} for k, w in enumerate(maps)]
        return Weights(blocks, [b.to(dtype) for b in self.bias], multipliers, list(self.reflections))


class Orthogonal(_Layerwise):
    """orthogonal layers (Cayley), layer-wise bound; use with maxmin, groupsort:g or householder"""

    def contraction(self, free: Tensor) -> Tensor:
        """Orthonormal columns or rows."""
        return orthonormal(free)


class Aol(_Layerwise):
    """almost-orthogonal layers (AOL), layer-wise bound"""

    def contraction(self, free: Tensor) -> Tensor:
        """W D^-1/2 with D the column sums of |W'W| (Prach and Lampert 2022, arXiv 2208.03160)."""
        return free / (free.mT @ free).abs().sum(-2, keepdim=True).clamp(min=1e-12).sqrt()


class Spectral(_Layerwise):
    """spectral normalisation with the exact norm, layer-wise bound"""

    def contraction(self, free: Tensor) -> Tensor:
        """W / max(1, |W|), the norm by a singular value decomposition."""
        norm: Tensor = torch.linalg.matrix_norm(free, 2, keepdim=True)
        return free / norm.clamp(min=1.0)


class Unconstrained(GraphNet):
    """ordinary multilayer perceptron, no bound"""

    def __init__(self, sizes: Sequence[int], *, activation: str, generator: torch.Generator) -> None:
        super().__init__(sizes, 1.0, activation=activation, learnable_lip=False, generator=generator)
        self.free = nn.ParameterList([xavier(m, n, generator) for n, m in self.pairs])

    @property
    def lip(self) -> Tensor:
        """Infinite: nothing is bounded."""
        return torch.tensor(torch.inf)

    def accepts(self, activation: Activation) -> None:
        """Any activation."""

    def weights(self, dtype: torch.dtype) -> Weights:
        """The free matrices themselves."""
        blocks = [{k: w.to(dtype)} for k, w in enumerate(self.free)]
        return Weights(blocks, [b.to(dtype) for b in self.bias], reflections=list(self.reflections))
