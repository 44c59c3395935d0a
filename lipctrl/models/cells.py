"""The families of process models as torch modules: from a scaled start state and inputs to scaled states.

Every cell maps p (batch, n) and u (batch, T, m) to the states after each of T steps (batch, T, n), with everything
scaled to [0, 1] by the training data. All but the LSTM unroll into a PlainNet, which is what is certified and exported.

iclrnn            ours: convex in (p, u_0..u_k) jointly for every step k. Free signs on what comes from p and u,
                  nonnegative weights between hidden units and to the outputs, convex nondecreasing activation, and an
                  affine map from p and u_0..u_k to every output. The horizon is unrolled from p; predicted states are
                  never fed back, which would destroy convexity.
iclrnn-published  Wang and Wu, "Input Convex Lipschitz RNN" (arXiv 2401.07494), as the authors' code has it: nonnegative
                  weights on [x; 1-x], each divided by its largest singular value after every step.
icrnn             Chen, Shi and Zhang, "Optimal Control Via Neural Networks" (arXiv 1805.11835).
lrnn              Erichson et al., "Lipschitz Recurrent Neural Networks" (arXiv 2006.12070), Euler-discretised.
rnn, lstm         two tanh layers, linear output.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.models.graph import Affine, Graph

Array = NDArray[np.float64]
Family = Literal["iclrnn", "iclrnn-published", "icrnn", "lrnn", "rnn", "lstm"]
Smooth = Literal["softplus", "relu"]
SHARPNESS = 10.0  # beta of softplus(beta z) / beta, in scaled units
CONTRACTION = 0.95  # row sums of recurrent weights: states forget the same share over any horizon


def steps(p: Tensor, u: Tensor) -> Tensor:
    """[p, u_k] for every step, (batch, T, n+m)."""
    return torch.cat([p[:, None].expand(-1, u.shape[1], -1), u], dim=-1)


def numbers(tensor: Tensor) -> Array:
    """A weight in float64."""
    return np.asarray(tensor.detach().double().cpu().numpy())


class Cell(nn.Module):
    """What all families share.

    Attributes:
        n, m, width, horizon: states, inputs, hidden units per layer, T.
        convex: the family claims that every output is convex in (p, u).
    """

    convex = False

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__()
        self.n, self.m, self.width, self.horizon = n, m, width, horizon

    @staticmethod
    def project_(weights: Mapping[str, Tensor]) -> None:
        """Restore what the family promises of its weights (by name, any leading axes), after an optimiser's step."""

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        raise NotImplementedError

    def flops(self) -> int:
        """Multiplications and additions of one window: 2 per weight and step, without activations."""
        return 2 * self.horizon * sum(w.numel() for w in self.matrices())

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine] | None:
        """The outputs of all steps in a network under construction; None if the family is not one."""
        raise NotImplementedError


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


CELLS: dict[Family, type[Cell]] = {
    "iclrnn": Iclrnn,
    "iclrnn-published": Published,
    "icrnn": Icrnn,
    "lrnn": Lrnn,
    "rnn": Rnn,
    "lstm": Lstm,
}
