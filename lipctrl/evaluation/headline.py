"""The numbers of one policy that stand at the top of a report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.statistics import Interval, conditional_value_at_risk, return_curve, stratified_bootstrap
from lipctrl.evaluation.summary import Row, clopper_pearson, counts

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Headline:
    """One policy. Intervals are 95 %, over episodes of this one policy, not over trainings.

    Attributes:
        attack, radius: that turned out worst in the table. fresh: whether what follows is from new seeds, which had no
            part in choosing it; else it is the smallest of many means, and too low.
        natural, worst: mean returns without and under that attack, with bootstrap intervals.
        drop: (worst - natural) / |natural|, None at a natural return of 0, up to rounding.
        floor: mean return of a controller that does nothing, from which area and critical radius count.
        area: under the curve of worst mean return against radius, 1: nothing lost, 0: all that the controller gained
            over doing nothing is lost. critical: radius at which half of that is lost, infinite if never; both None
            where the policy gains nothing over doing nothing, or radius 0 did not run.
        cvar: mean of the lowest tenth of returns. failures of episodes, with the exact interval.
        deviation: largest change of the action found at the largest radius, a witness. certified: proved bound of it.
        tracking, roughness: of the worst attack, and in brackets nominal; tracking None without a reference.
        violation: of the worst attack, fallbacks, iterations: of it and nominal; see `Row`.
        steps, calls: of the environment, and policy evaluations and Jacobians of the attacks, in all.
    """

    policy: str
    attack: str
    radius: float
    fresh: bool
    natural: Interval
    worst: Interval
    drop: float | None
    floor: float
    area: float | None
    critical: float | None
    cvar: float
    failures: int
    episodes: int
    failure_low: float
    failure_high: float
    deviation: float
    certified: float | None
    tracking: tuple[float, float] | None
    roughness: tuple[float, float]
    steps: int
    calls: int
    violation: float | None
    fallbacks: tuple[float, float] | None
    iterations: tuple[float, float] | None

    @property
    def tightness(self) -> float | None:
        """Largest deviation found over the proved one: 1 means that both are exact; None if nothing is proved."""
        return None if not self.certified else self.deviation / self.certified


def envelope(table: Sequence[Row]) -> tuple[Array, Array]:
    """Radii in order, and at each the lowest mean return over attacks, of the rows of one policy."""
    radii = sorted({row.radius for row in table})
    return np.array(radii), np.array([min(row.mean for row in table if row.radius == radius) for radius in radii])


def headline(policy: str, table: Sequence[Row], pair: Rollouts, fresh: bool, floor: float) -> Headline:
    """The headline of one policy.

    Args:
        table: rows of all policies. pair: closed loops at radius 0 and under the worst attack. fresh: on new seeds.
        floor: mean return of a controller that does nothing.
    """
    own = [row for row in table if row.policy == policy]
    worst = min(own, key=lambda row: row.mean)
    radii, lowest = envelope(own)
    curve = None
    if radii[0] == 0 and len(radii) > 1 and lowest[0] > floor:
        curve = return_curve(radii, lowest, floor=floor, threshold=(lowest[0] + floor) / 2)
    natural, attacked = (
        stratified_bootstrap(row, lambda x: float(x.mean()), seed=0) for row in (pair.returns[0], pair.returns[-1])
    )
    vanishes = abs(natural.value) <= 1e-9 * float(np.abs(pair.returns).max())
    failures, episodes = int(pair.terminated[-1].sum()), pair.returns.shape[1]
    last = [row for row in own if row.radius == radii[-1]]
    known = not np.isnan(pair.tracking).any()
    under, calm = counts(pair, -1), counts(pair, 0)
    return Headline(
        policy,
        worst.attack,
        worst.radius,
        fresh,
        natural,
        attacked,
        None if vanishes else (attacked.value - natural.value) / abs(natural.value),
        floor,
        None if curve is None else curve.area,
        None if curve is None else curve.critical,
        conditional_value_at_risk(pair.returns[-1]),
        failures,
        episodes,
        *clopper_pearson(failures, episodes),
        max(row.deviation for row in last),
        last[0].certified,
        (float(pair.tracking[-1].mean()), float(pair.tracking[0].mean())) if known else None,
        (float(pair.roughness[-1].mean()), float(pair.roughness[0].mean())),
        spent_steps(own),
        sum(row.evaluations + row.jacobians for row in {row.attack: row for row in own}.values()),
        under["violation"],
        _both(under["fallbacks"], calm["fallbacks"]),
        _both(under["iterations"], calm["iterations"]),
    )


def _both(attacked: float | None, nominal: float | None) -> tuple[float, float] | None:
    return None if attacked is None or nominal is None else (attacked, nominal)


def spent_steps(own: Sequence[Row]) -> int:
    """Environment steps behind the rows of one policy, the closed loops of searches included."""
    searched = {row.attack: row for row in own}.values()  # what a search spent stands in each of its rows
    return sum(round(row.length * row.episodes) for row in own) + sum(row.loop_steps for row in searched)
