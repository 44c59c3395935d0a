"""The same attack with less effort, or on a part of the disturbance: to see whether effort helps, and what hurts."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.ascent import ProjectedAscent
from lipctrl.attacks.attack import Attack, Context
from lipctrl.attacks.critic import CriticAttack
from lipctrl.attacks.lookahead import Lookahead
from lipctrl.attacks.search import Search

Array = NDArray[np.float64]
Ascent = TypeVar("Ascent", bound=ProjectedAscent)


def with_effort(attack: Attack | Search, share: float) -> Attack | Search | None:
    """The attack with a share of its iterations and restarts, or of its closed loops; None if it has none to give up.

    Share 0 is the version with one step: of a gradient from one random start, or of a search with two closed loops, of
    which the first is without disturbance.
    """
    if isinstance(attack, Search):
        return replace(attack, loops=max(2, round(share * attack.loops)))
    if isinstance(attack, CriticAttack):
        return replace(attack, ascent=_less(attack.ascent, share))
    if isinstance(attack, Lookahead):
        return replace(attack, iterations=max(1, round(share * attack.iterations)))
    if isinstance(attack, ProjectedAscent):
        return _less(attack, share)
    return None


def _less(ascent: Ascent, share: float) -> Ascent:
    steps, jumps, restarts = (round(share * n) for n in (ascent.steps, ascent.jumps, ascent.restarts))
    return replace(ascent, steps=max(1, steps), jumps=jumps, restarts=max(1, restarts))


@dataclass
class Confined:
    """An attack that may only disturb some components, from one step to another; one object per run.

    Attributes:
        inner: the attack. components: (k,), which may be disturbed. start, stop: steps; at start <= t < stop it acts.
    """

    timed: ClassVar[bool] = False
    inner: Attack
    components: NDArray[np.bool_]
    start: int
    stop: int
    _time: int = field(default=0, init=False)

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        acts, self._time = self.start <= self._time < self.stop, self._time + 1
        if not acts:
            return np.zeros((len(context.observation), len(context.ball.scale)))
        # a set needs positive widths: what is left of the others is taken away afterwards
        narrow = replace(context.ball, scale=np.where(self.components, 1.0, 1e-9) * context.ball.scale)
        d = self.inner.perturb(replace(context, ball=narrow))
        return np.where(self.components, d, 0.0)
