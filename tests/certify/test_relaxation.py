"""Slopes, values and lines of every activation against evaluation in extended precision."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.enclosure import UNIT
from lipctrl.certify.relaxation import (
    DERIVATIVE_UNITS,
    VALUE_UNITS,
    Function,
    activation_lines,
    product_lines,
    slope_interval,
    value_interval,
)
from lipctrl.nn.activations import SCALAR, Activation

Long = NDArray[np.longdouble]
TESTED = [
    *(Activation(name) for name in SCALAR if name not in ("identity", "elu", "leaky_relu")),
    *(Activation("elu", p) for p in (0.3, 1.0, 2.5)),
    *(Activation("leaky_relu", p) for p in (-0.5, 0.1, 1.7)),
]
BY_SPEC = pytest.mark.parametrize("activation", TESTED, ids=lambda a: a.spec())
pytestmark = pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="needs extended precision")


def sigmoid(z: Long) -> Long:
    e = np.exp(-np.abs(z))
    return np.where(z > 0, 1 / (1 + e), e / (1 + e))


def softplus(z: Long) -> Long:
    return np.log1p(np.exp(-np.abs(z))) + np.maximum(z, 0)


def normal_cdf(z: Long) -> Long:
    """1/2 + density(z) (z + z^3/3 + z^5/15 + ...) for z > 0, the tail's continued fraction where that cancels."""
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.longdouble("3.14159265358979323846264338327950288"))
    a = np.abs(z)
    term, series = a.copy(), a.copy()
    for n in range(1, 80):
        term = term * a * a / (2 * n + 1)
        series = series + term
    fraction = np.ones_like(a)
    for n in range(120, 0, -1):
        fraction = np.maximum(a, 1) + n / fraction
    upper_tail = np.where(a > 3, density / fraction, np.longdouble(0.5) - density * series)
    return np.where(z > 0, 1 - upper_tail, upper_tail)


def reference(activation: Activation, z: Long) -> tuple[Long, Long]:
    """Value and derivative in extended precision."""
    p, s, zero = np.longdouble(activation.parameter), sigmoid(z), np.zeros_like(z)
    t = np.tanh(softplus(z))
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.longdouble("3.14159265358979323846264338327950288"))
    table = {
        "relu": (np.maximum(z, 0), zero + (z > 0)),
        "abs": (np.abs(z), np.sign(z)),
        "leaky_relu": (np.where(z > 0, z, p * z), np.where(z > 0, 1, p)),
        "hardtanh": (np.clip(z, -1, 1), zero + (np.abs(z) < 1)),
        "elu": (np.where(z > 0, z, p * np.expm1(np.minimum(z, 0))), np.where(z > 0, 1, p * np.exp(np.minimum(z, 0)))),
        "tanh": (np.tanh(z), 1 / np.cosh(z) ** 2),
        "sigmoid": (s, s * sigmoid(-z)),
        "softplus": (softplus(z), s),
        "softsign": (z / (1 + np.abs(z)), 1 / (1 + np.abs(z)) ** 2),
        "silu": (z * s, s + z * s * sigmoid(-z)),
        "gelu": (z * normal_cdf(z), normal_cdf(z) + z * density),
        "mish": (z * t, t + z * (1 - t * t) * s),
        "hardswish": (z * np.clip(z + 3, 0, 6) / 6, np.where(z <= -3, 0, np.where(z >= 3, 1, (2 * z + 3) / 6))),
    }
    return table[activation.name]


def intervals(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    centre = rng.normal(size=count) * rng.choice([0.01, 1.0, 4.0, 30.0], size=count)
    half = np.abs(rng.normal(size=count)) * rng.choice([0.0, 1e-12, 1e-5, 0.1, 1.0, 10.0], size=count)
    low, high = centre - half, centre + half
    anchor = rng.choice([-3.0, -1.0, 0.0, 1.0, 3.0], size=count)  # where the kinks are
    low = np.where(rng.random(count) < 0.1, np.minimum(anchor, high), low)
    return low, np.where(rng.random(count) < 0.1, np.maximum(anchor, low), high)


@BY_SPEC
def test_library_functions_are_as_accurate_as_stated(activation: Activation) -> None:
    z = np.concatenate([np.linspace(-40, 40, 4001), np.random.default_rng(0).normal(size=4000) * 3])
    value, derivative = reference(activation, z.astype(np.longdouble))
    allowed = VALUE_UNITS * UNIT * (np.abs(value) + (np.abs(z) if activation.name == "gelu" else 0)) + 1e-300
    assert (np.abs(activation(z) - value) <= allowed).all()
    error = np.abs(activation.derivative(z) - derivative)
    assert (error <= DERIVATIVE_UNITS * UNIT * max(1.0, abs(activation.parameter))).all()


@BY_SPEC
def test_slopes_values_and_lines_hold_without_tolerance(activation: Activation) -> None:
    low, high = intervals(np.random.default_rng(1), 1500)
    lines, (a, b), (smallest, largest) = (
        f(activation, low, high) for f in (activation_lines, slope_interval, value_interval)
    )
    for fraction in np.linspace(0, 1, 17):
        t = np.clip(low + fraction * (high - low), low, high).astype(np.longdouble)
        value, derivative = reference(activation, t)
        assert ((a <= derivative) & (derivative <= b)).all()
        assert ((smallest <= value) & (value <= largest)).all()
        assert (lines.low_slope.astype(np.longdouble) * t + lines.low_offset <= value).all()
        assert (lines.high_slope.astype(np.longdouble) * t + lines.high_offset >= value).all()


@BY_SPEC
def test_intervals_shrink_to_the_value_at_a_point(activation: Activation) -> None:
    z = np.random.default_rng(2).normal(size=200) * 2
    a, b = slope_interval(activation, z, z)
    assert (b - a <= 3 * DERIVATIVE_UNITS * UNIT * max(1.0, abs(activation.parameter))).all()
    lines = activation_lines(activation, z, z)
    gap = (lines.high_slope * z + lines.high_offset) - (lines.low_slope * z + lines.low_offset)
    assert (gap <= 1e-12).all()


@BY_SPEC
def test_nested_intervals_have_nested_slopes(activation: Activation) -> None:
    low, high = intervals(np.random.default_rng(3), 2000)
    inner = slope_interval(activation, low + 0.3 * (high - low), high - 0.3 * (high - low))
    outer = slope_interval(activation, low, high)
    rounding = 3 * DERIVATIVE_UNITS * UNIT * max(1.0, abs(activation.parameter))
    assert (outer[0] <= inner[0] + rounding).all() and (inner[1] <= outer[1] + rounding).all()


def test_known_intervals() -> None:
    low, high = np.array([0.5, -2.0, -1.0, 0.0]), np.array([1.0, -0.5, 2.0, 1.0])
    a, b = slope_interval(Activation("relu"), low, high)
    assert a.tolist() == [1, 0, 0, 0] and b.tolist() == [1, 0, 1, 1]
    a, b = slope_interval(Activation("tanh"), low, high)
    np.testing.assert_allclose(a, 1 - np.tanh([1.0, 2.0, 2.0, 1.0]) ** 2, atol=1e-13)
    np.testing.assert_allclose(b, [1 - np.tanh(0.5) ** 2, 1 - np.tanh(0.5) ** 2, 1, 1], atol=1e-13)
    a, b = slope_interval(Activation("hardtanh"), low, high)
    assert a.tolist() == [0, 0, 0, 0] and b.tolist() == [1, 1, 1, 1]


def test_lines_are_the_known_ones() -> None:
    low, high = np.array([-1.0, -2.0]), np.array([2.0, 1.0])
    lines = activation_lines(Activation("relu"), low, high)
    np.testing.assert_allclose(lines.high_slope, [2 / 3, 1 / 3], rtol=1e-15)
    np.testing.assert_allclose(lines.high_offset, [2 / 3, 2 / 3], rtol=1e-14)
    assert lines.low_slope.tolist() == [1, 0] and lines.low_offset.tolist() == [0, 0]
    tanh = activation_lines(Activation("tanh"), low, np.array([3.0, 3.0]))  # touches at both ends of the tangent
    t = np.linspace(0, 3, 100001)
    for i in range(2):
        above = tanh.high_slope[i] * t + tanh.high_offset[i] - np.tanh(t)
        assert 0 <= above.min() < 1e-8
        assert abs(tanh.high_slope[i] * low[i] + tanh.high_offset[i] - np.tanh(low[i])) < 1e-5


def test_tangents_allow_for_the_error_of_the_derivative() -> None:
    def zero(z: NDArray[np.float64], _: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.zeros_like(z)

    low, point, high = np.array([-1.0]), np.array([0.5]), np.array([2.0])
    t = np.linspace(-1, 2, 1001)
    for error in (-0.1, 0.1):
        parabola = Function(lambda z: -z * z, zero, lambda z, e=error: -2 * z + e, 0.1)
        slope = parabola.derivative(point)
        assert (slope * t + parabola.concave_above(point, slope, low, high) >= -t * t).all()


def test_products_stay_between_their_lines() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(size=4000)
    b = a + np.abs(rng.normal(size=4000)) * rng.choice([0.0, 1e-9, 1.0], size=4000)
    low, high = intervals(rng, 4000)
    lines = product_lines(a, b, low, high)
    for s in np.linspace(0, 1, 11):
        d = np.clip(a + s * (b - a), a, b).astype(np.longdouble)
        for fraction in np.linspace(0, 1, 11):
            t = np.clip(low + fraction * (high - low), low, high).astype(np.longdouble)
            product = d * t
            assert ((lines.low <= product) & (product <= lines.high)).all()
            assert (lines.low_slope.astype(np.longdouble) * t + lines.low_offset <= product).all()
            assert (lines.high_slope.astype(np.longdouble) * t + lines.high_offset >= product).all()
    hull = product_lines(np.array([0.0]), np.array([1.0]), np.array([-1.0]), np.array([3.0]))
    np.testing.assert_allclose([hull.high_slope[0], hull.high_offset[0]], [0.75, 0.75], rtol=1e-14)
    np.testing.assert_allclose([hull.low_slope[0], hull.low_offset[0]], [0.25, -0.75], rtol=1e-14)
