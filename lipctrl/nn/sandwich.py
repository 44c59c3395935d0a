"""Sandwich (LBDN) networks: an end-to-end l2 bound by construction (Wang and Manchester 2023, arXiv 2301.11526).

A layer n -> m takes a free F of shape (m + n, m), Q = Cayley(F), P = first m rows and B = (last n rows)', so that
P'P + B B' = I, and a scale Psi = diag(exp d):

    hidden layer   h -> sqrt(2) P Psi phi( sqrt(2) Psi^-1 B h + b ),      output layer   h -> B h + b,

each 1-Lipschitz for phi of slope in [0, 1]; sqrt(lip) before and after gives the bound. Merging neighbouring maps gives
an ordinary MLP that satisfies the LMI of LipSDP with the multipliers Lambda_k = lip Psi_k^2. The merged weights have a
large product of norms, so the multipliers are exported with them.
"""

from collections.abc import Sequence

import torch
from torch import nn

from lipctrl.nn.activations import Activation
from lipctrl.nn.cayley import cayley
from lipctrl.nn.graph import GraphNet, Weights, needs_slopes_in_unit_interval, xavier

LARGEST_LOG_SCALE = 20.0


class Sandwich(GraphNet):
    """sandwich layers (LBDN), end-to-end bound; the default"""

    def __init__(
        self, sizes: Sequence[int], lip: float, *, activation: str, learnable_lip: bool, generator: torch.Generator
    ) -> None:
        super().__init__(sizes, lip, activation=activation, learnable_lip=learnable_lip, generator=generator)
        self.free = nn.ParameterList([xavier(m + n, m, generator) for n, m in self.pairs])
        self.log_scale = nn.ParameterList([nn.Parameter(torch.zeros(m)) for m in sizes[1:-1]])

    def accepts(self, activation: Activation) -> None:
        """Slopes in [0, 1] only."""
        needs_slopes_in_unit_interval(activation, "sandwich")

    def weights(self, dtype: torch.dtype) -> Weights:
        """The merged MLP."""
        lip = self.factor(dtype)
        blocks: list[dict[int, torch.Tensor]] = []
        multipliers, left = [], None
        for k in range(len(self.pairs)):
            p, lower = cayley(self.free[k].to(dtype))
            b = lip.sqrt() * lower.mT if left is None else lower.mT @ left
            if k < len(self.log_scale):
                psi = self.log_scale[k].to(dtype).clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()
                blocks.append({k: (2**0.5 / psi)[..., None] * b})
                left = p * (2**0.5 * psi)[..., None, :]
                multipliers.append(lip[..., 0] * psi**2)
            else:
                blocks.append({k: lip.sqrt() * b})
        biases = [bias.to(dtype) for bias in self.bias]
        return Weights(blocks, biases, multipliers)
