"""From closed loops to one section of a report: tables, figures, sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.attacks.threat import Threat
from lipctrl.certify.bracket import Bracket, certify
from lipctrl.cli.experts import Expert, make_env, signal_names
from lipctrl.cli.extras import Extras
from lipctrl.cli.plan import Contender, Plan
from lipctrl.cli.trainings import trainings_of
from lipctrl.evaluation.figures import episode_figure, ladder_panels, map_figure, profile_figure, return_panels
from lipctrl.evaluation.plots import deviation_curves, return_curves
from lipctrl.evaluation.report import Figure, Section, Trainings, confirmed, verdict
from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.summary import Row, rows
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
Results = Mapping[tuple[str, str], Rollouts]
PANELS = 6  # policies that get a panel each


def assemble(
    plan: Plan,
    contenders: Sequence[Contender],
    results: Results,
    table: Sequence[Row],
    fresh: Sequence[Row],
    extras: Extras,
    *,
    expert: Expert | None,
    facts: Mapping[str, Any],
) -> Section:
    """The section of a plan that has been run; see `sections.evaluate`."""
    known = expert is not None and expert.exact and compared(plan)
    exact = exact_costs(plan, results, expert) if known and expert is not None else []
    trainings = trainings_of(plan, contenders, table)
    verdicts = [verdict(table, c.name) for c in contenders] + [confirmed(fresh, c.name) for c in contenders if fresh]
    return Section(
        title=plan.env_id,
        verdicts=verdicts,
        sensitivity=[sensitivity(c.name, c.net, c.bracket) for c in contenders if c.net and c.bracket],
        threat=plan.threat.sentence(),
        units=plan.threat.table(plan.radii[-1]),
        unit_radius=plan.radii[-1],
        table=table,
        figures=figures_of(plan, table, extras, trainings),
        exact=exact,
        facts=facts,
        fresh=fresh,
        headlines=extras.headlines,
        health=extras.health,
        ladder=[
            {"policy": policy, **rung.as_json()}
            for policy, own in extras.rungs.items()
            for rungs in own.values()
            for rung in rungs
        ],
        components=extras.components,
        times=extras.times,
        transfer=[list(row) for row in extras.transfer],
        episodes=[(one.name, episode.recording) for one, episode in zip(contenders, extras.episodes, strict=False)],
        trainings=trainings,
    )


def figures_of(
    plan: Plan, table: Sequence[Row], extras: Extras, trainings: Trainings | None
) -> dict[str, list[Figure]]:
    """Figures by the part of the report that they belong to."""
    unit, floor = plan.threat.words.units, extras.headlines[0].floor
    found: dict[str, list[Figure]] = {}
    if any(row.attack != "none" for row in table):
        text = (
            "Mean return against attack radius, one line per attack; the thick line is the worst of them, the band one "
            "standard deviation over its episodes. Where the thick line reaches the dotted one, nothing is left of "
            "what the controller is for."
        )
        few = len(extras.headlines) <= PANELS
        found["curves"] = [Figure(text, return_panels(table, unit, floor) if few else return_curves(table, unit))]
    if plan.threat.seen:
        text = "Largest change of the action that an attack caused (witness), below what is proved for the policy."
        found["sensitivity"] = [Figure(text, deviation_curves(table, unit))]
    nominal = {h.policy: nominal_of(table, h.policy) for h in extras.headlines}
    if all(value is not None for value in nominal.values()) and any(extras.rungs.values()):
        text = (
            f"Damage at radius {max(plan.radii):g} against what the search spent, with less and with all of its effort."
            " A curve that still rises at its right end has not converged: a longer search would find more."
        )
        known = {name: value for name, value in nominal.items() if value is not None}
        found["ladder"] = [Figure(text, ladder_panels(extras.rungs, known))]
    if extras.components or extras.times:
        worst = extras.headlines[0]
        text = (
            f"{worst.policy} under {worst.attack} at radius {max(plan.radii):g}, confined to one component, and to one "
            "part of the episode: where the controller is weak."
        )
        found["map"] = [Figure(text, map_figure(extras.components, extras.times))]
    if trainings is not None:
        text = (
            "Share of the trainings of a method whose worst mean return exceeds a value: a curve further right is "
            "better, a step at the left is a training that failed."
        )
        found["trainings"] = [Figure(text, profile_figure(trainings.scores))]
    names = signal_names(make_env(plan.env_id))
    channel = plan.threat.words.channel.replace("_", " ")
    for i, one in enumerate(extras.episodes):
        facts = one.recording.facts
        text = (
            f"{facts.policy} under {facts.attack} at radius {facts.radius:g}: return {facts.result:.6g} in "
            f"{facts.length} steps{', failed' if facts.failed else ''}; blue: the same start without disturbance."
        )
        drawn = [Figure(text, episode_figure(one.nominal, one.worst, *names, channel))]
        found[f"episode {i}"] = drawn + ([Figure("The attacked episode.", gif=one.gif)] if one.gif else [])
    return found


def nominal_of(table: Sequence[Row], policy: str) -> float | None:
    """Mean return of a policy at radius 0, None where that did not run."""
    return next((row.mean for row in table if row.policy == policy and row.radius == 0), None)


def table_rows(plan: Plan, contender: Contender, results: Mapping[tuple[str, str], Rollouts]) -> list[Row]:
    table = []
    for attack in plan.attacks:
        bounds = proved(plan, contender, plan.radii_of(attack))
        table += rows(contender.name, attack, results[contender.name, attack], bounds)
    return table


def proved(plan: Plan, contender: Contender, radii: Sequence[float]) -> list[float | None]:
    """Proved largest change of the action at each radius, None where nothing is proved of it."""
    if contender.net is None or not plan.threat.seen:
        return [None] * len(radii)
    bound = deviation_bound(contender.net, plan.threat)
    return [bound * radius * (1 + 1e-12) for radius in radii]


def deviation_bound(net: PlainNet, threat: Threat) -> float:
    """Proved largest l2 change of the action per unit of radius, in the threat's own norm and units."""
    scale = threat.ball(np.zeros(1)).scale
    return certify(net, NormPair(threat.words.norm, "l2", input_scale=tuple(scale.tolist()))).upper.bound


def compared(plan: Plan) -> bool:
    """Whether the extra cost of maximal action deviation can be told: it needs the undisturbed loop."""
    return "mad" in plan.attacks and plan.radii[0] == 0


def exact_costs(plan: Plan, results: Mapping[tuple[str, str], Rollouts], expert: Expert) -> list[dict[str, float]]:
    """Extra cost that the attack on the LQR expert found, against the closed form, per radius."""
    solution, rollouts = expert.solution, results["expert", "mad"]
    terminal = np.einsum("rei,ij,rej->re", rollouts.final, solution.P, rollouts.final)
    extra = (terminal - rollouts.returns) - (terminal - rollouts.returns)[:1]
    scale, steps = plan.threat.ball(np.zeros(1)).scale, int(rollouts.lengths.max())
    lines = []
    for r, radius in enumerate(plan.radii):
        if radius == 0:
            continue
        best = lqr_extra_cost(
            solution.K, solution.S, norm=plan.threat.words.norm, radius=radius, scale=scale, steps=steps
        )
        found = float(extra[r].max())
        lines.append({"radius": radius, "found": found, "exact": best, "ratio": found / best})
    return lines


def sensitivity(name: str, net: PlainNet, bracket: Bracket) -> dict[str, Any]:
    upper, lower = bracket.upper, bracket.lower
    return {
        "policy": name,
        "lower": lower.bound,
        "upper": upper.bound,
        "ratio": bracket.ratio,
        "method": upper.method,
        "norm": str(upper.norm),
        "verified": upper.verify(net),
        "lower_method": lower.method,
        "weights_sha256": upper.weights_sha256,
    }
