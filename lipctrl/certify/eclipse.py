"""ECLipsE: multipliers layer by layer, from the input to the output (Xu & Sivaranjani 2024, arXiv 2404.04375).

With da_{k-1}' X_{k-1} da_{k-1} <= |dx|^2 known, a layer z = W_k a, a' = phi(z) of slopes [c - h, c + h] and a
multiplier m give the same statement for a' with

    X_k = m / h^2 I - (m c / h^2)^2 (P^-1 + m (c^2 - h^2) / h^2 I)^-1,   P = W_k X_{k-1}^-1 W_k',   X_0 = I.

ECLipsE-Fast takes one multiplier per layer, m = h / ((h + |c|) largest eigenvalue of P), which maximises the smallest
eigenvalue of X_k; for slopes [0, 1] this is the paper's closed form, for other intervals it follows in the same way.
ECLipsE chooses the multipliers of a layer by the small semidefinite program that looks one layer ahead: that is
LipSDP-Neuron for the network W_{k+1} phi(S_k u) with S_k S_k' = P, whose increments satisfy v'Kv <= |du|^2 in loop
form, so that the next P is Y K^-1 Y'.

The multipliers are only a proposal: the bound is proved by the matrix inequality of `certify.lmi`.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from lipctrl.certify.barrier import solve
from lipctrl.certify.certificate import Certificate
from lipctrl.certify.lmi import certify_with
from lipctrl.certify.loop_form import LoopForm, loop_form
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
L2 = NormPair()
INSIDE = 1 - 1e-6  # relative distance of the multipliers from values where X_k would be singular


def _metric(p: Array, c: float, h: float, m: float) -> Array:
    """X_k^-1 for one multiplier m, from P."""
    values, vectors = np.linalg.eigh((p + p.T) / 2)
    values = np.maximum(values, 0.0)
    x = m / h**2 - (m * c / h**2) ** 2 * values / (1 + m * (c**2 - h**2) / h**2 * values)
    return np.asarray((vectors / x) @ vectors.T)


def fast_multipliers(net: PlainNet, form: LoopForm, norm: NormPair) -> Array | None:
    """Multipliers of ECLipsE-Fast in the scale of the loop form; None if the network is not a plain MLP.

    Slope intervals are the activations' own. Group activations keep norms: after them X_k is a multiple of I.
    """
    if not net.is_mlp:
        return None
    weights = _weights(net, norm)
    inverse, proposal = np.eye(net.input_size), np.zeros(form.multipliers)
    for k, w in enumerate(weights[:-1]):
        p = w @ inverse @ w.T
        largest = max(float(np.linalg.eigvalsh((p + p.T) / 2)[-1]), 1e-100)
        activation = net.activations[k]
        low, high = activation.slopes if activation.is_scalar else (-1.0, 1.0)
        c, h = (low + high) / 2, (high - low) / 2
        members = np.unique(form.group[form.layer == k + 1])
        if h == 0:
            inverse = c * c * p
        elif activation.is_scalar:
            m = INSIDE * h / ((h + abs(c)) * largest)
            proposal[members], inverse = m, _metric(p, c, h, m)
        else:
            proposal[members], inverse = INSIDE / largest, largest / INSIDE * np.eye(len(w))
    return proposal * _output_gain(weights[-1], inverse)


def _weights(net: PlainNet, norm: NormPair) -> list[Array]:
    weights = [row[k].copy() for k, row in enumerate(net.blocks)]
    if norm.input_scale is not None:
        weights[0] = weights[0] * np.array(norm.input_scale)
    if norm.output_scale is not None:
        weights[-1] = weights[-1] / np.array(norm.output_scale)[:, None]
    return weights


def _output_gain(w: Array, inverse: Array) -> float:
    """Largest eigenvalue of W X^-1 W': the squared bound."""
    p = w @ inverse @ w.T
    return float(np.linalg.eigvalsh((p + p.T) / 2)[-1]) * (1 + 1e-6)


def eclipse_fast(net: PlainNet, norm: NormPair) -> Certificate | None:
    """The ECLipsE-Fast certificate (l2 -> l2); None where the method does not apply."""
    form = loop_form(net, norm)
    multipliers = fast_multipliers(net, form, norm) if (norm.input, norm.output) == ("l2", "l2") else None
    if multipliers is None:
        return None
    return certify_with(net, form, multipliers, method="eclipse-fast", norm=norm)


def eclipse_multipliers(net: PlainNet, form: LoopForm, norm: NormPair, *, tolerance: float = 1e-5) -> Array | None:
    """Multipliers of ECLipsE in the scale of the loop form.

    Returns:
        None if the network is not a plain MLP or rounding hides that a layer's multipliers are feasible.
    """
    if not net.is_mlp:
        return None
    weights = _weights(net, norm)
    root, rho, proposal = weights[0], 1.0, np.zeros(form.multipliers)
    for k, activation in enumerate(net.activations):
        following = weights[k + 1]
        sub = loop_form(
            PlainNet.mlp([root, following], [np.zeros(len(root)), np.zeros(len(following))], activation), L2
        )
        p, mu = solve(sub, sub.group, "l2", tolerance=tolerance)
        members = np.unique(form.group[form.layer == k + 1])
        proposal[members], rho = mu / float(p[0]), float(p[0])
        y = sub.Y.mid
        metric = sub.matrix(proposal[members]).mid + y.T @ y
        metric[np.diag_indices(sub.inputs)] += 1
        size = np.sqrt(np.maximum(np.diag(metric), 1e-300))
        try:
            factor = np.linalg.cholesky(metric / size / size[:, None])
        except np.linalg.LinAlgError:
            return None
        half = solve_triangular(factor, (y / size).T, lower=True)
        values, vectors = np.linalg.eigh(half.T @ half)
        kept = values > 1e-14 * values[-1]
        root = vectors[:, kept] * np.sqrt(values[kept])
    return proposal * rho * (1 + 1e-6)


def eclipse(net: PlainNet, norm: NormPair) -> Certificate | None:
    """The ECLipsE certificate (l2 -> l2); None where the method does not apply."""
    form = loop_form(net, norm)
    multipliers = eclipse_multipliers(net, form, norm) if (norm.input, norm.output) == ("l2", "l2") else None
    return None if multipliers is None else certify_with(net, form, multipliers, method="eclipse", norm=norm)
