"""`lipctrl sweep`: clone one expert under many Lipschitz bounds, attack every clone, and say which bound to take."""

import csv
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.agents.bc import BCSettings
from lipctrl.attacks.threat import Threat
from lipctrl.cli.attacking import deviation_of
from lipctrl.cli.cells import Runner
from lipctrl.cli.closed_loop import closed_loop, loop_of
from lipctrl.cli.contenders import contender
from lipctrl.cli.evaluate import WHERE, provenance, show
from lipctrl.cli.experts import Env, make_env, signal_names
from lipctrl.cli.fitted import known_attack
from lipctrl.cli.plan import Contender, Plan
from lipctrl.cli.progress import quiet_in_workers
from lipctrl.cli.sections import evaluate
from lipctrl.cli.train_bc import TrainSettings, finish, prepare
from lipctrl.config import parse, read_config, updated
from lipctrl.demos.cover import Slope, expert_slope
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.evaluation.engine import Engine, run_all
from lipctrl.evaluation.plots import sweep_curves
from lipctrl.evaluation.report import Figure, write
from lipctrl.evaluation.store import Store
from lipctrl.evaluation.summary import Row
from lipctrl.files import UserError, write_text
from lipctrl.nn.plain import PlainNet
from lipctrl.runs import Run


@dataclass(frozen=True)
class SweepSettings(BCSettings):
    """Settings of `lipctrl sweep`; those of the cloning are `lipctrl train bc`'s, `lip` excepted."""

    lips: tuple[float, ...] = ()
    """Lipschitz bounds; none: 0.5, 0.7, 0.85, 1, 1.2, 1.5 and 2 times the steepest slope in the data."""
    unconstrained: bool = False
    """Also clone with an ordinary network, for comparison."""
    seeds: tuple[int, ...] = (0,)
    """Seeds: one training per bound and seed. Intervals over trainings need at least 5."""
    threat: str = "observation:l2:raw"
    """As in `lipctrl evaluate`."""
    radii: tuple[float, ...] = (0.0, 0.05, 0.1)
    """Radii of the attack, in the threat's units."""
    attacks: tuple[str, ...] = ("mad",)
    """Attacks, see `lipctrl list`; at every radius the worst of them counts."""
    episodes: int = 10
    """Episodes per policy, attack and radius, with the same seeds for all."""
    search: int = 100
    """Closed loops that a search may spend per episode and radius."""
    workers: int = 1
    """Processes that share trainings and closed loops; the results are the same."""
    engine: Engine = "local"
    """local, or ray: the cluster at RAY_ADDRESS, or this machine. Trainings need a run folder that all nodes see."""
    out: str | None = None
    """Run folder; by default the first free runs/sweep-<environment>-<k>."""
    resume: str | None = None
    """Run folder of an interrupted sweep; finished trainings are kept, all other settings are read from it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for attack in self.attacks:
            known_attack(attack)
        if not self.attacks or "none" in self.attacks:
            raise ValueError(f"a sweep needs attacks other than none, found {self.attacks}")
        if self.workers < 1 or self.search < 1:
            raise ValueError(f"workers and search must be at least 1, found {self.workers} and {self.search}")
        if not all(np.isfinite(lip) and lip > 0 for lip in self.lips):
            raise ValueError(f"lips must be positive and finite, found {self.lips}")
        if not self.seeds or min(self.seeds) < 0 or self.episodes < 1:
            raise ValueError("a sweep needs seeds that are not negative and at least one episode")
        if not self.radii or not all(np.isfinite(r) and r >= 0 for r in self.radii):
            raise ValueError(f"radii must be finite and not negative, found {self.radii}")
        if self.dagger_rounds or self.jacobian_weight or self.target_loss is not None:
            raise ValueError("a sweep clones from data alone: no dagger_rounds, jacobian_weight or target_loss")


@dataclass(frozen=True)
class Trained:
    """One training of a sweep; an unconstrained network has the bound infinity."""

    lip: float
    seed: int
    net: PlainNet
    residual: float


TIE = 0.02  # returns closer than this, relative to the best, do not decide between bounds
MULTIPLES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)


def bounds_of(settings: SweepSettings, slope: Slope) -> tuple[float, ...]:
    """The bounds to sweep, ascending."""
    found = settings.lips or tuple(float(f"{factor * slope.value:.4g}") for factor in MULTIPLES)
    return (*sorted(set(found)), *([math.inf] if settings.unconstrained else []))


def train_all(settings: SweepSettings, lips: Sequence[float], folder: Path) -> list[Trained]:
    """Train every bound and seed into its own run folder; what is finished is read back."""
    cloning = []
    for lip, seed in itertools.product(lips, settings.seeds):
        own = {name: getattr(settings, name) for name in BCSettings.__dataclass_fields__}
        changes = {"lip": lip} if math.isfinite(lip) else {"lip": None, "family": "unconstrained"}
        out = str(folder / f"lip-{lip:g}-s{seed}")
        cloning.append(TrainSettings(**(own | changes | {"seed": seed, "out": out})))
    missing = [one for one in cloning if not _finished(Path(str(one.out)))]
    with closing(run_all(train_one, missing, workers=settings.workers, engine=settings.engine)) as done:
        for _ in done:
            pass
    trained = []
    for (lip, seed), one in zip(itertools.product(lips, settings.seeds), cloning, strict=True):
        run = Run.open(Path(str(one.out)))
        net = PlainNet.load(run.checked("policy.npz"))
        trained.append(Trained(lip, seed, net, run.record["results"]["train/worst_residual"]))
    return trained


def train_one(cloning: TrainSettings) -> None:
    """One training, from the beginning, into the run folder that it names."""
    assert cloning.out is not None
    quiet_in_workers()
    _remove(Path(cloning.out))
    demos = Demonstrations.load(Path(cloning.demos))
    run = Run.create(cloning.out, "", cloning, seed=cloning.seed)
    finish(run, prepare(cloning, demos), cloning, demos, None, quiet=True)


def worst_rows(table: Sequence[Row]) -> list[Row]:
    """The attack with the lowest mean return, for every policy and radius."""
    found: dict[tuple[str, float], Row] = {}
    for row in table:
        key = (row.policy, row.radius)
        if row.attack != "none" and (key not in found or row.mean < found[key].mean):
            found[key] = row
    return list(found.values())


def _finished(path: Path) -> bool:
    try:
        return bool(json.loads((path / "run.json").read_text())["status"] == "finished")
    except (OSError, ValueError, KeyError):
        return False


def _remove(path: Path) -> None:
    """Remove a training that was interrupted: only files that a training writes."""
    for name in ("model.zip", "policy.npz", "metrics.csv", "settings.yaml", "run.json"):
        (path / name).unlink(missing_ok=True)
    if path.is_dir():
        path.rmdir()


def _name(trained: Trained, seeds: int) -> str:
    name = f"bound {trained.lip:g}" if math.isfinite(trained.lip) else "unconstrained"
    return name + (f", seed {trained.seed}" if seeds > 1 else "")


def choose(table: Sequence[Row], trained: Mapping[str, Trained], attacks: str) -> tuple[float, str]:
    """The smallest bound whose attacked return, over radii and trainings, is within 2 % of the best, and why.

    Args:
        table: one row per policy and radius, see `worst_rows`. attacks: in words.
    """
    means = {
        lip: float(np.mean([row.mean for row in table if trained[row.policy].lip == lip]))
        for lip in sorted({t.lip for t in trained.values() if math.isfinite(t.lip)})
    }
    best = max(means.values())
    chosen = min(lip for lip, mean in means.items() if mean >= best - TIE * abs(best))
    ranked = ", ".join(f"{lip:g}: {mean:.5g}" for lip, mean in means.items())
    return chosen, (
        f"Chosen bound {chosen:g}: the smallest whose mean return under {attacks} over all radii is within "
        f"{TIE:.0%} of the best ({ranked})."
    )


def tolerated(env: Env, trained: Mapping[str, Trained]) -> dict[str, float]:
    """The largest measurement error that each loop is proved to tolerate, 0 for none; empty without an LQR expert."""
    try:
        loop = loop_of(env)
    except UserError:
        return {}
    found = {}
    for name, t in trained.items():
        rows = {row.quantity: row.value for row in closed_loop(loop, t.net, measurement=0.0).rows}
        found[name] = rows["largest measurement error"] or 0.0
    return found


def summary_csv(
    table: Sequence[Row],
    trained: Mapping[str, Trained],
    contenders: Sequence[Contender],
    tolerances: Mapping[str, float],
) -> str:
    """One row per training: what was asked for, what is proved, how well it fits, what it returns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    radii = sorted({row.radius for row in table})
    fixed = ["lip", "seed", "proved", "witness", "worst_residual", "tolerated_measurement_error"]
    writer.writerow([*fixed, *(f"return_at_{r:g}" for r in radii)])
    for c in contenders:
        own = {row.radius: row.mean for row in table if row.policy == c.name}
        t = trained[c.name]
        bracket, tolerance = c.bracket, repr(tolerances[c.name]) if c.name in tolerances else ""
        assert bracket is not None
        row = [t.lip, t.seed, bracket.upper.bound, bracket.lower.bound, t.residual]
        writer.writerow([*(repr(value) for value in row), tolerance, *(repr(own[r]) for r in radii)])
    return buffer.getvalue()


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        SweepSettings(),
        group="sweep",
        prog="lipctrl sweep",
        description="Clone an expert under many Lipschitz bounds, attack every clone, write one table, one figure and "
        "a report that says which bound to take.",
        args=arguments,
    )
    resumed = settings.resume is not None
    if settings.resume is not None:
        run = Run.open(Path(settings.resume))
        data, source = read_config(str(run.path / "settings.yaml"), "sweep")
        settings = replace(updated(SweepSettings(), data, source), workers=settings.workers, engine=settings.engine)
    if not settings.demos:
        raise UserError("a sweep needs demonstrations: --demos FILE (record some with `lipctrl demos collect`)")
    demos = Demonstrations.load(Path(settings.demos))
    if not resumed:
        prepare(replace(settings, lip=1.0), demos)  # refuses data that do not fit before anything is written
        run = Run.create(
            settings.out, f"sweep-{settings.env.split('/')[-1]}", settings, seed=settings.seed, without=WHERE
        )
    try:
        _sweep(settings, demos, run)
    except KeyboardInterrupt:
        run.finish("interrupted")
        print(f"interrupted; go on with: lipctrl sweep --resume {run.path}")
        raise


def _sweep(settings: SweepSettings, demos: Demonstrations, run: Run) -> None:
    slope = expert_slope(*demos.pairs())
    trained = train_all(settings, bounds_of(settings, slope), run.path)
    env = make_env(settings.env)
    names = signal_names(env)
    by_name = {_name(t, len(settings.seeds)): t for t in trained}
    contenders = [contender(name, t.net, env_names=names) for name, t in by_name.items()]
    threat = Threat.parse(settings.threat, deviation_of((trained[0].net,), env), names[0])
    plan = Plan(settings.env, threat, settings.radii, settings.attacks, settings.episodes, settings.seed)
    plan = replace(plan, search=settings.search)
    facts: dict[str, Any] = {
        "steepest slope in the data": f"{slope.value:.6g} (witness: a bound below it cannot fit the data)",
        "trainings per bound": len(settings.seeds),
        "demonstrations": f"{settings.demos}, sha256 {demos.sha256()[:12]}",
    }
    runner = Runner(Store(run.path / "cells"), settings.workers, settings.engine)
    section = evaluate(plan, contenders, expert=None, animate=False, facts=facts, runner=runner)
    table = worst_rows(section.table)
    best, sentence = choose(table, by_name, " or ".join(settings.attacks))
    tolerances = tolerated(env, by_name)
    bounded = {name: t.lip for name, t in by_name.items() if math.isfinite(t.lip)}
    curve = sweep_curves([r for r in table if r.policy in bounded], bounded, slope.value, best, tolerances)
    caption = "Return against the Lipschitz bound, one line per radius; the band spans the trainings. "
    caption += "Dotted: the steepest slope in the data. Dashed: the chosen bound."
    if tolerances:
        caption += " Below: the largest measurement error that the loop is proved to tolerate."
    section = replace(
        section,
        verdicts=[sentence, *section.verdicts],
        figures={"sweep": [Figure(caption, curve)], **section.figures},
    )
    write_text(run.path / "sweep.csv", summary_csv(table, by_name, contenders, tolerances))
    page = write(run.path, f"lipctrl sweep, {settings.env}", [section], provenance(settings.seed))
    run.finish(chosen=best, steepest_slope=slope.value)
    show(section)
    print(f"report: {page}; the chosen policy: {run.path / f'lip-{best:g}-s{settings.seeds[0]}'}")
