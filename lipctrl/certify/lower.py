"""Lower bounds with a witness: an input and a direction that attain a sensitivity (numpy).

Sampling at radii over several decades; batched gradient ascent of |J(x) d|, with d kept the best direction at x, which
works for smooth activations; and for piecewise-linear networks, whose Jacobian has no gradient, a climb over activation
patterns (see `certify.patterns`).
"""

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box, Witness
from lipctrl.certify.jacobian import MARGIN, attained_gain
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
SAMPLES, ASCENTS, STEPS = 4000, 16, 60
LARGEST_VERTICES = 12  # inputs up to which the sign vectors of an l_inf ball are enumerated


def is_two_piece(net: PlainNet) -> bool:
    """Whether every activation has two linear pieces that meet at 0."""
    return all(a.name in ("relu", "leaky_relu", "abs") for a in net.activations)


def lower_bound(net: PlainNet, norm: NormPair | None = None, *, region: Box | None = None, seed: int = 0) -> Witness:
    """The largest witness found.

    Args:
        net, norm, region: as in `bracket.certify`. seed: of the samples.
    """
    from lipctrl.certify.patterns import LARGEST_CLIMB, climb

    norm = norm or NormPair()
    x = start_points(net, region, np.random.default_rng(seed))
    gain, direction = gains_at(net, norm, x)
    best = np.argsort(-gain)[:ASCENTS]
    found = [witness(net, norm, x[best[0]], direction[best[0]], "sampling")]
    y, d = _ascend(net, norm, x[best], region)
    top = int(np.argmax(attained(net, norm, y, d)))
    found.append(witness(net, norm, y[top], d[top], "gradient ascent"))
    if is_two_piece(net) and 0 < sum(net.widths) <= LARGEST_CLIMB:
        found += [climb(net, norm, start, region) for start in x[best[:2]]]
    return max(found, key=lambda w: w.bound)


def witness(net: PlainNet, norm: NormPair, x: Array, d: Array, method: str) -> Witness:
    """The witness at input x in direction d, with the gain that is proved to be attained there."""
    bound = attained_gain(net, norm, x, d) / MARGIN
    return Witness(bound, tuple(x.tolist()), tuple(d.tolist()), norm, method)


def start_points(net: PlainNet, region: Box | None, random: np.random.Generator) -> Array:
    """Inputs (SAMPLES, n): uniform on the region; without one, at radii over several decades around the data."""
    n = net.input_size
    if region is not None:
        return random.uniform(region.low, region.high, (SAMPLES, n))
    scale = net.input_scale if net.input_scale is not None else np.ones(n)
    centre = net.input_mean if net.input_mean is not None else np.zeros(n)
    return np.asarray(centre + scale * random.normal(size=(SAMPLES, n)) * 10 ** random.uniform(-1, 4, (SAMPLES, 1)))


def attained(net: PlainNet, norm: NormPair, x: Array, d: Array) -> Array:
    """|J(x) d| / |d| for batches of inputs and directions, in floating point."""
    j = net.jacobian(x)
    return np.asarray(norm.of_output((j @ d[..., None])[..., 0]) / norm.of_input(d))


def best_direction(j: Array, norm: NormPair) -> Array:
    """A direction (batch, n) that makes |J d| / |d| as large as possible, for Jacobians (batch, m, n).

    Exact for l2 -> l2 (singular vector), for outputs in l_inf (best row) and for l_inf -> l2 with few inputs (sign
    vectors enumerated); a good one for l_inf -> l2 otherwise.
    """
    n, m = j.shape[-1], j.shape[-2]
    inputs = np.ones(n) if norm.input_scale is None else np.array(norm.input_scale)
    outputs = np.ones(m) if norm.output_scale is None else np.array(norm.output_scale)
    scaled = j * inputs / outputs[:, None]
    if (norm.input, norm.output) == ("l2", "l2"):
        d = np.linalg.svd(scaled, full_matrices=False)[2][:, 0]
    elif norm.output == "linf" or n > LARGEST_VERTICES:
        size = np.abs(scaled).sum(-1) if norm.input == "linf" else np.linalg.norm(scaled, axis=-1)
        d = np.take_along_axis(scaled, size.argmax(-1)[:, None, None], axis=1)[:, 0]
        d = np.where(d < 0, -1.0, 1.0) if norm.input == "linf" else d
    else:
        signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * (n - 1), indexing="ij")).reshape(n - 1, -1).T
        signs = np.hstack([np.ones((len(signs), 1)), signs])
        d = signs[np.linalg.norm(scaled @ signs.T, axis=1).argmax(-1)]
    d = np.where((d == 0).all(-1, keepdims=True), 1.0, d)
    return np.asarray(d * inputs)


def gains_at(net: PlainNet, norm: NormPair, x: Array) -> tuple[Array, Array]:
    """Largest gain (batch,) and its direction (batch, n) at each input."""
    d = best_direction(net.jacobian(x), norm)
    return attained(net, norm, x, d), d


def _ascend(net: PlainNet, norm: NormPair, x: Array, region: Box | None) -> tuple[Array, Array]:
    """Gradient ascent by central differences, with a step per point that grows on success and shrinks on failure."""
    n = x.shape[1]
    gain, d = gains_at(net, norm, x)
    length = 0.1 * (1 + np.linalg.norm(x, axis=1))
    for _ in range(STEPS):
        h = 1e-5 * (1 + np.abs(x).max(1))[:, None] * np.ones(n)
        shifts = np.eye(n)[:, None, :] * h
        gradient = np.stack([attained(net, norm, x + s, d) - attained(net, norm, x - s, d) for s in shifts], -1)
        size = np.linalg.norm(gradient, axis=1, keepdims=True)
        y = x + length[:, None] * gradient / np.where(size > 0, size, 1.0)
        if region is not None:
            y = np.clip(y, region.low, region.high)
        new, direction = gains_at(net, norm, y)
        better = new > gain
        x, d = np.where(better[:, None], y, x), np.where(better[:, None], direction, d)
        gain, length = np.where(better, new, gain), np.where(better, 1.5 * length, 0.4 * length)
    return x, d
