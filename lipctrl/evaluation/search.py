"""Searches over closed loops, run on the same batch of environments as the attacks that act step by step."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.attack import Cost
from lipctrl.attacks.blind import Held
from lipctrl.attacks.search import Search
from lipctrl.attacks.threat import Threat
from lipctrl.disturb.sets import Ball
from lipctrl.evaluation.rollout import Loops, Rollouts
from lipctrl.policy import Policy
from lipctrl.seeding import generator

Array = NDArray[np.float64]


def run_search(
    loops: Loops,
    policy: Policy,
    search: Search,
    threat: Threat,
    radii: Sequence[float],
    *,
    episodes: int,
    seed: int,
    progress: Callable[[], object] = lambda: None,
) -> Rollouts:
    """Closed loops under the worst disturbance that a search finds for every episode and radius.

    `progress` is called after each step of each batch. The cost counts the closed loops of the search, its steps and
    failures; radius 0 is run without a search.
    """
    found, spent = [], Cost()
    for radius in radii:

        def returns(held: Held, rows: Ball, radius: float = radius) -> Array:
            copies = [radius] * (len(rows.radius) // episodes)
            run = loops.run(policy, held, threat, copies, episodes=episodes, seed=seed, progress=progress)
            spent.loops += run.returns.size
            spent.steps += int(run.lengths.sum())
            spent.failures += int(run.terminated.sum())
            return run.returns

        if radius > 0:
            ball, budget = threat.ball(np.full(episodes, radius)), threat.words.budget
            random = generator(seed, "search")  # common random numbers over radii
            held, _ = search.worst(returns, ball, budget, steps=loops.limit, random=random)
        else:
            held = search.nothing(episodes, len(threat.scale))
        found.append(held)
    together = Held(
        *(np.concatenate([getattr(h, name) for h in found]) for name in ("values", "start", "stop", "frequency"))
    )
    final = loops.run(policy, together, threat, radii, episodes=episodes, seed=seed, progress=progress)
    return replace(final, cost=spent)
