"""Activations: values, derivatives and the slope intervals that certificates rest on (numpy).

A scalar activation phi has slope interval [alpha, beta] if alpha <= (phi(a)-phi(b))/(a-b) <= beta for all a != b.
The intervals of the non-monotone activations were found by dense derivative sampling and are rounded outward in the
fifth digit (`tests/nn/test_activations.py` checks every interval). MaxMin, GroupSort and Householder act on groups of
neurons; they are 1-Lipschitz in the 2-norm but not slope-restricted (Anil et al. 2019; Singla et al. 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from lipctrl.files import UserError

Array = NDArray[np.float64]
Pointwise = Callable[[Array, float], Array]


@dataclass(frozen=True)
class _Scalar:
    value: Pointwise
    derivative: Pointwise
    slopes: Callable[[float], tuple[float, float]]
    default: float = 0.0
    check: Callable[[float], bool] = field(default=lambda _: True)


def _softplus(z: Array, _: float) -> Array:
    return np.asarray(np.logaddexp(0.0, z))


def _gelu_derivative(z: Array, _: float) -> Array:
    return np.asarray(0.5 * (1 + erf(z / np.sqrt(2))) + z * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))


def _silu_derivative(z: Array, _: float) -> Array:
    s = np.asarray(expit(z))
    return np.asarray(s + z * s * (1 - s))


def _mish_derivative(z: Array, _: float) -> Array:
    t = np.tanh(np.logaddexp(0.0, z))
    return np.asarray(t + z * (1 - t * t) * expit(z))


SCALAR: dict[str, _Scalar] = {
    "identity": _Scalar(lambda z, _: z, lambda z, _: np.ones_like(z), lambda _: (1.0, 1.0)),
    "relu": _Scalar(lambda z, _: np.maximum(z, 0.0), lambda z, _: (z > 0).astype(np.float64), lambda _: (0.0, 1.0)),
    "tanh": _Scalar(lambda z, _: np.tanh(z), lambda z, _: 1 - np.tanh(z) ** 2, lambda _: (0.0, 1.0)),
    "hardtanh": _Scalar(
        lambda z, _: np.clip(z, -1.0, 1.0),
        lambda z, _: (np.abs(z) < 1).astype(np.float64),
        lambda _: (0.0, 1.0),
    ),
    "softplus": _Scalar(_softplus, lambda z, _: np.asarray(expit(z)), lambda _: (0.0, 1.0)),
    "softsign": _Scalar(lambda z, _: z / (1 + np.abs(z)), lambda z, _: 1 / (1 + np.abs(z)) ** 2, lambda _: (0.0, 1.0)),
    "elu": _Scalar(
        lambda z, a: np.where(z > 0, z, a * np.expm1(np.minimum(z, 0.0))),
        lambda z, a: np.where(z > 0, 1.0, a * np.exp(np.minimum(z, 0.0))),
        lambda a: (0.0, max(1.0, a)),
        default=1.0,
        check=lambda a: a > 0,
    ),
    "leaky_relu": _Scalar(
        lambda z, a: np.where(z > 0, z, a * z),
        lambda z, a: np.where(z > 0, 1.0, a),
        lambda a: (min(a, 1.0), max(a, 1.0)),
        default=0.01,
    ),
    "sigmoid": _Scalar(
        lambda z, _: np.asarray(expit(z)),
        lambda z, _: np.asarray(expit(z)) * (1 - np.asarray(expit(z))),
        lambda _: (0.0, 0.25),
    ),
    "abs": _Scalar(lambda z, _: np.abs(z), lambda z, _: np.sign(z), lambda _: (-1.0, 1.0)),
    "silu": _Scalar(lambda z, _: z * np.asarray(expit(z)), _silu_derivative, lambda _: (-0.09985, 1.09985)),
    "gelu": _Scalar(
        lambda z, _: np.asarray(0.5 * z * (1 + erf(z / np.sqrt(2)))),
        _gelu_derivative,
        lambda _: (-0.12892, 1.12892),
    ),
    "mish": _Scalar(lambda z, _: z * np.tanh(np.logaddexp(0.0, z)), _mish_derivative, lambda _: (-0.11254, 1.08851)),
    "hardswish": _Scalar(
        lambda z, _: z * np.clip(z + 3, 0.0, 6.0) / 6,
        lambda z, _: np.where(z <= -3, 0.0, np.where(z >= 3, 1.0, (2 * z + 3) / 6)),
        lambda _: (-0.5, 1.5),
    ),
}
GROUP = ("maxmin", "groupsort", "householder")


@dataclass(frozen=True)
class Activation:
    """One layer's activation.

    Attributes:
        name: a key of `SCALAR`, or "maxmin" (pairs, larger first), "groupsort" (groups, descending), "householder".
        parameter: negative slope of leaky_relu, alpha of elu, group size of groupsort and householder; else unused.
        vectors: householder only, shape (groups, group size): x -> x - 2 v min(v'x, 0) per group. The map is
            1-Lipschitz when |v| = 1; certificates use the stored v, whatever its norm.
    """

    name: str
    parameter: float = 0.0
    vectors: Array | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.name == "householder" and (self.vectors is None or self.vectors.ndim != 2):
            raise ValueError("householder needs vectors of shape (groups, group size)")
        if self.name in SCALAR and not SCALAR[self.name].check(self.parameter):
            raise ValueError(f"activation {self.name} does not take the parameter {self.parameter}")

    @property
    def is_scalar(self) -> bool:
        """Whether the activation acts on each neuron alone."""
        return self.name in SCALAR

    @property
    def group_size(self) -> int:
        """Neurons per group: 1 for scalar activations, 2 for MaxMin."""
        if self.name == "maxmin":
            return 2
        return int(self.parameter) if self.name in GROUP else 1

    @property
    def slopes(self) -> tuple[float, float]:
        """Slope interval [alpha, beta], valid on the whole real line.

        Raises:
            ValueError: for a group activation, which has none.
        """
        if not self.is_scalar:
            raise ValueError(f"{self.name} is not slope-restricted")
        return SCALAR[self.name].slopes(self.parameter)

    def __call__(self, z: Array) -> Array:
        """Values at pre-activations of shape (..., width)."""
        if self.is_scalar:
            return SCALAR[self.name].value(z, self.parameter)
        grouped = z.reshape(*z.shape[:-1], -1, self.group_size)
        if self.vectors is not None:
            inner = np.minimum((grouped * self.vectors).sum(-1, keepdims=True), 0.0)
            return np.asarray(grouped - 2 * inner * self.vectors).reshape(z.shape)
        return np.asarray(-np.sort(-grouped, axis=-1)).reshape(z.shape)

    def derivative(self, z: Array) -> Array:
        """An element of Clarke's generalised Jacobian: (..., width) if scalar, else (..., width, width)."""
        if self.is_scalar:
            return SCALAR[self.name].derivative(z, self.parameter)
        g, width = self.group_size, z.shape[-1]
        grouped = z.reshape(*z.shape[:-1], width // g, g)
        if self.vectors is not None:
            reflected = (grouped * self.vectors).sum(-1) < 0
            outer = self.vectors[:, :, None] * self.vectors[:, None, :]
            local = np.eye(g) - 2 * reflected[..., None, None] * outer
        else:
            local = np.eye(g)[np.argsort(-grouped, axis=-1, kind="stable")]
        full = np.zeros((*z.shape, width))
        for k in range(width // g):
            full[..., k * g : (k + 1) * g, k * g : (k + 1) * g] = local[..., k, :, :]
        return full

    def spec(self) -> str:
        """Text form, for example `relu`, `leaky_relu:0.1`, `groupsort:4`; read back by `parse`."""
        plain = self.name in ("maxmin",) or (self.is_scalar and SCALAR[self.name].default == 0.0)
        return self.name if plain else f"{self.name}:{self.parameter!r}"

    @staticmethod
    def parse(text: str, vectors: Array | None = None) -> "Activation":
        """The activation named by `text`.

        Raises:
            UserError: the name is unknown.
        """
        name, _, number = text.partition(":")
        if name not in SCALAR and name not in GROUP:
            raise UserError(f"unknown activation {name!r}; known: {', '.join([*SCALAR, *GROUP])}")
        default = SCALAR[name].default if name in SCALAR else 2.0
        return Activation(name, float(number) if number else default, vectors)
