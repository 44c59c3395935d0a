"""The closed-loop table of `lipctrl certify --closed-loop`: what a policy's proved constants mean in its plant's loop.

The policy is compared with the LQR expert u = -K x of the plant. Where neither saturates, the error e(x) = pi(x) + K x
is itself a network with a linear skip, whose slope on a level set is certified like any other: far below the sum of the
two constants.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipctrl.certify.bracket import Bracket, certify, upper_bounds
from lipctrl.certify.certificate import Box
from lipctrl.certify.guarantees import Guarantee, Label
from lipctrl.certify.regret import lqr_average_regret, lqr_regret_bound
from lipctrl.certify.stability import (
    allowed_slopes,
    decay,
    incremental_gain,
    iss,
    least_conservative,
    quadratic_lyapunov,
    tube,
)
from lipctrl.cli.experts import OBSERVED, Env, lqr_expert
from lipctrl.envs.base import PlantEnv
from lipctrl.envs.pendulum import GRAVITY
from lipctrl.files import UserError
from lipctrl.mpc.lqr import LqrSolution
from lipctrl.mpc.tube import mismatch_network
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]

STEPS = 100  # of the regret from a start
LEVELS = np.geomspace(1, 1e-6, 100)  # shares of the largest level that are tried

# Plants x+ = A x + B (u + phi(x)) with a known nonlinearity: Lipschitz constant of phi on |x_1| <= r.
MATCHED: Mapping[str, Callable[[float], float]] = {"pendulum": lambda r: GRAVITY * (1 - math.cos(min(r, math.pi)))}


@dataclass(frozen=True)
class Loop:
    """The linear loop that a policy is judged in, and how far it is to be believed.

    Attributes:
        B: (n, m). expert: Riccati solution. u_low, u_high, x_low, x_high: limits, may be infinite.
        nonlinearity: constant of a matched nonlinearity on states with |x_1| <= r, as a function of r.
        label: of what is concluded; "estimate" where the loop is only a linearisation. where: in words.
    """

    B: Array
    expert: LqrSolution
    u_low: Array
    u_high: Array
    x_low: Array
    x_high: Array
    nonlinearity: Callable[[float], float]
    label: Label
    where: str


def loop_of(env: Env) -> Loop:
    """The loop of an environment with an LQR expert.

    Raises:
        UserError: it has none, or observations that are not the plant's state.
    """
    expert, inner = lqr_expert(env), env.unwrapped
    low, high = (np.asarray(x, np.float64) for x in (env.action_space.low, env.action_space.high))  # type: ignore[attr-defined]  # a Box
    solution = expert.solution
    unlimited = np.full(solution.A_cl.shape[0], np.inf)
    if env.spec is not None and env.spec.id in OBSERVED:
        raise UserError(f"a closed-loop table needs observations that are the state; {env.spec.id} has others")
    if not isinstance(inner, PlantEnv):
        from lipctrl.envs.mujoco_tasks.linearise import linearise

        B = linearise(env)[1]
        where = "linearisation of the simulator at its equilibrium only"
        return Loop(B, solution, low, high, -unlimited, unlimited, lambda r: 0.0, "estimate", where)
    plant = inner.plant
    if inner.observed.names != plant.state.names:
        raise UserError(f"a closed-loop table needs observations that are the plant's state; {plant.name} has others")
    B = plant.linearise(*plant.equilibrium)[1]
    limits = (np.array(plant.state.low, np.float64), np.array(plant.state.high, np.float64))
    if expert.exact and plant.name not in MATCHED:
        return Loop(B, solution, low, high, *limits, lambda r: 0.0, "bound", "linear plant")
    if plant.name in MATCHED:
        where = "plant with a matched nonlinearity, bounded on the level set"
        return Loop(B, solution, low, high, *limits, MATCHED[plant.name], "bound", where)
    return Loop(B, solution, low, high, *limits, lambda r: 0.0, "estimate", "linearisation at the equilibrium only")


def level_without_saturation(loop: Loop, net: PlainNet, lip: float, measurement: float) -> float:
    """The largest c such that on {sqrt(x'Px) <= c} neither policy nor expert saturates and no state limit is passed."""
    inverse = np.linalg.inv(loop.expert.P)
    widest = math.sqrt(float(np.linalg.eigvalsh(inverse).max()))
    start = np.asarray(net.without_limits()(np.zeros(net.input_size)), np.float64)
    lower = loop.u_low if net.low is None else np.maximum(loop.u_low, net.low)
    upper = loop.u_high if net.high is None else np.minimum(loop.u_high, net.high)
    levels = [math.inf]
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        room = min(high - start[i], start[i] - low)
        levels.append((room / lip - measurement) / widest if lip > 0 else math.inf)
        row = loop.expert.K[i]
        levels.append(min(high, -low) / math.sqrt(float(row @ inverse @ row)))
    for i, limit in enumerate(np.minimum(loop.x_high, -loop.x_low)):
        levels.append(limit / math.sqrt(float(inverse[i, i])))
    return max(0.0, min(levels))


def box_of(loop: Loop, level: float, measurement: float) -> Box | None:
    """A box around the level set, widened by the measurement error; None if it is unbounded."""
    if not math.isfinite(level) or level <= 0:
        return None
    half = level * np.sqrt(np.diag(np.linalg.inv(loop.expert.P))) + measurement
    return Box(tuple((-half).tolist()), tuple(half.tolist()))


@dataclass(frozen=True)
class ClosedLoopTable:
    """Everything that was concluded, in order."""

    policy: Bracket
    level: float
    rows: tuple[Guarantee, ...]


def _local_slope(loop: Loop, error: PlainNet, level: float, measurement: float, method: str) -> float:
    """Slope of the error on the level set, with the plant's nonlinearity; infinite where nothing is proved."""
    region = box_of(loop, level, measurement)
    found = [c.bound for name in method.split() for c in upper_bounds(error, region=region, method=name)]
    widest = 1 / math.sqrt(float(np.linalg.eigvalsh(loop.expert.P).min()))
    return min(found, default=math.inf) + loop.nonlinearity(widest * level)


def best_level(loop: Loop, error: PlainNet, largest: float, offset: float, lip: float, measurement: float) -> float:
    """The level at which the largest measurement error is tolerated, or the smallest tried if none is.

    Bounds of the Jacobian on a box take milliseconds, so that a hundred levels are simply tried.
    """
    w = quadratic_lyapunov(loop.expert.A_cl, loop.B, loop.expert.P)
    top = largest if math.isfinite(largest) else 1e3
    best, chosen = -math.inf, top * LEVELS[-1]
    for level in top * LEVELS:
        slope = _local_slope(loop, error, float(level), measurement, "jacobian")
        found = iss(w, offset=offset, slope=slope, lip=lip, measurement=0.0, level=float(level)).disturbance.value
        if found is not None and found > best:
            best, chosen = found, float(level)
    return float(chosen)


def closed_loop(
    loop: Loop, net: PlainNet, *, measurement: float, level: float | None = None, start: Array | None = None
) -> ClosedLoopTable:
    """Stability, tolerable disturbance and regret of a policy in a loop.

    Args:
        loop: see `loop_of`. net: the policy in raw units.
        measurement: largest measurement error, l2, in raw units of the observation.
        level: c of the set {sqrt(x'Px) <= c} to judge on; by default where the largest measurement error is tolerated.
        start: state (n,) for the regret over 100 steps, or None.

    Raises:
        UserError: sizes do not match, the policy saturates at the origin, or the level reaches saturation.
    """
    if start is not None and start.shape != (len(loop.B),):
        raise UserError(f"the start needs {len(loop.B)} numbers, found {len(start)}")
    if net.input_size != len(loop.B) or net.output_size != loop.B.shape[1]:
        raise UserError(f"the policy maps {net.input_size} to {net.output_size}; the plant has {loop.B.shape}")
    policy, error = certify(net.without_limits()), mismatch_network(net.without_limits(), loop.expert.K)
    lip, offset = policy.upper.bound, float(np.linalg.norm(net.without_limits()(np.zeros(net.input_size))))
    largest = level_without_saturation(loop, net, lip, measurement)
    if largest <= 0:
        raise UserError(
            "the policy may saturate at the origin already: its offset and the measurement error use up the limits"
        )
    if level is not None and level > largest:
        raise UserError(f"level {level:g} reaches saturation or a state limit; the largest without is {largest:.6g}")
    level = level or best_level(loop, error, largest, offset, lip, measurement)
    slope = _local_slope(loop, error, level, measurement, "jacobian lipsdp-neuron-local")
    bent = loop.nonlinearity(level / math.sqrt(float(np.linalg.eigvalsh(loop.expert.P).min())))
    rows = [
        Guarantee("policy's Lipschitz constant, at least", policy.lower.bound, "action per state", "witness"),
        Guarantee("policy's Lipschitz constant", lip, "action per state", "proved"),
        Guarantee("level sqrt(x'Px) of the set judged", level, "", "bound", ("no saturation, no state limit",)),
        Guarantee(
            "slope of the error against the expert there", slope, "action per state", "bound" if bent else "proved"
        ),
        Guarantee("offset of the error at the origin", offset, "action", "bound"),
    ]
    if bent:
        rows.append(Guarantee("of which the plant's nonlinearity", bent, "action per state", "bound"))
    rows += _stability(loop, slope, offset, lip, measurement, level)
    leaves = rows[-1].reason
    if start is not None and not leaves and math.sqrt(float(start @ loop.expert.P @ start)) > level:
        leaves = "the start is outside the level set"
    rows += _costs(loop, slope, offset + lip * measurement, start, leaves)
    return ClosedLoopTable(policy, level, tuple(rows))


def _stability(
    loop: Loop, slope: float, offset: float, lip: float, measurement: float, level: float
) -> list[Guarantee]:
    closed, B, P = loop.expert.A_cl, loop.B, loop.expert.P
    radius = float(np.abs(loop.expert.eigenvalues).max())
    overshoot, rate = decay(closed, margin=min(0.05, (1 - radius) / 2))
    rows = []
    for form, allowed in allowed_slopes(closed, B, P, overshoot=overshoot, rate=rate).items():
        verdict = "holds" if slope < allowed else "does not hold"
        rows.append(
            Guarantee(f"slope allowed by {form} ({verdict})", allowed, "action per state", loop.label, (loop.where,))
        )
    found = iss(
        quadratic_lyapunov(closed, B, P), offset=offset, slope=slope, lip=lip, measurement=measurement, level=level
    )
    ultimate = found.radius
    if not ultimate.vacuous:  # the loop stays in the set, so the small-gain form may use the slope there as well
        small_gain = tube(incremental_gain(closed, B), slope=slope, along=offset, lip=lip, measurement=measurement)
        ultimate = replace(least_conservative([ultimate, small_gain]), quantity="ultimate distance from the origin")
    return [*rows, *(_labelled(row, loop) for row in (found.rate, found.disturbance, ultimate))]


def _costs(loop: Loop, slope: float, extra: float, start: Array | None, leaves: str) -> list[Guarantee]:
    """Regret rows; `leaves` says why the loop may leave the set on which the slope is known, or is empty."""
    closed, B, S = loop.expert.A_cl, loop.B, loop.expert.S
    rows = [lqr_average_regret(closed, B, S, slope=slope, extra=extra)]
    if start is not None:
        rows.append(lqr_regret_bound(closed, B, S, start, slope=slope, extra=extra, steps=STEPS))
    if leaves:
        rows = [replace(row, value=None, reason=leaves) for row in rows]
    return [_labelled(row, loop) for row in rows]


def _labelled(row: Guarantee, loop: Loop) -> Guarantee:
    return replace(row, label=loop.label, assumptions=(*row.assumptions, loop.where))


def show_closed_loop(title: str, table: ClosedLoopTable) -> None:
    """Print the table: quantity, value, label, assumptions."""
    show_rows(title, table.rows)


def show_rows(title: str, rows: Sequence[Guarantee]) -> None:
    """Print rows: quantity, value, label, assumptions."""
    view = Table("quantity", "value", "label", "assumes", title=title)
    for row in rows:
        value = f"vacuous: {row.reason}" if row.value is None else f"{row.value:.6g} {row.unit}".rstrip()
        view.add_row(escape(row.quantity), escape(value), row.label, escape("; ".join(row.assumptions)))
    Console().print(view)
