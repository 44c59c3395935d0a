"""SPSA: maximal action deviation of a policy that only answers queries: ONNX files, MPC, functions.

The gradient of |pi(s + d) - pi(s)|^2 is estimated by simultaneous perturbation (Spall, IEEE Transactions on Automatic
Control 37, 1992): along a few random sign vectors v, two queries each, whatever the number of observations,

    g = mean of (|pi(s + d + h v) - pi(s)|^2 - |pi(s + d - h v) - pi(s)|^2) / (2 h) v.

Maximal action deviation itself differentiates such policies by central differences, 2n queries per gradient: cheaper
for few observations, and nearer to the gradient; this one is for many, and for policies with steps or noise in them,
which a difference over 1e-4 does not see. Nothing looks inside the policy, so that a network whose gradient is masked
shows up as weaker under `mad` than under `spsa`. Every query is counted.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.ascent import ProjectedAscent
from lipctrl.attacks.attack import Context
from lipctrl.files import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spsa(ProjectedAscent):
    """Projected ascent on estimated gradients.

    Attributes:
        directions: sign vectors per gradient, two queries each.
        probe: h, as a part of the radius.
    """

    timed: ClassVar[bool] = False
    directions: int = 8
    probe: float = 0.1

    def __post_init__(self) -> None:
        if self.directions < 1 or not 0 < self.probe <= 1:
            raise UserError(
                f"SPSA needs at least one direction and a probe in (0, 1], found {self.directions} and {self.probe}"
            )

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`. Queries reach beyond the ball by the probe; what is returned does not."""
        nominal = context.act(context.observation)
        h = self.probe * context.ball.radius[:, None] * context.ball.scale

        def size(d: Array) -> Array:
            return np.asarray(np.linalg.norm(context.act(context.observation + d) - nominal, axis=1))

        def deviation(d: Array) -> tuple[Array, Array]:
            gradient = np.zeros_like(d)
            for _ in range(self.directions):
                v = np.where(context.draw(context.random.standard_normal) < 0, -1.0, 1.0)
                change = size(d + h * v) ** 2 - size(d - h * v) ** 2
                gradient += change[:, None] * v / context.ball.scale  # up to a positive factor per row
            return size(d), gradient

        return self.search(context, deviation, np.zeros(len(nominal)))
