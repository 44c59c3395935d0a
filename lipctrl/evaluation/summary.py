"""Numbers of an evaluation: one row per policy, attack and radius, with intervals that say what they are over."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.statistics import conditional_value_at_risk


@dataclass(frozen=True)
class Row:
    """One policy under one attack at one radius, over episodes (not over trainings).

    Attributes:
        mean, std, worst, cvar: of the undiscounted return over episodes; cvar is the mean of the lowest tenth.
        failures: episodes that ended before the time limit; failure_low, failure_high: 95 % Clopper-Pearson interval.
        roughness, saturated, tracking: means over episodes, see `evaluation.measures.Measures`; tracking is None
            where the task has no reference.
        violation: largest violation of a constraint, see `PlantEnv.step`; None where the task declares none.
        fallbacks, iterations: share of steps at which the fallback of an MPC acted for want of a solution, and mean
            iterations of its solver per step; None for policies that solve nothing.
        deviation: largest |pi(s + d) - pi(s)| met, a witness.
        certified: proved bound of the same, None if nothing is proved of the policy.
        evaluations, jacobians, loops: what the attack spent, for all radii together; loops are closed loops, of which
            `loop_failures` ended before the time limit, after `loop_steps` steps in all.
    """

    policy: str
    attack: str
    radius: float
    episodes: int
    mean: float
    std: float
    worst: float
    cvar: float
    length: float
    failures: int
    failure_low: float
    failure_high: float
    roughness: float
    saturated: float
    tracking: float | None
    deviation: float
    certified: float | None
    evaluations: int
    jacobians: int
    loops: int = 0
    loop_steps: int = 0
    loop_failures: int = 0
    violation: float | None = None
    fallbacks: float | None = None
    iterations: float | None = None


def clopper_pearson(failures: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a failure probability from independent trials (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if failures == 0 else float(beta.ppf(tail, failures, trials - failures + 1))
    high = 1.0 if failures == trials else float(beta.ppf(1 - tail, failures + 1, trials - failures))
    return low, high


def rows(policy: str, attack: str, rollouts: Rollouts, certified: Sequence[float | None]) -> list[Row]:
    """Rows of one policy under one attack; `certified` holds one proved deviation per radius, or None."""
    result = []
    for r, radius in enumerate(rollouts.radii):
        returns, failures = rollouts.returns[r], int(rollouts.terminated[r].sum())
        low, high = clopper_pearson(failures, len(returns))
        result.append(
            Row(
                policy,
                attack,
                float(radius),
                len(returns),
                float(returns.mean()),
                float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
                float(returns.min()),
                conditional_value_at_risk(returns),
                float(rollouts.lengths[r].mean()),
                failures,
                low,
                high,
                float(rollouts.roughness[r].mean()),
                float(rollouts.saturated[r].mean()),
                None if np.isnan(rollouts.tracking[r]).any() else float(rollouts.tracking[r].mean()),
                float(rollouts.deviation[r].max()),
                certified[r],
                rollouts.cost.evaluations,
                rollouts.cost.jacobians,
                rollouts.cost.loops,
                rollouts.cost.steps,
                rollouts.cost.failures,
                **counts(rollouts, r),
            )
        )
    return result


def counts(rollouts: Rollouts, r: int) -> dict[str, float | None]:
    """The largest violation of a constraint, and solves at one radius, by their names in `Row`."""
    steps, violation = int(rollouts.lengths[r].sum()), float(rollouts.violation[r].max())
    solves = {
        "fallbacks": float(rollouts.fallbacks[r].sum() / steps),
        "iterations": float((rollouts.iterations[r] * rollouts.lengths[r]).sum() / steps),
    }
    solved = not np.isnan(rollouts.fallbacks[r]).any()
    return {
        "violation": None if np.isnan(violation) else violation,
        **{name: value if solved else None for name, value in solves.items()},
    }


def as_json(table: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON objects."""
    return [asdict(row) for row in table]
