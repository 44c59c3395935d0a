"""What a batch says of a discriminator and of the maps around it: gradient norms, C-validity, true Jacobians (numpy).

Estimates over the points given, never bounds: a penalty holds the gradient where it is sampled and says nothing
between. For bounds see `certify.reward`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]


def gradient_norms(net: PlainNet, x: ArrayLike, *, scale: ArrayLike | None = None) -> Array:
    """|grad z| (N,) of a network with one output at inputs x (N, n), l2.

    Args:
        scale: raw units per unit of each input (n,), for example the network's `input_scale`; None: raw units.

    Raises:
        UserError: sizes that do not fit.
    """
    if net.output_size != 1:
        raise UserError(f"a gradient needs a network with one output, found {net.output_size}")
    return _jacobian_norms(net, x, scale)


def jacobian_norms(net: PlainNet, x: ArrayLike) -> Array:
    """Spectral norms (N,) of the Jacobians of a network (dynamics, policy) at inputs x (N, n), raw units.

    The authors of arXiv 2006.16785 log the gradient of the sum of the outputs instead, which is at most sqrt(m) times
    as large as the Frobenius norm and may be 0 where the Jacobian is not.

    Raises:
        UserError: sizes that do not fit.
    """
    return _jacobian_norms(net, x, None)


def _jacobian_norms(net: PlainNet, x: ArrayLike, scale: ArrayLike | None) -> Array:
    points = np.asarray(x, np.float64)
    units = np.ones(net.input_size) if scale is None else np.asarray(scale, np.float64)
    if points.ndim != 2 or not len(points) or points.shape[1] != net.input_size or units.shape != (net.input_size,):
        raise UserError(f"expected inputs (N, {net.input_size}), found {points.shape}, scales {units.shape}")
    if not np.isfinite(points).all():
        raise UserError("the inputs have entries that are not finite")
    return np.asarray(np.linalg.norm(net.jacobian(points) * units, 2, (1, 2)))


def c_validity(norms: ArrayLike, k: float = 1.0) -> float:
    """mean exp(-max(0, |grad z| - k)^2) in (0, 1]: 1 exactly if no gradient is above k (arXiv 2006.16785).

    Raises:
        UserError: no norms, or numbers that are none.
    """
    if not k >= 0:
        raise UserError(f"the constant of the C-validity must not be negative, found {k}")
    return float(np.exp(-(np.maximum(0.0, _norms(norms) - k) ** 2)).mean())


@dataclass(frozen=True)
class GradientPercentiles:
    """Percentiles of gradient norms over a batch, in the units of the norms."""

    median: float
    p95: float
    p99: float
    largest: float


def gradient_percentiles(norms: ArrayLike) -> GradientPercentiles:
    """Percentiles of gradient norms (N,); errors as `c_validity`."""
    return GradientPercentiles(*(float(p) for p in np.percentile(_norms(norms), (50, 95, 99, 100))))


def _norms(norms: ArrayLike) -> Array:
    found = np.asarray(norms, np.float64).ravel()
    if not (found.size and np.isfinite(found).all() and (found >= 0).all()):
        raise UserError(f"gradient norms must be finite, not negative and at least one; found {found.size} numbers")
    return found
