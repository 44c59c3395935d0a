"""DAgger: the expert labels what the learner visits, so that the data cover where the learner goes, not the expert.

(Ross, Gordon, Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning",
AISTATS 2011, with the learner alone at the wheel after the demonstrations.)
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium

from lipctrl.demos.collect import collect
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.policy import Policy
from lipctrl.seeding import seed_of


def aggregate(
    demos: Demonstrations,
    env: gymnasium.Env[Any, Any],
    learner: Policy,
    expert: Policy,
    *,
    episodes: int,
    seed: int,
    max_steps: int | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Demonstrations:
    """The demonstrations with episodes of the learner added, labelled by the expert.

    Args:
        demos: so far; their number of rounds, kept in the provenance, gives this round its own start states.
        learner: acts. expert: labels.
        episodes, seed, max_steps, progress: as in `demos.collect`.

    Raises:
        UserError: an answer of the expert that is not finite.
    """
    round_ = int(demos.provenance.get("dagger_rounds", 0)) + 1
    added = collect(
        env,
        expert,
        acting=learner,
        episodes=episodes,
        dither=0.0,
        seed=seed_of(seed, "dagger", round_),
        max_steps=max_steps,
        progress=progress,
    )
    merged = Demonstrations.from_trajectories([*demos.trajectories(), *added], demos.provenance)
    return replace(merged, provenance={**demos.provenance, "dagger_rounds": round_})
