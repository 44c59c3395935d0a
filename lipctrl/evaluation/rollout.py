"""Batched closed loops: one policy under one attack, every radius with the same episodes (common random numbers)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks import Attack, Context, Cost
from lipctrl.attacks.threat import Threat
from lipctrl.files import UserError
from lipctrl.policy import Policy
from lipctrl.seeding import generator, seed_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """One recorded episode: true and seen observations (T, n), actions (T, m), and the state after the last step."""

    observations: Array
    seen: Array
    actions: Array
    last: Array


@dataclass(frozen=True)
class Rollouts:
    """Closed loops of R radii times E episodes.

    Attributes:
        radii: (R,). returns, lengths, terminated, deviation: (R, E); deviation is the largest |pi(s+d) - pi(s)| met.
        final: observations after the last step, (R, E, n).
        traces: of the first episode at every radius.
        cost: what the attack spent.
    """

    radii: Array
    returns: Array
    lengths: NDArray[np.int64]
    terminated: NDArray[np.bool_]
    deviation: Array
    final: Array
    traces: tuple[Trace, ...]
    cost: Cost


class Loops:
    """Environments of one id, kept between runs."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], count: int) -> None:
        self.envs = [make() for _ in range(count)]
        space = self.envs[0].action_space
        if not isinstance(space, gymnasium.spaces.Box) or not isinstance(
            self.envs[0].observation_space, gymnasium.spaces.Box
        ):
            raise UserError("evaluation needs an environment with Box observations and actions")
        self.space = space

    @property
    def limit(self) -> int:
        """Steps of an episode at most, 1000 where nothing says so: for progress bars."""
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
            UserError: the policy answers with something that is not finite or of the wrong shape.
        """
        rows = len(radii) * episodes
        envs, ball = self.envs[:rows], threat.ball(np.repeat(np.asarray(radii, dtype=np.float64), episodes))
        starts = [envs[i].reset(seed=seed_of(seed, "episode", i % episodes))[0] for i in range(rows)]
        x = np.array(starts, dtype=np.float64)
        context = Context(x, policy, ball, episodes, generator(seed, "attack"))
        returns, deviation, lengths = np.zeros(rows), np.zeros(rows), np.zeros(rows, dtype=np.int64)
        terminated, running = np.zeros(rows, dtype=bool), np.ones(rows, dtype=bool)
        history: list[tuple[Array, Array, Array]] = []
        hidden: Any = None
        while running.any():
            context.observation = x
            d = attack.perturb(context)
            if not ball.contains(d):
                raise RuntimeError(f"{type(attack).__name__} left its set of perturbations")
            seen = x + d
            actions, hidden = _act(policy, seen, hidden, self.space)
            nominal = np.asarray(policy.predict(x, deterministic=True)[0], dtype=np.float64)
            change = np.linalg.norm(actions - nominal, axis=1)
            deviation[running] = np.maximum(deviation, change)[running]
            history.append((x, seen, actions))
            x = x.copy()
            for i in np.flatnonzero(running):
                observation, reward, end, cut, _ = envs[i].step(actions[i].astype(self.space.dtype))
                x[i] = observation
                returns[i] += float(reward)
                lengths[i] += 1
                terminated[i] = end
                running[i] = not (end or cut)
            progress()
        shape = (len(radii), episodes)
        traces = tuple(_trace(history, r * episodes, int(lengths[r * episodes]), x) for r in range(len(radii)))
        return Rollouts(
            np.asarray(radii, dtype=np.float64),
            returns.reshape(shape),
            lengths.reshape(shape),
            terminated.reshape(shape),
            deviation.reshape(shape),
            x.reshape(*shape, -1),
            traces,
            context.cost,
        )


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


def _trace(history: list[tuple[Array, Array, Array]], row: int, length: int, last: Array) -> Trace:
    observations, seen, actions = (np.array([step[k][row] for step in history[:length]]) for k in range(3))
    return Trace(observations, seen, actions, last[row])
