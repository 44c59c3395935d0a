"""Random networks of every activation, with and without skips, on boxes from points to very large."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box
from lipctrl.nn.activations import SCALAR, Activation
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
NAMES = (*SCALAR, "maxmin", "groupsort", "householder")


@dataclass(frozen=True)
class Case:
    """A network, a box, and points of it: inside, corners, all as given to the network."""

    net: PlainNet
    box: Box
    points: Array

    @property
    def is_point(self) -> bool:
        return self.box.low == self.box.high


def random_activation(name: str, width: int, rng: np.random.Generator) -> Activation:
    if name == "householder":
        v = rng.normal(size=(width // 2, 2))
        return Activation(name, 2.0, v / np.linalg.norm(v, axis=1, keepdims=True))
    parameters = {"groupsort": [2.0, 4.0], "leaky_relu": [-0.5, 0.1, 1.7], "elu": [0.3, 1.0, 2.0]}
    return Activation(name, float(rng.choice(parameters.get(name, [0.0]))))


def _network(rng: np.random.Generator, names: tuple[str, ...]) -> PlainNet:
    widths = [int(rng.integers(1, 4)), *(4 * rng.integers(1, 3, size=rng.integers(1, 4))), int(rng.integers(1, 3))]
    scale, blocks = rng.choice([0.3, 1.0, 3.0]), list[dict[int, Array]]()
    for k in range(1, len(widths)):
        row = {k - 1: scale * rng.normal(size=(widths[k], widths[k - 1])) / np.sqrt(widths[k - 1])}
        if k > 1 and rng.random() < 0.3:
            row[0] = rng.normal(size=(widths[k], widths[0]))
        blocks.append(row)
    biases = tuple(rng.normal(size=n) for n in widths[1:])
    activations = (random_activation(str(rng.choice(names)), n, rng) for n in widths[1:-1])
    return PlainNet(tuple(blocks), biases, tuple(activations))


def random_case(seed: int) -> Case:
    """Odd seeds use one activation throughout, even seeds mix all of them."""
    rng = np.random.default_rng(seed)
    net = _network(rng, (NAMES[(seed // 2) % len(NAMES)],) if seed % 2 else NAMES)
    centre = rng.normal(size=net.input_size) * rng.choice([0.1, 1.0, 5.0])
    radius = rng.choice([0.0, 1e-6, 0.01, 0.1, 1.0, 10.0]) * np.abs(rng.normal(size=net.input_size))
    low, high = centre - radius, centre + radius
    corners = np.where(rng.random((30, len(low))) < 0.5, low, high)
    points = np.clip(np.vstack([rng.uniform(low, high, size=(60, len(low))), corners]), low, high)
    return Case(net, Box(tuple(low.tolist()), tuple(high.tolist())), points)


@pytest.fixture
def cases() -> Callable[[int], list[Case]]:
    """The first cases: `cases(200)`."""
    return lambda count: [random_case(seed) for seed in range(count)]


@pytest.fixture
def table_net() -> PlainNet:
    """4-64-64-2 ReLU network of torch's default initialisation, seed 0: bounds of an independent code are known."""
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(a, b) for a, b in ((4, 64), (64, 64), (64, 2))]
    weights = [layer.weight.detach().double().numpy() for layer in layers]
    return PlainNet.mlp(weights, [layer.bias.detach().double().numpy() for layer in layers], "relu")
