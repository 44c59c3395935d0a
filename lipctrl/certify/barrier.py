"""The semidefinite program of LipSDP by a barrier method (numpy and LAPACK, no solver).

In the loop form of a network (see `loop_form`) the program of LipSDP (Fazlyab et al. 2019, arXiv 1906.04893), for any
slope intervals and group activations, is

    minimise sum(p)  over  M = diag(p spread over the inputs, 0) + sum_g mu_g B_g - Y'Y > 0,
    B_g = sum_{i in g} weight_i (e_i e_i' - T_i'T_i),

with one p for inputs measured in l2 and one per input for l_inf. It is solved by Newton's method on
sum(p) / t - logdet M while t falls. With G = M^-1 all derivatives come from G, GT' and TGT':

    d logdet M / d mu_i = G_ii - (TGT')_ii,   Hessian_ij = G_ij^2 - (GT')_ij^2 - (GT')_ji^2 + (TGT')_ij^2,

and since the rows of T of layer k end at that layer's columns, most of these products are small. mu > 0 needs no
constraint of its own: it follows from M > 0, from the last layer backwards. Every iterate is strictly feasible, and
on the central path sum(p) is within size(M) * t of the optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from lipctrl.certify.enclosure import Enclosure
from lipctrl.certify.lmi import smallest_rho
from lipctrl.certify.loop_form import LoopForm
from lipctrl.norms import Norm

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
SHRINK = (0.95, 0.9, 0.8, 0.6, 0.4, 0.25, 0.15, 0.1)  # relative reductions of t, tried in turn
CENTRED = 0.25  # squared Newton decrement that ends a stage
RIDGES = (1e-15, 1e-13, 1e-11, 1e-9, 1e-7)
STEPS = 400
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Program:
    """The semidefinite program in floating point.

    Attributes:
        T: per layer, its rows of T up to the columns that they reach. rows, ends: their row slices, column counts.
        gram: Y'Y. inputs: n_0.
        spread: (n_0, P) which p belongs to which input. select: (N, G) weights of the nonlinearities in the mu.
    """

    T: Sequence[Array]
    rows: Sequence[slice]
    ends: Sequence[int]
    gram: Array
    inputs: int
    spread: "sparse.csr_array"
    select: "sparse.csr_array"

    def affine(self, x: Array) -> Array:
        """M(x) + Y'Y for x = (p, mu): linear in x."""
        p, scale = self.spread @ x[: self.spread.shape[1]], self.select @ x[self.spread.shape[1] :]
        m = np.diag(np.concatenate([p, scale]))
        for t, rows, end in zip(self.T, self.rows, self.ends, strict=True):
            m[:end, :end] -= t.T @ (scale[rows, None] * t)
        return m

    def derivatives(self, g: Array) -> tuple[Array, Array]:
        """Gradient and Hessian of -logdet M at G = M^-1."""
        n0, count = self.inputs, len(g) - self.inputs
        gt, tgt = np.empty((len(g), count)), np.empty((count, count))
        for t, rows, end in zip(self.T, self.rows, self.ends, strict=True):
            gt[:, rows] = g[:, :end] @ t.T
        for t, rows, end in zip(self.T, self.rows, self.ends, strict=True):
            tgt[rows] = t @ gt[:end]
        slope = np.concatenate([np.diag(g)[:n0] @ self.spread, (np.diag(g)[n0:] - np.diag(tgt)) @ self.select])
        square = gt[n0:] ** 2
        inner = self.select.T @ (g[n0:, n0:] ** 2 - square - square.T + tgt**2) @ self.select
        cross = self.spread.T @ (g[:n0, n0:] ** 2 - gt[:n0] ** 2) @ self.select
        corner = self.spread.T @ g[:n0, :n0] ** 2 @ self.spread
        return -slope, np.block([[corner, cross], [cross.T, inner]])


def program_of(form: LoopForm, group: Groups, norm: Norm) -> Program:
    """The program of a loop form, without directions of l2 inputs that reach nothing."""
    T, Y, n0 = form.T.mid, form.Y.mid, form.inputs
    if norm == "l2" and n0 > 1:  # directions of dx that reach nothing need no columns
        reach = np.vstack([T[:, :n0], Y[:, :n0]])
        _, values, directions = np.linalg.svd(reach, full_matrices=False)
        directions = directions[values > 1e-12 * values.max()] if values.any() else directions[:1]
        T, Y = (np.hstack([a[:, :n0] @ directions.T, a[:, n0:]]) for a in (T, Y))
        n0 = len(directions)
    layers = [np.flatnonzero(form.layer == k) for k in np.unique(form.layer)]
    rows = [slice(int(i[0]), int(i[-1]) + 1) for i in layers]
    ends = [n0 + r.start for r in rows]
    return Program(
        [np.ascontiguousarray(T[r, :e]) for r, e in zip(rows, ends, strict=True)],
        rows,
        ends,
        Y.T @ Y,
        n0,
        sparse.csr_array(np.ones((n0, 1)) if norm == "l2" else np.eye(n0)),
        sparse.csr_array(_selection(form, group)),
    )


def _selection(form: LoopForm, group: Groups) -> Array:
    select = np.zeros((len(group), int(group.max(initial=-1)) + 1))
    select[np.arange(len(group)), group] = form.weight.mid
    return select


def _factor(m: Array) -> tuple[Array, float] | None:
    """Cholesky factor and logdet, or None if not positive definite."""
    factor, failed = lapack.dpotrf(m, lower=1)
    if failed or not np.isfinite(factor).all():
        return None
    return factor, 2 * float(np.log(np.diag(factor)).sum())


def _inverse(factor: Array) -> Array:
    lower = np.tril(lapack.dpotri(factor, lower=1)[0])
    return np.asarray(lower + np.tril(lower, -1).T)


def _newton_direction(gradient: Array, hessian: Array) -> Array:
    """-H^-1 g, with the smallest ridge that makes H numerically positive definite."""
    scale = 1 / np.sqrt(np.diag(hessian))
    scaled = scale[:, None] * hessian * scale
    for ridge in RIDGES:
        scaled[np.diag_indices(len(scaled))] = 1 + ridge
        factor, failed = lapack.dpotrf(scaled, lower=1)
        if not failed:
            return np.asarray(-scale * lapack.dpotrs(factor, scale * gradient, lower=1)[0])
    return np.asarray(-gradient * scale**2)


def _beyond(a: float) -> float:
    """How far along the prediction M must be positive before a step a is taken."""
    return min(1.25 * a, (1 + a) / 2)


def minimise(program: Program, x: Array, *, tolerance: float) -> Array:
    """Follow the central path from x = (p, mu) to a relative gap of `tolerance` in sum(p).

    Returns:
        A strictly feasible point; x itself if rounding hides that it is feasible.
    """
    inputs, size = program.spread.shape[1], len(program.gram)
    costs = np.concatenate([np.ones(inputs), np.zeros(len(x) - inputs)])
    m = program.affine(x) - program.gram
    state = _factor(m)
    if state is None:
        return x
    t, step, tried = float(costs @ x) / size, 1.0, 0
    for _ in range(STEPS):
        slope, hessian = program.derivatives(_inverse(state[0]))
        gradient = costs / t + slope
        direction = _newton_direction(gradient, hessian)
        gain = -float(gradient @ direction)
        if gain < CENTRED:
            if size * t <= tolerance * float(costs @ x):
                break
            # Along the path x(t), dx/dt = H^-1 c / t^2: predict x at (1 - a) t, well inside, then centre there.
            direction = _newton_direction(costs / t, hessian)
            change = program.affine(direction)
            inside = (k for k in range(tried, len(SHRINK)) if _factor(m + _beyond(SHRINK[k]) * change))
            chosen = next(inside, len(SHRINK) - 1)
            forward = _factor(m + SHRINK[chosen] * change)
            if forward:
                x, m, state = x + SHRINK[chosen] * direction, m + SHRINK[chosen] * change, forward
            t, step, tried = t * (1 - SHRINK[chosen]), 1.0, max(chosen - 2, 0)
            continue
        change, value = program.affine(direction), float(costs @ x) / t - state[1]
        while step > 1e-9:
            trial = _factor(m + step * change)
            if trial and float(costs @ (x + step * direction)) / t - trial[1] <= value - 0.1 * step * gain:
                break
            step /= 2
        else:
            break  # rounding: no descent left
        x, m, state, step = x + step * direction, m + step * change, trial, min(1.0, 2 * step)
    return x


def balanced(form: LoopForm) -> LoopForm:
    """The same inequality for units of the nonlinearities in which every argument has a row of length 1.

    With w = s w~ the form has T~ = T diag(1, s) / s, Y~ = Y diag(1, s) and weights s^2 times as large: the multipliers
    are the same, and neurons of very different sizes no longer spoil the arithmetic. Enclosures lose their radii.
    A row of zeros, whose multiplier would grow without end, is taken for a tiny multiple of the first input.
    """
    n0, T, Y = form.inputs, form.T.mid.copy(), form.Y.mid.copy()
    weight = form.weight.mid.copy()
    for k in np.unique(form.layer):
        rows = np.flatnonzero(form.layer == k)
        size = np.linalg.norm(T[rows], axis=1)
        T[rows[size == 0], 0] = tiny = NEGLIGIBLE * (size.max() or 1.0)
        size = np.where(size == 0, tiny, size)
        T[rows] /= size[:, None]
        T[:, n0 + rows] *= size
        Y[:, n0 + rows] *= size
        weight[rows] *= size**2
    return replace(form, T=Enclosure.exact(T), Y=Enclosure.exact(Y), weight=Enclosure.exact(weight))


def backward_start(form: LoopForm, group: Groups) -> Array:
    """Feasible multipliers, equal within a layer up to the weights: twice the least, from the last layer backwards."""
    n0, weight = form.inputs, form.weight.mid
    T, Y = form.T.mid[:, n0:], form.Y.mid[:, n0:]
    total, mu, level = Y.T @ Y, np.ones(int(group.max(initial=-1)) + 1), 0.0
    for k in np.unique(form.layer)[::-1]:
        rows = np.flatnonzero(form.layer == k)
        before = slice(0, rows[0])
        members, index, counts = np.unique(group[rows], return_inverse=True, return_counts=True)
        mean = np.bincount(index, weight[rows]) / counts
        relative = weight[rows] / mean[index]
        own = total[np.ix_(rows, rows)] / np.sqrt(relative) / np.sqrt(relative)[:, None]
        level = max(2 * float(np.linalg.eigvalsh(own)[-1]), 1e-9 * level, 1e-150)
        mu[members] = level / mean
        cross, scale = total[rows, before], level * relative
        total[before, before] += cross.T @ np.linalg.solve(np.diag(scale) - total[np.ix_(rows, rows)], cross)
        total[before, before] += T[rows, before].T @ (scale[:, None] * T[rows, before])
    return mu


def spread_out(form: LoopForm, group: Groups, mu: Array) -> Array:
    """Multipliers of the loop form from those of a coarser grouping."""
    result = np.zeros(form.multipliers)
    result[form.group] = mu[group]
    return result


def solve(form: LoopForm, group: Groups, norm: Norm, *, tolerance: float) -> tuple[Array, Array]:
    """Solve the program for a loop form.

    Args:
        form: the loop form. group: multiplier of each of its nonlinearities, shape (N,).
        norm: of the inputs: one p for l2, one per input for l_inf.
        tolerance: relative gap in sum(p), which is the squared bound.

    Returns:
        (p, mu): p of shape (1,) or (n_0,); mu in the scale and order of the form.
    """

    form = balanced(form)
    mu = backward_start(form, group)
    rho = smallest_rho(form, spread_out(form, group, mu))
    program = program_of(form, group, norm)
    inputs = program.spread.shape[1]
    if not np.isfinite(rho):  # weights so large that rounding hides the start: nothing will be proved
        return np.ones(inputs), spread_out(form, group, mu)
    x = np.concatenate([np.full(inputs, 1.3 * rho + 1e-150), mu])
    if form.Y.mid.any():  # else the optimum is zero, and no relative gap is ever small
        x = minimise(program, x, tolerance=tolerance)
    return x[:inputs], spread_out(form, group, x[inputs:])
