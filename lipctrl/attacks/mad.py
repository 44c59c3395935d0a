"""Maximal action deviation: move the action as far as the ball allows (Zhang et al. 2020, arXiv 2003.08938).

    maximise |pi(s + d) - pi(s)|^2   over d in the ball

by projected ascent (`lipctrl.attacks.ascent`), whose last steps are exact for linear policies. What counts is the
deployed, clipped action.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.ascent import ProjectedAscent
from lipctrl.attacks.attack import Context

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MaximalActionDeviation(ProjectedAscent):
    """Projected-gradient search for the largest action deviation."""

    timed: ClassVar[bool] = False

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        nominal = context.act(context.observation)

        def deviation(d: Array) -> tuple[Array, Array]:
            """|pi(s + d) - pi(s)|, and the gradient of half its square (before clipping, which would hide it)."""
            change = context.act(context.observation + d) - nominal
            jacobian = context.jacobian(context.observation + d)
            # where the deployed action is saturated at no deviation, the linearised change still shows the way out
            direction = np.where(change == 0, (jacobian @ d[:, :, None])[:, :, 0], change)
            return np.linalg.norm(change, axis=1), np.einsum("bm,bmn->bn", direction, jacobian)

        return self.search(context, deviation, np.zeros(len(nominal)))
