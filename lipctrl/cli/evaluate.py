"""`lipctrl evaluate`: closed loops under attack over a grid of radii, with a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from lipctrl.attacks.threat import Threat
from lipctrl.certify.bracket import certify
from lipctrl.cli.attacking import check_attack, deviation_of, searcher
from lipctrl.cli.experts import Env, Expert, lqr_expert, make_env, signal_names
from lipctrl.cli.fitted import fitted_facts, known_attack
from lipctrl.cli.loading import load_network
from lipctrl.cli.mpc_modes import mpc_with_backup
from lipctrl.cli.plan import Contender, Plan
from lipctrl.cli.sections import evaluate
from lipctrl.config import parse
from lipctrl.evaluation.report import Section, write
from lipctrl.evaluation.rollout import surrounded
from lipctrl.evaluation.summary import Row
from lipctrl.files import RequirementFailed, UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy
from lipctrl.runs import Run, package_versions


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `lipctrl evaluate`."""

    policies: tyro.conf.Positional[tuple[str, ...]] = ()
    """Policies: run folders, network files, "lqr" for the environment's LQR expert, "mpc" for its NMPC."""
    env: str = "lipctrl/DoubleIntegrator-v0"
    """Gymnasium id of the environment."""
    threat: str = "observation:l2:raw"
    """CHANNEL:NORM:UNITS[:BUDGET][:ACCESS] or a YAML file with these keys. Channels: observation, action, disturbance,
    force, wrench, gain, friction, damping, mass, parameters, delay, actuator_delay, initial_state; norms l2, linf;
    units raw, normalised; budgets step, episode, sparse=K, rate=C; access white, grey, black. See docs/threats.md."""
    radii: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    """Radii of the attack, in the threat's units."""
    attacks: tuple[str, ...] = ("none", "vertex", "mad")
    """Attacks, see `lipctrl list`, or files of `lipctrl attack fit`."""
    episodes: int = 10
    """Episodes per policy, attack and radius, with the same seeds for all."""
    fresh: int = 10
    """Episodes on new seeds for the attack that turns out worst, which takes the bias of choosing it away; 0: none."""
    search: int = 100
    """Closed loops that a search may spend per episode and radius."""
    horizon: int = 10
    """Steps that "mpc" looks ahead."""
    require: float | None = None
    """Exit with status 3 if the worst mean return found for the first policy is below this."""
    seed: int = 0
    """Seed of start states and attacks."""
    out: str | None = None
    """Run folder for report.html and report.json; by default the first free runs/evaluate-<environment>-<k>."""

    def __post_init__(self) -> None:
        for attack in self.attacks:
            known_attack(attack)
        if self.fresh < 0:
            raise ValueError(f"fresh must not be negative, found {self.fresh}")
        for name in ("horizon", "search"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.episodes < 1 or not self.radii or not self.attacks:
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
    if not settings.policies:
        raise UserError("evaluate needs a policy: lipctrl evaluate POLICY [POLICY ...]")
    env = make_env(settings.env)
    expert = lqr_expert(env) if "lqr" in settings.policies else None
    contenders = [contender_named(name, env, expert, settings.horizon) for name in settings.policies]
    threat = Threat.parse(settings.threat, deviation_of((c.net for c in contenders), env), signal_names(env)[0], env)
    surrounded(env, threat)  # refuses what does not fit before anything is written
    threat.ball(np.array(settings.radii))
    for attack in settings.attacks:
        check_attack(attack, threat)
        for one in contenders:
            searcher(attack, env, one)
    run = Run.create(settings.out, f"evaluate-{settings.env.split('/')[-1]}", settings, seed=settings.seed)
    plan = Plan(
        settings.env,
        threat,
        settings.radii,
        settings.attacks,
        settings.episodes,
        settings.seed,
        settings.fresh,
        settings.search,
    )
    section = evaluate(plan, contenders, expert=expert, animate=True, facts=fitted_facts(settings.attacks))
    page = write(run.path, f"lipctrl evaluate, {settings.env}", [section], provenance(settings.seed))
    run.finish()
    show(section)
    print(f"report: {page}")
    worst = min(row.mean for row in section.table if row.policy == contenders[0].name)
    if settings.require is not None and worst < settings.require:
        raise RequirementFailed(f"the worst mean return found is {worst:.6g}, below {settings.require:g}")


def contender_named(name: str, env: Env, expert: Expert | None, horizon: int) -> Contender:
    """What a word of the command line stands for.

    Raises:
        UserError: no such policy, or one of other sizes.
    """
    if name == "mpc":
        return Contender("mpc", mpc_with_backup(env, horizon), None)
    net = expert.policy.net if name == "lqr" and expert is not None else load_network(Path(name))
    if (net.input_size,) != env.observation_space.shape or (net.output_size,) != env.action_space.shape:
        assert env.spec is not None
        raise UserError(
            f"{name} maps {net.input_size} observations to {net.output_size} actions; {env.spec.id} has "
            f"{env.observation_space.shape} and {env.action_space.shape}"
        )
    found = contender("expert" if name == "lqr" else name, net, env_names=signal_names(env))
    return found if name == "lqr" else replace(found, source=Path(name))


def contender(name: str, net: PlainNet, *, env_names: tuple[tuple[str, ...], tuple[str, ...]]) -> Contender:
    """A policy with its bracket in raw units; signal names are filled in from the environment where missing."""
    if not net.input_names:
        net = replace(net, input_names=env_names[0], output_names=env_names[1])
    return Contender(name, PlainPolicy(net), certify(net))


def provenance(seed: int) -> dict[str, str]:
    """What a report says of its making."""
    return {"seed": str(seed), **{f"version of {name}": value for name, value in package_versions().items()}}


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
