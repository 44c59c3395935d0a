"""Speed of GAIL's whole update (critics, actor, discriminator) against Stable-Baselines3's TD3 update; one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/gail_speed.py     # about 5 minutes of one core

writes benchmarks/results/gail_speed-cpu.json after every group: updates per second of all agents together, median over
blocks in which the variants take turns, at Hopper's sizes (11 observations, 3 actions), actor and critics of 64-64
without LayerNorm, batch 128, one step of the discriminator (128 pairs of agent and of expert) per update; and the cost
of each kind of reward as a multiple of the whole update without penalty. Stable-Baselines3's TD3 learns no reward.
Seconds are those of the process, which other processes disturb less than the clock on the wall.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
from certify_speed import processor
from stable_baselines3.common.logger import Logger

from lipctrl.agents.discriminator import RewardSettings
from lipctrl.agents.gail import GAIL, GailSettings
from lipctrl.agents.gail_learner import GailLearner
from lipctrl.agents.pessimism import PessimismSettings
from lipctrl.agents.sac_learner import train_together
from lipctrl.demos.demonstrations import Demonstrations, Trajectory
from lipctrl.files import write_text
from lipctrl.runs import package_versions

BLOCKS, BATCH, ROWS, UPDATES, MANY = 7, 128, 5000, 40, 6
NONE, PENALISED = RewardSettings(regulariser="none"), RewardSettings()
PLAIN = GailSettings(layer_norm=False)
PESSIMISTIC = replace(PLAIN, pessimism=PessimismSettings("dynamics"))
KINDS = {
    "none": (NONE, PLAIN),
    "one-sided": (PENALISED, PLAIN),
    "dragan": (replace(PENALISED, points="dragan"), PLAIN),
    "certified": (RewardSettings(regulariser="certified"), PLAIN),
    "certified, 2x64": (RewardSettings(regulariser="certified", hidden=(64, 64)), PLAIN),
    "none, learned pessimism": (NONE, PESSIMISTIC),
}
COMPILED = ("none", "one-sided", "certified", "certified, 2x64")
GROUPS = {
    "1 agent": (1, False, tuple(KINDS)),
    f"{MANY} agents": (MANY, False, tuple(KINDS)),
    f"{MANY} agents, compiled": (MANY, True, COMPILED),
    "1 agent, compiled": (1, True, COMPILED),
}
RESULT = Path(__file__).parent / "results" / "gail_speed-cpu.json"


def filled(agent: Any) -> Any:
    """With a replay buffer of random transitions."""
    rng = np.random.default_rng(0)
    for _ in range(ROWS):
        x, y = rng.normal(size=(2, 1, 11))
        agent.replay_buffer.add(x, y, rng.uniform(-1, 1, (1, 3)), rng.normal(size=1), np.zeros(1), [{}])
    agent.set_logger(Logger(None, []))
    return agent


def agents(kind: str, count: int, *, compiled: bool) -> list[GAIL]:
    """Ours, sharing a learner."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (1000, 3))
    one = Trajectory(rng.normal(size=(1001, 11)), actions, actions, np.zeros(1000), False, True)
    demos, (reward, imitation) = Demonstrations.from_trajectories([one], {}), KINDS[kind]
    made = [
        filled(
            GAIL(
                "MlpPolicy", "Hopper-v5", demonstrations=demos, reward=reward, imitation=imitation, compiled=compiled,
                seed=seed, device="cpu", buffer_size=ROWS, policy_kwargs={"net_arch": [64, 64]},
            )
        )
        for seed in range(count)
    ]  # fmt: skip
    if count > 1:
        GailLearner(made)
    return made


def measure(count: int, compiled: bool, kinds: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Updates per second of every kind and of Stable-Baselines3's TD3."""
    shape: dict[str, Any] = {"net_arch": [64, 64]}
    theirs = stable_baselines3.TD3(
        "MlpPolicy", "Hopper-v5", seed=0, device="cpu", buffer_size=ROWS, policy_kwargs=shape
    )
    groups: dict[str, list[Any]] = {"Stable-Baselines3 TD3": [filled(theirs)]}
    groups |= {kind: agents(kind, count, compiled=compiled) for kind in kinds}
    found: dict[str, list[float]] = {name: [] for name in groups}
    for block in range(BLOCKS + 2):  # the first two warm up and compile
        for name, models in groups.items():
            start = time.process_time()
            if name == "Stable-Baselines3 TD3":
                theirs.train(UPDATES, BATCH)
            else:
                train_together(models, UPDATES, BATCH)
            if block > 1:
                found[name].append(UPDATES * len(models) / (time.process_time() - start))
    speeds = {name: np.array(each) for name, each in found.items()}
    own, plain = speeds["Stable-Baselines3 TD3"], speeds["none"]
    return {
        name: {
            "updates_per_s": round(float(np.median(each)), 1),
            "ratio_to_sb3": round(float(np.median(each / own)), 2),
            "cost_of_none": round(float(np.median(plain / each)), 2),
        }
        for name, each in speeds.items()
    }


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"processor": processor(), "versions": package_versions(), "threads": 1, "batch": BATCH}
    for name, (count, compiled, kinds) in GROUPS.items():
        result[name] = measure(count, compiled, kinds)
        write_text(RESULT, json.dumps(result, indent=1) + "\n")
        print(name, json.dumps(result[name], indent=1), flush=True)


if __name__ == "__main__":
    main()
