"""Channels: where a disturbance enters a closed loop, one small record each.

A channel's `value` is what it does in every episode; `DisturbanceWrapper.apply` changes it for a while. How long a
changed value lasts is the channel's `lasts`:

* "step": exactly the next control step (forces, action offset, set point);
* "episode": from the next control step until the next reset (gain, friction, damping, sensor noise and bias);
* "reset": the episode that the next reset starts (mass, delays, initial state), because these cannot change inside one.

A channel knows what it needs and refuses an environment that lacks it. Importing this module imports no physics.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np

from lipctrl.files import UserError, nearest

from .base import Array, Channel, Env, Lasts
from .plants import PlantConstants, PlantDisturbance, PlantReference


@dataclass(frozen=True, kw_only=True)
class Wrench(Channel):
    """Force (N) then torque (N m), world frame, at the centre of mass of a body: 6 numbers (`xfrc_applied`)."""

    body: str
    name: str = "wrench"

    def size(self, model: Any) -> int:
        """Six; refuses a body that the model lacks."""
        _index(model, self.body, "body")
        return 6

    def add(self, data: Any, model: Any, value: Array) -> None:
        """Add the wrench to what acts on the body."""
        data.xfrc_applied[_index(model, self.body, "body")] += value


@dataclass(frozen=True, kw_only=True)
class GeneralisedForce(Channel):
    """Force (N) or torque (N m) on each degree of freedom of a joint, or of the whole model (`qfrc_applied`)."""

    joint: str | None = None
    name: str = "force"

    def _dofs(self, model: Any) -> slice:
        if self.joint is None:
            return slice(0, model.nv)
        joint = _index(model, self.joint, "joint")
        start = int(model.jnt_dofadr[joint])
        return slice(start, start + (6, 3, 1, 1)[int(model.jnt_type[joint])])  # free, ball, slide, hinge

    def size(self, model: Any) -> int:
        """Number of degrees of freedom; refuses a joint that the model lacks."""
        dofs = self._dofs(model)
        return int(dofs.stop - dofs.start)

    def add(self, data: Any, model: Any, value: Array) -> None:
        """Add the force to what acts on the joint."""
        data.qfrc_applied[self._dofs(model)] += value


@dataclass(frozen=True, kw_only=True)
class ActuatorGain(Channel):
    """Factor of each actuator's force (gain and bias of the actuator model); one number stands for all actuators."""

    name: str = "gain"
    neutral: ClassVar[float] = 1.0
    smallest: ClassVar[float] = 0.0
    lasts: ClassVar[Lasts] = "episode"
    shared: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("actuator_gainprm", "actuator_biasprm")

    def size(self, model: Any) -> int:
        """Number of actuators; refuses actuators whose parameters are not proportional to their force."""
        if (np.asarray(model.actuator_gaintype) > 1).any() or (np.asarray(model.actuator_biastype) > 1).any():
            raise UserError(f"the channel {self.name!r} needs actuators with fixed or affine gain and bias")
        return int(model.nu)

    def scale(self, model: Any, value: Array) -> None:
        """Multiply the fields of a model."""
        for field in self.fields:
            getattr(model, field)[:] *= value[:, None]


@dataclass(frozen=True, kw_only=True)
class Friction(Channel):
    """Factor of all friction coefficients of all geoms and explicit pairs, 1 number.

    A contact takes the larger coefficient of its two geoms, so scaling one of them may do nothing; this scales both.
    """

    name: str = "friction"
    neutral: ClassVar[float] = 1.0
    smallest: ClassVar[float] = 0.0
    lasts: ClassVar[Lasts] = "episode"
    fields: ClassVar[tuple[str, ...]] = ("geom_friction", "pair_friction")

    def size(self, model: Any) -> int:
        """One."""
        return 1

    def scale(self, model: Any, value: Array) -> None:
        """Multiply the fields of a model."""
        for field in self.fields:
            getattr(model, field)[:] *= value


@dataclass(frozen=True, kw_only=True)
class Damping(Channel):
    """Factor of the damping of each degree of freedom; one number stands for all."""

    name: str = "damping"
    neutral: ClassVar[float] = 1.0
    smallest: ClassVar[float] = 0.0
    lasts: ClassVar[Lasts] = "episode"
    shared: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("dof_damping",)

    def size(self, model: Any) -> int:
        """Number of degrees of freedom."""
        return int(model.nv)

    def scale(self, model: Any, value: Array) -> None:
        """Multiply the field of a model."""
        model.dof_damping[:] *= value


@dataclass(frozen=True, kw_only=True)
class Mass(Channel):
    """Factor of mass and rotational inertia of a body, or of all bodies, 1 number (a change of density).

    The constants that MuJoCo derives from them (inverse weights of the constraint solver, subtree masses) are computed
    again; without that the physics is silently inconsistent.
    """

    body: str | None = None
    name: str = "mass"
    neutral: ClassVar[float] = 1.0
    smallest: ClassVar[float] = 1e-3
    lasts: ClassVar[Lasts] = "reset"
    fields: ClassVar[tuple[str, ...]] = ("body_mass", "body_inertia")

    def size(self, model: Any) -> int:
        """One; refuses a body that the model lacks."""
        if self.body is not None:
            _index(model, self.body, "body")
        return 1

    def scale(self, model: Any, value: Array) -> None:
        """Multiply the fields of a model; the derived constants are the caller's duty (`disturbed_model`)."""
        bodies = slice(None) if self.body is None else _index(model, self.body, "body")
        for field in self.fields:
            getattr(model, field)[bodies] *= value[0]


@dataclass(frozen=True, kw_only=True)
class SensorNoise(Channel):
    """Standard deviation of Gaussian noise on each observation, in its unit, from the environment's own seed."""

    name: str = "sensor_noise"
    smallest: ClassVar[float] = 0.0
    lasts: ClassVar[Lasts] = "episode"

    def size(self, env: Env) -> int:
        """Number of observations."""
        return _entries(env.observation_space, self.name, "observation")


@dataclass(frozen=True, kw_only=True)
class SensorBias(Channel):
    """What is added to each observation, in its unit, without touching the state."""

    name: str = "sensor_bias"
    lasts: ClassVar[Lasts] = "episode"

    def size(self, env: Env) -> int:
        """Number of observations."""
        return _entries(env.observation_space, self.name, "observation")


@dataclass(frozen=True, kw_only=True)
class SensorDelay(Channel):
    """Age of what the policy sees, in control steps, 1 whole number; the first observation stands in at the start."""

    name: str = "sensor_delay"
    smallest: ClassVar[float] = 0.0
    whole: ClassVar[bool] = True
    lasts: ClassVar[Lasts] = "reset"

    def size(self, env: Env) -> int:
        """One."""
        _entries(env.observation_space, self.name, "observation")
        return 1


@dataclass(frozen=True, kw_only=True)
class ActionOffset(Channel):
    """What is added to each action, in its unit; the sum is kept inside the action limits."""

    name: str = "action_offset"

    def size(self, env: Env) -> int:
        """Number of actions."""
        return _entries(env.action_space, self.name, "action")


@dataclass(frozen=True, kw_only=True)
class ActuatorDelay(Channel):
    """Age of the action that acts, in control steps, 1 whole number; the first action stands in at the start."""

    name: str = "actuator_delay"
    smallest: ClassVar[float] = 0.0
    whole: ClassVar[bool] = True
    lasts: ClassVar[Lasts] = "reset"

    def size(self, env: Env) -> int:
        """One."""
        _entries(env.action_space, self.name, "action")
        return 1


@dataclass(frozen=True, kw_only=True)
class Deadline(Channel):
    """Whether the controller misses its deadline at a step, so that the action before it is held: 0 or more, 1 whole
    number. The first action of an episode is never late: there is none before it."""

    name: str = "deadline"
    smallest: ClassVar[float] = 0.0
    whole: ClassVar[bool] = True

    def size(self, env: Env) -> int:
        """One."""
        _entries(env.action_space, self.name, "action")
        return 1


@dataclass(frozen=True, kw_only=True)
class InitialState(Channel):
    """Displacement of the start state.

    MuJoCo tasks: 2 nv numbers, displacement of the positions in the tangent space (so that quaternions stay
    normalised), then of the velocities. Other environments: displacement of `info["state"]`, which their reset must
    report and accept as an option.
    """

    name: str = "initial_state"
    lasts: ClassVar[Lasts] = "reset"

    def size(self, env: Env) -> int | None:
        """2 nv for a MuJoCo task, else unknown before the first reset."""
        return 2 * int(mujoco_task(env, self.name).model.nv) if is_mujoco(env) else None


ForceChannel = Wrench | GeneralisedForce
ModelChannel = ActuatorGain | Friction | Damping | Mass
SignalChannel = (
    SensorNoise
    | SensorBias
    | SensorDelay
    | ActionOffset
    | ActuatorDelay
    | Deadline
    | InitialState
    | PlantDisturbance
    | PlantReference
    | PlantConstants
)
AnyChannel = ForceChannel | ModelChannel | SignalChannel


def scale_fields(model: Any, nominal: Any, channels: Sequence[tuple[ModelChannel, Array]]) -> None:
    """Set the fields of all channels to the nominal model's, each times its factors. Never compounds."""
    for channel, _ in channels:
        for field in channel.fields:
            getattr(model, field)[:] = getattr(nominal, field)
    for channel, value in channels:
        channel.scale(model, value)


def disturbed_model(nominal: Any, channels: Sequence[tuple[ModelChannel, Array]]) -> Any:
    """A copy of a model with the factors of the channels; derived constants are computed again where a mass changed.

    Args:
        nominal: MjModel, not touched.
        channels: each with its checked value, for example `(Mass(body="torso"), np.array([2.0]))`.
    """
    import mujoco

    model = copy(nominal)
    scale_fields(model, nominal, channels)
    if any(isinstance(channel, Mass) and (value != 1).any() for channel, value in channels):
        mujoco.mj_setConst(model, mujoco.MjData(model))
        # mj_setConst leaves the statistics alone, but the constraint solver scales its tolerance by the mean inertia
        if np.isclose(nominal.stat.meaninertia, np.mean(nominal.dof_M0), rtol=1e-9):  # not set by hand in the file
            model.stat.meaninertia = np.mean(model.dof_M0)
    return model


def is_mujoco(env: Env) -> bool:
    """Whether an environment is one of gymnasium's MuJoCo tasks."""
    from gymnasium.envs.mujoco import MujocoEnv  # imports MuJoCo

    return isinstance(env.unwrapped, MujocoEnv)


def mujoco_task(env: Env, channel: str) -> Any:
    """The MuJoCo task inside an environment.

    Raises:
        UserError: there is none; the channel is named.
    """
    if not is_mujoco(env):
        found = type(env.unwrapped).__name__
        raise UserError(f"the channel {channel!r} needs a MuJoCo task of gymnasium, found {found}")
    return env.unwrapped


def _index(model: Any, name: str, kind: Literal["body", "joint"]) -> int:
    named, count = (model.body, model.nbody) if kind == "body" else (model.joint, model.njnt)
    first = 1 if kind == "body" else 0  # nothing acts on the world
    index = next((i for i in range(first, count) if name and named(i).name == name), -1)
    if index < 0:
        raise nearest(name, filter(None, (named(i).name for i in range(first, count))), kind)
    return index


def _entries(space: gymnasium.Space[Any], channel: str, signal: str) -> int:
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise UserError(f"the channel {channel!r} needs an {signal} space that is a vector (Box), found {space}")
    return space.shape[0]
