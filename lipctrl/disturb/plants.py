"""Channels of the plants of this library: their disturbance, their set point, and their physical constants."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lipctrl.files import UserError, nearest
from lipctrl.plant import Plant

from .base import Array, Channel, Env, Lasts


@dataclass(frozen=True, kw_only=True)
class PlantDisturbance(Channel):
    """What is added to the disturbance w of a plant of this library, in the plant's own units."""

    name: str = "disturbance"

    def size(self, env: Env) -> int:
        """Number of entries of w; refuses environments that step no Plant."""
        return len(plant_of(env, self.name).disturbance)


@dataclass(frozen=True, kw_only=True)
class PlantReference(Channel):
    """Displacement of the set point of a plant of this library, or of one entry of it, in the units of the state.

    In the step at which it is moved the stage cost is charged for the state less the displacement, and so is the
    observation after it: controllers hold a fixed set point, so a set point that is d higher is a state that looks d
    lower. Limits and collisions are of the true state.
    """

    entry: str | None = None
    name: str = "reference"

    def entries(self, env: Env) -> list[int]:
        """Which entries of the state it displaces.

        Raises:
            UserError: the environment holds no plant at a set point, or one whose state has no entry of this name.
        """
        if not hasattr(env.unwrapped, "reference"):
            plant_of(env, self.name)
            raise UserError(f"the channel {self.name!r} needs a task with a set point; this one has none")
        known = [name.split(" [")[0] for name in plant_of(env, self.name).state.names]
        if self.entry is not None and self.entry not in known:
            raise nearest(self.entry, known, "entry of the state")
        return [k for k, name in enumerate(known) if self.entry in (None, name)]

    def size(self, env: Env) -> int:
        """Number of entries that it displaces."""
        return len(self.entries(env))

    def displacement(self, env: Env, value: Array) -> Array:
        """Of all entries of the state, (n,)."""
        found = np.zeros(len(plant_of(env, self.name).state))
        found[self.entries(env)] = value
        return found


@dataclass(frozen=True, kw_only=True)
class PlantConstants(Channel):
    """Factor of each physical constant of a plant of this library, or of one of them, by its name without unit.

    The plant that is stepped changes; the environment's `plant`, which MPC and LQR know, keeps its nominal constants.
    """

    constant: str | None = None
    name: str = "parameters"
    neutral: ClassVar[float] = 1.0
    smallest: ClassVar[float] = 1e-3
    lasts: ClassVar[Lasts] = "reset"

    def names(self, env: Env) -> tuple[str, ...]:
        """Of the constants that it changes, with units.

        Raises:
            UserError: the environment steps no plant with constants, or none of this name.
        """
        known: tuple[str, ...] = getattr(env.unwrapped, "constants", ())
        if not known:
            found = type(env.unwrapped).__name__
            raise UserError(f"the channel {self.name!r} needs a plant of this library by its equations, found {found}")
        own = tuple(name for name in known if self.constant in (None, name.split(" [")[0]))
        if not own:
            raise nearest(str(self.constant), [name.split(" [")[0] for name in known], "constant")
        return own

    def size(self, env: Env) -> int:
        """Number of constants."""
        return len(self.names(env))

    def vary(self, env: Env, value: Array) -> None:
        """Step the plant with its constants times these factors."""
        task: Any = env.unwrapped
        factors = dict.fromkeys(task.constants, 1.0) | dict(zip(self.names(env), value.tolist(), strict=True))
        task.vary(list(factors.values()))


def plant_of(env: Env, channel: str) -> Plant:
    """The plant that an environment steps.

    Raises:
        UserError: it steps none; the channel is named.
    """
    plant = getattr(env.unwrapped, "plant", None)
    if not isinstance(plant, Plant):
        raise UserError(f"the channel {channel!r} needs a plant of this library, found {type(env.unwrapped).__name__}")
    return plant
