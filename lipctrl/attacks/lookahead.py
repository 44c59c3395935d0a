"""Look ahead: at every step plan perturbations over a horizon and apply the first, as MPC does with inputs.

The adversary knows plant and policy. Where greedy attacks move the action as far as they can now, this one moves it so
that the cost of the coming steps, with a terminal cost, is largest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import casadi as ca
import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.attack import Context
from lipctrl.attacks.planned import Episode, Sequences, StageCost, ascend
from lipctrl.plant import Plant

Array = NDArray[np.float64]


@dataclass
class Lookahead:
    """Receding-horizon search by gradients, warm-started; one object per run.

    Attributes:
        plant: equations, whose state is what the policy observes. stage, terminal: costs, see `Episode`.
        horizon: steps ahead. iterations: of `ascend` per step, from the shifted plan and from a random one.
    """

    timed: ClassVar[bool] = False
    plant: Plant
    stage: StageCost
    terminal: Callable[[ca.SX], ca.SX]
    horizon: int = 20
    iterations: int = 8
    _plan: Array | None = field(default=None, init=False)

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`.

        Raises:
            UserError: the policy is no network, so that it has no gradient.
        """
        x, ball = context.observation, context.ball
        allowed = Sequences("step", ball.norm, ball.radius, ball.scale, self.horizon)
        episode = Episode(self.plant, context.policy, x, self.stage, self.terminal, context.cost)
        draws = np.stack([context.draw(context.random.standard_normal) for _ in range(self.horizon)], axis=1)
        fresh = ascend(episode, allowed, allowed.linear_maximiser(draws), iterations=self.iterations)
        best = fresh
        if self._plan is not None and self._plan.shape == fresh.shape:
            shifted = np.concatenate([self._plan[:, 1:], self._plan[:, -1:]], axis=1)
            kept = ascend(episode, allowed, shifted, iterations=self.iterations)
            best = np.where((episode.cost(kept) >= episode.cost(fresh))[:, None, None], kept, fresh)
        self._plan = best
        return np.asarray(best[:, 0])
