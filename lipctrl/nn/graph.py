"""What every Lipschitz family shares: free parameters -> the blocks of a plain network, for training and for export.

A family is one function, `weights`: from its free parameters to the maps W[k][j], the biases and the multipliers of a
loop-free network (see `nn.plain`). `forward` runs that network in torch, `to_plain` evaluates the same function in
float64 and stores it. So what is trained is what is certified. In evaluation without gradients the maps are kept.
Parameters may have leading axes, those of several networks, which the inputs then have, too.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.files import UserError
from lipctrl.nn.activations import GROUP, SCALAR, Activation
from lipctrl.nn.plain import PlainNet

FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda z, _: z,
    "relu": lambda z, _: functional.relu(z),
    "tanh": lambda z, _: torch.tanh(z),
    "hardtanh": lambda z, _: functional.hardtanh(z),
    "softplus": lambda z, _: functional.softplus(z, threshold=50.0),
    "softsign": lambda z, _: functional.softsign(z),
    "elu": lambda z, a: functional.elu(z, a),
    "leaky_relu": lambda z, a: functional.leaky_relu(z, a),
    "sigmoid": lambda z, _: torch.sigmoid(z),
    "abs": lambda z, _: z.abs(),
    "silu": lambda z, _: functional.silu(z),
    "gelu": lambda z, _: functional.gelu(z),
    "mish": lambda z, _: functional.mish(z),
    "hardswish": lambda z, _: functional.hardswish(z),
}


@dataclass(frozen=True)
class Weights:
    """All that a loop-free network computes with.

    Attributes:
        blocks: of each layer, its map from the input (0) or from a hidden layer (1, 2, ...), each (..., out, in).
        biases: (..., out) each. reflections: of householder, one per hidden layer, each (..., groups, size).
        multipliers: prove the bound, in the scale of the master LMI, or None.
    """

    blocks: Sequence[dict[int, Tensor]]
    biases: Sequence[Tensor]
    multipliers: Sequence[Tensor] | None = None
    reflections: Sequence[Tensor] = ()

    def tensors(self) -> list[Tensor]:
        """All but the multipliers."""
        return [*(block for row in self.blocks for block in row.values()), *self.biases, *self.reflections]

    def copy(self) -> "Weights":
        """All but the multipliers in memory of their own."""
        blocks = [{j: block.clone() for j, block in row.items()} for row in self.blocks]
        biases, reflections = ([part.clone() for part in parts] for parts in (self.biases, self.reflections))
        return Weights(blocks, biases, reflections=reflections)


class GraphNet(nn.Module, ABC):
    """Base of all families.

    Args:
        sizes: (n, hidden widths..., m).
        lip: end-to-end l2 bound.
        activation: of every hidden layer, checked by `accepts`.
        learnable_lip: train the bound through its logarithm.
        generator: of the initial weights.

    Raises:
        UserError: sizes or a bound that are not positive and finite, or an activation that the family's proof does
            not cover.
    """

    proof = ""  # what the family proves, for messages and lists

    def __init__(
        self, sizes: Sequence[int], lip: float, *, activation: str, learnable_lip: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        if not (math.isfinite(lip) and lip > 0):
            raise UserError(f"lip must be a positive finite number, found {lip}")
        if len(sizes) < 2 or not all(isinstance(size, Integral) and size > 0 for size in sizes):
            raise UserError(f"sizes needs at least two positive integers (n, ..., m), found {tuple(sizes)}")
        self.sizes, self.pairs = tuple(sizes), list(zip(sizes[:-1], sizes[1:], strict=True))
        self.activation = activation_of(activation, sizes[1:-1])
        self.accepts(self.activation)
        log_lip = torch.tensor(math.log(lip), dtype=torch.float64)
        if learnable_lip:
            self.log_lip = nn.Parameter(log_lip.float())
        else:
            self.register_buffer("log_lip", log_lip)
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(m)) for m in sizes[1:]])
        self.reflections = nn.ParameterList()
        if self.activation.name == "householder":
            size = self.activation.group_size
            for width in sizes[1:-1]:
                self.reflections.append(nn.Parameter(torch.randn(width // size, size, generator=generator)))
        self._kept: tuple[list[Tensor], Weights] | None = None

    @abstractmethod
    def weights(self, dtype: torch.dtype) -> Weights:
        """The maps of the network, differentiable in the free parameters, evaluated in `dtype`."""

    def accepts(self, activation: Activation) -> None:
        """Refuse activations that are not 1-Lipschitz; families with an end-to-end proof refuse more."""
        if activation.is_scalar and max(abs(s) for s in activation.slopes) > 1:
            raise UserError(
                f"{type(self).__name__} needs a 1-Lipschitz activation; {activation.spec()} has slopes "
                f"in {activation.slopes}"
            )

    @property
    def lip(self) -> Tensor:
        """The end-to-end l2 bound, a scalar tensor."""
        return self.log_lip.exp()

    def factor(self, dtype: torch.dtype) -> Tensor:
        """The bound as a factor of matrices, (..., 1, 1)."""
        return self.log_lip.exp().to(dtype)[..., None, None]

    def _current(self, dtype: torch.dtype) -> Weights:
        """The maps; outside training they are kept until a parameter changes.

        Values are compared: torch's version counter misses writes through `.data`, which is how Stable-Baselines3
        moves its target networks.
        """
        if self.training or torch.is_grad_enabled():
            return self.weights(dtype)
        now = [*self.parameters(), *self.buffers()]
        kept = self._kept
        if kept and kept[1].biases[0].dtype == dtype and all(map(_same, now, kept[0])):
            return kept[1]
        self._kept = ([value.clone() for value in now], self.weights(dtype))
        return self._kept[1]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., m) for inputs (..., n); see `evaluate`."""
        return self.evaluate(self._current(x.dtype), x)

    def evaluate(self, maps: Weights, x: Tensor) -> Tensor:
        """Outputs of given maps, of this or of another network of the same structure.

        Args:
            maps: without leading axes, or with those of several networks, (*networks, out, in).
            x: (..., n) for one network; (*networks, batch, n), the batch needed, for several.

        Returns:
            (..., m) or (*networks, batch, m).
        """
        values = [x]
        for k, (row, bias) in enumerate(zip(maps.blocks, maps.biases, strict=True)):
            terms = [values[j] @ block.mT for j, block in row.items()]
            z = sum(terms[1:], terms[0]) + (bias if bias.dim() == 1 else bias[..., None, :])
            values.append(self._activate(z, maps, k) if k + 1 < len(maps.blocks) else z)
        return values[-1]

    def _activate(self, z: Tensor, maps: Weights, layer: int) -> Tensor:
        a = self.activation
        if a.is_scalar:
            return FUNCTIONS[a.name](z, a.parameter)
        grouped = z.reshape(*z.shape[:-1], -1, a.group_size)
        if a.name == "householder":
            v = functional.normalize(maps.reflections[layer].to(z.dtype), dim=-1).unsqueeze(-3)
            return (grouped - 2 * (grouped * v).sum(-1, keepdim=True).clamp(max=0) * v).reshape(z.shape)
        if a.group_size == 2:  # without the cost of sorting
            return torch.stack([grouped.amax(-1), grouped.amin(-1)], -1).reshape(z.shape)
        return grouped.sort(dim=-1, descending=True).values.reshape(z.shape)

    @torch.no_grad()
    def to_plain(self) -> PlainNet:
        """The network with the parametrisation evaluated in float64, and its multipliers."""
        maps = self.weights(torch.float64)
        activations = [self.activation] * (len(maps.blocks) - 1)
        if self.activation.name == "householder":
            vectors = [functional.normalize(v.double(), dim=-1).cpu().numpy() for v in maps.reflections]
            activations = [Activation("householder", self.activation.parameter, v) for v in vectors]
        return PlainNet(
            tuple({j: block.cpu().numpy() for j, block in row.items()} for row in maps.blocks),
            tuple(bias.cpu().numpy() for bias in maps.biases),
            tuple(activations),
            multipliers=tuple(m.cpu().numpy() for m in maps.multipliers) if maps.multipliers else None,
        )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def activation_of(text: str, widths: Sequence[int]) -> Activation:
    """An activation by name; a householder's vectors are placeholders until export.

    Raises:
        UserError: unknown, a parameter that does not fit, or a width that does not split into its groups.
    """
    name, _, number = text.partition(":")
    try:
        size = float(number or 2)
        if name in GROUP and not (size >= 2 and size.is_integer()):
            raise ValueError("a group has at least two neurons")
        vectors = np.ones((1, int(size))) if name == "householder" else None
        activation = Activation.parse(text, vectors)
    except ValueError as error:
        raise UserError(f"activation {text!r}: {error}") from error
    for width in widths:
        if width % activation.group_size:
            raise UserError(f"{text} needs hidden widths divisible by {activation.group_size}, found {width}")
    return activation


def needs_slopes_in_unit_interval(activation: Activation, family: str) -> None:
    """Refuse activations without slopes in [0, 1].

    Raises:
        UserError: group activations, and scalar ones with slopes outside [0, 1].
    """
    if not activation.is_scalar or activation.slopes[0] < 0 or activation.slopes[1] > 1:
        usable = [name for name, a in SCALAR.items() if 0 <= a.slopes(a.default)[0] and a.slopes(a.default)[1] <= 1]
        raise UserError(
            f"{family} needs an activation with slopes in [0, 1] ({', '.join(usable)}); {activation.spec()} has others"
        )


def xavier(rows: int, columns: int, generator: torch.Generator) -> nn.Parameter:
    """A Glorot-normal matrix."""
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(rows, columns), generator=generator))
