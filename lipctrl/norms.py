"""Norms and units: in which norm a constant holds, and where scaling enters it.

A pair of norms states |S_out^-1 (f(x) - f(y))|_q <= L |S_in^-1 (x - y)|_p with positive diagonal scales. Raw units have
no scales; "normalised" units have S_in = the observation normaliser's standard deviations.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError

Norm = Literal["l2", "linf"]
ORDER = {"l2": 2, "linf": np.inf}


@dataclass(frozen=True)
class NormPair:
    """The norms (with scales) of inputs and outputs that a Lipschitz constant refers to."""

    input: Norm = "l2"
    output: Norm = "l2"
    input_scale: tuple[float, ...] | None = None
    output_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in (self.input, self.output):
            if name not in get_args(Norm):
                raise UserError(f"unknown norm {name!r}; known: {', '.join(get_args(Norm))}")
        for scale in (self.input_scale, self.output_scale):
            if scale is not None and not all(math.isfinite(s) and s > 0 for s in scale):
                raise UserError(f"norm scales must be positive and finite; found {scale}")

    def of_input(self, d: ArrayLike) -> NDArray[np.float64]:
        """Norm of input differences of shape (..., n)."""
        return _norm(d, self.input, self.input_scale)

    def of_output(self, d: ArrayLike) -> NDArray[np.float64]:
        """Norm of output differences of shape (..., m)."""
        return _norm(d, self.output, self.output_scale)

    def __str__(self) -> str:
        units = "raw units" if self.input_scale is None and self.output_scale is None else "scaled units"
        return f"{self.input} -> {self.output}, {units}"


def _norm(d: ArrayLike, norm: Norm, scale: tuple[float, ...] | None) -> NDArray[np.float64]:
    d = np.asarray(d, dtype=np.float64)
    return np.asarray(np.linalg.norm(d if scale is None else d / np.array(scale), ord=ORDER[norm], axis=-1))


def dual_exponent(norm: Norm) -> float:
    """Exponent of the dual norm: sup of g'd over |d| <= 1 is |g| in the dual."""
    return 2.0 if norm == "l2" else 1.0
