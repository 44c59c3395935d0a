"""The generated C file, compiled: equal to numpy, warning-free, exact weights, visible bad numbers."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.files import UserError
from lipctrl.nn.activations import GROUP, SCALAR, Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.symbolic.c_code import c_code

WIDTH = 12
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def activation(name: str) -> Activation:
    if name == "householder":
        vectors = np.random.default_rng(5).normal(size=(WIDTH // 3, 3))
        return Activation(name, 3, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return Activation(name, {"leaky_relu": 0.1, "elu": 1.7, "groupsort": 4}.get(name, 0.0))


def network(name: str) -> PlainNet:
    """Two hidden layers, a skip from the input and from the first layer, limits on both sides of one output."""
    rng = np.random.default_rng(0)
    blocks: list[dict[int, np.ndarray]] = [
        {0: rng.normal(size=(WIDTH, 3))},
        {0: rng.normal(size=(WIDTH, 3)), 1: rng.normal(size=(WIDTH, WIDTH))},
        {1: rng.normal(size=(2, WIDTH)), 2: rng.normal(size=(2, WIDTH))},
    ]
    biases = tuple(rng.normal(size=n) for n in (WIDTH, WIDTH, 2))
    limits = {"low": np.array([-1.5, -np.inf]), "high": np.array([1.5, np.inf])}
    return PlainNet(tuple(blocks), biases, (activation(name), activation(name)), **limits)


def compiled(net: PlainNet, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The C function through a shared library; warnings are errors."""
    source, library = folder / "policy.c", folder / "policy.so"
    source.write_text(c_code(net))
    flags = ["-std=c99", "-O3", "-Wall", "-Wextra", "-pedantic", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(source), "-o", str(library), "-lm"], check=True)
    function = ctypes.CDLL(str(library)).policy
    pointer = ctypes.POINTER(ctypes.c_double)

    def call(x: np.ndarray) -> np.ndarray:
        observation, action = np.array(x, np.float64), np.empty(net.output_size)
        function(observation.ctypes.data_as(pointer), action.ctypes.data_as(pointer))
        return action

    return call


@needs_compiler
@pytest.mark.parametrize("name", [*SCALAR, *GROUP])
def test_compiled_code_equals_numpy(name: str, tmp_path: Path) -> None:
    net = network(name)
    call = compiled(net, tmp_path)
    for scale in (0.3, 3.0, 300.0):
        points = scale * np.random.default_rng(1).normal(size=(30, 3))
        found = np.array([call(x) for x in points])
        np.testing.assert_allclose(found, net(points), rtol=1e-12, atol=1e-12)
    for position in range(3):
        for bad in (np.nan, np.inf, -np.inf):
            x = np.ones(3)
            x[position] = bad
            assert np.isnan(call(x)).all()


@needs_compiler
@pytest.mark.parametrize("name", SCALAR)
def test_kinks_and_far_arguments(name: str, tmp_path: Path) -> None:
    net = PlainNet.mlp([np.eye(1), np.eye(1)], [np.zeros(1)] * 2, activation(name))
    call = compiled(net, tmp_path)
    for x in (-2000.0, -745.0, -50.0, -3.0, -1.0, -0.0, 1e-300, 1.0, 3.0, 50.0, 745.0, 2000.0):
        np.testing.assert_allclose(call(np.array([x])), net([x]), rtol=1e-12, atol=1e-15)


@needs_compiler
def test_linear_network_and_one_sided_limits(tmp_path: Path) -> None:
    linear = PlainNet(({0: np.array([[2.0, -1.0]])},), (np.array([0.5]),), ())
    assert compiled(linear, tmp_path)(np.array([1.0, 3.0])) == pytest.approx(-0.5, abs=1e-15)
    (tmp_path / "low").mkdir()
    bounded = compiled(replace(linear, low=np.array([0.0])), tmp_path / "low")
    assert bounded(np.array([1.0, 3.0])) == 0 and bounded(np.array([3.0, 0.0])) == 6.5


def test_every_weight_reads_back_exactly() -> None:
    net = network("tanh")
    source = c_code(net)
    body = source[
        source.index("static const") : source.index("void policy(const double *observation, double *action)\n{")
    ]
    numbers = [
        float(text.replace("INFINITY", "inf")) for text in re.findall(r"-?(?:[\d.]+(?:e-?\d+)?(?=[,}])|INFINITY)", body)
    ]
    written = []
    for k, (row, bias) in enumerate(zip(net.blocks, net.biases, strict=True)):
        written += [*bias, *(value for j in row for value in net.blocks[k][j].T.ravel())]
    assert net.low is not None and net.high is not None
    assert numbers == [*written, *net.low, *net.high]
    assert f'policy_sha256[] = "{net.sha256()}"' in source


def test_names_of_signals_cannot_end_the_comment() -> None:
    net = replace(PlainNet(({0: np.eye(1)},), (np.zeros(1),), ()), input_names=("a */ [°C]",), output_names=("u [V]",))
    head = c_code(net).split("#include")[0]
    assert head.count("*/") == 1 and "observation[0]: a ? [?C]" in head and "action[0]: u [V]" in head


def test_bad_names_are_refused() -> None:
    for name in ("my policy", "1st", "a-b", ""):
        with pytest.raises(UserError, match="letters"):
            c_code(network("tanh"), name)
