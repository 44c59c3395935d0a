"""Environment steps per second: BatchedTask against what a user has otherwise, in one process, taking turns.

Every competitor takes the same random actions for the same number of control steps and resets finished episodes itself:

* gymnasium's SyncVectorEnv and Stable-Baselines3's DummyVecEnv: observation, reward, termination, reset;
* BatchedTask on 1 thread and on all cores: the same results, bit for bit;
* mujoco.rollout, one call per control step (physics alone, neither reward nor reset, warm start lost), as a ceiling.

    python benchmarks/rollout_speed.py

writes benchmarks/results/rollout_speed-cpu.json: medians over the rounds.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np
import stable_baselines3
from mujoco.rollout import Rollout
from stable_baselines3.common.vec_env import DummyVecEnv

from lipctrl.envs.mujoco_tasks.batched import BatchedTask
from lipctrl.files import write_text

TASKS = ("Hopper-v5", "HalfCheetah-v5")
BATCH = 64
STEPS = 40  # control steps per round
ROUNDS = 15
RESULT = Path(__file__).parent / "results" / "rollout_speed-cpu.json"


def sync_vector(task: str) -> Callable[[Any], None]:
    """Gymnasium's vector environment."""
    envs = gymnasium.make_vec(task, num_envs=BATCH, vectorization_mode="sync")

    def run(actions: Any) -> None:
        envs.reset(seed=0)
        for action in actions:
            envs.step(action)

    return run


def dummy_vector(task: str) -> Callable[[Any], None]:
    """Stable-Baselines3's vector environment."""
    envs = DummyVecEnv([lambda: gymnasium.make(task)] * BATCH)

    def run(actions: Any) -> None:
        envs.seed(0)
        envs.reset()
        for action in actions:
            envs.step(action)

    return run


def batched(task: str, threads: int) -> Callable[[Any], None]:
    """Ours."""
    envs = BatchedTask(task, BATCH, threads=threads)

    def run(actions: Any) -> None:
        envs.reset(range(BATCH))
        for action in actions:
            _, _, terminated, truncated = envs.step(action)
            if done := np.flatnonzero(terminated | truncated).tolist():
                envs.reset(done, rows=done)

    return run


def physics(task: str, threads: int) -> Callable[[Any], None]:
    """Physics alone: mujoco.rollout, one call per control step."""
    env: Any = gymnasium.make(task).unwrapped
    model, skip = env.model, env.frame_skip
    data = [mujoco.MjData(model) for _ in range(threads)]
    pool = Rollout(nthread=threads if threads > 1 else 0)
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    start = np.empty((BATCH, mujoco.mj_stateSize(model, full)))
    for seed in range(BATCH):
        env.reset(seed=seed)
        mujoco.mj_getState(model, env.data, start[seed], full)

    def run(actions: Any) -> None:
        state = start
        for action in actions:
            control = np.repeat(action[:, None].astype(np.float64), skip, axis=1)
            state = np.ascontiguousarray(pool.rollout(model, data, state, control)[0][:, -1])

    return run


def measure(task: str, threads: int) -> dict[str, list[float]]:
    """Seconds of every competitor in every round."""
    runs = {
        "gymnasium SyncVectorEnv": sync_vector(task),
        "stable-baselines3 DummyVecEnv": dummy_vector(task),
        "BatchedTask, 1 thread": batched(task, 1),
        f"BatchedTask, {threads} threads": batched(task, threads),
        "physics alone (mujoco.rollout), 1 thread": physics(task, 1),
        f"physics alone (mujoco.rollout), {threads} threads": physics(task, threads),
    }
    space = gymnasium.make(task).action_space
    assert isinstance(space, gymnasium.spaces.Box)
    shape = (STEPS, BATCH, *space.shape)
    actions = np.random.default_rng(0).uniform(space.low, space.high, shape).astype(space.dtype)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run(actions)
            if turn > 0:  # the first is warm-up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median rates, and medians of the ratios within a round, which a busy machine disturbs less."""
    rates = {name: round(BATCH * STEPS / float(np.median(times)), 0) for name, times in seconds.items()}
    others = np.minimum(seconds["gymnasium SyncVectorEnv"], seconds["stable-baselines3 DummyVecEnv"])
    ours = {name: np.array(times) for name, times in seconds.items() if name.startswith("BatchedTask")}
    ratios = {name: round(float(np.median(others / times)), 2) for name, times in ours.items()}
    return {"steps_per_second": rates, "times_faster_than_the_best_vector_environment": ratios}


def main() -> None:
    """Measure, print and write."""
    threads = max(2, os.cpu_count() or 1)
    tasks = {}
    for task in TASKS:
        tasks[task] = summary(measure(task, threads))
        print(task, json.dumps(tasks[task], indent=1))
    versions = {"mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__}
    versions |= {"stable-baselines3": stable_baselines3.__version__, "python": platform.python_version()}
    machine = {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    settings = {"batch": BATCH, "control_steps": STEPS, "rounds": ROUNDS}
    record = {"machine": machine, "versions": versions, "settings": settings, "tasks": tasks}
    RESULT.parent.mkdir(exist_ok=True)
    write_text(RESULT, json.dumps(record, indent=2) + "\n")


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
