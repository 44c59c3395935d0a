"""Speed of our SAC update against Stable-Baselines3's own in the same process, and of model-based training; one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/train_speed.py          # about 25 minutes, CPU
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/train_speed.py cuda     # the same on a GPU

writes benchmarks/results/train_speed-<device>.json: updates per second of all agents together at Hopper's sizes (11
observations, 3 actions, batch 256), the share of the arithmetic limit, the model's gradient steps and sampled rows per
second, and the phases of short runs on Hopper: one model, with robust regularisation, an ensemble. Updates are medians
over blocks, in which the variants take turns, of three processes: where the memory lies differs from process to process
and with it the ratio. On a CPU seconds are those of the process, which other processes disturb less than the clock on
the wall.
"""

import json
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch
from certify_speed import processor
from stable_baselines3.common.logger import Logger

from lipctrl.agents.mbpo import MBPO, RolloutSettings
from lipctrl.agents.regularisation import Smoothness
from lipctrl.agents.sac import SAC
from lipctrl.agents.sac_learner import Learner, train_together
from lipctrl.agents.together import learn_together
from lipctrl.files import write_text
from lipctrl.models.dynamics import Dynamics, DynamicsSettings
from lipctrl.runs import package_versions

PROCESSES, BLOCKS, BATCH, ROWS = 3, 5, 256, 5000
FGSM = Smoothness(perturbation="fgsm")
SMOOTH = {
    "LayerNorm": Smoothness(layer_norm=True),
    "spectral hard": Smoothness(spectral="hard"),
    "uniform": Smoothness(perturbation="uniform"),
    "FGSM": FGSM,
    "PGD-3": Smoothness(perturbation="pgd"),
}
SINGLE = DynamicsSettings(width=100, depth=3, cap=500)
RUNS = {
    "one model": (SINGLE, Smoothness()),
    "one model, FGSM": (SINGLE, FGSM),
    "ensemble of 7": (replace(SINGLE, members=7, elites=5), Smoothness()),
}
TWO = ("ours", "ours, bfloat16")
"""What is measured once more at width 256, with nothing but Stable-Baselines3 in its process."""
RESULTS = Path(__file__).parent / "results"


def agent(
    width: int, device: str, smoothness: Smoothness | None, *, compiled: bool, seed: int = 0, **others: Any
) -> Any:
    """SB3's agent (None) or ours, with a replay buffer of random transitions."""
    shape: dict[str, Any] = {"net_arch": [width, width]}
    common: dict[str, Any] = {"policy_kwargs": shape, "seed": seed, "device": device, "buffer_size": ROWS}
    if smoothness is None:
        model = stable_baselines3.SAC("MlpPolicy", "Hopper-v5", **common)
    else:
        model = SAC("MlpPolicy", "Hopper-v5", smoothness=smoothness, compiled=compiled, **common, **others)
    rng, memory = np.random.default_rng(0), model.replay_buffer
    assert memory is not None
    for _ in range(ROWS):
        x, y = rng.normal(size=(2, 1, 11))
        memory.add(x, y, rng.uniform(-1, 1, (1, 3)), rng.normal(size=1), np.zeros(1), [{}])
    model.set_logger(Logger(None, []))
    return model


def agents(count: int, *arguments: Any, **others: Any) -> list[SAC]:
    """Ours, sharing a learner."""
    made = [agent(*arguments, **others, seed=seed) for seed in range(count)]
    if count > 1:
        Learner(made)
    return made


def now(device: str) -> float:
    """Seconds of this process on a CPU; on a GPU of the clock, when it has done what was asked of it."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def block_speeds(
    width: int, device: str, many: int, only: Collection[str]
) -> tuple[dict[str, list[float]], float, int]:
    """Updates per second of every variant at one width in every block, the arithmetic limit, and the most GPU memory.

    Args:
        many: agents in the last variants. only: variants that are made; none: all.
    """
    torch.set_num_threads(1)
    plain = Smoothness()
    kinds: dict[str, Callable[[], list[Any]]] = {
        "Stable-Baselines3": lambda: [agent(width, device, None, compiled=False)],
        "ours, not compiled": lambda: agents(1, width, device, plain, compiled=False),
    }
    for name, smooth in {"": plain, **{f", {name}": smooth for name, smooth in SMOOTH.items()}}.items():
        kinds[f"ours{name}"] = partial(agents, 1, width, device, smooth, compiled=True)
    kinds[f"ours, {many} agents"] = partial(agents, many, width, device, plain, compiled=True)
    for name, count in (("ours, bfloat16", 1), (f"ours, {many} agents, bfloat16", many)):
        kinds[name] = partial(agents, count, width, device, plain, compiled=True, products="bfloat16")
    groups = {name: make() for name, make in kinds.items() if not only or name in only}
    steps, found = 40 if width > 100 else 100, {name: list[float]() for name in groups}
    for block in range(BLOCKS + 2):
        for name, models in groups.items():
            count = max(5, steps // len(models))
            start = now(device)
            if name == "Stable-Baselines3":
                models[0].train(count, BATCH)
            else:
                train_together(models, count, BATCH)
            if block > 1:
                found[name].append(count * len(models) / (now(device) - start))
    peak = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
    return found, arithmetic_limit(width, device), peak


def updates(width: int, device: str, many: int, only: Collection[str] = ()) -> tuple[dict[str, dict[str, Any]], int]:
    """Of every variant, over all blocks of all processes, the ratio of each process too; and the most GPU memory."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = [pool.submit(block_speeds, width, device, many, only).result() for _ in range(PROCESSES)]
    limit = np.median([run[1] for run in runs])
    found: dict[str, dict[str, Any]] = {}
    for name in runs[0][0]:
        speeds, own = (np.array([run[0][one] for run in runs]) for one in (name, "Stable-Baselines3"))
        found[name] = {
            "updates_per_s": round(float(np.median(speeds)), 1),
            "ratio_to_sb3": round(float(np.median(speeds / own)), 2),
            "ratio_of_each_process": np.median(speeds / own, axis=1).round(2).tolist(),
            "share_of_arithmetic_limit": round(float(np.median(speeds) / limit), 3),
        }
    return found, max(run[2] for run in runs)


def arithmetic_limit(width: int, device: str) -> float:
    """Updates per second if only the plain update's matrix products cost time, at the speed of a large product.

    Multiply-adds: the target and the actor's log-probability evaluate actor and critics forward; the critics' step
    costs three passes of the critics, the actor's three of the actor and two of the critics.
    """
    a = torch.randn(1024, 1024, device=device)
    for _ in range(3):
        a @ a
    start = now(device)
    for _ in range(10):
        a @ a
    speed = 10 * 2 * 1024**3 / (now(device) - start)
    actor, critics = 11 * width + width**2 + width * 6, 2 * (14 * width + width**2 + width)
    return speed / (2 * BATCH * ((1 + 3) * actor + (1 + 3 + 2) * critics))


def dynamics(members: int, width: int, device: str) -> dict[str, float]:
    """Gradient steps and sampled rows per second."""
    depth = 4 if width == 200 else 3
    settings = DynamicsSettings(members=members, elites=max(1, members - 2), width=width, depth=depth, cap=40)
    model = Dynamics(11, 3, settings, device=device)
    g = torch.Generator(device).manual_seed(0)
    x, u, y = (torch.randn(ROWS, size, generator=g, device=device) for size in (11, 3, 11))
    steps, rows = [], []
    for block in range(BLOCKS + 1):
        start = now(device)
        done = model.fit(x, u, y[:, 0], y).steps
        fitted = done / (now(device) - start)
        start = now(device)
        model.sample(x, u, g)
        if block:
            steps.append(fitted)
            rows.append(ROWS / (now(device) - start))
    return {"steps_per_s": round(float(np.median(steps)), 1), "rows_per_s": round(float(np.median(rows)))}


def phases(name: str, count: int, device: str) -> dict[str, float]:
    """Real steps per second of all agents and the share of each phase, on Hopper after compiling, 10 updates a step."""
    dynamics, smoothness = RUNS[name]
    made: list[MBPO] = [
        MBPO(
            "MlpPolicy", "Hopper-v5", seed=seed, device=device, compiled=True, learning_starts=300, batch_size=BATCH,
            gradient_steps=10, buffer_size=ROWS, policy_kwargs={"net_arch": [64, 64]}, smoothness=smoothness,
            dynamics=dynamics, rollouts=RolloutSettings(),
        )
        for seed in range(count)
    ]  # fmt: skip
    learn_together(made, 310)  # compiles
    for one in made:
        one.seconds = dict.fromkeys(one.seconds, 0.0)
    start = now(device)
    learn_together(made, 750, reset_num_timesteps=False)
    spent_in_all = now(device) - start
    spent = {phase: sum(one.seconds[phase] for one in made) for phase in made[0].seconds}
    shares = {phase: round(seconds / sum(spent.values()), 3) for phase, seconds in spent.items()}
    return {"real_steps_per_s": round(750 * count / spent_in_all, 1), **shares}


def main() -> None:
    """Measure and write the result."""
    torch.set_num_threads(1)
    device = "cuda" if sys.argv[1:] == ["cuda"] else "cpu"
    many = 8 if device == "cpu" else 32
    measured = {str(width): updates(width, device, many) for width in (64, 256)}
    result: dict[str, Any] = {
        "processor": processor() if device == "cpu" else torch.cuda.get_device_name(),
        "versions": package_versions(),
        "threads": 1,
        "batch": BATCH,
        "updates": {width: found for width, (found, _) in measured.items()},
        "updates_of_two": {name: updates(256, device, many, ("Stable-Baselines3", name))[0][name] for name in TWO},
        "dynamics": {f"{m} x {w}": dynamics(m, w, device) for m in (1, 7) for w in (100, 200)},
        "phases": {name: phases(name, 1, device) for name in RUNS}
        | {f"one model, {many} agents": phases("one model", many, device)},
    }
    if device != "cpu":
        of_updates = max(peak for _, peak in measured.values())
        result["peak_memory_bytes"] = max(of_updates, torch.cuda.max_memory_allocated())
    write_text(RESULTS / f"train_speed-{device}.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
