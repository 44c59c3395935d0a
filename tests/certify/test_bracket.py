"""Brackets: the smallest proved bound, the largest witness, and soundness over many small networks."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.bracket import certify, output_net, upper_bounds
from lipctrl.certify.certificate import Box, Witness
from lipctrl.certify.lower import lower_bound, witness
from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
PAIRS = (NormPair(), NormPair("l2", "linf"), NormPair("linf", "l2"), NormPair("linf", "linf"))


def network(rng: np.random.Generator, sizes: tuple[int, ...], activation: str | Activation = "relu") -> PlainNet:
    weights = [rng.normal(size=(b, a)) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def random_network(rng: np.random.Generator) -> PlainNet:
    """A small network of any supported architecture, with clipping and skips at times."""
    name = str(
        rng.choice(
            ["relu", "tanh", "gelu", "hardswish", "abs", "leaky_relu:0.2", "maxmin", "groupsort:3", "householder"]
        )
    )
    width = 6
    activation: str | Activation = name
    if name == "householder":
        v = rng.normal(size=(3, 2))
        activation = Activation("householder", 2.0, v / np.linalg.norm(v, axis=1, keepdims=True))
    net = network(
        rng, (int(rng.integers(1, 4)), *[width] * int(rng.integers(1, 3)), int(rng.integers(1, 3))), activation
    )
    if rng.random() < 0.3:
        last = net.blocks[-1] | {0: rng.normal(size=(net.output_size, net.input_size))}
        net = replace(net, blocks=(*net.blocks[:-1], last))
    if rng.random() < 0.3:
        net = replace(net, low=-np.ones(net.output_size), high=np.ones(net.output_size))
    return net


def test_no_pair_of_points_ever_exceeds_a_proved_bound() -> None:
    """Only the rounding of the two evaluations, far below the distance of the points, is allowed for."""
    rng = np.random.default_rng(0)
    for k in range(160):
        net, norm = random_network(rng), PAIRS[k % 4]
        x = rng.normal(size=(300, net.input_size)) * 10.0 ** rng.uniform(-1, 1, size=(300, 1))
        y = x + rng.normal(size=x.shape) * 10.0 ** rng.uniform(-3, 1, size=(300, 1))
        slopes = norm.of_output(net(x) - net(y)) / norm.of_input(x - y)
        for certificate in upper_bounds(net, norm, method="auto"):
            assert slopes.max() <= certificate.bound * (1 + 1e-11)


def sampled_witness(net: PlainNet, norm: NormPair, x: Array, rng: np.random.Generator) -> Witness:
    """The best of the Jacobians at some inputs in their leading and in random directions."""
    jacobians = net.jacobian(x)
    directions = np.concatenate(
        [np.linalg.svd(jacobians)[2][:, :1], np.sign(jacobians), rng.normal(size=(len(x), 4, x.shape[1]))], 1
    )
    directions = np.where((directions == 0).all(-1, keepdims=True), 1.0, directions)
    gains = norm.of_output(np.einsum("kij,kdj->kdi", jacobians, directions)) / norm.of_input(directions)
    k, d = np.unravel_index(int(gains.argmax()), gains.shape)
    return witness(net, norm, x[k], directions[k, d], "sampled")


@pytest.mark.slow
def test_ten_thousand_witnesses_below_ten_thousand_bounds() -> None:
    """No tolerance: both sides are proved.

    Each twentieth case runs the search for witnesses, each second LipSDP, each hundredth everything.
    """
    rng = np.random.default_rng(7)
    for k in range(10_000):
        net, norm = random_network(rng), PAIRS[k % 4]
        region = None if k % 3 else Box((-1.0,) * net.input_size, (1.0,) * net.input_size)
        inputs = rng.uniform(-1, 1, size=(20, net.input_size))
        best = lower_bound(net, norm, region=region, seed=k) if k % 20 == 0 else sampled_witness(net, norm, inputs, rng)
        assert best.verify(net)
        if k % 100 == 0:
            found = upper_bounds(net, norm, region=region)
        else:
            names = ["product", "eclipse-fast"] if region is None else ["jacobian"]
            names += [] if k % 2 else ["lipsdp-neuron" if region is None else "lipsdp-neuron-local"]
            found = [c for name in names for c in upper_bounds(net, norm, region=region, method=name)]
        assert found and all(best.bound <= c.bound for c in found)
        assert k % 10 or all(c.verify(net) for c in found)


def test_bracket_of_a_network_with_known_constant() -> None:
    """Nonnegative weights and ReLU: the constant is the norm of the product, attained where all neurons are active."""
    rng = np.random.default_rng(1)
    weights = [rng.uniform(size=(b, a)) for a, b in ((3, 6), (6, 5), (5, 2))]
    net = PlainNet.mlp(weights, [np.ones(len(w)) for w in weights], "relu")
    exact = float(np.linalg.norm(weights[2] @ weights[1] @ weights[0], 2))
    seen: list[str] = []
    bracket = certify(net, progress=seen.append)
    assert bracket.lower.bound <= exact * (1 + 1e-12) <= bracket.upper.bound * (1 + 2e-12)
    assert bracket.ratio < 1 + 1e-6
    assert bracket.upper.verify(net) and bracket.lower.verify(net)
    assert all(c.verify(net) for c in bracket.others)
    bounds = [bracket.upper.bound, *(c.bound for c in bracket.others)]
    assert bounds == sorted(bounds) and len(bounds) == 4
    assert seen == ["product", "all-active", "own", "eclipse-fast", "lipsdp-neuron"]
    assert set(bracket.seconds) == {*seen, "lower"}


def test_every_output_alone() -> None:
    rng = np.random.default_rng(2)
    net = network(rng, (3, 6, 2))
    net = replace(net, low=-np.ones(2), high=np.ones(2), output_names=("force [N]", "torque [N m]"))
    norm = NormPair(output_scale=(2.0, 5.0))
    bracket = certify(net, norm, per_output=True)
    for i, one in enumerate(bracket.outputs):
        single = output_net(net, i)
        x = rng.normal(size=(10, 3))
        np.testing.assert_allclose(single(x)[:, 0], net(x)[:, i], rtol=1e-12)
        assert one.upper.verify(single) and one.upper.output_names == net.output_names[i : i + 1]
        assert one.upper.norm.output_scale == norm.output_scale[i : i + 1]  # type: ignore[index]
        assert one.upper.bound <= bracket.upper.bound * (1 + 1e-6)


def test_a_global_bound_holds_on_a_region() -> None:
    net = network(np.random.default_rng(3), (2, 4, 1))
    region = Box((-1.0, -1.0), (1.0, 1.0))
    (certificate,) = upper_bounds(net, region=region, method="lipsdp-neuron")
    assert certificate.region is None and certificate.verify(net)


@pytest.mark.parametrize("norm", PAIRS, ids=str)
def test_local_bounds(norm: NormPair) -> None:
    """At a point the local bound is the Jacobian's norm; it grows with the box and never exceeds the global one."""
    rng = np.random.default_rng(6)
    for name in ("tanh", "maxmin"):
        net = network(rng, (2, 6, 6, 2), name)
        x, bounds = rng.normal(size=2), list[float]()
        for radius in (0.0, 0.01, 0.1, 1.0, 100.0):
            box = Box(tuple((x - radius).tolist()), tuple((x + radius).tolist()))
            bracket = certify(net, norm, region=box)
            assert bracket.upper.verify(net) and bracket.upper.region == box
            assert bracket.upper.execution_error is not None and 0 < bracket.upper.execution_error < 1e-8
            y, z = rng.uniform(box.low, box.high, size=(2, 200, 2))
            slack = bracket.upper.execution_error
            assert (norm.of_output(net(y) - net(z)) <= bracket.upper.bound * norm.of_input(y - z) + slack).all()
            assert bracket.lower.bound <= bracket.upper.bound
            bounds.append(bracket.upper.bound)
        assert all(a <= b * (1 + 1e-5) for a, b in zip(bounds, bounds[1:], strict=False))
        assert bounds[-1] <= upper_bounds(net, norm)[0].bound * (1 + 1e-5)
        if (norm.input, norm.output) == ("l2", "l2"):
            assert bounds[0] == pytest.approx(np.linalg.norm(net.jacobian(x), 2), rel=1e-5)
        if name == "tanh":  # whose slopes depend on every input: the proof is of its own box alone
            other = Box(tuple((x - 0.2).tolist()), tuple((x + 0.2).tolist()))
            small = upper_bounds(net, norm, region=Box(tuple((x - 0.01).tolist()), tuple((x + 0.01).tolist())))[0]
            assert not replace(small, region=other).verify(net)
            assert not replace(small, region=None).verify(net)


def test_methods_by_name() -> None:
    net = network(np.random.default_rng(4), (2, 4, 1))
    for name in ("product", "eclipse-fast", "eclipse", "lipsdp-layer", "lipsdp-neuron"):
        assert [c.method for c in upper_bounds(net, method=name)] == [name]
    assert upper_bounds(net, method="sandwich") == []  # this network exported no multipliers
    with pytest.raises(UserError, match="gives no bound"):
        certify(net, method="own")
    with pytest.raises(UserError, match="needs a region"):
        upper_bounds(net, method="lipsdp-neuron-local")
    region = Box((-1.0, -1.0), (1.0, 1.0))
    for name in ("jacobian", "lipsdp-neuron-local", "branch-and-bound"):
        (certificate,) = upper_bounds(net, region=region, method=name)
        assert certificate.method == name and certificate.region == region and certificate.verify(net)
    with pytest.raises(UserError, match="unknown method 'magic'.*lipsdp-neuron"):
        upper_bounds(net, method="magic")


def test_auto_leaves_out_what_is_dominated_or_slow() -> None:
    box, seen = Box((-0.1,), (0.1,)), list[str]()
    certify(network(np.random.default_rng(8), (1, 4, 1)), region=box, progress=seen.append)
    assert seen == [
        "product",
        "all-active",
        "own",
        "eclipse-fast",
        "lipsdp-neuron",
        "jacobian",
        "lipsdp-neuron-local",
        "branch-and-bound",
    ]
    seen.clear()
    certify(network(np.random.default_rng(8), (1, 204, 1)), region=box, progress=seen.append)
    assert "branch-and-bound" not in seen and "lipsdp-neuron-local" in seen


def test_wrong_sizes() -> None:
    net = network(np.random.default_rng(5), (2, 4, 1))
    with pytest.raises(UserError, match="input_scale has 3 entries; expected 2"):
        upper_bounds(net, NormPair(input_scale=(1.0, 1.0, 1.0)))
    with pytest.raises(UserError, match="output_scale"):
        upper_bounds(net, NormPair(output_scale=(1.0, 1.0)))
    with pytest.raises(UserError, match="region has 1 entries"):
        upper_bounds(net, region=Box((0.0,), (1.0,)))


@pytest.mark.parametrize("size", [1e-140, 1e60, 1e100, 1e200])
def test_absurd_weights_give_a_proof_or_nothing(size: float) -> None:
    base = network(np.random.default_rng(9), (2, 4, 4, 1))
    net = replace(base, blocks=({0: size * base.blocks[0][0]}, {1: size * base.blocks[1][1]}, base.blocks[2]))
    for norm in (NormPair(), NormPair("linf", "linf")):
        found = upper_bounds(net, norm)
        assert all(np.isfinite(c.bound) and c.verify(net) for c in found)
        assert found if size < 1e99 else True
    if size == 1e200:
        with pytest.raises(UserError, match="gives no bound"):
            certify(net)
