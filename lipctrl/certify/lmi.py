"""The matrix inequality behind every l2 certificate, and the check of a proof: one Cholesky factorisation (numpy).

With the loop form (v, T, Y) of a network (see `loop_form`), multipliers mu >= 0 and rho = bound^2,

    rho diag(I, 0) + sum_i mu_i (e_i e_i' - T_i' T_i) - Y'Y >= 0

proves |Y v|^2 <= rho |dx|^2, since each multiplier's term is nonpositive on the increments of the network. For slopes
in [0, 1] this is the LMI of LipSDP-Neuron (Fazlyab et al. 2019, arXiv 1906.04893, with one multiplier per neuron; the
version with coupled neurons of that paper is unsound) in other coordinates; mu = Lambda / 2 in terms of theirs.
"""

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.enclosure import Enclosure, is_positive_definite
from lipctrl.certify.loop_form import LoopForm, Slopes, loop_form
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
SLACKS = (0.0, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


def smallest_rho(form: LoopForm, multipliers: Array) -> float:
    """The smallest rho for given multipliers, in floating point: largest eigenvalue of a Schur complement.

    Returns:
        rho, or infinity if the multipliers are infeasible for every rho.
    """
    k, n = form.matrix(multipliers).mid, form.inputs
    corner = -k[:n, :n]
    if len(k) > n:
        try:
            factor = np.linalg.cholesky(k[n:, n:])
        except np.linalg.LinAlgError:
            return float("inf")
        half = np.linalg.solve(factor, k[n:, :n])
        corner = corner + half.T @ half
    return float(max(np.linalg.eigvalsh((corner + corner.T) / 2)[-1], 0.0))


def proves(form: LoopForm, multipliers: Array, bound: float) -> bool:
    """Prove in exact arithmetic that these multipliers certify `bound`."""
    if not np.isfinite(multipliers).all() or (multipliers < 0).any() or len(multipliers) != form.multipliers:
        return False
    matrix = form.matrix(multipliers)
    corner = np.zeros(matrix.shape)
    corner[np.arange(form.inputs), np.arange(form.inputs)] = np.nextafter(bound * bound, 0.0)
    return is_positive_definite(matrix + Enclosure.exact(corner)) is not None


def certify_with(
    net: PlainNet,
    form: LoopForm,
    multipliers: Array,
    *,
    method: str,
    norm: NormPair,
    region: Box | None = None,
) -> Certificate | None:
    """The smallest certificate that these multipliers give: their best rho, enlarged until the proof goes through.

    Returns:
        The certificate, or None if no rho within 1e-3 of the best passes.
    """
    rho = smallest_rho(form, multipliers)
    for slack in SLACKS:
        bound = float(np.nextafter(np.sqrt(rho) * (1 + slack) + 1e-150, np.inf))
        if np.isfinite(bound) and proves(form, multipliers, bound):
            return Certificate(
                bound=bound,
                method=method,
                norm=norm,
                region=region,
                weights_sha256=net.sha256(),
                proof={"kind": "lmi", "multipliers": [float(m) for m in multipliers]},
                input_names=net.input_names,
                output_names=net.output_names,
            )
    return None


def own_multipliers(net: PlainNet, form: LoopForm) -> Array | None:
    """The multipliers that the parametrisation exported with the weights, in the scale of the loop form."""
    if net.multipliers is None:
        return None
    lengths = [len(m) for m in net.multipliers]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return np.asarray(np.concatenate(net.multipliers)[starts[form.layer - 1] + form.neuron] / 2)


def slopes_on(net: PlainNet, region: Box | None) -> Slopes | None:
    """Slope intervals that are proved on the region; None (the activations' own) if there is no region."""
    if region is None:
        return None
    from lipctrl.certify.forward import local_slopes

    return local_slopes(net, region)


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "lmi" (l2 -> l2)."""
    if (certificate.norm.input, certificate.norm.output) != ("l2", "l2"):
        return False
    form = loop_form(net, certificate.norm, slopes_on(net, certificate.region))
    return proves(form, np.array(certificate.proof["multipliers"], dtype=np.float64), certificate.bound)
