"""`lipctrl mpc`: model predictive control of a plant in closed loop, alone or beside a learned policy."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipctrl.cli.experts import Env, make_env, signal_names
from lipctrl.cli.loading import load_network
from lipctrl.cli.progress import bar
from lipctrl.config import parse
from lipctrl.envs.base import PlantEnv
from lipctrl.evaluation.plots import trajectories
from lipctrl.evaluation.rollout import Trace
from lipctrl.files import UserError, write_text
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.linear import LinearMPC
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.problem import regulation
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.runs import Run

Array = NDArray[np.float64]
Controller = Literal["nmpc", "linear"]
SOLVERS = {
    "nmpc": ("sqpmethod-daqp", "sqpmethod-piqp", "fatrop", "ipopt"),
    "linear": ("daqp", "piqp", "hpipm"),
}


@dataclass(frozen=True)
class MpcSettings:
    """Settings of `lipctrl mpc`."""

    env: str = "lipctrl/Cstr-v0"
    """Gymnasium id of an environment with a symbolic plant."""
    controller: Controller = "nmpc"
    """nmpc (the plant's own equations) or linear (linearised at the equilibrium, a QP)."""
    solver: str | None = None
    """nmpc: sqpmethod-daqp (default), sqpmethod-piqp, fatrop, ipopt. linear: daqp (default), piqp, hpipm."""
    horizon: int = 20
    """Steps that the controller looks ahead."""
    policy: str | None = None
    """A network to run the same loop with, for comparison: run folder or network file."""
    steps: int = 100
    """Steps to simulate."""
    start: tuple[float, ...] | None = None
    """Start state in the plant's units; none: drawn by the environment."""
    seed: int = 0
    """Seed of the drawn start state."""
    out: str | None = None
    """Run folder; by default the first free runs/mpc-<environment>-<k>."""

    def __post_init__(self) -> None:
        if self.solver is not None and self.solver not in SOLVERS[self.controller]:
            known = ", ".join(SOLVERS[self.controller])
            raise ValueError(f"unknown solver {self.solver!r} for {self.controller}; known: {known}")
        if self.horizon < 1 or self.steps < 1:
            raise ValueError(f"horizon and steps must be at least 1, found {self.horizon} and {self.steps}")


def mpc_policy(env: Env, controller: Controller, solver: str | None, horizon: int) -> MPCPolicy:
    """The MPC of an environment: its plant, limits and quadratic cost, the LQR's cost-to-go as terminal cost.

    Raises:
        UserError: the environment has no symbolic plant or no quadratic cost.
    """
    inner = env.unwrapped
    name = env.spec.id if env.spec is not None else type(inner).__name__
    if not isinstance(inner, PlantEnv):
        raise UserError(f"{name} has no symbolic plant; MPC needs one of lipctrl's own environments")
    if inner.Q is None or inner.R is None:
        raise UserError(f"{name} does not declare a quadratic cost, which this MPC regulates")
    ocp = regulation(inner.plant, inner.Q, inner.R, horizon=horizon)
    name = solver or SOLVERS[controller][0]
    if controller == "nmpc":
        return MPCPolicy(NMPC(inner.plant, ocp, name), state_of=inner.state_of)
    return MPCPolicy(LinearMPC(inner.plant, ocp, name), state_of=inner.state_of)


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        MpcSettings(),
        group="mpc",
        prog="lipctrl mpc",
        description="Run model predictive control of a plant in closed loop; writes states, inputs, cost, solve times "
        "and a plot into a run folder.",
        args=arguments,
    )
    env = make_env(settings.env)
    controller = mpc_policy(env, settings.controller, settings.solver, settings.horizon)
    inner = env.unwrapped
    assert isinstance(inner, PlantEnv)
    policies: dict[str, Policy] = {settings.controller: controller}
    if settings.policy is not None:
        policies["policy"] = PlainPolicy(load_network(Path(settings.policy)))
    env.reset(seed=settings.seed)
    start = inner.state if settings.start is None else np.array(settings.start)
    run = Run.create(settings.out, f"mpc-{settings.env.split('/')[-1]}", settings, seed=settings.seed)
    loops = {}
    for name, policy in policies.items():
        with bar(f"{name} on {settings.env}", settings.steps) as advance:
            loops[name] = simulate(
                inner.plant,
                policy,
                start,
                settings.steps,
                stage_cost=inner.stage_cost,
                observe=_counting(inner, advance),
            )
        _write(run.path / f"{name}.csv", loops[name], inner)
    _plot(run.path / "trajectories.svg", loops, env)
    run.finish(costs={name: loop.cost for name, loop in loops.items()})
    show(settings.env, loops)
    print(f"run folder: {run.path}")
    for name, loop in loops.items():
        if loop.stopped is not None:
            raise UserError(f"{name} stopped at {loop.stopped}; what was simulated is in {run.path}")


def _counting(inner: PlantEnv, advance: Callable[[], None]) -> Callable[[Array], Array]:
    def observe(state: Array) -> Array:
        advance()
        return inner.observe(state)

    return observe


def _write(path: Path, loop: ClosedLoop, env: PlantEnv) -> None:
    """One row per step: time, states, inputs, stage cost, solve time, excess over the limits."""
    plant, buffer = env.plant, io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    extra = ("stage cost", "solve time [ms]", "state excess", "input excess")
    writer.writerow([f"time [{plant.time_unit}]", *plant.state.names, *plant.input.names, *extra])
    for k, (u, cost, seconds) in enumerate(zip(loop.inputs, loop.costs, loop.times, strict=True)):
        row = [k * plant.dt, *loop.states[k], *u, cost, 1e3 * seconds, loop.state_excess[k], loop.input_excess[k]]
        writer.writerow([repr(float(value)) for value in row])
    write_text(path, buffer.getvalue())


def _plot(path: Path, loops: dict[str, ClosedLoop], env: Env) -> None:
    inner = env.unwrapped
    assert isinstance(inner, PlantEnv)
    traces = [
        (name, Trace(loop.states[:-1], loop.states[:-1], loop.inputs, loop.states[-1]))
        for name, loop in loops.items()
        if len(loop.inputs)
    ]
    if traces:
        write_text(path, trajectories(traces, inner.plant.state.names, signal_names(env)[1]))


def show(title: str, loops: dict[str, ClosedLoop]) -> None:
    """Print cost, solve times (first call apart), fallbacks and excess of each loop."""
    table = Table(
        "controller", "steps", "cost", "first call ms", "median ms", "p99 ms", "largest state excess", title=title
    )
    for name, loop in loops.items():
        warm = 1e3 * loop.times[1:] if len(loop.times) > 1 else np.array([np.nan])
        first = f"{1e3 * loop.times[0]:.2f}" if len(loop.times) else ""
        table.add_row(
            escape(name),
            str(len(loop.inputs)),
            f"{loop.cost:.6g}",
            first,
            f"{np.median(warm):.3f}",
            f"{np.percentile(warm, 99):.3f}",
            f"{loop.state_excess.max():.2g}",
        )
    Console().print(table)
