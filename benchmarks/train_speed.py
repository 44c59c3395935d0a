"""Speed of SAC's update against Stable-Baselines3's own in the same process, and of the dynamics model; one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/train_speed.py

writes benchmarks/results/train_speed-cpu.json: updates per second (median over blocks, the variants taken in turn) at
Hopper's sizes (11 observations, 3 actions, batch 256), and the model's gradient steps and predicted rows per second.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
from certify_speed import processor, versions
from stable_baselines3.common.logger import Logger

from lipctrl.agents.regularisation import Smoothness
from lipctrl.agents.sac import SAC
from lipctrl.files import write_text
from lipctrl.models.dynamics import Dynamics, DynamicsSettings

BLOCKS, BATCH, ROWS = 9, 256, 5000
VARIANTS = {
    "ours": Smoothness(),
    "ours, LayerNorm": Smoothness(layer_norm=True),
    "ours, spectral hard": Smoothness(spectral="hard"),
    "ours, uniform": Smoothness(perturbation="uniform"),
    "ours, FGSM": Smoothness(perturbation="fgsm"),
    "ours, PGD-3": Smoothness(perturbation="pgd"),
}
RESULT = Path(__file__).parent / "results" / "train_speed-cpu.json"


def agent(width: int, smoothness: Smoothness | None) -> stable_baselines3.SAC:
    """SB3's agent (None) or ours, with a replay buffer of random transitions."""
    shape: dict[str, Any] = {"net_arch": [width, width]}
    common: dict[str, Any] = {"policy_kwargs": shape, "seed": 0, "device": "cpu", "buffer_size": ROWS}
    if smoothness is None:
        model = stable_baselines3.SAC("MlpPolicy", "Hopper-v5", **common)
    else:
        model = SAC("MlpPolicy", "Hopper-v5", smoothness=smoothness, **common)
    rng, memory = np.random.default_rng(0), model.replay_buffer
    assert memory is not None
    for _ in range(ROWS):
        x, y = rng.normal(size=(2, 1, 11))
        memory.add(x, y, rng.uniform(-1, 1, (1, 3)), rng.normal(size=1), np.zeros(1), [{}])
    model.set_logger(Logger(None, []))
    return model


def rate(work: Callable[[], object], count: int) -> float:
    """How many per second, `work` doing `count` of them."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def updates(width: int) -> dict[str, dict[str, float]]:
    """Updates per second of every variant at one width."""
    models = {"Stable-Baselines3": agent(width, None)} | {name: agent(width, s) for name, s in VARIANTS.items()}
    count = 40 if width > 100 else 100
    found: dict[str, list[float]] = {name: [] for name in models}
    for block in range(BLOCKS + 1):
        for name, model in models.items():
            speed = rate(lambda m=model: m.train(count, BATCH), count)  # type: ignore[misc]
            if block:
                found[name].append(speed)
    own = np.array(found["Stable-Baselines3"])
    return {
        name: {
            "updates_per_s": round(float(np.median(speeds)), 1),
            "ratio_to_sb3": round(float(np.median(np.array(speeds) / own)), 2),
        }
        for name, speeds in found.items()
    }


def dynamics(members: int) -> dict[str, float]:
    """Gradient steps and sampled rows per second of a model of four layers of 200."""
    model = Dynamics(11, 3, DynamicsSettings(members=members, elites=max(1, members - 2), cap=40))
    g = torch.Generator().manual_seed(0)
    x, u, y = (torch.randn(ROWS, size, generator=g) for size in (11, 3, 11))
    steps, rows = [], []
    for block in range(BLOCKS + 1):
        start = time.perf_counter()
        done = model.fit(x, u, y[:, 0], y).steps
        fitted = done / (time.perf_counter() - start)
        sampled = rate(lambda: model.sample(x, u, g), ROWS)
        if block:
            steps.append(fitted)
            rows.append(sampled)
    return {"steps_per_s": round(float(np.median(steps)), 1), "rows_per_s": round(float(np.median(rows)))}


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    result = {
        "processor": processor(),
        "versions": versions(),
        "threads": 1,
        "batch": BATCH,
        "updates": {str(width): updates(width) for width in (64, 256)},
        "dynamics": {str(members): dynamics(members) for members in (1, 7)},
        "cuda": "not measured",
    }
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
