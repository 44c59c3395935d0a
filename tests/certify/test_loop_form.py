"""The loop form against the network's own increments."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.loop_form import LoopForm, global_slopes, loop_form, nonlinearities
from lipctrl.nn.activations import SCALAR, Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
RAW = NormPair()


def network(rng: np.random.Generator, activation: str, sizes: tuple[int, ...] = (3, 8, 8, 2)) -> PlainNet:
    parsed: list[Activation] = []
    for width in sizes[1:-1]:
        vectors = rng.normal(size=(width // 4, 4)) if activation.startswith("householder") else None
        if vectors is not None:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        parsed.append(Activation.parse(activation, vectors))
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], parsed)


def skip_network(rng: np.random.Generator) -> PlainNet:
    """Every layer sees everything before it: tanh, then MaxMin, then a linear output."""

    def block(rows: int, columns: int) -> Array:
        return np.asarray(rng.normal(size=(rows, columns)))

    return PlainNet(
        ({0: block(5, 3)}, {0: block(4, 3), 1: block(4, 5)}, {0: block(2, 3), 1: block(2, 5), 2: block(2, 4)}),
        (rng.normal(size=5), rng.normal(size=4), rng.normal(size=2)),
        (Activation.parse("tanh"), Activation.parse("maxmin")),
    )


def group_differences(activation: Activation, z: Array) -> Array:
    """What the nonlinearities of a group activation return, from its output: the part orthogonal to the linear one."""
    a, g = activation(z), activation.group_size
    if activation.vectors is not None:
        return np.asarray(np.abs((z.reshape(-1, g) * activation.vectors).sum(1)))
    basis = np.array([[1.0] * j + [-float(j)] + [0.0] * (g - 1 - j) for j in range(1, g)])
    return np.asarray((a.reshape(-1, g) @ basis.T).ravel())


def increments(net: PlainNet, form: LoopForm, x: Array, y: Array, scale: Array) -> Array:
    """v = (dx, w) of a pair of inputs, from the network's own values."""
    zx, zy = net.preactivations(x), net.preactivations(y)
    w = list[Array]()
    for k, activation in enumerate(net.activations):
        if activation.is_scalar:
            low, high = activation.slopes
            da, dz = activation(zx[k]) - activation(zy[k]), zx[k] - zy[k]
            w.append((da - (low + high) / 2 * dz) / ((high - low) / 2) if high > low else np.zeros(0))
        else:
            w.append(group_differences(activation, zx[k]) - group_differences(activation, zy[k]))
    return np.concatenate([(x - y) / scale, *w])


NETWORKS = [
    *(name for name in SCALAR),
    "leaky_relu:0.3",
    "maxmin",
    "groupsort:4",
    "groupsort:8",
    "householder:4",
    "skip",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_increments_of_pairs_satisfy_the_form(name: str) -> None:
    rng = np.random.default_rng(0)
    net = skip_network(rng) if name == "skip" else network(rng, name)
    norm = NormPair(input_scale=(0.5, 2.0, 3.0), output_scale=(0.1, 4.0))
    form = loop_form(net, norm)
    assert len(form.group) == form.T.shape[0] == (0 if name == "identity" else len(form.weight.mid))
    for _ in range(50):
        x, y = rng.normal(size=(2, 3)) * 10.0 ** rng.uniform(-2, 1, size=(2, 1))
        v = increments(net, form, x, y, np.array(norm.input_scale))
        np.testing.assert_allclose(form.Y.mid @ v, (net(x) - net(y)) / norm.output_scale, atol=1e-12)
        t, w = form.T.mid @ v, v[3:]
        for g in range(form.multipliers):
            members = form.group == g
            weight = form.weight.mid[members]
            assert weight @ w[members] ** 2 <= weight @ t[members] ** 2 + 1e-12
        if name in ("relu", "abs", "maxmin"):  # the arguments of the nonlinearities, not only their sums of squares
            dz = np.concatenate([a - b for a, b in zip(net.preactivations(x), net.preactivations(y), strict=True)][:-1])
            expected = dz[0::2] - dz[1::2] if name == "maxmin" else dz
            np.testing.assert_allclose(t, expected, atol=1e-12)


def test_the_matrix_is_the_quadratic_form_of_its_definition() -> None:
    rng = np.random.default_rng(1)
    for name in ("tanh", "groupsort:4", "skip"):
        net = skip_network(rng) if name == "skip" else network(rng, name)
        form = loop_form(net, RAW)
        mu, v = rng.uniform(size=form.multipliers), rng.normal(size=3 + len(form.group))
        weight = mu[form.group] * form.weight.mid
        expected = weight @ v[3:] ** 2 - weight @ (form.T.mid @ v) ** 2 - ((form.Y.mid @ v) ** 2).sum()
        matrix = form.matrix(mu)
        assert v @ matrix.mid @ v == pytest.approx(expected, rel=1e-12)
        assert matrix.rad.max() < 1e-12


def test_equal_slopes_make_a_neuron_linear_and_it_disappears() -> None:
    rng = np.random.default_rng(2)
    net = network(rng, "relu")
    slopes = global_slopes(net)
    alive = rng.random(8) < 0.5
    slopes[0] = (alive.astype(float), alive.astype(float))  # the first layer: each neuron on or off
    form = loop_form(net, RAW, slopes)
    assert len(form.group) == 8 and set(form.layer) == {2}
    linear = net.blocks[1][1] @ (alive[:, None] * net.blocks[0][0])
    np.testing.assert_allclose(form.T.mid[:, :3], linear, atol=1e-14)


def test_every_entry_lies_in_its_enclosure() -> None:
    """Against the same form computed in extended precision."""
    rng = np.random.default_rng(3)
    net = network(rng, "gelu")
    form = loop_form(net, RAW)
    low, high = (np.longdouble(s) for s in net.activations[0].slopes)
    c, r = (low + high) / 2, (high - low) / 2
    w1, w2, w3 = (net.blocks[k][k].astype(np.longdouble) for k in range(3))
    zeros = np.zeros((8, 8), dtype=np.longdouble)
    eye = np.eye(8, dtype=np.longdouble)
    t1 = np.hstack([w1, zeros, zeros])
    a1 = c * t1 + r * np.hstack([zeros[:, :3], eye, zeros])
    t2 = w2 @ a1
    y = w3 @ (c * t2 + r * np.hstack([zeros[:, :3], zeros, eye]))
    assert (np.abs(np.vstack([t1, t2]) - form.T.mid) <= form.T.rad).all()
    assert (np.abs(y - form.Y.mid) <= form.Y.rad).all()
    assert form.T.rad.max() < 1e-13


def test_counts_of_nonlinearities() -> None:
    rng = np.random.default_rng(4)
    assert [nonlinearities(network(rng, name), 1) for name in ("relu", "maxmin", "groupsort:4", "householder:4")] == [
        8,
        4,
        6,
        2,
    ]
