"""What regularises the discriminator of off-policy imitation: returns and slopes, six seeds as one batch per cell.

    OMP_NUM_THREADS=1 python benchmarks/gail_study.py pendulum        # hours; finished cells are not run again
    OMP_NUM_THREADS=1 python benchmarks/gail_study.py double          # survival bias and absorbing states
    OMP_NUM_THREADS=1 python benchmarks/gail_study.py hopper          # needs the expert of `published.py hopper-ladder`
    OMP_NUM_THREADS=1 python benchmarks/gail_study.py pendulum-none-1 # a single cell by name
    OMP_NUM_THREADS=1 python benchmarks/gail_study.py watched purple  # pessimistic rewards, dynamics' slopes beside
    OMP_NUM_THREADS=1 python benchmarks/gail_study.py pendulum-bc pendulum-sqil pendulum-ls-iq few-bc few-sqil few-ls-iq
    python benchmarks/gail_study.py table                             # what the finished evaluations say
    python benchmarks/gail_study.py curves                            # draws docs/algorithms/gail-pendulum.svg

Every cell writes benchmarks/results/gail/<cell>.json after every evaluation: returns of ten deterministic episodes of
each seed, the rows of diagnostics, wall time by phase. Names end in the ratio of discriminator's to agent's updates;
those of the baselines, which have none, in the method. Steps of behaviour cloning are gradient steps.
"""

import copy
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np
import torch
from cells import EPISODES, TEST_SEED, begun, curves_of, evaluated, interval, run_group, train, write
from scipy.stats import spearmanr
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.bc import BC
from lipctrl.agents.bc_policy import BCPolicy
from lipctrl.agents.discriminator import RewardSettings
from lipctrl.agents.gail import GAIL, GailSettings
from lipctrl.agents.off_policy import ImitationSettings, build
from lipctrl.agents.pessimism import PessimismSettings
from lipctrl.cli.clone import cloning, pairs
from lipctrl.cli.demos_collect import CollectSettings, collect_demonstrations, named_expert
from lipctrl.cli.train_bc import prepare
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.evaluation.plots import imitation_figure
from lipctrl.files import write_text

FOLDER = Path(__file__).parent / "results" / "gail"
FIGURE = Path(__file__).parent.parent / "docs" / "algorithms" / "gail-pendulum.svg"
ROUND = 20  # environment steps, and updates, at a time


@dataclass(frozen=True)
class Cell:
    """One experiment: task, demonstrations, what differs."""

    reward: RewardSettings = RewardSettings()
    env: str = "Pendulum-v1"
    expert: str = "swing-up"
    imitation: GailSettings = GailSettings()
    steps: int = 25_000
    every: int = 2_500
    discount: float = 0.99
    method: Literal["gail", "sqil", "ls-iq", "bc"] = "gail"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)


NONE = RewardSettings(regulariser="none")
REGULARISERS = {
    "none": NONE,
    "spectral": replace(NONE, spectral=True),
    "spectral-smoothing": replace(NONE, spectral=True, smoothing=(0.7, 1.2)),
    "one-sided": RewardSettings(),
    "two-sided": RewardSettings(regulariser="two-sided"),
    "dragan": RewardSettings(points="dragan"),
    "nagard": RewardSettings(points="nagard"),
    "certified": RewardSettings(regulariser="certified", hidden=(64, 64)),
    "certified-narrow": RewardSettings(regulariser="certified"),
    "dropout": replace(NONE, dropout=0.5),
    "weight-decay": replace(NONE, weight_decay=10.0),
}
FEW = GailSettings(subsample=20)
FALLING = replace(FEW, units="both")
WATCHED = PessimismSettings("dynamics", multiplier=1.0)  # dynamics are learned, the reward is not touched
PURPLE = replace(WATCHED, multiplier=0.7)
STEEP = replace(PURPLE, threshold=0.9)  # at the default of 1.1 Pendulum's dynamics are hardly ever steep
PESSIMISTIC = {"watched": WATCHED, "purple": PURPLE, "purple-steep": STEEP}
BASELINES: tuple[Literal["sqil", "ls-iq", "bc"], ...] = ("sqil", "ls-iq", "bc")
CELLS = (
    {
        f"pendulum-{name}-{ratio}": Cell(replace(reward, ratio=ratio))
        for ratio in (1, 4)
        for name, reward in REGULARISERS.items()
    }
    | {
        f"few-{name}-{ratio}": Cell(replace(reward, ratio=ratio), imitation=FEW)
        for ratio in (1, 4)
        for name, reward in REGULARISERS.items()
    }
    | {
        f"{task}-{method}": Cell(imitation=imitation, method=method)
        for task, imitation in (("pendulum", GailSettings()), ("few", FEW))
        for method in BASELINES
    }
    | {f"{name}-few-1": Cell(imitation=replace(FEW, pessimism=pessimism)) for name, pessimism in PESSIMISTIC.items()}
    | {
        f"double-{form}-{'absorbing' if absorbing else 'ending'}-1": Cell(
            RewardSettings(form=form, absorbing=absorbing),  # type: ignore[arg-type]
            env="InvertedDoublePendulum-v5",
            expert="lqr",
            imitation=FALLING,
            steps=15_000,
        )
        for form in ("softplus", "log-d")
        for absorbing in (False, True)
    }
    | {
        f"hopper-{name}-1": Cell(
            REGULARISERS[name],
            env="Hopper-v5",
            expert="runs/hopper-ladder/ppo/policy.npz",
            imitation=FALLING,
            steps=100_000,
            every=10_000,
            seeds=(0, 1, 2),
        )
        for name in ("none", "one-sided", "certified")
    }
)


def demonstrations_of(cell: Cell) -> Demonstrations:
    """The same four for all agents of a cell."""
    return collect_demonstrations(CollectSettings(env=cell.env, expert=cell.expert, episodes=4, dither=0.0))


def agents_of(cell: Cell) -> list[GAIL]:
    """One agent per seed."""
    demos = demonstrations_of(cell)
    return [
        GAIL(
            "MlpPolicy",
            cell.env,
            demonstrations=demos,
            reward=cell.reward,
            imitation=cell.imitation,
            compiled=True,
            seed=seed,
            device="cpu",
            buffer_size=cell.steps,
            batch_size=128,
            learning_rate=1e-3,
            learning_starts=1000,
            gamma=cell.discount,
            train_freq=ROUND,
            gradient_steps=ROUND,
            policy_kwargs={"net_arch": [64, 64]},
        )
        for seed in cell.seeds
    ]


def run(name: str) -> None:
    """Train a cell and write its result."""
    cell, path = CELLS[name], FOLDER / f"{name}.json"
    if cell.method == "bc":
        clone(path, cell)
    elif cell.method != "gail":
        environments = [gymnasium.make(cell.env) for _ in cell.seeds]
        train(path, cell, build(baseline(cell), environments, demonstrations_of(cell)))
    else:
        train(path, cell, agents_of(cell))


def baseline(cell: Cell) -> ImitationSettings:
    """Settings of `lipctrl train gail` that train a baseline as `agents_of` trains GAIL."""
    return ImitationSettings(
        method=cell.method,
        env=cell.env,
        timesteps=cell.steps,
        log_interval=cell.every,
        seeds=len(cell.seeds),
        discount=cell.discount,
        train_every=ROUND,
        imitation=cell.imitation,
        compiled=True,
    )


def clone(path: Path, cell: Cell) -> None:
    """Behaviour cloning of each seed's pairs, one seed after the other, evaluated as the other cells."""
    test, result, demos = Monitor(gymnasium.make(cell.env)), begun(path, cell), demonstrations_of(cell)
    start = time.perf_counter()
    policies = [
        learned(prepare(cloning(baseline(cell), seed), pairs(demos, cell.imitation.subsample, seed=seed)), cell)
        for seed in cell.seeds
    ]
    result["seconds"] = {"updates": time.perf_counter() - start}
    for of_seeds in zip(*policies, strict=True):
        test.reset(seed=TEST_SEED)
        result["returns"].append(evaluated(of_seeds, test))
    result |= {"steps": list(range(cell.every, cell.steps + 1, cell.every)), "history": [[] for _ in cell.seeds]}
    write(path, result | {"finished": True})
    print(path.stem, cell.steps, np.round(result["returns"][-1], 1), flush=True)


def learned(agent: BC, cell: Cell) -> list[BCPolicy]:
    """Train; the policies at the times of the evaluations."""
    found: list[BCPolicy] = []

    def keep(state: object, _: object) -> bool:
        if agent.num_timesteps % cell.every == 0:
            found.append(copy.deepcopy(agent.policy))
        return True

    agent.learn(cell.steps, callback=keep, log_interval=cell.every)
    return found


ROWS = {
    f"gail-{prefix}": partial(run_group, prefix, CELLS, FOLDER, run)
    for prefix in ("pendulum", "few", "watched", "purple", "double", "hopper")
}


def table() -> None:
    """Print the finished cells: mean of the last three evaluations of each seed."""
    print("| cell | return, interquartile mean | seeds | slope, 95 % | largest slope | accuracy, held out |")
    print("|---|---|---|---|---|---|")
    for name in CELLS:
        path = FOLDER / f"{name}.json"
        if not path.exists() or not (record := json.loads(path.read_text()))["finished"]:
            continue
        scores = np.array(record["returns"][-3:]).mean(0)
        last = [history[-1] for history in record["history"] if history]
        keys = ("reward/slope_95", "reward/slope_max", "reward/accuracy_held")
        means = " | ".join(f"{np.mean([row[key] for row in last]):.3g}" if last else "" for key in keys)
        seeds = ", ".join(f"{score:.0f}" for score in scores)
        print(f"| {name} | {interval(scores)} | {seeds} | {means} |")

    print(f"rank correlation of C-validity and return: {c_validity_and_return():.2f}")


def c_validity_and_return() -> float:
    """Spearman's, over the evaluations of all finished Pendulum cells at a ratio of one."""
    validity, returns = [], []
    for path in FOLDER.glob("pendulum-*-1.json"):
        for seed in curves_of(json.loads(path.read_text())):
            measured = {
                int(row["timesteps"] / 500): row["reward/c_validity"] for row in seed if "reward/c_validity" in row
            }
            for row in seed:
                if "evaluation/mean_return" in row and row["timesteps"] // 500 in measured:
                    validity.append(measured[int(row["timesteps"] // 500)])
                    returns.append(row["evaluation/mean_return"])
    return float(spearmanr(validity, returns).statistic)


def curves() -> None:
    """Draw return, slope, accuracy and C-validity of some Pendulum cells."""
    shown = ("none", "spectral-smoothing", "dropout", "one-sided", "certified")
    records = {name: json.loads((FOLDER / f"pendulum-{name}-1.json").read_text()) for name in shown}
    expert = expert_return()
    levels = {name: (expert if name == "none" else None, 1.0) for name in shown}
    write_text(FIGURE, imitation_figure({name: curves_of(record) for name, record in records.items()}, levels))


def expert_return() -> float:
    """Of the demonstrator, from the start states of all seeds' evaluations."""
    test = Monitor(gymnasium.make("Pendulum-v1"))
    test.reset(seed=TEST_SEED)
    return float(evaluate_policy(named_expert("swing-up", test)[0], test, EPISODES * len(Cell().seeds))[0])  # type: ignore[arg-type]


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
