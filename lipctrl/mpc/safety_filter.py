"""Predictive safety filter: any policy acts, and only as far as a backup plan to a safe set still exists.

At the state x with the policy's wish v = pi(x) the filter solves

    minimise |u_0 - v|^2   over plans   x_{k+1} = f(x_k, u_k), limits for k = 1..N, x_N in the terminal set,

in the scales of the inputs, and applies u_0 (Wabersich and Zeilinger, "A predictive safety filter for learning-based
control of constrained nonlinear dynamical systems", Automatica 129, 2021). The terminal set is one that a backup policy
never leaves. So the plan of the last step, continued by the backup policy, is a plan for this step: from the first safe
plan on, the loop of model and filter respects all limits for ever, whatever the policy wishes and the solver returns.

No plan is believed because a solver says so: it is simulated, and counts only if that trajectory is inside all limits.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import FEASIBLE, GENERAL, SOLVERS, UNSAFE, call_solver, check_solver
from lipctrl.mpc.invariant import Polytope
from lipctrl.mpc.problem import OCP
from lipctrl.mpc.shooting import Programme, Trajectory, transcribe
from lipctrl.plant import Plant
from lipctrl.policy import Policy

Array = NDArray[np.float64]
Source = Literal["policy", "plan", "backup", "lost"]
# the solver's limits are this much tighter, in scaled units, so that its plans hold the real ones
MARGIN = 2 * FEASIBLE
UNCHANGED = 1e-6  # a change of the action by no more than this, in scaled units, is not an intervention


@dataclass(frozen=True)
class LevelSet:
    """The ellipsoid {x : (x - center)' P (x - center) <= level}, P (n, n) symmetric positive definite."""

    center: Array
    P: Array
    level: float

    def __post_init__(self) -> None:
        n = len(self.center)
        if self.P.shape != (n, n) or not np.allclose(self.P, self.P.T) or not np.linalg.eigvalsh(self.P).min() > 0:
            raise UserError(f"a level set needs a symmetric positive definite matrix of shape ({n}, {n})")
        if not 0 < self.level < np.inf:
            raise UserError(f"a level must be positive and finite, found {self.level}")

    def value(self, x: ArrayLike) -> Array:
        """(x - center)' P (x - center) of states (..., n), shape (...)."""
        deviation = np.asarray(x, np.float64) - self.center
        return np.asarray(np.einsum("...i,ij,...j->...", deviation, self.P, deviation))

    def contains(self, x: ArrayLike) -> NDArray[np.bool_]:
        """Whether states (..., n) are in the set."""
        return np.asarray(self.value(x) <= self.level)


def invariant_level(
    plant: Plant, backup: Policy, P: Array, *, largest: float, rng: np.random.Generator, samples: int = 20000
) -> LevelSet:
    """The largest level set about the equilibrium in whose samples the limits hold and the backup brings V down.

    An estimate, not a proof: between the samples nothing is known. For linear plants use
    `invariant.maximal_invariant_set`, which is exact.

    Args:
        plant: gives model and limits. backup: acts on the plant's state, on batches.
        P: matrix of V, shape (n, n). largest: level of the set that is searched.
        rng: draws the samples. samples: states, uniform in that set.

    Raises:
        UserError: no level is left.
    """
    whole = LevelSet(plant.equilibrium[0], P, largest)
    normal = rng.standard_normal((samples, len(P)))
    ball = normal / np.linalg.norm(normal, axis=1, keepdims=True) * rng.uniform(size=(samples, 1)) ** (1 / len(P))
    x = whole.center + np.sqrt(largest) * ball @ np.linalg.inv(np.linalg.cholesky(P))
    u = np.clip(backup.predict(x, deterministic=True)[0], plant.input.low, plant.input.high)
    inside = ((x >= plant.state.low) & (x <= plant.state.high)).all(1)
    V, after = whole.value(x), whole.value(plant.step(x, u))
    bad = ~inside | ~(after < V)  # written so that NaN is bad
    # the smallest value of a bad sample, less the gap that the finest samples leave
    level = largest if not bad.any() else 0.99 * float(V[bad].min())
    if level <= V.min():
        raise UserError("the backup policy brings V down in no level set about the equilibrium")
    return replace(whole, level=level)


@dataclass(frozen=True)
class Filtered:
    """What the filter did at one step.

    Attributes:
        proposed, action: of the policy, and applied, both (m,).
        change: their Euclidean distance in units of `OCP.u_scale`; infinite if the proposal is not finite.
        source: "policy" (its action is safe as it is), "plan" (the nearest safe action), "backup" (no new plan: the
            last one, continued, or the backup policy), "lost" (plant and model differ so much that no safe plan is
            known; the last plan is continued without a guarantee).
        plan: the backup that now exists, states (N+1, n) and inputs (N, m).
        wall_time: seconds. hidden: state of the policy, carried on.
    """

    proposed: Array
    action: Array
    change: float
    source: Source
    plan: Trajectory
    wall_time: float
    hidden: Any


def _same(observation: Array) -> Array:
    return observation


@dataclass(frozen=True, kw_only=True)
class SafetyFilter:
    """A policy around which a predictive safety filter stands. Pure: the plan travels in `predict`'s hidden state.

    Attributes:
        policy: any, it may be bad.
        plant: the model, on the plant's state.
        ocp: gives horizon, limits, scales and, for linear plants, the terminal set; its cost is not used.
        backup: never leaves the terminal set and keeps all limits there; stateless, acts on the plant's state.
        level_set: the terminal set of a nonlinear plant (then the OCP has none).
        solver: "sqpmethod-daqp", "sqpmethod-piqp" or "ipopt".
        state_of: state (n,) of the plant from one observation.

    Raises:
        UserError: no terminal set or two, a level set beyond the limits, soft limits, wrong sizes or solver.
    """

    policy: Policy
    plant: Plant
    ocp: OCP
    backup: Policy
    level_set: LevelSet | None = None
    solver: str = "sqpmethod-daqp"
    state_of: Callable[[Array], Array] = _same
    _programme: Programme = field(init=False, repr=False)
    _solve: ca.Function = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_solver(self.solver, dict.fromkeys(GENERAL), UNSAFE)
        if (self.ocp.terminal_set is None) == (self.level_set is None):
            raise UserError("a safety filter needs one terminal set: `ocp.terminal_set` or `level_set`")
        if self.ocp.soft is not None:
            raise UserError("a safety filter needs hard state limits, found soft ones")
        self.ocp.plain_limits("a safety filter")
        if self.level_set is not None:
            reach = np.sqrt(self.level_set.level * np.diag(np.linalg.inv(self.level_set.P)))
            beyond = (self.level_set.center - reach < self.ocp.x_low) | (
                self.level_set.center + reach > self.ocp.x_high
            )
            if beyond.any():
                raise UserError(f"the level set leaves the limits of state {int(np.flatnonzero(beyond)[0])}")
        programme = _nearest_action(transcribe(self.plant.update, _tightened(self.ocp)), self.level_set)
        plugin, options = SOLVERS[self.solver]
        options = {"print_time": False, "error_on_fail": False, **options}
        # the record is frozen for its users; these two are made here once
        object.__setattr__(self, "_programme", programme)
        object.__setattr__(self, "_solve", ca.nlpsol("safety_filter", plugin, programme.nlp, options))

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, tuple[Filtered, ...]]:
        """Action and hidden state; see `Policy.predict`.

        Args:
            observation: one (n,) or a batch (batch, n).
            state: the records that the last call returned, or None.
            episode_start: where true, the last plan is forgotten; shape () or (batch,), or None.
            deterministic: handed to the policy.

        Raises:
            UserError: no safe plan exists at a start, or numbers of observations, states and starts differ.
        """
        observations = np.asarray(observation, dtype=np.float64)
        rows = np.atleast_2d(observations)
        before: Sequence[Filtered | None] = [None] * len(rows) if state is None else list(state)
        fresh = np.zeros(len(rows), bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
        if len(before) != len(rows) or len(fresh) != len(rows):
            raise UserError(f"{len(rows)} observations came with {len(before)} hidden states and {len(fresh)} starts")
        records = tuple(
            self._filter(row, None if new else last, deterministic)
            for row, last, new in zip(rows, before, fresh, strict=True)
        )
        actions = np.array([record.action for record in records])
        return actions.reshape(*observations.shape[:-1], -1), records

    def _filter(self, observation: Array, last: Filtered | None, deterministic: bool) -> Filtered:
        begin, x = time.perf_counter(), np.asarray(self.state_of(observation), np.float64)
        hidden = None if last is None else last.hidden
        answer, hidden = self.policy.predict(observation, hidden, deterministic=deterministic)
        wish = np.asarray(answer, np.float64)
        if wish.shape != self.ocp.u_ref.shape or x.shape != self.ocp.x_ref.shape:
            raise UserError(
                f"the safety filter needs states of shape {self.ocp.x_ref.shape} and actions of shape "
                f"{self.ocp.u_ref.shape}, found {x.shape} and {wish.shape}"
            )
        source, plan = self._choose(x, wish, None if last is None else last.plan)
        action = plan[1][0]
        change = np.linalg.norm((action - wish) / self.ocp.u_scale) if np.isfinite(wish).all() else np.inf
        return Filtered(wish, action, float(change), source, plan, time.perf_counter() - begin, hidden)

    def _choose(self, x: Array, wish: Array, last: Trajectory | None) -> tuple[Source, Trajectory]:
        """The first safe plan among: the wish and then the backup, the nearest action, the last plan, the backup."""
        if np.isfinite(wish).all():
            plan = self._continue(x, np.clip(wish, self.ocp.u_low, self.ocp.u_high)[None])
            if (plan[1][0] == wish).all() and self.safe(plan):
                return "policy", plan
            plan = self._nearest(x, wish, plan)
            if self.safe(plan):
                return "plan", plan
        shifted = None if last is None else self._continue(x, last[1][1:])
        if shifted is not None and self.safe(shifted):
            return "backup", shifted
        backup = self._continue(x, np.empty((0, len(wish))))
        if self.safe(backup):
            return "backup", backup
        if shifted is None:
            raise UserError(f"no safe plan of {self.ocp.horizon} steps is known from the state {x}")
        return "lost", shifted

    def safe(self, plan: Trajectory) -> bool:
        """Whether a simulated plan is inside the state limits from its second state on and ends in the terminal set."""
        ocp, states = self.ocp, plan[0]
        held = (states[1:] >= ocp.x_low) & (states[1:] <= ocp.x_high)
        final = self.level_set if self.level_set is not None else ocp.terminal_set
        assert final is not None
        return bool(held.all() and final.contains(states[-1]))

    def _continue(self, x: Array, inputs: Array) -> Trajectory:
        """Inputs (k, m), k <= N, simulated from x and continued by the backup policy to N steps."""
        states, applied = [x], []
        for k in range(self.ocp.horizon):
            u = inputs[k] if k < len(inputs) else self.backup.predict(states[-1], deterministic=True)[0]
            applied.append(np.clip(np.asarray(u, np.float64), self.ocp.u_low, self.ocp.u_high))
            states.append(self.plant.step(states[-1], applied[-1]))
        return np.array(states), np.array(applied)

    def _nearest(self, x: Array, wish: Array, guess: Trajectory) -> Trajectory:
        """What the solver returns, simulated: not necessarily safe."""
        programme = self._programme
        if not all(np.isfinite(part).all() for part in guess):
            return guess
        p = np.concatenate([programme.parameter(x), (wish - self.ocp.u_ref) / self.ocp.u_scale])
        found, _ = call_solver(self._solve, programme, programme.pack(guess), p)
        return self._continue(x, programme.unpack(found)[1])


def _tightened(ocp: OCP) -> OCP:
    """The problem with limits and terminal set tighter by MARGIN."""
    dx, final = MARGIN * ocp.x_scale, ocp.terminal_set
    if final is not None:
        final = Polytope(final.H, final.h - MARGIN * np.linalg.norm(final.H * ocp.x_scale, axis=1))
    return replace(ocp, x_low=ocp.x_low + dx, x_high=ocp.x_high - dx, terminal_set=final)


def _nearest_action(programme: Programme, level_set: LevelSet | None) -> Programme:
    """The programme with the cost |u_0 - wish|^2, the wish as a further parameter, and x_N in the level set."""
    ocp, nlp = programme.ocp, programme.nlp
    z, wish = nlp["x"], ca.MX.sym("wish", len(ocp.u_ref))
    cost, rows, low, high = ca.sumsqr(z[programme.at_u[0].tolist()] - wish), nlp["g"], programme.lbg, programme.ubg
    if level_set is not None:
        deviation = ca.DM(ocp.x_ref - level_set.center) + ca.DM(ocp.x_scale) * z[programme.at_x[-1].tolist()]
        rows = ca.vertcat(rows, ca.bilin(ca.DM(level_set.P / level_set.level), deviation, deviation))
        low, high = np.append(low, -np.inf), np.append(high, 1 - 10 * FEASIBLE)
    p = ca.vertcat(nlp["p"], wish)
    function = ca.Function("rows", [z, p], [cost, rows])
    return replace(programme, nlp={"x": z, "p": p, "f": cost, "g": rows}, lbg=low, ubg=high, rows=function)


@dataclass(frozen=True)
class FilterLog:
    """A run under a filter.

    Attributes:
        share: of the steps at which the action was changed.
        mean, largest: change at those steps, in units of `OCP.u_scale`; 0 if there are none.
        sources: steps by where the action came from, see `Filtered`.
        interventions: their step numbers.
    """

    share: float
    mean: float
    largest: float
    sources: Mapping[str, int]
    interventions: tuple[int, ...]


def summarise(records: Sequence[Filtered]) -> FilterLog:
    """The log of one episode's records, in order.

    Raises:
        UserError: there are none.
    """
    if not records:
        raise UserError("a filter's log needs at least one step")
    changes = np.array([record.change for record in records])
    changed = changes > UNCHANGED
    sources = dict.fromkeys(("policy", "plan", "backup", "lost"), 0)
    for record in records:
        sources[record.source] += 1
    size = changes[changed]
    return FilterLog(
        share=float(changed.mean()),
        mean=float(size.mean()) if len(size) else 0.0,
        largest=float(size.max()) if len(size) else 0.0,
        sources=sources,
        interventions=tuple(np.flatnonzero(changed).tolist()),
    )
