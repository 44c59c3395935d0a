"""`lipctrl compare`: policies on the same start states, nominal and under one attack, with paired differences.

Every policy meets the same episodes, so that differences are taken episode by episode: what the start states have in
common cancels. Intervals are over the episodes of these policies, not over trainings.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipctrl.attacks.threat import Threat
from lipctrl.cli.attacking import check_attack, check_victims, deviation_of, searcher
from lipctrl.cli.cells import Runner, cells_of
from lipctrl.cli.contenders import contender_named
from lipctrl.cli.experts import lqr_expert, make_env, signal_names
from lipctrl.cli.fitted import known_attack
from lipctrl.cli.partial import collected
from lipctrl.cli.plan import Plan
from lipctrl.config import parse
from lipctrl.evaluation.engine import Engine
from lipctrl.evaluation.statistics import conditional_value_at_risk, interquartile_mean, probability_of_improvement
from lipctrl.evaluation.statistics import stratified_bootstrap as bootstrap
from lipctrl.evaluation.summary import clopper_pearson
from lipctrl.files import UserError, write_text

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CompareSettings:
    """Settings of `lipctrl compare`."""

    policies: tyro.conf.Positional[tuple[str, ...]] = ()
    """Two or more policies: run folders, network files, PID controllers (YAML), "lqr", "mpc". The others are compared
    with the first."""
    env: str = "lipctrl/DoubleIntegrator-v0"
    """Gymnasium id of the environment."""
    threat: str = "observation:l2:raw"
    """CHANNEL:NORM:UNITS[:BUDGET][:ACCESS] or a YAML file, as for `lipctrl evaluate`."""
    radius: float = 0.1
    """Radius of the attack, in the threat's units."""
    attack: str = "mad"
    """Attack, see `lipctrl list`, or a file of `lipctrl attack fit`."""
    episodes: int = 30
    """Episodes, with the same start states for all policies."""
    search: int = 100
    """Closed loops that a search may spend per episode."""
    horizon: int = 10
    """Steps that "mpc" looks ahead."""
    workers: int = 1
    """Processes that share the work; the result is the same."""
    engine: Engine = "local"
    """local, or ray, as for `lipctrl evaluate`."""
    seed: int = 0
    """Seed of start states and attacks."""
    out: str | None = None
    """Where to write the table, as Markdown if the name ends in .md, else as JSON; by default nowhere."""

    def __post_init__(self) -> None:
        known_attack(self.attack)
        if not (np.isfinite(self.radius) and self.radius >= 0):
            raise ValueError(f"radius must be finite and not negative, found {self.radius}")
        for name in ("episodes", "horizon", "search", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


@dataclass(frozen=True)
class Line:
    """One policy at one radius.

    Attributes:
        mean, cvar: of returns; cvar of the lowest tenth. iqm, iqm_low, iqm_high: interquartile mean over episodes with
            its 95 % bootstrap interval.
        failures, failure_low, failure_high: episodes that ended early, of `episodes`, with the exact 95 % interval.
        difference, low, high: paired difference to the first policy, mean with its interval; 0 for the first.
        improvement: probability that an episode of this policy is better than one of the first.
    """

    policy: str
    radius: float
    episodes: int
    mean: float
    cvar: float
    iqm: float
    iqm_low: float
    iqm_high: float
    failures: int
    failure_low: float
    failure_high: float
    difference: float
    low: float
    high: float
    improvement: float


def line(policy: str, radius: float, returns: Array, failures: int, first: Array) -> Line:
    """One line from returns (E,) of a policy and of the first one, on the same episodes."""
    middle = bootstrap(returns, interquartile_mean, seed=0)
    paired = bootstrap(returns - first, lambda scores: float(np.mean(scores)), seed=0)
    return Line(
        policy,
        radius,
        len(returns),
        float(returns.mean()),
        conditional_value_at_risk(returns),
        middle.value,
        middle.low,
        middle.high,
        failures,
        *clopper_pearson(failures, len(returns)),
        paired.value,
        paired.low,
        paired.high,
        probability_of_improvement(returns, first),
    )


def compare(settings: CompareSettings) -> list[Line]:
    """All lines, nominal first.

    Raises:
        UserError: fewer than two policies, or one that does not fit.
    """
    if len(settings.policies) < 2:
        raise UserError("compare needs two policies or more: lipctrl compare A B [C ...]")
    if len(set(settings.policies)) < len(settings.policies):
        raise UserError(f"compare needs different policies, found {', '.join(settings.policies)}")
    env = make_env(settings.env)
    expert = lqr_expert(env) if "lqr" in settings.policies else None
    contenders = [contender_named(name, env, expert, settings.horizon) for name in settings.policies]
    deviation = deviation_of((c.net for c in contenders), env)
    threat = Threat.parse(settings.threat, deviation, signal_names(env)[0], env, horizon=settings.horizon)
    check_victims(contenders, threat)
    check_attack(settings.attack, threat)  # refuses what does not fit before anything runs
    for one in contenders:
        searcher(settings.attack, env, one)
    radii = (0.0,) if settings.attack == "none" or settings.radius == 0 else (0.0, settings.radius)
    numbers = (settings.episodes, settings.seed, 0, settings.search, settings.horizon)
    plan = Plan(settings.env, threat, radii, (settings.attack,), *numbers)
    runner = Runner(workers=settings.workers, engine=settings.engine)
    runner.run(cells_of(plan, contenders), settings.attack)
    results = collected(plan, contenders, runner.finished)
    found = [results[one.name, settings.attack] for one in contenders]
    return [
        line(one.name, radius, own.returns[r], int(own.terminated[r].sum()), found[0].returns[r])
        for r, radius in enumerate(radii)
        for one, own in zip(contenders, found, strict=True)
    ]


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        CompareSettings(),
        group="compare",
        prog="lipctrl compare",
        description="Compare policies on the same start states, nominal and under one attack: paired differences to "
        "the first with intervals over episodes.",
        args=arguments,
    )
    lines = compare(settings)
    show(settings, lines)
    if settings.out is not None:
        data = json.dumps([asdict(one) for one in lines], indent=1) + "\n"
        write_text(Path(settings.out), markdown(lines) if settings.out.endswith(".md") else data)


def markdown(lines: Sequence[Line]) -> str:
    """The table for a document, with what it is over."""
    rows = ["| policy | radius | mean | interquartile mean | lowest tenth | failures | difference to the first |"]
    rows.append("|" + "---|" * 7)
    for one in lines:
        middle, paired = (f"{value:.5g} [{low:.5g}, {high:.5g}]" for value, low, high in _intervals(one))
        failures = f"{one.failures} of {one.episodes}"
        cells = (
            one.policy.replace("|", "\\|"),
            f"{one.radius:g}",
            f"{one.mean:.5g}",
            middle,
            f"{one.cvar:.5g}",
            failures,
            paired,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"Intervals: 95 %, over {lines[0].episodes} episodes, paired by start state.", ""])


def _intervals(one: Line) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    return (one.iqm, one.iqm_low, one.iqm_high), (one.difference, one.low, one.high)


def show(settings: CompareSettings, lines: Sequence[Line]) -> None:
    """Print one table per radius, and what is decided."""
    for radius in dict.fromkeys(one.radius for one in lines):
        own = [one for one in lines if one.radius == radius]
        title = "nominal" if radius == 0 else f"{settings.attack} at radius {radius:g}, {settings.threat}"
        table = Table("policy", "mean", "interquartile mean", "lowest tenth", "failures", title=title)
        for one in own:
            middle = f"{one.iqm:.4g} \\[{one.iqm_low:.4g}, {one.iqm_high:.4g}]"
            numbers = (f"{one.mean:.4g}", middle, f"{one.cvar:.4g}", f"{one.failures}/{one.episodes}")
            table.add_row(escape(one.policy), *numbers)
        Console().print(table)
        for one in own[1:]:
            print(f"  {sentence(one, own[0])}")
    print(f"  intervals: 95 %, over {lines[0].episodes} episodes of these policies, not over trainings")


def sentence(one: Line, first: Line) -> str:
    """What the paired difference decides."""
    if not np.isfinite([one.low, one.high]).all():
        return f"{one.policy} against {first.policy}: too few episodes for an interval"
    spread = f"{one.difference:.4g} [{one.low:.4g}, {one.high:.4g}] per episode"
    if one.low <= 0 <= one.high:
        return f"{one.policy} against {first.policy}: {spread}, not decided by {one.episodes} episodes"
    return f"{one.policy} is {'better' if one.low > 0 else 'worse'} than {first.policy}: {spread}"
