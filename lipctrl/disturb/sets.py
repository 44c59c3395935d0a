"""Sets of perturbations: balls with units, in which attacks search (numpy).

A ball holds every d with |d / scale| <= radius in l2 or l_inf. In raw units the scale is one; in normalised units it is
the standard deviation of each component, so that a radius means the same for metres and radians.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.norms import ORDER, Norm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ball:
    """Balls of a batch: one radius per row.

    Attributes:
        norm: "l2" or "linf".
        radius: shape (batch,), nonnegative.
        scale: shape (n,), positive; raw units per unit of radius.
    """

    norm: Norm
    radius: Array
    scale: Array

    def __post_init__(self) -> None:
        if not (np.isfinite(self.radius).all() and (self.radius >= 0).all()):
            raise UserError(f"radii must be finite and not negative; found {self.radius.tolist()}")
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise UserError(f"scales must be finite and positive; found {self.scale.tolist()}")

    def size(self, d: Array) -> Array:
        """|d / scale| of each row (batch, n) -> (batch,)."""
        return np.asarray(np.linalg.norm(d / self.scale, ord=ORDER[self.norm], axis=-1))

    def contains(self, d: Array) -> bool:
        """Whether every row lies in its ball, up to 1e-6 relative."""
        return bool((self.size(d) <= self.radius * (1 + 1e-6)).all())

    def project(self, d: Array) -> Array:
        """Nearest point of the ball in the scaled coordinates, row by row."""
        if self.norm == "linf":
            limit = self.radius[:, None] * self.scale
            return np.clip(d, -limit, limit)
        size = self.size(d)
        return d * np.minimum(1.0, self.radius / np.where(size > 0, size, 1.0))[:, None]

    def linear_maximiser(self, g: Array) -> Array:
        """The d in each ball with the largest g'd, for g of shape (batch, n)."""
        scaled = g * self.scale
        if self.norm == "linf":
            return self.radius[:, None] * self.scale * np.where(scaled < 0, -1.0, 1.0)
        length = np.linalg.norm(scaled, axis=-1, keepdims=True)
        return self.radius[:, None] * self.scale * scaled / np.where(length > 0, length, 1.0)

    def boundary(self, normal: Array) -> Array:
        """Random extreme points from standard normal draws (batch, n): vertices for l_inf, the sphere for l2."""
        return self.linear_maximiser(normal / self.scale)

    def inside(self, normal: Array, uniform: Array) -> Array:
        """Uniform points from standard normal (batch, n) and uniform [0, 1) draws (batch, n)."""
        if self.norm == "linf":
            return self.radius[:, None] * self.scale * (2 * uniform - 1)
        return self.boundary(normal) * uniform[:, :1] ** (1 / len(self.scale))


@dataclass(frozen=True)
class Samples(Ball):
    """Whole numbers of control steps from 0 to the radius: how late a signal may come."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.radius != np.floor(self.radius)).any():
            raise UserError(f"a delay is a whole number of control steps; found radii {self.radius.tolist()}")

    def contains(self, d: Array) -> bool:
        """Whether every row is a whole number between 0 and its radius."""
        return super().contains(d) and bool(((d >= 0) & (d == np.floor(d))).all())

    def project(self, d: Array) -> Array:
        """The nearest whole numbers in the set."""
        return np.clip(np.rint(d), 0.0, self.radius[:, None])

    def linear_maximiser(self, g: Array) -> Array:
        """The largest delay where g is not negative, else none."""
        return np.where(g < 0, 0.0, self.radius[:, None])

    def boundary(self, normal: Array) -> Array:
        """The largest delay: the only extreme point beside no delay at all."""
        return np.broadcast_to(self.radius[:, None], normal.shape).copy()

    def inside(self, normal: Array, uniform: Array) -> Array:
        """Every whole number from 0 to the radius is equally likely."""
        return np.minimum(np.floor(uniform * (self.radius[:, None] + 1)), self.radius[:, None])
