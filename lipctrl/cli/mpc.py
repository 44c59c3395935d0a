"""`lipctrl mpc`: a plant in closed loop under model predictive control, a learned policy, or both together."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipctrl.attacks import ATTACKS
from lipctrl.cli.experts import Env, plant_env, signal_names
from lipctrl.cli.loading import load_model, load_network
from lipctrl.cli.model_loop import reserve_of
from lipctrl.cli.mpc_convex import convex_or_not, cost_of, one_sided
from lipctrl.cli.mpc_modes import (
    Choice,
    ControllerName,
    Mode,
    attacked,
    believing,
    combination,
    controller_of,
    findings,
    limited,
    plant_of,
    problem_of,
)
from lipctrl.cli.progress import bar
from lipctrl.config import parse
from lipctrl.envs.base import PlantEnv
from lipctrl.evaluation.plots import region_figure, trajectories
from lipctrl.evaluation.rollout import Trace
from lipctrl.files import UserError, write_text
from lipctrl.models.model import ProcessModel
from lipctrl.mpc.controller import Speed, Transcription
from lipctrl.mpc.lmpc import LMPC
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.runs import Run
from lipctrl.symbolic.process import check_plant

Array = NDArray[np.float64]
Measure = Callable[[Array], Array]


@dataclass(frozen=True)
class MpcSettings:
    """Settings of `lipctrl mpc`."""

    plant: str = "cstr"
    """Plant, such as cstr, quad-tank, double-integrator (`lipctrl list` shows them), or an environment id."""
    controller: ControllerName = "nmpc"
    """nmpc (the plant's own equations), linear (linearised at the equilibrium, a QP), lmpc (NMPC that must bring a
    Lyapunov function down), convex (states below --state-high with inputs near --input-reference: solved to global
    optimality where --model is input-convex, as nmpc where it is not) or policy (the network of --policy alone)."""
    mode: Mode | None = None
    """Put the network of --policy beside MPC: warm-start (it starts the solver), terminal (it acts behind the
    horizon), filter (MPC changes its action as little as safety needs), fallback (it acts when MPC is late or
    infeasible), tube (its proved constant tightens the limits; every attack of the library at --radius is tried)."""
    policy: str | None = None
    """Network to run the loop with: run folder or network file. Without --mode it runs beside the controller."""
    model: str | None = None
    """Process model that the controller believes instead of the plant's equations: a run of `lipctrl train model` or
    its model.npz."""
    sensor_error: tuple[float, ...] | None = None
    """Largest error of each measured state, in its unit: every measurement is off by it, in random directions. With
    --model the state limits are tightened by what is proved of it, and by the model's own error on its test windows."""
    input_reference: tuple[float, ...] | None = None
    """convex: where the inputs cost nothing, one per input; none: the equilibrium."""
    solver: str | None = None
    """nmpc: sqpmethod-daqp (default), sqpmethod-piqp, sqpmethod-hpipm, fatrop, ipopt (default with an obstacle);
    linear: daqp (default up to 100 variables), piqp, hpipm; lmpc: sqpmethod-daqp (default), sqpmethod-piqp, ipopt."""
    horizon: int = 20
    """Steps that the controller looks ahead."""
    state_low: tuple[float, ...] | None = None
    """Lower state limits in the plant's units, one per state; none: the plant's own."""
    state_high: tuple[float, ...] | None = None
    """Upper state limits, the same."""
    rate: tuple[float, ...] | None = None
    """The most that each input may change from step to step; none: no rate limits."""
    transcription: Transcription = "shooting"
    """nmpc: shooting (the sampled model) or collocation (the continuous equations, for stiff plants)."""
    deadline: float | None = None
    """nmpc: seconds after which the solver is stopped; the plan that it has by then is used if it is feasible. In
    mode fallback the policy acts in its place."""
    compiled: bool = False
    """nmpc: compile the functions of the problem with the machine's C compiler; two to three times faster."""
    real_time: bool = False
    """nmpc: one quadratic programme per step instead of a full solve."""
    rollout: int = 20
    """Mode terminal: steps that the policy acts behind the horizon."""
    radius: float = 0.01
    """Mode tube: largest measurement error, in the largest component, in the plant's units."""
    steps: int = 100
    """Steps to simulate."""
    start: tuple[float, ...] | None = None
    """Start state in the plant's units; none: drawn by the environment."""
    seed: int = 0
    """Seed of the drawn start state and of random attacks."""
    out: str | None = None
    """Run folder; by default the first free runs/mpc-<plant>-<k>."""

    def __post_init__(self) -> None:
        for name in ("horizon", "steps", "rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.radius < np.inf:
            raise ValueError(f"radius must be finite and not negative, found {self.radius}")
        if self.policy is None and (self.mode is not None or self.controller == "policy"):
            wanted = f"--mode {self.mode}" if self.mode is not None else "--controller policy"
            raise ValueError(f"{wanted} needs a network: --policy RUN_OR_FILE")
        if self.mode is not None and self.controller != "nmpc":
            raise ValueError(f"--mode {self.mode} brings its own controller; leave --controller out")
        for name, owner in (("rollout", "terminal"), ("radius", "tube")):
            if self.mode != owner and getattr(self, name) != getattr(type(self), name):
                raise ValueError(f"--{name} has no effect without --mode {owner}: leave it out")
        if self.input_reference is not None and self.controller != "convex":
            raise ValueError("--input-reference has no effect without --controller convex: leave it out")
        if self.sensor_error is not None and self.mode is not None:
            raise ValueError(f"--sensor-error has no effect in --mode {self.mode}: leave it out")
        alone = self.controller == "policy"
        convex = self.controller == "convex"
        if self.mode in ("terminal", "filter", "tube") or alone or convex:
            where = f"with --controller {self.controller}" if alone or convex else f"in --mode {self.mode}"
            given = {
                "--model": not convex and self.model is not None,
                "--deadline": self.deadline is not None,
                "--compiled": self.compiled,
                "--real-time": self.real_time,
                "--transcription": self.transcription != "shooting",
                "--solver": (alone or convex or self.mode == "tube") and self.solver is not None,
                "--rate": alone and self.rate is not None,
                "--horizon": alone and self.horizon != type(self).horizon,
            }
            for name in (name for name, present in given.items() if present):
                raise ValueError(f"{name} has no effect {where}: leave it out")


@dataclass(frozen=True)
class Contender:
    """A policy with what it measures of a state, what is to be said of it, and its cost if not the environment's."""

    policy: Policy
    measure: Measure
    notes: tuple[str, ...] = ()
    stage_cost: Callable[[Array, Array], float] | None = None


def mpc_policy(env: Env, horizon: int) -> MPCPolicy:
    """The NMPC of an environment: its plant, limits and quadratic cost.

    Raises:
        UserError: the environment has no symbolic plant or no quadratic cost.
    """
    inner = plant_of(env)
    return MPCPolicy(controller_of(inner, "nmpc", Choice(horizon=horizon)), state_of=inner.state_of)


def contenders(settings: MpcSettings, inner: PlantEnv, net: PlainNet | None) -> dict[str, Contender]:
    """Every policy that the command runs, by name."""
    speed = Speed(deadline=settings.deadline, compiled=settings.compiled, real_time=settings.real_time)
    model = None if settings.model is None else load_model(Path(settings.model))
    sensors, reserve, notes = _measurement(settings, inner, model)
    choice = Choice(settings.solver, settings.horizon, settings.rate, settings.transcription, speed, model, reserve)
    found: dict[str, Contender] = {}
    if settings.controller == "convex":
        found["convex"] = _convex(settings, inner, choice, sensors(), notes)
    elif settings.mode is None and settings.controller != "policy":
        controller = controller_of(inner, settings.controller, choice)
        found[settings.controller] = Contender(MPCPolicy(controller, state_of=inner.state_of), sensors(), tuple(notes))
    if net is None:
        return found
    _check_sizes(inner, net)
    bare = PlainPolicy(net)
    found["policy"] = Contender(bare, sensors())
    if settings.mode is None:
        return found
    both = combination(settings.mode, inner, net, choice, rollout=settings.rollout, radius=settings.radius)
    if settings.mode != "tube":
        return {**found, settings.mode: Contender(both, inner.observe)}
    for name in ATTACKS:
        measure = attacked(inner, PlainPolicy(net.without_limits()), name, settings.radius, settings.seed)
        found[f"tube, {name}"] = Contender(both, measure)
    return found


def _measurement(
    settings: MpcSettings, inner: PlantEnv, model: ProcessModel | None
) -> tuple[Callable[[], Measure], Array | None, list[str]]:
    """New sensors with the same errors for every loop, the reserve of the state limits for them, and what to say."""
    notes, errors = [], settings.sensor_error
    if model is not None:
        looked_ahead = settings.horizon * check_plant(model, inner.plant)
        notes = [model.extrapolation(looked_ahead)] if looked_ahead > model.horizon else []
    if errors is None:
        return lambda: inner.observe, None, notes
    size = np.array(errors)
    if size.shape != (len(inner.plant.state),) or not (np.isfinite(size).all() and (size >= 0).all()):
        raise UserError(f"--sensor-error needs {len(inner.plant.state)} finite numbers, one per state, none negative")

    def sensors() -> Measure:
        rng = np.random.default_rng(settings.seed)
        return lambda state: np.asarray(inner.observe(state + size * rng.choice([-1.0, 1.0], len(size))))

    if model is None:
        return sensors, None, [*notes, "limits are not tightened for sensor errors: nothing is proved without --model"]
    reserve = reserve_of(model, inner.plant, errors)
    where = "everywhere" if reserve.region is None else f"for {reserve.region}"
    own = "nothing for the model's own error, which its file does not say"
    if reserve.model is not None:
        own = f"{_list(reserve.model)} for the model's own error on its test windows, an estimate"
    sentence = (
        f"state limits tightened by {_list(reserve.total)}: {_list(reserve.sensors)} for the sensors, proved {where}, "
        f"and {own}"
    )
    return sensors, reserve.total, [*notes, sentence]


def _list(values: Array) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _convex(settings: MpcSettings, inner: PlantEnv, choice: Choice, measure: Measure, notes: list[str]) -> Contender:
    ocp = one_sided(problem_of(inner, choice), settings.input_reference, keep_low=settings.state_low is not None)
    believed = inner.plant if choice.model is None else believing(inner.plant, choice.model)
    controller, said = convex_or_not(inner.plant, choice.model, ocp, believed)
    policy = MPCPolicy(controller, state_of=inner.state_of)
    return Contender(policy, measure, (*notes, said), lambda x, u: cost_of(ocp, x, u))


def _check_sizes(inner: PlantEnv, net: PlainNet) -> None:
    wanted, found = (len(inner.observed), len(inner.plant.input)), (net.input_size, net.output_size)
    if wanted != found:
        raise UserError(
            f"the policy maps {found[0]} numbers to {found[1]}; {inner.plant.name} has {wanted[0]} observations and "
            f"{wanted[1]} inputs"
        )


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        MpcSettings(),
        group="mpc",
        prog="lipctrl mpc",
        description="Run a plant in closed loop under model predictive control, alone or beside a learned policy; "
        "writes states, inputs, cost, solve times and a plot into a run folder.",
        args=arguments,
    )
    env = plant_env(settings.plant)
    inner = plant_of(env)
    inner.plant = limited(inner.plant, settings.state_low, settings.state_high)
    net = None if settings.policy is None else load_network(Path(settings.policy))
    policies = contenders(settings, inner, net)
    env.reset(seed=settings.seed)
    start = inner.state if settings.start is None else np.array(settings.start)
    if start.shape != (len(inner.plant.state),) or not np.isfinite(start).all():
        raise UserError(f"--start needs {len(inner.plant.state)} finite numbers, one per state, found {start}")
    run = Run.create(settings.out, f"mpc-{inner.plant.name.replace(' ', '-')}", settings, seed=settings.seed)
    loops = {}
    for name, contender in policies.items():
        with bar(f"{name} on {settings.plant}", settings.steps) as advance:
            loops[name] = simulate(
                inner.plant,
                contender.policy,
                start,
                settings.steps,
                stage_cost=contender.stage_cost or inner.stage_cost,
                observe=_counting(contender.measure, advance),
            )
        _write(run.path / f"{name.replace(', ', '-')}.csv", loops[name], inner)
    _plot(run.path / "trajectories.svg", loops, env)
    _plot_region(run.path / "region.svg", policies, loops, inner)
    sentences = {
        name: [
            *policies[name].notes,
            *findings(policies[name].policy, loop, dt=inner.plant.dt, unit=inner.plant.time_unit),
        ]
        for name, loop in loops.items()
    }
    run.finish(
        costs={name: loop.cost for name, loop in loops.items()},
        state_excess={name: float(loop.state_excess.max()) for name, loop in loops.items()},
        findings={name: lines for name, lines in sentences.items() if lines},
    )
    show(settings.plant, loops)
    for line in dict.fromkeys(line for lines in sentences.values() for line in lines):
        print(line)
    print(f"run folder: {run.path}")
    for name, loop in loops.items():
        if loop.stopped is not None:
            raise UserError(f"{name} stopped at {loop.stopped}; what was simulated is in {run.path}")


def _counting(measure: Measure, advance: Callable[[], None]) -> Measure:
    def observe(state: Array) -> Array:
        advance()
        return measure(state)

    return observe


def _write(path: Path, loop: ClosedLoop, env: PlantEnv) -> None:
    """One row per step: time, states, inputs, stage cost, solve time, excess over the limits."""
    plant, buffer = env.plant, io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    extra = ["stage cost", "solve time [ms]", "state excess", "input excess"]
    if env.margin is not None:
        extra.append("margin")
    writer.writerow([f"time [{plant.time_unit}]", *plant.state.names, *plant.input.names, *extra])
    for k, (u, cost, seconds) in enumerate(zip(loop.inputs, loop.costs, loop.times, strict=True)):
        row = [k * plant.dt, *loop.states[k], *u, cost, 1e3 * seconds, loop.state_excess[k], loop.input_excess[k]]
        if env.margin is not None:
            row.append(env.margin(loop.states[k]))
        writer.writerow([repr(float(value)) for value in row])
    write_text(path, buffer.getvalue())


def _plot(path: Path, loops: dict[str, ClosedLoop], env: Env) -> None:
    inner = env.unwrapped
    assert isinstance(inner, PlantEnv)
    traces = [
        (name, Trace(loop.states[:-1], loop.states[:-1], loop.inputs, loop.states[-1], np.zeros((1, 0)), 0))
        for name, loop in loops.items()
        if len(loop.inputs)
    ]
    if traces:
        write_text(path, trajectories(traces, inner.plant.state.names, signal_names(env)[1]))


def _plot_region(path: Path, policies: dict[str, Contender], loops: dict[str, ClosedLoop], inner: PlantEnv) -> None:
    """The plane of two states with the region of Lyapunov-based MPC, if there is one."""
    found = [c.policy.controller for c in policies.values() if isinstance(c.policy, MPCPolicy)]
    regions = [controller for controller in found if isinstance(controller, LMPC)]
    if regions and len(inner.plant.state) == 2:
        paths = {name: [loop.states] for name, loop in loops.items()}
        lmpc = regions[0]
        figure = region_figure(lmpc.lyapunov, lmpc.level, lmpc.ocp.x_ref, paths, inner.plant.state.names)
        write_text(path, figure)


def show(title: str, loops: dict[str, ClosedLoop]) -> None:
    """Print cost, solve times (first call apart), mean iterations and excess of each loop."""
    table = Table(
        *("controller", "steps", "cost", "first ms", "median ms", "p99 ms", "iterations", "excess"),
        title=title,
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
            f"{np.mean([d.solution.iterations for d in loop.decisions]):.3g}" if loop.decisions else "",
            f"{loop.state_excess.max():.2g}",
        )
    Console().print(table)
