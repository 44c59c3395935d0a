"""Threat: where a disturbance may enter, in which norm, units and budget, and who chooses it. It prints itself.

One line describes it: `CHANNEL:NORM:UNITS`, then, where wanted, a budget and an access, as in

    observation:l2:raw    action:linf:normalised    action:l2:raw:episode    force@slider:linf:raw:sparse=10:black
    gain:linf    mass@torso    delay    initial_state:l2:raw

or a YAML file with the same words as keys (channel, norm, units, budget, access). The radii are given apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.channels import CHANNELS, Env, Kind, warm_start
from lipctrl.config import read_config
from lipctrl.disturb.budget import Budget
from lipctrl.disturb.channel import AnyChannel
from lipctrl.disturb.sets import Ball, Samples
from lipctrl.files import UserError, nearest
from lipctrl.norms import Norm

Array = NDArray[np.float64]
Units = Literal["raw", "normalised", "relative", "steps"]
Access = Literal["white", "grey", "black"]
KNOWS = {
    "white": "who knows the policy with its gradient, the plant and the true state",
    "grey": "who may ask the policy and sees the true state, but has neither gradient nor equations",
    "black": "who sees nothing but the returns of whole episodes",
}
SIZE = {"l2": "Euclidean norm", "linf": "largest component"}


@dataclass(frozen=True)
class Words:
    """A threat as it is written, before an environment says what the channel looks like there."""

    channel: str
    where: str | None
    norm: Norm
    units: Units
    budget: Budget
    access: Access

    @staticmethod
    def parse(text: str) -> "Words":
        """From a line, or from the YAML file at a path that ends in .yaml or .yml.

        Raises:
            UserError: unknown words (the nearest is named), missing units, or words that do not go together.
        """
        if Path(text).suffix in (".yaml", ".yml"):
            data, source = read_config(text, "threat")
            return _from_mapping(data, source)
        parts = text.split(":")
        if not all(parts):
            raise UserError(f"a threat is CHANNEL:NORM:UNITS, for example observation:l2:raw; found {text!r}")
        words, rest = {"channel": parts[0]}, parts[1:]
        for part in rest:
            role = _role(part, words)
            if role in words:
                raise UserError(f"the threat {text!r} has two words for its {role}: {words[role]!r} and {part!r}")
            words[role] = part
        return _from_mapping(words, f"the threat {text!r}")


def _role(part: str, words: Mapping[str, str]) -> str:
    """Whether a word is a norm, units, a budget or an access; an unknown one stands for the first that is missing."""
    if part.partition("=")[0] in ("step", "episode", "sparse", "rate"):
        return "budget"
    for role, known in (("norm", get_args(Norm)), ("units", get_args(Units)), ("access", get_args(Access))):
        if part in known:
            return role
    return next((role for role in ("norm", "units") if role not in words), "budget")


def _from_mapping(data: Mapping[str, Any], source: str) -> Words:
    for key in data:
        if key not in ("channel", "norm", "units", "budget", "access"):
            raise UserError(f"{source}: {nearest(str(key), ('channel', 'norm', 'units', 'budget', 'access'), 'key')}")
    if not isinstance(data.get("channel"), str):
        raise UserError(f"{source} names no channel; known: {', '.join(CHANNELS)}")
    channel, _, where = data["channel"].partition("@")
    if channel not in CHANNELS:
        raise nearest(channel, CHANNELS, "channel")
    kind = CHANNELS[channel]
    implied = kind.units[0] if len(kind.units) == 1 and kind.units[0] != "raw" else None
    norm, units = data.get("norm", "linf" if implied else None), data.get("units", implied)
    if norm is None or units is None:
        missing = "norm, l2 or linf" if norm is None else f"units, {' or '.join(kind.units)}"
        raise UserError(
            f"{source}: a radius in the channel {channel} needs {missing} (CHANNEL:NORM:UNITS, for example "
            f"{channel}:l2:{kind.units[0]})"
        )
    access = data.get("access", "white")
    for value, known, role in ((norm, get_args(Norm), "norm"), (access, get_args(Access), "access")):
        if value not in known:
            raise nearest(str(value), known, role)
    if units not in kind.units:
        raise UserError(f"the channel {channel} counts in {' or '.join(kind.units)} units; found {units!r}")
    if (where and kind.placed is False) or (not where and kind.placed is True):
        needs = f"needs a place, as in {channel}@NAME" if kind.placed else "takes no place"
        raise UserError(f"the channel {channel} {needs}; found {data['channel']!r}")
    budget = Budget.parse(str(data.get("budget", "step")))
    if budget.kind == "episode" and norm != "l2":
        raise UserError(f"a budget over the episode is an energy: norm l2, not {norm}")
    if budget.kind != "step" and kind.lasts == "episode":
        raise UserError(f"the channel {channel} acts once per episode: it takes no budget; found {str(budget)!r}")
    return Words(channel, where or None, norm, units, budget, access)


@dataclass(frozen=True)
class Threat:
    """A set of disturbances of one environment.

    Attributes:
        words: channel, norm, units, budget, access.
        scale: (n,), raw units per unit of radius.
        names: (n,), of what is disturbed, with units.
        deviation: (n,), raw units per normalised unit, or None where there are no normalised units.
        channels: that the environment needs around it, with the number of components of each; none for observation and
            warm start, which the loop itself disturbs.
    """

    words: Words
    scale: tuple[float, ...]
    names: tuple[str, ...]
    deviation: tuple[float, ...] | None
    channels: tuple[tuple[AnyChannel, int], ...] = ()

    @staticmethod
    def parse(
        text: str, deviation: Array, names: tuple[str, ...], env: Env | None = None, *, horizon: int = 10
    ) -> "Threat":
        """A threat from its line or file.

        Args:
            text: see the module. deviation, names: standard deviation and name of each observation.
            env: needed by every channel but the observation. horizon: of the MPC whose warm start is attacked.

        Raises:
            UserError: see `Words.parse`; or a channel that the environment, or the command, does not have.
        """
        words = Words.parse(text)
        if words.channel == "observation":
            own = tuple(float(s) for s in deviation)
            return Threat(words, own if words.units == "normalised" else (1.0,) * len(own), names, own)
        if env is None:
            raise UserError(f"this command attacks the observation; `lipctrl evaluate` searches {words.channel}")
        warm = words.channel == "warm_start"
        place = warm_start(env, horizon) if warm else CHANNELS[words.channel].at(env, words.where)
        if words.units == "normalised" and place.half_widths is None:
            raise UserError(
                f"the channel {words.channel} has no finite range here that normalised units could refer to: use raw"
            )
        scale = place.half_widths if words.units == "normalised" else None
        return Threat(words, scale or (1.0,) * len(place.names), place.names, place.half_widths, place.channels)

    @property
    def seen(self) -> bool:
        """Whether it is the observation that is disturbed: nothing else reaches the policy alone."""
        return self.words.channel == "observation"

    @property
    def warm(self) -> bool:
        """Whether it is the warm start of MPC."""
        return self.words.channel == "warm_start"

    @property
    def kind(self) -> Kind:
        """What is known of the channel."""
        return CHANNELS[self.words.channel]

    def ball(self, radii: Array) -> Ball:
        """The set of disturbances of one step (or episode), in raw units, for one radius per row.

        Raises:
            UserError: a radius that the channel cannot have: a factor that is not positive, part of a step.
        """
        radius = np.asarray(radii, dtype=np.float64)
        if self.words.units == "relative" and (radius >= 1).any():
            raise UserError(
                f"a factor of {self.words.channel} must stay positive: radius below 1, found {radius.max():g}"
            )
        make = Samples if self.words.units == "steps" else Ball
        return make(self.words.norm, radius, np.array(self.scale))

    def sentence(self) -> str:
        """The threat in words."""
        words, kind = self.words, self.kind
        unit = {
            "raw": "raw units",
            "normalised": kind.normalised,
            "relative": "parts of the nominal value",
            "steps": "control steps",
        }[words.units]
        doing = kind.verb + (f" of {words.where}" if words.where else "")
        when, limit = "At every step", self._limit()
        if kind.lasts == "episode":
            when, limit = "Once per episode", "by at most the radius" if len(self.names) == 1 else f"by {limit}"
        else:
            limit = f"a disturbance {limit}"
        rest = f"; {kind.rest}" if kind.rest else ""
        return f"{when} the adversary, {KNOWS[words.access]}, {doing} {limit}, in {unit}{rest}."

    def _limit(self) -> str:
        """How large a disturbance may be, in words."""
        size, amount = f"whose {SIZE[self.words.norm]} is at most the radius", f"{self.words.budget.amount:g}"
        if self.kind.lasts == "episode":
            return f"an amount {size}"
        return {
            "step": size,
            "episode": "whose energy (the root of the sum of squared norms over the episode) is at most the radius",
            "sparse": f"{size}, in at most {amount} steps of the episode",
            "rate": f"{size} and changes by at most {amount} times the radius per step, from zero",
        }[self.words.budget.kind]

    def table(self, radius: float) -> list[dict[str, str | float | None]]:
        """What a radius means for each component alone, in raw and, where there are any, in normalised units."""
        rows: list[dict[str, str | float | None]] = []
        for i, (name, scale) in enumerate(zip(self.names, self.scale, strict=True)):
            own = None if self.deviation is None else self.deviation[i]
            raw = radius * scale
            rows.append({"name": name, "raw": raw, "normalised": None if own is None else raw / own, "deviation": own})
        return rows
