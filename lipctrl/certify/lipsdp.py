"""LipSDP: the multipliers that give the smallest l2 bound (Fazlyab et al. 2019, arXiv 1906.04893).

The program is solved by the barrier method of `barrier` for any slope intervals, activations on groups and skips, and
what it returns is proved by `lmi`. Modes: "neuron" has one multiplier per nonlinearity (or group), "layer" one per
layer. The variant of the paper that couples neurons is unsound (a ReLU network that breaks it is in the tests) and is
not offered.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.barrier import Groups, solve
from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.lmi import certify_with, slopes_on
from lipctrl.certify.loop_form import LoopForm, loop_form
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
Mode = Literal["neuron", "layer"]
TOLERANCE = 1e-7  # relative gap in bound^2


def grouping(form: LoopForm, mode: Mode) -> Groups:
    """Multiplier of each nonlinearity, shape (N,)."""
    if mode not in get_args(Mode):
        raise UserError(f"unknown LipSDP mode {mode!r}; known: {', '.join(get_args(Mode))}")
    if mode == "neuron" or not len(form.layer):
        return form.group
    return np.asarray(np.unique(form.layer, return_inverse=True)[1], dtype=np.int64)


def best_multipliers(
    form: LoopForm, norm: NormPair, *, mode: Mode = "neuron", tolerance: float = TOLERANCE
) -> tuple[Array, Array]:
    """Solve the program of LipSDP on a loop form.

    Args:
        form: the loop form of a network.
        norm: decides between one p (inputs in l2) and one per input (l_inf).
        tolerance: relative gap in sum(p) = bound^2.

    Returns:
        (p, mu): p has shape (1,) for l2 and (n_0,) for l_inf inputs; mu is in the scale of the form.
    """
    return solve(form, grouping(form, mode), norm.input, tolerance=tolerance)


def method_name(mode: Mode, region: Box | None) -> str:
    """Name of the method in certificates: "lipsdp-neuron", "lipsdp-neuron-local" and so on."""
    return f"lipsdp-{mode}" + ("" if region is None else "-local")


def lipsdp(
    net: PlainNet,
    norm: NormPair,
    region: Box | None = None,
    *,
    mode: Mode = "neuron",
    tolerance: float = TOLERANCE,
) -> Certificate | None:
    """The LipSDP certificate (l2 -> l2), everywhere or with the slopes that hold on a region.

    Returns:
        The certificate, or None for other norms and where rounding lets no proof through.
    """
    if (norm.input, norm.output) != ("l2", "l2"):
        return None
    form = loop_form(net, norm, slopes_on(net, region))
    mu = best_multipliers(form, norm, mode=mode, tolerance=tolerance)[1]
    return certify_with(net, form, mu, method=method_name(mode, region), norm=norm, region=region)
