"""`lipctrl evaluate`: closed loops under attack over a grid of radii, with a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from lipctrl.attacks.threat import Threat
from lipctrl.cli.attacking import check_attack, check_victims, deviation_of, searcher
from lipctrl.cli.cells import Runner
from lipctrl.cli.contenders import contenders_named
from lipctrl.cli.experts import Env, lqr_expert, make_env, signal_names
from lipctrl.cli.fits import fit_all, fits_of
from lipctrl.cli.fitted import fitted_facts, known_attack
from lipctrl.cli.partial import partial_section
from lipctrl.cli.plan import Contender, Plan
from lipctrl.cli.sections import evaluate
from lipctrl.config import parse, read_config, updated
from lipctrl.evaluation.engine import Engine
from lipctrl.evaluation.report import Section, write
from lipctrl.evaluation.require import Condition, parse_requirement, violated
from lipctrl.evaluation.rollout import surrounded
from lipctrl.evaluation.store import Store
from lipctrl.evaluation.summary import Row
from lipctrl.evaluation.tiers import TIERS, TierName
from lipctrl.files import RequirementFailed, UserError
from lipctrl.policy import SolvingPolicy
from lipctrl.runs import Run, git_state, package_versions

WHERE = ("workers", "engine", "out", "resume")
"""Settings that have no part in what is found: they are not in settings.yaml."""

QUERYING = ("mad", "spsa")
"""Attacks that take hours on a policy that solves a problem at every query."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `lipctrl evaluate`."""

    policies: tyro.conf.Positional[tuple[str, ...]] = ()
    """Policies: run folders, network files, "lqr" for the environment's LQR expert, "mpc" for its NMPC, PID controllers
    (YAML: docs/threats.md). A run folder of several seeds stands for all its trainings."""
    env: str = "lipctrl/DoubleIntegrator-v0"
    """Gymnasium id of the environment."""
    threat: str = "observation:l2:raw"
    """CHANNEL:NORM:UNITS[:BUDGET][:ACCESS] or a YAML file with these keys. Channels: observation, action, disturbance,
    reference, force, wrench, gain, friction, damping, mass, parameters, delay, actuator_delay, deadline, warm_start,
    initial_state; norms l2, linf; units raw, normalised; budgets step, episode, sparse=K, rate=C; access white, grey,
    black: docs/threats.md."""
    radii: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    """Radii of the attack, in the threat's units."""
    tier: TierName = "standard"
    """How hard to look: smoke (seconds), standard (minutes), strong (hours). It sets attacks, episodes, fresh,
    search, ladder and parts, each of which can be given by itself."""
    attacks: tuple[str, ...] | None = None
    """Attacks, see `lipctrl list`, or files of `lipctrl attack fit`; by default those of the tier that fit the threat
    and every policy."""
    episodes: int | None = None
    """Episodes per policy, attack and radius, with the same seeds for all."""
    fresh: int | None = None
    """Episodes on new seeds for the attack that turns out worst, which takes the bias of choosing it away; 0: none."""
    search: int | None = None
    """Closed loops that a search may spend per episode and radius."""
    training: int | None = None
    """Environment steps of each attack that is trained against every policy first, Robust Sarsa, SA-RL and PA-AD; 0:
    none is. By default that of the tier; none where attacks are given."""
    horizon: int = 10
    """Steps that "mpc" looks ahead."""
    ladder: tuple[float, ...] | None = None
    """Shares of its effort with which every attack runs again at the largest radius (0: one step), to see whether more
    effort still finds more; empty: none."""
    parts: int | None = None
    """Parts of the episode in each of which the worst attack of the first policy acts alone, as it does on each
    component alone; 0: neither."""
    activation: str | None = None
    """Activation between the layers of a torch state dict (.pt), which does not say it."""
    require: str | None = None
    """Exit with status 3 unless this holds of the first policy: QUANTITY>=NUMBER or <=NUMBER, several with commas, as
    in "worst>=900, failure<=0.1". Quantities: nominal, worst, drop, cvar, failure, failure_high, deviation."""
    budget: int | None = None
    """Environment steps after which no further combination of policy, attack and radius begins; the report is then
    marked partial."""
    workers: int = 1
    """Processes that share the work; the report is the same."""
    engine: Engine = "local"
    """local, or ray: the workers are those of the Ray cluster at RAY_ADDRESS, or of this machine."""
    seed: int = 0
    """Seed of start states and attacks."""
    out: str | None = None
    """Run folder for report.html, report.json and the finished cells; by default the first free
    runs/evaluate-<environment>-<k>."""
    resume: str | None = None
    """Run folder of an evaluation that was interrupted or ran out of budget: what has finished is kept; budget,
    workers, engine and require are those of the command line, all else is read from the folder."""

    def __post_init__(self) -> None:
        for attack in self.attacks or ():
            known_attack(attack)
        for name in ("fresh", "training"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, found {value}")
        if not all(0 <= share < 1 for share in self.ladder or ()) or (self.parts or 0) < 0:
            raise ValueError(f"ladder needs shares in [0, 1), parts a number, found {self.ladder} and {self.parts}")
        for name in ("horizon", "search", "workers", "budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if (self.episodes is not None and self.episodes < 1) or not self.radii or self.attacks == ():
            raise ValueError("evaluation needs at least one episode, one radius and one attack")
        if not all(np.isfinite(r) and r >= 0 for r in self.radii):
            raise ValueError(f"radii must be finite and not negative, found {self.radii}")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        EvaluateSettings(),
        group="evaluate",
        prog="lipctrl evaluate",
        description="Run policies in closed loop under attack, every radius with the same seeds, and write a report.",
        args=arguments,
    )
    conditions = parse_requirement(settings.require) if settings.require is not None else ()
    resumed = Run.open(Path(settings.resume)) if settings.resume is not None else None
    if resumed is not None:
        settings = _as_it_was(settings, resumed)
    if not settings.policies:
        raise UserError("evaluate needs a policy: lipctrl evaluate POLICY [POLICY ...]")
    env = make_env(settings.env)
    expert = lqr_expert(env) if "lqr" in settings.policies else None
    contenders = contenders_named(settings.policies, env, expert, settings.horizon, activation=settings.activation)
    deviation = deviation_of((c.net for c in contenders), env)
    threat = Threat.parse(settings.threat, deviation, signal_names(env)[0], env, horizon=settings.horizon)
    check_victims(contenders, threat)
    surrounded(env, threat)  # refuses what does not fit before anything is written
    threat.ball(np.array(settings.radii))
    plan, facts = plan_of(settings, threat, env, contenders)
    run = resumed or Run.create(
        settings.out, f"evaluate-{settings.env.split('/')[-1]}", settings, seed=settings.seed, without=WHERE
    )
    runner = Runner(Store(run.path / "cells"), settings.workers, settings.engine, settings.budget)

    def report(section: Section, status: str) -> None:
        page = write(run.path, f"lipctrl evaluate, {settings.env}", [section], provenance(settings.seed))
        run.finish(status)
        show(section)
        print(f"report: {page}")
        if section.episodes:
            print(f"worst episodes, to the last bit: lipctrl replay {run.path}")
        if section.partial:
            print(f"partial: {section.partial}; go on with: lipctrl evaluate --resume {run.path}")

    try:
        plan, facts = trained(settings, plan, facts, contenders, run.path)
        section = evaluate(plan, contenders, expert=expert, animate=True, facts=facts, runner=runner)
    except (UserError, KeyboardInterrupt) as error:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if runner.finished:
            report(partial_section(plan, contenders, runner.finished, str(error) or "interrupted", facts), status)
        else:
            run.finish(status)
        raise
    report(section, "partial" if section.partial else "finished")
    gate(conditions, section, contenders[0].name)


def _as_it_was(given: EvaluateSettings, run: Run) -> EvaluateSettings:
    """The settings of a run folder with those of the command line that say where and how far it is run.

    Raises:
        UserError: it is not an evaluation, or cannot be read.
    """
    data, source = read_config(str(run.path / "settings.yaml"), "evaluate")
    own = {name: getattr(given, name) for name in (*WHERE, "budget", "require")}
    return replace(updated(EvaluateSettings(), data, source), **own)


def trained(
    settings: EvaluateSettings, plan: Plan, facts: dict[str, str], contenders: Sequence[Contender], folder: Path
) -> tuple[Plan, dict[str, str]]:
    """The plan with the attacks that are trained first, and what the report says of them."""
    training = TIERS[settings.tier].training if settings.training is None else settings.training
    fits = fits_of(plan, contenders, training, settings.threat, folder / "attacks") if training else []
    if not fits or settings.attacks is not None:
        return plan, facts
    if settings.budget is not None and settings.budget < training * len(fits):
        return plan, facts | {"left out: trained attacks": f"they take {training * len(fits):,} steps, over the budget"}
    files = fit_all(fits, workers=settings.workers, engine=settings.engine)
    return replace(plan, attacks=(*plan.attacks, *files)), facts | fitted_facts(files)


def gate(conditions: Sequence[Condition], section: Section, policy: str) -> None:
    """Stop with status 3 where a requirement does not hold.

    Raises:
        RequirementFailed: it does not, or what was run is not enough to say so.
    """
    failed = violated(conditions, [row for row in [*section.table, *section.fresh] if row.policy == policy])
    if failed:
        raise RequirementFailed(f"{policy}: {'; '.join(failed)}")
    if conditions and section.partial:
        raise RequirementFailed(f"{policy}: what was required is not shown by a partial result: {section.partial}")


def plan_of(
    settings: EvaluateSettings, threat: Threat, env: Env, contenders: Sequence[Contender]
) -> tuple[Plan, dict[str, str]]:
    """What to run, and lines for the report that say how hard that is.

    Raises:
        UserError: an attack that was asked for has no place here.
    """
    tier = TIERS[settings.tier]

    def given(name: str) -> int:
        own: int | None = getattr(settings, name)
        return int(getattr(tier, name)) if own is None else own

    search, attacks, left_out = given("search"), [], {}
    for attack in tier.attacks if settings.attacks is None else settings.attacks:
        try:
            check_attack(attack, threat)
            for one in contenders:
                searcher(attack, env, one, search)
                solving = isinstance(one.policy, SolvingPolicy)
                if settings.attacks is None and settings.tier != "strong" and attack in QUERYING and solving:
                    raise UserError(f"{one.name} solves a problem at each of some hundred queries per step")
            attacks.append(attack)
        except UserError as error:
            if settings.attacks is not None:
                raise
            left_out[attack] = str(error)
    plan = Plan(
        settings.env,
        threat,
        settings.radii,
        tuple(attacks),
        given("episodes"),
        settings.seed,
        given("fresh"),
        search,
        settings.horizon,
        tier.ladder if settings.ladder is None else settings.ladder,
        given("parts"),
    )
    facts = {"tier": f"{settings.tier}, {tier.purpose}"}
    if settings.attacks is not None:
        facts["tier"] += "; the attacks were chosen by hand"
    facts |= {f"left out: {attack}": reason for attack, reason in left_out.items()}
    return plan, facts | fitted_facts(attacks)


def provenance(seed: int) -> dict[str, str]:
    """What a report says of its making."""
    git = git_state()
    commit = {} if git is None else {"commit": str(git["commit"])}  # whether it was changed since: run.json
    return {"seed": str(seed), **commit, **{f"version of {name}": v for name, v in package_versions().items()}}


def _return(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.mean:.4g}" + (f" ({row.failures}/{row.episodes})" if row.failures else "")


def show(section: Section) -> None:
    """Print sensitivity, the closed-form comparison and the headline numbers of a section."""
    console = Console()
    table = Table("policy", "Lipschitz [lower, upper]", "method", title=f"{section.title}: sensitivity")
    for x in section.sensitivity:
        table.add_row(x["policy"], f"[{x['lower']:.5g}, {x['upper']:.5g}]".replace("[", "\\["), x["method"])
    console.print(table)
    radii = sorted({row.radius for row in section.table})
    columns = [f"radius {radius:g}" for radius in radii]
    table = Table("policy", "attack", *columns, title=f"{section.title}: mean return (failed episodes)")
    for policy, attack in dict.fromkeys((row.policy, row.attack) for row in section.table):
        own = {row.radius: row for row in section.table if (row.policy, row.attack) == (policy, attack)}
        table.add_row(policy, attack, *[_return(own.get(radius)) for radius in radii])
    console.print(table)
    table = Table("policy", *columns, title=f"{section.title}: change of the action, found / proved")
    moved = any(row.deviation for row in section.table)
    for policy in dict.fromkeys(row.policy for row in section.table):
        cells = []
        for radius in radii:
            at = [row for row in section.table if (row.policy, row.radius) == (policy, radius)]
            if not at:  # of a partial result
                cells.append("")
                continue
            proved = "nothing" if at[0].certified is None else f"{at[0].certified:.4g}"
            cells.append(f"{max(row.deviation for row in at):.4g} / {proved}")
        table.add_row(policy, *cells)
    if moved:  # only attacks on the observation move the action of the policy itself
        console.print(table)
    if section.exact:
        table = Table("radius", "extra cost found", "closed form", "found / closed form", title="LQR expert under MAD")
        for x in section.exact:
            table.add_row(f"{x['radius']:g}", f"{x['found']:.9g}", f"{x['exact']:.9g}", f"{x['ratio']:.9f}")
        console.print(table)
    console.print(f"  {section.threat}", highlight=False)
    for line in section.verdicts:
        console.print(f"  {line}", highlight=False)
    for policy, signs in section.health.items():
        for sign in signs:
            if sign.status == "bad":
                console.print(f"  {policy}: {sign.name}? {sign.text}", highlight=False, markup=False, style="yellow")
