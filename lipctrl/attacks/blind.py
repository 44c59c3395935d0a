"""Attacks that look at nothing: what a search must beat."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.attack import Context

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NoAttack:
    """The nominal loop."""

    def perturb(self, context: Context) -> Array:
        """Zero."""
        return np.zeros_like(context.observation)


@dataclass(frozen=True)
class Uniform:
    """Uniform noise in the ball."""

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        normal, uniform = context.draw(context.random.standard_normal), context.draw(context.random.random)
        return context.ball.inside(normal, uniform)


@dataclass(frozen=True)
class RandomVertex:
    """Random extreme points of the ball: stronger than uniform noise at the same cost."""

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        return context.ball.boundary(context.draw(context.random.standard_normal))
