"""Activations: slope intervals by dense sampling, derivatives by differences, group inequalities at random."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.nn.activations import SCALAR, Activation

GRID = np.concatenate([np.linspace(-12, 12, 480_001), np.geomspace(1e-9, 1e3, 2000), -np.geomspace(1e-9, 1e3, 2000)])
CASES = [*SCALAR, "leaky_relu:0.3", "leaky_relu:-0.5", "leaky_relu:2.0", "elu:0.5", "elu:1.7"]
# largest slopes from the literature on these functions, five digits
PUBLISHED = {"gelu": 1.12890, "silu": 1.09984, "mish": 1.08850, "hardswish": 1.5}


@pytest.mark.parametrize("text", CASES)
def test_slope_interval_holds_and_is_tight(text: str) -> None:
    activation = Activation.parse(text)
    low, high = activation.slopes
    derivative = activation.derivative(GRID)
    assert (derivative >= low).all() and (derivative <= high).all()
    assert derivative.min() <= low + 2e-4 and derivative.max() >= high - 2e-4
    x = np.sort(GRID[::40])
    secant = np.diff(activation(x)) / np.diff(x)
    assert (secant >= low - 1e-6).all() and (secant <= high + 1e-6).all()


@pytest.mark.parametrize(("name", "value"), PUBLISHED.items())
def test_published_largest_slopes(name: str, value: float) -> None:
    assert Activation.parse(name).derivative(GRID).max() == pytest.approx(value, abs=2e-5)
    assert value <= Activation.parse(name).slopes[1] <= value + 2e-5


@pytest.mark.parametrize("text", CASES)
def test_derivative_agrees_with_differences(text: str) -> None:
    activation = Activation.parse(text)
    z = np.random.default_rng(0).uniform(-4, 4, 500)
    h = 1e-6
    assert np.allclose((activation(z + h) - activation(z - h)) / (2 * h), activation.derivative(z), atol=1e-5)


def groups() -> list[Activation]:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(4, 3))
    return [
        Activation.parse("maxmin"),
        Activation.parse("groupsort:3"),
        Activation.parse("groupsort:4"),
        Activation("householder", 3.0, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),
    ]


@pytest.mark.parametrize("activation", groups(), ids=lambda a: a.spec())
def test_group_activations_preserve_the_norm_of_gradients(activation: Activation) -> None:
    rng = np.random.default_rng(2)
    z = rng.normal(size=(300, 12))
    j = activation.derivative(z)
    assert np.allclose(j @ np.swapaxes(j, 1, 2), np.eye(12))
    d = rng.normal(size=z.shape)
    difference = (activation(z + 1e-7 * d) - activation(z - 1e-7 * d)) / 2e-7
    assert np.allclose(difference, (j @ d[..., None])[..., 0], atol=1e-5)
    x, y = rng.normal(size=(2, 20_000, 12)) * rng.choice([0.01, 1, 100], (2, 20_000, 1))
    moved = np.linalg.norm(activation(x) - activation(y), axis=1)
    assert (moved <= np.linalg.norm(x - y, axis=1) * (1 + 1e-12)).all()


def test_maxmin_and_groupsort_sort() -> None:
    z = np.array([1.0, 5.0, 7.0, -2.0])
    assert Activation.parse("maxmin")(z).tolist() == [5, 1, 7, -2]
    assert Activation.parse("groupsort:4")(z).tolist() == [7, 5, 1, -2]


def test_householder_reflects_one_side_only() -> None:
    activation = Activation("householder", 2.0, np.array([[1.0, 0.0]]))
    points: NDArray[np.float64] = np.array([[2.0, 3.0], [-2.0, 3.0]])
    assert activation(points).tolist() == [[2, 3], [2, 3]]


@pytest.mark.parametrize("text", [*CASES, "maxmin", "groupsort:4"])
def test_text_form_round_trip(text: str) -> None:
    activation = Activation.parse(text)
    assert Activation.parse(activation.spec()) == activation


def test_bad_activations() -> None:
    with pytest.raises(UserError, match="unknown activation 'swish'"):
        Activation.parse("swish")
    with pytest.raises(ValueError, match="slope-restricted"):
        _ = Activation.parse("maxmin").slopes
    with pytest.raises(ValueError, match="parameter"):
        Activation("elu", -1.0)
    with pytest.raises(ValueError, match="vectors"):
        Activation("householder", 2.0)
