"""Lipschitz-constrained regression on the data points themselves, solved exactly, and the policy that interpolates it.

    minimise over F   1/(2N) sum_i |f_v(i) - u_i|^2   subject to   |f_a - f_b| <= L |x_a - x_b| for all vertices a, b

(the graph problem of Al Makdah, Krishnan, Pasqualetti 2022, arXiv 2103.16629, whose multipliers are weights of a graph
Laplacian). Three differences: the saddle point is found by an interior-point method instead of integrating the saddle
flow; pairs are added until *all* of them hold, since edges to near neighbours alone bound the slope along the graph and
not across it; and values between the vertices come from McShane's envelopes, because the value of the nearest vertex is
not continuous. Exact, and not for large data: the baseline that networks are measured against.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import spsolve
from scipy.spatial import cKDTree

from lipctrl.files import UserError

Array = NDArray[np.float64]
Edges = NDArray[np.int64]
NEIGHBOURS = 5  # edges of each vertex at the start
CUTS = 3  # violated pairs added per vertex and round
BLOCK = 1000  # rows of pairs compared at once
LARGEST = 5000  # vertices
STEPS, ROUNDS = 100, 50
COMPLEMENTARITY = 1e-11  # duality gap at which a solution counts as found, relative to the labels' mean square


@dataclass(frozen=True)
class GraphFit:
    """The solution on the vertices.

    Attributes:
        points: vertices, the different observations, (V, n). values: F, (V, m).
        edges: pairs (E, 2) that were needed. multipliers: (E,), of (|f_a - f_b|^2 - L^2 |x_a - x_b|^2) / 2.
        lip: L. largest_slope: over all pairs. gap: duality gap in the unit of the loss.
        loss: 1/(2N) sum of squared residuals. worst_residual: largest |f - u|.
    """

    points: Array
    values: Array
    edges: Edges
    multipliers: Array
    lip: float
    largest_slope: float
    gap: float
    loss: float
    worst_residual: float


def fit(observations: Array, labels: Array, lip: float, *, tolerance: float = 1e-7) -> GraphFit:
    """Solve the problem with every pair of vertices respected to a relative tolerance.

    Args:
        observations: (N, n); equal ones share a vertex. labels: (N, m). lip: L.
        tolerance: of the largest slope over all pairs, relative to L.

    Raises:
        UserError: shapes do not match, L is not positive, more than 5000 vertices, or no convergence.
    """
    if observations.ndim != 2 or labels.ndim != 2 or len(observations) != len(labels):
        raise UserError(f"fit needs observations (N, n) and labels (N, m), found {observations.shape}, {labels.shape}")
    if not (np.isfinite(lip) and lip > 0):
        raise UserError(f"lip must be a positive finite number, found {lip}")
    points, vertex = np.unique(observations, axis=0, return_inverse=True)
    if len(points) > LARGEST:
        raise UserError(f"the exact fit takes at most {LARGEST} different observations, found {len(points)}")
    vertex = vertex.ravel()
    weight = np.bincount(vertex) / len(labels)
    mean = np.stack([np.bincount(vertex, u) for u in labels.T], 1) / np.bincount(vertex)[:, None]
    problem = _Problem(points, mean, weight, lip)
    edges, values = _neighbours(points), np.tile(labels.mean(0), (len(points), 1))
    for _ in range(ROUNDS):
        values, multipliers, gap = problem.solve(edges, values)
        slope, cuts = _violated(points, values, lip * (1 + tolerance))
        if not len(cuts):
            residual = labels - values[vertex]
            loss = float((residual**2).sum() / 2 / len(labels))
            worst = float(np.linalg.norm(residual, axis=1).max())
            return GraphFit(points, values, edges, multipliers, lip, slope, gap, loss, worst)
        needed = edges[multipliers > 1e-12 * multipliers.max(initial=0.0)] if len(edges) else edges
        edges = np.unique(np.vstack([needed, _neighbours(points), cuts]), axis=0)
    raise UserError(f"the exact fit did not respect all pairs after {ROUNDS} rounds (largest slope {slope:.9g})")


def _neighbours(points: Array) -> Edges:
    if len(points) < 2:
        return np.zeros((0, 2), np.int64)
    count = min(NEIGHBOURS + 1, len(points))
    others = cKDTree(points).query(points, count)[1][:, 1:]
    pairs = np.stack([np.repeat(np.arange(len(points)), count - 1), others.ravel()], 1)
    return np.unique(np.sort(pairs, 1), axis=0)


def _violated(points: Array, values: Array, limit: float) -> tuple[float, Edges]:
    """The largest slope of all pairs, and for each vertex its steepest pairs above the limit."""
    largest, found = 0.0, [np.zeros((0, 2), np.int64)]
    for start in range(0, len(points), BLOCK):
        rows = slice(start, start + BLOCK)
        distance = np.linalg.norm(points[rows, None] - points, axis=-1)
        slopes = np.linalg.norm(values[rows, None] - values, axis=-1) / np.where(distance > 0, distance, np.inf)
        largest = max(largest, float(slopes.max()))
        steepest = np.argsort(-slopes, axis=1)[:, :CUTS]
        above = np.take_along_axis(slopes, steepest, 1) > limit
        own = np.broadcast_to(np.arange(start, start + len(slopes))[:, None], steepest.shape)
        found.append(np.stack([own[above], steepest[above]], 1))
    return largest, np.unique(np.sort(np.vstack(found), 1), axis=0)


@dataclass(frozen=True)
class _Problem:
    """The convex programme on given edges, in the values at the vertices.

    With g_e = (|f_a - f_b|^2 - L^2 d^2) / 2 <= 0, slacks s and multipliers w, the conditions are
    weight (F - mean) + Laplacian(w) F = 0, s + g = 0, s w = mu, and mu goes to zero (primal-dual interior point).
    """

    points: Array
    mean: Array
    weight: Array
    lip: float

    def solve(self, edges: Edges, start: Array) -> tuple[Array, Array, float]:
        """Values, multipliers and duality gap; `start` is pulled towards its mean until it is strictly feasible."""
        reach = self.lip * np.linalg.norm(self.points[edges[:, 0]] - self.points[edges[:, 1]], axis=1)
        incidence = self._incidence(edges)
        centre = self.weight @ self.mean
        steepest = float((np.linalg.norm(incidence @ start, axis=1) / reach).max(initial=0.0))
        values = centre + (start - centre) * min(1.0, 0.9 / steepest if steepest > 0 else 1.0)
        scale = float((self.weight[:, None] * (self.mean - centre) ** 2).sum()) or 1.0
        slack = (reach**2 - ((incidence @ values) ** 2).sum(1)) / 2
        multipliers = scale / max(len(edges), 1) / slack
        for _ in range(STEPS):
            values, slack, multipliers = self._step(incidence, reach, values, slack, multipliers)
            gap = float(slack @ multipliers)
            if gap <= COMPLEMENTARITY * scale:
                return values, multipliers, gap
        raise UserError(f"the exact fit did not converge in {STEPS} steps (duality gap {gap:.3g})")

    def _incidence(self, edges: Edges) -> sparse.csr_array:
        count = len(edges)
        rows, ones = np.repeat(np.arange(count), 2), np.tile([1.0, -1.0], count)
        return sparse.csr_array((ones, (rows, edges.ravel())), shape=(count, len(self.points)))

    def _step(
        self, incidence: sparse.csr_array, reach: Array, values: Array, slack: Array, multipliers: Array
    ) -> tuple[Array, Array, Array]:
        """One Newton step to a tenth of the present gap, as long as slacks and multipliers stay positive."""
        m, count = values.shape[1], max(len(slack), 1)
        difference = incidence @ values
        dual = self.weight[:, None] * (values - self.mean) + incidence.T @ (multipliers[:, None] * difference)
        primal = slack + ((difference**2).sum(1) - reach**2) / 2
        centring = 0.1 * float(slack @ multipliers) / count - slack * multipliers
        gradient = sparse.hstack([sparse.diags_array(difference[:, k]) @ incidence for k in range(m)]).tocsr()
        laplacian = incidence.T @ sparse.diags_array(multipliers) @ incidence + sparse.diags_array(self.weight)
        hessian = sparse.block_diag([laplacian] * m) + gradient.T @ sparse.diags_array(multipliers / slack) @ gradient
        right = -dual.T.ravel() - gradient.T @ ((centring + multipliers * primal) / slack)
        moved = spsolve(hessian.tocsc(), right)
        slack_step = -primal - gradient @ moved
        multiplier_step = (centring - multipliers * slack_step) / slack
        length = min(1.0, 0.99 * _room(slack, slack_step), 0.99 * _room(multipliers, multiplier_step))
        return (
            values + length * moved.reshape(m, -1).T,
            slack + length * slack_step,
            multipliers + length * multiplier_step,
        )


def _room(value: Array, step: Array) -> float:
    """The longest step that keeps positive values nonnegative."""
    falling = step < 0
    return float((value[falling] / -step[falling]).min(initial=np.inf))


@dataclass(frozen=True)
class MidpointPolicy:
    """The middle of McShane's envelopes min_i v_i + L |x - x_i| and max_i v_i - L |x - x_i|, component by component.

    Each component is L-Lipschitz whatever the values; where they respect L it passes through them. In the l2 norm of m
    components the constant is sqrt(m) L. For scalar labels of an L-Lipschitz expert it is the best guess possible: the
    expert lies between the envelopes, and half their distance bounds the error.

    Attributes:
        points: (V, n). values: (V, m), labels or the fit's values. component_lip: L. noise: bound of the labels' error.
    """

    points: Array
    values: Array
    component_lip: float
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.values.ndim != 2 or len(self.points) != len(self.values):
            raise UserError(
                f"a midpoint policy needs points and values, found {self.points.shape}, {self.values.shape}"
            )
        if not (np.isfinite(self.component_lip) and self.component_lip > 0 and self.noise >= 0):
            raise UserError(f"lip must be positive and noise not negative, found {self.component_lip}, {self.noise}")

    @property
    def lip(self) -> float:
        """Lipschitz constant in the l2 norm."""
        return float(np.sqrt(self.values.shape[1]) * self.component_lip)

    def envelopes(self, x: Array) -> tuple[Array, Array]:
        """Lower and upper envelope (batch, m) at states (batch, n)."""
        lower, upper = np.zeros((2, len(x), self.values.shape[1]))
        for start in range(0, len(x), BLOCK):
            rows = slice(start, start + BLOCK)
            reach = self.component_lip * np.linalg.norm(x[rows, None] - self.points, axis=-1)[..., None] + self.noise
            lower[rows], upper[rows] = (self.values - reach).max(1), (self.values + reach).min(1)
        return lower, upper

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """See `Policy.predict`."""
        x = np.asarray(observation, dtype=np.float64)
        lower, upper = self.envelopes(np.atleast_2d(x))
        return ((lower + upper) / 2).reshape(*x.shape[:-1], -1), state
