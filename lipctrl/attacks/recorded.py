"""A recorded sequence of disturbances as an attack: to replay an episode, and to try it on another policy."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.attack import Context

Array = NDArray[np.float64]


@dataclass
class Recorded:
    """Disturbances (T, k), the same in every row; nothing after the last one. One object per run."""

    timed: ClassVar[bool] = True
    disturbances: Array
    _time: int = field(default=0, init=False)

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        rows, now = len(context.observation), self._time
        self._time += 1
        if now >= len(self.disturbances):
            return np.zeros((rows, len(context.ball.scale)))
        return np.tile(self.disturbances[now], (rows, 1))
