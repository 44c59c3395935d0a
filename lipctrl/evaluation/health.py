"""Signs that an evaluation is misleading: a good result may mean that the search was bad.

Each sign is judged from what was run, never assumed: "good" and "bad" say what was seen, "open" says what would have to
be run to judge. Differences of returns are paired by episode, and count where they exceed two standard errors; the
return of a deterministic loop has none, so that there rounding is the limit. The list follows Athalye et al. 2018
(arXiv 1802.00420), Carlini et al. 2019 (arXiv 1902.06705) and what goes wrong in control besides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.summary import Row
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import Policy

Array = NDArray[np.float64]
Family = Literal["none", "blind", "gradient", "query"]
Status = Literal["good", "bad", "open"]
FEWEST = 10  # episodes below which a mean under attack says little
SATURATED = 0.5  # share of steps at the limits of the action from which a gradient sees little
VANISHED = 0.01  # share of zero gradients that is worth a warning
FELL_BACK = 0.01  # of the steps: what a fallback may do before the numbers are those of the fallback
RISING = 0.1  # of the damage: what more effort may still add


@dataclass(frozen=True)
class Rung:
    """One attack with a share of its effort, at the largest radius of a plan.

    Attributes:
        share: of its iterations or closed loops; 0 is one step.
        calls: policy evaluations, Jacobians and steps of closed loops that it spent per episode.
        returns: (E,).
    """

    attack: str
    share: float
    calls: float
    returns: Array

    def as_json(self) -> dict[str, str | float]:
        """As a JSON object, with the mean return."""
        return {"attack": self.attack, "share": self.share, "calls": self.calls, "mean": float(self.returns.mean())}


@dataclass(frozen=True)
class Evidence:
    """What was run of one policy.

    Attributes:
        results: closed loops by attack, with the same episodes. families: of the attacks.
        table: the rows of all attacks. rungs: of the attacks whose effort can be changed, least effort first.
        policy: itself. net: its network, None if it is none. states: (k, n), observations met in closed loops.
        disturbs_observation: whether gradients of the policy have a part in the attack.
    """

    policy: Policy
    net: PlainNet | None
    results: Mapping[str, Rollouts]
    families: Mapping[str, Family]
    table: Sequence[Row]
    rungs: Mapping[str, Sequence[Rung]]
    states: Array
    disturbs_observation: bool = True


@dataclass(frozen=True)
class Sign:
    """One sign: what was looked for, whether it was seen, and a sentence."""

    name: str
    status: Status
    text: str


def decided(difference: Array) -> float:
    """The mean of paired differences (E,) if it exceeds two standard errors and rounding, else 0."""
    mean = float(difference.mean())
    error = float(difference.std(ddof=1)) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
    return mean if abs(mean) > max(2 * error, 1e-9 * (1 + float(np.abs(difference).max()))) else 0.0


def zero_radius(evidence: Evidence) -> Sign:
    """At radius 0 every attack leaves the return as it is, to the last bit."""
    name = "radius 0 is the nominal loop"
    nominal = [found.returns[list(found.radii).index(0)] for found in evidence.results.values() if 0 in found.radii]
    if len(nominal) < 2:
        return Sign(name, "open", "fewer than two attacks ran at radius 0")
    changed = [
        attack
        for attack, found in evidence.results.items()
        if 0 in found.radii and not np.array_equal(found.returns[list(found.radii).index(0)], nominal[0])
    ]
    if changed:
        return Sign(name, "bad", f"at radius 0 the returns under {', '.join(changed)} differ from the nominal ones")
    return Sign(name, "good", f"{len(nominal)} attacks at radius 0 give the same returns, to the last bit")


def monotone(evidence: Evidence) -> Sign:
    """A larger radius never finds less damage, beyond noise."""
    name = "damage grows with the radius"
    losses = []
    aimed = {a: found for a, found in evidence.results.items() if evidence.families[a] in ("gradient", "query")}
    for attack, found in aimed.items():
        order = np.argsort(found.radii)
        for small, large in zip(order, order[1:], strict=False):
            if (gain := decided(found.returns[large] - found.returns[small])) > 0:
                losses.append((gain, attack, found.radii[small], found.radii[large]))
    if not any(len(found.radii) > 1 for found in aimed.values()):
        return Sign(name, "open", "needs an attack that aims, at two radii")
    if losses:
        gain, attack, small, large = max(losses)
        return Sign(
            name,
            "bad",
            f"{attack} does less damage at radius {large:g} than at {small:g} (by {gain:.4g}): it misses what a "
            "smaller set contains, or does not aim at the return",
        )
    return Sign(name, "good", "no attack that aims does less damage at a larger radius, beyond noise")


def converged(evidence: Evidence) -> Sign:
    """More iterations, restarts or closed loops find no more damage."""
    name = "more effort finds no more"
    growing, known = [], False
    nominal = _nominal(evidence)
    for attack, rungs in evidence.rungs.items():
        if len(rungs) < 2 or nominal is None:
            continue
        known, less, full = True, rungs[-2].returns, rungs[-1].returns
        damage = float((nominal - full).mean())
        if (more := decided(less - full)) > RISING * abs(damage):
            growing.append(f"{attack}: {100 * more / abs(damage):.0f} % of its damage came with the last increase")
    if not known:
        return Sign(name, "open", "no attack ran with less effort (--ladder)")
    if growing:
        return Sign(name, "bad", f"{'; '.join(growing)}; a longer search may find more")
    return Sign(name, "good", f"from {_share(evidence, -2)} of the effort to all of it the damage did not grow notably")


def beats_one_step(evidence: Evidence) -> Sign:
    """An iterative attack is at least as strong as its version with one step."""
    name = "iterations are worth it"
    weak, known = [], False
    for attack, rungs in evidence.rungs.items():
        if rungs and rungs[0].share == 0 and len(rungs) > 1:
            known = True
            if decided(rungs[-1].returns - rungs[0].returns) > 0:
                weak.append(attack)
    if not known:
        return Sign(name, "open", "no attack ran with one step (--ladder 0 ...)")
    if weak:
        return Sign(
            name, "bad", f"{', '.join(weak)} does less damage than with a single step: its objective misleads it"
        )
    return Sign(name, "good", "no attack does less damage than its version with a single step")


def beats_blind(evidence: Evidence) -> Sign:
    """Attacks with gradients are at least as strong as those without."""
    name = "gradients beat chance"
    lowest: dict[bool, tuple[str, Array]] = {}
    for attack, found in evidence.results.items():
        family = evidence.families[attack]
        if family == "none":
            continue
        last = found.returns[int(np.argmax(found.radii))]
        key = family == "gradient"
        if key not in lowest or last.mean() < lowest[key][1].mean():
            lowest[key] = (attack, last)
    if len(lowest) < 2:
        return Sign(name, "open", "needs an attack with gradients and one without")
    (blind, without), (sharp, with_gradients) = lowest[False], lowest[True]
    if decided(with_gradients - without) > 0:
        return Sign(
            name,
            "bad",
            f"{blind} does more damage than {sharp}, the best attack with gradients: they are masked, or its objective "
            "is not the return",
        )
    return Sign(name, "good", f"{sharp} does at least as much damage as {blind}, the best attack without gradients")


def limits(evidence: Evidence) -> Sign:
    """Actions are seldom at their limits, where the deployed policy has no gradient."""
    name = "actions within their limits"
    share = max(row.saturated for row in evidence.table)
    if share > SATURATED:
        return Sign(
            name,
            "bad",
            f"the action is at its limits in up to {100 * share:.0f} % of the steps, where a gradient attack on the "
            "clipped action sees nothing; ours climbs the action before clipping, others may not",
        )
    return Sign(name, "good", f"the action is at its limits in at most {100 * share:.0f} % of the steps")


def gradients(evidence: Evidence) -> Sign:
    """Gradients of the network exist, do not vanish, and agree with differences at states met in closed loops."""
    name = "gradients can be trusted"
    net, x = evidence.net, evidence.states
    if net is None or not evidence.disturbs_observation:
        return Sign(name, "open", "no network whose observation is attacked")
    exact = net.jacobian(x, clipped=False)
    if not np.isfinite(exact).all():
        return Sign(name, "bad", "the gradient of the policy is not finite at states that it meets")
    zero = float((np.abs(exact).max((1, 2)) == 0).mean())
    if zero > VANISHED:
        return Sign(
            name, "bad", f"the gradient of the policy is zero at {100 * zero:.0f} % of the states: it is masked"
        )
    off = difference_error(net, x, exact)
    if off > 1e-3:
        return Sign(name, "bad", f"gradients differ from finite differences by {100 * off:.2g} %")
    return Sign(name, "good", f"at {len(x)} states met none is zero; differences agree to {off:.1e}")


def difference_error(net: PlainNet, x: Array, exact: Array) -> float:
    """Median over states of the relative error of a directional derivative against a central difference.

    The median, because a piecewise linear network has points without a derivative.
    """
    rng = np.random.default_rng(0)
    v = rng.standard_normal(x.shape)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    free, h = net.without_limits(), 1e-5 * (1 + np.abs(x).max())
    slope = (free(x + h * v) - free(x - h * v)) / (2 * h)
    along = np.einsum("bmn,bn->bm", exact, v)
    size = np.linalg.norm(exact, axis=(1, 2))
    return float(np.median(np.linalg.norm(slope - along, axis=1) / np.maximum(size, 1e-12)))


def solvable(evidence: Evidence) -> Sign:
    """The problem of an MPC has a solution; where it has none the fallback acts, and it is what is attacked there."""
    name = "MPC has a solution"
    rows = [row for row in evidence.table if row.fallbacks is not None]
    if not rows:
        return Sign(name, "open", "the policy solves no problem")
    most = max(rows, key=lambda row: row.fallbacks or 0.0)
    share, steps = 100 * (most.fallbacks or 0.0), sum(round(row.length * row.episodes) for row in rows)
    if share > 100 * FELL_BACK:
        where = f"under {most.attack} at radius {most.radius:g}"
        return Sign(
            name,
            "bad",
            f"it had none in {share:.3g} % of the steps {where}: the fallback acted, and is what was attacked there",
        )
    return Sign(name, "good", f"in {steps:,} steps it had none in at most {share:.2g} % under any attack and radius")


def deterministic(evidence: Evidence) -> Sign:
    """The policy answers the same question twice in the same way."""
    name = "the policy is a function"
    first, second = (np.asarray(evidence.policy.predict(evidence.states, deterministic=True)[0]) for _ in range(2))
    if not np.array_equal(first, second):
        return Sign(name, "bad", "the policy answers the same observation differently: attacks must average over that")
    return Sign(name, "good", "asked twice about the same states, it answers the same to the last bit")


def certificate(evidence: Evidence) -> Sign:
    """No deviation that was found exceeds what is proved."""
    name = "witness below certificate"
    proved = [row for row in evidence.table if row.certified is not None]
    if not proved:
        return Sign(name, "open", "nothing is proved of this policy in this channel")
    above = [row for row in proved if row.certified is not None and row.deviation > row.certified * (1 + 1e-9)]
    if above:
        row = max(above, key=lambda r: r.deviation)
        return Sign(
            name,
            "bad",
            f"{row.attack} at radius {row.radius:g} moved the action by {row.deviation:.6g}, more than the proved "
            f"{row.certified:.6g}: certificate or units are wrong",
        )
    return Sign(name, "good", f"in {len(proved)} rows no deviation exceeds the proved bound")


def enough_episodes(evidence: Evidence) -> Sign:
    """There are enough episodes for a mean and an interval to mean something."""
    name, episodes = "enough episodes", min(row.episodes for row in evidence.table)
    if episodes < FEWEST:
        return Sign(name, "bad", f"{episodes} episodes per cell; intervals of fewer than {FEWEST} are not calibrated")
    zero = 1 - 0.05 ** (1 / episodes)
    return Sign(
        name,
        "good",
        f"{episodes} episodes per cell; no failure among them would leave up to {100 * zero:.2g} % possible",
    )


def harmful(evidence: Evidence) -> Sign:
    """Every attack that aims does damage at the largest radius."""
    name, nominal = "attacks do damage", _nominal(evidence)
    if nominal is None:
        return Sign(name, "open", "the nominal loop did not run")
    helping = [
        attack
        for attack, found in evidence.results.items()
        if evidence.families[attack] in ("gradient", "query")
        and decided(found.returns[int(np.argmax(found.radii))] - nominal) > 0
    ]
    if helping:
        return Sign(name, "bad", f"{', '.join(helping)} raises the return: it moves the action, but not to harm")
    return Sign(name, "good", "no attack that aims raises the return")


def signs(evidence: Evidence) -> list[Sign]:
    """All signs, in the order of the report."""
    return [
        check(evidence)
        for check in (
            zero_radius,
            monotone,
            converged,
            beats_one_step,
            beats_blind,
            harmful,
            gradients,
            limits,
            solvable,
            deterministic,
            certificate,
            enough_episodes,
        )
    ]


def _nominal(evidence: Evidence) -> Array | None:
    """Returns (E,) of the nominal loop, from whatever ran at radius 0."""
    for found in evidence.results.values():
        if 0 in found.radii:
            return np.asarray(found.returns[list(found.radii).index(0)])
    return None


def _share(evidence: Evidence, index: int) -> str:
    shares = {rungs[index].share for rungs in evidence.rungs.values() if len(rungs) > 1}
    return " or ".join(f"{100 * share:.0f} %" for share in sorted(shares))
