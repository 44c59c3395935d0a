"""ECLipsE and its closed form against the published recursion and networks with known constants."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.eclipse import eclipse, eclipse_fast, fast_multipliers
from lipctrl.certify.lipsdp import lipsdp
from lipctrl.certify.loop_form import loop_form
from lipctrl.certify.product import product_certificate
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
RAW = NormPair()


def network(rng: np.random.Generator, sizes: tuple[int, ...], activation: str = "relu") -> PlainNet:
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def published_fast(net: PlainNet) -> float:
    """The recursion of arXiv 2404.04375 for slopes [0, 1], as printed: m = 1/2, Lambda = I / (2 m^2 lambda_max)."""
    weights = [net.blocks[k][k] for k in range(len(net.blocks))]
    x = np.eye(net.input_size)
    for w in weights[:-1]:
        p = w @ np.linalg.solve(x, w.T)
        lam = 1 / (2 * 0.25 * np.linalg.eigvalsh(p)[-1])
        x = lam * np.eye(len(w)) - 0.25 * lam**2 * p
    return float(np.sqrt(np.linalg.eigvalsh(weights[-1] @ np.linalg.solve(x, weights[-1].T))[-1]))


def test_fast_is_the_published_closed_form() -> None:
    rng = np.random.default_rng(0)
    for sizes in ((3, 8, 2), (4, 16, 16, 2), (2, 8, 6, 8, 1)):
        net = network(rng, sizes)
        certificate = eclipse_fast(net, RAW)
        assert certificate is not None and certificate.verify(net)
        # our certificate re-optimises the norm term for the same multipliers: never worse than the recursion
        assert certificate.bound <= published_fast(net) * (1 + 1e-5)
        assert certificate.bound >= published_fast(net) * 0.99


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu:0.3", "sigmoid", "gelu", "hardswish", "abs", "maxmin", "groupsort:4"]
)
def test_order_of_the_bounds(name: str) -> None:
    """LipSDP-Neuron <= ECLipsE, and LipSDP-Layer <= ECLipsE-Fast <= product: each searches a subset of the former."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        net = network(rng, (3, 8, 8, 2), name)
        found = [eclipse(net, RAW), eclipse_fast(net, RAW), lipsdp(net, RAW), lipsdp(net, RAW, mode="layer")]
        full, fast, neuron, layer, product = (c.bound for c in [*found, product_certificate(net, RAW)] if c is not None)
        assert all(c is not None and c.verify(net) for c in found)
        assert neuron <= full * (1 + 1e-6) and layer <= fast * (1 + 1e-6) and fast <= product * (1 + 1e-5)
        x = rng.normal(size=(300, 3)) * 3
        assert np.linalg.norm(net.jacobian(x), 2, axis=(1, 2)).max() <= full


def test_one_hidden_layer_of_eclipse_is_lipsdp() -> None:
    net = network(np.random.default_rng(2), (3, 10, 2), "tanh")
    full, neuron = eclipse(net, RAW), lipsdp(net, RAW)
    assert full is not None and neuron is not None
    assert full.bound == pytest.approx(neuron.bound, rel=1e-4)


def test_mixed_and_linear_layers_and_scales() -> None:
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=(b, a)) for a, b in ((3, 6), (6, 6), (6, 6), (6, 2))]
    activations = [Activation.parse(name) for name in ("tanh", "identity", "maxmin")]
    net = PlainNet.mlp(weights, [np.zeros(len(w)) for w in weights], activations)
    norm = NormPair("l2", "l2", (0.5, 2.0, 1.0), (0.3, 3.0))
    for method in (eclipse, eclipse_fast):
        certificate = method(net, norm)
        assert certificate is not None and certificate.verify(net)
        x, y = rng.normal(size=(2, 500, 3))
        assert (norm.of_output(net(x) - net(y)) <= certificate.bound * norm.of_input(x - y)).all()


def test_where_it_does_not_apply() -> None:
    rng = np.random.default_rng(4)
    net = network(rng, (3, 6, 2))
    skip = PlainNet((net.blocks[0], net.blocks[1] | {0: rng.normal(size=(2, 3))}), net.biases, net.activations)
    assert fast_multipliers(skip, loop_form(skip, RAW), RAW) is None
    for method in (eclipse, eclipse_fast):
        assert method(skip, RAW) is None
        assert method(net, NormPair("linf", "linf")) is None
