"""What every channel of a threat is: how often it acts, in which units, and what it looks like in an environment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np

from lipctrl.disturb.channel import (
    ActionOffset,
    ActuatorDelay,
    ActuatorGain,
    AnyChannel,
    Damping,
    Deadline,
    Friction,
    GeneralisedForce,
    InitialState,
    Mass,
    SensorDelay,
    Wrench,
    is_mujoco,
    mujoco_task,
)
from lipctrl.disturb.plants import PlantConstants, PlantDisturbance, PlantReference, plant_of
from lipctrl.files import UserError

Env = gymnasium.Env[Any, Any]


@dataclass(frozen=True)
class Place:
    """A channel in one environment.

    Attributes:
        channels: that disturb it, with the number of components of each. names: of all components, with units.
        half_widths: of the declared range of each component where all are finite, else None.
    """

    channels: tuple[tuple[AnyChannel, int], ...]
    names: tuple[str, ...]
    half_widths: tuple[float, ...] | None = None


def _place(channel: AnyChannel, names: Sequence[str], half_widths: tuple[float, ...] | None = None) -> Place:
    return Place(((channel, len(names)),), tuple(names), half_widths)


@dataclass(frozen=True)
class Kind:
    """A kind of channel.

    Attributes:
        lasts: "step": a new disturbance at every step; "episode": one per episode.
        units: that a radius may have; where there is one that is not "raw" it goes without saying.
        verb: what the adversary does to it. rest: what is not touched. normalised: what a normalised unit is.
        at: the channel in an environment, at a place of the model or None.
        placed: whether the channel is written CHANNEL@PLACE; None: as one likes.
    """

    lasts: Literal["step", "episode"]
    units: tuple[str, ...]
    verb: str
    at: Callable[[Env, str | None], Place]
    rest: str = ""
    normalised: str = ""
    placed: bool | None = False


def half_widths(low: Sequence[float], high: Sequence[float]) -> tuple[float, ...] | None:
    """Half of each range, or None if one is not finite or empty."""
    half = (np.asarray(high, np.float64) - np.asarray(low, np.float64)) / 2
    return tuple(half.tolist()) if np.isfinite(half).all() and (half > 0).all() else None


def _by_the_loop(env: Env, where: str | None) -> Place:
    raise AssertionError("the loop itself disturbs observation and warm start")


def _action(env: Env, where: str | None) -> Place:
    size, space = ActionOffset().size(env), env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    plant = getattr(env.unwrapped, "plant", None)
    names = plant_of(env, "action").input.names if plant is not None else tuple(f"action {i} [-]" for i in range(size))
    return _place(ActionOffset(), names, half_widths(space.low.tolist(), space.high.tolist()))


def _disturbance(env: Env, where: str | None) -> Place:
    signal = plant_of(env, "disturbance").disturbance
    return _place(PlantDisturbance(), signal.names, half_widths(signal.low, signal.high))


def _reference(env: Env, where: str | None) -> Place:
    channel = PlantReference(entry=where)
    state, entries = plant_of(env, "reference").state, channel.entries(env)
    low, high = ([limits[k] for k in entries] for limits in (state.low, state.high))
    return _place(channel, [state.names[k] for k in entries], half_widths(low, high))


def _force(env: Env, where: str | None) -> Place:
    channel = GeneralisedForce(joint=where)
    size = channel.size(mujoco_task(env, "force").model)
    part = "" if where is None else f" of {where}"
    return _place(channel, tuple(f"degree of freedom {i}{part} [N or N m]" for i in range(size)))


def _wrench(env: Env, where: str | None) -> Place:
    channel = Wrench(body=where or "")
    channel.size(mujoco_task(env, "wrench").model)
    names = [
        f"{what} {axis} on {where} [{unit}]" for what, unit in (("force", "N"), ("torque", "N m")) for axis in "xyz"
    ]
    return _place(channel, tuple(names))


def _model(env: Env, *channels: ActuatorGain | Friction | Damping | Mass) -> Place:
    found = tuple((channel, channel.size(mujoco_task(env, channel.name).model)) for channel in channels)
    return Place(found, tuple(f"factor of {channel.name} {i} [-]" for channel, size in found for i in range(size)))


def _parameters(env: Env, where: str | None) -> Place:
    if not is_mujoco(env):
        channel = PlantConstants(constant=where)
        return _place(channel, [f"factor of {name.split(' [')[0]} [-]" for name in channel.names(env)])
    if where is not None:
        raise UserError(f"the parameters of a MuJoCo task take no place: mass@{where}, or all of them together")
    return _model(env, ActuatorGain(), Friction(), Damping(), Mass())


def _delay(channel: SensorDelay | ActuatorDelay | Deadline, env: Env) -> Place:
    channel.size(env)
    return _place(channel, (f"{channel.name.replace('_', ' ')} [control steps]",))


def _initial_state(env: Env, where: str | None) -> Place:
    if is_mujoco(env):
        nv = int(mujoco_task(env, "initial_state").model.nv)
        names = [f"position {i} [m or rad]" for i in range(nv)] + [f"velocity {i} [m/s or rad/s]" for i in range(nv)]
        return _place(InitialState(), tuple(names))
    if getattr(env.unwrapped, "plant", None) is None:
        raise UserError(
            "the channel 'initial_state' needs a MuJoCo task of gymnasium or a plant of this library, found "
            f"{type(env.unwrapped).__name__}"
        )
    return _place(InitialState(), plant_of(env, "initial_state").state.names)


def warm_start(env: Env, horizon: int) -> Place:
    """The warm start of an MPC that looks `horizon` steps ahead: inputs of all stages, then states.

    Raises:
        UserError: the environment steps no plant of this library.
    """
    plant = plant_of(env, "warm_start")
    names = [f"stage {k}: {name}" for k in range(horizon) for name in plant.input.names]
    names += [f"stage {k}: {name}" for k in range(horizon + 1) for name in plant.state.names]
    inputs, states = (half_widths(signal.low, signal.high) for signal in (plant.input, plant.state))
    half = None if inputs is None or states is None else inputs * horizon + states * (horizon + 1)
    return Place((), tuple(names), half)


HALF = "half widths of the declared range"
CHANNELS: dict[str, Kind] = {
    "observation": Kind(
        "step",
        ("raw", "normalised"),
        "adds to the observation",
        _by_the_loop,
        "the plant itself is not touched",
        "standard deviations of the demonstrations' observations",
    ),
    "action": Kind(
        "step",
        ("raw", "normalised"),
        "adds to the action",
        _action,
        "the sum is kept inside the action limits",
        HALF,
    ),
    "disturbance": Kind(
        "step",
        ("raw", "normalised"),
        "adds to the plant's disturbance",
        _disturbance,
        "observation and action are not touched",
        HALF,
    ),
    "reference": Kind(
        "step",
        ("raw", "normalised"),
        "adds to the set point",
        _reference,
        "the controller sees the deviation from it one step later, the plant is not touched",
        HALF,
        placed=None,
    ),
    "force": Kind(
        "step",
        ("raw",),
        "adds to the forces and torques on the degrees of freedom",
        _force,
        "observation and action are not touched",
        placed=None,
    ),
    "wrench": Kind(
        "step",
        ("raw",),
        "adds to force and torque at the centre of mass",
        _wrench,
        "observation and action are not touched",
        placed=True,
    ),
    "gain": Kind("episode", ("relative",), "changes the gain of the actuators", lambda e, w: _model(e, ActuatorGain())),
    "friction": Kind("episode", ("relative",), "changes all friction", lambda e, w: _model(e, Friction())),
    "damping": Kind("episode", ("relative",), "changes the damping of the joints", lambda e, w: _model(e, Damping())),
    "mass": Kind(
        "episode", ("relative",), "changes mass and inertia", lambda e, w: _model(e, Mass(body=w)), placed=None
    ),
    "parameters": Kind(
        "episode",
        ("relative",),
        "changes the physical parameters (of MuJoCo tasks gain, friction, damping and mass; of plants their constants)",
        _parameters,
        "the models inside controllers keep the nominal values",
        placed=None,
    ),
    "delay": Kind("episode", ("steps",), "delays the observation", lambda e, w: _delay(SensorDelay(), e)),
    "actuator_delay": Kind("episode", ("steps",), "delays the action", lambda e, w: _delay(ActuatorDelay(), e)),
    "deadline": Kind(
        "step",
        ("steps",),
        "makes the controller late (1: the action before is held) by",
        lambda e, w: _delay(Deadline(), e),
        "observation and plant are not touched",
    ),
    "warm_start": Kind(
        "step",
        ("raw", "normalised"),
        "adds to the shifted plan that the solver of MPC starts from",
        _by_the_loop,
        "observation, model and plant are not touched",
        HALF,
    ),
    "initial_state": Kind("episode", ("raw",), "moves the start state", _initial_state),
}
"""Kind of channel by the name that a threat calls it."""
