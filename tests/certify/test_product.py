"""Products of norms against closed forms, and proofs that must fail."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.product import lipschitz_constant, product_certificate
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

Array = NDArray[np.float64]
PAIRS: list[tuple[Norm, Norm]] = [("l2", "l2"), ("l2", "linf"), ("linf", "l2"), ("linf", "linf")]


def network(rng: np.random.Generator, activation: str = "relu") -> PlainNet:
    sizes = (3, 6, 4, 2)
    weights = [rng.normal(size=(b, a)) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def skip_network(rng: np.random.Generator) -> PlainNet:
    first, skip, last = rng.normal(size=(5, 3)), rng.normal(size=(2, 3)), rng.normal(size=(2, 5))
    return PlainNet(({0: first}, {0: skip, 1: last}), (np.zeros(5), np.zeros(2)), (Activation.parse("relu"),))


def test_mlp_in_l2_and_linf() -> None:
    net = network(np.random.default_rng(0))
    w = [net.blocks[k][k] for k in range(3)]
    for norm, order in (("l2", 2), ("linf", np.inf)):
        certificate = product_certificate(net, NormPair(norm, norm))  # type: ignore[arg-type]
        own = np.prod([np.linalg.norm(a, order) for a in w])
        other = np.prod([np.linalg.norm(a, 2) for a in w]) * np.sqrt(3)
        exact = own if norm == "l2" else min(own, other)
        assert certificate is not None and certificate.verify(net)
        assert exact <= certificate.bound <= exact * (1 + 1e-11)


def test_slopes_and_skips_enter() -> None:
    rng = np.random.default_rng(1)
    net = skip_network(rng)
    norms = [np.linalg.norm(a, 2) for a in (net.blocks[0][0], net.blocks[1][0], net.blocks[1][1])]
    certificate = product_certificate(net, NormPair())
    assert certificate is not None and certificate.verify(net)
    assert certificate.bound == pytest.approx(norms[1] + norms[2] * norms[0], rel=1e-11)
    quarter = product_certificate(replace(net, activations=(Activation.parse("sigmoid"),)), NormPair())
    assert quarter is not None
    assert quarter.bound == pytest.approx(norms[1] + norms[2] * norms[0] / 4, rel=1e-11)


def test_scales_are_a_change_of_units() -> None:
    net = network(np.random.default_rng(2))
    norm = NormPair("l2", "l2", (0.5, 2.0, 10.0), (0.1, 3.0))
    scaled = product_certificate(net, norm)
    folded = replace(
        net,
        blocks=(
            {0: net.blocks[0][0] * norm.input_scale},
            net.blocks[1],
            {2: net.blocks[2][2] / np.array(norm.output_scale)[:, None]},
        ),
    )
    plain = product_certificate(folded, NormPair())
    assert scaled is not None and plain is not None and scaled.verify(net)
    assert scaled.bound == pytest.approx(plain.bound, rel=1e-12)


@pytest.mark.parametrize("pair", PAIRS)
def test_no_pair_of_points_exceeds_the_bound(pair: tuple[Norm, Norm]) -> None:
    rng = np.random.default_rng(3)
    for activation in ("relu", "abs", "hardswish", "maxmin"):
        net = network(rng, activation)
        norm = NormPair(*pair, (0.5, 2.0, 10.0), (0.1, 3.0))
        certificate = product_certificate(net, norm)
        assert certificate is not None and certificate.verify(net)
        x, y = rng.normal(size=(2, 2000, 3)) * 5
        assert (norm.of_output(net(x) - net(y)) <= certificate.bound * norm.of_input(x - y)).all()


def test_diagonal_networks_are_exact_for_every_pair() -> None:
    """f(x) = 2 x on n inputs: constants 2, 2 sqrt(n) from l_inf to l2."""
    eye = np.eye(4)
    net = PlainNet.mlp([2 * eye, eye], [np.zeros(4), np.zeros(4)], "identity")
    for pair, exact in zip(PAIRS, (2.0, 2.0, 4.0, 2.0), strict=True):
        certificate = product_certificate(net, NormPair(*pair))
        assert certificate is not None and certificate.bound == pytest.approx(exact, rel=1e-11)


def test_householder_constants() -> None:
    unit = Activation("householder", 2.0, np.array([[0.6, 0.8]]))
    assert lipschitz_constant(unit, "l2") == pytest.approx(1.0, abs=1e-12)
    assert lipschitz_constant(unit, "linf") == pytest.approx(
        np.abs(np.eye(2) - 2 * np.outer([0.6, 0.8], [0.6, 0.8])).sum(1).max()
    )
    longer = Activation("householder", 2.0, np.array([[1.2, 1.6]]))  # |v|^2 = 4: reflection eigenvalue 1 - 8
    assert lipschitz_constant(longer, "l2") == pytest.approx(7.0)


def test_forged_norms_are_refused() -> None:
    net = skip_network(np.random.default_rng(4))
    good = product_certificate(net, NormPair())
    assert good is not None and good.verify(net)
    norms = dict(good.proof["norms"])
    forgeries = [
        {**norms, "1.0": norms["1.0"] * 0.999},
        {**norms, "2.0": -norms["2.0"]},  # would cancel against the other path
        {**norms, "1.0": float("nan")},
        {k: v for k, v in norms.items() if k != "2.0"},
    ]
    for forged in forgeries:
        assert not replace(good, bound=good.bound * 10, proof={**good.proof, "norms": forged}).verify(net)
    assert not replace(good, bound=good.bound * 0.9999).verify(net)
    assert not replace(good, proof={**good.proof, "through": "l1"}).verify(net)


def test_networks_of_extreme_size() -> None:
    zero = PlainNet.mlp([np.zeros((2, 2)), np.zeros((1, 2))], [np.zeros(2), np.zeros(1)], "relu")
    certificate = product_certificate(zero, NormPair())
    assert certificate is not None and certificate.verify(zero) and certificate.bound < 1e-100
    weights = [np.eye(2) * scale for scale in (1e-110, 1e-110, 1e-110, 1e200, 1e200)]  # exactly 1e70
    tiny = PlainNet.mlp(weights, [np.zeros(2)] * 5, "identity")
    certificate = product_certificate(tiny, NormPair())
    assert certificate is not None and certificate.bound >= 1e70 and certificate.verify(tiny)
    huge = PlainNet.mlp([np.eye(2) * 1e300, np.eye(2) * 1e300], [np.zeros(2)] * 2, "relu")
    assert product_certificate(huge, NormPair()) is None
