"""Milliseconds per MPC solve: ours beside do-mpc and l4casadi, same problem, same run, one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/mpc_latency.py

writes benchmarks/results/mpc_latency-cpu.json. The competitors are not dependencies; rows of one that is not installed
say so. A throwaway environment that has both:

    python -m venv other && other/bin/pip install -c constraints.txt -e . do-mpc setuptools scikit-build "cmake<4" ninja
    other/bin/pip install --no-build-isolation l4casadi

Three problems. "reactor": NMPC of the unstable reactor, 10 steps, from 8 states on the border of its stability region,
60 steps each. "chain": linear MPC of six masses between springs, 12 states, 3 limited inputs, 20 steps. "learned": NMPC
whose model is a tanh network of the reactor (last layer fitted), 10 steps. Every controller starts from its shifted
plan, acts on the same simulated plant and pays the same cost. "first" is the first call of a loop, "warm" the others.
"convex": a one-sided cost on an unrolled input-convex model, by our tangents and by IPOPT (exact Hessians), and by
IPOPT on the same model behind l4casadi, from cold starts.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import casadi as ca
import numpy as np
from numpy.typing import NDArray

from lipctrl.envs.cstr import LEVEL, P, cstr_plant
from lipctrl.envs.linear import linear_plant
from lipctrl.files import write_text
from lipctrl.models.model import ProcessModel
from lipctrl.mpc.controller import NMPC, Speed
from lipctrl.mpc.linear import LinearMPC
from lipctrl.mpc.problem import OCP, regulation
from lipctrl.nn.plain import PlainNet
from lipctrl.plant import Plant
from lipctrl.symbolic.network import to_casadi

Array = NDArray[np.float64]
Solver = Callable[[Array, bool], Array]  # (state, whether it starts a loop) -> input
RESULT = Path(__file__).parent / "results" / "mpc_latency-cpu.json"
REACTOR = cstr_plant()
Q, R = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])
STEPS = 60
LIMITED = "limited-memory"


def border_states(count: int) -> Array:
    """States on the border of the reactor's stability region."""
    angles = np.linspace(0.2, 0.2 + 2 * np.pi, count, endpoint=False)
    factor = np.sqrt(LEVEL) * np.linalg.inv(np.linalg.cholesky(P).T)
    return REACTOR.equilibrium[0] + (factor @ [np.cos(angles), np.sin(angles)]).T


def masses() -> tuple[Plant, Array]:
    """Six unit masses between springs and walls, three forces on pairs, sampled every 0.5 s; and start states."""
    n = 6
    stiffness = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    forces = np.zeros((n, 3))
    for j, (a, b) in enumerate(((0, 1), (2, 4), (3, 5))):
        forces[a, j], forces[b, j] = 1.0, -1.0
    rates = np.block([[np.zeros((n, n)), np.eye(n), np.zeros((n, 3))], [-stiffness, -0.1 * np.eye(n), forces]])
    both = np.vstack([0.5 * rates, np.zeros((3, 15))])
    from scipy.linalg import expm

    sampled = expm(both)
    plant = linear_plant(sampled[:12, :12], sampled[:12, 12:], dt=0.5, state_limit=4.0, input_limit=0.5)
    return plant, np.random.default_rng(0).uniform(-1, 1, (8, 12))


def ours(controller: NMPC | LinearMPC) -> Solver:
    """Warm-started by the shifted plan."""
    last: list[Any] = [None]

    def solve(x: Array, fresh: bool) -> Array:
        solution = controller.solve(x, None if fresh else last[0].shifted())
        assert solution.feasible, solution.status
        last[0] = solution
        return np.asarray(solution.inputs[0])

    return solve


def do_mpc_solver(plant: Plant, ocp: OCP) -> Solver:
    """do-mpc on the same equations, limits and weights: collocation where they are continuous, IPOPT, its defaults."""
    import do_mpc

    model = do_mpc.model.Model("discrete" if plant.ode is None else "continuous", "SX")
    x = model.set_variable("_x", "x", (len(plant.state), 1))
    u = model.set_variable("_u", "u", (len(plant.input), 1))
    function = plant.update if plant.ode is None else plant.ode
    model.set_rhs("x", function(x, u, np.zeros(len(plant.disturbance))))
    model.setup()
    mpc = do_mpc.controller.MPC(model)
    mpc.settings.n_horizon, mpc.settings.t_step, mpc.settings.store_full_solution = ocp.horizon, plant.dt, False
    mpc.settings.supress_ipopt_output()
    dx, du = x - ocp.x_ref, u - ocp.u_ref
    mpc.set_objective(mterm=ca.bilin(ocp.P, dx, dx), lterm=ca.bilin(ocp.Q, dx, dx) + ca.bilin(ocp.R, du, du))
    mpc.set_rterm(u=np.zeros((len(plant.input), 1)))
    for kind, name, low, high in (("_x", "x", ocp.x_low, ocp.x_high), ("_u", "u", ocp.u_low, ocp.u_high)):
        mpc.bounds["lower", kind, name], mpc.bounds["upper", kind, name] = low, high
    mpc.scaling["_x", "x"], mpc.scaling["_u", "u"] = ocp.x_scale, ocp.u_scale
    mpc.setup()

    def solve(state: Array, fresh: bool) -> Array:
        if fresh:
            mpc.reset_history()
            mpc.x0, mpc.u0 = state, ocp.u_ref
            mpc.set_initial_guess()
        return np.asarray(mpc.make_step(state[:, None])).ravel()

    return solve


def learned_network(width: int, layers: int) -> PlainNet:
    """Increments of the reactor in one sampling period from (x, u), scaled; last layer by ridge regression."""
    rng, (x_e, u_e) = np.random.default_rng(1), REACTOR.equilibrium
    x_scale, u_scale = np.array([0.5, 20.0]), np.array([3.5, 5e5])
    x = x_e + rng.uniform(-1.5, 1.5, (6000, 2)) * x_scale
    u = np.clip(u_e + rng.uniform(-1, 1, (6000, 2)) * u_scale, REACTOR.input.low, REACTOR.input.high)
    features = np.hstack([(x - x_e) / x_scale, (u - u_e) / u_scale])
    sizes = (4,) + (width,) * layers
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False)]
    biases = [rng.uniform(-1, 1, b) for b in sizes[1:]]
    hidden = features
    for W, b in zip(weights, biases, strict=True):
        hidden = np.tanh(hidden @ W.T + b)
    targets = (REACTOR.step(x, u) - x) / x_scale
    ones = np.hstack([hidden, np.ones((len(hidden), 1))])
    last = np.linalg.solve(ones.T @ ones + 1e-6 * np.eye(width + 1), ones.T @ targets)
    return PlainNet.mlp([*weights, last[:-1].T], [*biases, last[-1]], "tanh")


def learned_update(network: Any) -> ca.Function:
    """(x, u, w) -> x+ in MX around any function of the scaled (x, u)."""
    x_e, u_e = REACTOR.equilibrium
    x, u, w = ca.MX.sym("x", 2), ca.MX.sym("u", 2), ca.MX.sym("w", 2)
    scaled = ca.vertcat((x - x_e) / ca.DM([0.5, 20.0]), (u - u_e) / ca.DM([3.5, 5e5]))
    return ca.Function("update", [x, u, w], [x + ca.DM([0.5, 20.0]) * network(scaled)], ["x", "u", "w"], ["x_next"])


def l4casadi_solver(net: PlainNet, ocp: OCP) -> Solver:
    """The same shooting problem by IPOPT with the network behind l4casadi. Its second derivatives are not provided, so
    that IPOPT approximates the Hessian (limited memory)."""
    import l4casadi as l4c
    import torch

    parts: list[torch.nn.Module] = []
    for k, (row, bias) in enumerate(zip(net.blocks, net.biases, strict=True)):
        linear = torch.nn.Linear(row[k].shape[1], len(bias))
        linear.weight.data, linear.bias.data = torch.from_numpy(row[k]).float(), torch.from_numpy(bias).float()
        parts += [linear, torch.nn.Tanh()]
    sizes = "x".join(str(len(b)) for b in net.biases)
    module, folder = torch.nn.Sequential(*parts[:-1]), tempfile.mkdtemp()
    wrapped = l4c.L4CasADi(module, device="cpu", name=f"net{sizes}", build_dir=folder)
    update = learned_update(lambda z: wrapped(z.T).T)
    from lipctrl.mpc.controller import solve_programme
    from lipctrl.mpc.shooting import transcribe

    programme = transcribe(update, ocp)
    options = {"print_level": 0, "sb": "yes", "tol": 1e-4, "hessian_approximation": LIMITED, "max_iter": 200}
    solver = ca.nlpsol("l4c", "ipopt", programme.nlp, {"ipopt": options, "print_time": False, "error_on_fail": False})
    last: list[Any] = [None]

    def solve(x: Array, fresh: bool) -> Array:
        solution = solve_programme(solver, programme, x, None if fresh else last[0].shifted())
        last[0] = solution
        return np.asarray(solution.inputs[0])

    return solve


def measure(solve: Solver, plant: Plant, ocp: OCP, starts: Array) -> dict[str, float]:
    """Run the loops; milliseconds per call and the mean closed-loop cost."""
    first, warm, cost = [], [], 0.0
    for start in starts:
        x = start
        for k in range(STEPS):
            begin = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                u = solve(x, k == 0)
            (warm if k else first).append(1e3 * (time.perf_counter() - begin))
            u = np.clip(u, ocp.u_low, ocp.u_high)
            dx, du = x - ocp.x_ref, u - ocp.u_ref
            cost += float(dx @ ocp.Q @ dx + du @ ocp.R @ du) / len(starts)
            x = plant.step(x, u)
    return {
        "first ms": float(np.median(first)),
        "median ms": float(np.median(warm)),
        "p99 ms": float(np.percentile(warm, 99)),
        "closed-loop cost": cost,
        "calls": len(warm),
    }


def row(make: Callable[[], Solver], plant: Plant, ocp: OCP, starts: Array) -> dict[str, Any]:
    """A measured row, or why there is none."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            solve = make()
    except ImportError as error:
        return {"not measured": f"{error.name} is not installed; see the head of benchmarks/mpc_latency.py"}
    return measure(solve, plant, ocp, starts)


def reactor() -> dict[str, Any]:
    """NMPC of the reactor."""
    ocp, starts = regulation(REACTOR, Q, R, horizon=10), border_states(8)
    rows: dict[str, Any] = {}
    for name in ("sqpmethod-daqp", "sqpmethod-piqp", "sqpmethod-hpipm", "fatrop", "ipopt"):
        rows[name] = row(lambda name=name: ours(NMPC(REACTOR, ocp, name)), REACTOR, ocp, starts)  # type: ignore[misc]
    for label, speed in (("compiled", Speed(compiled=True)), ("real-time", Speed(real_time=True))):
        rows[f"sqpmethod-piqp, {label}"] = row(
            lambda speed=speed: ours(NMPC(REACTOR, ocp, "sqpmethod-piqp", speed=speed)),
            REACTOR,
            ocp,
            starts,  # type: ignore[misc]
        )
    rows["do-mpc"] = row(lambda: do_mpc_solver(REACTOR, ocp), REACTOR, ocp, starts)
    return rows


def chain() -> dict[str, Any]:
    """Linear MPC of the chain."""
    plant, starts = masses()
    ocp = regulation(plant, np.eye(12), 0.5 * np.eye(3), horizon=20)
    rows: dict[str, Any] = {}
    for name in ("daqp", "piqp", "hpipm"):
        rows[name] = row(lambda name=name: ours(LinearMPC(plant, ocp, name)), plant, ocp, starts)  # type: ignore[misc]
    rows["do-mpc"] = row(lambda: do_mpc_solver(plant, ocp), plant, ocp, starts)
    return rows


def learned(width: int, layers: int) -> dict[str, Any]:
    """NMPC with a network as its model."""
    net = learned_network(width, layers)
    plant = replace(REACTOR, update=learned_update(to_casadi(net)), ode=None)
    ocp, starts = regulation(REACTOR, Q, R, horizon=10), border_states(4)
    rows: dict[str, Any] = {}
    for name, speed in (
        ("sqpmethod-daqp", Speed()),
        ("sqpmethod-piqp", Speed()),
        ("sqpmethod-hpipm", Speed()),
        ("sqpmethod-piqp, compiled", Speed(compiled=True)),
        ("sqpmethod-piqp, real-time", Speed(real_time=True)),
        ("ipopt", Speed()),
    ):
        solver = name.split(",")[0]
        rows[name] = row(
            lambda solver=solver, speed=speed: ours(NMPC(plant, ocp, solver, speed=speed)),
            REACTOR,
            ocp,
            starts,  # type: ignore[misc]
        )
    rows["l4casadi"] = row(lambda: l4casadi_solver(net, ocp), REACTOR, ocp, starts)
    return rows


def convex(activation: str) -> dict[str, Any]:
    """One-sided cost on an input-convex model of the quadruple tank, 10 steps: tangents against IPOPT, cold starts."""
    from lipctrl.envs.quad_tank import quad_tank_plant
    from lipctrl.models.fit import FitSettings, fit
    from lipctrl.models.windows import from_plant
    from lipctrl.mpc.convex import ConvexCost, ConvexMPC

    train, validation, _ = from_plant(quad_tank_plant(), windows=3000, horizon=10, seed=0).split(0)
    (model,) = fit(FitSettings(epochs=30, activation=activation), train, validation, seeds=(0,)).models
    s, net = model.scaling, model.to_plain()
    cost = ConvexCost(
        price=np.zeros(4),
        weight=100 / s.state_width**2,
        limit=s.state_low + 0.5 * s.state_width,
        R=np.diag(1 / s.input_width**2),
        u_ref=s.input_low + 0.8 * s.input_width,
        u_low=s.input_low,
        u_high=s.input_low + s.input_width,
    )
    mpc, x, u = ConvexMPC(net, cost), ca.MX.sym("x", 4), ca.MX.sym("u", 20)

    def ipopt(states: ca.MX, **options: Any) -> ca.Function:
        over = ca.fmax(states - np.tile(cost.limit, 10), 0) * np.tile(np.sqrt(cost.weight), 10)
        problem = {"x": u, "p": x, "f": ca.sumsqr(over) + ca.sumsqr(u - 0.8)}
        quiet = {"print_time": False, "error_on_fail": False, "ipopt": {"print_level": 0, "sb": "yes", **options}}
        return ca.nlpsol("s", "ipopt", problem, quiet)

    raw = ca.vertcat(x, np.tile(s.input_low, 10) + np.tile(s.input_width, 10) * u)
    solvers = {"ipopt": ipopt(to_casadi(net)(raw))}
    with contextlib.suppress(ImportError):
        solvers["ipopt, l4casadi"] = ipopt(
            l4casadi_states(model, x, u), hessian_approximation=LIMITED, tol=1e-4, max_iter=200
        )
    states = s.state_low + s.state_width * np.random.default_rng(0).uniform(0.3, 0.7, (20, 4))
    plans = [mpc.solve(state) for state in (states[0], *states)][1:]  # the first builds what is kept
    rows = {"tangents": [[1e3 * plan.wall_time, plan.cost, plan.iterations, plan.gap] for plan in plans]}
    for name, solver in solvers.items():
        rows[name] = []
        for state in (states[0], *states):
            begin = time.perf_counter()
            found = solver(x0=0.8, p=state, lbx=0, ubx=1)
            seconds = time.perf_counter() - begin
            rows[name].append([1e3 * seconds, float(found["f"]), solver.stats()["iter_count"]])
        del rows[name][0]
    table = {
        name: {
            "median ms": float(np.median([v[0] for v in values])),
            "largest ms": float(np.max([v[0] for v in values])),
            "mean cost": float(np.mean([v[1] for v in values])),
            "iterations": float(np.mean([v[2] for v in values])),
        }
        for name, values in rows.items()
    }
    table["tangents"]["largest proved gap"] = float(np.max([v[3] for v in rows["tangents"]]))
    return table


def l4casadi_states(model: ProcessModel, x: ca.MX, u: ca.MX) -> ca.MX:
    """Raw states over the horizon from the raw start and scaled inputs, the torch cell behind l4casadi."""
    import l4casadi as l4c
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = model.cell.float()

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.cell(z[:, :4], z[:, 4:].reshape(-1, 10, 2)).reshape(-1, 40)  # type: ignore[no-any-return]

    s, folder = model.scaling, tempfile.mkdtemp()
    wrapped = l4c.L4CasADi(Flat(), device="cpu", name=f"cell{model.facts['seed']}{len(folder)}", build_dir=folder)
    scaled = ca.vertcat((x - s.state_low) / s.state_width, u)
    return np.tile(s.state_low, 10) + np.tile(s.state_width, 10) * wrapped(scaled.T).T


def main() -> None:
    """Measure, write and print."""
    results = {"reactor": reactor(), "chain": chain()}
    for width, layers in ((64, 1), (32, 2), (64, 2)):
        results[f"learned {layers}x{width}"] = learned(width, layers)
    for activation in ("softplus", "relu"):
        results[f"convex, {activation}"] = convex(activation)
    versions = {}
    for name in ("casadi", "numpy", "do-mpc", "l4casadi"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    record = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": {"python": platform.python_version(), **versions},
        "results": results,
    }
    RESULT.parent.mkdir(exist_ok=True)
    write_text(RESULT, json.dumps(record, indent=1) + "\n")
    for problem, rows in results.items():
        print(problem)
        for name, values in rows.items():
            text = {k: (f"{v:.4g}" if isinstance(v, float) else v) for k, v in values.items()}
            print(f"  {name:32} {text}")


if __name__ == "__main__":
    main()
