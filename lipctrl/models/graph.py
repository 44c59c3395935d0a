"""Building a PlainNet from affine maps and activations: how a recurrent model is unrolled into one network."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """A vector sum_j blocks[j] a_j + bias of the input a_0 and of hidden layers a_1, a_2, ..."""

    blocks: dict[int, Array]
    bias: Array

    def __add__(self, other: "Affine | ArrayLike") -> "Affine":
        if not isinstance(other, Affine):
            return Affine(self.blocks, self.bias + np.asarray(other, np.float64))
        blocks = dict(self.blocks)
        for j, block in other.blocks.items():
            blocks[j] = blocks[j] + block if j in blocks else block
        return Affine(blocks, self.bias + other.bias)

    def __rmatmul__(self, matrix: Array) -> "Affine":
        return Affine({j: matrix @ block for j, block in self.blocks.items()}, matrix @ self.bias)

    def __getitem__(self, rows: slice) -> "Affine":
        return Affine({j: block[rows] for j, block in self.blocks.items()}, self.bias[rows])

    # numpy must leave `matrix @ affine` to __rmatmul__
    __array_ufunc__ = None


def stacked(parts: Sequence[Affine]) -> Affine:
    """Several vectors as one."""
    widths = {j: block.shape[1] for part in parts for j, block in part.blocks.items()}
    rows = [[part.blocks.get(j, np.zeros((len(part.bias), width))) for part in parts] for j, width in widths.items()]
    blocks = {j: np.vstack(row) for j, row in zip(widths, rows, strict=True)}
    return Affine(blocks, np.concatenate([part.bias for part in parts]))


@dataclass
class Graph:
    """A network under construction."""

    size: int
    layers: list[Affine] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)

    @property
    def input(self) -> Affine:
        """The input a_0."""
        return Affine({0: np.eye(self.size)}, np.zeros(self.size))

    def activate(self, z: Affine, activation: str) -> Affine:
        """A new hidden layer."""
        self.layers.append(z)
        self.activations.append(Activation.parse(activation))
        width = len(z.bias)
        return Affine({len(self.layers): np.eye(width)}, np.zeros(width))

    def network(self, output: Affine, *, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> PlainNet:
        """The network with this output. A layer without incoming weights gets zero weights from the input."""
        rows = [*self.layers, output]
        blocks = tuple(row.blocks or {0: np.zeros((len(row.bias), self.size))} for row in rows)
        if 0 not in blocks[0]:
            blocks = ({**blocks[0], 0: np.zeros((len(rows[0].bias), self.size))}, *blocks[1:])
        return PlainNet(
            blocks,
            tuple(row.bias for row in rows),
            tuple(self.activations),
            input_names=input_names,
            output_names=output_names,
        )
