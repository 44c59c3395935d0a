"""The one-step probabilistic model of model-based reinforcement learning (Janner et al., arXiv 1906.08253), unrolled.

x_{k+1} = x_k + f(x_k, u_k) + e with e normal, its variance learned beside f. Training is on single steps, by
likelihood; a prediction over the horizon feeds means back, so that nothing bounds what errors grow to.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.models.cell import Cell, numbers
from lipctrl.models.graph import Affine, Graph

HIGHEST, LOWEST = 0.5, -10.0  # of the logarithm of the variance, before training
BOUNDS_PRICE = 0.01  # draws both bounds towards each other


def bounded_log_variance(raw: Tensor, highest: Tensor, lowest: Tensor) -> Tensor:
    """Softly between two trained bounds, as published."""
    below = highest - functional.softplus(highest - raw)
    return lowest + functional.softplus(below - lowest)


class Gaussian(Cell):
    """Two hidden silu layers; mean and logarithm of the variance of the change of every state."""

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__(n, m, width, horizon)
        sizes = [(width, n + m), (width, width), (2 * n, width)]
        # truncated normal with deviation 1 / (2 sqrt(inputs)), as published
        self.weights = nn.ParameterList([nn.init.trunc_normal_(torch.empty(s), std=0.5 / np.sqrt(s[1])) for s in sizes])
        self.b1, self.b2, self.bo = (nn.Parameter(torch.zeros(s)) for s in (width, width, 2 * n))
        self.highest, self.lowest = (nn.Parameter(torch.full((n,), value)) for value in (HIGHEST, LOWEST))

    def one_step(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the next scaled state and logarithm of its variance, (batch, n), from (batch, n) and (batch, m)."""
        w1, w2, out = self.weights
        h = functional.silu(torch.cat([x, u], dim=-1) @ w1.T + self.b1)
        change, raw = (functional.silu(h @ w2.T + self.b2) @ out.T + self.bo).chunk(2, dim=-1)
        return x + change, bounded_log_variance(raw, self.highest, self.lowest)

    def forward(self, p: Tensor, u: Tensor) -> Tensor:
        """Scaled states (batch, T, n), means fed back."""
        found, x = [], p
        for k in range(u.shape[1]):
            x, _ = self.one_step(x, u[:, k])
            found.append(x)
        return torch.stack(found, dim=1)

    def loss(self, p: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Negative log-likelihood of single steps of the windows (without constants), and the price of the bounds."""
        before = torch.cat([p[:, None], y[:, :-1]], dim=1)
        mean, log_variance = self.one_step(before.flatten(0, 1), u.flatten(0, 1))
        fit = ((mean - y.flatten(0, 1)) ** 2 * torch.exp(-log_variance) + log_variance).mean()
        price: Tensor = fit + BOUNDS_PRICE * (self.highest.sum() - self.lowest.sum())
        return price

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        return list(self.weights)

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine]:
        """The outputs of all steps in a network under construction."""
        w1, w2, out = (numbers(w) for w in self.weights)
        b1, b2, bo = (numbers(b) for b in (self.b1, self.b2, self.bo))
        found, x = [], p
        for now in u:
            h = graph.activate(w1[:, : self.n] @ x + w1[:, self.n :] @ now + b1, "silu")
            h = graph.activate(w2 @ h + b2, "silu")
            x = x + (out[: self.n] @ h + bo[: self.n])
            found.append(x)
        return found
