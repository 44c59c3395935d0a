"""What the studies of trainings share: a cell is several seeds as one batch, evaluated and stored as it goes on."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
from certify_speed import processor
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.together import learn_together
from lipctrl.evaluation.statistics import interquartile_mean, stratified_bootstrap
from lipctrl.files import write_text
from lipctrl.runs import package_versions

EPISODES, TEST_SEED = 10, 1000  # of an evaluation


class Cell(Protocol):
    """One experiment: task, environment steps, steps between evaluations."""

    @property
    def env(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def every(self) -> int: ...


def train(path: Path, cell: Cell, agents: Sequence[Any], *, enough: float = float("inf")) -> None:
    """Train the agents of a cell and write its result after every evaluation.

    Args:
        enough: training stops where every seed returns that much.
    """
    test = Monitor(gymnasium.make(cell.env))
    result = begun(path, cell)

    def after_step() -> bool:
        steps = agents[0].num_timesteps
        if steps % cell.every == 0:
            test.reset(seed=TEST_SEED)
            scores = evaluated(agents, test)
            result["steps"].append(steps)
            result["returns"].append(scores)
            result["history"] = [getattr(agent, "history", []) for agent in agents]  # baselines measure nothing else
            result["seconds"] = {phase: sum(a.seconds[phase] for a in agents) for phase in agents[0].seconds}
            result["finished"] = steps >= cell.steps or min(scores) >= enough
            write(path, result)
            spent = {k: round(v) for k, v in result["seconds"].items()}
            print(path.stem, steps, np.round(scores, 1), spent, flush=True)
        return not result["finished"]

    learn_together(agents, cell.steps, after_step=after_step)


def begun(path: Path, cell: Cell) -> dict[str, Any]:
    """The result of a cell before its first evaluation."""
    result: dict[str, Any] = {"cell": path.stem, "processor": processor(), "versions": package_versions()}
    return result | {"settings": str(cell), "steps": [], "returns": [], "history": [], "finished": False}


def evaluated(agents: Sequence[Any], test: Monitor) -> list[float]:
    """Mean return of deterministic episodes of each agent, one agent after the other."""
    return [float(np.mean(evaluate_policy(a, test, EPISODES, return_episode_rewards=True)[0])) for a in agents]


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Store a result as it is now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(result) + "\n")


def finished(path: Path) -> bool:
    """Whether a cell need not be run again."""
    return path.exists() and bool(json.loads(path.read_text())["finished"])


def run_group(prefix: str, cells: Mapping[str, Cell], folder: Path, run: Callable[[str], None]) -> dict[str, Any]:
    """Run the cells whose names begin so and are not finished; the last returns of all of them."""
    chosen = [name for name in cells if name.startswith(prefix)]
    for name in chosen:
        if not finished(folder / f"{name}.json"):
            run(name)
    records = {name: json.loads((folder / f"{name}.json").read_text()) for name in chosen}
    return {name: {"real steps": r["steps"][-1], "returns": r["returns"][-1]} for name, r in records.items()}


def curves_of(record: Mapping[str, Any]) -> list[list[dict[str, float]]]:
    """Returns and diagnostics of each seed of a cell."""
    return [
        [{"timesteps": t, "evaluation/mean_return": r} for t, r in zip(record["steps"], own, strict=True)] + rows
        for own, rows in zip(zip(*record["returns"], strict=True), record["history"], strict=True)
    ]


def interval(scores: np.ndarray) -> str:
    """Interquartile mean over seeds with its 95 % bootstrap interval."""
    found = stratified_bootstrap(scores[:, None], interquartile_mean, seed=0)
    return f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}]"
