"""Attacks that plan the perturbations of a whole episode ahead, on plants whose equations are known.

A greedy attack moves the action now; a planned one may spend its budget where it hurts later. Two searches over the
sequence d_0..d_{T-1}, from one start state: gradients through plant and policy (the adjoint recursion), and the
cross-entropy method, which needs neither. Both return a witness: a sequence inside the set, and its cost.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.attacks.attack import Cost
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError
from lipctrl.norms import Norm
from lipctrl.plant import Plant
from lipctrl.policy import PlainPolicy, Policy

Array = NDArray[np.float64]
Budget = Literal["step", "episode"]
StageCost = Callable[[ca.SX, ca.SX], ca.SX]


@dataclass(frozen=True)
class Sequences:
    """The admissible sequences (T, n): every step within a radius, or the whole episode within one l2 budget.

    Attributes:
        budget: "step" or "episode". norm: of a step; "l2" for an episode. radius: in units of `scale`, one for all
            sequences of a batch or one each, (batch,).
        scale: raw units per unit, (n,). steps: T.

    Raises:
        UserError: an episode's budget in another norm than l2.
    """

    budget: Budget
    norm: Norm
    radius: float | Array
    scale: Array
    steps: int

    def __post_init__(self) -> None:
        if self.budget == "episode" and self.norm != "l2":
            raise UserError(f"a budget over the episode is an energy: norm l2, not {self.norm}")

    def _rows(self, d: Array) -> tuple[Ball, Array]:
        """The ball and the rows that must each lie in it, for sequences (batch, T, n)."""
        n = len(self.scale)
        rows = d.reshape(-1, n) if self.budget == "step" else d.reshape(len(d), -1)
        scale = self.scale if self.budget == "step" else np.tile(self.scale, self.steps)
        radius = np.broadcast_to(np.asarray(self.radius, np.float64), len(d))
        return Ball(self.norm, np.repeat(radius, len(rows) // len(d)), scale), rows

    def contains(self, d: Array) -> bool:
        """Whether all sequences (batch, T, n) are admissible, up to 1e-6 relative."""
        ball, rows = self._rows(d)
        return ball.contains(rows)

    def project(self, d: Array) -> Array:
        """The nearest admissible sequences in scaled coordinates, (batch, T, n)."""
        ball, rows = self._rows(d)
        return ball.project(rows).reshape(d.shape)

    def linear_maximiser(self, g: Array) -> Array:
        """The admissible sequences with the largest sum of g d, for gradients (batch, T, n)."""
        ball, rows = self._rows(g)
        return ball.linear_maximiser(rows).reshape(g.shape)


@dataclass(frozen=True)
class Episode:
    """A closed loop whose total cost is attacked: x+ = f(x, u), u = clip(pi(x + d)), from x0 over T steps.

    Attributes:
        plant: equations. policy: of the plant's state, without hidden state.
        x0: start (n,) of all sequences, or one each (batch, n).
        stage, terminal: costs l(x, u) and l_T(x) as expressions of CasADi symbols.
    """

    plant: Plant
    policy: Policy
    x0: Array
    stage: StageCost
    terminal: Callable[[ca.SX], ca.SX]
    spent: Cost = field(default_factory=Cost)

    @cached_property
    def _functions(self) -> tuple[ca.Function, ca.Function, ca.Function, ca.Function]:
        x, u = ca.SX.sym("x", len(self.plant.state)), ca.SX.sym("u", len(self.plant.input))
        after = self.plant.update(x, u, ca.DM.zeros(len(self.plant.disturbance)))
        cost, end = self.stage(x, u), self.terminal(x)
        step = ca.Function("step", [x, u], [after, cost])
        adjoint = ca.SX.sym("a", len(self.plant.state))
        # gradients of l + a'f, which is all that the adjoint recursion needs
        total = cost + ca.dot(adjoint, after)
        slopes = ca.Function("slopes", [x, u, adjoint], [ca.gradient(total, x), ca.gradient(total, u)])
        return step, slopes, ca.Function("end", [x], [end]), ca.Function("slope", [x], [ca.gradient(end, x)])

    def _run(self, d: Array) -> tuple[Array, list[Array], list[Array]]:
        """Costs (batch,), states before each step and at the end, applied inputs."""
        step, _, end, _ = self._functions
        x, total = np.broadcast_to(self.x0, (len(d), self.x0.shape[-1])), np.zeros(len(d))
        states, inputs = [x], []
        for t in range(d.shape[1]):
            u = np.asarray(self.policy.predict(x + d[:, t])[0], np.float64)
            inputs.append(np.clip(u, self.plant.input.low, self.plant.input.high))
            after, cost = step(x.T, inputs[-1].T)
            x, total = np.asarray(after, np.float64).T, total + np.asarray(cost, np.float64).ravel()
            states.append(x)
        self.spent.evaluations += d.shape[0] * d.shape[1]
        return total + np.asarray(end(x.T), np.float64).ravel(), states, inputs

    def cost(self, d: Array) -> Array:
        """Total costs (batch,) of sequences of perturbations (batch, T, n)."""
        return self._run(d)[0]

    def gradient(self, d: Array) -> tuple[Array, Array]:
        """Costs (batch,) and their gradients with respect to the perturbations (batch, T, n).

        Where an input is clipped the gradient through it is zero.

        Raises:
            UserError: the policy is no network.
        """
        if not isinstance(self.policy, PlainPolicy):
            raise UserError("a search by gradients needs the gradient of the policy: a network")
        total, states, inputs = self._run(d)
        _, slopes, _, last = self._functions
        adjoint, found = np.asarray(last(states[-1].T), np.float64).T, np.zeros_like(d)
        low, high = np.array(self.plant.input.low), np.array(self.plant.input.high)
        for t in reversed(range(d.shape[1])):
            parts = slopes(states[t].T, inputs[t].T, adjoint.T)
            to_state, to_input = (np.asarray(part, np.float64).T for part in parts)
            y, J = self.policy.net.linearised(states[t] + d[:, t])
            to_input = np.where((y > low) & (y < high), to_input, 0.0)
            found[:, t] = np.einsum("bm,bmn->bn", to_input, J)
            adjoint = to_state + found[:, t]
        self.spent.jacobians += d.shape[0] * d.shape[1]
        return total, found


@dataclass(frozen=True)
class Found:
    """The worst sequence that a search found, (T, n), and the cost that it causes."""

    sequence: Array
    cost: float


def ascend(episode: Episode, allowed: Sequences, d: Array, *, iterations: int, tolerance: float = 1e-13) -> Array:
    """Sequences (batch, T, n), each moved towards the maximiser of its linearised cost as long as its cost rises.

    The whole way on a convex cost, where it is a power iteration; where a step does not raise the cost it is halved.
    """
    share = np.ones(len(d))
    cost, gradient = episode.gradient(d)
    for _ in range(iterations):
        goal = allowed.linear_maximiser(gradient)
        trial = d + share[:, None, None] * (goal - d)  # between admissible sequences, which are a convex set
        after, slope = episode.gradient(trial)
        better = after > cost
        small = np.where(better, after - cost, 0) <= tolerance * np.maximum(1.0, np.abs(cost))
        d, gradient = np.where(better[:, None, None], trial, d), np.where(better[:, None, None], slope, gradient)
        cost, share = np.where(better, after, cost), np.where(better, np.minimum(1.0, 2 * share), share / 2)
        if (small & (better | (share < 1e-6))).all():
            break
    return d


@dataclass(frozen=True)
class PlannedGradient:
    """`ascend` from random starts in opposite pairs and from zero; the best of all counts."""

    iterations: int = 200
    restarts: int = 8
    tolerance: float = 1e-13

    def search(self, episode: Episode, allowed: Sequences, *, seed: int) -> Found:
        """The worst sequence found."""
        rng, n = np.random.default_rng(seed), len(episode.x0)
        draws = rng.standard_normal((self.restarts, allowed.steps, n))
        pairs = [allowed.linear_maximiser(sign * draws) for sign in (1, -1)]
        d = np.concatenate([*pairs, np.zeros((1, *draws.shape[1:]))])
        found = ascend(episode, allowed, d, iterations=self.iterations, tolerance=self.tolerance)
        return _best(episode, allowed, found)


@dataclass(frozen=True)
class PlannedCrossEntropy:
    """The cross-entropy method (Rubinstein and Kroese, 2004) over sequences: no gradients, any policy."""

    population: int = 200
    elite: int = 20
    generations: int = 60
    smoothing: float = 0.3

    def search(self, episode: Episode, allowed: Sequences, *, seed: int) -> Found:
        """The worst sequence found."""
        rng, n = np.random.default_rng(seed), len(episode.x0)
        shape = (allowed.steps, n)
        mean = np.zeros(shape)
        deviation = np.broadcast_to(allowed.radius * allowed.scale, shape).copy()
        best, highest = np.zeros((1, *shape)), -np.inf
        for _ in range(self.generations):
            d = allowed.project(mean + deviation * rng.standard_normal((self.population, *shape)))
            d[0] = best[0]
            cost = episode.cost(d)
            order = np.argsort(-cost)[: self.elite]
            if cost[order[0]] > highest:
                highest, best = float(cost[order[0]]), d[order[:1]]
            mean = self.smoothing * mean + (1 - self.smoothing) * d[order].mean(0)
            deviation = self.smoothing * deviation + (1 - self.smoothing) * d[order].std(0)
        return _best(episode, allowed, best)


def _best(episode: Episode, allowed: Sequences, d: Array) -> Found:
    """The worst of some sequences, with its membership and its cost computed again."""
    cost = episode.cost(d)
    worst = d[int(np.argmax(cost))][None]
    assert allowed.contains(worst), "a search left its set"
    return Found(worst[0], float(episode.cost(worst)[0]))


def quadratic_costs(
    Q: ArrayLike, R: ArrayLike, P: ArrayLike, x_ref: ArrayLike, u_ref: ArrayLike
) -> tuple[StageCost, Callable[[ca.SX], ca.SX]]:
    """Stage and terminal cost |x - x_ref|_Q^2 + |u - u_ref|_R^2 and |x - x_ref|_P^2."""
    weights = [ca.DM(np.asarray(w, np.float64)) for w in (Q, R, P)]
    x_e, u_e = ca.DM(np.asarray(x_ref, np.float64)), ca.DM(np.asarray(u_ref, np.float64))
    return (
        lambda x, u: ca.bilin(weights[0], x - x_e, x - x_e) + ca.bilin(weights[1], u - u_e, u - u_e),
        lambda x: ca.bilin(weights[2], x - x_e, x - x_e),
    )
