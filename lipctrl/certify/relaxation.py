"""What a scalar activation can do on an interval: slopes, values and bounding lines, all rounded outward (numpy).

Lines are s t + c with any slope s and an intercept that is proved for that slope:

* f convex: above by its chord, below by a tangent;
* f convex left of 0 and concave right of it (tanh and the like): above by the larger of a chord and a tangent;
* otherwise, with slopes in [a, b] and chord slope s, the graph stays within (b - s)(s - a) / (b - a) * (u - l) of the
  chord.

Library functions are taken to be accurate to 16 units of 2^-53 relative (values; for gelu relative to its argument)
and 128 units (derivatives); `tests/certify/test_relaxation.py` compares them with higher precision.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.enclosure import TINY, UNIT
from lipctrl.nn.activations import Activation

Array = NDArray[np.float64]
VALUE_UNITS, DERIVATIVE_UNITS = 16, 128
EXACT = ("relu", "abs", "hardtanh")  # values without rounding
EVEN_BELL = ("tanh", "sigmoid", "softsign")  # the derivative is even and falls with |z|
CURVATURE = {"silu": 0.51, "gelu": 0.81, "mish": 0.65}  # above the largest |second derivative|
VALLEY = {  # where the smallest value lies, and a number below it
    "silu": (-1.3, -1.2, -0.278465),
    "gelu": (-0.8, -0.7, -0.169972),
    "mish": (-1.25, -1.15, -0.308844),
    "hardswish": (-1.5, -1.5, -0.375001),
}
BISECTIONS = 20


def kinked(activation: Activation) -> float | None:
    """The slope p of max(z, 0) + p min(z, 0) if the activation is of that form, else None."""
    return {"relu": 0.0, "abs": -1.0, "leaky_relu": activation.parameter}.get(activation.name)


def slope_interval(activation: Activation, low: Array, high: Array) -> tuple[Array, Array]:
    """An interval that holds every (Clarke) derivative on [low, high], inside the activation's global one."""
    name, p = activation.name, activation.parameter
    error = DERIVATIVE_UNITS * UNIT * max(1.0, abs(p))
    slope = kinked(activation)
    with np.errstate(all="ignore"):
        if slope is not None:
            a, b = _pieces((low <= 0, slope, slope), (high >= 0, 1.0, 1.0))
        elif name == "hardtanh":
            a, b = _pieces(((low <= -1) | (high >= 1), 0.0, 0.0), ((low <= 1) & (high >= -1), 1.0, 1.0))
        elif name == "elu":
            left = [activation.derivative(np.minimum(z, 0.0)) for z in (low, high)]
            a, b = _pieces((low <= 0, left[0] - error, left[1] + error), (high >= 0, 1.0, 1.0))
        elif name == "hardswish":
            inner = [(2 * np.clip(z, -3.0, 3.0) + 3) / 6 for z in (low, high)]
            middle = ((low <= 3) & (high >= -3), inner[0] - error, inner[1] + error)
            a, b = _pieces((low <= -3, 0.0, 0.0), (high >= 3, 1.0, 1.0), middle)
        elif name in EVEN_BELL:
            a = activation.derivative(np.maximum(np.abs(low), np.abs(high))) - error
            b = activation.derivative(np.clip(0.0, low, high)) + error
        elif name == "softplus":
            a, b = activation.derivative(low) - error, activation.derivative(high) + error
        elif name in CURVATURE:
            middle_point = np.clip(low + (high - low) / 2, low, high)
            half = np.maximum(high - middle_point, middle_point - low) * CURVATURE[name]
            centre = activation.derivative(middle_point)
            a, b = centre - half - error, centre + half + error
        else:
            a = b = np.full_like(low, np.nan)
    smallest, largest = activation.slopes
    return np.fmax(a, smallest), np.fmin(b, largest)  # fmax, fmin: the global slopes where nothing is known


def _pieces(*pieces: tuple[NDArray[np.bool_], Array | float, Array | float]) -> tuple[Array, Array]:
    """Hull of (present, smallest, largest) over the pieces that are present."""
    a = np.min([np.where(present, smallest, np.inf) for present, smallest, _ in pieces], axis=0)
    b = np.max([np.where(present, largest, -np.inf) for present, _, largest in pieces], axis=0)
    return np.asarray(a), np.asarray(b)


def value_error(activation: Activation, z: Array, value: Array, unit: float = UNIT) -> Array:
    """Bound of |computed - exact| of an activation's value at z, for arithmetic of unit roundoff `unit`."""
    if activation.name in EXACT:
        return np.zeros_like(value)
    return np.asarray(VALUE_UNITS * unit * (np.abs(value) + (np.abs(z) if activation.name == "gelu" else 0.0)) + TINY)


def value_interval(activation: Activation, low: Array, high: Array) -> tuple[Array, Array]:
    """Bounds of the activation's values on [low, high]."""
    with np.errstate(all="ignore"):
        ends = [activation(z) for z in (low, high)]
        errors = [value_error(activation, z, value) for z, value in zip((low, high), ends, strict=True)]
        smallest = np.minimum(ends[0] - errors[0], ends[1] - errors[1])
        largest = np.maximum(ends[0] + errors[0], ends[1] + errors[1])
    slope = kinked(activation)
    if slope is not None and slope < 0:
        smallest = np.where((low <= 0) & (high >= 0), 0.0, smallest)
    if activation.name in VALLEY:
        left, right, bottom = VALLEY[activation.name]
        smallest = np.where((low <= right) & (high >= left), bottom, smallest)
    return smallest, largest


@dataclass(frozen=True)
class Lines:
    """low_slope t + low_offset <= v <= high_slope t + high_offset, and low <= v <= high, where t is in its interval."""

    low_slope: Array
    low_offset: Array
    high_slope: Array
    high_offset: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Function:
    """A function by enclosures of its values and derivatives."""

    value: Callable[[Array], Array]
    error: Callable[[Array, Array], Array]
    derivative: Callable[[Array], Array]
    derivative_error: float

    def above(self, z: Array, slope: Array) -> Array:
        """Upper bound of f(z) - slope z."""
        value = self.value(z)
        product = slope * z
        rounding = 4 * UNIT * (np.abs(value) + np.abs(product)) + TINY
        exact = (product == value) & ((slope == 0) | (np.abs(slope) == 1))
        return np.asarray(value - product + self.error(z, value) + np.where(exact, 0.0, rounding))

    def concave_above(self, point: Array, slope: Array, low: Array, high: Array) -> Array:
        """Upper bound of f(t) - slope t on [low, high], where f is concave, by the tangent at `point`."""
        tilt = self.derivative(point) - slope
        error = self.derivative_error + 2 * UNIT * np.abs(tilt)
        right, left = (tilt + error) * (high - point), (error - tilt) * (point - low)
        extra = np.maximum(np.where(high > point, right, 0.0), np.where(point > low, left, 0.0))
        return np.asarray(self.above(point, slope) + np.maximum(extra, 0.0) * (1 + 16 * UNIT))

    @property
    def negated(self) -> "Function":
        """t -> -f(t)."""
        return Function(lambda z: -self.value(z), self.error, lambda z: -self.derivative(z), self.derivative_error)

    @property
    def reflected(self) -> "Function":
        """t -> -f(-t)."""
        return Function(
            lambda z: -self.value(-z),
            lambda z, value: self.error(-z, -value),
            lambda z: self.derivative(-z),
            self.derivative_error,
        )


def _chord(f: Function, low: Array, high: Array) -> Array:
    width = high - low
    middle = f.derivative(low + width / 2)
    wide = width > 1e-9 * (np.abs(low) + np.abs(high))
    return np.asarray(np.where(wide, (f.value(high) - f.value(low)) / np.where(wide, width, 1.0), middle))


def _above_convex(f: Function, slope: Array, low: Array, high: Array) -> Array:
    return np.maximum(f.above(low, slope), f.above(high, slope))


def _above_s_shaped(f: Function, low: Array, high: Array) -> tuple[Array, Array]:
    """Slope and offset of a line above f on [low, high], f convex left of 0 and concave right of it."""
    left, right = np.zeros_like(low), np.maximum(high, 0.0)
    for _ in range(BISECTIONS):  # the tangent point on the right whose line passes through (low, f(low))
        d = (left + right) / 2
        short = f.value(d) - f.derivative(d) * (d - low) < f.value(low)
        left, right = np.where(short, d, left), np.where(short, right, d)
    middle = low + (high - low) / 2
    point = np.where(low >= 0, middle, np.where(high <= 0, high, right))
    chord = _chord(f, low, high)
    steep = (low < 0) & (f.derivative(np.maximum(high, 0.0)) > chord)  # no tangent point before `high`
    slope = np.where((high <= 0) | steep, chord, f.derivative(point))
    point = np.where(steep, high, point)
    offset = np.full_like(low, -np.inf)
    below, beyond = np.minimum(high, 0.0), np.maximum(low, 0.0)
    convex = _above_convex(f, slope, np.minimum(low, 0.0), below)
    concave = f.concave_above(np.clip(point, beyond, np.maximum(high, 0.0)), slope, beyond, np.maximum(high, 0.0))
    offset = np.where(low < 0, np.maximum(offset, convex), offset)
    return slope, np.where(high >= 0, np.maximum(offset, concave), offset)


def activation_lines(activation: Activation, low: Array, high: Array) -> Lines:
    """Bounding lines of a scalar activation on [low, high] (finite)."""
    name, p = activation.name, activation.parameter
    f = Function(
        activation,
        lambda z, value: value_error(activation, z, value),
        activation.derivative,
        0.0 if kinked(activation) is not None else DERIVATIVE_UNITS * UNIT * max(1.0, abs(p)),
    )
    values = value_interval(activation, low, high)
    if name in ("relu", "abs", "softplus") or (name in ("leaky_relu", "elu") and p <= 1):
        up, left = _chord(f, low, high), kinked(activation)
        if left is not None:  # adaptive: the side that dominates
            point = np.where(high > -low, high, low)
            up = np.where(low >= 0, 1.0, np.where(high <= 0, left, up))
        else:
            point = low + (high - low) / 2
        down = f.derivative(point)
        return Lines(
            down, -f.negated.concave_above(point, -down, low, high), up, _above_convex(f, up, low, high), *values
        )
    if name in ("tanh", "sigmoid", "softsign", "hardtanh", "elu", "leaky_relu"):
        up, above = _above_s_shaped(f, low, high)
        down, below = _above_s_shaped(f.reflected, -high, -low)
        return Lines(down, -below, up, above, *values)
    a, b = slope_interval(activation, low, high)
    slope = np.clip(_chord(f, low, high), a, b)
    room = np.where(b > a, (b - slope) * (slope - a) / np.where(b > a, b - a, 1.0) * (high - low), 0.0)
    room = room * (1 + 64 * UNIT) + TINY
    above, below = _above_convex(f, slope, low, high) + room, _above_convex(f.negated, -slope, low, high) + room
    return Lines(slope, -below, slope, above, *values)


def product_lines(a: Array, b: Array, low: Array, high: Array) -> Lines:
    """Bounding lines of d t for t in [low, high] and any d in [a, b]: chords of max(a t, b t) and min(a t, b t)."""
    width = high - low
    wide = width > 0

    def chord(at_low: Array, at_high: Array, one: Array) -> Array:
        return np.asarray(np.where(wide, (at_high * high - at_low * low) / np.where(wide, width, 1.0), one))

    def offset(slope: Array, at_low: Array, at_high: Array, pick: Callable[..., Array], sign: float) -> Array:
        parts = [np.where(s == slope, 0.0, s * t - slope * t) for s, t in ((at_low, low), (at_high, high))]
        size = np.maximum(np.abs(low), np.abs(high)) * (np.maximum(np.abs(a), np.abs(b)) + np.abs(slope))
        exact = (at_low == slope) & (at_high == slope)
        return np.asarray(pick(*parts) + sign * np.where(exact, 0.0, 8 * UNIT * size + TINY))

    up_low, up_high = np.where(low >= 0, b, a), np.where(high <= 0, a, b)
    down_low, down_high = np.where(low >= 0, a, b), np.where(high <= 0, b, a)
    same_up, same_down = up_low == up_high, down_low == down_high
    up = np.where(same_up, up_low, chord(up_low, up_high, b))
    down = np.where(same_down, down_low, chord(down_low, down_high, a))
    corners = [s * t for s in (a, b) for t in (low, high)]
    grown = 4 * UNIT * np.max(np.abs(corners), axis=0) + TINY
    least, most = np.min(corners, axis=0) - grown, np.max(corners, axis=0) + grown
    same, opposite = (
        ((a >= 0) & (low >= 0)) | ((b <= 0) & (high <= 0)),
        ((a >= 0) & (high <= 0)) | ((b <= 0) & (low >= 0)),
    )
    return Lines(
        down,
        offset(down, down_low, down_high, np.minimum, -1.0),
        up,
        offset(up, up_low, up_high, np.maximum, 1.0),
        np.where(same, np.maximum(least, 0.0), least),
        np.where(opposite, np.minimum(most, 0.0), most),
    )
