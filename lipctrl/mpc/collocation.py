"""Direct collocation: the continuous equations hold at the Radau points of every sampling period, for stiff plants.

Radau IIA with s points is of order 2s-1 and L-stable (Hairer and Wanner, "Solving Ordinary Differential Equations II",
section IV.5). Its last point is the end of the period, so that x_{k+1} is the last collocation state.
"""

from dataclasses import dataclass
from functools import cached_property

import casadi as ca
import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.plant import Plant

Array = NDArray[np.float64]
POINTS = 3  # per sampling period: fifth order


@dataclass(frozen=True)
class Collocation:
    """One sampling period of dx/dt = ode(x, u, w), input and disturbance held.

    Attributes:
        ode: function (x, u, w) -> dx/dt. dt: the period.
    """

    ode: ca.Function
    dt: float

    @cached_property
    def points(self) -> Array:
        """The collocation points inside the period as shares of it, shape (POINTS,); the last is 1."""
        return np.array(ca.collocation_points(POINTS, "radau"))

    @cached_property
    def slopes(self) -> Array:
        """Entry (j, i): derivative at point i+1 of the polynomial that is 1 at node j (the start is node 0)."""
        nodes = np.append(0.0, self.points)
        slopes = np.empty((POINTS + 1, POINTS))
        for j in range(POINTS + 1):
            others = np.delete(nodes, j)
            basis = np.poly1d(others, r=True) / np.prod(nodes[j] - others)
            slopes[j] = np.polyder(basis)(self.points)
        return slopes

    def residuals(self, start: ca.MX, inner: list[ca.MX], end: ca.MX, u: ca.MX, w: ca.MX) -> ca.MX:
        """What must vanish: polynomial slope minus dt times the right-hand side at every point, (POINTS n,)."""
        nodes, rows = [start, *inner, end], []
        for i in range(POINTS):
            slope = sum((self.slopes[j, i] * node for j, node in enumerate(nodes)), ca.MX(0))
            rows.append(slope - self.dt * self.ode(nodes[i + 1], u, w))
        return ca.vertcat(*rows)


def collocation_of(plant: Plant) -> Collocation:
    """The collocation of a plant's own equations.

    Raises:
        UserError: the plant is discrete by nature.
    """
    if plant.ode is None:
        raise UserError(f"collocation needs a plant in continuous time; {plant.name} is discrete")
    return Collocation(plant.ode, plant.dt)
