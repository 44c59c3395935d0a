"""Latency of one action of a deployed policy: the C export, numpy, CasADi, ONNX Runtime and torch, batch 1.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/policy_latency.py

writes benchmarks/results/policy_latency-cpu.json: microseconds per call, median and 99th percentile over blocks of
calls on changing observations. The C code is compiled with `cc -O3` and called from a loop in C; "C from Python" is the
same function called through ctypes. All maps are compared with numpy first. Needs onnxruntime and a C compiler.
"""

import ctypes
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import casadi as ca
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from lipctrl.files import write_text
from lipctrl.nn.onnx import write_onnx
from lipctrl.nn.plain import PlainNet
from lipctrl.symbolic.c_code import c_code
from lipctrl.symbolic.network import to_casadi

Array = NDArray[np.float64]
Policy = Callable[[Array], Any]
SIZES = ((4, 32, 32, 2), (4, 64, 64, 2), (17, 256, 256, 6))
ACTIVATIONS = ("tanh", "relu")
BLOCKS, CALLS = 200, 100
LOOP = """
void loop(const double *observations, double *action, int calls)
{
    for (int k = 0; k < calls; k++) policy(observations + k * INPUTS, action);
}
"""
RESULT = Path(__file__).parent / "results" / "policy_latency-cpu.json"


def network(sizes: tuple[int, ...], activation: str) -> PlainNet:
    """A random network with Gaussian weights of variance 1 / fan-in."""
    rng = np.random.default_rng(list(sizes))
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def compiled(net: PlainNet, folder: Path) -> ctypes.CDLL:
    """The shared library of the C export and of a loop over it."""
    source, library = folder / "policy.c", folder / f"{net.sha256()[:12]}.so"
    source.write_text(c_code(net) + LOOP.replace("INPUTS", str(net.input_size)))
    subprocess.run(["cc", "-std=c99", "-O3", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"], check=True)
    return ctypes.CDLL(str(library))


def torch_module(net: PlainNet, activation: str) -> torch.nn.Module:
    """The same MLP as an ordinary torch module in float64."""
    parts: list[torch.nn.Module] = []
    for k, (row, bias) in enumerate(zip(net.blocks, net.biases, strict=True)):
        linear = torch.nn.Linear(row[k].shape[1], len(bias)).double()
        linear.weight.data, linear.bias.data = torch.from_numpy(row[k]), torch.from_numpy(bias)
        parts += [linear, torch.nn.Tanh() if activation == "tanh" else torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1]).requires_grad_(False)


def callables(net: PlainNet, activation: str, folder: Path) -> dict[str, Policy]:
    """Every way to call the policy from Python, on one observation (n,)."""
    pointer, action = ctypes.POINTER(ctypes.c_double), np.empty(net.output_size)
    library, out = compiled(net, folder), action.ctypes.data_as(pointer)
    function, module = to_casadi(net), torch_module(net, activation)
    write_onnx(net, folder / "policy.onnx")
    session = onnxruntime.InferenceSession(str(folder / "policy.onnx"), providers=["CPUExecutionProvider"])

    def c_from_python(x: Array) -> Array:
        library.policy(x.ctypes.data_as(pointer), out)
        return action

    return {
        "C from Python": c_from_python,
        "numpy": net,
        "casadi": function,
        "onnxruntime": lambda x: session.run(None, {"observation": x[None]})[0],
        "torch": lambda x: module(torch.from_numpy(x)),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile in microseconds per call."""
    micro = 1e6 * np.array(seconds) / CALLS
    return {"median_us": round(float(np.median(micro)), 3), "p99_us": round(float(np.percentile(micro, 99)), 3)}


def timed(block: Callable[[], None]) -> dict[str, float]:
    """Latency from blocks of CALLS calls, after one block that is not counted."""
    block()
    seconds = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        block()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def measure(net: PlainNet, activation: str) -> dict[str, Any]:
    """Latency of every way to call one network."""
    observations = np.random.default_rng(0).normal(size=(CALLS, net.input_size))
    with tempfile.TemporaryDirectory() as name:
        folder, pointer, action = Path(name), ctypes.POINTER(ctypes.c_double), np.empty(net.output_size)
        library = compiled(net, folder)
        first, out = observations.ctypes.data_as(pointer), action.ctypes.data_as(pointer)
        row = {"C": timed(lambda: library.loop(first, out, CALLS))}
        for label, policy in callables(net, activation, folder).items():
            found = np.array([np.asarray(policy(x), np.float64).ravel().copy() for x in observations])
            np.testing.assert_allclose(found, net(observations), rtol=1e-9, atol=1e-9)

            def block(policy: Policy = policy) -> None:
                for x in observations:
                    policy(x)

            row[label] = timed(block)
    return row


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure, print and write."""
    torch.set_num_threads(1)
    table: dict[str, Any] = {}
    for sizes in SIZES:
        for activation in ACTIVATIONS:
            row = measure(network(sizes, activation), activation)
            table[f"{'-'.join(map(str, sizes))} {activation}"] = row
            print(sizes, activation, json.dumps(row), flush=True)
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    modules = {"numpy": np, "casadi": ca, "onnxruntime": onnxruntime, "torch": torch}
    record = {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
            "load": os.getloadavg()[0],
        },
        "versions": {name: module.__version__ for name, module in modules.items()}
        | {"python": platform.python_version(), "cc": compiler},
        "latency": table,
    }
    RESULT.parent.mkdir(exist_ok=True)
    write_text(RESULT, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
