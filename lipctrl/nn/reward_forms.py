"""Rewards from the logit z of a discriminator D = sigmoid(z), each with its proved slope in z.

A reward form r(z) with |r'(z)| <= c turns a k-Lipschitz logit into a c k-Lipschitz reward. The logit may be clipped to
[-m, m] first, which changes no slope bound, makes the reward bounded, and is required where r' is not bounded.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from lipctrl.files import UserError, nearest

if TYPE_CHECKING:  # torch takes seconds to import
    import torch

Array = NDArray[np.float64]
Pointwise = Callable[[Array], Array]
ROUNDED_UP = 1 + 1e-12  # covers the rounding of exp and of a product


@dataclass(frozen=True)
class RewardForm:
    """A reward as a function of the logit.

    Attributes:
        formula: in terms of D and z.
        value, derivative: r(z) and r'(z).
        slope: upper bound of |r'(z)| over |z| <= m, for m in (0, inf].
        sign: 1 if r > 0 everywhere, so that it pays for every step that an episode lasts; -1 if r < 0 everywhere, so
            that it pays for ending; 0: both signs.
        flat: the zeros of r'; between and outside of them |r'| has no local minimum.
    """

    formula: str
    value: Pointwise
    derivative: Pointwise
    slope: Callable[[float], float]
    sign: int
    flat: tuple[float, ...] = ()

    @property
    def monotone(self) -> bool:
        """Whether r rises with z throughout."""
        return not self.flat


def _fairl_slope(clip: float) -> float:
    return (1 + clip) * math.exp(clip) * ROUNDED_UP if clip < 700 else math.inf


REWARD_FORMS: dict[str, RewardForm] = {
    "softplus": RewardForm(
        "-log(1 - D) = softplus(z)", lambda z: np.asarray(np.logaddexp(0.0, z)), expit, lambda _: 1.0, 1
    ),
    "airl": RewardForm("log D - log(1 - D) = z", lambda z: z, np.ones_like, lambda _: 1.0, 0),
    "log-d": RewardForm("log D", lambda z: -np.logaddexp(0.0, -z), lambda z: np.asarray(expit(-z)), lambda _: 1.0, -1),
    "d": RewardForm("D", expit, lambda z: np.asarray(expit(z) * expit(-z)), lambda _: 0.25, 1),
    "fairl": RewardForm(
        "-z exp(z)", lambda z: -z * np.exp(z), lambda z: -(1 + z) * np.exp(z), _fairl_slope, 0, flat=(-1.0,)
    ),
}
"""Reward forms by name."""


def reward_form(name: str, clip: float = math.inf) -> RewardForm:
    """The form of a name, to be used with logits clipped to [-clip, clip].

    Raises:
        UserError: unknown name, a clip that is not positive, or a form whose slope is unbounded without one.
    """
    if name not in REWARD_FORMS:
        raise nearest(name, REWARD_FORMS, "reward form")
    if not clip > 0:
        raise UserError(f"the clip of the logit must be positive, found {clip}")
    if not math.isfinite(REWARD_FORMS[name].slope(clip)):
        raise UserError(
            f"the reward form {name!r} needs a clip of the logit (below 700), found {clip}: it has no bound"
        )
    return REWARD_FORMS[name]


def reward_of(name: str, logit: ArrayLike, clip: float = math.inf) -> Array:
    """Rewards of logits, elementwise, float64; errors as `reward_form`."""
    form = reward_form(name, clip)
    return np.asarray(form.value(np.clip(np.asarray(logit, np.float64), -clip, clip)), np.float64)


def reward_tensor(name: str, logit: "torch.Tensor", clip: float = math.inf) -> "torch.Tensor":
    """The same on a torch tensor, in its type and on its device; differentiable within the clip."""
    import torch
    from torch.nn.functional import logsigmoid

    reward_form(name, clip)
    forms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "softplus": lambda z: -logsigmoid(-z),
        "airl": lambda z: z,
        "log-d": logsigmoid,
        "d": torch.sigmoid,
        "fairl": lambda z: -z * torch.exp(z),
    }
    return forms[name](logit.clamp(-clip, clip) if math.isfinite(clip) else logit)


def reward_slope(name: str, clip: float = math.inf) -> float:
    """Upper bound of |dr/dz|; errors as `reward_form`."""
    return reward_form(name, clip).slope(clip)


def reward_range(name: str, clip: float = math.inf) -> tuple[float, float]:
    """(low, high) between which every reward lies; infinite where it is unbounded. Errors as `reward_form`."""
    form = reward_form(name, clip)
    with np.errstate(over="ignore"):
        ends = form.value(np.array([-clip, clip, *(z for z in form.flat if -clip < z < clip)]))
    return float(ends.min()), float(ends.max())


def least_slope(name: str, low: float, high: float, clip: float = math.inf) -> float:
    """Lower bound of |dr/dz| over the logits in [low, high]: 0 where the interval leaves the clip."""
    form = reward_form(name, clip)
    if not (-clip < low <= high < clip) or any(low <= z <= high for z in form.flat):
        return 0.0
    ends = np.abs(form.derivative(np.array([low, high])))
    return max(0.0, float(ends.min()) * (2 - ROUNDED_UP))
