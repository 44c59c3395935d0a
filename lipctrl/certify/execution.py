"""What floating-point execution adds to a Lipschitz bound: |fl f(x) - fl f(y)| <= bound |x - y| + 2 delta (numpy).

A network that is executed in floating point is a step function and has no Lipschitz constant at all (Murray 2026,
arXiv 2603.13334). What holds instead has the term 2 delta, with delta >= |fl f(x) - f(x)| for every x of a box, from a
running error analysis: a sum of k products in any order, with or without fused multiply-add, is off by at most
gamma_k times the sum of their absolute values (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); values
of library functions are taken to be accurate to 16 units (numpy states 4 ulp); inherited errors pass through slopes.
"""

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box
from lipctrl.certify.crown import GROWN
from lipctrl.certify.enclosure import Enclosure, quotient
from lipctrl.certify.forward import preactivation_bounds
from lipctrl.certify.relaxation import slope_interval, value_error, value_interval
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
Precision = type[np.float32] | type[np.float64]


class _Arithmetic:
    """Floating-point numbers of one type: their roundoff, their smallest number and what storing in them loses."""

    def __init__(self, dtype: Precision) -> None:
        info = np.finfo(dtype)
        self.dtype, self.unit = dtype, float(info.eps) / 2
        self.tiny, self.largest = float(info.tiny), float(info.max)

    def gamma(self, terms: int) -> float:
        return terms * self.unit / (1 - terms * self.unit)

    def lost(self, a: Array) -> Array:
        """|a - stored a|."""
        with np.errstate(over="ignore"):
            return np.abs(a - a.astype(self.dtype).astype(np.float64))


def execution_error(
    net: PlainNet, region: Box, *, norm: NormPair | None = None, dtype: Precision = np.float64
) -> float:
    """The term 2 delta of a network that is executed in `dtype`, with any order of summation.

    Args:
        net: the network; where its weights are not numbers of `dtype`, their rounding is part of the error.
        region: inputs, which are numbers of `dtype`.
        norm: the norm and scale of the outputs in which 2 delta is measured; plain l2 by default.
        dtype: float64 or float32.

    Returns:
        2 delta, rounded up; infinity if the execution may overflow.

    Raises:
        UserError: the box has another dimension than the input.
    """
    arithmetic, limits = _Arithmetic(dtype), preactivation_bounds(net, region)
    ends = np.abs(np.array([region.low, region.high]))
    sizes, errors = [ends.max(0)], [np.zeros(ends.shape[1])]  # of a_j: largest |a_j|, error of its execution
    with np.errstate(all="ignore"):
        for k, (low, high) in enumerate(limits):
            size = np.maximum(np.abs(low), np.abs(high))
            error = _affine_error(net, k, sizes, errors, arithmetic)
            if not ((size + error) < arithmetic.largest / 4).all():
                return float("inf")
            if k < len(net.activations):
                size, error = _activated(net.activations[k], low, high, error, arithmetic)
                sizes.append(size)
                errors.append(error)
    for limit in (net.low, net.high):
        error = error if limit is None else np.maximum(error, arithmetic.lost(limit))
    scale = None if norm is None else norm.output_scale
    if scale is not None:
        error = (Enclosure.exact(error) * quotient(np.ones(len(scale)), np.array(scale))).magnitude
    total = np.linalg.norm(error, ord=2 if norm is None or norm.output == "l2" else np.inf)
    return float(2 * total * GROWN)


def _affine_error(net: PlainNet, k: int, sizes: list[Array], errors: list[Array], arithmetic: _Arithmetic) -> Array:
    """Error of z = sum_j W[k][j] a_j + b when it is executed on a_j that are off by `errors`."""
    row, bias = net.blocks[k], net.biases[k]
    terms = sum(block.shape[1] + 1 for block in row.values()) + 1
    lost = arithmetic.lost(bias)
    total, inherited = np.abs(bias) + lost, lost.copy()
    for j, block in row.items():
        lost = arithmetic.lost(block)
        inherited += np.abs(block) @ errors[j] + lost @ (sizes[j] + errors[j])
        total += (np.abs(block) + lost) @ (sizes[j] + errors[j])
    error = (inherited + arithmetic.gamma(terms) * total + terms * arithmetic.tiny) * GROWN
    return np.where(total < arithmetic.largest / 4, error, np.inf)  # partial sums may overflow


def _activated(
    activation: Activation, low: Array, high: Array, error: Array, arithmetic: _Arithmetic
) -> tuple[Array, Array]:
    """Largest |phi(z)| and the error of its execution, for z in [low, high] executed with an error."""
    g, unit = activation.group_size, arithmetic.unit
    size = np.maximum(np.abs(low), np.abs(high))
    if activation.is_scalar:
        low, high = np.nextafter(low - error, -np.inf), np.nextafter(high + error, np.inf)
        steep = np.max(np.abs(slope_interval(activation, low, high)), axis=0)
        values = np.max(np.abs(value_interval(activation, low, high)), axis=0)
        parameter = float(arithmetic.lost(np.array(activation.parameter)))
        own = value_error(activation, size + error, values, unit)
        own = own + parameter * (size + error) + arithmetic.tiny
        return values, np.asarray((steep * error + own) * GROWN)
    worst = np.repeat(error.reshape(-1, g).max(1), g)
    if activation.vectors is None:  # comparisons are exact and sorting does not enlarge the largest error
        return np.repeat(size.reshape(-1, g).max(1), g), worst
    v = np.abs(activation.vectors)
    lost = arithmetic.lost(activation.vectors)
    z, e = size.reshape(-1, g), error.reshape(-1, g)
    inner = (v * z).sum(1, keepdims=True)
    inner_error = (v * e + (lost + arithmetic.gamma(g + 2) * (v + lost)) * (z + e)).sum(1, keepdims=True)
    inner_error = inner_error + g * arithmetic.tiny
    largest = z + 2 * inner * v
    own = e + 2 * v * inner_error + 2 * lost * (inner + inner_error)
    own = own + arithmetic.gamma(4) * (z + e + 2 * (v + lost) * (inner + inner_error)) + 4 * arithmetic.tiny
    return np.asarray(largest.ravel() * GROWN), np.asarray(own.ravel() * GROWN)
