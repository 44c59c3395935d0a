"""Bounds with l_inf on one or both sides: LipSDP with a weight per input and a program per output (numpy).

With weights p >= 0 of the inputs in place of rho I, the matrix inequality of `certify.lmi` proves

    |Y v|^2 <= sum_j p_j dx_j^2 <= sum(p) |dx|_inf^2,

and an l_inf output is the largest of its rows, each with multipliers of its own. For one row this is the inequality
with a corner, [2 rho - sum(p), -Y; -Y', diag(p, 0) + sum_i mu_i (..)] >= 0 (Fazlyab et al. 2019 for l2; Wang et al.,
ICLR 2022, for l_inf), without loss: by its Schur complement with respect to K = diag(p, 0) + sum_i mu_i (..) it reads
2 rho >= sum(p) + Y K^-1 Y', and over the scalings s (p, mu) the right side is least at 2 sqrt(sum(p) Y K^-1 Y'), where
Y K^-1 Y' <= 1 means K >= Y'Y. So the smaller matrix, without the corner, gives the same bound.
"""

from dataclasses import replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.lipsdp import TOLERANCE, Mode, best_multipliers, method_name
from lipctrl.certify.lmi import proves, slopes_on, smallest_proved
from lipctrl.certify.loop_form import LoopForm, loop_form
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]


def _parts(form: LoopForm, norm: NormPair) -> list[LoopForm]:
    """What is bounded separately: every output row for l_inf outputs, all rows together for l2."""
    if norm.output == "l2":
        return [form]
    return [replace(form, Y=form.Y[i : i + 1]) for i in range(form.Y.shape[0])]


def linf_certificate(
    net: PlainNet,
    norm: NormPair,
    region: Box | None = None,
    *,
    mode: Mode = "neuron",
    tolerance: float = TOLERANCE,
) -> Certificate | None:
    """The LipSDP certificate for a pair of norms with l_inf on at least one side.

    Args:
        net, norm, region: what is certified, and where.
        mode, tolerance: as in `lipsdp`.

    Returns:
        The certificate, or None for l2 -> l2 and where rounding lets no proof through.
    """
    if (norm.input, norm.output) == ("l2", "l2"):
        return None
    form = loop_form(net, norm, slopes_on(net, region))
    bounds, parts = list[float](), list[dict[str, list[float]]]()
    for part in _parts(form, norm):
        p, mu = best_multipliers(part, norm, mode=mode, tolerance=tolerance)
        weights = None if norm.input == "l2" else p / p.sum() * (1 - 1e-14)
        bound = smallest_proved(part, mu, weights)
        if bound is None:
            return None
        bounds.append(bound)
        parts.append({"multipliers": mu.tolist()} | ({} if weights is None else {"weights": weights.tolist()}))
    return Certificate(
        bound=max(bounds),
        method=method_name(mode, region),
        norm=norm,
        region=region,
        weights_sha256=net.sha256(),
        proof={"kind": "lmi-linf", "parts": parts},
        input_names=net.input_names,
        output_names=net.output_names,
    )


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "lmi-linf": one matrix inequality for each part."""
    norm = certificate.norm
    forms = _parts(loop_form(net, norm, slopes_on(net, certificate.region)), norm)
    stored = certificate.proof["parts"]
    if len(stored) != len(forms) or (norm.input, norm.output) == ("l2", "l2"):
        return False
    for form, part in zip(forms, stored, strict=True):
        weights = None
        if norm.input == "linf":
            weights = np.array(part["weights"], dtype=np.float64)
            if not np.isfinite(weights).all() or sum(map(Fraction, weights.tolist())) > 1:
                return False
        if not proves(form, np.array(part["multipliers"], dtype=np.float64), certificate.bound, weights):
            return False
    return True
