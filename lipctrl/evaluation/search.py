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
BATCH = 512  # loops at a time: more are no faster, and every one has a simulator of its own


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
    failures; radius 0 is run without a search. Radii are searched from the smallest on, and what was found at one is
    tried at the next, so that a larger set does not show less damage (with a budget "rate" the ramp changes, too).
    """
    found: dict[float, Held] = {}
    spent, known = Cost(), None
    for radius in sorted(set(radii)):

        def returns(held: Held, rows: Ball, radius: float = radius) -> Array:
            copies, most, found = len(rows.radius) // episodes, max(1, BATCH // episodes), []
            for first in range(0, copies, most):
                count = min(most, copies - first)
                part = held.rows(np.arange(first * episodes, (first + count) * episodes))
                run = loops.run(policy, part, threat, [radius] * count, episodes=episodes, seed=seed, progress=progress)
                spent.loops += run.returns.size
                spent.steps += int(run.lengths.sum())
                spent.failures += int(run.terminated.sum())
                found.append(run.returns)
            return np.concatenate(found)

        if radius == 0:
            found[radius] = search.nothing(episodes, len(threat.scale))
            continue
        known = search.worst(
            returns,
            threat.ball(np.full(episodes, radius)),
            threat.words.budget,
            steps=loops.limit,
            random=generator(seed, "search"),  # common random numbers over radii
            known=known,
        )
        found[radius] = known
    parts = [found[radius] for radius in radii]
    together = Held(
        *(np.concatenate([getattr(h, name) for h in parts]) for name in ("values", "start", "stop", "frequency"))
    )
    final = loops.run(policy, together, threat, radii, episodes=episodes, seed=seed, progress=progress)
    return replace(final, cost=spent)
