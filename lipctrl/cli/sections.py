"""Run a plan and hand what came out to the report; shared by `evaluate`, `quickstart` and `sweep`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lipctrl.cli.assembly import assemble, proved, table_rows
from lipctrl.cli.cells import Cell, Runner, cell_of, cells_of
from lipctrl.cli.experts import Expert
from lipctrl.cli.partial import collected, partial_section
from lipctrl.cli.plan import Contender, Plan
from lipctrl.evaluation.report import Section
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
    fresh, whole = _fresh(plan, runner, contenders, table) if plan.fresh else ([], True)
    section = assemble(plan, contenders, results, table, fresh, expert=expert, animate=animate, facts=facts)
    return section if whole else replace(section, partial="the budget was spent before the new seeds were run")


def _fresh(plan: Plan, runner: Runner, contenders: Sequence[Contender], table: Sequence[Row]) -> tuple[list[Row], bool]:
    """The nominal loop and the worst attack of every contender, on seeds that had no part in choosing it; and whether
    the budget allowed all of them."""
    cells = [_fresh_cell(plan, one, table) for one in contenders]
    found = runner.run(cells, f"{plan.env_id}, new seeds")
    fresh = []
    for one, cell, result in zip(contenders, cells, found, strict=True):
        if result is not None:
            fresh += rows(one.name, cell.attack, result, proved(plan, one, cell.radii))
    return fresh, None not in found


def _fresh_cell(plan: Plan, one: Contender, table: Sequence[Row]) -> Cell:
    worst = min((row for row in table if row.policy == one.name), key=lambda row: row.mean)
    return cell_of(plan, one, worst.attack, (0.0, worst.radius), plan.fresh, seed_of(plan.seed, "fresh"))
