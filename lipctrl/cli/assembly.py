"""From closed loops to one section of a report: tables, figures, sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.attacks.threat import Threat
from lipctrl.certify.bracket import Bracket, certify
from lipctrl.cli.animate import animation
from lipctrl.cli.experts import Expert, make_env, signal_names
from lipctrl.cli.plan import Contender, Plan
from lipctrl.evaluation.plots import deviation_curves, return_curves, trajectories
from lipctrl.evaluation.report import Figure, Section, confirmed, verdict
from lipctrl.evaluation.rollout import Rollouts, Trace
from lipctrl.evaluation.summary import Row, rows
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
Results = Mapping[tuple[str, str], Rollouts]


def assemble(
    plan: Plan,
    contenders: Sequence[Contender],
    results: Results,
    table: Sequence[Row],
    fresh: Sequence[Row],
    *,
    expert: Expert | None,
    animate: bool,
    facts: Mapping[str, Any],
) -> Section:
    """The section of a plan that has been run; see `sections.evaluate`."""
    names = signal_names(make_env(plan.env_id))
    known = expert is not None and expert.exact and compared(plan)
    exact = exact_costs(plan, results, expert) if known and expert is not None else []
    unit = plan.threat.words.units
    figures = [
        Figure(
            "Return against attack radius. Higher is better; the band is one standard deviation over episodes.",
            return_curves(table, unit),
        ),
        Figure(trajectory_caption(plan), trajectories(traces_of(plan, contenders, results), *names)),
    ]
    if not plan.threat.channels:  # nothing else reaches the policy alone
        text = "Largest change of the action that an attack caused (witness), below what is proved for the policy."
        figures.insert(1, Figure(text, deviation_curves(table, unit)))
    if animate:
        trace = results[contenders[0].name, plan.attacks[-1]].traces[shown(plan)]
        frames = animation(plan.env_id, trace)
        if frames is not None:
            figures.append(
                Figure(
                    f"{contenders[0].name} under {plan.attacks[-1]} at radius {plan.radii[shown(plan)]:g}.", gif=frames
                )
            )
    return Section(
        title=plan.env_id,
        verdicts=[verdict(table, c.name) for c in contenders] + [confirmed(fresh, c.name) for c in contenders if fresh],
        sensitivity=[sensitivity(c.name, c.net, c.bracket) for c in contenders if c.net and c.bracket],
        threat=plan.threat.sentence(),
        units=plan.threat.table(plan.radii[-1]),
        unit_radius=plan.radii[-1],
        table=table,
        figures=figures,
        exact=exact,
        facts=facts,
        fresh=fresh,
    )


def table_rows(plan: Plan, contender: Contender, results: Mapping[tuple[str, str], Rollouts]) -> list[Row]:
    table = []
    for attack in plan.attacks:
        bounds = proved(plan, contender, plan.radii_of(attack))
        table += rows(contender.name, attack, results[contender.name, attack], bounds)
    return table


def proved(plan: Plan, contender: Contender, radii: Sequence[float]) -> list[float | None]:
    """Proved largest change of the action at each radius, None where nothing is proved of it."""
    if contender.net is None or plan.threat.channels:
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


def shown(plan: Plan) -> int:
    """Index of the radius whose trajectories are drawn: the middle one of the last attack."""
    return len(plan.radii_of(plan.attacks[-1])) // 2


def traces_of(
    plan: Plan, contenders: Sequence[Contender], results: Mapping[tuple[str, str], Rollouts]
) -> list[tuple[str, Trace]]:
    strongest = plan.attacks[-1]
    chosen = [(f"{c.name}, {strongest}", results[c.name, strongest].traces[shown(plan)]) for c in contenders]
    weakest = results[contenders[0].name, strongest].traces[0]
    return [(f"{contenders[0].name}, radius {plan.radii[0]:g}", weakest), *chosen]


def trajectory_caption(plan: Plan) -> str:
    return f"The first episode at radius {plan.radii[shown(plan)]:g}, same start; true states, not what was seen."


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
