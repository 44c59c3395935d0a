"""DisturbanceWrapper: puts channels around an environment, in one fixed order, and logs what was applied.

At a reset: the model is rebuilt from the nominal one (mass, gain, friction, damping, constants of a plant), the
environment resets, the start state is displaced, the sensors report. At a step: the action is held or not, delayed,
then offset, then limited; gain, friction and damping are set; the set point moves; wrenches, generalised forces and
plant disturbances act during the whole control step and are removed; the environment steps; the observation gets noise,
then is delayed, then biased.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError, nearest
from lipctrl.seeding import generator

from .channel import (
    ActionOffset,
    ActuatorDelay,
    AnyChannel,
    Deadline,
    ForceChannel,
    InitialState,
    Mass,
    ModelChannel,
    SensorBias,
    SensorDelay,
    SensorNoise,
    disturbed_model,
    is_mujoco,
    mujoco_task,
    scale_fields,
)
from .plants import PlantConstants, PlantDisturbance, PlantReference

Array = NDArray[np.float64]
PENETRATION = 1e-2  # m; a displaced start may not push geoms deeper into each other than this


class DisturbanceWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment with disturbances. With every channel neutral it is, bit for bit, the environment itself.

    `info["disturbance"]` of every reset and step holds what was applied, by name of the channel. The order in which
    the channels are listed has no effect. Changes made to the environment's own model after wrapping are lost at the
    next reset.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], channels: Sequence[AnyChannel]) -> None:
        """Wrap an environment.

        Args:
            env: a MuJoCo task of gymnasium (all channels), or any environment with vector spaces (signal channels).
            channels: where disturbances enter; their values hold in every episode.

        Raises:
            UserError: two channels of one name, several of a kind that is not a force or a mass, an environment that is
                wrapped already, a channel that the environment cannot have, or a value of wrong size or out of range.
        """
        super().__init__(env)
        self.channels = {channel.name: channel for channel in channels}
        if len(self.channels) < len(channels):
            names = [channel.name for channel in channels]
            raise UserError(f"channels need different names, found {', '.join(names)}")
        _refuse_nested(env)
        kinds = [type(channel) for channel in channels if not isinstance(channel, ForceChannel | Mass)]
        if repeated := sorted({kind.__name__ for kind in kinds if kinds.count(kind) > 1}):
            raise UserError(f"one channel of each kind is possible here, found several of {', '.join(repeated)}")
        self._size = {name: self._size_of(channel) for name, channel in self.channels.items()}
        self._own = {name: channel.checked(channel.value, self._size[name]) for name, channel in self.channels.items()}
        self._now = dict(self._own)
        self._next: dict[str, Array] = {}
        self._forces = [channel for channel in channels if isinstance(channel, ForceChannel)]
        self._scales = [channel for channel in channels if isinstance(channel, ModelChannel)]
        self._task = mujoco_task(env, (self._forces + self._scales)[0].name) if self._forces or self._scales else None
        self._nominal = None if self._task is None else self._task.model
        self._rng: np.random.Generator | None = None
        self._seen: deque[Array] = deque()
        self._commanded: deque[Array] = deque()
        self._held: Array | None = None

    def _size_of(self, channel: AnyChannel) -> int | None:
        if isinstance(channel, ForceChannel | ModelChannel):
            return channel.size(mujoco_task(self.env, channel.name).model)
        return channel.size(self.env)

    def apply(self, name: str, value: ArrayLike) -> None:
        """Set what a channel does next. See `lipctrl.disturb.channel` for when it starts and how long it lasts.

        Args:
            name: of the channel.
            value: in the units of the channel, not added to its own value but in its place.

        Raises:
            UserError: an unknown channel, or a value of wrong size or out of range.
        """
        if name not in self.channels:
            raise nearest(name, list(self.channels), "channel")
        self._next[name] = self.channels[name].checked(value, self._size[name])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode with the channels' own values and those applied for this episode.

        Raises:
            UserError: a displaced start state that the environment cannot take.
        """
        starting = {name for name, channel in self.channels.items() if channel.lasts == "reset"} & set(self._next)
        self._now = self._own | {name: self._next.pop(name) for name in starting}
        if self._task is not None and self._scales:
            self._task.model = disturbed_model(self._nominal, [(c, self._now[c.name]) for c in self._scales])
        for channel in self._of(PlantConstants):
            channel.vary(self.env, self._now[channel.name])
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._rng = generator(seed, "sensor noise")
        elif self._rng is None:
            self._rng = generator(self.env.unwrapped.np_random_seed, "sensor noise")
        for channel in self._of(InitialState):
            if self._now[channel.name].any():
                observation, info = self._displace(channel.name, self._now[channel.name], options or {}, info)
        self._seen.clear()
        self._commanded.clear()
        self._held = None
        return self._sense(observation), info | {"disturbance": self._log()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One control step under the disturbances."""
        fresh = {name for name in self._next if self.channels[name].lasts != "reset"}
        momentary = {name: self._own[name] for name, channel in self.channels.items() if channel.lasts == "step"}
        self._now = self._now | momentary | {name: self._next.pop(name) for name in fresh}
        if self._task is not None and any(channel.name in fresh for channel in self._scales):
            changeable = [c for c in self._scales if c.lasts == "episode"]
            scale_fields(self._task.model, self._nominal, [(c, self._now[c.name]) for c in changeable])
        command = self._command(action)
        before = self._push()
        try:
            observation, reward, terminated, truncated, info = self.env.step(command)
        finally:
            self._release(before)
        return self._sense(observation), reward, terminated, truncated, info | {"disturbance": self._log()}

    def _of(self, kind: type[Any]) -> list[Any]:
        return [channel for channel in self.channels.values() if isinstance(channel, kind)]

    def _log(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self._now.items()}

    def _push(self) -> dict[str, Array]:
        """Let forces, disturbances and set points act; the plant's own of these, by attribute."""
        for channel in self._forces:
            assert self._task is not None
            channel.add(self._task.data, self._task.model, self._now[channel.name])
        plant: Any = self.env.unwrapped
        before: dict[str, Array] = {}
        for channel in self._of(PlantReference):
            before["reference"] = plant.reference
            plant.reference = plant.reference + channel.displacement(self.env, self._now[channel.name])
        for channel in self._of(PlantDisturbance):
            before["disturbance"] = plant.disturbance
            plant.disturbance = plant.disturbance + self._now[channel.name]
        return before

    def _release(self, before: dict[str, Array]) -> None:
        for name, value in before.items():
            setattr(self.env.unwrapped, name, value)
        if self._forces and self._task is not None:
            self._task.data.xfrc_applied[:] = 0
            self._task.data.qfrc_applied[:] = 0

    def _command(self, action: Any) -> Any:
        """Hold, delay, then offset inside the limits. An action without disturbance passes as it came."""
        for channel in self._of(Deadline):
            if self._held is not None and self._now[channel.name][0] > 0:
                action = self._held
            self._held = np.array(action)
        for channel in self._of(ActuatorDelay):
            action = _delayed(self._commanded, np.array(action), int(self._now[channel.name][0]))
        for channel in self._of(ActionOffset):
            space = self.env.action_space
            assert isinstance(space, gymnasium.spaces.Box)
            asked = np.asarray(action)
            # an action that is already beyond its limits is left there, so that a zero offset changes nothing
            moved = np.clip(
                asked + self._now[channel.name], np.minimum(space.low, asked), np.maximum(space.high, asked)
            )
            action = moved.astype(asked.dtype)
        return action

    def _sense(self, observation: Any) -> Any:
        """Noise, then delay, then bias. An observation without disturbance passes as it came."""
        for channel in self._of(SensorNoise):
            deviation = self._now[channel.name]
            if deviation.any():
                assert self._rng is not None
                noise = self._rng.standard_normal(len(deviation)) * deviation
                observation = (observation + noise).astype(observation.dtype)
        for channel in self._of(SensorDelay):
            observation = _delayed(self._seen, np.array(observation), int(self._now[channel.name][0]))
        for channel in self._of(SensorBias):
            if self._now[channel.name].any():
                observation = (observation + self._now[channel.name]).astype(observation.dtype)
        return observation

    def _displace(
        self, name: str, offset: Array, options: dict[str, Any], info: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        if is_mujoco(self.env):
            task = mujoco_task(self.env, name)
            return displaced(task, offset), info | task._get_reset_info()
        if "state" not in info:
            found = type(self.env.unwrapped).__name__
            raise UserError(
                f"the channel {name!r} needs a MuJoCo task or an environment whose reset reports and accepts 'state', "
                f"found {found}"
            )
        state = np.asarray(info["state"])
        if offset.shape != state.shape:
            raise UserError(f"the channel {name!r} needs {len(state)} numbers, found {len(offset)}")
        return self.env.reset(options=options | {"state": state + offset})


def _delayed(buffer: deque[Array], newest: Array, samples: int) -> Array:
    """The entry that is `samples` old; the first one stands in for those before it."""
    if not buffer:
        buffer.extend([newest] * samples)
    buffer.append(newest)
    return buffer.popleft()


def displaced(task: Any, offset: Array) -> Any:
    """Move a MuJoCo task's state in the tangent space of its positions; the observation there.

    Raises:
        UserError: geoms would be inside each other.
    """
    import mujoco

    before = _deepest(task.data)
    qpos, nv = task.data.qpos.copy(), task.model.nv
    mujoco.mj_integratePos(task.model, qpos, offset[:nv], 1.0)
    task.set_state(qpos, task.data.qvel + offset[nv:])
    depth = _deepest(task.data)
    if depth > max(PENETRATION, before):
        raise UserError(f"the displaced start state has geoms {depth:.3g} m inside each other; allowed {PENETRATION:g}")
    return task._get_obs()


def _deepest(data: Any) -> float:
    """Largest penetration of any contact, m."""
    return float(-min(data.contact.dist, default=0.0))


def _refuse_nested(env: gymnasium.Env[Any, Any]) -> None:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, DisturbanceWrapper):
            raise UserError("the environment has a DisturbanceWrapper already; give all channels to one wrapper")
        env = env.env
