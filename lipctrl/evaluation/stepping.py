"""Stepper: many episodes of one environment, stepped together; the plain one here, MuJoCo's batched one in `envs`."""

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lipctrl.disturb.channel import AnyChannel, is_mujoco
from lipctrl.disturb.divergence import check_finite, check_stable
from lipctrl.disturb.wrapper import DisturbanceWrapper

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Stepper(Protocol):
    """What a closed loop needs of its environments. `values` are disturbances (rows, k) in the channels of the threat,
    relative to the neutral values; None where the threat is on none of them.

    Attributes:
        violation: (rows,), the largest violation of a constraint of the task at the last step of each row, 0 where all
            are kept, NaN where the task declares none (`info["violation"]`).
    """

    violation: Array

    def start(self, seeds: Sequence[int], values: Array | None) -> Array:
        """Start an episode in every row, with the disturbances that act once per episode; observations (rows, n)."""
        ...

    def step(self, actions: Array, values: Array | None, running: Flags) -> tuple[Array, Array, Flags, Flags]:
        """One step of the running rows, with the disturbances that act once per step.

        Returns:
            Observations (rows, n), rewards, terminated and truncated (rows,); of rows that do not run the last
            observation and zeros.

        Raises:
            UserError: the environment diverged.
        """
        ...


class OneByOne:
    """Any environment: the reference that faster steppers must equal to the last bit."""

    def __init__(
        self, envs: Sequence[gymnasium.Env[Any, Any]], channels: Sequence[tuple[AnyChannel, int]] = ()
    ) -> None:
        """Args: envs: one per row. channels: of the threat, which each has around it, with their sizes."""
        self._envs, self._channels = list(envs), channels
        spec = self._envs[0].spec
        self._name = type(self._envs[0].unwrapped).__name__ if spec is None else spec.id
        self._mujoco = is_mujoco(self._envs[0])
        self._x, self.violation = np.zeros(0), np.zeros(0)

    def start(self, seeds: Sequence[int], values: Array | None) -> Array:
        """See `Stepper.start`."""
        if values is not None:
            for env, value in zip(self._envs, values, strict=True):
                self._apply(env, value)
        starts = [env.reset(seed=seed)[0] for env, seed in zip(self._envs, seeds, strict=True)]
        self.violation = np.full(len(starts), np.nan)
        self._x = np.array(starts, dtype=np.float64)
        return self._x.copy()

    def step(self, actions: Array, values: Array | None, running: Flags) -> tuple[Array, Array, Flags, Flags]:
        """See `Stepper.step`."""
        rows, count = np.flatnonzero(running), len(running)
        x, reward = self._x.copy(), np.zeros(count)
        end, cut = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        for i in rows:
            env = self._envs[i]
            if values is not None:
                self._apply(env, values[i])
            observation, gained, end[i], cut[i], info = env.step(actions[i].astype(env.action_space.dtype))
            x[i], reward[i], self.violation[i] = observation, float(gained), info.get("violation", np.nan)
            if self._mujoco and (end[i] or cut[i]):
                check_stable(self._name, env.unwrapped.data, int(i))  # type: ignore[attr-defined]
        check_finite(self._name, x[rows], reward[rows], rows)
        self._x = x
        return x, reward, end, cut

    def _apply(self, env: gymnasium.Env[Any, Any], value: Array) -> None:
        assert isinstance(env, DisturbanceWrapper)
        first = 0
        for channel, size in self._channels:
            env.apply(channel.name, channel.neutral + value[first : first + size])
            first += size
