"""Recurrent cells that are not convex: the Lipschitz recurrent unit, two tanh layers, two LSTM layers."""

import numpy as np
import torch
from torch import Tensor, nn

from lipctrl.models.cell import Cell, numbers, steps
from lipctrl.models.graph import Affine, Graph


class Lrnn(Cell):
    """The Lipschitz recurrent unit, two layers: h+ = h + eps A h + eps tanh(W h + U x + b), A and W nearly skew.

    Hidden states are of the size of eps; what reads them divides by it, which only changes the scale of its weights.
    """

    EPSILON, GAMMA, BETA = 0.01, 0.01, 0.8

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__(n, m, width, horizon)

        def weight(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) / np.sqrt(columns))

        self.b1, self.c1, self.b2, self.c2 = (weight(width, width) for _ in range(4))
        self.u1, self.u2 = weight(width, n + m), weight(width, width)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.out, self.bo = weight(n, width), nn.Parameter(torch.zeros(n))

    def _skewed(self, b: Tensor) -> Tensor:
        identity = torch.eye(self.width, dtype=b.dtype, device=b.device)
        return self.BETA * (b - b.T) + (1 - self.BETA) * (b + b.T) - self.GAMMA * identity

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        skewed = [self._skewed(w) for w in (self.b1, self.c1, self.b2, self.c2)]
        return [*skewed, self.u1, self.u2, self.out]

    def forward(self, p: Tensor, u: Tensor) -> Tensor:
        """Scaled states (batch, T, n)."""
        a1, w1, a2, w2, u1, u2, out = self.matrices()
        z1, eps = steps(p, u) @ u1.T + self.bias1, self.EPSILON
        h1 = h2 = z1.new_zeros(len(p), self.width)
        found = []
        for k in range(u.shape[1]):
            h1 = h1 + eps * h1 @ a1.T + eps * torch.tanh(h1 @ w1.T + z1[:, k])
            h2 = h2 + eps * h2 @ a2.T + eps * torch.tanh(h2 @ w2.T + h1 @ u2.T / eps + self.bias2)
            found.append(h2)
        return torch.stack(found, dim=1) @ out.T / eps + self.bo

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine]:
        """The outputs of all steps in a network under construction."""
        a1, w1, a2, w2, u1, u2, out = (numbers(w) for w in self.matrices())
        eps, keep = self.EPSILON, np.eye(self.width)
        h1: Affine | None = None
        h2: Affine | None = None
        found = []
        for now in u:
            z1 = u1[:, : self.n] @ p + u1[:, self.n :] @ now + numbers(self.bias1)
            new = eps * keep @ graph.activate(z1 if h1 is None else z1 + w1 @ h1, "tanh")
            h1 = new if h1 is None else new + (keep + eps * a1) @ h1
            z2 = u2 / eps @ h1 + numbers(self.bias2)
            new = eps * keep @ graph.activate(z2 if h2 is None else z2 + w2 @ h2, "tanh")
            h2 = new if h2 is None else new + (keep + eps * a2) @ h2
            found.append(out / eps @ h2 + numbers(self.bo))
        return found


class Rnn(Cell):
    """Two tanh layers and a linear output."""

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__(n, m, width, horizon)
        sizes = [(width, n + m), (width, width), (width, width), (width, width), (n, width)]
        self.weights = nn.ParameterList([(torch.rand(*s) * 2 - 1) / np.sqrt(width) for s in sizes])
        self.b1, self.b2, self.bo = (nn.Parameter(torch.zeros(s)) for s in (width, width, n))

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step: in and recurrent of both layers, out."""
        return list(self.weights)

    def forward(self, p: Tensor, u: Tensor) -> Tensor:
        """Scaled states (batch, T, n)."""
        w1, u1, w2, u2, out = self.matrices()
        z1 = steps(p, u) @ w1.T + self.b1
        h1 = h2 = z1.new_zeros(len(p), self.width)
        found = []
        for k in range(u.shape[1]):
            h1 = torch.tanh(z1[:, k] + h1 @ u1.T)
            h2 = torch.tanh(h1 @ w2.T + h2 @ u2.T + self.b2)
            found.append(h2)
        return torch.stack(found, dim=1) @ out.T + self.bo

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine]:
        """The outputs of all steps in a network under construction."""
        w1, u1, w2, u2, out = (numbers(w) for w in self.matrices())
        h1: Affine | None = None
        h2: Affine | None = None
        found = []
        for now in u:
            z1 = w1[:, : self.n] @ p + w1[:, self.n :] @ now + numbers(self.b1)
            h1 = graph.activate(z1 if h1 is None else z1 + u1 @ h1, "tanh")
            z2 = w2 @ h1 + numbers(self.b2)
            h2 = graph.activate(z2 if h2 is None else z2 + u2 @ h2, "tanh")
            found.append(out @ h2 + numbers(self.bo))
        return found


class Lstm(Cell):
    """Two LSTM layers and a linear output. Its gates multiply, so that it is no PlainNet and nothing is proved."""

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__(n, m, width, horizon)
        sizes = [(4 * width, n + m), (4 * width, width), (4 * width, width), (4 * width, width), (n, width)]
        self.weights = nn.ParameterList([(torch.rand(*s) * 2 - 1) / np.sqrt(width) for s in sizes])
        self.b1, self.b2, self.bo = (nn.Parameter(torch.zeros(s)) for s in (4 * width, 4 * width, n))

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        return list(self.weights)

    @staticmethod
    def _step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    def forward(self, p: Tensor, u: Tensor) -> Tensor:
        """Scaled states (batch, T, n)."""
        w1, u1, w2, u2, out = self.matrices()
        z1 = steps(p, u) @ w1.T + self.b1
        h1 = h2 = c1 = c2 = z1.new_zeros(len(p), self.width)
        found = []
        for k in range(u.shape[1]):
            h1, c1 = self._step(z1[:, k] + h1 @ u1.T, c1)
            h2, c2 = self._step(h1 @ w2.T + h2 @ u2.T + self.b2, c2)
            found.append(h2)
        return torch.stack(found, dim=1) @ out.T + self.bo

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> None:
        """None: gates multiply."""
        return None
