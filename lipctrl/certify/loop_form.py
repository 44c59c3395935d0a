"""A network as a linear map in feedback with scalar increments of slope [-1, 1] or norm-preserving groups (numpy).

For an increment dx of the input, collect v = (dx, w). The increments that enter the nonlinearities are t = T v, those
of the output are Y v, and the nonlinearities give sum_{i in group} weight_i w_i^2 <= sum_{i in group} weight_i t_i^2.

* A scalar activation of slope [alpha, beta] is c z + r psi(z) with c, r the middle and half width of the interval and
  psi of slope [-1, 1] (loop transformation; Fazlyab et al. 2019, arXiv 1906.04893). With r = 0 it is linear and its w
  disappears: on a region where most neurons are stable, the form is small.
* MaxMin(z1, z2) = ((z1+z2) +- |z1-z2|) / 2 and Householder(z) = z - v v'z + v |v'z| are linear maps plus absolute
  values; GroupSort keeps the sum of a group and does not enlarge the rest (Pauli et al. 2024, arXiv 2401.14033, with
  the equalities eliminated).
* Skips are nothing special: every z is a linear function of v.

All entries are enclosures, so that what is proved of the form holds for the stored network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.enclosure import Enclosure, quotient
from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
Slopes = Sequence[tuple[Array, Array]]  # per hidden layer: alpha and beta of each nonlinearity


@dataclass(frozen=True)
class LoopForm:
    """v = (dx, w); t = T v; output increment Y v; one multiplier per group of nonlinearities.

    Attributes:
        inputs: n_0, the length of dx.
        T: shape (N, n_0 + N). Y: shape (m, n_0 + N).
        group: multiplier of each of the N nonlinearities, shape (N,), values 0..G-1.
        weight: weight of each nonlinearity in its group, shape (N,).
        layer: hidden layer (1-based) of each nonlinearity; neuron: its position among that layer's nonlinearities.
    """

    inputs: int
    T: Enclosure
    Y: Enclosure
    group: NDArray[np.int64]
    weight: Enclosure
    layer: NDArray[np.int64]
    neuron: NDArray[np.int64]

    @property
    def multipliers(self) -> int:
        """Number of multipliers G."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    def matrix(self, multipliers: Array) -> Enclosure:
        """sum_i mu_i weight_i (e_i e_i' - T_i' T_i) - Y' Y: the certificate's matrix without its norm terms.

        Rows of T reach only the columns before their own layer, so that products are formed layer by layer.
        """
        scale = Enclosure.exact(multipliers[self.group]) * self.weight
        result = -(self.Y.T @ self.Y)
        for k in np.unique(self.layer):
            rows = np.flatnonzero(self.layer == k)
            reach, own = self.inputs + rows[0], slice(int(rows[0]), int(rows[-1]) + 1)
            t = self.T[own, :reach]
            result = result.plus_at(0, -(t.T @ (scale[own, None] * t)))
        return result.plus_at(self.inputs, scale)


@dataclass(frozen=True)
class _Split:
    """a = L z + R q(t), t = C z with q scalar of slope [alpha, beta], or a norm-preserving group."""

    L: Enclosure
    C: Enclosure
    R: Enclosure
    group: NDArray[np.int64]
    weight: Enclosure


def _split(activation: Activation, width: int) -> _Split:
    """A group activation as a linear map plus absolute values or norm-preserving groups."""
    g = activation.group_size
    groups = width // g
    if activation.vectors is not None:
        if len(activation.vectors) != groups:
            raise UserError(f"householder has {len(activation.vectors)} vectors for {groups} groups")
        rows = Enclosure.exact(_block_diagonal(activation.vectors[:, None, :]))
        left = Enclosure.exact(np.eye(width)) - rows.T @ rows
        return _Split(left, rows, rows.T, np.arange(groups), Enclosure.exact(np.ones(groups)))
    # Rows (1, .., 1, -j, 0, ..) for j = 1..g-1: an orthogonal basis of the differences, squared lengths j (j+1).
    basis = np.array([[1.0] * j + [-float(j)] + [0.0] * (g - 1 - j) for j in range(1, g)])
    lengths = np.array([j * (j + 1.0) for j in range(1, g)])
    mean = quotient(_block_diagonal(np.ones((groups, g, g))), np.full((width, width), float(g)))
    back = quotient(_block_diagonal(np.tile(basis.T, (groups, 1, 1))), np.tile(lengths, groups)[None, :])
    return _Split(
        mean,
        Enclosure.exact(_block_diagonal(np.tile(basis, (groups, 1, 1)))),
        back,
        np.repeat(np.arange(groups), g - 1),
        quotient(np.ones(groups * (g - 1)), np.tile(lengths, groups)),
    )


def _block_diagonal(blocks: Array) -> Array:
    """Block diagonal matrix of blocks (count, rows, columns)."""
    count, rows, columns = blocks.shape
    full = np.zeros((count * rows, count * columns))
    for k in range(count):
        full[k * rows : (k + 1) * rows, k * columns : (k + 1) * columns] = blocks[k]
    return full


def nonlinearities(net: PlainNet, layer: int) -> int:
    """Number of scalar nonlinearities of a hidden layer (1-based) in the loop form, before any becomes linear."""
    activation, width = net.activations[layer - 1], net.widths[layer - 1]
    if activation.is_scalar:
        return width
    per_group = 1 if activation.vectors is not None else activation.group_size - 1
    return width // activation.group_size * per_group


def global_slopes(net: PlainNet) -> list[tuple[Array, Array]]:
    """The slope intervals that hold everywhere: the activation's own, or [-1, 1] for group activations."""
    result = []
    for k, activation in enumerate(net.activations, start=1):
        low, high = activation.slopes if activation.is_scalar else (-1.0, 1.0)
        n = nonlinearities(net, k)
        result.append((np.full(n, low), np.full(n, high)))
    return result


def _middle_and_half(alpha: Array, beta: Array) -> tuple[Array, Array]:
    """Stored numbers (c, r) with [c - r, c + r] containing [alpha, beta]; r = 0 only where alpha = beta."""
    c = (alpha + beta) / 2
    c = np.where(alpha == beta, alpha, c)
    r = np.nextafter(np.maximum(beta - c, c - alpha), np.inf)
    return c, np.where(alpha == beta, 0.0, r)


def loop_form(net: PlainNet, norm: NormPair, slopes: Slopes | None = None) -> LoopForm:
    """The loop form of a network, with the scales of a norm pair folded in.

    Args:
        net: any PlainNet; limits at its end are ignored (clipping never enlarges differences).
        norm: only its scales matter here.
        slopes: slope intervals valid where the form is to hold (per hidden layer alpha and beta of each nonlinearity,
            see `nonlinearities`); those of the activations by default. GroupSort of more than two ignores them.
    """
    slopes = global_slopes(net) if slopes is None else slopes
    shared = [not a.is_scalar and a.vectors is None and a.group_size > 2 for a in net.activations]
    parts = [
        _middle_and_half(*(own if whole else given))
        for own, given, whole in zip(global_slopes(net), slopes, shared, strict=True)
    ]
    kept = [np.flatnonzero(r > 0) for _, r in parts]
    n0, size = net.input_size, net.input_size + sum(map(len, kept))
    start = np.diag(norm.input_scale if norm.input_scale is not None else np.ones(n0))
    values, rows, offset = [Enclosure.exact(start)], list[Enclosure](), n0  # increments, up to the columns they reach
    group: list[NDArray[np.int64]] = []
    layer: list[NDArray[np.int64]] = []
    neuron: list[NDArray[np.int64]] = []
    weight: list[Enclosure] = []
    for k, activation in enumerate(net.activations):
        z = _combine(net, k, values)
        (c, r), keep = parts[k], kept[k]
        split = None if activation.is_scalar else _split(activation, z.shape[0])
        t = z if split is None else split.C @ z
        offset += len(keep)
        inner = _widened(Enclosure.exact(c[:, None]) * t, offset)
        columns = np.arange(offset - len(keep), offset)
        inner.mid[keep, columns] += r[keep]  # psi's columns are zero in t: the sum is exact
        values.append(inner if split is None else _widened(split.L @ z, offset) + split.R @ inner)
        rows.append(_widened(t[keep], size))
        base = 1 + max((int(x[-1]) for x in group if len(x)), default=-1)
        members = np.arange(len(keep)) if split is None else np.unique(split.group[keep], return_inverse=True)[1]
        group.append(base + members)
        weight.append(Enclosure.exact(np.ones(len(keep))) if split is None else split.weight[keep])
        layer.append(np.full(len(keep), k + 1))
        neuron.append(keep)
    output = _widened(_combine(net, len(net.activations), values), size)
    if norm.output_scale is not None:
        inverse = quotient(np.ones(len(norm.output_scale)), np.array(norm.output_scale))
        output = inverse[:, None] * output
    return LoopForm(n0, _stack(rows, size), output, _join(group), _flat(weight), _join(layer), _join(neuron))


def _combine(net: PlainNet, k: int, values: Sequence[Enclosure]) -> Enclosure:
    """sum_j W[k][j] (increment of a_j)."""
    terms = [Enclosure.exact(block) @ values[j] for j, block in net.blocks[k].items()]
    widest = max(term.shape[1] for term in terms)
    total = _widened(terms[0], widest)
    for term in terms[1:]:
        total = total + _widened(term, widest)
    return total


def _widened(a: Enclosure, columns: int) -> Enclosure:
    """Zero columns appended."""
    more = ((0, 0), (0, columns - a.shape[1]))
    return a if a.shape[1] == columns else Enclosure(np.pad(a.mid, more), np.pad(a.rad, more))


def _stack(parts: Sequence[Enclosure], columns: int) -> Enclosure:
    if not parts:
        return Enclosure.zeros(0, columns)
    return Enclosure(np.vstack([p.mid for p in parts]), np.vstack([p.rad for p in parts]))


def _flat(parts: Sequence[Enclosure]) -> Enclosure:
    if not parts:
        return Enclosure.zeros(0)
    return Enclosure(np.concatenate([p.mid for p in parts]), np.concatenate([p.rad for p in parts]))


def _join(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)
