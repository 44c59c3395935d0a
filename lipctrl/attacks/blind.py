"""Attacks that look at nothing: what a search must beat."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.attack import Context

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NoAttack:
    """The nominal loop."""

    timed: ClassVar[bool] = False

    def perturb(self, context: Context) -> Array:
        """Zero."""
        return np.zeros((len(context.observation), len(context.ball.scale)))


@dataclass(frozen=True)
class Uniform:
    """Uniform noise in the ball."""

    timed: ClassVar[bool] = False

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        normal, uniform = context.draw(context.random.standard_normal), context.draw(context.random.random)
        return context.ball.inside(normal, uniform)


@dataclass(frozen=True)
class RandomVertex:
    """Random extreme points of the ball: stronger than uniform noise at the same cost."""

    timed: ClassVar[bool] = False

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        return context.ball.boundary(context.draw(context.random.standard_normal))


@dataclass
class Constant:
    """A random extreme point of the ball, drawn once per episode and held; one object per run."""

    timed: ClassVar[bool] = False
    _drawn: Array | None = field(default=None, init=False)

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        if self._drawn is None:
            self._drawn = context.draw(context.random.standard_normal)
        return context.ball.boundary(self._drawn)


@dataclass
class Held:
    """Given disturbances, each from one step of the episode to another; one object per run.

    Attributes:
        values: (batch, k). start, stop: steps (batch,); at start <= t < stop the value acts, at others nothing.
        frequency: (batch,), cycles per step; the value has the sign of cos(2 pi frequency (t - start)); 0: constant.
    """

    values: Array
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    frequency: Array
    timed: ClassVar[bool] = True
    _time: int = field(default=0, init=False)

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        acts = (self.start <= self._time) & (self._time < self.stop)
        wave = np.where(np.cos(2 * np.pi * self.frequency * (self._time - self.start)) < -1e-9, -1.0, 1.0)
        self._time += 1
        # what a budget has left may be smaller by rounding
        return context.ball.project((acts * wave)[:, None] * self.values)
