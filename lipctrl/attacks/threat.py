"""Threat: where a disturbance may enter, in which norm and units. It prints itself as a sentence.

One line describes it on the command line: `CHANNEL:NORM:UNITS`, for example `observation:l2:raw` or
`observation:linf:normalised`; the radii are given apart.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError, nearest
from lipctrl.norms import Norm

Array = NDArray[np.float64]
Units = Literal["raw", "normalised"]
CHANNELS = ("observation",)


@dataclass(frozen=True)
class Threat:
    """A set of disturbances, the same at every step, chosen with full knowledge of the policy and the current state.

    Attributes:
        channel: "observation": the policy sees s + d while the plant stays at s.
        norm: of d at every step.
        units: "raw", or "normalised": d_i counts in standard deviations of observation i.
        deviation: standard deviation of each observation (n,), from the demonstrations.
        names: of the observations, with units.
    """

    channel: str
    norm: Norm
    units: Units
    deviation: tuple[float, ...]
    names: tuple[str, ...]

    @staticmethod
    def parse(text: str, deviation: Array, names: tuple[str, ...]) -> "Threat":
        """A threat from its line.

        Raises:
            UserError: not of the form CHANNEL:NORM:UNITS, or an unknown channel, norm or unit.
        """
        parts = text.split(":")
        if len(parts) != 3:
            raise UserError(f"a threat is CHANNEL:NORM:UNITS, for example observation:l2:raw; found {text!r}")
        for part, known, kind in zip(
            parts, (CHANNELS, get_args(Norm), get_args(Units)), ("channel", "norm", "units"), strict=True
        ):
            if part not in known:
                raise nearest(part, known, kind)
        channel, norm, units = parts
        return Threat(channel, norm, units, tuple(float(s) for s in deviation), names)  # type: ignore[arg-type]  # checked

    def ball(self, radii: Array) -> Ball:
        """The set of perturbations, in raw units, for one radius per row."""
        scale = np.ones(len(self.deviation)) if self.units == "raw" else np.array(self.deviation)
        return Ball(self.norm, np.asarray(radii, dtype=np.float64), scale)

    def sentence(self) -> str:
        """The threat in words."""
        size = {"l2": "Euclidean norm", "linf": "largest component"}[self.norm]
        unit = "raw units" if self.units == "raw" else "standard deviations of the demonstrations' observations"
        return (
            f"At every step the adversary, who knows the policy and the true state, adds to the observation a "
            f"perturbation whose {size} is at most the radius, in {unit}; the plant itself is not touched."
        )

    def table(self, radius: float) -> list[dict[str, str | float]]:
        """What a radius means for each observation alone, in raw and in normalised units."""
        rows: list[dict[str, str | float]] = []
        for name, deviation in zip(self.names, self.deviation, strict=True):
            raw = radius if self.units == "raw" else radius * deviation
            rows.append({"observation": name, "raw": raw, "normalised": raw / deviation, "deviation": deviation})
        return rows
