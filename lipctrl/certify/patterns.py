"""Activation patterns of piecewise-linear networks: climbing to large constants, and the exact one by enumeration.

Neurons with two linear pieces that meet at 0 (relu, leaky_relu, abs) split the input space into regions, one per
pattern of signs, on which the network is affine. A linear programme decides whether a region has an interior and
returns a point well inside, which is the witness. The Lipschitz constant is the largest operator norm over the
patterns with an interior.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from lipctrl.certify.certificate import Box, Witness
from lipctrl.certify.lower import LARGEST_VERTICES, best_direction, is_two_piece, witness
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
Signs = tuple[int, ...]
LARGEST_CLIMB = 100  # neurons up to which the climb runs
LARGEST_PAIRS = 40  # neurons up to which pairs are flipped
LARGEST_EXACT = 24  # neurons up to which patterns are enumerated
PROGRAMMES = 60  # linear programmes per climb
FAR = 1e5  # box in which the witness of an unbounded region is sought
INSIDE = 1e-9  # least margin, in units of the rows, of a point that counts as interior


def _slopes(net: PlainNet, layer: int) -> tuple[float, float]:
    """Slope of a layer's activation below and above 0."""
    a = net.activations[layer]
    low, high = a.derivative(np.array([-1.0, 1.0]))
    return float(low), float(high)


@dataclass(frozen=True)
class Affine:
    """The network on one pattern: rows (N, n) and offsets (N,) of all arguments, and the Jacobian (m, n)."""

    rows: Array
    offsets: Array
    jacobian: Array


def affine(net: PlainNet, signs: Sequence[int]) -> Affine:
    """The affine maps of a pattern; `signs` may cover the first layers only, the Jacobian is then of no use."""
    n = net.input_size
    values, start = [(np.eye(n), np.zeros(n))], 0
    rows, offsets = list[Array](), list[Array]()
    for k, row in enumerate(net.blocks):
        a = sum((w @ values[j][0] for j, w in row.items()), np.zeros((1, n)))
        c = sum((w @ values[j][1] for j, w in row.items()), np.zeros(1)) + net.biases[k]
        if k == len(net.activations):
            return Affine(np.vstack([*rows, np.zeros((0, n))]), np.concatenate([*offsets, np.zeros(0)]), a)
        low, high = _slopes(net, k)
        own = np.array(signs[start : start + len(c)])
        start += len(c)
        rows.append(a)
        offsets.append(c)
        if len(own) < len(c):
            return Affine(np.vstack(rows), np.concatenate(offsets), np.zeros((net.output_size, n)))
        slope = np.where(own > 0, high, low)
        values.append((slope[:, None] * a, slope * c))
    raise AssertionError("a network has an output layer")


def interior_point(rows: Array, offsets: Array, signs: Sequence[int], region: Box | None) -> Array | None:
    """A point that satisfies sign_i (row_i x + offset_i) > 0 with the largest margin, or None if there is none."""
    n, length = rows.shape[1], np.linalg.norm(rows, axis=1)
    s = np.array(signs, dtype=np.float64)
    fixed = length <= 1e-300
    if (s[fixed] * offsets[fixed] <= 0).any():
        return None
    s, rows, offsets, length = s[~fixed], rows[~fixed], offsets[~fixed], length[~fixed]
    box = [(-FAR, FAR)] * n if region is None else list(zip(region.low, region.high, strict=True))
    result = linprog(
        np.append(np.zeros(n), -1.0),
        A_ub=np.hstack([-s[:, None] * rows / length[:, None], np.ones((len(s), 1))]),
        b_ub=s * offsets / length,
        bounds=[*box, (None, 1.0)],
    )
    if result.status != 0 or result.x[-1] <= INSIDE:
        return None
    x = np.asarray(result.x[:-1], dtype=np.float64)
    return x if (s * (rows @ x + offsets) > 0).all() else None


def climb(net: PlainNet, norm: NormPair, start: Array, region: Box | None = None) -> Witness:
    """From the pattern at `start`, flip one or two neurons as long as a region with a larger constant has an interior.

    Args:
        net: piecewise linear, see `is_two_piece`. norm, region: as in `bracket.certify`. start: input (n,).
    """
    signs = tuple(np.where(np.concatenate(net.preactivations(start)[:-1]) > 0, 1, -1).tolist())
    point, value, budget = start, _gain(affine(net, signs).jacobian, norm), PROGRAMMES
    while budget > 0:
        better = []
        for flipped in _neighbours(signs):
            gain = _gain(affine(net, flipped).jacobian, norm)
            if gain > value * (1 + 1e-9):
                better.append((gain, flipped))
        for gain, flipped in sorted(better, reverse=True)[:budget]:
            budget -= 1
            maps = affine(net, flipped)
            inside = interior_point(maps.rows, maps.offsets, flipped, region)
            if inside is not None:
                signs, point, value = flipped, inside, gain
                break
        else:
            break
    d = best_direction(net.jacobian(point)[None], norm)[0]
    return witness(net, norm, point, d, "pattern climb")


def _neighbours(signs: Signs) -> Iterator[Signs]:
    count = len(signs)
    groups = [(i,) for i in range(count)] + (list(combinations(range(count), 2)) if count <= LARGEST_PAIRS else [])
    for group in groups:
        yield tuple(-s if i in group else s for i, s in enumerate(signs))


def _gain(jacobian: Array, norm: NormPair) -> float:
    d = best_direction(jacobian[None], norm)[0]
    return float(norm.of_output(jacobian @ d) / norm.of_input(d))


def regions(net: PlainNet, region: Box | None = None) -> Iterator[tuple[Signs, Array]]:
    """Every pattern with an interior, with a point inside."""

    def extend(signs: Signs) -> Iterator[tuple[Signs, Array]]:
        maps = affine(net, signs)
        known = len(signs)
        point = interior_point(maps.rows[:known], maps.offsets[:known], signs, region)
        if point is None:
            return
        if known == sum(net.widths):
            yield signs, point
            return
        for sign in (-1, 1):
            yield from extend((*signs, sign))

    yield from extend(())


def exact_constant(net: PlainNet, norm: NormPair | None = None, *, region: Box | None = None) -> Witness:
    """The Lipschitz constant of a small piecewise-linear network, by enumerating its regions, with its witness.

    Raises:
        UserError: another activation, more than 24 neurons, output limits, or l_inf -> l2 with many inputs.
    """
    norm = norm or NormPair()
    if net.low is not None or net.high is not None:
        raise UserError("enumeration does not know output limits; pass net.without_limits()")
    if not is_two_piece(net) or sum(net.widths) > LARGEST_EXACT:
        raise UserError(f"enumeration needs relu, leaky_relu or abs and at most {LARGEST_EXACT} neurons")
    if (norm.input, norm.output) == ("linf", "l2") and net.input_size > LARGEST_VERTICES:
        raise UserError(f"the exact l_inf -> l2 norm needs at most {LARGEST_VERTICES} inputs")
    best: tuple[float, Array] | None = None
    for _, point in regions(net, region):
        gain = _gain(net.jacobian(point), norm)
        if best is None or gain > best[0]:
            best = (gain, point)
    if best is None:
        raise UserError("the region has no interior")
    d = best_direction(net.jacobian(best[1])[None], norm)[0]
    return witness(net, norm, best[1], d, "enumeration")
