"""Environment steps per second of closed loops, against what a user has otherwise: the same policy on the same task.

* Stable-Baselines3's `evaluate_policy` on its vector environments, with the PPO policy itself;
* lipctrl's loops, as `lipctrl evaluate` runs them, with the plain network of the same policy, under several attacks, on
  one core, with two threads, and as cells in two processes;
* physics alone: `mujoco.rollout`, one call per control step (no observation, reward, policy or reset; the warm start of
  the solver is lost): what is left of its speed when a loop is closed, is asked.

    python benchmarks/rollout_speed.py [--rounds 7] [--tasks Hopper-v5 HalfCheetah-v5]

Competitors take turns, and ratios are medians over the rounds, within which a busy machine treats all alike. Rates per
second of CPU time (all threads of the process) do not see other processes at all. Writes
benchmarks/results/rollout_speed-cpu.json.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import mujoco
import numpy as np
import stable_baselines3
from mujoco.rollout import Rollout
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from lipctrl.attacks import ATTACKS
from lipctrl.attacks.threat import Threat
from lipctrl.envs.mujoco_tasks.batched import BatchedTask
from lipctrl.envs.mujoco_tasks.disturbed import DisturbedTask
from lipctrl.evaluation.engine import run_all
from lipctrl.evaluation.rollout import Loops
from lipctrl.files import write_text
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.sb3 import load_zip
from lipctrl.policy import PlainPolicy
from lipctrl.seeding import seed_of

TASKS = ("Hopper-v5", "HalfCheetah-v5")
TRAINING = 20_000  # steps of PPO, after which the hopper stands for a while before it falls
BATCH, RADIUS, LIMIT = 64, 0.05, 200  # LIMIT: steps of an episode, the same for all
ATTACKED = ("none", "uniform", "vertex", "constant", "mad")
BATCHES = (1, 8, 64, 256)
RESULT = Path(__file__).parent / "results" / "rollout_speed-cpu.json"
PREFIX = "lipctrl-benchmark/"
Job = Callable[[int], int]
"""Runs closed loops from a seed and returns the number of environment steps."""


for _name in TASKS:  # here, because worker processes import this file
    gymnasium.register(f"{PREFIX}{_name}", gymnasium.spec(_name).entry_point, max_episode_steps=LIMIT)


def baseline(model: PPO, task: str, kind: type[DummyVecEnv] | type[SubprocVecEnv], count: int, episodes: int) -> Job:
    """Stable-Baselines3's own evaluation."""
    envs = make_vec_env(task, n_envs=count, seed=0, vec_env_cls=kind)

    def run(seed: int) -> int:
        lengths = evaluate_policy(model, envs, n_eval_episodes=episodes, return_episode_rewards=True)[1]
        return int(np.sum(lengths))

    return run


def threat_on(task: str) -> Threat:
    """A threat on the observation."""
    space = gymnasium.make(task).observation_space
    assert space.shape
    return Threat.parse("observation:linf:raw", np.ones(space.shape[0]), tuple(map(str, range(space.shape[0]))))


def loops(net: PlainNet, task: str, attack: str, batch: int, threads: int = 1) -> Job:
    """Ours, in this process."""
    threat = threat_on(task)
    own = Loops(lambda: gymnasium.make(task), batched=partial(DisturbedTask, task, threads=threads))

    def run(seed: int) -> int:
        found = own.run(PlainPolicy(net), ATTACKS[attack][0](), threat, (RADIUS,), episodes=batch, seed=seed)
        return int(found.lengths.sum())

    return run


def piece(item: tuple[PlainNet, str, int]) -> int:
    """What one process does: loops, which are kept for its next piece."""
    net, task, seed = item
    if task not in MADE:
        MADE[task] = loops(net, task, "none", BATCH)
    return MADE[task](seed)


MADE: dict[str, Job] = {}


def processes(net: PlainNet, task: str, workers: int) -> Job:
    """Ours, in several processes by the map that `lipctrl evaluate --workers` uses."""

    def run(seed: int) -> int:
        pieces = [(net, task, 2 * seed * workers + k) for k in range(2 * workers)]
        return sum(steps for _, steps in run_all(piece, pieces, workers=workers))

    return run


class Recorder(PlainPolicy):
    """The policy, with all its answers kept."""

    def predict(self, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        """See `Policy.predict`."""
        action, state = super().predict(*arguments, **named)
        KEPT.append(action)
        return action, state


KEPT: list[Any] = []


def physics(net: PlainNet, task: str, threads: int) -> Job:
    """Physics alone, from the starts and with the actions of the loops, until the first of them ends."""
    KEPT.clear()
    own = Loops(lambda: gymnasium.make(task), batched=partial(DisturbedTask, task))
    found = own.run(Recorder(net), ATTACKS["none"][0](), threat_on(task), (0.0,), episodes=BATCH, seed=0)
    actions = KEPT[: int(found.lengths.min())]
    env: Any = gymnasium.make(task).unwrapped
    model, skip = env.model, env.frame_skip
    data = [mujoco.MjData(model) for _ in range(threads)]
    pool = Rollout(nthread=threads if threads > 1 else 0)
    full = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    start = np.empty((BATCH, mujoco.mj_stateSize(model, full)))
    for k in range(BATCH):
        env.reset(seed=seed_of(0, "episode", k))
        mujoco.mj_getState(model, env.data, start[k], full)

    def run(seed: int) -> int:
        state = start
        for action in actions:
            control = np.repeat(action[:, None], skip, axis=1)
            state = np.ascontiguousarray(pool.rollout(model, data, state, control)[0][:, -1])
        return BATCH * len(actions)

    return run


def measure(jobs: dict[str, Job], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Steps per second of wall and of CPU time of every job in every round; the first round is warm-up."""
    rates: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            if turn == 0 and "mad" in name:
                continue  # it takes long and needs no warm-up of its own
            wall, cpu = time.perf_counter(), time.process_time()
            steps = job(turn)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"round {turn}: {name}: {steps / wall:.0f} by wall, {steps / cpu:.0f} by CPU time", flush=True)
            if turn:
                rates[name]["wall"].append(steps / wall)
                rates[name]["cpu"].append(steps / cpu)
    for name in rates:
        if "processes" in name or "Subproc" in name:
            del rates[name]["cpu"]  # which is that of the parent alone
    return rates


def shares(net: PlainNet, task: str, attack: str) -> dict[str, float]:
    """Parts of the CPU time of our loops that go into physics, the policy and the attack; the rest is bookkeeping."""
    spent, inside = {"physics": 0.0, "policy": 0.0, "attack": 0.0}, False

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:  # what the attack asks the policy is the attack's
                return function(*arguments, **named)
            start, inside = time.process_time(), True
            result = function(*arguments, **named)
            spent[part] += time.process_time() - start
            inside = False
            return result

        return call

    kind, advance = ATTACKS[attack][0], BatchedTask._advance

    class Timed(kind):  # type: ignore[misc, valid-type]
        perturb = timed("attack", kind.perturb)

    class Policy(PlainPolicy):
        predict = timed("policy", PlainPolicy.predict)

    threat = threat_on(task)
    own = Loops(lambda: gymnasium.make(task), batched=partial(DisturbedTask, task))
    BatchedTask._advance = timed("physics", advance)  # type: ignore[method-assign]
    try:
        start = time.process_time()
        own.run(Policy(net), Timed(), threat, (RADIUS,), episodes=BATCH, seed=0)
        whole = time.process_time() - start
    finally:
        BatchedTask._advance = advance  # type: ignore[method-assign]
    found = {part: round(seconds / whole, 3) for part, seconds in spent.items()}
    return found | {"rest": round(1 - sum(found.values()), 3)}


def compared(rates: dict[str, dict[str, list[float]]], ours: str, other: str) -> dict[str, float]:
    """How many times faster ours is, median over rounds, by wall and, where one process does all, by CPU time."""
    kinds = [kind for kind in ("wall", "cpu") if kind in rates[ours] and kind in rates[other]]
    pairs = {kind: np.divide(rates[ours][kind], rates[other][kind]) for kind in kinds}
    return {kind: round(float(np.median(values)), 2) for kind, values in pairs.items()}


def task_record(name: str, rounds: int) -> dict[str, Any]:
    """Everything measured on one task."""
    task = f"{PREFIX}{name}"
    with TemporaryDirectory() as folder:
        model = PPO("MlpPolicy", make_vec_env(task, seed=0), seed=0, device="cpu").learn(TRAINING)
        model.save(Path(folder) / "ppo.zip")
        net = load_zip(Path(folder) / "ppo.zip")
    jobs = {
        f"evaluate_policy, DummyVecEnv of {n}": baseline(model, task, DummyVecEnv, n, max(n, 8)) for n in (1, 8, 64)
    }
    jobs["evaluate_policy, SubprocVecEnv of 2"] = baseline(model, task, SubprocVecEnv, 2, 8)
    jobs |= {f"lipctrl, {attack}": loops(net, task, attack, BATCH) for attack in ATTACKED}
    jobs |= {f"lipctrl, none, batch {n}": loops(net, task, "none", n) for n in BATCHES if n != BATCH}
    jobs["lipctrl, none, 2 threads"] = loops(net, task, "none", BATCH, threads=2)
    jobs["lipctrl, none, 2 processes"] = processes(net, task, 2)
    jobs |= {f"physics alone, {n} thread{'s' * (n > 1)}": physics(net, task, n) for n in (1, 2)}
    print(f"{name}: {len(jobs)} competitors", flush=True)
    rates = measure(jobs, rounds)
    others = [name for name in jobs if name.startswith("evaluate_policy")]
    return {
        "steps_per_second": {
            name: {kind: round(float(np.median(values))) for kind, values in both.items()}
            for name, both in rates.items()
        },
        "times_faster_on_one_core": {name: compared(rates, "lipctrl, none", name) for name in others},
        "times_faster_on_two_cores": {name: compared(rates, "lipctrl, none, 2 processes", name) for name in others},
        "of_physics_alone_on_one_core": compared(rates, "lipctrl, none", "physics alone, 1 thread"),
        "of_physics_alone_on_two_cores": compared(rates, "lipctrl, none, 2 threads", "physics alone, 2 threads"),
        "shares_of_cpu_time": {attack: shares(net, task, attack) for attack in ATTACKED},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    given = parser.parse_args()
    rounds, load = given.rounds, os.getloadavg()[0]
    tasks = json.loads(RESULT.read_text())["tasks"] if RESULT.exists() and set(given.tasks) != set(TASKS) else {}
    tasks |= {task: task_record(task, rounds) for task in given.tasks}
    versions = {"mujoco": mujoco.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__}
    versions |= {"stable-baselines3": stable_baselines3.__version__, "python": platform.python_version()}
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    record = {"machine": machine, "versions": versions, "batch": BATCH, "rounds": rounds, "tasks": tasks}
    print(json.dumps(record, indent=1))
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
