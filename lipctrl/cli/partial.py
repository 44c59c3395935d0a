"""What is reported of an evaluation that did not come to its end: everything that has finished, marked as partial."""

from collections.abc import Mapping, Sequence
from typing import Any

from lipctrl.cli.assembly import proved, sensitivity
from lipctrl.cli.cells import Cell, cells_of
from lipctrl.cli.plan import Contender, Plan
from lipctrl.evaluation.plots import return_curves
from lipctrl.evaluation.report import Figure, Section, verdict
from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.store import joined
from lipctrl.evaluation.summary import Row, rows

Finished = Sequence[tuple[Cell, Rollouts]]


def collected(plan: Plan, contenders: Sequence[Contender], finished: Finished) -> dict[tuple[str, str], Rollouts]:
    """The cells of a plan that have finished, by policy and attack, radii in the order of the plan."""
    order = {_identity(cell): k for k, cell in enumerate(cells_of(plan, contenders))}
    own = sorted(
        ((order[_identity(cell)], cell, one) for cell, one in finished if _identity(cell) in order),
        key=lambda numbered: numbered[0],
    )
    found: dict[tuple[str, str], list[Rollouts]] = {}
    for _, cell, one in own:
        found.setdefault((cell.victim.name, cell.attack), []).append(one)
    return {key: joined(parts) for key, parts in found.items()}


def _identity(cell: Cell) -> tuple[Any, ...]:
    return cell.victim.name, cell.attack, cell.radii, cell.episodes, cell.seed


def partial_section(
    plan: Plan, contenders: Sequence[Contender], finished: Finished, reason: str, facts: Mapping[str, Any]
) -> Section:
    """The section of what has finished: a table, a figure and verdicts, which hold for no more than that.

    Args:
        finished: at least one cell of the plan.
        reason: why there is no more, a sentence without a full stop.
    """
    results = collected(plan, contenders, finished)
    table: list[Row] = []
    for one in contenders:
        for attack in plan.attacks:
            if (one.name, attack) in results:
                own = results[one.name, attack]
                table += rows(one.name, attack, own, proved(plan, one, own.radii.tolist()))
    done, planned = len(table), sum(len(cell.radii) for cell in cells_of(plan, contenders))
    met = [one for one in contenders if any(row.policy == one.name for row in table)]
    drawn = any(row.attack != "none" for row in table)
    caption = "Mean return against attack radius, as far as it was run. Higher is better."
    return Section(
        title=plan.env_id,
        verdicts=[verdict(table, one.name) for one in met],
        sensitivity=[sensitivity(one.name, one.net, one.bracket) for one in contenders if one.net and one.bracket],
        threat=plan.threat.sentence(),
        units=plan.threat.table(plan.radii[-1]),
        unit_radius=plan.radii[-1],
        table=table,
        figures={"curves": [Figure(caption, return_curves(table, plan.threat.words.units))]} if drawn else {},
        facts=facts,
        partial=f"{done} of {planned} combinations of policy, attack and radius ran: {reason}",
    )
