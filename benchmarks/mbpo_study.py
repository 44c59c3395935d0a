"""What smooth critics do to model-based learning: returns and the mechanism, five seeds as one batch per cell.

    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py hopper          # hours; every cell goes on where it was stopped
    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py pendulums       # minutes
    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py perturbed       # a quarter of an hour
    OMP_NUM_THREADS=1 python benchmarks/mbpo_study.py hopper-ensemble # a single cell by name

Every cell writes benchmarks/results/mbpo/<cell>.json after every evaluation: returns of ten deterministic episodes of
each seed, the rows of diagnostics, wall time by phase. Finished cells are not run again.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from certify_speed import processor, versions
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.mbpo import MBPO, RolloutSettings
from lipctrl.agents.regularisation import Smoothness
from lipctrl.agents.together import learn_together
from lipctrl.files import write_text
from lipctrl.models.dynamics import DynamicsSettings

FOLDER = Path(__file__).parent / "results" / "mbpo"
SEEDS, EPISODES = (0, 1, 2, 3, 4), 10
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


HOPPER = Cell(
    "Hopper-v5", 20_000, 2_500, 5, -1.0, 5000, rollouts=RolloutSettings(rows=10_000, schedule=(20, 100, 1, 15))
)
SMALL = RolloutSettings(rows=10_000, epoch=250)
PENDULUM = Cell("InvertedPendulum-v5", 5_000, 500, 10, -0.05, 500, rollouts=SMALL)
DOUBLE = Cell("InvertedDoublePendulum-v5", 20_000, 1_000, 10, -0.5, 500, rollouts=SMALL)
CELLS = {
    "hopper-single": HOPPER,
    "hopper-fgsm": replace(HOPPER, smoothness=FGSM),
    "hopper-spectral": replace(HOPPER, smoothness=SPECTRAL),
    "hopper-layernorm": replace(HOPPER, smoothness=Smoothness(layer_norm=True)),
    "hopper-ensemble": replace(HOPPER, dynamics=ENSEMBLE),
    "pendulums-single": PENDULUM,
    "pendulums-double": DOUBLE,
} | {
    f"perturbed-{name}-{bias}": replace(
        PENDULUM, steps=4_000, smoothness=smoothness, rollouts=replace(SMALL, bias=bias)
    )
    for bias in (0.0, 1.0, 2.0)
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
            batch_size=256,
            buffer_size=cell.steps,
            target_entropy=cell.target_entropy,
            policy_kwargs={"net_arch": [64, 64]},
            smoothness=cell.smoothness,
            dynamics=cell.dynamics,
            rollouts=cell.rollouts,
            compiled=True,
        )
        for seed in SEEDS
    ]


def run(name: str) -> None:
    """Train a cell and write its result."""
    path, cell = FOLDER / f"{name}.json", CELLS[name]
    if path.exists() and json.loads(path.read_text())["finished"]:
        return
    agents, test = agents_of(cell), Monitor(gymnasium.make(cell.env))
    result: dict[str, Any] = {"cell": name, "processor": processor(), "versions": versions(), "settings": str(cell)}
    result |= {"steps": [], "returns": [], "finished": False}

    def after_step() -> bool:
        steps = agents[0].num_timesteps
        if steps % cell.every == 0:
            test.reset(seed=1000)
            scores = [
                float(np.mean(evaluate_policy(a, test, EPISODES, return_episode_rewards=True)[0])) for a in agents
            ]
            result["steps"].append(steps)
            result["returns"].append(scores)
            result["history"] = [agent.history for agent in agents]
            result["seconds"] = {phase: sum(a.seconds[phase] for a in agents) for phase in agents[0].seconds}
            result["finished"] = steps >= cell.steps
            FOLDER.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(result) + "\n")
            print(name, steps, np.round(scores, 1), {k: round(v) for k, v in result["seconds"].items()}, flush=True)
        return True

    learn_together(agents, cell.steps, after_step=after_step)


def main() -> None:
    """Run the cells whose names begin with an argument."""
    torch.set_num_threads(1)
    for name in CELLS:
        if any(name.startswith(prefix) for prefix in sys.argv[1:]):
            run(name)


if __name__ == "__main__":
    main()
