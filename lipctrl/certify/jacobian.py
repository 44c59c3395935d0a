"""Bounds of the Jacobian on a box: gains du_i/dx_j, and the Lipschitz bounds that follow (numpy, no solver).

With the derivatives d_k of the activations in the intervals that forward bounds give, the gradient of one output is
propagated backwards, g_j = b_j + sum_k A[k][j]' (d_k g_k), and each product d g is kept between the chords of
max(a g, b g) and min(a g, b g) (Shi et al. 2022, arXiv 2210.07394). That is a graph of nodes between lines, as in
forward bounds, and the same code bounds it (see `crown`). The closed intervals of derivatives cover Clarke's
generalised Jacobian at kinks, whose norm bounds the Lipschitz constant on a convex region.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.crown import Crown
from lipctrl.certify.enclosure import FLOOR, UNIT, Enclosure, norm_bound, quotient
from lipctrl.certify.forward import Signs, relaxed, step_slopes
from lipctrl.certify.relaxation import activation_lines, product_lines
from lipctrl.certify.scalar_form import ABS, Affine, ScalarForm, scalar_form
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
MARGIN = 1 + 1e-12  # so that a check on another machine, whose sums round differently, comes to the same result


class Gradients:
    """Bounds of the gradient of every output over a box.

    Args:
        form: the network. region: the box.
        signs: signs that some arguments of its steps are known to have (see `branch`).

    Attributes:
        low, high: bounds of the Jacobian, shape (m, n_0).
        steps: per step, the largest magnitude of the outputs' derivatives by that step's value.
        slopes: per step, an interval of its derivative.
        forward: the steps over the box.

    Raises:
        Infeasible: the signs contradict the bounds.
    """

    def __init__(self, form: ScalarForm, region: Box, signs: Signs | None = None) -> None:
        self.forward = relaxed(form, region, signs)
        self.slopes = step_slopes(form, self.forward, signs)
        self._rows = [self._backward(form, i) for i in range(len(form.preactivations[-1].bias.mid))]
        bounds = [crown.bounds(gradient) for crown, gradient in self._rows]
        self.low = np.array([low for low, _ in bounds])
        self.high = np.array([high for _, high in bounds])
        reversed_steps = [
            np.max([np.max(np.abs(crown.ranges[k]), axis=0) for crown, _ in self._rows], axis=0)
            for k in range(len(form.steps))
        ]
        self.steps = reversed_steps[::-1]

    def _backward(self, form: ScalarForm, output: int) -> tuple[Crown, Affine]:
        """The gradients of one output by v_l, .., v_1 as nodes, and that by the input as a function of them."""
        crown, count = Crown(np.zeros(0), np.zeros(0)), len(form.steps)
        for j in range(count, 0, -1):
            gradient = _gradient(form, output, j, len(self.slopes[j - 1][0]))
            crown.append(gradient, *crown.bounds(gradient), partial(product_lines, *self.slopes[j - 1]))
        return crown, _gradient(form, output, 0, len(self.forward.values[0][0]))

    def row_sums(self, weights: Array) -> Array:
        """Upper bounds of sum_j weights_j |J_ij|, shape (m,): |J| is kept below its chord and substituted backwards."""
        sums = []
        for (crown, gradient), low, high in zip(self._rows, self.low, self.high, strict=True):
            crown.append(gradient, low, high, partial(activation_lines, ABS))
            total = Affine({len(crown.lines): Enclosure.exact(weights[None, :])}, Enclosure.zeros(1, 1))
            sums.append(crown.bounds(total)[1][0])
        return np.array(sums)


def _gradient(form: ScalarForm, output: int, j: int, width: int) -> Affine:
    """Gradient of an output by v_j in terms of the nodes (step k is node number `steps` - k + 1)."""
    count, last = len(form.steps), form.preactivations[-1].blocks
    bias = last[j][output : output + 1].T if j in last else Enclosure.zeros(width, 1)
    later = ((k, form.steps[k - 1].argument.blocks) for k in range(j + 1, count + 1))
    return Affine({count - k + 1: blocks[j].T for k, blocks in later if j in blocks}, bias)


@np.errstate(over="ignore", invalid="ignore")
def gradient_norm(gradients: Gradients, norm: NormPair) -> float:
    """Upper bound of the norm of every Jacobian within the bounds, rounded up."""
    inputs, outputs = gradients.low.shape[1], gradients.low.shape[0]
    scale_in = np.ones(inputs) if norm.input_scale is None else np.array(norm.input_scale)
    scale_out = np.ones(outputs) if norm.output_scale is None else np.array(norm.output_scale)
    if len(scale_in) != inputs or len(scale_out) != outputs:
        raise UserError(f"norm scales need lengths {inputs} and {outputs}; found {len(scale_in)} and {len(scale_out)}")
    inverse = quotient(np.ones(outputs), scale_out)
    if norm.input == "linf":
        rows = (Enclosure.exact(gradients.row_sums(scale_in)) * inverse).magnitude
    else:
        mid = gradients.low + (gradients.high - gradients.low) / 2
        rad = np.nextafter(np.maximum(gradients.high - mid, mid - gradients.low), np.inf)
        matrix = inverse[:, None] * Enclosure(mid, rad) * Enclosure.exact(scale_in[None, :])
        if norm.output == "l2":
            by_magnitude = norm_bound(Enclosure.exact(matrix.magnitude))
            by_middle = norm_bound(Enclosure.exact(matrix.mid)) + norm_bound(Enclosure.exact(matrix.rad))
            return float(min(by_magnitude, by_middle * (1 + 8 * UNIT)))
        rows = np.linalg.norm(matrix.magnitude, axis=1)
    largest = np.max(rows) if norm.output == "linf" else np.linalg.norm(rows)
    bound = float(largest * (1 + (outputs + inputs + 8) * 8 * UNIT))
    return max(FLOOR, bound) if np.isfinite(bound) else float("inf")


def gains(net: PlainNet, region: Box) -> tuple[Array, Array]:
    """Bounds of every gain du_i/dx_j on a box of operating conditions, in raw units of output i per unit of input j.

    For all x in the region, low[i, j] <= du_i/dx_j(x) <= high[i, j]. A positive `low` proves that output i rises
    whenever input j alone rises, a negative `high` that it falls: read the table like a gain matrix with tolerances.
    max(|low|, |high|) is the most by which unit error of sensor j can move actuator i. Limits of the network's output
    count: where an output may saturate its gains may be 0, and where it always does they are 0.

    Returns:
        (low, high), each of shape (m, n).

    Raises:
        UserError: the box has another dimension than the input.
    """
    form = scalar_form(net)
    gradients = Gradients(form, region)
    low, high = gradients.low, gradients.high
    smallest, largest = gradients.forward.bounds(form.preactivations[-1])
    may_saturate, must = np.zeros(len(low), dtype=np.bool_), np.zeros(len(low), dtype=np.bool_)
    if net.low is not None:
        may_saturate, must = may_saturate | (smallest <= net.low), must | (largest < net.low)
    if net.high is not None:
        may_saturate, must = may_saturate | (largest >= net.high), must | (smallest > net.high)
    low = np.where(may_saturate[:, None], np.minimum(low, 0.0), low)
    high = np.where(may_saturate[:, None], np.maximum(high, 0.0), high)
    return np.where(must[:, None], 0.0, low), np.where(must[:, None], 0.0, high)


@np.errstate(all="ignore")
def attained_gain(net: PlainNet, norm: NormPair, x: Array, d: Array) -> float:
    """A proved lower bound of |J d| / |d| for every generalised Jacobian J at x, hence of the Lipschitz constant.

    The Jacobian is bounded on the box that is the one point x, for the network in exact arithmetic: where an argument
    may be at a kink, or an output at its limit, every slope counts, and the bound falls by as much as they differ.

    Args:
        x: input (n,). d: direction (n,).

    Raises:
        UserError: x has another dimension than the input, or is not finite.
    """
    point = tuple(x.tolist())
    low, high = gains(net, Box(point, point))
    mid = low + (high - low) / 2
    rad = np.nextafter(np.maximum(high - mid, mid - low), np.inf)
    moved = (Enclosure(mid, rad) @ Enclosure.exact(d[:, None]))[:, 0]
    least = np.maximum(np.nextafter(np.abs(moved.mid) - moved.rad, -np.inf), 0.0)
    size = float(norm.of_input(d))
    if not FLOOR < size < np.inf:
        return 0.0
    gain = float(norm.of_output(least)) / size * (1 - (len(d) + len(least) + 16) * 8 * UNIT)
    return gain if np.isfinite(gain) else 0.0


def jacobian_certificate(net: PlainNet, norm: NormPair, region: Box) -> Certificate | None:
    """The bound of the Jacobian's norm on a box, for any pair of norms; None only if the weights overflow.

    For l_inf inputs it is the method of choice on small boxes; for l2 local LipSDP is usually much smaller.

    Raises:
        UserError: the box has another dimension than the input.
    """
    bound = gradient_norm(Gradients(scalar_form(net), region), norm) * MARGIN
    if not np.isfinite(bound):
        return None
    return Certificate(
        bound=bound,
        method="jacobian",
        norm=norm,
        region=region,
        weights_sha256=net.sha256(),
        proof={"kind": "jacobian"},
        input_names=net.input_names,
        output_names=net.output_names,
    )


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "jacobian": the bounds are computed again."""
    if certificate.region is None:
        return False
    return gradient_norm(Gradients(scalar_form(net), certificate.region), certificate.norm) <= certificate.bound
