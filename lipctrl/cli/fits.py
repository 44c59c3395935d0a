"""Attacks that the tier "strong" trains against every policy before it evaluates: Robust Sarsa, SA-RL and PA-AD.

Each is one independent piece of work and one file in the run folder, which a resumed evaluation finds again. All of
them are then tried on all policies, so that the report also says what transfers.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from lipctrl.attacks.threat import Threat
from lipctrl.cli.attack_fit import AttackFitSettings, Kind, fit_attack
from lipctrl.cli.attacking import check_attack
from lipctrl.cli.cells import Victim
from lipctrl.cli.plan import Contender, Plan
from lipctrl.cli.progress import quiet_in_workers
from lipctrl.evaluation.engine import Engine, run_all
from lipctrl.files import UserError

KINDS: tuple[Kind, ...] = ("robust-sarsa", "sa-rl", "pa-ad")
UPDATES, STEPS_PER_UPDATE = 6000, 50  # of a critic
CANDIDATES = {"robust-sarsa": 6, "sa-rl": 9, "pa-ad": 9}


@dataclass(frozen=True)
class Fit:
    """One training: the settings, with the file as `out`, whom it is against, and the threat."""

    settings: AttackFitSettings
    victim: Victim
    threat: Threat


def fits_of(plan: Plan, contenders: Sequence[Contender], steps: int, threat: str, folder: Path) -> list[Fit]:
    """The trainings that a plan has a place for, at its largest radius.

    Args:
        steps: environment steps of each. threat: as it was written. folder: for the files.
    """
    radius = max(plan.radii)
    found = []
    for k, one in enumerate(contenders):
        for kind in KINDS:
            try:
                check_attack(kind, plan.threat)
            except UserError:
                continue
            if radius > 0:
                settings = AttackFitSettings(
                    policy=one.word,
                    env=plan.env_id,
                    attack=kind,
                    threat=threat,
                    radius=radius,
                    steps=steps,
                    candidates=CANDIDATES[kind],
                    updates=max(1, min(UPDATES, steps // STEPS_PER_UPDATE)),
                    horizon=plan.horizon,
                    seed=plan.seed,
                    out=str(folder / f"{kind}-{k}.npz"),
                )
                found.append(Fit(settings, Victim.of(one), plan.threat))
    return found


def run_fit(fit: Fit) -> None:
    """Train one attack and store it."""
    quiet_in_workers()
    victim = fit.victim.contender(fit.settings.env, fit.settings.horizon)
    path = Path(str(fit.settings.out))
    path.parent.mkdir(exist_ok=True)
    fit_attack(fit.settings, victim, fit.threat)[0].save(path)


def fit_all(fits: Sequence[Fit], *, workers: int, engine: Engine) -> list[str]:
    """The files of the trainings, after those that are missing have run."""
    paths = [str(fit.settings.out) for fit in fits]
    missing = [fit for fit, path in zip(fits, paths, strict=True) if not Path(path).is_file()]
    with closing(run_all(run_fit, missing, workers=workers, engine=engine)) as done:
        for _ in done:
            pass
    return paths
