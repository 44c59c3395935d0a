"""Activation patterns: enumeration against sampling and proofs, the climb against enumeration."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.certificate import Box
from lipctrl.certify.lower import lower_bound
from lipctrl.certify.patterns import exact_constant, regions
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

PAIRS: list[tuple[Norm, Norm]] = [("l2", "l2"), ("linf", "linf"), ("l2", "linf"), ("linf", "l2")]


def random_net(seed: int, widths: tuple[int, ...] = (2, 5, 4, 2), activation: str = "relu") -> PlainNet:
    r = np.random.default_rng(seed)
    weights = [r.normal(size=(m, n)) for n, m in zip(widths[:-1], widths[1:], strict=True)]
    return PlainNet.mlp(weights, [r.normal(size=m) for m in widths[1:]], activation)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu:0.2", "abs"])
@pytest.mark.parametrize("pair", PAIRS)
def test_enumeration_is_between_dense_sampling_and_the_proofs(activation: str, pair: tuple[Norm, Norm]) -> None:
    norm = NormPair(*pair, input_scale=(0.5, 2.0))
    for seed in range(2):
        net = random_net(seed, (2, 4, 3, 2), activation)
        exact = exact_constant(net, norm)
        x = np.random.default_rng(seed).normal(size=(20_000, 2)) * 10 ** np.random.default_rng(1).uniform(
            -1, 3, (20_000, 1)
        )
        j = net.jacobian(x)
        d = np.random.default_rng(2).normal(size=(20_000, 2))
        sampled = (norm.of_output((j @ d[..., None])[..., 0]) / norm.of_input(d)).max()
        assert sampled <= exact.bound * (1 + 1e-9) and exact.verify(net)
        assert all(exact.bound <= c.bound for c in upper_bounds(net, norm))
        assert lower_bound(net, norm).bound <= exact.bound * (1 + 1e-12)


def test_the_climb_reaches_the_exact_constant_where_sampling_does_not() -> None:
    reached, sampled = 0, 0
    for seed in range(6):
        net = random_net(seed, (3, 6, 4, 1))
        exact = exact_constant(net).bound
        found = lower_bound(net)
        reached += found.bound >= exact * (1 - 1e-9)
        x = np.random.default_rng(seed).normal(size=(100, 3)) * 3
        sampled += np.linalg.norm(net.jacobian(x), 2, axis=(1, 2)).max() >= exact * (1 - 1e-9)
        assert found.bound <= exact * (1 + 1e-12)
    assert reached >= 5 and reached > sampled


def test_regions_of_a_line_are_counted() -> None:
    """Three hinges on a line make four regions; two layers of one neuron each make at most three."""
    net = PlainNet.mlp([np.ones((3, 1)), np.ones((1, 3))], [[0.0, 1.0, 2.0], [0.0]], "relu")
    assert len(list(regions(net))) == 4
    assert len(list(regions(net, Box((-1.5,), (5.0,))))) == 3


def test_regions_restrict_the_constant() -> None:
    net = random_net(3, (2, 6, 1))
    inner, outer = Box((-0.1, -0.1), (0.1, 0.1)), Box((-5.0, -5.0), (5.0, 5.0))
    small, large = exact_constant(net, region=inner), exact_constant(net, region=outer)
    assert inner.contains(np.array(small.x)) and small.bound <= large.bound <= exact_constant(net).bound * (1 + 1e-12)
    assert lower_bound(net, region=inner).bound <= small.bound * (1 + 1e-12)


def test_scaling_and_duplication() -> None:
    net = random_net(5, (2, 5, 1))
    exact = exact_constant(net).bound
    scaled = replace(net, blocks=({0: 7 * net.blocks[0][0]}, net.blocks[1]))
    assert exact_constant(scaled).bound == pytest.approx(7 * exact, rel=1e-9)
    w, v, b = net.blocks[0][0], net.blocks[1][1], net.biases[0]
    split = np.hstack([v[:, :1] / 2, v[:, :1] / 2, v[:, 1:]])
    twin = PlainNet.mlp([np.vstack([w[:1], w]), split], [np.concatenate([b[:1], b]), net.biases[1]], "relu")
    assert exact_constant(twin).bound == pytest.approx(exact, rel=1e-9)


def test_what_cannot_be_enumerated() -> None:
    with pytest.raises(UserError, match="at most 24 neurons"):
        exact_constant(random_net(0, (2, 20, 20, 1)))
    limited = replace(random_net(0, (2, 4, 1)), low=-np.ones(1), high=np.ones(1))
    with pytest.raises(UserError, match="limits"):
        exact_constant(limited)
    with pytest.raises(UserError, match="relu"):
        exact_constant(random_net(0, activation="tanh"))
