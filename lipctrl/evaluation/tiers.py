"""Tiers: how hard to look, in one word. Seconds, minutes or hours on two cores; every number can be set by itself."""

from dataclasses import dataclass
from typing import Literal

TierName = Literal["smoke", "standard", "strong"]
BLIND = ("none", "uniform", "vertex", "constant")
GRADIENT = ("mad", "spsa", "critic", "lookahead")
SEARCHES = ("constant-search", "pulse-search", "wave-search")


@dataclass(frozen=True)
class Tier:
    """A tier.

    Attributes:
        attacks: that are tried; those that a threat or a policy has no place for are left out and named.
        episodes: per policy, attack and radius. fresh: on new seeds for the attack that turns out worst.
        search: closed loops that a search may spend per episode and radius.
        training: environment steps of each attack that is trained against every policy first; 0: none is.
        ladder, parts: of the report, see `lipctrl.cli.plan.Plan`.
        purpose: in words.
    """

    attacks: tuple[str, ...]
    episodes: int
    fresh: int
    search: int
    training: int
    ladder: tuple[float, ...]
    parts: int
    purpose: str


STRONG = (*BLIND, *GRADIENT, "random-search", *SEARCHES)
TIERS: dict[TierName, Tier] = {
    "smoke": Tier(BLIND, 5, 5, 20, 0, (), 0, "seconds: whether it runs, and what looking at nothing finds"),
    "standard": Tier(
        (*BLIND, *GRADIENT, *SEARCHES), 20, 20, 100, 0, (0.0, 0.3), 4, "minutes: gradients, queries and searches"
    ),
    "strong": Tier(
        STRONG, 50, 100, 1000, 500_000, (0.0, 0.1, 0.3), 10, "hours: ten times the search, and attacks that are trained"
    ),
}
