"""Trained agents under attack: Lipschitz-bounded pendulum swing-up, and Hopper under the attacks of the literature.

    flock LOCK python benchmarks/published.py pendulum-bounds hopper-ladder

Both train what they need in runs/ and go on where they were interrupted.

pendulum-bounds: SAC on gymnasium's Pendulum-v1, five trainings of an ordinary network and of each bound 10, 6, 4, 3 in
half widths of the torque (2 N m) per raw unit of (cos, sin, rate). Of every training the checkpoint with the best mean
return over 20 test episodes is kept, because SAC at this learning rate comes and goes; the report uses other seeds.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from lipctrl.agents.off_policy import SacSettings, build
from lipctrl.agents.together import learn_together
from lipctrl.attacks import MaximalActionDeviation, NoAttack, RandomVertex
from lipctrl.attacks.attack import Attack
from lipctrl.attacks.critic import ActionValue, CriticAttack
from lipctrl.attacks.threat import Threat
from lipctrl.certify.bracket import certify
from lipctrl.evaluation.rollout import Loops, surrounded
from lipctrl.evaluation.statistics import Interval, probability_of_improvement, stratified_bootstrap
from lipctrl.files import write_atomically
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.sb3 import actor_to_plain
from lipctrl.nn.sb3_critic import load_critic
from lipctrl.policy import PlainPolicy

Array = NDArray[np.float64]
FOLDER = Path("runs") / "pendulum-bounds"
PENDULUM, HALF_WIDTH = "Pendulum-v1", 2.0  # N m
BOUNDS: dict[str, float | None] = {"none": None, "10": 10.0, "6": 6.0, "4": 4.0, "3": 3.0}
TRAININGS, STEPS, EVERY = 5, 8000, 500
RADII = (0.0, 0.03, 0.06, 0.09, 0.11, 0.15, 0.18, 0.21, 0.3)
DELAYS = (0.0, 1.0, 2.0, 3.0, 4.0)
ATTACKS = ("vertex", "mad", "critic")
EPISODES, TEST_SEED, REPORT_SEED = 20, 1000, 0
NAMES = ("cos angle [-]", "sin angle [-]", "rate [rad/s]")
THREAT = Threat.parse("observation:l2:raw", np.ones(3), NAMES)


def pendulum() -> gymnasium.Env[Any, Any]:
    """A new environment."""
    return gymnasium.make(PENDULUM)


def train(name: str) -> None:
    """All trainings of one bound, best checkpoints into runs/pendulum-bounds/NAME/seed-k."""
    folders = [FOLDER / name / f"seed-{k}" for k in range(TRAININGS)]
    if all((folder / "policy.npz").exists() for folder in folders):
        return
    lip = None if (bound := BOUNDS[name]) is None else HALF_WIDTH * bound
    settings = SacSettings(env=PENDULUM, timesteps=STEPS, seeds=TRAININGS, learning_rate=1e-3, lip=lip)
    agents, loops = build(settings, [pendulum() for _ in range(TRAININGS)]), Loops(pendulum)
    best: list[tuple[float, PlainNet, bytes]] = [(-np.inf, None, b"")] * TRAININGS  # type: ignore[list-item]

    def after_step() -> bool:
        done = agents[0].num_timesteps
        if done % EVERY == 0 and done > STEPS // 4:
            for k, agent in enumerate(agents):
                net = actor_to_plain(agent.policy)
                found = loops.run(PlainPolicy(net), NoAttack(), THREAT, (0.0,), episodes=EPISODES, seed=TEST_SEED)
                if (value := float(found.returns.mean())) > best[k][0]:
                    folders[k].mkdir(parents=True, exist_ok=True)
                    agent.save(folders[k] / "model.zip")
                    best[k] = (value, net, (folders[k] / "model.zip").read_bytes())
            print(name, done, [round(value, 1) for value, *_ in best], flush=True)
        return True

    learn_together(agents, STEPS, after_step=after_step)
    for folder, (_, net, archive) in zip(folders, best, strict=True):
        write_atomically(folder / "model.zip", lambda stream, data=archive: stream.write(data))
        net.save(folder / "policy.npz")


def attacked(folder: Path) -> dict[str, Any]:
    """One training: constants, mean returns by attack and radius, and by delay."""
    path = folder / "attacked.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    net, critics = PlainNet.load(folder / "policy.npz"), load_critic(folder / "model.zip")
    bracket, loops, policy = certify(net), Loops(pendulum), PlainPolicy(net)
    attacks: dict[str, Attack] = {
        "vertex": RandomVertex(),
        "mad": MaximalActionDeviation(),
        "critic": CriticAttack(ActionValue(critics)),
    }
    found: dict[str, Any] = {"proved": bracket.upper.bound, "witness": bracket.lower.bound}
    for name, attack in attacks.items():
        run = loops.run(policy, attack, THREAT, RADII, episodes=EPISODES, seed=REPORT_SEED)
        found[name] = run.returns.mean(1).tolist()
    late = Threat.parse("delay", np.ones(3), NAMES, pendulum())
    delayed = Loops(lambda: surrounded(pendulum(), late))
    run = delayed.run(policy, RandomVertex(), late, DELAYS, episodes=EPISODES, seed=REPORT_SEED)
    found["delay"] = run.returns.mean(1).tolist()
    write_atomically(path, lambda stream: stream.write(json.dumps(found, indent=1).encode()))
    return found


def interval(values: Array) -> Interval:
    """Interquartile mean over trainings."""
    return stratified_bootstrap(values, seed=0)


def trained() -> list[str]:
    """The bounds whose trainings are all there."""
    return [b for b in BOUNDS if all((FOLDER / b / f"seed-{k}" / "policy.npz").exists() for k in range(TRAININGS))]


def pendulum_bounds() -> dict[str, Any]:
    """Return against attack size and delay, for an ordinary network and four bounds."""
    for name in ("none", "4", "10", "6", "3"):
        train(name)
    return compared(trained())


def compared(names: Sequence[str]) -> dict[str, Any]:
    """The record of some bounds."""
    rows: dict[str, Any] = {}
    scores: dict[str, Array] = {}
    for name in track(names, description="attacks"):
        found = [attacked(FOLDER / name / f"seed-{k}") for k in range(TRAININGS)]
        scores[name] = np.min([[one[a] for one in found] for a in ATTACKS], axis=0)
        rows[name] = {
            "proved": [one["proved"] for one in found],
            "witness": [one["witness"] for one in found],
            "by attack": {a: np.mean([one[a] for one in found], axis=0).tolist() for a in ATTACKS},
            "worst, every training": scores[name].tolist(),
            "delay, every training": [one["delay"] for one in found],
            "interquartile mean": [[x.value, x.low, x.high] for x in map(interval, scores[name].T)],
        }
    better = {
        f"{a} over {b}": [probability_of_improvement(x, y) for x, y in zip(scores[a].T, scores[b].T, strict=True)]
        for a, b in itertools.permutations(names, 2)
    }
    return {"radii": RADII, "delays": DELAYS, "episodes": EPISODES, "steps": STEPS, "bounds": rows, "better": better}


HOPPER = Path("runs") / "hopper-ladder"
THREATENED = "--threat observation:linf:normalised"
RADIUS = 0.075


def hopper_commands() -> dict[Path, str]:
    """What makes each file, in order."""
    agent = HOPPER / "ppo"
    fit = f"lipctrl attack fit {agent} --env Hopper-v5 {THREATENED} --radius {RADIUS}"
    fitted = " ".join(str(HOPPER / f"{name}.npz") for name in ("sarsa", "sa-rl"))
    return {
        agent / "policy.npz": f"lipctrl train sb3 --config hopper --out {agent}",
        HOPPER / "sarsa.npz": f"{fit} --attack robust-sarsa --steps 100000 --candidates 3 --out {HOPPER}/sarsa.npz",
        HOPPER / "sa-rl.npz": f"{fit} --attack sa-rl --start {HOPPER}/sarsa.npz --steps 1000000 --candidates 3 "
        f"--out {HOPPER}/sa-rl.npz",
        HOPPER / "report" / "report.json": f"lipctrl evaluate {agent} --env Hopper-v5 {THREATENED} --radii 0 0.0375 "
        f"{RADIUS} --episodes 20 --fresh 50 --attacks none uniform vertex mad {fitted} --out {HOPPER}/report",
    }


def hopper_ladder() -> dict[str, Any]:
    """A PPO agent on Hopper-v5 under attacks of rising strength, and what each spent."""
    commands = hopper_commands()
    for path, command in commands.items():
        if not path.exists():
            subprocess.run([sys.executable, "-m", *command.split()], check=True)
    (section,) = json.loads((HOPPER / "report" / "report.json").read_text())["sections"]
    keep = ("attack", "radius", "episodes", "mean", "std", "cvar", "failures", "deviation", "evaluations", "jacobians")
    return {
        "commands": list(commands.values()),
        "table": [{key: row[key] for key in keep} for row in section["table"]],
        **{key: section[key] for key in ("headlines", "health", "ladder", "facts", "verdicts")},
    }


ROWS = {"pendulum-bounds": pendulum_bounds, "hopper-ladder": hopper_ladder}
