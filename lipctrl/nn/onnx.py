"""Read an ONNX MLP into a plain network, and write a plain network as ONNX (extra `onnx`).

The reader follows one chain of operations from the input to the output and folds affine ones together; whatever is not
in `SUPPORTED` is refused.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError, write_atomically
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
INSTALL = 'pip install "lipctrl[onnx]"'
ACTIVATIONS = {
    "Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Softplus": "softplus", "Softsign": "softsign", "Abs": "abs",
    "Mish": "mish",
}  # fmt: skip
SUPPORTED = (
    "Gemm",
    "MatMul",
    "Add",
    "Sub",
    "Mul",
    "Div",
    *ACTIVATIONS,
    "Elu",
    "LeakyRelu",
    "Clip",
    "Max",
    "Min",
    "Identity",
    "Flatten",
)
OPSET = 18


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise UserError(f"ONNX files need an extra that is not installed: {INSTALL}") from error
    return onnx


@dataclass
class _Chain:
    """The network read so far: finished layers, and the affine map W x + b behind them."""

    weight: Array
    bias: Array
    weights: list[Array] = field(default_factory=list)
    biases: list[Array] = field(default_factory=list)
    activations: list[Activation] = field(default_factory=list)
    limits: tuple[Array, Array] | None = None

    def affine(self, weight: Array, bias: Array | float = 0.0) -> None:
        """Compose with y -> weight y + bias."""
        self.weight, self.bias = weight @ self.weight, weight @ self.bias + bias

    def activate(self, activation: Activation) -> None:
        """Close a layer."""
        self.weights.append(self.weight)
        self.biases.append(self.bias)
        self.activations.append(activation)
        self.weight, self.bias = np.eye(len(self.bias)), np.zeros(len(self.bias))


def read_onnx(path: Path) -> PlainNet:
    """The plain network of an ONNX file that holds a multilayer perceptron.

    Raises:
        UserError: the extra is missing, the file is damaged, or the graph is not a chain of supported operations.
    """
    onnx = _onnx()
    try:
        graph = onnx.load(str(path)).graph
        constants = {item.name: onnx.numpy_helper.to_array(item).astype(np.float64) for item in graph.initializer}
    except Exception as error:  # protobuf raises its own errors
        raise UserError(f"{path} is not a whole ONNX file ({type(error).__name__})") from error
    inputs = [item for item in graph.input if item.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UserError(f"{path} has {len(inputs)} inputs and {len(graph.output)} outputs; expected one of each")
    shape = inputs[0].type.tensor_type.shape.dim
    size = shape[-1].dim_value if len(shape) in (1, 2) else 0
    if size < 1:
        raise UserError(f"{path} does not say how many inputs its network has; expected the shape (batch, inputs)")
    chain, current = _Chain(np.eye(size), np.zeros(size)), inputs[0].name
    for node in graph.node:
        if node.op_type == "Constant":
            if [a.name for a in node.attribute] != ["value"]:
                raise UserError(f"{path} holds a Constant that is not a tensor")
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t).astype(np.float64)
            continue
        if chain.limits is not None and node.op_type not in ("Max", "Min", "Identity", "Flatten"):
            raise UserError(f"{path}: limits are supported at the end of the network only; {node.op_type} follows them")
        try:
            _step(chain, node, current, constants, path)
        except (ValueError, IndexError) as error:  # numpy's, for shapes that do not fit
            raise UserError(f"{path}: {node.op_type} has operands that do not fit an MLP ({error})") from error
        current = node.output[0]
    if current != graph.output[0].name:
        raise UserError(f"{path} is not a single chain from input to output")
    net = PlainNet.mlp([*chain.weights, chain.weight], [*chain.biases, chain.bias], chain.activations)
    return net if chain.limits is None else replace(net, low=chain.limits[0], high=chain.limits[1])


def _step(chain: _Chain, node: Any, current: str, constants: dict[str, Array], path: Path) -> None:
    """Append one operation to the chain."""
    kind, attributes = node.op_type, {a.name: a for a in node.attribute}
    if kind not in SUPPORTED or node.domain not in ("", "ai.onnx"):
        raise UserError(f"{path} holds the operation {kind}; supported: {', '.join(SUPPORTED)}")
    others = [name for name in node.input if name != current]
    if list(node.input).count(current) != 1 or any(name and name not in constants for name in others):
        raise UserError(f"{path} is not a chain: {kind} joins two computed values")
    values = [constants[name] for name in others if name]
    if kind in ACTIVATIONS:
        chain.activate(Activation.parse(ACTIVATIONS[kind]))
    elif kind in ("Elu", "LeakyRelu"):
        default = 1.0 if kind == "Elu" else 0.01
        slope = attributes["alpha"].f if "alpha" in attributes else default
        chain.activate(Activation("elu" if kind == "Elu" else "leaky_relu", float(slope)))
    elif kind == "Gemm":
        if node.input[0] != current or ("transA" in attributes and attributes["transA"].i):
            raise UserError(f"{path} holds a Gemm whose first operand is not the observation or a layer, untransposed")
        weight = values[0].T if not ("transB" in attributes and attributes["transB"].i) else values[0]
        alpha = attributes["alpha"].f if "alpha" in attributes else 1.0
        beta = attributes["beta"].f if "beta" in attributes else 1.0
        chain.affine(alpha * weight, beta * _row(values[1], len(weight)) if len(values) > 1 else 0.0)
    elif kind == "MatMul":
        chain.affine(values[0].T if node.input[0] == current else values[0])
    elif kind == "Clip":
        if attributes:
            raise UserError(f"{path} holds a Clip of before opset 11; export it with a newer opset")
        m, named = len(chain.bias), [constants[n] if n else None for n in (*node.input[1:], "", "")]
        low = np.array(-np.inf) if named[0] is None else named[0]
        high = np.array(np.inf) if named[1] is None else named[1]
        chain.limits = (_row(low, m), _row(high, m))
    elif kind in ("Max", "Min"):
        if len(values) != 1:
            raise UserError(f"{path} holds a {kind} of {len(node.input)} values; expected two")
        m = len(chain.bias)
        value = _row(values[0], m)
        low, high = chain.limits or (np.full(m, -np.inf), np.full(m, np.inf))
        if kind == "Max":
            chain.limits = (np.maximum(low, value), np.maximum(high, value))
        else:
            chain.limits = (np.minimum(low, value), np.minimum(high, value))
    elif kind in ("Add", "Sub", "Mul", "Div"):
        _elementwise(chain, kind, _row(values[0], len(chain.bias)), node.input[0] == current)


def _row(value: Array, size: int) -> Array:
    """A constant that acts alike on every row of a batch, as a vector.

    Raises:
        ValueError: it would make the output wider, or differ between rows.
    """
    if value.size > 1 and value.shape[-1] != value.size:
        raise ValueError(f"a constant of shape {value.shape} does not act on each row alike")
    return np.broadcast_to(value.reshape(-1), size).copy()


def _elementwise(chain: _Chain, kind: str, value: Array, value_is_second: bool) -> None:
    eye = np.eye(len(chain.bias))
    if kind == "Add":
        chain.affine(eye, value)
    elif kind == "Sub":
        chain.affine(eye, -value) if value_is_second else chain.affine(-eye, value)
    elif kind == "Mul":
        chain.affine(np.diag(value))
    elif value_is_second:
        chain.affine(np.diag(1 / value))
    else:
        raise UserError("a constant divided by the network is not an MLP")


def write_onnx(net: PlainNet, path: Path) -> None:
    """Write a plain MLP as ONNX in float64, limits included.

    Raises:
        UserError: the extra is missing, or the network has skips or group activations.
    """
    onnx = _onnx()
    names = {ours: theirs for theirs, ours in ACTIVATIONS.items()} | {"elu": "Elu", "leaky_relu": "LeakyRelu"}
    unknown = [a.name for a in net.activations if a.name not in names]
    if not net.is_mlp or unknown:
        raise UserError(f"ONNX export takes plain MLPs with {', '.join(names)}; found {unknown or 'skips'}")
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    nodes, constants, current = [], [], "observation"
    for k, (row, bias) in enumerate(zip(net.blocks, net.biases, strict=True)):
        constants += [tensor(row[k], f"w{k}"), tensor(bias, f"b{k}")]
        nodes.append(helper.make_node("Gemm", [current, f"w{k}", f"b{k}"], [f"z{k}"], transB=1))
        current = f"z{k}"
        if k < len(net.activations):
            a = net.activations[k]
            extra = {"alpha": a.parameter} if a.name in ("elu", "leaky_relu") else {}
            nodes.append(helper.make_node(names[a.name], [current], [f"a{k}"], **extra))
            current = f"a{k}"
    for kind, name, limit in (("Max", "low", net.low), ("Min", "high", net.high)):  # Clip takes scalars only
        if limit is not None:
            constants.append(tensor(np.asarray(limit, np.float64), name))
            nodes.append(helper.make_node(kind, [current, name], [f"{name}_limited"]))
            current = f"{name}_limited"
    nodes.append(helper.make_node("Identity", [current], ["action"]))
    double = onnx.TensorProto.DOUBLE
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", double, ["batch", net.input_size])],
        [helper.make_tensor_value_info("action", double, ["batch", net.output_size])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    write_atomically(path, lambda stream: stream.write(model.SerializeToString()))
