"""ONNX: our files run in onnxruntime, torch's files are read, everything else is refused."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lipctrl.files import UserError
from lipctrl.nn.onnx import ACTIVATIONS, read_onnx, write_onnx
from lipctrl.nn.plain import PlainNet

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
X = np.random.default_rng(9).normal(size=(30, 3))


def net(activation: str, limits: bool = True) -> PlainNet:
    r = np.random.default_rng(0)
    plain = PlainNet.mlp(
        [r.normal(size=(6, 3)), r.normal(size=(2, 6))], [r.normal(size=6), r.normal(size=2)], activation
    )
    return replace(plain, low=np.array([-1.0, -np.inf]), high=np.array([0.5, 2.0])) if limits else plain


@pytest.mark.parametrize("activation", [*ACTIVATIONS.values(), "elu:0.7", "leaky_relu:0.2"])
def test_written_files_run_elsewhere_and_read_back(activation: str, tmp_path: Path) -> None:
    if activation == "mish":
        pytest.skip("onnxruntime has no float64 kernel for Mish")
    plain = net(activation)
    write_onnx(plain, tmp_path / "n.onnx")
    again = read_onnx(tmp_path / "n.onnx")
    assert np.allclose(again(X), plain(X), atol=1e-6)  # attributes are float32
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"))
    assert np.allclose(session.run(None, {"observation": X})[0], plain(X), atol=1e-6)


@pytest.mark.parametrize("side", ["low", "high"])
def test_one_sided_limits_are_written(side: str, tmp_path: Path) -> None:
    plain = replace(net("tanh", limits=False), **{side: np.array([0.1, -0.2])})
    write_onnx(plain, tmp_path / "n.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "n.onnx"))
    assert np.allclose(session.run(None, {"observation": X})[0], plain(X), atol=1e-12)
    assert np.allclose(read_onnx(tmp_path / "n.onnx")(X), plain(X), atol=1e-12)


def model(nodes: list[object], constants: dict[str, np.ndarray], path: Path) -> Path:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", 2])],
        [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def test_normalisation_and_matmul_graphs_agree_with_onnxruntime(tmp_path: Path) -> None:
    r, node = np.random.default_rng(1), onnx.helper.make_node
    constants = {
        "m": r.normal(size=3), "s": r.uniform(0.5, 2, 3), "w": r.normal(size=(3, 5)), "b": r.normal(size=5),
        "v": r.normal(size=(5, 2)), "k": np.array(3.0), "lo": np.array(-2.0), "hi": np.array(1.0),
    }  # fmt: skip
    path = model(
        [
            node("Sub", ["x", "m"], ["a"]), node("Div", ["a", "s"], ["c"]), node("MatMul", ["c", "w"], ["d"]),
            node("Add", ["b", "d"], ["e"]), node("Tanh", ["e"], ["f"]), node("MatMul", ["f", "v"], ["g"]),
            node("Sub", ["k", "g"], ["h"]), node("Mul", ["h", "k"], ["i"]), node("Clip", ["i", "lo", "hi"], ["y"]),
        ],
        constants,
        tmp_path / "n.onnx",
    )  # fmt: skip
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": X.astype(np.float32)})[0]
    assert np.allclose(read_onnx(path)(X), expected, atol=1e-5)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = onnx.helper.make_node
    two = {"w": np.ones((3, 2))}
    softmax = model([node("MatMul", ["x", "w"], ["a"]), node("Softmax", ["a"], ["y"])], two, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="Softmax; supported: Gemm"):
        read_onnx(softmax)
    joined = [node("MatMul", ["x", "w"], ["a"]), node("Tanh", ["a"], ["c"]), node("Add", ["a", "c"], ["y"])]
    with pytest.raises(UserError, match="not a chain"):
        read_onnx(model(joined, two, tmp_path / "b.onnx"))
    clipped = [node("MatMul", ["x", "w"], ["a"]), node("Clip", ["a"], ["c"]), node("Tanh", ["c"], ["y"])]
    with pytest.raises(UserError, match="end of the network"):
        read_onnx(model(clipped, two, tmp_path / "c.onnx"))
    (tmp_path / "d.onnx").write_bytes(softmax.read_bytes()[:40])
    with pytest.raises(UserError, match="not a whole ONNX file"):
        read_onnx(tmp_path / "d.onnx")
    with pytest.raises(UserError, match="skips|maxmin"):
        write_onnx(net("maxmin"), tmp_path / "e.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'pip install "lipctrl\[onnx\]"'):
        read_onnx(softmax)


def test_clip_with_an_upper_limit_alone(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["a"]), onnx.helper.make_node("Clip", ["a", "", "hi"], ["y"])]
    path = model(nodes, {"w": np.eye(3)[:, :2], "hi": np.array(0.5)}, tmp_path / "n.onnx")
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": X.astype(np.float32)})[0]
    assert np.allclose(read_onnx(path)(X), expected, atol=1e-6) and expected.min() < -0.5


def test_operands_that_would_be_misread_are_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    constants = {"w": np.ones((3, 3)), "v": np.ones((4, 2)), "column": np.ones((3, 1)), "three": np.ones(3)}
    cases = [
        ("first operand", [node("Gemm", ["w", "x"], ["y"])]),
        ("first operand", [node("Gemm", ["x", "w"], ["y"], transA=1)]),
        ("not a chain", [node("Mul", ["x", "x"], ["y"])]),
        ("each row alike", [node("Mul", ["x", "column"], ["y"])]),
        ("do not fit", [node("MatMul", ["x", "v"], ["y"])]),
        ("expected two", [node("Max", ["x", "three", "w"], ["y"])]),
        ("operation Tanh", [node("Tanh", ["x"], ["y"], domain="elsewhere")]),
        ("not a tensor", [node("Constant", [], ["c"], value_float=1.0), node("Add", ["x", "c"], ["y"])]),
        ("before opset 11", [node("Clip", ["x"], ["y"], min=-1.0)]),
    ]
    for match, nodes in cases:
        with pytest.raises(UserError, match=match):
            read_onnx(model(nodes, constants, tmp_path / "n.onnx"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's classic exporter; the new one needs onnxscript
def test_files_of_torch_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.ELU(0.5), torch.nn.Linear(8, 2)
    )
    path = tmp_path / "n.onnx"
    torch.onnx.export(theirs, (torch.zeros(1, 3),), str(path), dynamo=False)
    expected = theirs(torch.tensor(X, dtype=torch.float32)).detach().numpy()
    assert np.allclose(read_onnx(path)(X), expected, atol=1e-6)
