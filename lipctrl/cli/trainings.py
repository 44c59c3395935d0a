"""Statistics over the trainings of a method: run folders of several seeds, each seed a policy of the evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipctrl.cli.plan import Contender, Plan
from lipctrl.evaluation.report import Trainings
from lipctrl.evaluation.statistics import interquartile_mean, probability_of_improvement, stratified_bootstrap
from lipctrl.evaluation.summary import Row

Array = NDArray[np.float64]


def members(name: str) -> list[str]:
    """The policies of a run of several trainings, in order of their seeds; the name alone for everything else."""
    folder = Path(name)
    found = [path for path in folder.glob("seed-*") if (path / "policy.npz").is_file()] if folder.is_dir() else []
    found.sort(key=lambda path: int(path.name.split("-")[1]))
    return [str(path / "policy.npz") for path in found] or [name]


def trainings_of(plan: Plan, contenders: Sequence[Contender], table: Sequence[Row]) -> Trainings | None:
    """Over the trainings of every group, at every radius, the worst mean return; None where there is no group."""
    groups = list(dict.fromkeys(one.group for one in contenders if one.group is not None))
    if not groups:
        return None
    radii = sorted({row.radius for row in table})
    scores: dict[str, dict[float, Array]] = {}
    for group in groups:
        names = [one.name for one in contenders if one.group == group]
        lowest = {(row.policy, row.radius): row.mean for row in sorted(table, key=lambda row: -row.mean)}
        scores[group] = {r: np.array([lowest[name, r] for name in names]) for r in radii}
    middle = {
        group: {r: stratified_bootstrap(by[r], interquartile_mean, seed=plan.seed) for r in radii}
        for group, by in scores.items()
    }
    better = {
        (a, b): {r: probability_of_improvement(scores[a][r], scores[b][r]) for r in radii}
        for a in groups
        for b in groups
        if a != b
    }
    return Trainings(scores, middle, better)
