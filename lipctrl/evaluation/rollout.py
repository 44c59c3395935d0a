"""Batched closed loops: one policy under one attack, every radius with the same episodes (common random numbers)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks import Attack, Context, Cost
from lipctrl.attacks.threat import Threat
from lipctrl.disturb.budget import Purse
from lipctrl.disturb.sets import Ball
from lipctrl.disturb.wrapper import DisturbanceWrapper
from lipctrl.evaluation.measures import Measures
from lipctrl.evaluation.stepping import OneByOne, Stepper
from lipctrl.files import UserError
from lipctrl.policy import Playback, Policy, SolvingPolicy
from lipctrl.seeding import generator, seed_of

Array = NDArray[np.float64]
BEYOND = 1e-6  # of the range of an action: what rounding and the tolerance of a solver may add to its limits


@dataclass(frozen=True)
class Trace:
    """One recorded episode: observations as the environment returns them (late ones where it delays them) and as the
    policy sees them (T, n), actions of the policy (T, m), the observation after the last step, the disturbances that
    were applied, (T, k) or (1, k) where the channel acts once per episode, and the number of the episode, from 0."""

    observations: Array
    seen: Array
    actions: Array
    last: Array
    disturbances: Array
    episode: int


MEASURED = ("roughness", "saturated", "tracking", "violation", "fallbacks", "iterations")
ARRAYS = ("radii", "returns", "lengths", "terminated", "deviation", *MEASURED, "final")


@dataclass(frozen=True)
class Rollouts:
    """Closed loops of R radii times E episodes.

    Attributes:
        radii: (R,). returns, lengths, terminated, deviation: (R, E); deviation is the largest |pi(s+d) - pi(s)| met,
            0 where the observation is not attacked.
        roughness, saturated, tracking, violation, fallbacks, iterations: (R, E), see `Measures`.
        final: observations after the last step, (R, E, n).
        traces: of one episode at every radius, by default the first. worst: of that with the lowest return.
        cost: what the attack spent.
    """

    radii: Array
    returns: Array
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    deviation: Array
    roughness: Array
    saturated: Array
    tracking: Array
    violation: Array
    fallbacks: Array
    iterations: Array
    final: Array
    traces: tuple[Trace, ...]
    worst: tuple[Trace, ...]
    cost: Cost

    def at(self, rows: Sequence[int]) -> "Rollouts":
        """Some of the radii, with the cost of all."""
        arrays = {name: getattr(self, name)[list(rows)] for name in ARRAYS}
        traces, worst = (tuple(part[r] for r in rows) for part in (self.traces, self.worst))
        return replace(self, **arrays, traces=traces, worst=worst)


class Loops:
    """Environments of one id, kept between runs and made when they are first needed."""

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        reference: Array | None = None,
        batched: Callable[[int], Stepper] | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            make: a new environment, with the channel of the threat around it (`surrounded`).
            reference: observation (n,) that the task holds, for the tracking error; None: the task has none.
            batched: many of them in one, by their number, where there is such a thing; results are the same.
        """
        self._make, self.reference, self._batched = make, reference, batched
        self._steppers: dict[int, Stepper] = {}
        self.envs = [make()]
        space = self.envs[0].action_space
        if not isinstance(space, gymnasium.spaces.Box) or not isinstance(
            self.envs[0].observation_space, gymnasium.spaces.Box
        ):
            raise UserError("evaluation needs an environment with Box observations and actions")
        self.space = space

    @property
    def limit(self) -> int:
        """Steps of an episode at most, 1000 where nothing says so: for progress bars and budgets over time."""
        spec = self.envs[0].spec
        return 1000 if spec is None or spec.max_episode_steps is None else spec.max_episode_steps

    def run(
        self,
        policy: Policy,
        attack: Attack,
        threat: Threat,
        radii: Sequence[float],
        *,
        episodes: int,
        seed: int,
        shown: int = 0,
        progress: Callable[[], object] = lambda: None,
    ) -> Rollouts:
        """Run every radius with the same episodes; `progress` is called after each step of the batch.

        Episode `shown` of every radius is traced, beside the worst one.

        Raises:
            UserError: the policy answers with something that is not finite, of the wrong shape or outside the action
                space, the environment diverges, or the channel cannot take a disturbance of this size or does not touch
                the policy.
        """
        if threat.warm and max(radii) > 0 and not isinstance(policy, (SolvingPolicy, Playback)):
            raise UserError("the channel warm_start needs MPC: this policy solves no problem that could start warm")
        rows, ball = len(radii) * episodes, threat.ball(np.repeat(np.asarray(radii, dtype=np.float64), episodes))
        batch = _Batch(
            self._stepper(rows, threat), self.envs[0], policy, attack, threat, ball, episodes, self.limit, seed
        )
        x, hidden = batch.reset(seed), None
        returns, deviation, lengths = np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=np.int64)
        terminated, running = np.zeros(rows, dtype=bool), np.ones(rows, dtype=bool)
        measures, history = Measures(rows, self.space, self.reference), list[tuple[Array, Array, Array]]()
        while running.any():
            d = batch.disturb(x, hidden)
            seen, before = x + d if threat.seen else x, hidden
            if threat.warm and isinstance(policy, SolvingPolicy):
                before = policy.nudged(before, d)
            actions, hidden = _act(policy, seen, before, self.space, running)
            if isinstance(policy, SolvingPolicy):
                measures.solved(*policy.solves(hidden), running)
            if threat.seen and d.any():
                nominal = np.asarray(policy.predict(x, before, deterministic=True)[0], dtype=np.float64)
                change = np.linalg.norm(actions - nominal, axis=1)
                deviation[running] = np.maximum(deviation, change)[running]
            history.append((x, seen, actions))
            measures.step(x, actions, running)
            x, reward, end, cut = batch.step(actions, d, running)
            measures.reached(batch.violation, running)
            returns += reward
            lengths += running
            terminated |= end
            running &= ~(end | cut)
            progress()
        applied, shape = batch.check(), (len(radii), episodes)
        blocks, lowest = episodes * np.arange(len(radii)), returns.reshape(shape).argmin(1)
        traces, worst = (
            tuple(_trace(history, row, lengths[row], x, applied, row % episodes) for row in chosen.tolist())
            for chosen in (blocks + shown, blocks + lowest)
        )
        counted = [returns, lengths, terminated, deviation, *(getattr(measures, name) for name in MEASURED)]
        arrays = [np.asarray(radii, dtype=np.float64), *(values.reshape(shape) for values in counted)]
        numbers: dict[str, Any] = dict(zip(ARRAYS, [*arrays, x.reshape(*shape, -1)], strict=True))
        return Rollouts(**numbers, traces=traces, worst=worst, cost=batch.context.cost)

    def _stepper(self, rows: int, threat: Threat) -> Stepper:
        if self._batched is None:
            self.envs += [self._make() for _ in range(rows - len(self.envs))]
            return OneByOne(self.envs[:rows], threat.channels)
        if rows not in self._steppers:
            self._steppers[rows] = self._batched(rows)
        return self._steppers[rows]


def surrounded(env: gymnasium.Env[Any, Any], threat: Threat) -> gymnasium.Env[Any, Any]:
    """An environment with the channel of a threat around it, where the loop cannot disturb it by itself."""
    return DisturbanceWrapper(env, [channel for channel, _ in threat.channels]) if threat.channels else env


class _Batch:
    """The adversary's side of a batch of closed loops: asks the attack, keeps the budget, applies, checks."""

    def __init__(
        self,
        stepper: Stepper,
        env: gymnasium.Env[Any, Any],
        policy: Policy,
        attack: Attack,
        threat: Threat,
        ball: Ball,
        episodes: int,
        steps: int,
        seed: int,
    ) -> None:
        self._stepper, self._attack, self._threat, self._ball = stepper, attack, threat, ball
        random = generator(seed, "attack")
        nothing = np.zeros((len(ball.radius), *env.observation_space.shape))  # type: ignore[misc]  # a box has a shape
        asked = policy if threat.words.access == "white" else _Asked(policy)
        self.context = Context(nothing, asked, ball, episodes, random)
        self._purse = Purse(
            threat.words.budget,
            ball,
            steps=steps,
            episodes=episodes,
            spread=not attack.timed,
            random=generator(seed, "times"),
        )
        self._spent: list[Array] = []
        self._once = threat.kind.lasts == "episode"

    def reset(self, seed: int) -> Array:
        """Start all episodes, after what acts once per episode has been chosen; observations (rows, n)."""
        rows, episodes = len(self._ball.radius), self.context.episodes
        seeds = [seed_of(seed, "episode", e) for e in range(episodes)] * (rows // episodes)
        return self._stepper.start(seeds, self._ask() if self._once else None)

    def disturb(self, x: Array, hidden: Any) -> Array:
        """The disturbance of the coming step (rows, k), zero where it acts once per episode; `hidden` is the policy's
        state before it."""
        if self._once:
            return np.zeros((len(x), len(self._ball.scale)))
        self.context.observation, self.context.hidden = x, hidden
        return self._ask()

    def step(
        self, actions: Array, d: Array, running: NDArray[np.bool_]
    ) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.bool_]]:
        """One step of the running rows; see `Stepper.step`."""
        return self._stepper.step(actions, d if self._threat.channels and not self._once else None, running)

    @property
    def violation(self) -> Array:
        """See `Stepper`."""
        return self._stepper.violation

    def check(self) -> Array:
        """Judge the whole disturbance again, from nothing but what was applied, and return it, (T or 1, rows, k)."""
        applied = np.stack(self._spent)
        if not self._threat.words.budget.contains(self._ball, applied):
            raise RuntimeError(f"{type(self._attack).__name__} overspent its budget {self._threat.words.budget}")
        return applied

    def _ask(self) -> Array:
        self.context.ball = self._purse.offer()
        d = self._attack.perturb(self.context)
        if not self.context.ball.contains(d):
            raise RuntimeError(f"{type(self._attack).__name__} left its set of perturbations")
        d = self._purse.pay(d)
        self._spent.append(d)
        return d


@dataclass(frozen=True)
class _Asked:
    """A policy that may only be asked: what else it is (a network with a Jacobian) does not show."""

    inner: Policy

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]:
        return self.inner.predict(observation, state, episode_start, deterministic)


def _act(
    policy: Policy, observation: Array, hidden: Any, space: gymnasium.spaces.Box, running: NDArray[np.bool_]
) -> tuple[Array, Any]:
    """Actions, checked where the loop runs, and the hidden state, which MPC takes its warm start from."""
    answer, hidden = policy.predict(observation, hidden, deterministic=True)
    actions = np.asarray(answer, dtype=np.float64)
    expected = (len(observation), *space.shape)
    if actions.shape != expected:
        raise UserError(f"the policy answers with actions of shape {actions.shape}; the environment needs {expected}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    slack = BEYOND * np.maximum(1.0, np.where(np.isfinite(high - low), high - low, 1.0))
    finite = np.asarray(np.isfinite(actions).all(axis=1))
    inside = ((low - slack <= actions) & (actions <= high + slack)).all(axis=1)
    if (wrong := np.flatnonzero(running & ~(finite & inside))).size:
        row = int(wrong[0])
        problem = "that are not finite" if not finite[row] else f"{actions[row].tolist()}, outside the action space"
        limits = f", from {low.tolist()} to {high.tolist()}" if finite[row] else ""
        raise UserError(f"the policy answers with actions {problem}{limits}, to {observation[row].tolist()} for one")
    return actions, hidden


def _trace(
    history: list[tuple[Array, Array, Array]], row: int, length: int, last: Array, applied: Array, episode: int
) -> Trace:
    observations, seen, actions = (np.array([step[k][row] for step in history[:length]]) for k in range(3))
    return Trace(observations, seen, actions, last[row], applied[:length, row], episode)
