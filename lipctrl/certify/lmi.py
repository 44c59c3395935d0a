"""The matrix inequality behind every l2 certificate, and the check of a proof: one Cholesky factorisation (numpy).

With the loop form (v, T, Y) of a network (see `loop_form`), multipliers mu >= 0 and rho = bound^2,

    rho diag(I, 0) + sum_i mu_i (e_i e_i' - T_i' T_i) - Y'Y >= 0

proves |Y v|^2 <= rho |dx|^2, since each multiplier's term is nonpositive on the increments of the network. For slopes
in [0, 1] this is the LMI of LipSDP-Neuron (Fazlyab et al. 2019, arXiv 1906.04893, with one multiplier per neuron; the
version with coupled neurons of that paper is unsound) in other coordinates; mu = Lambda / 2 in terms of theirs.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.enclosure import FLOOR, Enclosure, is_positive_definite
from lipctrl.certify.forward import local_slopes
from lipctrl.certify.loop_form import LoopForm, Slopes, global_slopes, loop_form, nonlinearities
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
SLACKS = (0.0, 1e-13, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


def smallest_rho(form: LoopForm, multipliers: Array, weights: Array | None = None) -> float:
    """The smallest rho for given multipliers, in floating point: largest eigenvalue of a Schur complement.

    Args:
        form, multipliers: of the inequality.
        weights: of the inputs, positive, shape (n_0,): rho diag(weights, 0) in place of rho diag(I, 0).

    Returns:
        rho, or infinity if the multipliers are infeasible for every rho.
    """
    if not np.isfinite(multipliers).all() or (multipliers < 0).any():
        return float("inf")
    with np.errstate(over="ignore", invalid="ignore"):
        k, n = form.matrix(multipliers).mid, form.inputs
    if not np.isfinite(k).all():
        return float("inf")
    corner = -k[:n, :n]
    if len(k) > n:
        try:
            factor = np.linalg.cholesky(k[n:, n:])
        except np.linalg.LinAlgError:
            return float("inf")
        half = solve_triangular(factor, k[n:, :n], lower=True)
        corner = corner + half.T @ half
    if weights is not None:
        corner = corner / np.sqrt(weights) / np.sqrt(weights)[:, None]
    return float(max(np.linalg.eigvalsh((corner + corner.T) / 2)[-1], 0.0))


def proves(form: LoopForm, multipliers: Array, bound: float, weights: Array | None = None) -> bool:
    """Prove in exact arithmetic that bound^2 diag(weights, 0) + sum_i mu_i (..) - Y'Y is positive definite."""
    weights = np.ones(form.inputs) if weights is None else weights
    if len(multipliers) != form.multipliers or len(weights) != form.inputs:
        return False
    if not (np.isfinite(multipliers).all() and np.isfinite(weights).all() and np.isfinite(bound)):
        return False
    if (multipliers < 0).any() or (weights < 0).any():
        return False
    with np.errstate(over="ignore", invalid="ignore"):  # a matrix that overflows is not positive definite
        return _holds(form.matrix(multipliers), bound, weights)


def _holds(matrix: Enclosure, bound: float, weights: Array) -> bool:
    square = np.nextafter(bound * bound, 0.0)
    corner = np.nextafter(square * weights, 0.0)  # rounded down: proving with less proves it
    return is_positive_definite(matrix.plus_at(0, Enclosure.exact(corner))) is not None


def smallest_proved(form: LoopForm, multipliers: Array, weights: Array | None = None) -> float | None:
    """The smallest bound that these multipliers prove: their best rho, enlarged until the proof goes through.

    Returns:
        The bound, or None if none within 1e-3 of the best passes.
    """
    rho = smallest_rho(form, multipliers, weights)
    if not np.isfinite(rho):
        return None
    matrix, weights = form.matrix(multipliers), np.ones(form.inputs) if weights is None else weights
    for slack in SLACKS:
        bound = float(np.nextafter(np.sqrt(rho) * (1 + slack) + FLOOR, np.inf))
        if _holds(matrix, bound, weights):
            return bound
    return None


def certify_with(
    net: PlainNet,
    form: LoopForm,
    multipliers: Array,
    *,
    method: str,
    norm: NormPair,
    region: Box | None = None,
    widened: bool = False,
) -> Certificate | None:
    """The certificate (l2 -> l2) that these multipliers give; None if they prove nothing.

    Args:
        widened: whether the form was made with `widened_slopes`.
    """
    bound = smallest_proved(form, multipliers)
    if bound is None:
        return None
    return Certificate(
        bound=bound,
        method=method,
        norm=norm,
        region=region,
        weights_sha256=net.sha256(),
        proof={"kind": "lmi", "multipliers": [float(m) for m in multipliers]} | ({"widened": True} if widened else {}),
        input_names=net.input_names,
        output_names=net.output_names,
    )


def own_multipliers(net: PlainNet, form: LoopForm) -> Array | None:
    """The multipliers that the parametrisation exported with the weights, in the scale of the loop form.

    Returns:
        One per multiplier of the form; None if there are none, or not one per nonlinearity of the network.
    """
    counts = [nonlinearities(net, k) for k in range(1, len(net.activations) + 1)]
    if net.multipliers is None or [len(m) for m in net.multipliers] != counts:
        return None
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    first = np.unique(form.group, return_index=True)[1]
    return np.asarray(np.concatenate(net.multipliers)[starts[form.layer[first] - 1] + form.neuron[first]] / 2)


def widened_slopes(net: PlainNet) -> Slopes:
    """The slope intervals that hold everywhere, stretched to hold [0, 1].

    Layers are built for slopes in [0, 1], where their multipliers prove exactly their bound; for the smaller interval
    of leaky_relu the same multipliers may prove a little more than it.
    """
    return [
        (np.minimum(low, 0.0), np.maximum(high, 1.0)) if activation.is_scalar else (low, high)
        for (low, high), activation in zip(global_slopes(net), net.activations, strict=True)
    ]


def slopes_on(net: PlainNet, region: Box | None) -> Slopes | None:
    """Slope intervals that are proved on the region; None (the activations' own) if there is no region."""
    return None if region is None else local_slopes(net, region)


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "lmi" (l2 -> l2)."""
    if (certificate.norm.input, certificate.norm.output) != ("l2", "l2"):
        return False
    widened = certificate.proof.get("widened") is True  # sound for every network: the intervals only grow
    slopes = widened_slopes(net) if widened else slopes_on(net, certificate.region)
    form = loop_form(net, certificate.norm, slopes)
    return proves(form, np.array(certificate.proof["multipliers"], dtype=np.float64), certificate.bound)
