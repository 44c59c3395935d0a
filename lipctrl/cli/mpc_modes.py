"""What `lipctrl mpc` puts into the loop: controllers of a plant, and the ways in which a policy works beside MPC."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks import ATTACKS, Context
from lipctrl.certify.bracket import certify
from lipctrl.certify.certificate import Box, Certificate
from lipctrl.cli.experts import Env
from lipctrl.disturb.sets import Ball
from lipctrl.envs.base import PlantEnv
from lipctrl.files import UserError
from lipctrl.models.model import ProcessModel
from lipctrl.mpc import fallback, safety_filter
from lipctrl.mpc.controller import GENERAL, NMPC, SOLVERS, Speed, Transcription
from lipctrl.mpc.fallback import CertifiedFallback
from lipctrl.mpc.linear import SOLVERS as QP_SOLVERS
from lipctrl.mpc.linear import LinearMPC, is_linear, terminal_set
from lipctrl.mpc.lmpc import LMPC
from lipctrl.mpc.loop import ClosedLoop
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import Controller, MPCPolicy
from lipctrl.mpc.policy_mpc import PolicyWarmStart
from lipctrl.mpc.problem import OCP, regulation
from lipctrl.mpc.safety_filter import LevelSet, SafetyFilter, invariant_level
from lipctrl.mpc.terminal import PolicyTerminalMPC
from lipctrl.mpc.tube import TubePolicy, mismatch_error, mismatch_network
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair
from lipctrl.plant import Plant, Signal
from lipctrl.policy import FunctionPolicy, PlainPolicy, Policy
from lipctrl.symbolic.process import one_period

Array = NDArray[np.float64]
ControllerName = Literal["nmpc", "linear", "lmpc", "convex", "policy"]
Mode = Literal["warm-start", "terminal", "filter", "fallback", "tube"]
SMALL = 0.01  # of its level: where Lyapunov-based MPC need not contract
LARGE = 100  # variables from which an active-set QP solver is slower than an interior-point one
TERMINAL = 10.0  # terminal weight over Q where the linearisation has no LQR


@dataclass(frozen=True)
class Choice:
    """How a controller solves: see `NMPC`; solver None is the default of the controller and problem.

    `rate` is the most that each input may change per step, or None; `model` is what the controller believes of the
    plant, or None for its own equations. `reserve` is kept from the state limits, (n,), or None. `u_ref` and `keep_low`
    are of the convex problem, see `mpc_convex.one_sided`.
    """

    solver: str | None = None
    horizon: int = 20
    rate: tuple[float, ...] | None = None
    transcription: Transcription = "shooting"
    speed: Speed = Speed()
    model: ProcessModel | None = None
    reserve: Array | None = None
    u_ref: tuple[float, ...] | None = None
    keep_low: bool = False


def plant_of(env: Env) -> PlantEnv:
    """The environment behind its wrappers.

    Raises:
        UserError: it has no symbolic plant or no quadratic cost.
    """
    inner = env.unwrapped
    name = env.spec.id if env.spec is not None else type(inner).__name__
    if not isinstance(inner, PlantEnv):
        raise UserError(f"{name} has no symbolic plant; MPC needs one of lipctrl's own environments")
    if inner.Q is None or inner.R is None:
        raise UserError(f"{name} does not declare a quadratic cost, which this MPC regulates")
    return inner


def limited(plant: Plant, low: tuple[float, ...] | None, high: tuple[float, ...] | None) -> Plant:
    """The plant with other state limits; None: as they are.

    Raises:
        UserError: not one limit per state.
    """
    state = plant.state
    ends = (state.low if low is None else low), (state.high if high is None else high)
    if {len(end) for end in ends} != {len(state)}:
        raise UserError(f"{plant.name} has {len(state)} states ({', '.join(state.names)}): give one limit for each")
    return replace(plant, state=Signal(state.names, *ends))


def problem_of(inner: PlantEnv, choice: Choice) -> OCP:
    """The environment's own cost, limits and margin; the LQR's cost-to-go as terminal cost, or 10 Q without one."""
    assert inner.Q is not None and inner.R is not None
    plant, Q, R = inner.plant, inner.Q, inner.R
    try:
        ocp = regulation(plant, Q, R, horizon=choice.horizon, margin=inner.margin)
    except UserError:  # a robot that cannot move sideways has no linear regulator
        ocp = regulation(
            plant, Q, R, horizon=choice.horizon, P=TERMINAL * Q + 1e-3 * np.eye(len(Q)), margin=inner.margin
        )
    if choice.reserve is not None:
        ocp = ocp.with_reserve(choice.reserve)
    return ocp if choice.rate is None else replace(ocp, u_rate=np.array(choice.rate))


def controller_of(inner: PlantEnv, name: ControllerName, choice: Choice) -> Controller:
    """NMPC, linear MPC or Lyapunov-based MPC of an environment.

    Raises:
        UserError: the solver does not go with the controller, or the problem does not go with either.
    """
    ocp = problem_of(inner, choice)
    delicate = ocp.margin is not None or not ocp.definite
    known = {"nmpc": tuple(SOLVERS), "linear": tuple(QP_SOLVERS), "lmpc": GENERAL}[name]
    large = ocp.horizon * (len(ocp.x_ref) + len(ocp.u_ref)) > LARGE
    standard = {"nmpc": "ipopt" if delicate else known[0], "linear": "piqp" if delicate or large else known[0]}
    solver = choice.solver or standard.get(name, known[0])
    if solver not in known and solver in {*SOLVERS, *QP_SOLVERS}:
        raise UserError(f"controller {name} takes solver {', '.join(known)}; found {solver!r}")
    believed = inner.plant if choice.model is None else believing(inner.plant, choice.model)
    if name == "nmpc":
        return NMPC(believed, ocp, solver, choice.transcription, choice.speed)
    if choice.transcription != "shooting" or choice.speed != Speed():
        raise UserError(f"collocation, deadlines, compiled functions and real-time iterations go with nmpc, not {name}")
    if name == "linear":
        return LinearMPC(believed, ocp, solver)
    P, level, small = lyapunov_of(inner, ocp)
    return LMPC(model=believed.update, ocp=ocp, lyapunov=P, level=level, small=small, solver=solver)


def mpc_with_backup(env: Env, horizon: int) -> MPCPolicy:
    """NMPC of an environment for evaluation; where it has no solution LQR acts, or the reference's input without one.

    Raises:
        UserError: the environment has no symbolic plant or no quadratic cost.
    """
    inner = plant_of(env)
    controller = controller_of(inner, "nmpc", Choice(horizon=horizon))
    try:
        backup = regulator(inner.plant, controller.ocp)[0]
    except UserError:
        backup = FunctionPolicy(lambda x: np.tile(controller.ocp.u_ref, (len(x), 1)))
    seen = FunctionPolicy(lambda rows: backup.function(np.array([inner.state_of(row) for row in rows])))
    return MPCPolicy(controller, fallback=seen, state_of=inner.state_of)


def believing(plant: Plant, model: ProcessModel) -> Plant:
    """The plant with a process model in the place of its equations.

    Raises:
        UserError: a model of another plant; see `symbolic.process.check_plant`.
    """
    return replace(plant, update=one_period(model, plant), ode=None)


def lyapunov_of(inner: PlantEnv, ocp: OCP) -> tuple[Array, float, float]:
    """(P, level, small) of the reactor as published; else the LQR's, on the largest level set that samples leave."""
    if inner.plant.name == "cstr":
        from lipctrl.envs.cstr import LEVEL, TERMINAL_LEVEL, P

        return P, LEVEL, TERMINAL_LEVEL
    found = level_set(inner.plant, ocp)
    return found.P, found.level, SMALL * found.level


def regulator(plant: Plant, ocp: OCP) -> tuple[FunctionPolicy, Array]:
    """LQR about the reference within the input limits, and its cost-to-go.

    Raises:
        UserError: the linearisation cannot be stabilised.
    """
    solution = lqr(*plant.linearise(ocp.x_ref, ocp.u_ref)[:2], ocp.Q, ocp.R)
    return FunctionPolicy(
        lambda x: np.clip(ocp.u_ref - (x - ocp.x_ref) @ solution.K.T, ocp.u_low, ocp.u_high)
    ), solution.P


def level_set(plant: Plant, ocp: OCP) -> LevelSet:
    """A level set of the LQR's cost-to-go inside the limits that LQR keeps, by samples: an estimate.

    Raises:
        UserError: there is none, or no LQR.
    """
    backup, P = regulator(plant, ocp)
    gain = lqr(*plant.linearise(ocp.x_ref, ocp.u_ref)[:2], ocp.Q, ocp.R).K
    inverse = np.linalg.inv(P)
    room = np.minimum(ocp.x_high - ocp.x_ref, ocp.x_ref - ocp.x_low)
    finite = np.isfinite(room)
    if finite.any():
        largest = float((room[finite] ** 2 / np.diag(inverse)[finite]).min())
    else:  # nothing but the input's limits says how large the set may be
        reach = np.minimum(ocp.u_high - ocp.u_ref, ocp.u_ref - ocp.u_low)
        largest = float((reach**2 / np.einsum("ij,jk,ik->i", gain, inverse, gain)).min())
    return invariant_level(plant, backup, P, largest=largest * (1 - 1e-9), rng=np.random.default_rng(0))


def _on_states(inner: PlantEnv, mode: str) -> None:
    if inner.observed.names != inner.plant.state.names:
        raise UserError(f"mode {mode} needs a policy of the plant's state; {inner.plant.name} is observed otherwise")


def combination(mode: Mode, inner: PlantEnv, net: PlainNet, choice: Choice, *, rollout: int, radius: float) -> Policy:
    """The policy beside MPC in one of the five ways.

    Args:
        net: the policy, of the environment's observation. rollout: steps of mode "terminal".
        radius: of the measurement disturbance of mode "tube", in the largest component.

    Raises:
        UserError: the plant, the problem or the policy does not fit the mode; the sentence says why.
    """
    if mode == "fallback":
        controller = controller_of(inner, "nmpc", choice)
        certificate = certify(net).upper
        return CertifiedFallback(
            controller=controller,
            net=net,
            certificate=certificate,
            deadline=choice.speed.deadline,
            state_of=inner.state_of,
        )
    ocp, plant = problem_of(inner, choice), inner.plant
    if mode == "filter":
        return _filter(inner, ocp, net, choice)
    _on_states(inner, mode)
    if mode == "warm-start":
        nmpc = controller_of(inner, "nmpc", choice)
        assert isinstance(nmpc, NMPC)
        return MPCPolicy(PolicyWarmStart(nmpc, PlainPolicy(net)))
    if mode == "terminal":
        solver = choice.solver or GENERAL[0]
        return MPCPolicy(PolicyTerminalMPC(plant=plant, ocp=ocp, net=net, rollout=rollout, solver=solver))
    return tube_of(plant, ocp, net, radius)


def _filter(inner: PlantEnv, ocp: OCP, net: PlainNet, choice: Choice) -> SafetyFilter:
    backup, _ = regulator(inner.plant, ocp)
    linear = is_linear(inner.plant)
    if linear:
        ocp = replace(ocp, terminal_set=terminal_set(inner.plant, ocp))
    return SafetyFilter(
        policy=PlainPolicy(net),
        plant=inner.plant,
        ocp=ocp,
        backup=backup,
        level_set=None if linear else level_set(inner.plant, ocp),
        solver=choice.solver or GENERAL[0],
        state_of=inner.state_of,
    )


def tube_of(plant: Plant, ocp: OCP, net: PlainNet, radius: float) -> TubePolicy:
    """A tube whose certificates are made here, on the limits where those are finite.

    The policy's distance from the LQR gain enters as a slope, or as an error bound on the limits where that is smaller.

    Raises:
        UserError: see `TubePolicy`.
    """
    free, norm = net.without_limits(), NormPair("linf", "linf")
    gain = lqr(*plant.linearise(ocp.x_ref, ocp.u_ref)[:2], ocp.Q, ocp.R).K
    bounded = bool(np.isfinite([ocp.x_low, ocp.x_high]).all())
    region = Box(tuple(ocp.x_low - radius), tuple(ocp.x_high + radius)) if bounded else None
    certificate = certify(free, norm, region=region).upper
    mismatch = certify(mismatch_network(free, gain), norm, region=region).upper

    def tube(distance: Certificate | float) -> TubePolicy:
        return TubePolicy(plant=plant, ocp=ocp, net=free, certificate=certificate, mismatch=distance, radius=radius)

    try:
        return tube(mismatch)
    except UserError:
        if not bounded:
            raise
    error = mismatch_error(free, gain, ocp.x_low, ocp.x_high, mismatch)
    try:
        return tube(error)
    except UserError as refused:
        raise UserError(
            f"{refused}; on the state limits the policy is up to {error:.4g} away from the LQR gain: "
            "tighter --state-low and --state-high help, and a policy that was trained on all of them"
        ) from refused


def attacked(inner: PlantEnv, policy: PlainPolicy, attack: str, radius: float, seed: int) -> Callable[[Array], Array]:
    """The measurement of a state under an attack of the library on the policy, within a box of the radius."""
    searcher, rng = ATTACKS[attack][0](), np.random.default_rng(seed)
    ball = Ball("linf", np.array([radius]), np.ones(len(inner.observed)))

    def measure(state: Array) -> Array:
        observation = inner.observe(state)
        context = Context(observation[None], policy, ball, 1, rng)
        return np.asarray(observation + searcher.perturb(context)[0])

    return measure


def findings(policy: Policy, loop: ClosedLoop, *, dt: float, unit: str) -> Sequence[str]:
    """What a mode did in the loop, in sentences."""
    gaps = [(d.solution.gap, d.solution.cost) for d in loop.decisions if d.solution.gap is not None]
    if gaps:
        worst = max(gap / max(1.0, abs(cost)) for gap, cost in gaps)
        return (f"all {len(gaps)} plans are globally optimal up to {worst:.2g} of their cost (proved)",)
    if not loop.records:
        return ()
    if isinstance(policy, SafetyFilter):
        log = safety_filter.summarise(loop.records)
        sources = ", ".join(f"{name} {count}" for name, count in log.sources.items() if count)
        return (
            f"the filter changed the action at {100 * log.share:.3g} % of the steps, by {log.mean:.3g} on average and "
            f"{log.largest:.3g} at most (in scales of the input); actions came from: {sources}; the safe set is "
            + ("exact" if policy.level_set is None else "an estimate by samples"),
        )
    if isinstance(policy, CertifiedFallback):
        return _switches(policy.certificate, loop, dt, unit)
    if isinstance(policy, TubePolicy):
        found = policy.tightening
        inside = all(record.inside for record in loop.records)
        return (
            f"limits tightened by {found.states} (states) and {found.inputs} (inputs); the policy's proved constant is "
            f"{policy.certificate.bound:.4g}; radii up to {found.largest_radius:.4g} leave room; the error "
            f"{'stayed in its tube' if inside else 'LEFT ITS TUBE: the plant is not as assumed'}",
        )
    return ()


def _switches(certificate: Certificate, loop: ClosedLoop, dt: float, unit: str) -> Sequence[str]:
    log = fallback.summarise(loop.decisions, loop.states[: len(loop.decisions)], certificate, dt=dt)
    reasons = ", ".join(f"{count} {reason}" for reason, count in log.reasons.items()) or "never"
    lines = [f"the policy (constant {certificate.bound:.4g}, proved) acted at {100 * log.share:.3g} %: {reasons}"]
    lines += [f"  at {s.time:.4g} {unit}: {s.reason or 'MPC again'}" for s in log.switches[:10]]
    if len(log.switches) > 10:
        lines.append(f"  and {len(log.switches) - 10} more switches")
    return lines
