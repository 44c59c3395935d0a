"""Lipschitz certificates: time, value and feasibility of ours against CVXPY's solvers, and tightness of every bound.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/certify_speed.py [NETWORK.npz ...]

writes benchmarks/results/certify_speed-cpu.json:

* speed: LipSDP-Neuron by our barrier method, with the proof and its check, on random networks; the same program through
  CVXPY with Clarabel and SCS on the sizes that they finish. A competitor's point is feasible if the smallest eigenvalue
  of its matrix is not negative; a value below one that is attained is wrong whatever the solver says.
* tightness: every upper bound over width and depth, divided by the largest witness found, for random networks and for
  the networks named on the command line.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.bracket import certify, upper_bounds
from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.jacobian import jacobian_certificate
from lipctrl.certify.lower import lower_bound
from lipctrl.files import write_text
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
SIZES = ((4, 32, 32, 2), (4, 64, 64, 2), (4, 128, 128, 2), (17, 256, 256, 6), (17, 256, 256, 256, 6))
COMPARED = SIZES[:2]
WIDTHS, DEPTHS = (16, 64, 128), (1, 2, 3, 4)
RESULT = Path(__file__).parent / "results" / "certify_speed-cpu.json"


def network(sizes: tuple[int, ...], activation: str = "relu") -> PlainNet:
    """A random network with Gaussian weights of variance 1 / fan-in."""
    rng = np.random.default_rng(list(sizes))
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def ours(net: PlainNet) -> dict[str, Any]:
    """Time of the certificate (solve and proof) and of its check."""
    start = time.perf_counter()
    (certificate,) = upper_bounds(net, method="lipsdp-neuron")
    seconds = time.perf_counter() - start
    checks = [timed_check(certificate, net) for _ in range(5)]
    return {"bound": certificate.bound, "seconds": seconds, "verify_ms": 1e3 * float(np.median(checks)), "proved": True}


def timed_check(certificate: Certificate, net: PlainNet) -> float:
    """Seconds of one successful `verify`."""
    start = time.perf_counter()
    if not certificate.verify(net):
        raise RuntimeError("a certificate of ours does not verify")
    return time.perf_counter() - start


def inequality(net: PlainNet, rho: Any, multipliers: list[Any], block: Any, diag: Any) -> Any:
    """The block tridiagonal matrix of LipSDP-Neuron for slopes [0, 1], in numpy or in CVXPY."""
    weights = [net.blocks[k][k] for k in range(len(net.blocks))]
    sizes = [net.input_size, *net.widths]
    rows: list[list[Any]] = [[np.zeros((a, b)) for b in sizes] for a in sizes]
    rows[0][0] = rho * np.eye(sizes[0])
    for k, w in enumerate(weights[:-1]):
        rows[k + 1][k + 1] = 2 * diag(multipliers[k])
        rows[k + 1][k] = -diag(multipliers[k]) @ w
        rows[k][k + 1] = rows[k + 1][k].T
    rows[-1][-1] = rows[-1][-1] - weights[-1].T @ weights[-1]
    return block(rows)


def competitor(net: PlainNet, solver: str) -> dict[str, Any]:
    """CVXPY with its default settings for the solver."""
    import cvxpy as cp

    rho, multipliers = cp.Variable(), [cp.Variable(n, nonneg=True) for n in net.widths]
    problem = cp.Problem(cp.Minimize(rho), [inequality(net, rho, multipliers, cp.bmat, cp.diag) >> 0])
    start = time.perf_counter()
    problem.solve(solver=solver)
    seconds = time.perf_counter() - start
    matrix = inequality(net, float(rho.value), [m.value for m in multipliers], np.block, np.diag)
    smallest = float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
    return {
        "bound": float(np.sqrt(rho.value)),
        "seconds": seconds,
        "status": problem.status,
        "smallest_eigenvalue": smallest,
        "feasible": smallest >= 0 and all((m.value >= 0).all() for m in multipliers),
    }


def jacobian_ms(net: PlainNet, radius: float) -> float:
    """Milliseconds of the Jacobian's bounds on a box around zero."""
    box = Box((-radius,) * net.input_size, (radius,) * net.input_size)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        jacobian_certificate(net, NormPair("linf", "linf"), box)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def speed() -> dict[str, Any]:
    """Ours on every size, the others on the small ones, one after the other on the same network."""
    table: dict[str, Any] = {}
    for sizes in SIZES:
        net = network(sizes)
        row = {"lipctrl barrier": ours(net)}
        if sizes in COMPARED:
            row |= {f"cvxpy {name}": competitor(net, name) for name in ("SCS", "CLARABEL")}
        table["-".join(map(str, sizes))] = row
        print(sizes, json.dumps(row, indent=1), flush=True)
    return table


def tightness(net: PlainNet) -> dict[str, float]:
    """Every global l2 bound over the largest witness."""
    lower = lower_bound(net, seed=0)
    names = ("product", "own", "eclipse-fast", "eclipse", "lipsdp-layer", "lipsdp-neuron")
    bounds = {c.method: c.bound for name in names for c in upper_bounds(net, method=name)}
    return {"lower": lower.bound} | {name: round(bound / lower.bound, 4) for name, bound in bounds.items()}


def versions() -> dict[str, str]:
    """Of everything that was timed."""
    import clarabel
    import cvxpy
    import scs

    modules = {"numpy": np, "cvxpy": cvxpy, "clarabel": clarabel, "scs": scs}
    return {name: module.__version__ for name, module in modules.items()} | {"python": platform.python_version()}


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure, print and write."""
    certify(network((3, 8, 2)))  # imports and first calls are not timed
    record: dict[str, Any] = {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
            "load": os.getloadavg()[0],
        },
        "versions": versions(),
        "speed": speed(),
        "jacobian_ms_4-64-64-2": {f"radius {r}": jacobian_ms(network((4, 64, 64, 2)), r) for r in (0.1, 1.0)},
        "tightness_random": {
            f"4-{'-'.join([str(width)] * depth)}-2": tightness(network((4, *[width] * depth, 2)))
            for width in WIDTHS
            for depth in DEPTHS
        },
        "tightness_given": {
            "/".join(Path(name).parts[-2:]): tightness(PlainNet.load(Path(name))) for name in sys.argv[1:]
        },
    }
    print(json.dumps(record["tightness_random"], indent=1))
    RESULT.parent.mkdir(exist_ok=True)
    write_text(RESULT, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
