"""Witnesses against constants known in closed form, against enumeration, and against every proved bound."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.lower import lower_bound, witness
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

PAIRS: list[tuple[Norm, Norm]] = [("l2", "l2"), ("linf", "linf"), ("l2", "linf"), ("linf", "l2")]
Array = NDArray[np.float64]


def random_net(seed: int, widths: tuple[int, ...] = (2, 5, 4, 2), activation: str = "relu") -> PlainNet:
    r = np.random.default_rng(seed)
    weights = [r.normal(size=(m, n)) for n, m in zip(widths[:-1], widths[1:], strict=True)]
    return PlainNet.mlp(weights, [r.normal(size=m) for m in widths[1:]], activation)


@pytest.mark.parametrize("seed", range(12))
def test_nonnegative_relu_networks_are_found_exactly(seed: int) -> None:
    r = np.random.default_rng(seed)
    widths = (3, 8, 6, 2)
    weights = [r.random((m, n)) for n, m in zip(widths[:-1], widths[1:], strict=True)]
    net = PlainNet.mlp(weights, [r.normal(size=m) for m in widths[1:]], "relu")
    for norm, order in (("l2", 2), ("linf", np.inf)):
        exact = float(np.linalg.norm(weights[2] @ weights[1] @ weights[0], order))
        found = lower_bound(net, NormPair(norm, norm)).bound  # type: ignore[arg-type]
        assert exact * (1 - 1e-9) <= found <= exact


def test_absolute_value_and_linear_networks() -> None:
    absolute = PlainNet.mlp([[[1.0], [-1.0]], [[1.0, 1.0]]], [[0.0, 0.0], [0.0]], "relu")
    assert lower_bound(absolute).bound == pytest.approx(1.0, rel=1e-9)
    matrix = np.random.default_rng(0).normal(size=(3, 4))
    linear = PlainNet(({0: matrix},), (np.zeros(3),), ())
    for pair in PAIRS:
        signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
        exact = {
            ("l2", "l2"): np.linalg.norm(matrix, 2),
            ("linf", "linf"): np.abs(matrix).sum(1).max(),
            ("l2", "linf"): np.linalg.norm(matrix, axis=1).max(),
            ("linf", "l2"): np.linalg.norm(signs @ matrix.T, axis=1).max(),
        }[pair]
        found = lower_bound(linear, NormPair(*pair)).bound
        assert exact * (1 - 1e-9) <= found <= exact


@pytest.mark.parametrize("activation", ["tanh", "softplus", "gelu", "sigmoid"])
def test_ascent_beats_sampling_for_smooth_networks(activation: str) -> None:
    net = random_net(1, (3, 10, 10, 2), activation)
    x = np.random.default_rng(0).normal(size=(4000, 3)) * 10 ** np.random.default_rng(1).uniform(-1, 1, (4000, 1))
    sampled = np.linalg.norm(net.jacobian(x), 2, axis=(1, 2)).max()
    found = lower_bound(net)
    assert found.verify(net) and found.bound >= sampled and found.bound <= upper_bounds(net)[0].bound


def test_a_witness_of_other_weights_does_not_verify() -> None:
    net = random_net(2)
    found = lower_bound(net)
    shrunk = replace(net, blocks=(*net.blocks[:-1], {2: 0.99 * net.blocks[-1][2]}))
    assert found.verify(net) and not found.verify(shrunk)


def exact_gains(net: PlainNet, x: Array, d: Array) -> list[Fraction]:
    """Entries of J(x) d of a relu network in rational arithmetic; at a kink the slope is 0."""
    values, moves = [[Fraction(v) for v in x.tolist()]], [[Fraction(v) for v in d.tolist()]]
    for k, row in enumerate(net.blocks):
        z, dz = [Fraction(b) for b in net.biases[k].tolist()], [Fraction(0)] * len(net.biases[k])
        for j, block in row.items():
            for i, weights in enumerate(block.tolist()):
                z[i] += sum(Fraction(w) * v for w, v in zip(weights, values[j], strict=True))
                dz[i] += sum(Fraction(w) * v for w, v in zip(weights, moves[j], strict=True))
        last = k == len(net.activations)
        values.append(z if last else [max(v, Fraction(0)) for v in z])
        moves.append(dz if last else [m if v > 0 else Fraction(0) for m, v in zip(dz, z, strict=True)])
    return moves[-1]


def test_witnesses_are_below_rational_arithmetic() -> None:
    """Without any tolerance, also where an argument is exactly 0, or within rounding of it."""
    rng, close = np.random.default_rng(0), 0
    for k in range(300):
        net = random_net(k, (2, 4, 3, 2))
        x, d = rng.normal(size=2) * 10.0 ** rng.integers(-2, 5), rng.normal(size=2)
        if k % 2:  # move the first neuron's kink to x, up to the rounding of w x
            b = net.biases[0].copy()
            b[0] = -(net.blocks[0][0][0] @ x)
            net = replace(net, biases=(b, *net.biases[1:]))
        found = witness(net, NormPair(), x, d, "test")
        square = sum(g * g for g in exact_gains(net, x, d)) / sum(Fraction(v) ** 2 for v in d.tolist())
        assert Fraction(found.bound) ** 2 <= square and found.verify(net)
        close += bool(Fraction(found.bound) ** 2 >= square * (1 - Fraction(1, 10**10)))
    assert 100 < close < 300


def test_saturated_outputs_attain_nothing() -> None:
    net = random_net(4, (2, 6, 2))
    y = net(np.ones(2))
    low, high = y - np.array([1.0, -0.1]), y + np.array([1.0, 0.3])  # the second output is below its lower limit
    limited = replace(net, low=low, high=high)
    d = np.array([0.3, -1.0])
    j = net.jacobian(np.ones(2))
    found = witness(limited, NormPair(), np.ones(2), d, "test").bound
    assert found == pytest.approx(abs(j[0] @ d) / np.linalg.norm(d), rel=1e-10)
    assert found < witness(net, NormPair(), np.ones(2), d, "test").bound
    assert limited.high is not None
    assert lower_bound(limited).verify(limited)
