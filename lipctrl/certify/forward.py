"""Proved bounds of every pre-activation of a network on a box, and the slopes that its activations have there (numpy).

Interval arithmetic intersected with CROWN (see `crown`), on the network in scalar steps (see `scalar_form`). All
bounds hold for the network that the stored weights define in exact arithmetic.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box
from lipctrl.certify.crown import Crown
from lipctrl.certify.loop_form import Slopes, global_slopes
from lipctrl.certify.relaxation import activation_lines, slope_interval
from lipctrl.certify.scalar_form import ScalarForm, scalar_form
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
Signs = Mapping[tuple[int, int], int]  # (step, neuron), both from 0 -> +1 or -1: the sign of the argument


class Infeasible(Exception):
    """No input of the box has the signs that were asked for: proved by bounds that exclude each other."""


def relaxed(form: ScalarForm, region: Box, signs: Signs | None = None) -> Crown:
    """The steps of a network on a box as nodes between lines.

    Args:
        form: the network. region: the box.
        signs: signs that some arguments are known to have.

    Raises:
        Infeasible: the signs contradict the bounds.
        UserError: the box has another dimension than the input.
    """
    low, high = np.array(region.low, dtype=np.float64), np.array(region.high, dtype=np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError("a region for local bounds needs finite limits")
    size = next((block.shape[1] for p in form.preactivations for j, block in p.blocks.items() if j == 0), len(low))
    if len(low) != size:
        raise UserError(f"the region has {len(low)} dimensions; the network has {size} inputs")
    crown = Crown(low, high)
    for k, step in enumerate(form.steps):
        low, high = crown.bounds(step.argument)
        for (where, neuron), sign in (signs or {}).items():
            if where == k and sign > 0:
                low[neuron] = max(low[neuron], 0.0)
            elif where == k:
                high[neuron] = min(high[neuron], 0.0)
        if (low > high).any():
            raise Infeasible
        crown.append(step.argument, low, high, partial(activation_lines, step.activation))
    return crown


def preactivation_bounds(net: PlainNet, region: Box) -> list[tuple[Array, Array]]:
    """Bounds of z_1..z_l and of the output before clipping over a box, each (low, high) of shape (n_k,).

    Raises:
        UserError: the box has another dimension than the input.
    """
    form = scalar_form(net)
    crown = relaxed(form, region)
    return [crown.bounds(z) for z in form.preactivations]


def step_slopes(form: ScalarForm, crown: Crown, signs: Signs | None = None) -> Sequence[tuple[Array, Array]]:
    """Per step, an interval of the activation's derivative on its range.

    With signs given, the derivative is the one on that side of the kink: it differs from the other only where the
    argument is 0, that is, for almost no input or where the argument is constant.
    """
    slopes = [slope_interval(s.activation, *range_) for s, range_ in zip(form.steps, crown.ranges, strict=True)]
    for (k, neuron), sign in (signs or {}).items():
        side = np.array([float(sign)])
        slopes[k][0][neuron] = slopes[k][1][neuron] = form.steps[k].activation.derivative(side)[0]
    return slopes


def local_slopes(net: PlainNet, region: Box) -> Slopes:
    """Slope intervals of every nonlinearity of the loop form on a box, per hidden layer (alpha, beta).

    For scalar activations the derivative's interval; for MaxMin and Householder that of the absolute value they hold
    ([1, 1] or [-1, -1] if the order, or the side, is known). GroupSort of more than two keeps [-1, 1].

    Raises:
        UserError: the box has another dimension than the input.
    """
    form = scalar_form(net)
    local = step_slopes(form, relaxed(form, region))
    result = global_slopes(net)
    for k, activation in enumerate(net.activations, start=1):
        own = [s for s, step in zip(local, form.steps, strict=True) if step.layer == k]
        if len(own) == 1 and (activation.is_scalar or activation.vectors is not None or activation.group_size == 2):
            result[k - 1] = own[0]
    return result
