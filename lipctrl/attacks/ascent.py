"""Projected ascent in a ball: the search that all gradient attacks share; they differ in what they ascend.

Every restart begins at a random extreme point of a small ball, because many objectives have no gradient at d = 0; steps
are 2.5 times radius/steps long, so that every face can be reached from every start; and the last steps jump to the
maximiser of the linearised objective, which is a power iteration on convex quadratics. Where the gradient is zero (a
saturated or inactive network) a step goes on along the random start. The best point of each row is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.attack import Context

Array = NDArray[np.float64]
Objective = Callable[[Array], tuple[Array, Array]]
"""Perturbations (batch, n) -> what is made large (batch,), and its gradient (batch, n) up to a positive factor."""


@dataclass(frozen=True)
class ProjectedAscent:
    """Settings of the search.

    Attributes:
        steps: projected gradient steps per restart.
        jumps: final steps to the maximiser of the linearised objective.
        restarts: random starts, in opposite pairs.
    """

    steps: int = 10
    jumps: int = 3
    restarts: int = 2

    def search(self, context: Context, objective: Objective, at_zero: Array) -> Array:
        """The best perturbation (batch, n); zero where nothing exceeds `at_zero`, the objective there (batch,)."""
        ball = context.ball
        best, highest = np.zeros_like(context.observation), at_zero
        start = np.zeros_like(best)
        for restart in range(self.restarts):
            # restarts come in opposite pairs: one pushes the action up, the other down
            fresh = restart % 2 == 0
            start = ball.boundary(context.draw(context.random.standard_normal)) / self.steps if fresh else -start
            d = start
            for k in range(self.steps + self.jumps + 1):
                value, gradient = objective(d)
                wins = value > highest
                best, highest = np.where(wins[:, None], d, best), np.where(wins, value, highest)
                # saturated or inactive everywhere near: on along the random start, without a further draw, so that
                # what one row meets does not change the draws of the others
                flat = (gradient == 0).all(axis=1, keepdims=True)
                gradient = np.where(flat, start / ball.scale**2, gradient)
                d = self._step(context, d, gradient) if k < self.steps else ball.linear_maximiser(gradient)
        return best

    def _step(self, context: Context, d: Array, gradient: Array) -> Array:
        ball = context.ball
        step = replace(ball, radius=2.5 / self.steps * ball.radius).linear_maximiser(gradient)
        return ball.project(d + step)
