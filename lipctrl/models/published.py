"""Published input-convex recurrent cells, as references to compare with."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.models.cell import Array, Cell, numbers, steps
from lipctrl.models.graph import Affine, Graph


class Published(Cell):
    """The published input-convex Lipschitz cell; a reference, weak as it is."""

    convex = True

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__(n, m, width, horizon)
        k = 2 * (n + m)
        self.w1, self.w2 = (nn.Parameter(0.01 * torch.randn(width, size).abs()) for size in (k, width))
        self.u1, self.u2 = (nn.Parameter(0.1 * torch.linalg.qr(torch.randn(width, width))[0]) for _ in range(2))
        self.out = nn.Parameter((torch.rand(n, width) * 2 - 1) * np.sqrt(6 / (n + width)))
        self.b1, self.b2 = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.bo = nn.Parameter(torch.zeros(n))

    @staticmethod
    @torch.no_grad()
    def project_(weights: Mapping[str, Tensor]) -> None:
        """Clip at zero, then divide by the largest singular value plus 1e-3, as published (not a projection)."""
        for name in ("w1", "u1", "w2", "u2", "out"):
            weights[name].clamp_(min=0)
            weights[name].div_(torch.linalg.matrix_norm(weights[name], 2, keepdim=True) + 1e-3)

    def forward(self, p: Tensor, u: Tensor) -> Tensor:
        """Scaled states (batch, T, n)."""
        x = steps(p, u)
        z1 = torch.cat([x, 1 - x], dim=-1) @ self.w1.T + self.b1
        h1 = h2 = z1.new_zeros(len(p), self.width)
        found = []
        for k in range(u.shape[1]):
            h1 = functional.relu(z1[:, k] + h1 @ self.u1.T)
            h2 = functional.relu(h1 @ self.w2.T + h2 @ self.u2.T + self.b2)
            found.append(functional.relu(h2 @ self.out.T + self.bo))
        return torch.stack(found, dim=1)

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        return [self.w1, self.u1, self.w2, self.u2, self.out]

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine]:
        """The outputs of all steps in a network under construction."""
        w1, u1, w2, u2, out = (numbers(w) for w in self.matrices())
        k, n = self.n + self.m, self.n
        signed, constant = w1[:, :k] - w1[:, k:], w1[:, k:].sum(1)
        h1: Affine | None = None
        h2: Affine | None = None
        found = []
        for now in u:
            z1 = signed[:, :n] @ p + signed[:, n:] @ now + (constant + numbers(self.b1))
            h1 = graph.activate(z1 if h1 is None else z1 + u1 @ h1, "relu")
            z2 = w2 @ h1 + numbers(self.b2)
            h2 = graph.activate(z2 if h2 is None else z2 + u2 @ h2, "relu")
            found.append(graph.activate(out @ h2 + numbers(self.bo), "relu"))
        return found


class Icrnn(Cell):
    """The input-convex recurrent network of Chen, Shi and Zhang: two layers, then a nonnegative output."""

    convex = True

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__(n, m, width, horizon)
        k = 2 * (n + m)

        def positive(rows: int, columns: int) -> nn.Parameter:
            # half of them zero, and small: a mean above zero grows over the horizon
            return nn.Parameter((0.2 / np.sqrt(columns) * torch.randn(rows, columns)).clamp(min=0))

        self.w1, self.u1, self.w2, self.u2 = positive(width, k), *(positive(width, width) for _ in range(3))
        self.d1, self.d2 = positive(width, k), positive(width, width)
        self.v1, self.s1, self.t1 = positive(width, width), positive(width, width), positive(width, k)
        self.out = positive(n, width)
        self.b1, self.b2, self.b3 = (nn.Parameter(torch.zeros(width)) for _ in range(3))
        self.bo = nn.Parameter(torch.zeros(n))

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        return [self.w1, self.u1, self.d1, self.v1, self.s1, self.t1, self.w2, self.u2, self.d2, self.out]

    @staticmethod
    @torch.no_grad()
    def project_(weights: Mapping[str, Tensor]) -> None:
        """Clip at zero."""
        for name in ("w1", "u1", "d1", "v1", "s1", "t1", "w2", "u2", "d2", "out"):
            weights[name].clamp_(min=0)

    def forward(self, p: Tensor, u: Tensor) -> Tensor:
        """Scaled states (batch, T, n)."""
        w1, u1, d1, v1, s1, t1, w2, u2, d2, out = self.matrices()
        x = steps(p, u)
        x = torch.cat([x, 1 - x], dim=-1)
        z = z2 = x.new_zeros(len(p), self.width)
        before, y_before = torch.zeros_like(x[:, 0]), x.new_zeros(len(p), self.width)
        found = []
        for k in range(u.shape[1]):
            now, last = x[:, k], z
            z = functional.relu(now @ w1.T + z @ u1.T + before @ d1.T + self.b1)
            y = functional.relu(z @ v1.T + last @ s1.T + now @ t1.T + self.b2)
            z2 = functional.relu(y @ w2.T + z2 @ u2.T + y_before @ d2.T + self.b3)
            before, y_before = now, y
            found.append(z2 @ out.T + self.bo)
        return torch.stack(found, dim=1)

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine]:
        """The outputs of all steps in a network under construction."""
        w1, u1, d1, v1, s1, t1, w2, u2, d2, out = (numbers(w) for w in self.matrices())
        k, n = self.n + self.m, self.n

        def both(w: Array, now: Affine) -> Affine:
            signed = w[:, :k] - w[:, k:]
            total: Affine = signed[:, :n] @ p + signed[:, n:] @ now + w[:, k:].sum(1)
            return total

        z: Affine | None = None
        z2: Affine | None = None
        y_before: Affine | None = None
        found = []
        for j, now in enumerate(u):
            a = both(w1, now) + numbers(self.b1)
            b = both(t1, now) + numbers(self.b2)
            if z is not None:
                a, b = a + u1 @ z + both(d1, u[j - 1]), b + s1 @ z
            z = graph.activate(a, "relu")
            y = graph.activate(b + v1 @ z, "relu")
            c = w2 @ y + numbers(self.b3)
            if z2 is not None and y_before is not None:
                c = c + u2 @ z2 + d2 @ y_before
            z2, y_before = graph.activate(c, "relu"), y
            found.append(out @ z2 + numbers(self.bo))
        return found
