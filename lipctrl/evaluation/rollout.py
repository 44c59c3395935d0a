"""Batched closed loops: one policy under one attack, every radius with the same episodes (common random numbers)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from lipctrl.files import UserError
from lipctrl.policy import FunctionPolicy, Policy
from lipctrl.seeding import generator, seed_of

Array = NDArray[np.float64]


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


@dataclass(frozen=True)
class Rollouts:
    """Closed loops of R radii times E episodes.

    Attributes:
        radii: (R,). returns, lengths, terminated, deviation: (R, E); deviation is the largest |pi(s+d) - pi(s)| met,
            0 where the observation is not attacked.
        roughness, saturated, tracking: (R, E), see `Measures`.
        final: observations after the last step, (R, E, n).
        traces: of the first episode at every radius. worst: of the episode with the lowest return at every radius.
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
    final: Array
    traces: tuple[Trace, ...]
    worst: tuple[Trace, ...]
    cost: Cost


class Loops:
    """Environments of one id, kept between runs and made when they are first needed."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], reference: Array | None = None) -> None:
        """Nothing runs yet.

        Args:
            make: a new environment, with the channel of the threat around it (`surrounded`).
            reference: observation (n,) that the task holds, for the tracking error; None: the task has none.
        """
        self._make, self.reference = make, reference
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
        progress: Callable[[], object] = lambda: None,
    ) -> Rollouts:
        """Run every radius with the same episodes; `progress` is called after each step of the batch.

        Raises:
            UserError: the policy answers with something that is not finite or of the wrong shape, or the channel cannot
                take a disturbance of this size.
        """
        rows, ball = len(radii) * episodes, threat.ball(np.repeat(np.asarray(radii, dtype=np.float64), episodes))
        self.envs += [self._make() for _ in range(rows - len(self.envs))]
        batch = _Batch(self.envs[:rows], policy, attack, threat, ball, episodes, self.limit, seed)
        x, hidden = batch.reset(seed), None
        returns, deviation, lengths = np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=np.int64)
        terminated, running = np.zeros(rows, dtype=bool), np.ones(rows, dtype=bool)
        measures, history = Measures(rows, self.space, self.reference), list[tuple[Array, Array, Array]]()
        while running.any():
            seen = batch.disturb(x, running)
            actions, hidden = _act(policy, seen, hidden, self.space)
            if not threat.channels:
                nominal = np.asarray(policy.predict(x, deterministic=True)[0], dtype=np.float64)
                change = np.linalg.norm(actions - nominal, axis=1)
                deviation[running] = np.maximum(deviation, change)[running]
            history.append((x, seen, actions))
            measures.step(x, actions, running)
            x = x.copy()
            for i in np.flatnonzero(running):
                observation, reward, end, cut, _ = batch.envs[i].step(actions[i].astype(self.space.dtype))
                x[i] = observation
                returns[i] += float(reward)
                lengths[i] += 1
                terminated[i] = end
                running[i] = not (end or cut)
            progress()
        applied, shape = batch.check(), (len(radii), episodes)
        firsts, lowest = episodes * np.arange(len(radii)), returns.reshape(shape).argmin(1)
        first, worst = (
            tuple(_trace(history, row, lengths[row], x, applied, row % episodes) for row in chosen.tolist())
            for chosen in (firsts, firsts + lowest)
        )
        return Rollouts(
            np.asarray(radii, dtype=np.float64),
            returns.reshape(shape),
            lengths.reshape(shape),
            terminated.reshape(shape),
            deviation.reshape(shape),
            measures.roughness.reshape(shape),
            measures.saturated.reshape(shape),
            measures.tracking.reshape(shape),
            x.reshape(*shape, -1),
            first,
            worst,
            batch.context.cost,
        )


def surrounded(env: gymnasium.Env[Any, Any], threat: Threat) -> gymnasium.Env[Any, Any]:
    """An environment with the channel of a threat around it, where the loop cannot disturb it by itself."""
    return DisturbanceWrapper(env, [channel for channel, _ in threat.channels]) if threat.channels else env


class _Batch:
    """The adversary's side of a batch of closed loops: asks the attack, keeps the budget, applies, checks."""

    def __init__(
        self,
        envs: list[gymnasium.Env[Any, Any]],
        policy: Policy,
        attack: Attack,
        threat: Threat,
        ball: Ball,
        episodes: int,
        steps: int,
        seed: int,
    ) -> None:
        self.envs, self._attack, self._threat, self._ball = envs, attack, threat, ball
        random = generator(seed, "attack")
        nothing = np.zeros((len(envs), *envs[0].observation_space.shape))  # type: ignore[misc]  # a box has a shape
        # who may only ask the policy does not see that it is a network with a Jacobian
        asked = policy if threat.words.access == "white" else FunctionPolicy(lambda o: policy.predict(o)[0])
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

    def reset(self, seed: int) -> Array:
        """Start all episodes, after what acts once per episode has been chosen; observations (rows, n)."""
        episodes = self.context.episodes
        if self._threat.kind.lasts == "episode":
            for env, value in zip(self.envs, self._ask(), strict=True):
                self._apply(env, value)
        starts = [env.reset(seed=seed_of(seed, "episode", i % episodes))[0] for i, env in enumerate(self.envs)]
        return np.array(starts, dtype=np.float64)

    def disturb(self, x: Array, running: NDArray[np.bool_]) -> Array:
        """Disturb the coming step of the running rows; what the policy sees (rows, n)."""
        if self._threat.kind.lasts == "episode":
            return x
        self.context.observation = x
        d = self._ask()
        if not self._threat.channels:
            return np.asarray(x + d)
        for i in np.flatnonzero(running):
            self._apply(self.envs[i], d[i])
        return x

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

    def _apply(self, env: gymnasium.Env[Any, Any], value: Array) -> None:
        assert isinstance(env, DisturbanceWrapper)
        first = 0
        for channel, size in self._threat.channels:
            env.apply(channel.name, channel.neutral + value[first : first + size])
            first += size


def _act(policy: Policy, observation: Array, hidden: Any, space: gymnasium.spaces.Box) -> tuple[Array, Any]:
    """Checked actions, and the hidden state, which MPC takes its warm start from."""
    answer, hidden = policy.predict(observation, hidden, deterministic=True)
    actions = np.asarray(answer, dtype=np.float64)
    expected = (len(observation), *space.shape)
    if actions.shape != expected:
        raise UserError(f"the policy answers with actions of shape {actions.shape}; the environment needs {expected}")
    if not np.isfinite(actions).all():
        raise UserError(f"the policy answers with actions that are not finite, to {observation[0].tolist()} for one")
    return actions, hidden


def _trace(
    history: list[tuple[Array, Array, Array]], row: int, length: int, last: Array, applied: Array, episode: int
) -> Trace:
    observations, seen, actions = (np.array([step[k][row] for step in history[:length]]) for k in range(3))
    return Trace(observations, seen, actions, last[row], applied[:length, row], episode)
