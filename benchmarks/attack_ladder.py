"""What every observation attack finds of a worst case that is known exactly, and what it spends.

    OMP_NUM_THREADS=1 python benchmarks/attack_ladder.py

The detuned loop of `lipctrl oracle`: 8 steps from (1, 0), l_inf 0.1 per step, the worst of 65536 sign sequences. The
share is that of the exact damage (cost above the undisturbed one) that the median of 5 seeds finds in one episode, with
the smallest and largest; evaluations of the policy and Jacobians are per step of that episode; fits have steps in the
environment, on start states that vary, and seconds. Writes benchmarks/results/attack_ladder-cpu.json.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from certify_speed import processor
from rich.progress import track

from lipctrl.attacks import ATTACKS, Attack
from lipctrl.attacks.adversary import candidates, successive_halving
from lipctrl.attacks.critic import ActionValue, CriticAttack
from lipctrl.attacks.learned import along_direction, scaled_perturbation
from lipctrl.attacks.linear import LinearLoop
from lipctrl.attacks.sarsa import SarsaSettings, collect, fit
from lipctrl.attacks.threat import Threat
from lipctrl.cli.oracle import DETUNED, RADIUS, STEPS, X0, A, B, P, Q, R, attack_named, linear_policy
from lipctrl.evaluation.rollout import Loops
from lipctrl.files import write_text
from lipctrl.runs import package_versions

RESULT = Path(__file__).parent / "results" / "attack_ladder-cpu.json"
SEEDS = range(5)
TRAINING = 40_000  # environment steps of each fit
CRITICS = ((0.02, 0.1), (0.05, 0.3), (0.1, 1.0))  # box and weight of Robust Sarsa
POLICY = linear_policy(DETUNED)
THREAT = Threat.parse("observation:linf:raw", np.ones(2), ("position [m]", "velocity [m/s]"))


class Loop(gymnasium.Env[Any, Any]):
    """The double integrator of the oracle for 8 steps, its terminal cost in the last reward."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, spread: float = 0.0) -> None:
        self.spread = spread

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = X0 + self.spread * self.np_random.standard_normal(2), 0
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        cost = self.x @ Q @ self.x + action @ R @ action
        self.x, self.t = A @ self.x + B @ action, self.t + 1
        over = self.t == STEPS
        return self.x, -float(cost + (self.x @ P @ self.x if over else 0.0)), False, over, {}


def scattered() -> Loop:
    """Start states around (1, 0), for fits: one episode repeated would show one line of states."""
    return Loop(spread=0.3)


def cost(attack: Attack, seed: int) -> tuple[float, float, float]:
    """Cost of the episode, evaluations and Jacobians per step."""
    found = Loops(Loop).run(POLICY, attack, THREAT, (RADIUS,), episodes=1, seed=seed)
    spent = found.cost
    return -float(found.returns[0, 0]), spent.evaluations / STEPS, spent.jacobians / STEPS


def scorer(seed: int) -> Callable[[Attack], float]:
    """Mean return under an attack on start states that have no part in the table."""
    loops = Loops(scattered)
    return lambda attack: float(loops.run(POLICY, attack, THREAT, (RADIUS,), episodes=8, seed=seed).returns.mean())


def robust_sarsa(seed: int) -> tuple[Attack, int]:
    """The best of three critics on the same rollouts."""
    data = collect(scattered, POLICY, steps=TRAINING, exploration=0.5, discount=0.99, seed=seed)
    fits = [fit(data, SarsaSettings(box=box, weight=weight), seed=seed) for box, weight in CRITICS]
    return min((CriticAttack(ActionValue((one.net,))) for one in fits), key=scorer(seed)), TRAINING * 11 // 10


def learned(steer: Any) -> Callable[[int], tuple[Attack, int]]:
    """The best of three candidates by successive halving."""

    def search(seed: int) -> tuple[Attack, int]:
        field = candidates(3, scattered, POLICY, THREAT.ball(np.array([RADIUS])), steer, seed=seed)
        found = successive_halving(field, steps=TRAINING, score=scorer(seed))
        return found.best, found.steps

    return search


FITS = {"robust-sarsa": robust_sarsa, "sa-rl": learned(scaled_perturbation), "pa-ad": learned(along_direction)}


def row(name: str, nominal: float, exact: float) -> dict[str, Any]:
    """One attack over all seeds.

    Raises:
        AssertionError: above the exact worst case.
    """
    shares, seconds, spent, steps = [], [], (0.0, 0.0), 0
    for seed in SEEDS:
        start = time.perf_counter()
        attack, steps = FITS[name](seed) if name in FITS else (attack_named(name, DETUNED), 0)
        seconds.append(time.perf_counter() - start)
        reached, *spent = cost(attack, seed)
        assert reached <= exact + 1e-9, f"{name} exceeds the exact worst case"
        shares.append((reached - nominal) / (exact - nominal))
    return {
        "attack": name,
        "share": statistics.median(shares),
        "least": min(shares),
        "most": max(shares),
        "evaluations per step": spent[0],
        "jacobians per step": spent[1],
        "training steps": steps,
        "training seconds": statistics.median(seconds) if steps else 0.0,
    }


def main() -> None:
    """Run every attack and write the table."""
    form = LinearLoop(A, B, DETUNED, Q, R, P).stacked(X0, STEPS)
    nominal, exact = float(form(np.zeros(2 * STEPS))), form.largest_at_vertices(RADIUS)[0]
    names = [*ATTACKS, "critic", "lookahead", *FITS]
    rows = [row(name, nominal, exact) for name in track(names, description="attacks")]
    record = {
        "machine": processor(),
        "versions": package_versions(),
        "seeds": len(SEEDS),
        "nominal": nominal,
        "exact": exact,
        "rows": rows,
    }
    write_text(RESULT, json.dumps(record, indent=1) + "\n")
    for one in rows:
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in one.items()})


if __name__ == "__main__":
    main()
