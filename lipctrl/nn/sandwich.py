"""Sandwich (LBDN) networks: an end-to-end l2 bound by construction (Wang and Manchester 2023, arXiv 2301.11526).

A layer n -> m takes a free F of shape (m + n, m), Q = Cayley(F), P = first m rows (P is square) and B = (last n rows)',
so that P'P + B B' = I, and a scale Psi = diag(exp d):

    hidden layer   h -> sqrt(2) P Psi phi( sqrt(2) Psi^-1 B h + b ),      output layer   h -> B h + b,

each 1-Lipschitz for phi of slope in [0, 1]; sqrt(lip) before and after gives the bound. Merging neighbouring maps gives
an ordinary MLP that satisfies the LMI of LipSDP with the multipliers Lambda_k = lip Psi_k^2. The merged weights have a
large product of norms, so the multipliers are exported with them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lipctrl.nn.cayley import cayley
from lipctrl.nn.plain import PlainNet

LARGEST_LOG_SCALE = 20.0


class Sandwich(nn.Module):
    """Multi-layer sandwich network; end-to-end l2 bound; the default."""

    def __init__(
        self,
        sizes: Sequence[int],
        lip: float,
        activation: nn.Module,
        name: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.lip, self.phi, self.name = lip, activation, name
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        frees = [torch.empty(m + n, m) for n, m in pairs]
        for free in frees:
            nn.init.xavier_normal_(free, generator=generator)
        self.free = nn.ParameterList([nn.Parameter(free) for free in frees])
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(m)) for _, m in pairs])
        self.log_scale = nn.ParameterList([nn.Parameter(torch.zeros(m)) for _, m in pairs[:-1]])
        self._cached: list[tuple[Tensor, Tensor]] | None = None

    def _maps(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """(P, B) of each layer."""
        maps = []
        for free, bias in zip(self.free, self.bias, strict=True):
            q = cayley(free.to(dtype))
            maps.append((q[: len(bias)], q[len(bias) :].T))
        return maps

    def train(self, mode: bool = True) -> "Sandwich":
        """In evaluation mode the maps are computed once and kept."""
        self._cached = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, m) for inputs (batch, n)."""
        if self._cached is None or self.training or torch.is_grad_enabled():
            maps = self._maps(x.dtype)
            self._cached = None if self.training or torch.is_grad_enabled() else maps
        else:
            maps = self._cached
        h = self.lip**0.5 * x
        for (p, b), bias, log_scale in zip(maps[:-1], self.bias, self.log_scale, strict=False):
            psi = log_scale.clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()
            h = 2**0.5 * (psi * self.phi(2**0.5 * (h @ b.T) / psi + bias)) @ p.T
        return self.lip**0.5 * (h @ maps[-1][1].T + self.bias[-1])

    @torch.no_grad()
    def to_plain(self) -> PlainNet:
        """The merged MLP with its multipliers, the parametrisation evaluated in float64."""
        maps = [(p.cpu().numpy(), b.cpu().numpy()) for p, b in self._maps(torch.float64)]
        scales = [np.exp(d.double().clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).cpu().numpy()) for d in self.log_scale]
        root = np.sqrt(self.lip)
        weights, left = [], root * np.eye(maps[0][1].shape[1])
        for k, (p, b) in enumerate(maps):
            if k < len(scales):
                weights.append(np.sqrt(2) / scales[k][:, None] * (b @ left))
                left = np.sqrt(2) * p * scales[k]
            else:
                weights.append(root * b @ left)
        biases = [bias.double().cpu().numpy() for bias in self.bias]
        biases[-1] = root * biases[-1]
        net = PlainNet.mlp(weights, biases, self.name)
        return replace(net, multipliers=tuple(self.lip * scale**2 for scale in scales))
