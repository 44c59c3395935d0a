"""Exact worst cases of linear loops under disturbances that are planned over the whole episode.

For x+ = A x + B u with u = -K (x + d_t), or a disturbance of the action or the state instead, and cost sum x'Qx + u'Ru
plus x_T'P x_T, the cost is a quadratic form of the stacked disturbances z = (d_0, .., d_{T-1}),

    cost = z'M z + 2 b'z + c,      M positive semidefinite,

so that its largest value under an energy budget is a trust-region problem (Moré and Sorensen, SIAM Journal on
Scientific and Statistical Computing 4, 1983, with the hard case), and under limits on every entry lies at a vertex.
With the optimal K the cross term b of the observation vanishes, and its worst case separates over time
(`lipctrl.attacks.oracle`).
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError

Array = NDArray[np.float64]
Channel = Literal["observation", "action", "disturbance"]
LARGEST = 16  # entries whose sign vectors are still enumerated
TAIL = 1e-14  # relative size of the impulse response at which a sum over it ends
LONGEST = 100_000  # steps of an impulse response


@dataclass(frozen=True)
class Quadratic:
    """z'M z + 2 b'z + c with symmetric M (k, k) and b (k,)."""

    M: Array
    b: Array
    c: float

    def __call__(self, z: ArrayLike) -> Array:
        """Values for z of shape (..., k)."""
        z = np.asarray(z, np.float64)
        return np.asarray(np.einsum("...i,ij,...j->...", z, self.M, z) + 2 * z @ self.b + self.c)

    def largest_in_ball(self, radius: float) -> tuple[float, Array]:
        """(value, z): the maximum over |z|_2 <= radius, exact up to rounding.

        z solves (l I - M) z = b with l >= max(0, largest eigenvalue) and |z| = radius, or lies inside where M is
        negative definite. In the hard case b has no part along the top eigenvector, which is added as far as it fits.
        """
        values, vectors = np.linalg.eigh(self.M)
        beta, top = vectors.T @ self.b, max(0.0, float(values[-1]))
        gaps = top - values  # l = top + mu, so that differences near the top keep their digits

        def length(mu: float) -> float:
            return float(np.linalg.norm(beta / (mu + gaps)))

        def at(coefficients: Array) -> tuple[float, Array]:
            z = vectors @ coefficients
            z = z * min(1.0, radius / max(float(np.linalg.norm(z)), 1e-300))  # rounding must not leave the ball
            return float(self(z)), z

        if radius == 0:
            return self.c, np.zeros_like(self.b)
        reached = gaps > 1e-13 * max(1.0, float(np.abs(values).max()))
        free = np.divide(beta, gaps, out=np.zeros_like(beta), where=reached)
        slack = radius**2 - float(free @ free)
        size = float(np.linalg.norm(beta))
        if slack >= 0 and np.abs(beta[~reached]).sum() <= 1e-14 * max(size, 1e-300):
            if not reached.all():
                free[np.flatnonzero(~reached)[-1]] = np.sqrt(slack)
            return at(free)
        # 1/|z| is nearly linear in mu, which makes the secular equation easy
        low, high = 1e-18 * max(size, top, 1e-300) / radius, size / radius
        mu = scipy.optimize.brentq(
            lambda m: 1 / length(m) - 1 / radius, min(low, high / 2), 2 * high, xtol=1e-300, rtol=1e-15
        )
        return at(beta / (mu + gaps))

    def largest_at_vertices(self, half: ArrayLike) -> tuple[float, Array]:
        """(value, z): the maximum over |z_i| <= half_i, where M is positive semidefinite: at a vertex.

        Raises:
            UserError: more than 16 entries, or an M that is not positive semidefinite.
        """
        size, limits = len(self.b), np.broadcast_to(np.asarray(half, np.float64), self.b.shape)
        if size > LARGEST:
            raise UserError(f"vertices are enumerated: at most {LARGEST} entries, not {size}")
        if np.linalg.eigvalsh(self.M)[0] < -1e-9 * max(1.0, np.abs(self.M).max()):
            raise UserError("the maximum is at a vertex only where M is positive semidefinite")
        vertices = limits * np.array(list(itertools.product((-1.0, 1.0), repeat=size)))
        found = self(vertices)
        return float(found.max()), np.asarray(vertices[int(found.argmax())])


@dataclass(frozen=True)
class LinearLoop:
    """x+ = A x + B u, u = -K (x + d), stage cost x'Qx + u'Ru, terminal cost x'Px; shapes as they must be."""

    A: Array
    B: Array
    K: Array
    Q: Array
    R: Array
    P: Array

    def cost(self, x0: ArrayLike, perturbations: Array) -> float:
        """The cost of one episode from x0 (n,) with observation perturbations (T, n)."""
        x, total = np.asarray(x0, np.float64), 0.0
        for d in perturbations:
            u = -self.K @ (x + d)
            total += float(x @ self.Q @ x + u @ self.R @ u)
            x = self.A @ x + self.B @ u
        return total + float(x @ self.P @ x)

    def stacked(self, x0: ArrayLike, steps: int, channel: Channel = "observation") -> Quadratic:
        """The cost as a quadratic form of the stacked disturbances (T k,) of a channel.

        "observation": u = -K (x + d); "action": u = -K x + d; "disturbance": x+ = A x + B u + d.
        """
        n, m, start = len(self.A), self.B.shape[1], np.asarray(x0, np.float64)
        to_input, to_state = {
            "observation": (-self.K, -self.B @ self.K),
            "action": (np.eye(m), self.B),
            "disturbance": (np.zeros((m, n)), np.eye(n)),
        }[channel]
        k, closed = to_input.shape[1], self.A - self.B @ self.K
        reached, drift = np.zeros((n, steps * k)), start  # x_t = drift + reached z
        M, b, c = np.zeros((steps * k, steps * k)), np.zeros(steps * k), 0.0

        def add(rows: Array, offset: Array, weight: Array) -> None:
            nonlocal M, b, c
            M, b, c = M + rows.T @ weight @ rows, b + rows.T @ weight @ offset, c + float(offset @ weight @ offset)

        for t in range(steps):
            here = np.zeros((k, steps * k))
            here[:, t * k : (t + 1) * k] = np.eye(k)
            add(reached, drift, self.Q)
            add(-self.K @ reached + to_input @ here, -self.K @ drift, self.R)
            reached, drift = closed @ reached + to_state @ here, closed @ drift
        add(reached, drift, self.P)
        return Quadratic((M + M.T) / 2, b, c)

    def held(self, x0: ArrayLike, steps: int, channel: Channel) -> Quadratic:
        """The cost as a quadratic form of one disturbance (k,) that is held over the episode."""
        whole = self.stacked(x0, steps, channel)
        hold = np.tile(np.eye(len(whole.b) // steps), (steps, 1))
        return Quadratic(hold.T @ whole.M @ hold, hold.T @ whole.b, whole.c)

    def displaced(self, x0: ArrayLike, steps: int) -> Quadratic:
        """The cost as a quadratic form of a displacement (n,) of the start state."""
        form, closed, start = self.P, self.A - self.B @ self.K, np.asarray(x0, np.float64)
        for _ in range(steps):
            form = self.Q + self.K.T @ self.R @ self.K + closed.T @ form @ closed
        return Quadratic(form, form @ start, float(start @ form @ start))


def finite_horizon_gain(A: Array, B: Array, C: Array, steps: int) -> float:
    """The largest |z|_2 / |w|_2 over `steps` steps of x+ = A x + B w, z = C x from rest: below the H-infinity norm.

    z_1..z_T count, so that the first input shows.
    """
    response = [C @ B]
    power = B
    for _ in range(steps - 1):
        power = A @ power
        response.append(C @ power)
    rows, columns = response[0].shape
    toeplitz = np.zeros((steps * rows, steps * columns))
    for i in range(steps):
        for j in range(i + 1):
            toeplitz[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = response[i - j]
    return float(np.linalg.norm(toeplitz, 2))


def peak_gains(A: Array, B: Array, C: Array) -> Array:
    """The largest |z_i| that |w_j| <= 1 for all j at all times can reach, (outputs,): l1 norms of impulse responses.

    Raises:
        UserError: the loop is not stable.
    """
    if not np.abs(np.linalg.eigvals(A)).max() < 1:
        raise UserError("peak gains need a stable loop: its spectral radius is not below 1")
    total, power = np.zeros(len(C)), B
    for _ in range(LONGEST):
        term = np.abs(C @ power).sum(1)
        total += term
        power = A @ power
        if np.abs(power).max() <= TAIL * max(1.0, float(total.max())):
            break
    return total
