"""The all-active bound: exact for nonnegative weights, sound for free input and output signs, refused elsewhere."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.certify.all_active import all_active_certificate, applies, gain_bounds, parts
from lipctrl.certify.bracket import certify
from lipctrl.certify.lower import lower_bound
from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

NORMS = [NormPair(a, b) for a in ("l2", "linf") for b in ("l2", "linf")]  # type: ignore[arg-type]


def random_net(seed: int, *, signed: bool, activation: str = "relu") -> PlainNet:
    """Two hidden layers over two steps with skips from the input everywhere; hidden weights nonnegative."""
    r = np.random.default_rng(seed)
    n, h, m = 3, 4, 2

    def weights(rows: int, columns: int, free: bool) -> np.ndarray:
        w = r.normal(size=(rows, columns))
        return w if free and signed else np.abs(w)

    blocks = (
        {0: weights(h, n, True)},
        {0: weights(h, n, True), 1: weights(h, h, False)},
        {1: weights(h, h, False), 2: weights(h, h, False)},
        {0: weights(m, n, True), 2: weights(m, h, True), 3: weights(m, h, True)},
    )
    activations = tuple(Activation.parse(activation) for _ in range(3))
    return PlainNet(blocks, tuple(r.normal(size=len(b[min(b)])) for b in blocks), activations)


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_nonnegative_networks_attain_the_bound_where_all_units_are_active(norm: NormPair) -> None:
    net = random_net(0, signed=False)
    far = np.full(3, 1e6)
    J = net.jacobian(far)
    exact = {
        ("l2", "l2"): np.linalg.norm(J, 2),
        ("linf", "linf"): np.abs(J).sum(1).max(),
        ("l2", "linf"): np.linalg.norm(J, axis=1).max(),
        ("linf", "l2"): np.linalg.norm(J.sum(1)),
    }[norm.input, norm.output]
    found = all_active_certificate(net, norm)
    assert found is not None and exact <= found.bound <= exact * (1 + 1e-9) and found.verify(net)


@pytest.mark.parametrize("activation", ["relu", "softplus", "tanh", "sigmoid"])
@pytest.mark.parametrize("seed", range(4))
def test_no_witness_exceeds_the_bound_with_free_signs_at_the_ends(seed: int, activation: str) -> None:
    net = random_net(seed, signed=True, activation=activation)
    scaled = NormPair(input_scale=(0.5, 2.0, 1.0), output_scale=(3.0, 0.2))
    for norm in (*NORMS, scaled):
        found = all_active_certificate(net, norm)
        assert found is not None and found.verify(net)
        assert lower_bound(net, norm, seed=seed).bound <= found.bound


def test_the_jacobian_lies_between_the_parts() -> None:
    net = random_net(3, signed=True)
    F, P, M = (part.mid for part in parts(net, NormPair()))
    J = net.jacobian(np.random.default_rng(0).normal(size=(5000, 3)) * 3)
    assert (J <= F + P + 1e-12).all() and (J >= F - M - 1e-12).all()


def test_the_smaller_of_the_two_bounds_is_taken() -> None:
    for seed in range(20):
        net = random_net(seed, signed=True)
        F, P, M = (part.mid for part in parts(net, NormPair()))
        first = np.linalg.norm(np.maximum(np.abs(F + P), np.abs(F - M)), 2)
        split = np.linalg.norm(F + (P - M) / 2, 2) + np.linalg.norm((P + M) / 2, 2)
        found = all_active_certificate(net, NormPair())
        assert found is not None and found.bound == pytest.approx(min(first, split), rel=1e-9)


def test_other_networks_are_left_to_other_methods() -> None:
    net = random_net(1, signed=True)
    negative = replace(net, blocks=(*net.blocks[:1], {**net.blocks[1], 1: -net.blocks[1][1]}, *net.blocks[2:]))
    assert not applies(negative) and all_active_certificate(negative, NormPair()) is None
    assert not applies(replace(net, activations=(Activation.parse("abs"),) * 3))
    maxmin = PlainNet.mlp([np.ones((4, 2)), np.ones((1, 4))], [np.zeros(4), np.zeros(1)], "maxmin")
    assert not applies(maxmin)


def test_it_is_among_the_methods_and_changed_weights_do_not_verify() -> None:
    net = random_net(2, signed=False)
    found = certify(net, method="all-active").upper
    assert found.method == "all-active" and certify(net).upper.bound <= found.bound
    larger = replace(net, blocks=({0: net.blocks[0][0] * 1.001}, *net.blocks[1:]))
    assert not found.verify(larger)
    assert not replace(found, weights_sha256=larger.sha256()).verify(larger)


@pytest.mark.parametrize("seed", range(4))
def test_gains_are_bounded_entrywise_and_attained_by_nonnegative_networks(seed: int) -> None:
    net = random_net(seed, signed=True)
    low, high = gain_bounds(net)
    jacobians = net.jacobian(np.random.default_rng(seed).normal(scale=5, size=(2000, 3)))
    assert (low <= jacobians.min(0)).all() and (jacobians.max(0) <= high).all() and (low < high).all()
    net = random_net(seed, signed=False)
    np.testing.assert_allclose(gain_bounds(net)[1], net.jacobian(np.full(3, 1e6)), rtol=1e-12)
    with pytest.raises(UserError, match="nonnegative"):
        gain_bounds(
            PlainNet.mlp(
                [-np.ones((2, 2)), -np.ones((2, 2)), np.ones((1, 2))], [np.zeros(2)] * 2 + [np.zeros(1)], "relu"
            )
        )
