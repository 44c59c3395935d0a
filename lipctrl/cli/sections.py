"""Run a plan and hand what came out to the report; shared by `evaluate`, `quickstart` and `sweep`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lipctrl.cli.assembly import assemble, proved, table_rows
from lipctrl.cli.attacking import run_attack, searcher
from lipctrl.cli.experts import Expert
from lipctrl.cli.loops import loops_of
from lipctrl.cli.plan import Contender, Plan
from lipctrl.evaluation.report import Section
from lipctrl.evaluation.rollout import Loops
from lipctrl.evaluation.summary import Row, rows
from lipctrl.seeding import seed_of


def evaluate(
    plan: Plan, contenders: Sequence[Contender], *, expert: Expert | None, animate: bool, facts: Mapping[str, Any]
) -> Section:
    """Run the plan and write what came out as a section.

    Args:
        expert: of the contender named "expert", for the closed-form worst case on a linear plant; or None.
        animate: add an animation of the first contender under the last attack where the task can be rendered.
        facts: further lines for the report.
    """
    loops = loops_of(plan.env_id, plan.threat)
    results = {
        (contender.name, attack): run_attack(
            loops,
            searcher(attack, loops.envs[0], contender, plan.search),
            contender.policy,
            plan.threat,
            plan.radii_of(attack),
            episodes=plan.episodes,
            seed=plan.seed,
            label=f"{contender.name} under {attack}",
        )
        for contender in contenders
        for attack in plan.attacks
    }
    table = [row for contender in contenders for row in table_rows(plan, contender, results)]
    fresh = [row for contender in contenders for row in _fresh(plan, loops, contender, table)] if plan.fresh else []
    return assemble(plan, contenders, results, table, fresh, expert=expert, animate=animate, facts=facts)


def _fresh(plan: Plan, loops: Loops, contender: Contender, table: Sequence[Row]) -> list[Row]:
    """The nominal loop and the worst attack of a contender, on seeds that had no part in choosing it."""
    worst = min((row for row in table if row.policy == contender.name), key=lambda row: row.mean)
    found = run_attack(
        loops,
        searcher(worst.attack, loops.envs[0], contender, plan.search),
        contender.policy,
        plan.threat,
        (0.0, worst.radius),
        episodes=plan.fresh,
        seed=seed_of(plan.seed, "fresh"),
        label=f"{contender.name} under {worst.attack}, new seeds",
    )
    return rows(contender.name, worst.attack, found, proved(plan, contender, (0.0, worst.radius)))
