"""PlainNet: values against torch, Jacobians against differences, the file format, and damage."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lipctrl.files import UserError
from lipctrl.nn.activations import SCALAR, Activation
from lipctrl.nn.plain import PlainNet


def mlp(activation: str = "tanh", seed: int = 0) -> PlainNet:
    r = np.random.default_rng(seed)
    weights = [r.normal(size=(12, 3)), r.normal(size=(12, 12)) / 3, r.normal(size=(2, 12)) / 3]
    return PlainNet.mlp(weights, [r.normal(size=len(w)) for w in weights], activation)


def graph(seed: int = 0) -> PlainNet:
    """Every layer sees the input and all earlier layers; different activations; limits."""
    r = np.random.default_rng(seed)
    v = r.normal(size=(2, 2))
    blocks = (
        {0: r.normal(size=(6, 3))},
        {0: r.normal(size=(4, 3)), 1: r.normal(size=(4, 6))},
        {0: r.normal(size=(2, 3)), 1: r.normal(size=(2, 6)), 2: r.normal(size=(2, 4))},
    )
    activations = (Activation.parse("groupsort:3"), Activation("householder", 2.0, v))
    return PlainNet(
        blocks, tuple(r.normal(size=n) for n in (6, 4, 2)), activations, low=-np.ones(2), high=np.array([1.0, 9.0])
    )


NETS = [*(mlp(name) for name in SCALAR), mlp("maxmin"), mlp("groupsort:4"), graph()]


@pytest.mark.parametrize("net", NETS, ids=lambda n: n.activations[0].spec())
def test_jacobian_agrees_with_differences(net: PlainNet) -> None:
    r = np.random.default_rng(3)
    x, d = r.normal(size=(40, 3)), r.normal(size=(40, 3))
    free = net.without_limits()
    difference = (free(x + 1e-6 * d) - free(x - 1e-6 * d)) / 2e-6
    assert np.allclose(difference, (net.jacobian(x, clipped=False) @ d[..., None])[..., 0], atol=1e-5)


def test_values_agree_with_torch() -> None:
    net = mlp("tanh")
    layers: list[torch.nn.Module] = []
    for k, row in enumerate(net.blocks):
        layer = torch.nn.Linear(row[k].shape[1], row[k].shape[0], dtype=torch.float64)
        layer.weight.data, layer.bias.data = torch.from_numpy(row[k]), torch.from_numpy(net.biases[k])
        layers += [layer, torch.nn.Tanh()]
    x = np.random.default_rng(0).normal(size=(7, 3))
    assert np.allclose(torch.nn.Sequential(*layers[:-1])(torch.from_numpy(x)).detach().numpy(), net(x), atol=1e-14)


def test_graph_written_out_by_hand() -> None:
    net, x = graph(), np.array([0.3, -1.0, 2.0])
    a1 = net.activations[0](net.blocks[0][0] @ x + net.biases[0])
    a2 = net.activations[1](net.blocks[1][0] @ x + net.blocks[1][1] @ a1 + net.biases[1])
    y = net.blocks[2][0] @ x + net.blocks[2][1] @ a1 + net.blocks[2][2] @ a2 + net.biases[2]
    assert np.allclose(net(x), np.clip(y, [-1, -1], [1, 9])) and not net.is_mlp and net.widths == (6, 4)


def test_clipped_outputs_have_zero_rows() -> None:
    net = replace(mlp(), low=np.array([-np.inf, 5.0]), high=np.array([np.inf, 6.0]))
    j = net.jacobian(np.zeros(3))
    assert (j[1] == 0).all() and (j[0] != 0).any() and (net.jacobian(np.zeros(3), clipped=False)[1] != 0).any()


def test_one_sided_limits_act_on_values_and_jacobians() -> None:
    identity, x = PlainNet(({0: np.eye(2)},), (np.zeros(2),), ()), np.array([-3.0, 3.0])
    floor, ceiling = replace(identity, low=np.zeros(2)), replace(identity, high=np.zeros(2))
    assert floor(x).tolist() == [0, 3] and ceiling(x).tolist() == [-3, 0]
    assert np.diag(floor.jacobian(x)).tolist() == [0, 1] and np.diag(ceiling.jacobian(x)).tolist() == [1, 0]
    assert np.diag(floor.jacobian(x, clipped=False)).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"low": np.zeros(3)}, r"shape \(2,\)"),
        ({"high": np.array([1.0, np.nan])}, "numbers"),
        ({"low": np.ones(2), "high": np.zeros(2)}, "low <= high"),
    ],
)
def test_bad_limits_are_refused(limits: dict[str, np.ndarray], match: str) -> None:
    with pytest.raises(UserError, match=match):
        replace(mlp(), **limits)


@pytest.mark.parametrize("net", [mlp("leaky_relu:0.1"), graph()], ids=["mlp", "graph"])
def test_file_round_trip(net: PlainNet, tmp_path: Path) -> None:
    net = replace(net, input_scale=np.array([1.0, 2.0, 3.0]), input_names=("a [m]", "b [-]", "c [s]"))
    net = replace(net, multipliers=tuple(np.ones(w) for w in net.widths))
    net.save(tmp_path / "n.npz")
    again = PlainNet.load(tmp_path / "n.npz")
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert again.sha256() == net.sha256() and np.array_equal(again(x), net(x))
    assert again.input_names == net.input_names and again.multipliers is not None
    assert again.input_scale is not None and again.input_scale.tolist() == [1, 2, 3]


def test_hash_covers_what_defines_the_map_and_nothing_else() -> None:
    net = graph()
    same = replace(net, multipliers=(np.ones(6), np.ones(4)), input_scale=np.ones(3), input_names=("a", "b", "c"))
    assert same.sha256() == net.sha256()
    bias = (net.biases[0] + 1e-12, *net.biases[1:])
    vectors = replace(net.activations[1], vectors=net.activations[1].vectors * 2)  # type: ignore[operator]
    for other in (
        replace(net, biases=bias),
        replace(net, high=np.ones(2)),
        replace(net, activations=(net.activations[0], vectors)),
        mlp("tanh"),
        mlp("relu"),
    ):
        assert other.sha256() != net.sha256()
    assert mlp("tanh").sha256() != mlp("relu").sha256()


def test_damage(tmp_path: Path) -> None:
    path = tmp_path / "n.npz"
    mlp().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole"):
        PlainNet.load(path)
    with np.load(io.BytesIO(whole)) as stored:
        arrays = dict(stored)
    arrays["weight.1.0"] = arrays["weight.1.0"] * (1 + 1e-12)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="own hash"):
        PlainNet.load(path)
    with pytest.raises(UserError, match="no network"):
        PlainNet.load(tmp_path / "missing.npz")


def test_shapes_and_finiteness_are_checked() -> None:
    ones = np.ones
    for weights, biases, activation, words in (
        ([ones((4, 3)), ones((2, 5))], [ones(4), ones(2)], "tanh", r"W\[2\]\[1\] has shape"),
        ([np.full((4, 3), np.nan), ones((2, 4))], [ones(4), ones(2)], "tanh", "not finite"),
        ([ones((4, 3)), ones((2, 4))], [ones(4), np.array([1, np.inf])], "tanh", "bias of layer 2"),
        ([ones((5, 3)), ones((2, 5))], [ones(5), ones(2)], "maxmin", "groups of 2"),
        ([ones((4, 3)), ones((2, 4))], [ones(4)], "tanh", "one bias per layer"),
    ):
        with pytest.raises(UserError, match=words):
            PlainNet.mlp(weights, biases, activation)


def test_rounding_to_float32_is_a_network_of_its_own() -> None:
    net = mlp()
    rounded = net.rounded_to(np.float32)
    x = np.random.default_rng(0).normal(size=(9, 3))
    assert np.allclose(rounded(x), net(x), atol=1e-5) and rounded.sha256() != net.sha256()
    assert all((block == block.astype(np.float32)).all() for row in rounded.blocks for block in row.values())
