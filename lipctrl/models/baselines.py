"""What every learned model must beat: the state stays, and least squares on the start and the inputs.

Features are scaled; a ridge of 1e-9 picks the smallest coefficients where inputs repeat each other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.models.model import Scaling
from lipctrl.models.windows import Windows

Array = NDArray[np.float64]
Features = Callable[[Array, Array], Array]
RIDGE = 1e-9


def affine_features(p: Array, u: Array) -> Array:
    """[1, p, u_0, .., u_{T-1}] (W, 1+n+Tm)."""
    return np.hstack([np.ones((len(p), 1)), p, u.reshape(len(p), -1)])


def quadratic_features(p: Array, u: Array) -> Array:
    """The affine features and all products of two of [p, u_0, .., u_{T-1}]."""
    x = np.hstack([p, u.reshape(len(p), -1)])
    i, j = np.triu_indices(x.shape[1])
    return np.hstack([np.ones((len(p), 1)), x, x[:, i] * x[:, j]])


@dataclass(frozen=True)
class Baseline:
    """A prediction of scaled states (W, T, n) from scaled starts and inputs; `parameters` counts its numbers."""

    predict: Features
    parameters: int


def baselines(train: Windows, scaling: Scaling) -> dict[str, Baseline]:
    """Persistence, affine and quadratic least squares, fitted to training windows.

    Where every window holds its input, the quadratic features are of the first input only; where there are more of them
    than half the windows, there is no quadratic baseline.
    """
    p, u, y = scaling.scaled(train)
    T, n = y.shape[1:]
    held = 1 if np.allclose(u, u[:, :1]) else T
    found = {"persistence": Baseline(lambda p, u: np.repeat(p[:, None], u.shape[1], axis=1), 0)}
    for name, features, steps in (("affine", affine_features, T), ("quadratic", quadratic_features, held)):
        size = features(p[:1], u[:1, :steps]).shape[1]
        if name == "quadratic" and size > len(p) / 2:
            continue
        A = features(p, u[:, :steps])
        w = np.linalg.solve(A.T @ A + RIDGE * len(A) * np.eye(size), A.T @ y.reshape(len(y), -1))
        found[name] = Baseline(_prediction(features, np.asarray(w), steps, (T, n)), w.size)
    return found


def _prediction(features: Features, weights: Array, steps: int, shape: tuple[int, int]) -> Features:
    return lambda p, u: np.asarray(features(p, u[:, :steps]) @ weights).reshape(len(p), *shape)


def causal_affine(p: Array, u: Array, y: Array) -> tuple[Array, Array, Array]:
    """Least squares of every step on p and the inputs up to it: (T, n, n), (T, T, n, m) and offsets (T, n)."""
    T, n, m = y.shape[1], y.shape[2], u.shape[2]
    from_start, from_inputs, offset = np.zeros((T, n, n)), np.zeros((T, T, n, m)), np.zeros((T, n))
    for k in range(T):
        A = affine_features(p, u[:, : k + 1])
        w = np.linalg.solve(A.T @ A + RIDGE * len(A) * np.eye(A.shape[1]), A.T @ y[:, k])
        offset[k], from_start[k] = w[0], w[1 : 1 + n].T
        from_inputs[k, : k + 1] = w[1 + n :].reshape(k + 1, m, n).transpose(0, 2, 1)
    return from_start, from_inputs, offset
