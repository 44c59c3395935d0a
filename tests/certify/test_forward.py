"""Pre-activation bounds and local slopes: sampled values inside without tolerance, closed forms, known tables."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from lipctrl.certify.certificate import Box
from lipctrl.certify.forward import Infeasible, local_slopes, preactivation_bounds, relaxed
from lipctrl.certify.lipsdp import lipsdp
from lipctrl.certify.loop_form import nonlinearities
from lipctrl.certify.scalar_form import scalar_form
from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair


def test_sampled_preactivations_are_inside(cases: Callable) -> None:
    for case in cases(900):
        bounds = preactivation_bounds(case.net, case.box)
        for z, (low, high) in zip(case.net.preactivations(case.points), bounds, strict=True):
            rounding = 1e-12 * (1 + np.abs(z).max()) if case.is_point else 0.0
            assert (z >= low - rounding).all() and (z <= high + rounding).all()
            if case.is_point:
                assert (high - low <= 1e-9 * (1 + np.abs(z).max())).all()


def test_sampled_slopes_are_inside(cases: Callable) -> None:
    for case in cases(900):
        zs = case.net.preactivations(case.points)
        slopes = local_slopes(case.net, case.box)
        for k, (activation, (a, b)) in enumerate(zip(case.net.activations, slopes, strict=True)):
            assert len(a) == len(b) == nonlinearities(case.net, k + 1)
            if activation.is_scalar:
                d, (smallest, largest) = activation.derivative(zs[k]), activation.slopes
                assert (smallest <= a).all() and (b <= largest).all()
            elif activation.group_size == 2:
                grouped = zs[k].reshape(len(zs[k]), -1, 2)
                v = np.array([[1.0, -1.0]]) if activation.vectors is None else activation.vectors
                d = np.sign((grouped * v).sum(-1))
            else:
                d = np.array([-1.0, 1.0])[:, None]
            assert (d >= a).all() and (d <= b).all()


def test_bounds_hold_in_exact_arithmetic() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):  # cancelling sums at a point: floating point alone is off by more than the distance of bounds
        w = [rng.normal(size=s) * 10.0 ** rng.integers(-8, 8, size=s) for s in ((6, 3), (5, 6), (2, 5))]
        x = rng.normal(size=3)
        net = PlainNet.mlp(w, [rng.normal(size=len(m)) for m in w], "relu")
        values, bounds = [Fraction(v) for v in x.tolist()], preactivation_bounds(net, Box(tuple(x), tuple(x)))
        for matrix, bias, (low, high) in zip(w, net.biases, bounds, strict=True):
            values = [
                sum((Fraction(a) * v for a, v in zip(row, values, strict=True)), Fraction(b))
                for row, b in zip(matrix.tolist(), bias.tolist(), strict=True)
            ]
            assert all(Fraction(lo) <= v <= Fraction(hi) for lo, v, hi in zip(low, values, high, strict=True))
            values = [max(v, Fraction(0)) for v in values]


def test_cancellation_is_seen_by_back_substitution() -> None:
    ones = np.ones((2, 1))  # relu(x + 5) - relu(x + 6) = -1 for |x| <= 1; intervals alone give [-3, 1]
    net = PlainNet.mlp([ones, np.array([[1.0, -1.0]])], [np.array([5.0, 6.0]), np.zeros(1)], "relu")
    low, high = preactivation_bounds(net, Box((-1.0,), (1.0,)))[-1]
    np.testing.assert_allclose([low[0], high[0]], [-1, -1], rtol=1e-12)
    assert low[0] <= -1 <= high[0]


def test_known_bounds_of_an_unstable_neuron() -> None:
    net = PlainNet.mlp([np.array([[1.0]]), np.array([[2.0]])], [np.zeros(1), np.array([1.0])], "relu")
    low, high = preactivation_bounds(net, Box((-1.0,), (3.0,)))[-1]
    np.testing.assert_allclose([low[0], high[0]], [1, 7], rtol=1e-14)


@pytest.mark.parametrize("name", ["maxmin", "groupsort:4"])
def test_sorting_of_known_order_is_linear(name: str) -> None:
    rng = np.random.default_rng(1)
    w, bias, last = rng.normal(size=(4, 2)), np.array([9.0, 6.0, 3.0, 0.0]), rng.normal(size=(1, 4))
    net = PlainNet.mlp([w, last], [bias, np.zeros(1)], name)
    box = Box((-0.1, -0.1), (0.1, 0.1))
    low, high = preactivation_bounds(net, box)[-1]
    centre, reach = float(last[0] @ bias), 0.1 * np.abs(last @ w).sum()
    np.testing.assert_allclose([low[0], high[0]], [centre - reach, centre + reach], rtol=1e-12)
    slopes = local_slopes(net, box)[0]
    expected = (-1.0, 1.0) if name == "groupsort:4" else (1.0, 1.0)
    assert set(slopes[0]) == {expected[0]} and set(slopes[1]) == {expected[1]}


def test_slopes_of_groups_follow_the_side() -> None:
    w, bias = np.eye(4), np.array([3.0, 0.0, 0.0, 3.0])
    maxmin = PlainNet.mlp([w, np.ones((1, 4))], [bias, np.zeros(1)], "maxmin")
    a, b = local_slopes(maxmin, Box((-1.0,) * 4, (1.0,) * 4))[0]
    assert a.tolist() == [1, -1] and b.tolist() == [1, -1]
    house = Activation("householder", 2.0, np.array([[0.6, 0.8], [0.6, -0.8]]))
    net = PlainNet.mlp([w, np.ones((1, 4))], [bias, np.zeros(1)], house)
    a, b = local_slopes(net, Box((-1.0,) * 4, (1.0,) * 4))[0]
    assert a.tolist() == [1, -1] and b.tolist() == [1, -1]
    a, b = local_slopes(net, Box((-9.0,) * 4, (9.0,) * 4))[0]
    assert a.tolist() == [-1, -1] and b.tolist() == [1, 1]


def test_nested_boxes_have_nested_slopes(table_net: PlainNet) -> None:
    wider = None
    for radius in (10.0, 1.0, 0.3, 0.1, 0.01, 0.0):
        slopes = local_slopes(table_net, Box((-radius,) * 4, (radius,) * 4))
        for (a, b), outer in zip(slopes, wider or slopes, strict=True):
            assert (outer[0] <= a).all() and (b <= outer[1]).all()
        wider = slopes
    assert all((a == b).all() for a, b in slopes)


@pytest.mark.parametrize(("radius", "known"), [(0.01, 0.0783), (0.1, 0.1799), (0.3, 0.527), (1, 0.612), (10, 0.6166)])
def test_local_lipsdp_of_the_table(table_net: PlainNet, radius: float, known: float) -> None:
    box = Box((-radius,) * 4, (radius,) * 4)
    certificate = lipsdp(table_net, NormPair(), box)
    assert certificate is not None and certificate.verify(table_net)
    assert certificate.bound == pytest.approx(known, abs=2e-4)
    if radius < 1:  # what holds on a box need not hold on a larger one
        assert not replace(certificate, region=Box((-2 * radius,) * 4, (2 * radius,) * 4)).verify(table_net)


def test_signs_cut_the_range_or_are_refuted() -> None:
    form = scalar_form(PlainNet.mlp([np.eye(2), np.ones((1, 2))], [np.array([0.0, 5.0]), np.zeros(1)], "relu"))
    box = Box((-1.0, -1.0), (1.0, 1.0))
    low, high = relaxed(form, box, {(0, 0): -1}).ranges[0]
    assert low[0] <= -1 and high[0] == 0 and high[1] >= 6
    with pytest.raises(Infeasible):
        relaxed(form, box, {(0, 1): -1})


def test_regions_must_fit() -> None:
    net = PlainNet.mlp([np.eye(2), np.ones((1, 2))], [np.zeros(2), np.zeros(1)], "relu")
    with pytest.raises(UserError, match="3 dimensions.*2 inputs"):
        preactivation_bounds(net, Box((0.0,) * 3, (1.0,) * 3))
    with pytest.raises(UserError, match="finite"):
        local_slopes(net, Box((0.0, -np.inf), (1.0, np.inf)))


def test_huge_weights_give_infinite_bounds_not_wrong_ones() -> None:
    net = PlainNet.mlp([np.full((4, 2), 1e200), np.full((1, 4), 1e200)], [np.zeros(4), np.zeros(1)], "tanh")
    deep = PlainNet.mlp([np.full((4, 2), 1e200)] + [np.full((4, 4), 1e200)], [np.zeros(4)] * 2, "relu")
    box = Box((-1.0, -1.0), (1.0, 1.0))
    low, high = preactivation_bounds(net, box)[-1]
    assert low[0] <= -4e200 and high[0] >= 4e200
    low, high = preactivation_bounds(deep, box)[-1]
    assert (high == np.inf).all() and not np.isnan(low).any()
