"""Lower bounds with a witness: an input and a direction that attain a sensitivity (numpy).

Sampling at radii over several decades, then batched gradient ascent of |J(x) d| with d kept the best direction at x.
"""

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box, Witness
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
ROUNDING = 1e-9  # relative slack for the float64 evaluation of one Jacobian


def lower_bound(
    net: PlainNet, norm: NormPair | None = None, *, region: Box | None = None, seed: int = 0, samples: int = 4000
) -> Witness:
    """The largest witness found.

    Args:
        net, norm, region: as in `bracket.certify`. seed: of the samples. samples: number of starting points.
    """
    norm = norm or NormPair()
    random = np.random.default_rng(seed)
    x = _samples(net, region, samples, random)
    gain, direction = _gain(net, norm, x)
    best = np.argsort(-gain)[:16]
    y, d = _ascend(net, norm, x[best], region)
    gains, directions = np.append(gain[best], _at(net, norm, y, d)), np.vstack([direction[best], d])
    points = np.vstack([x[best], y])
    top = int(np.argmax(gains))
    value = float(gains[top]) * (1 - ROUNDING)
    return Witness(value, tuple(points[top].tolist()), tuple(directions[top].tolist()), norm, "ascent")


def _samples(net: PlainNet, region: Box | None, count: int, random: np.random.Generator) -> Array:
    n = net.input_size
    if region is not None:
        return random.uniform(region.low, region.high, (count, n))
    scale = net.input_scale if net.input_scale is not None else np.ones(n)
    centre = net.input_mean if net.input_mean is not None else np.zeros(n)
    return centre + scale * random.normal(size=(count, n)) * 10 ** random.uniform(-1, 2, (count, 1))


def _at(net: PlainNet, norm: NormPair, x: Array, d: Array) -> Array:
    j = net.jacobian(x, clipped=False)
    return np.asarray(norm.of_output((j @ d[..., None])[..., 0]) / norm.of_input(d))


def _gain(net: PlainNet, norm: NormPair, x: Array) -> tuple[Array, Array]:
    """Best direction at each point for l2 -> l2 (singular vector), else for the best row, and its gain."""
    j = net.jacobian(x, clipped=False)
    scale = np.ones(net.input_size) if norm.input_scale is None else np.array(norm.input_scale)
    out = np.ones(net.output_size) if norm.output_scale is None else np.array(norm.output_scale)
    scaled = j * scale / out[:, None]
    if (norm.input, norm.output) == ("l2", "l2"):
        d = np.linalg.svd(scaled, full_matrices=False)[2][:, 0]
    else:
        row = np.abs(scaled).sum(-1) if norm.input == "linf" else np.linalg.norm(scaled, axis=-1)
        d = np.take_along_axis(scaled, row.argmax(-1)[:, None, None], axis=1)[:, 0]
        d = np.where(d < 0, -1.0, 1.0) if norm.input == "linf" else d
        d = np.where(np.linalg.norm(d, axis=-1, keepdims=True) > 0, d, 1.0)  # where nothing passes, any direction
    d = d * scale
    return _at(net, norm, x, d), d


def _ascend(net: PlainNet, norm: NormPair, x: Array, region: Box | None, steps: int = 60) -> tuple[Array, Array]:
    """Gradient ascent by central differences, with a step per point that grows on success and shrinks on failure."""
    n = x.shape[1]
    gain, d = _gain(net, norm, x)
    length = 0.1 * (1 + np.linalg.norm(x, axis=1))
    for _ in range(steps):
        h = 1e-5 * (1 + np.abs(x).max(1))[:, None] * np.ones(n)
        shifts = np.eye(n)[:, None, :] * h
        gradient = np.stack([_at(net, norm, x + s, d) - _at(net, norm, x - s, d) for s in shifts], -1)
        size = np.linalg.norm(gradient, axis=1, keepdims=True)
        y = x + length[:, None] * gradient / np.where(size > 0, size, 1.0)
        if region is not None:
            y = np.clip(y, region.low, region.high)
        new, direction = _gain(net, norm, y)
        better = new > gain
        x, d = np.where(better[:, None], y, x), np.where(better[:, None], direction, d)
        gain, length = np.where(better, new, gain), np.where(better, 1.5 * length, 0.4 * length)
    return x, d
