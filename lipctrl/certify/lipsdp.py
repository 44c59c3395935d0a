"""LipSDP by a barrier method: the multipliers that give the smallest bound (numpy and LAPACK, no solver).

In the loop form of a network (see `loop_form`) the semidefinite program of LipSDP (Fazlyab et al. 2019, arXiv
1906.04893), for any slope intervals and group activations, is

    minimise sum(p)  over  M = diag(p spread over the inputs, 0) + sum_g mu_g B_g - Y'Y > 0,
    B_g = sum_{i in g} weight_i (e_i e_i' - T_i'T_i),

with one p for inputs measured in l2 and one per input for l_inf. It is solved by Newton's method on
sum(p) / t - logdet M while t falls. With G = M^-1 all derivatives come from G, GT' and TGT':

    d logdet M / d mu_i = G_ii - (TGT')_ii,   Hessian_ij = G_ij^2 - (GT')_ij^2 - (GT')_ji^2 + (TGT')_ij^2,

and since the rows of T of layer k end at that layer's columns, most of these products are small. mu > 0 needs no
constraint of its own: it follows from M > 0, from the last layer backwards. Every iterate is strictly feasible, and
on the central path sum(p) is within size(M) * t of the optimum.

Modes: "neuron" has one multiplier per nonlinearity (or group), "layer" one per layer. The variant of the paper that
couples neurons is unsound (a ReLU counterexample is in the tests) and is not offered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.eclipse import fast_multipliers
from lipctrl.certify.lmi import certify_with, own_multipliers, slopes_on, smallest_rho
from lipctrl.certify.loop_form import LoopForm, loop_form
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

Array = NDArray[np.float64]
Mode = Literal["neuron", "layer"]
TOLERANCE = 1e-7  # relative gap in bound^2
SHRINK = 0.1  # of t per stage
CENTRED = 0.25  # squared Newton decrement that ends a stage
INSIDE = 1.3  # ratio of successive layers' multipliers, relative to a start that may be on the boundary
RIDGES = (1e-15, 1e-13, 1e-11, 1e-9, 1e-7)
STEPS = 40  # per stage: more means that rounding in the Hessian has stopped the progress


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


def _program(form: LoopForm, group: NDArray[np.int64], norm: Norm) -> Program:
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


def _selection(form: LoopForm, group: NDArray[np.int64]) -> Array:
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
    t, step, stage = float(costs @ x) / size, 1.0, 0
    while stage < STEPS:
        stage += 1
        slope, hessian = program.derivatives(_inverse(state[0]))
        direction = _newton_direction(costs / t + slope, hessian)
        if -float((costs / t + slope) @ direction) < CENTRED:
            if size * t <= tolerance * float(costs @ x):
                break
            # From the centre, the next Newton step points along the path but is 1 / SHRINK - 1 times too long.
            t, step, stage = t * SHRINK, SHRINK, 0
            direction = _newton_direction(costs / t + slope, hessian)
        gain = -float((costs / t + slope) @ direction)
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


def dominant_start(form: LoopForm, group: NDArray[np.int64]) -> Array:
    """Multipliers that make the block of the nonlinearities diagonally dominant, from the last layer backwards."""
    n0 = form.inputs
    T, Y = form.T.mid[:, n0:], form.Y.mid[:, n0:]
    total, mu = Y.T @ Y, np.ones(int(group.max(initial=-1)) + 1)
    floor = 1e-3 * max(float(np.abs(total).sum(1).max(initial=0.0)), 1e-150)
    for k in np.unique(form.layer)[::-1]:
        rows = np.flatnonzero(form.layer == k)
        needed = (2 * np.abs(total[rows]).sum(1) + floor) / form.weight.mid[rows]
        members, index = np.unique(group[rows], return_inverse=True)
        largest = np.zeros(len(members))
        np.maximum.at(largest, index, needed)
        mu[members] = largest
        total += T[rows].T @ ((form.weight.mid[rows] * largest[index])[:, None] * T[rows])
    return mu


def _start(net: PlainNet, form: LoopForm, group: NDArray[np.int64], norm: NormPair) -> Array:
    """The best of the known feasible multipliers, moved inside, one per group."""
    leader = np.unique(group, return_index=True)[1]
    depth = len(net.activations) + 1 - form.layer[leader]
    candidates = [dominant_start(form, group)]
    for found in (fast_multipliers(net, form, norm), own_multipliers(net, form)):
        if found is not None:
            candidates.append(found[form.group][leader] * INSIDE**depth)
    return min(candidates, key=lambda mu: smallest_rho(form, spread_out(form, group, mu)))


def spread_out(form: LoopForm, group: NDArray[np.int64], mu: Array) -> Array:
    """Multipliers of the loop form from those of a coarser grouping."""
    result = np.zeros(form.multipliers)
    result[form.group] = mu[group]
    return result


def grouping(form: LoopForm, mode: Mode) -> NDArray[np.int64]:
    """Multiplier of each nonlinearity, shape (N,)."""
    if mode == "neuron" or not len(form.layer):
        return form.group
    return np.asarray(np.unique(form.layer, return_inverse=True)[1], dtype=np.int64)


def best_multipliers(
    net: PlainNet, form: LoopForm, norm: NormPair, *, mode: Mode = "neuron", tolerance: float = TOLERANCE
) -> tuple[Array, Array]:
    """Solve the program of LipSDP on a loop form.

    Args:
        net: the network that the form is of (for the start). form: its loop form, possibly with fewer outputs.
        norm: decides between one p (inputs in l2) and one per input (l_inf).
        tolerance: relative gap in sum(p) = bound^2.

    Returns:
        (p, mu): p has shape (1,) for l2 and (n_0,) for l_inf inputs; mu is in the scale of the form.
    """
    group = grouping(form, mode)
    mu = _start(net, form, group, norm)
    rho = 1.3 * smallest_rho(form, spread_out(form, group, mu)) + 1e-150
    program = _program(form, group, norm.input)
    inputs = program.spread.shape[1]
    x = minimise(program, np.concatenate([np.full(inputs, rho), mu]), tolerance=tolerance)
    return x[:inputs], spread_out(form, group, x[inputs:])


def lipsdp(
    net: PlainNet,
    norm: NormPair,
    region: Box | None = None,
    *,
    mode: Mode = "neuron",
    tolerance: float = TOLERANCE,
) -> Certificate | None:
    """The LipSDP certificate (l2 -> l2), everywhere or with the slopes that hold on a region.

    Returns:
        The certificate, or None for other norms and where rounding lets no proof through.
    """
    if (norm.input, norm.output) != ("l2", "l2"):
        return None
    form = loop_form(net, norm, slopes_on(net, region))
    mu = best_multipliers(net, form, norm, mode=mode, tolerance=tolerance)[1]
    return certify_with(net, form, mu, method=f"lipsdp-{mode}", norm=norm, region=region)
