"""What smooth critics do to model-based learning: returns and the mechanism, five seeds as one batch per cell.

    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py hopper          # an hour or two; finished cells are not run again
    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py inverted-pendulum double-pendulum # half an hour
    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py perturbed       # 20 minutes
    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py hopper-ensemble # a single cell by name
    python benchmarks/mbpo_study.py table                             # what the finished evaluations say
    python benchmarks/mbpo_study.py curves                            # docs/algorithms/mbpo-hopper.svg

Every cell writes benchmarks/results/mbpo/<cell>.json after every evaluation: returns of ten deterministic episodes of
each seed, the rows of diagnostics, wall time by phase. A cell that was stopped is begun anew.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import curves_of, interval, run_group, train
from scipy.stats import spearmanr

from lipctrl.agents.mbpo import MBPO, RolloutSettings
from lipctrl.agents.regularisation import Smoothness
from lipctrl.evaluation.plots import mechanism_figure
from lipctrl.files import write_text
from lipctrl.models.dynamics import DynamicsSettings

FOLDER = Path(__file__).parent / "results" / "mbpo"
FIGURE = Path(__file__).parent.parent / "docs" / "algorithms" / "mbpo-hopper.svg"
SEEDS = (0, 1, 2, 3, 4)
SINGLE = DynamicsSettings(width=100, depth=3, cap=500)
ENSEMBLE = replace(SINGLE, members=7, elites=5)
FGSM = Smoothness(perturbation="fgsm", epsilon=0.05, weight=0.1)
SPECTRAL = Smoothness(spectral="hard", beta=None)


@dataclass(frozen=True)
class Cell:
    """One experiment: task, budget, what differs."""

    env: str
    steps: int
    every: int
    updates: int
    target_entropy: float
    starts: int
    smoothness: Smoothness = field(default_factory=Smoothness)
    dynamics: DynamicsSettings = SINGLE
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    hidden: tuple[int, ...] = (64, 64)
    batch: int = 256
    enough: float = float("inf")
    """Return at which the task is solved: the cell ends at the first evaluation where every seed has it."""


HOPPER = Cell(
    "Hopper-v5", 12_500, 2_500, 5, -1.0, 5000, rollouts=RolloutSettings(rows=10_000, schedule=(20, 100, 1, 15))
)
SMALL = RolloutSettings(rows=10_000, epoch=250)
PENDULUM = Cell("InvertedPendulum-v5", 4_000, 500, 10, -0.05, 500, rollouts=SMALL)
PERTURBED = replace(PENDULUM, steps=8_000, every=1_000, hidden=(32, 32), batch=64, dynamics=replace(SINGLE, cap=250))
# With ordinary critics and 5 % real transitions seeds learn to balance and forget it again (four of five never did so
# within 9,000 steps).
DOUBLE = Cell(
    "InvertedDoublePendulum-v5", 20_000, 1_000, 10, -0.5, 500, rollouts=replace(SMALL, real_share=0.5), enough=9_000.0,
    smoothness=Smoothness(layer_norm=True),
)  # fmt: skip
CELLS = {
    "hopper-single": HOPPER,
    "hopper-fgsm": replace(HOPPER, smoothness=FGSM),
    "hopper-spectral": replace(HOPPER, smoothness=SPECTRAL),
    "hopper-layernorm": replace(HOPPER, smoothness=Smoothness(layer_norm=True)),
    "hopper-ensemble": replace(HOPPER, dynamics=ENSEMBLE),
    "inverted-pendulum": PENDULUM,
    "double-pendulum": DOUBLE,
} | {
    f"perturbed-{name}-{bias}": replace(PERTURBED, smoothness=smoothness, rollouts=replace(SMALL, bias=bias))
    for bias in (0.0, 0.5, 1.0, 2.0)
    for name, smoothness in (("single", Smoothness()), ("fgsm", FGSM))
}


def agents_of(cell: Cell) -> list[MBPO]:
    """One agent per seed."""
    return [
        MBPO(
            "MlpPolicy",
            cell.env,
            seed=seed,
            device="cpu",
            learning_starts=cell.starts,
            gradient_steps=cell.updates,
            batch_size=cell.batch,
            buffer_size=cell.steps,
            target_entropy=cell.target_entropy,
            policy_kwargs={"net_arch": list(cell.hidden)},
            smoothness=cell.smoothness,
            dynamics=cell.dynamics,
            rollouts=cell.rollouts,
            compiled=True,
        )
        for seed in SEEDS
    ]


def run(name: str) -> None:
    """Train a cell and write its result."""
    cell = CELLS[name]
    train(FOLDER / f"{name}.json", cell, agents_of(cell), enough=cell.enough)


ROWS = {
    f"mbpo-{prefix}": partial(run_group, prefix, CELLS, FOLDER, run)
    for prefix in ("hopper", "inverted-pendulum", "double-pendulum", "perturbed")
}


def last_common(records: list[dict[str, Any]]) -> int:
    """The last evaluation that all cells of a comparison reached [real steps]."""
    return min(record["steps"][-1] for record in records)


def row(name: str, record: dict[str, Any], steps: int) -> str:
    """One line of the table: returns at `steps`, and the mechanism averaged over the second half of the training."""
    at = record["steps"].index(steps)
    returns = np.array(record["returns"][: at + 1])  # (evaluations, seeds)
    final, over = (interval(values) for values in (returns[-1], returns.mean(0)))
    late = [
        [one for one in seed if steps / 2 < one["timesteps"] <= steps and "critic/slope_mean" in one]
        for seed in record["history"]
    ]
    keys = ("model/holdout_mse", "rollout/spread", "critic/slope_mean", "critic/slope_95", "value/model_error")
    means = [np.mean([one[key] for seed in late for one in seed]) for key in (*keys, "value/model_error_relative")]
    numbers = " | ".join(f"{value:.3g}" for value in means)
    share = sum(record["seconds"].values()) * steps / record["steps"][-1]
    return f"| {name} | {steps:,} | {final} | {over} | {numbers} | {share / 60:.0f} |"


def rank_correlation(records: list[dict[str, Any]]) -> tuple[float, float, int]:
    """Spearman's of slope and value-aware error over all measurements, raw and within thirds of equal model error."""
    rows = [one for r in records for seed in r["history"] for one in seed if "critic/slope_mean" in one]
    columns = ("critic/slope_mean", "value/model_error_relative", "model/holdout_mse")
    slope, error, model = (np.array([one[key] for one in rows]) for key in columns)
    thirds = np.digitize(model, np.quantile(model, [1 / 3, 2 / 3]))
    within = [spearmanr(slope[thirds == k], error[thirds == k]).statistic for k in range(3)]
    return float(spearmanr(slope, error).statistic), float(np.mean(within)), len(rows)


def table() -> None:
    """Print every comparison at the last evaluation that all of its cells reached."""
    head = ["cell", "real steps", "return", "mean over training", "model MSE", "spread", "slope", "slope 95 %"]
    print("| " + " | ".join([*head, "V error", "relative", "minutes, 5 seeds"]) + " |")
    print("|" + "---|" * 11)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    for task in ("hopper", "inverted-pendulum", "double-pendulum", "perturbed"):
        cells = {name: record for name, record in found.items() if name.startswith(task) and record["steps"]}
        for name in sorted(cells, key=list(CELLS).index):
            print(row(name, cells[name], last_common(list(cells.values()))))
    hopper = [record for name, record in found.items() if name.startswith("hopper")]
    if hopper:
        overall, matched, count = rank_correlation(hopper)
        print(f"rank correlation of slope and relative V error: {overall:.2f}, at matched model error {matched:.2f}")
        print(f"({count} measurements)")


def curves() -> None:
    """Draw return and the curves of the mechanism of all Hopper cells."""
    runs = {}
    for path in sorted(FOLDER.glob("hopper-*.json")):
        record = json.loads(path.read_text())
        runs[path.stem] = curves_of(record)
    write_text(FIGURE, mechanism_figure(runs))


def main() -> None:
    """Run the cells whose names begin with an argument, or say what the finished ones showed."""
    if sys.argv[1:] in (["table"], ["curves"]):
        table() if sys.argv[1] == "table" else curves()
        return
    torch.set_num_threads(1)
    for prefix in sys.argv[1:]:
        run_group(prefix, CELLS, FOLDER, run)


if __name__ == "__main__":
    main()
