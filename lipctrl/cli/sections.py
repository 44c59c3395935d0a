"""Run a plan and hand what came out to the report; shared by `evaluate`, `quickstart` and `sweep`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lipctrl.cli.assembly import assemble, proved, table_rows
from lipctrl.cli.cells import Cell, Runner, cell_of, cells_of
from lipctrl.cli.experts import Expert
from lipctrl.cli.extras import extras_of
from lipctrl.cli.partial import collected, partial_section
from lipctrl.cli.plan import Contender, Plan
from lipctrl.evaluation.report import Section
from lipctrl.evaluation.rollout import Rollouts
from lipctrl.evaluation.summary import Row, rows
from lipctrl.seeding import seed_of


def evaluate(
    plan: Plan,
    contenders: Sequence[Contender],
    *,
    expert: Expert | None,
    animate: bool,
    facts: Mapping[str, Any],
    runner: Runner | None = None,
) -> Section:
    """Run the plan and write what came out as a section, partial where the budget of the runner ran out.

    Args:
        expert: of the contender named "expert", for the closed-form worst case on a linear plant; or None.
        animate: add an animation of the first contender under the last attack where the task can be rendered.
        facts: further lines for the report.
        runner: where the loops run and what is kept of them; by default here, and nothing.
    """
    runner = runner or Runner()
    found = runner.run(cells_of(plan, contenders), plan.env_id)
    if None in found:
        reason = f"the budget of {runner.budget:,} environment steps is spent"
        return partial_section(plan, contenders, runner.finished, reason, facts)
    results = collected(plan, contenders, runner.finished)
    table = [row for contender in contenders for row in table_rows(plan, contender, results)]
    pairs = _fresh(plan, runner, contenders, table) if plan.fresh else {}
    extras = extras_of(plan, runner, contenders, results, table, pairs, animate=animate)
    fresh = [
        row
        for one, h in zip(contenders, extras.headlines, strict=True)
        if one.name in pairs
        for row in rows(one.name, h.attack, pairs[one.name], proved(plan, one, pairs[one.name].radii.tolist()))
    ]
    section = assemble(plan, contenders, results, table, fresh, extras, expert=expert, facts=facts)
    if not runner.left:
        return section
    rest = ", ".join(label.removeprefix(f"{plan.env_id}, ") for label in runner.left)
    return replace(section, partial=f"the budget was spent before all was run of: {rest}")


def _fresh(plan: Plan, runner: Runner, contenders: Sequence[Contender], table: Sequence[Row]) -> dict[str, Rollouts]:
    """The nominal loop and the worst attack of every contender that the budget allows, on seeds that had no part in
    choosing it."""
    found = runner.run([_fresh_cell(plan, one, table) for one in contenders], f"{plan.env_id}, new seeds")
    return {one.name: result for one, result in zip(contenders, found, strict=True) if result is not None}


def _fresh_cell(plan: Plan, one: Contender, table: Sequence[Row]) -> Cell:
    worst = min((row for row in table if row.policy == one.name), key=lambda row: row.mean)
    return cell_of(plan, one, worst.attack, (0.0, worst.radius), plan.fresh, seed_of(plan.seed, "fresh"))
