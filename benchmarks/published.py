"""Experiments whose tables the documentation prints. Each row writes benchmarks/results/published-<row>.json.

    OMP_NUM_THREADS=1 python benchmarks/published.py ROW [ROW ...]

Rows:
    bound-sweep            double integrator, LQR expert, 21 x 21 grid: error, costs under disturbance and tolerated
                           measurement error against the bound, for the midpoint policy and for networks; a figure
    double-integrator-mpc  10,000 MPC answers cloned by a Lipschitz policy and by an ordinary network
    reactor-mpc            the same for the reactor's nonlinear MPC, with latencies
    training-speed         seconds to train a 2x64 sandwich policy on 10,000 pairs
    mujoco-clones          Hopper and HalfCheetah: PPO experts (a million steps each), cloned with and without bounds,
                           attacked; 40 minutes, in the folder runs/mujoco-clones, where it goes on if interrupted
    mbpo-GROUP             smooth critics in model-based learning, GROUP as in `mbpo_study.py`
    pendulum-bounds        Lipschitz-bounded swing-up under attack and delay, as in `attack_study.py`
    hopper-ladder          PPO on Hopper under attacks of rising strength, as in `attack_study.py`
    iclrnn-PART            the studies of process models, PART as in `iclrnn_study.py`, which writes iclrnn-PART.json
"""

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib
import numpy as np
from attack_study import ROWS as ATTACKS
from certify_speed import processor
from iclrnn_study import ROWS as ICLRNN
from matplotlib.figure import Figure
from mbpo_study import ROWS as MBPO
from numpy.typing import NDArray
from rich.progress import track

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.agents.bc import BC, BCSettings, build
from lipctrl.agents.bc_graph import MidpointPolicy
from lipctrl.certify.bracket import certify, upper_bounds
from lipctrl.certify.certificate import Box
from lipctrl.certify.guarantees import least_residual
from lipctrl.cli.closed_loop import closed_loop, loop_of
from lipctrl.demos.cover import expert_slope
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.envs.base import PlantEnv
from lipctrl.envs.cstr import LEVEL, P
from lipctrl.evaluation.statistics import stratified_bootstrap
from lipctrl.files import write_text
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.invariant import Polytope, maximal_invariant_set
from lipctrl.mpc.linear import LinearMPC
from lipctrl.mpc.lqr import LqrSolution, lqr
from lipctrl.mpc.mpc_policy import Controller
from lipctrl.mpc.problem import OCP, regulation
from lipctrl.mpc.tube import mismatch_network
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.runs import package_versions
from lipctrl.seeding import generator

matplotlib.rcParams["svg.hashsalt"] = "lipctrl"  # identical bytes for identical figures
Array = NDArray[np.float64]
RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "algorithms"
PAIRS = 10_000
TRAININGS = 5


def answers(controller: Controller, states: Array) -> tuple[Array, Array, list[float]]:
    """The feasible states among the given ones, their MPC inputs, and the seconds of every solve."""
    kept, inputs, seconds = [], [], []
    for x in track(states, description="MPC answers"):
        solution = controller.solve(x)
        seconds.append(solution.wall_time)
        if solution.feasible:
            kept.append(x)
            inputs.append(solution.inputs[0])
    return np.array(kept), np.array(inputs), seconds


def latency(policy: Policy, x: Array) -> float:
    """Median seconds of one call."""
    seconds = []
    for _ in range(300):
        start = time.perf_counter()
        policy.predict(x)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def loop_cost(env: PlantEnv, act: Callable[[Array], Array], starts: Array, steps: int) -> tuple[Array, Array]:
    """Undisturbed cost of each start, and its largest violation of the state limits in the state's units."""
    plant, x = env.plant, starts.copy()
    costs, excess = np.zeros(len(x)), np.zeros(len(x))
    for _ in range(steps):
        u = np.clip(act(x), plant.input.low, plant.input.high)
        costs += [env.stage_cost(a, b) for a, b in zip(x, u, strict=True)]
        x = plant.step(x, u)
        beyond = np.maximum(x - np.array(plant.state.high), np.array(plant.state.low) - x)
        excess = np.maximum(excess, np.where(np.isfinite(beyond), beyond, np.inf).max(1))
    return costs, np.maximum(excess, 0)


def mpc_inputs(controller: Controller) -> Callable[[Array], Array]:
    """First inputs for a batch of states."""
    return lambda x: np.array([controller.solve(row).inputs[0] for row in x])


def cloned(env_id: str, demos: Demonstrations, **settings: Any) -> tuple[BC, float]:
    """A trained clone and the seconds it took."""
    agent = build(BCSettings(env=env_id, **settings), gymnasium.make(env_id), demos)
    start = time.perf_counter()
    agent.learn(BCSettings(**settings).updates)
    return agent, time.perf_counter() - start


def double_integrator_problem(env: PlantEnv) -> tuple[OCP, Array]:
    """N = 10, |x_i| <= 10, |u| <= 1, cost-to-go and maximal invariant set of the LQR (as in the evanqp notebook)."""
    A, B, _ = env.plant.linearise(*env.plant.equilibrium)
    assert env.Q is not None and env.R is not None
    expert = lqr(A, B, env.Q, env.R)
    rows = np.vstack([np.eye(2), -np.eye(2), -expert.K, expert.K])
    limits = Polytope(rows, np.concatenate([np.full(4, 10.0), np.ones(2)]))
    ocp = regulation(
        env.plant, env.Q, env.R, horizon=10, P=expert.P, terminal_set=maximal_invariant_set(expert.A_cl, limits)
    )
    small = replace(ocp, x_low=np.full(2, -10.0), x_high=np.full(2, 10.0), u_low=-np.ones(1), u_high=np.ones(1))
    return small, expert.K


def summary(values: list[float]) -> dict[str, float]:
    """Median and range over trainings."""
    return {"median": float(np.median(values)), "low": float(np.min(values)), "high": float(np.max(values))}


def double_integrator_mpc() -> dict[str, Any]:
    """Worst error, error slope near the origin, certified constant and closed loop of clones of a linear MPC."""
    env = gymnasium.make("lipctrl/DoubleIntegrator-v0").unwrapped
    assert isinstance(env, PlantEnv)
    ocp, K = double_integrator_problem(env)
    controller = LinearMPC(env.plant, ocp)
    rng = generator(0, "states")
    states = rng.uniform(-10, 10, (3 * PAIRS, 2))
    x, u, seconds = answers(controller, states)
    train, test = slice(0, PAIRS), slice(PAIRS, PAIRS + 2000)
    slope = expert_slope(x[train], u[train])
    demos = Demonstrations.from_pairs(x[train], u[train], {})
    starts = x[PAIRS : PAIRS + 100]
    expert_cost, _ = loop_cost(env, mpc_inputs(controller), starts, 50)
    near = Box((-0.3, -0.3), (0.3, 0.3))
    record: dict[str, Any] = {
        "pairs": PAIRS,
        "feasible share": len(x) / len(states),
        "steepest slope in the data": slope.value,
        "mpc latency ms": 1e3 * float(np.median(seconds)),
        "mpc cost": float(expert_cost.mean()),
        "clones": {},
    }
    loop = loop_of(gymnasium.make("lipctrl/DoubleIntegrator-v0"))
    kinds: dict[str, dict[str, Any]] = {f"sandwich, bound {lip:g}": {"lip": lip} for lip in (1.2, 1.7, 2.5)}
    kinds["unconstrained"] = {"lip": None, "family": "unconstrained"}
    for name, settings in kinds.items():
        rows: dict[str, list[float]] = {}
        for seed in range(TRAININGS):
            agent, taken = cloned(
                "lipctrl/DoubleIntegrator-v0", demos, seed=seed, updates=6000, activation="relu", **settings
            )
            net = _limited(agent.policy.to_plain(), -1.0, 1.0)
            error = np.abs(net(x[test]) - u[test])[:, 0]
            local = mismatch_network(net.without_limits(), K)
            cost, excess = loop_cost(env, net, starts, 50)
            tolerated = {r.quantity: r.value for r in closed_loop(loop, net, measurement=0.0).rows}
            for key, value in {
                "worst error": error.max(),
                "mean error": error.mean(),
                "error at the origin": abs(float(net(np.zeros(2))[0])),
                "error slope near the origin, proved": min(
                    c.bound
                    for method in ("jacobian", "lipsdp-neuron-local")
                    for c in upper_bounds(local, region=near, method=method)
                ),
                "constant, proved": certify(net).upper.bound,
                "extra cost %": 100 * float((cost - expert_cost).sum() / expert_cost.sum()),
                "largest state violation": float(np.maximum(excess - 0, 0).max()),
                "tolerated measurement error, bound": tolerated["largest measurement error"] or 0.0,
                "latency us": 1e6 * latency(PlainPolicy(net), starts[0]),
                "training seconds": taken,
            }.items():
                rows.setdefault(key, []).append(float(value))
        record["clones"][name] = {key: summary(values) for key, values in rows.items()}
        print(name, json.dumps(record["clones"][name]))
    return record


def _limited(net: PlainNet, low: float, high: float) -> PlainNet:
    m = net.output_size
    return replace(net, low=np.full(m, low), high=np.full(m, high))


def reactor_mpc() -> dict[str, Any]:
    """Clones of the reactor's NMPC on its stability region, in normalised units."""
    env = gymnasium.make("lipctrl/Cstr-v0").unwrapped
    assert isinstance(env, PlantEnv) and env.Q is not None and env.R is not None
    controller = NMPC(env.plant, regulation(env.plant, env.Q, env.R, horizon=20))
    rng, root = generator(0, "states"), np.linalg.inv(np.linalg.cholesky(P / LEVEL).T)
    directions = rng.normal(size=(PAIRS + 2000, 2))
    radii = np.sqrt(rng.uniform(size=(len(directions), 1)))
    states = env.plant.equilibrium[0] + radii * directions / np.linalg.norm(directions, axis=1, keepdims=True) @ root.T
    x, u, seconds = answers(controller, states)
    train, test = slice(0, PAIRS), slice(PAIRS, None)
    demos = Demonstrations.from_pairs(x[train], u[train], {})
    std_x, std_u = x[train].std(0), u[train].std(0)
    norm = NormPair(input_scale=tuple(std_x), output_scale=tuple(std_u))
    starts = x[PAIRS : PAIRS + 20]
    expert_cost, _ = loop_cost(env, mpc_inputs(controller), starts, 60)
    slope = expert_slope(x[train] / std_x, u[train] / std_u)
    record: dict[str, Any] = {
        "pairs": PAIRS,
        "units": {"states": std_x.tolist(), "inputs": std_u.tolist()},
        "steepest slope in the data": slope.value,
        "mpc latency ms": 1e3 * float(np.median(seconds)),
        "mpc cost": float(expert_cost.mean()),
        "clones": {},
    }
    kinds: dict[str, dict[str, Any]] = {f"sandwich, bound {lip:g}": {"lip": lip} for lip in (1.5, 3.0, 6.0)}
    kinds["unconstrained"] = {"lip": None, "family": "unconstrained"}
    for name, settings in kinds.items():
        rows: dict[str, list[float]] = {}
        for seed in range(TRAININGS):
            agent, taken = cloned(
                "lipctrl/Cstr-v0", demos, seed=seed, updates=6000, activation="relu", units="normalised", **settings
            )
            net = agent.policy.to_plain()
            error = np.linalg.norm((net(x[test]) - u[test]) / std_u, axis=1)
            cost, _ = loop_cost(env, net, starts, 60)
            for key, value in {
                "worst error": error.max(),
                "mean error": error.mean(),
                "constant, proved": certify(net, norm).upper.bound,
                "extra cost %": 100 * float((cost - expert_cost).sum() / expert_cost.sum()),
                "latency us": 1e6 * latency(PlainPolicy(net), starts[0]),
                "training seconds": taken,
            }.items():
                rows.setdefault(key, []).append(float(value))
        record["clones"][name] = {key: summary(values) for key, values in rows.items()}
        print(name, json.dumps(record["clones"][name]))
    return record


def training_speed() -> dict[str, Any]:
    """Seconds of the default training (3000 updates of 256 pairs) of 2x64 policies on 10,000 pairs of an LQR expert."""
    rng = generator(0, "speed")
    x = rng.normal(size=(PAIRS, 4))
    demos = Demonstrations.from_pairs(x, -x @ rng.normal(size=(4, 1)), {})
    record = {}
    for family in ("sandwich", "unconstrained"):
        settings = {"family": family, "lip": None if family == "unconstrained" else 3.0}
        taken = [cloned("InvertedPendulum-v5", demos, seed=seed, **settings)[1] for seed in range(3)]
        record[family] = summary(taken)
    return {"seconds": record}


def attacked_cost(policy: Policy, expert: LqrSolution, kind: str, size: float) -> float:
    """Cost of 100 steps from (1, 0) of the double integrator, the measured state displaced along the expert's gain."""
    A, B = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [1.0]])
    v, x, total = expert.K[0] / np.linalg.norm(expert.K), np.array([1.0, 0.0]), 0.0
    for t in range(100):
        sign = {"none": 0.0, "constant": 1.0, "alternating": (-1.0) ** t}.get(kind, 1.0)
        if kind == "greedy":  # the sign that raises the next x'Px
            after = [A @ x + B @ policy.predict(x + s * size * v)[0] for s in (1.0, -1.0)]
            sign = 1.0 if after[0] @ expert.P @ after[0] >= after[1] @ expert.P @ after[1] else -1.0
        u = policy.predict(x + sign * size * v)[0]
        total += float(x @ x + 0.1 * u @ u)
        x = A @ x + B @ u
    return total


CASES = (("none", 0.0), ("constant", 0.05), ("alternating", 0.05), ("greedy", 0.05), ("greedy", 0.1))


def bound_sweep() -> dict[str, Any]:
    """The trade between nominal and attacked cost over the bound, and what is certified."""
    env_id = "lipctrl/DoubleIntegrator-v0"
    loop = loop_of(gymnasium.make(env_id))
    K = loop.expert.K
    x, fine = (np.stack(np.meshgrid(*[np.linspace(-1, 1, k)] * 2), -1).reshape(-1, 2) for k in (21, 161))
    demos = Demonstrations.from_pairs(x, -x @ K.T, {})
    lips = (0.8, 1.0, 1.3, 1.5, float(np.linalg.norm(K)), 2.0, 3.0)
    linear = PlainPolicy(PlainNet(({0: -K},), (np.zeros(1),), ()))
    record: dict[str, Any] = {"expert": [attacked_cost(linear, loop.expert, *case) for case in CASES], "rows": []}
    for lip in track(lips, description="bounds"):
        midpoint = MidpointPolicy(x, -x @ K.T, lip)
        row: dict[str, Any] = {
            "lip": lip,
            "least residual": least_residual(x, -x @ K.T, lip).value,
            "midpoint error": float(np.abs(midpoint.predict(fine)[0] + fine @ K.T).max()),
            "midpoint costs": [attacked_cost(midpoint, loop.expert, *case) for case in CASES],
        }
        errors, costs, tolerated = [], [], []
        for seed in range(TRAININGS):
            net = cloned(env_id, demos, seed=seed, lip=lip, validation=0.0, updates=2000)[0].policy.to_plain()
            errors.append(float(np.abs(net(fine) + fine @ K.T).max()))
            costs.append([attacked_cost(PlainPolicy(net), loop.expert, *case) for case in CASES])
            rows = {r.quantity: r.value for r in closed_loop(loop, net, measurement=0.0).rows}
            tolerated.append(rows["largest measurement error"] or 0.0)
        row |= {
            "network error": summary(errors),
            "network costs": [summary(list(column)) for column in zip(*costs, strict=True)],
            "tolerated measurement error": summary(tolerated),
        }
        record["rows"].append(row)
    write_text(FIGURES / "bound_sweep.svg", sweep_figure(record))
    return {"cases": [f"{kind} {size:g}" for kind, size in CASES], **record}


def sweep_figure(record: dict[str, Any]) -> str:
    """Nominal and attacked cost, and the tolerated measurement error, against the bound."""
    figure = Figure(figsize=(6.4, 5.6))
    costs, tolerance = figure.subplots(2, 1, sharex=True)
    lips = [row["lip"] for row in record["rows"]]
    for k, (case, label) in enumerate(((0, "nominal"), (3, "greedy, 0.05"), (4, "greedy, 0.1"))):
        costs.plot(lips, [row["midpoint costs"][case] for row in record["rows"]], "--", color=f"C{k}", lw=1)
        networks = [row["network costs"][case] for row in record["rows"]]
        costs.plot(lips, [n["median"] for n in networks], "-o", ms=3, color=f"C{k}", label=label)
        costs.fill_between(lips, [n["low"] for n in networks], [n["high"] for n in networks], color=f"C{k}", alpha=0.2)
    found = [row["tolerated measurement error"] for row in record["rows"]]
    tolerance.plot(lips, [f["median"] for f in found], "-o", ms=3, color="C4")
    tolerance.fill_between(lips, [f["low"] for f in found], [f["high"] for f in found], color="C4", alpha=0.2)
    costs.set(yscale="log", ylabel="cost of 100 steps")
    costs.legend(title="networks; dashed: midpoint policy", fontsize=8)
    tolerance.set(ylabel="tolerated measurement error", xlabel="Lipschitz bound of the policy")
    for axes in (costs, tolerance):
        axes.axvline(1.65057616, color="0.3", ls=":", lw=1)
        axes.grid(alpha=0.3)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()


CLONES = {
    "hopper": {
        "env": "Hopper-v5",
        "collect": "--episodes 20 --dither 0.1",
        "sweep": "--lips 2 4 8 --episodes 10 --radii 0 0.025 0.05 0.075",
    },
    "half-cheetah": {
        "env": "HalfCheetah-v5",
        "collect": "--episodes 10 --dither 0.1",
        "sweep": "--lips 1 2 4 --episodes 5 --radii 0 0.05 0.1 0.15",
    },
}


def clone_commands(task: str, folder: Path) -> dict[Path, str]:
    """What makes each file, in order."""
    plan, expert, demos, sweep = CLONES[task], folder / task, folder / f"{task}.npz", folder / f"sweep-{task}"
    return {
        expert / "policy.npz": f"lipctrl train sb3 --config {task} --out {expert}",
        demos: f"lipctrl demos collect --env {plan['env']} --expert {expert} {plan['collect']} --out {demos}",
        sweep / "sweep.csv": f"lipctrl sweep --env {plan['env']} --demos {demos} --units normalised --unconstrained "
        f"--seeds 0 1 2 3 4 --updates 6000 --threat observation:linf:normalised {plan['sweep']} --out {sweep}",
    }


def mujoco_clones() -> dict[str, Any]:
    """Nominal and attacked returns of clones: interquartile means over trainings, with intervals."""
    folder = Path("runs") / "mujoco-clones"
    found: dict[str, Any] = {}
    for task in CLONES:
        commands = clone_commands(task, folder)
        for path, command in commands.items():
            if not path.exists():
                subprocess.run([sys.executable, "-m", *command.split()], check=True)
        rows = list(csv.DictReader((folder / f"sweep-{task}" / "sweep.csv").read_text().splitlines()))
        radii = [name for name in rows[0] if name.startswith("return_at_")]
        table = {}
        for lip in dict.fromkeys(row["lip"] for row in rows):
            own = [row for row in rows if row["lip"] == lip]
            cells = {name: np.array([float(row[name]) for row in own]) for name in radii}
            intervals = {name: stratified_bootstrap(values, seed=0) for name, values in cells.items()}
            table["unconstrained" if lip == "inf" else lip] = {
                "proved": sorted(float(row["proved"]) for row in own),
                "witness": sorted(float(row["witness"]) for row in own),
                "returns": {name.removeprefix("return_at_"): list(cells[name]) for name in radii},
                "interquartile mean [95 %]": {
                    name.removeprefix("return_at_"): [x.value, x.low, x.high] for name, x in intervals.items()
                },
            }
        found[task] = {"commands": list(commands.values()), "trainings": TRAININGS, "bounds": table}
    return found


ROWS: dict[str, Callable[[], dict[str, Any]]] = (
    {
        "bound-sweep": bound_sweep,
        "double-integrator-mpc": double_integrator_mpc,
        "reactor-mpc": reactor_mpc,
        "training-speed": training_speed,
        "mujoco-clones": mujoco_clones,
    }
    | {f"iclrnn-{part}": run for part, run in ICLRNN.items()}
    | MBPO
    | ATTACKS
)


def main() -> None:
    """Run the rows named on the command line."""
    unknown = [name for name in sys.argv[1:] if name not in ROWS]
    if unknown or len(sys.argv) < 2:
        sys.exit(f"name rows of {', '.join(ROWS)}; found {unknown}")
    for name in sys.argv[1:]:
        start = time.perf_counter()
        record = {
            "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "versions": package_versions(),
            **ROWS[name](),
            "seconds in all": time.perf_counter() - start,
        }
        RESULTS.mkdir(exist_ok=True)
        file = name if name.startswith("iclrnn-") else f"published-{name}"
        write_text(RESULTS / f"{file}.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
