"""Jacobian bounds: sampled Jacobians inside without tolerance, an independent code's table, closed forms."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.jacobian import gains, jacobian_certificate
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

PAIRS = [NormPair(p, q) for p in ("l2", "linf") for q in ("l2", "linf")]


def box_of(radius: float, size: int) -> Box:
    return Box((-radius,) * size, (radius,) * size)


def bound(net: PlainNet, norm: NormPair, box: Box) -> float:
    certificate = jacobian_certificate(net, norm, box)
    assert certificate is not None
    return certificate.bound


def test_sampled_jacobians_are_inside(cases: Callable) -> None:
    for case in cases(900):
        low, high = gains(case.net, case.box)
        jacobians = case.net.jacobian(case.points)
        rounding = 1e-13 * (1 + np.abs(jacobians).max()) if case.is_point else 0.0
        assert (jacobians >= low - rounding).all() and (jacobians <= high + rounding).all()


def test_sampled_gains_are_below_the_bound_in_every_norm(cases: Callable) -> None:
    rng = np.random.default_rng(0)
    for case in cases(150):
        jacobians = case.net.jacobian(case.points)
        scale = tuple(float(s) for s in rng.uniform(0.1, 5, size=case.net.input_size))
        out = tuple(float(s) for s in rng.uniform(0.1, 5, size=case.net.output_size))
        for norm in [*PAIRS, *(replace(pair, input_scale=scale, output_scale=out) for pair in PAIRS)]:
            d = rng.normal(size=(len(jacobians), case.net.input_size))
            d = np.sign(d) * np.array(norm.input_scale or 1.0) if norm.input == "linf" else d
            sampled = norm.of_output(np.einsum("bij,bj->bi", jacobians, d)) / norm.of_input(d)
            assert sampled.max() <= bound(case.net, norm, case.box)


def test_a_point_gives_the_jacobian_there(cases: Callable) -> None:
    for case in cases(400):
        x = case.points[0]
        point, jacobian = Box(tuple(x.tolist()), tuple(x.tolist())), case.net.jacobian(x)
        size = max(1.0, float(np.prod([np.abs(b).sum() for row in case.net.blocks for b in row.values()])))
        for norm, exact in (
            (NormPair("l2", "l2"), np.linalg.norm(jacobian, 2)),
            (NormPair("linf", "linf"), np.abs(jacobian).sum(1).max()),
        ):
            assert (
                exact * (1 - 1e-12) - 1e-12 * size <= bound(case.net, norm, point) <= exact + 3e-12 * max(size, exact)
            )


# Radius, largest width of an entry, l_inf bound from entries, Frobenius bound from entries: auto_LiRPA 0.7.1.
TABLE = [(0.01, 0.0164, 0.1539, 0.1028), (0.1, 0.2017, 0.4538, 0.3262), (1, 2.4577, 4.5551, 3.1836)]


@pytest.mark.parametrize(("radius", "gap", "rows", "frobenius"), TABLE)
def test_bounds_of_the_table(table_net: PlainNet, radius: float, gap: float, rows: float, frobenius: float) -> None:
    low, high = gains(table_net, box_of(radius, 4))
    largest = np.maximum(np.abs(low), np.abs(high))
    assert (high - low).max() == pytest.approx(gap, abs=1e-4)
    assert largest.sum(1).max() == pytest.approx(rows, abs=1e-4)
    assert np.linalg.norm(largest) == pytest.approx(frobenius, abs=1e-4)
    assert bound(table_net, NormPair("linf", "linf"), box_of(radius, 4)) <= rows + 1e-4  # |J| substituted backwards
    assert bound(table_net, NormPair(), box_of(radius, 4)) <= frobenius + 1e-4


@pytest.mark.parametrize("norm", PAIRS, ids=str)
def test_nested_boxes_and_the_global_bound(table_net: PlainNet, norm: NormPair) -> None:
    everywhere = upper_bounds(table_net, norm, method="product")[0].bound
    smallest = 0.0
    for radius in (0.0, 0.001, 0.01, 0.1, 0.3, 1.0, 10.0):
        local = min(bound(table_net, norm, box_of(radius, 4)), everywhere)
        assert smallest * (1 - 1e-9) <= local <= everywhere
        smallest = local


def test_linear_networks_are_exact() -> None:
    rng = np.random.default_rng(0)
    w = [rng.normal(size=s) for s in ((5, 3), (4, 5), (2, 4))]
    product = w[2] @ w[1] @ w[0]
    net = PlainNet.mlp(w, [rng.normal(size=len(m)) for m in w], "identity")
    low, high = gains(net, box_of(3, 3))
    np.testing.assert_allclose(low, product, rtol=1e-12)
    np.testing.assert_allclose(high, product, rtol=1e-12)
    scaled = NormPair("linf", "l2", (2.0, 3.0, 4.0), (0.5, 0.25))
    rows = (np.abs(product) * [2, 3, 4]).sum(1) / [0.5, 0.25]
    assert bound(net, scaled, box_of(3, 3)) == pytest.approx(np.linalg.norm(rows), rel=1e-11)
    spectral = np.linalg.norm(product * [2, 3, 4] / [[0.5], [0.25]], 2)
    assert bound(net, replace(scaled, input="l2"), box_of(3, 3)) == pytest.approx(spectral, rel=1e-11)


def test_nonnegative_relu_networks_are_exact() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):  # all neurons are active at the upper corner: the constant is the norm of the product
        w = [rng.random(s) for s in ((6, 3), (5, 6), (2, 5))]
        net = PlainNet.mlp(w, [rng.normal(size=len(m)) for m in w], "relu")
        product = w[2] @ w[1] @ w[0]
        low, high = gains(net, box_of(20, 3))
        assert (low >= 0).all()  # proved, not up to rounding: the outputs do not fall
        np.testing.assert_allclose(high, product, rtol=1e-12)
        for norm, exact in ((NormPair(), np.linalg.norm(product, 2)), (PAIRS[3], product.sum(1).max())):
            assert exact <= bound(net, norm, box_of(20, 3)) <= exact * (1 + 1e-9)


def test_signs_of_gains_prove_monotonicity() -> None:
    weights = [np.array([[1.0, -2.0], [3.0, -0.5]]), np.array([[0.5, 2.0]])]
    net = PlainNet.mlp(weights, [np.zeros(2), np.zeros(1)], "tanh")
    low, high = gains(net, box_of(1, 2))
    assert low[0, 0] > 0 and high[0, 1] < 0


def test_limits_count() -> None:
    identity = PlainNet.mlp([np.eye(3)], [np.array([0.0, 5.0, 50.0])], ())
    net = replace(identity, low=np.full(3, -10.0), high=np.full(3, 6.0))
    low, high = gains(net, box_of(2, 3))
    np.testing.assert_allclose(np.diag(low), [1, 0, 0], atol=1e-12)  # inside, may saturate, always does
    np.testing.assert_allclose(np.diag(high), [1, 1, 0], atol=1e-12)
    low, high = gains(replace(net, low=np.full(3, 0.0), high=None), box_of(2, 3))
    np.testing.assert_allclose(np.diag(low), [0, 1, 1], atol=1e-12)


@pytest.mark.parametrize("norm", PAIRS, ids=str)
def test_certificates_are_checked(table_net: PlainNet, norm: NormPair, tmp_path: Path) -> None:
    certificate = jacobian_certificate(table_net, norm, box_of(0.1, 4))
    assert certificate is not None and certificate.verify(table_net)
    certificate.save(tmp_path / "c.json")
    assert Certificate.load(tmp_path / "c.json").verify(table_net)
    assert not replace(certificate, bound=certificate.bound * (1 - 1e-9)).verify(table_net)
    assert not replace(certificate, region=box_of(0.2, 4)).verify(table_net)
    assert not replace(certificate, region=None).verify(table_net)
    assert not certificate.verify(table_net.rounded_to(np.float16))


def test_scales_must_fit(table_net: PlainNet) -> None:
    with pytest.raises(UserError, match="lengths 4 and 2; found 3 and 2"):
        jacobian_certificate(table_net, NormPair(input_scale=(1.0, 1.0, 1.0)), box_of(1, 4))


@pytest.mark.parametrize("norm", PAIRS, ids=str)
def test_overflow_gives_no_certificate(norm: NormPair) -> None:
    weights = [np.full((4, 2), 1e200), np.full((4, 4), 1e200), np.full((2, 4), 1.0)]
    net = PlainNet.mlp(weights, [np.zeros(4), np.zeros(4), np.zeros(2)], "relu")
    assert jacobian_certificate(net, norm, box_of(1, 2)) is None
    linear = PlainNet.mlp([np.full((2, 2), 1e300)], [np.zeros(2)], ())
    certificate = jacobian_certificate(linear, norm, box_of(1, 2))
    assert certificate is None or certificate.bound >= (1e300 if norm.input == "l2" else 2e300)
