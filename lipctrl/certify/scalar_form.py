"""A network as affine maps and scalar activations alone, with every rounding error of the rewriting enclosed (numpy).

MaxMin and GroupSort are sorting networks of pairs, and a sorted pair is (z1 + z2) / 2 +- |z1 - z2| / 2; Householder is
z - v v'z + v |v'z|. So every activation on groups is a linear map plus absolute values, and whatever is proved of
networks with scalar activations (forward bounds, Jacobian bounds) holds for all of them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.enclosure import Enclosure
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
ABS = Activation("abs")


@dataclass(frozen=True)
class Affine:
    """sum_j blocks[j] v_j + bias, as a function of the values v_0 = x, v_1, v_2, ...

    Attributes:
        blocks: source j -> matrix of shape (rows, len(v_j)). bias: a column, shape (rows, 1).
    """

    blocks: Mapping[int, Enclosure]
    bias: Enclosure

    def __add__(self, other: "Affine") -> "Affine":
        blocks = dict(self.blocks)
        for j, block in other.blocks.items():
            blocks[j] = blocks[j] + block if j in blocks else block
        return Affine(blocks, self.bias + other.bias)

    def mapped(self, matrix: Enclosure) -> "Affine":
        """matrix @ self."""
        return Affine({j: matrix @ block for j, block in self.blocks.items()}, matrix @ self.bias)

    @staticmethod
    def of(matrix: Enclosure, value: "Affine | int") -> "Affine":
        """matrix @ value, where a number stands for the value of that index."""
        if isinstance(value, Affine):
            return value.mapped(matrix)
        return Affine({value: matrix}, Enclosure.zeros(matrix.shape[0], 1))


@dataclass(frozen=True)
class Step:
    """v_j = activation(argument), entrywise; `layer` is the hidden layer (1-based) that it belongs to."""

    argument: Affine
    activation: Activation
    layer: int


@dataclass(frozen=True)
class ScalarForm:
    """A network in scalar steps.

    Attributes:
        steps: of the values v_1, v_2, ...; v_0 is the input.
        preactivations: z_1..z_l of the network and its output before clipping.
    """

    steps: tuple[Step, ...]
    preactivations: tuple[Affine, ...]


def scalar_form(net: PlainNet) -> ScalarForm:
    """Rewrite a network; its limits are not part of the form."""
    values: list[Affine | int] = [0]
    steps, preactivations = list[Step](), list[Affine]()
    for k, row in enumerate(net.blocks):
        z = Affine({}, Enclosure.exact(net.biases[k][:, None]))
        for j, block in row.items():
            z = z + Affine.of(Enclosure.exact(block), values[j])
        preactivations.append(z)
        if k < len(net.activations):
            values.append(_activated(net.activations[k], z, steps, layer=k + 1))
    return ScalarForm(tuple(steps), tuple(preactivations))


def _activated(activation: Activation, z: Affine, steps: list[Step], *, layer: int) -> Affine | int:
    """phi(z), in terms of the steps that it appends."""
    if activation.name == "identity":
        return z
    if activation.is_scalar:
        steps.append(Step(z, activation, layer))
        return len(steps)
    for keep, pick, back in _stages(activation, z.bias.shape[0]):
        steps.append(Step(z.mapped(pick), ABS, layer))
        z = z.mapped(keep) + Affine.of(back, len(steps))
    return z


def _stages(activation: Activation, width: int) -> Iterator[tuple[Enclosure, Enclosure, Enclosure]]:
    """Matrices (L, C, R) of stages z -> L z + R |C z|."""
    g = activation.group_size
    if activation.vectors is not None:
        rows = np.zeros((width // g, width))
        for k, v in enumerate(activation.vectors):
            rows[k, k * g : (k + 1) * g] = v
        reflect = Enclosure.exact(rows)
        yield Enclosure.exact(np.eye(width)) - reflect.T @ reflect, reflect, reflect.T
        return
    for stage in range(g):  # odd-even transposition sort, larger first
        first = np.array([k + i for k in range(0, width, g) for i in range(stage % 2, g - 1, 2)], dtype=np.int64)
        if len(first):
            pairs = np.arange(len(first))
            keep, pick, back = np.eye(width), np.zeros((len(first), width)), np.zeros((width, len(first)))
            keep[first, first] = keep[first + 1, first + 1] = 0.5
            keep[first, first + 1] = keep[first + 1, first] = 0.5
            pick[pairs, first], pick[pairs, first + 1] = 1.0, -1.0
            back[first, pairs], back[first + 1, pairs] = 0.5, -0.5
            yield Enclosure.exact(keep), Enclosure.exact(pick), Enclosure.exact(back)
