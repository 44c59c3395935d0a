"""The input-convex Lipschitz cell of this library: convex in the start and all inputs jointly, its gain bounded.

Free signs on what comes from start and inputs, nonnegative weights between hidden units and to the outputs, a convex
nondecreasing activation, and an affine map from the start and the inputs so far to every output. The horizon is
unrolled from the start; predicted states are never fed back, which would destroy convexity.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.models.cell import Cell, numbers, steps
from lipctrl.models.graph import Affine, Graph

Smooth = Literal["softplus", "relu"]
SHARPNESS = 10.0  # beta of softplus(beta z) / beta, in scaled units
CONTRACTION = 0.95  # row sums of recurrent weights: states forget the same share over any horizon


def _positive(raw: Tensor) -> Tensor:
    return functional.softplus(raw)


def _raw_of(value: float) -> float:
    """What softplus turns into a value."""
    return float(np.log(np.expm1(value)))


class Iclrnn(Cell):
    """The input-convex Lipschitz cell of this library."""

    convex = True
    causal: Tensor

    def __init__(self, n: int, m: int, width: int, horizon: int, activation: Smooth = "softplus") -> None:
        super().__init__(n, m, width, horizon)
        self.activation = activation

        def weight(rows: int, columns: int, scale: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) * scale)

        k, mean = n + m, _raw_of(1.0 / width)
        self.first = weight(width, k, 1 / np.sqrt(k))
        self.second = weight(width, k, 1 / np.sqrt(k))
        self.recurrent1, self.recurrent2 = weight(width, width, 1.0), weight(width, width, 1.0)
        self.between = nn.Parameter(mean + 0.5 * torch.randn(width, width))
        self.out = nn.Parameter(_raw_of(0.002) + 0.5 * torch.randn(n, width))
        self.bias1 = nn.Parameter(torch.rand(width) - 1)
        self.bias2 = nn.Parameter(torch.rand(width) - 1)
        self.from_start = nn.Parameter(torch.zeros(horizon, n, n))
        self.from_inputs = nn.Parameter(torch.zeros(horizon, horizon, n, m))
        self.offset = nn.Parameter(torch.zeros(horizon, n))
        self.register_buffer("causal", torch.ones(horizon, horizon).tril()[:, :, None, None])

    def hidden(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Nonnegative weights: recurrent of both layers, between them, to the outputs."""
        r1, r2 = (CONTRACTION * torch.softmax(r, dim=-1) for r in (self.recurrent1, self.recurrent2))
        return r1, r2, _positive(self.between), _positive(self.out)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The affine map to the outputs: from p (T, n, n), from inputs (T, T, n, m), causal."""
        return self.from_start, self.from_inputs * self.causal

    def phi(self, z: Tensor) -> Tensor:
        """The activation, convex and nondecreasing."""
        return functional.relu(z) if self.activation == "relu" else functional.softplus(SHARPNESS * z) / SHARPNESS

    def forward(self, p: Tensor, u: Tensor) -> Tensor:
        """Scaled states (batch, T, n)."""
        r1, r2, between, out = self.hidden()
        from_start, from_inputs = self.affine()
        x = steps(p, u)
        # what comes from the inputs, for all steps in one product
        z1, z2 = x @ self.first.T + self.bias1, x @ self.second.T + self.bias2
        h1 = h2 = z1.new_zeros(len(p), self.width)
        found = []
        for k in range(u.shape[1]):
            h1 = self.phi(z1[:, k] + h1 @ r1.T)
            h2 = self.phi(z2[:, k] + h1 @ between.T + h2 @ r2.T)
            found.append(h2)
        direct = torch.einsum("tij,bj->bti", from_start, p) + torch.einsum("tsij,bsj->bti", from_inputs, u)
        return torch.stack(found, dim=1) @ out.T + direct + self.offset

    @staticmethod
    @torch.no_grad()
    def limit_gain_(weights: Mapping[str, Tensor], lipschitz: float) -> None:
        """Project onto gains of at most `lipschitz` over the whole horizon, l2, scaled; smaller ones stay as they are.

        The bound of `certify.all_active` is linear in the weights to the outputs and the affine map together, so that
        one factor on both is enough.

        Args:
            weights: by name, with a leading axis of runs.
        """
        excess = (Iclrnn.gain(weights) / lipschitz).clamp(min=1)
        for name in ("from_start", "from_inputs"):
            weights[name].div_(excess.reshape(-1, *(1,) * (weights[name].ndim - 1)))
        out = _positive(weights["out"]) / excess[:, None, None]
        weights["out"].copy_(out + torch.log(-torch.expm1(-out)))  # softplus turns it into `out`

    @staticmethod
    def gain(weights: Mapping[str, Tensor]) -> Tensor:
        """The bound of each run (runs,), in the precision of the weights, not enclosed: see `certify.all_active`."""
        start, inputs = weights["from_start"], weights["from_inputs"]
        runs, T, n, m = len(start), start.shape[1], start.shape[2], inputs.shape[-1]
        r1, r2 = (CONTRACTION * torch.softmax(weights[name], dim=-1) for name in ("recurrent1", "recurrent2"))
        between, out = _positive(weights["between"]), _positive(weights["out"])
        # entrywise bounds of the hidden layers' Jacobians, from the positive and from the negative input weights
        reached: list[list[Tensor]] = []
        for sign in (1, -1):
            w1, w2 = ((sign * weights[name]).clamp(min=0) for name in ("first", "second"))
            h1 = h2 = start.new_zeros(runs, w1.shape[1], n + T * m)
            rows = []
            for k in range(T):
                here = slice(n + k * m, n + (k + 1) * m)
                h1, h2_last = r1 @ h1, r2 @ h2
                h1[..., :n] += w1[..., :n]
                h1[..., here] += w1[..., n:]
                h2 = h2_last + between @ h1
                h2[..., :n] += w2[..., :n]
                h2[..., here] += w2[..., n:]
                rows.append(out @ h2)
            reached.append(rows)
        causal = torch.ones(T, T, device=start.device).tril()[:, :, None, None] * inputs
        direct = torch.cat([start, causal.permute(0, 1, 3, 2, 4).reshape(runs, T, n, T * m)], dim=-1)
        up, down = (torch.stack(rows, dim=1) for rows in reached)
        largest = torch.maximum((direct + up).abs(), (direct - down).abs()).reshape(runs, T * n, -1)
        norm: Tensor = torch.linalg.matrix_norm(largest, 2)
        return norm

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        causal = self.from_inputs[: (self.horizon + 1) // 2].flatten(1)  # on average half of the inputs
        return [self.first, self.second, *self.hidden(), self.from_start[0], causal[0]]

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine]:
        """The outputs of all steps in a network under construction."""
        r1, r2, between, out = (numbers(w) for w in self.hidden())
        from_start, from_inputs = (numbers(w) for w in self.affine())
        beta = 1.0 if self.activation == "relu" else SHARPNESS
        first, second = numbers(self.first), numbers(self.second)
        h1: Affine | None = None
        h2: Affine | None = None
        found = []
        for k, now in enumerate(u):
            z1 = first[:, : self.n] @ p + first[:, self.n :] @ now + numbers(self.bias1)
            z1 = z1 if h1 is None else z1 + r1 @ h1
            h1 = np.eye(self.width) / beta @ graph.activate(np.eye(self.width) * beta @ z1, self.activation)
            z2 = second[:, : self.n] @ p + second[:, self.n :] @ now + between @ h1 + numbers(self.bias2)
            z2 = z2 if h2 is None else z2 + r2 @ h2
            h2 = np.eye(self.width) / beta @ graph.activate(np.eye(self.width) * beta @ z2, self.activation)
            y = out @ h2 + from_start[k] @ p + numbers(self.offset)[k]
            for j in range(k + 1):
                y = y + from_inputs[k, j] @ u[j]
            found.append(y)
        return found
