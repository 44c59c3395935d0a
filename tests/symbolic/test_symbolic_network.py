"""The symbolic network against PlainNet: values, Jacobians, kinks, limits and generated C code."""

import shutil
import subprocess
from pathlib import Path

import casadi as ca
import numpy as np
import pytest

from lipctrl.files import UserError
from lipctrl.nn.activations import GROUP, SCALAR, Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.symbolic.network import to_casadi

WIDTH = 12


def activation(name: str, width: int = WIDTH) -> Activation:
    if name == "householder":
        vectors = np.random.default_rng(5).normal(size=(width // 3, 3))
        return Activation(name, 3, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    if name == "groupsort":
        return Activation(name, 4)
    return Activation(name, {"leaky_relu": 0.1, "elu": 1.7}.get(name, 0.0))


def network(name: str, seed: int = 0) -> PlainNet:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=s) for s in ((WIDTH, 3), (WIDTH, WIDTH), (2, WIDTH))]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation(name))


def graph_network() -> PlainNet:
    """Skips from the input and from the first layer, different activations, one-sided and two-sided limits."""
    rng = np.random.default_rng(1)
    n = [3, 8, 6, 2]
    sources = [(0,), (0, 1), (0, 1, 2)]
    return PlainNet(
        tuple({j: rng.normal(size=(n[k + 1], n[j])) for j in row} for k, row in enumerate(sources)),
        tuple(rng.normal(size=size) for size in n[1:]),
        (Activation("tanh"), Activation("groupsort", 3)),
        low=np.array([-0.5, -np.inf]),
        high=np.array([0.5, 2.0]),
    )


def assert_same(net: PlainNet, points: np.ndarray) -> None:
    function = to_casadi(net)
    jacobian = function.factory("derivative", ["x"], ["jac:y:x"])
    values = np.array([np.asarray(function(x)).ravel() for x in points])
    slopes = np.array([np.asarray(jacobian(x)) for x in points])
    np.testing.assert_allclose(values, net(points), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(slopes, net.jacobian(points), rtol=1e-10, atol=1e-10)
    batched = to_casadi(net, columns=len(points))
    np.testing.assert_allclose(np.asarray(batched(points.T)).T, values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*SCALAR, *GROUP])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_values_and_jacobians_equal_the_network(name: str, scale: float) -> None:
    assert_same(network(name), scale * np.random.default_rng(2).normal(size=(20, 3)))


@pytest.mark.parametrize("name", [*SCALAR, *GROUP])
def test_far_arguments_do_not_overflow(name: str) -> None:
    net = PlainNet.mlp([np.eye(WIDTH), np.eye(WIDTH)], [np.zeros(WIDTH)] * 2, activation(name))
    assert_same(net, np.linspace(-2000, 2000, WIDTH)[None])


# a composition multiplies one-sided derivatives, so the kinks are looked at in one layer
@pytest.mark.parametrize("name", [*SCALAR, "maxmin", "groupsort"])
@pytest.mark.parametrize("point", [0.0, 1.0, -1.0, 3.0, -3.0])
def test_derivative_at_kinks_is_the_declared_one(name: str, point: float) -> None:
    net = PlainNet.mlp([np.eye(WIDTH), np.eye(WIDTH)], [np.zeros(WIDTH)] * 2, activation(name))
    assert_same(net, np.full((1, WIDTH), point))


def test_graph_network_with_limits() -> None:
    net = graph_network()
    points = np.random.default_rng(3).normal(size=(60, 3))
    raw = net.without_limits()(points)
    assert (raw < net.low).any() and (raw > net.high).any()  # the limits act
    assert_same(net, points)


@pytest.mark.parametrize("net", [graph_network(), network("householder")], ids=["graph", "householder"])
def test_derivative_of_many_columns_is_block_diagonal(net: PlainNet) -> None:
    points = np.random.default_rng(3).normal(size=(7, 3))
    derivative = to_casadi(net, columns=7).factory("derivative", ["x"], ["jac:y:x"])
    found = derivative(points.T)
    assert found.nnz() == 7 * 2 * 3
    expected = np.zeros((14, 21))
    for k, slope in enumerate(net.jacobian(points)):
        expected[2 * k : 2 * k + 2, 3 * k : 3 * k + 3] = slope
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-10, atol=1e-10)


def test_linear_network_without_hidden_layers() -> None:
    gain = np.array([[1.0, -2.0]])
    assert_same(PlainNet(({0: gain},), (np.array([0.5]),), ()), np.random.default_rng(4).normal(size=(5, 2)))


def test_second_derivative_of_softplus_at_zero() -> None:
    function = to_casadi(PlainNet.mlp([np.eye(1), np.eye(1)], [np.zeros(1)] * 2, "softplus"))
    x = ca.MX.sym("x")
    second = ca.Function("second", [x], [ca.hessian(function(x), x)[0]])
    assert float(second(0.0)) == pytest.approx(0.25, abs=1e-14)


def test_bad_name_is_refused() -> None:
    with pytest.raises(UserError, match="letters"):
        to_casadi(network("tanh"), name="my policy")
    with pytest.raises(UserError, match="at least one column"):
        to_casadi(network("tanh"), columns=0)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_generated_c_code_agrees(tmp_path: Path) -> None:
    net = graph_network()
    function = to_casadi(net, name="policy_c")
    generator = ca.CodeGenerator("policy_c.c")
    generator.add(function)
    source = Path(generator.generate(f"{tmp_path}/"))
    library = tmp_path / "policy_c.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"], check=True)
    compiled = ca.external("policy_c", str(library))
    for x in np.random.default_rng(6).normal(size=(20, 3)):
        np.testing.assert_allclose(np.asarray(compiled(x)).ravel(), net(x), rtol=1e-12, atol=1e-12)
