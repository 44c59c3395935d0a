"""Maximal action deviation: move the action as far as the ball allows (Zhang et al. 2020, arXiv 2003.08938).

    maximise |pi(s + d) - pi(s)|^2   over d in the ball

by projected gradient with restarts. The gradient is zero at d = 0, so every restart begins at a random extreme point of
a small ball; steps are 2.5 times radius/steps long, so that every face can be reached from every start; and the last
steps jump to the maximiser of the linearised objective, which is exact for linear policies (a power iteration). The
best perturbation of each row is kept, measured on the deployed, clipped action.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.attack import Context

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MaximalActionDeviation:
    """Projected-gradient search for the largest action deviation.

    Attributes:
        steps: projected gradient steps per restart.
        jumps: final steps to the maximiser of the linearised objective.
        restarts: random starts.
    """

    timed: ClassVar[bool] = False
    steps: int = 10
    jumps: int = 3
    restarts: int = 2

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        nominal = context.act(context.observation)
        best = np.zeros_like(context.observation)
        damage = np.zeros(len(best))
        start = np.zeros_like(best)
        for restart in range(self.restarts):
            # restarts come in opposite pairs: one pushes the action up, the other down
            fresh = restart % 2 == 0
            start = (
                context.ball.boundary(context.draw(context.random.standard_normal)) / self.steps if fresh else -start
            )
            d = start
            for k in range(self.steps + self.jumps):
                deviation, gradient = self._objective(context, d, nominal)
                best, damage = _better(best, damage, d, deviation)
                d = self._move(context, d, gradient) if k < self.steps else context.ball.linear_maximiser(gradient)
            final = np.linalg.norm(context.act(context.observation + d) - nominal, axis=1)
            best, damage = _better(best, damage, d, final)
        return best

    @staticmethod
    def _objective(context: Context, d: Array, nominal: Array) -> tuple[Array, Array]:
        """|pi(s + d) - pi(s)| per row, and the gradient of half its square (before clipping, which would hide it)."""
        change = context.act(context.observation + d) - nominal
        jacobian = context.jacobian(context.observation + d)
        # where the deployed action is saturated at no deviation, the linearised change still shows the way out
        direction = np.where(change == 0, (jacobian @ d[:, :, None])[:, :, 0], change)
        return np.linalg.norm(change, axis=1), np.einsum("bm,bmn->bn", direction, jacobian)

    def _move(self, context: Context, d: Array, gradient: Array) -> Array:
        ball = context.ball
        step = replace(ball, radius=2.5 / self.steps * ball.radius).linear_maximiser(gradient)
        return ball.project(d + step)


def _better(best: Array, damage: Array, d: Array, deviation: Array) -> tuple[Array, Array]:
    wins = deviation > damage
    return np.where(wins[:, None], d, best), np.where(wins, deviation, damage)
