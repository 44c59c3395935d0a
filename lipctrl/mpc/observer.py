"""State and disturbance observer: what MPC needs to know of a plant that is pushed, or that is not quite its model.

The model is augmented by constant disturbances (Pannocchia and Rawlings, "Disturbance models for offset-free
model-predictive control", AIChE Journal 49, 2003),

    x+ = f(x, u) + Bd d,   d+ = d,   y = C x + Cd d,

and observed with a constant gain in filter form: measure, then predict. The gain is the stationary Kalman gain of the
linearisation, or any other that makes the error of the linearisation decay (Luenberger).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.plant import Plant

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DisturbanceModel:
    """Where p measured outputs see n states and constant disturbances, one per output.

    As many disturbances as outputs are what makes the offset vanish whatever the plant (Pannocchia and Rawlings,
    theorem 1).

    Attributes:
        C: outputs from states, shape (p, n).
        Bd: disturbances into states, shape (n, p).
        Cd: disturbances into outputs, shape (p, p).
    """

    C: Array
    Bd: Array
    Cd: Array

    def __post_init__(self) -> None:
        p, n = np.atleast_2d(self.C).shape
        for name, shape in (("C", (p, n)), ("Bd", (n, p)), ("Cd", (p, p))):
            value = getattr(self, name)
            if np.shape(value) != shape or not np.isfinite(value).all():
                raise UserError(f"disturbance model: {name} needs shape {shape}, all finite, found {np.shape(value)}")

    def augmented(self, A: Array) -> tuple[Array, Array]:
        """([[A, Bd], [0, I]], [C, Cd]) for a linearisation A (n, n).

        Raises:
            UserError: sizes differ, or the disturbances cannot be told from the states by the outputs.
        """
        p, n = self.C.shape
        if A.shape != (n, n):
            raise UserError(f"the disturbance model has {n} states, the plant {len(A)}")
        system = np.block([[A, self.Bd], [np.zeros((p, n)), np.eye(p)]])
        outputs = np.hstack([self.C, self.Cd])
        # at the eigenvalue 1 of the disturbances this is the condition of Pannocchia and Rawlings
        for value in np.linalg.eigvals(system):
            if abs(value) >= 1 - 1e-9 and _rank(np.vstack([system - value * np.eye(n + p), outputs])) < n + p:
                raise UserError(
                    f"the disturbance model is not detectable: the mode with eigenvalue {value:.6g} of states and "
                    "disturbances does not show in the outputs; choose other Bd and Cd, or measure more"
                )
        return system, outputs


def _rank(matrix: NDArray[np.complex128]) -> int:
    columns = np.linalg.norm(matrix, axis=0)
    return int(np.linalg.matrix_rank(matrix / np.where(columns > 0, columns, 1.0), tol=1e-9))


@dataclass(frozen=True)
class Estimate:
    """Estimated state x (n,) and disturbance d (p,)."""

    x: Array
    d: Array


@dataclass(frozen=True)
class Observer:
    """Observes state and disturbance of a plant. Holds no state: the estimate is an argument.

    Attributes:
        plant: the model f, linearised at its equilibrium to check the gain.
        model: the disturbances and outputs.
        gain: from the innovation to (x, d), shape (n + p, p).

    Raises:
        UserError: sizes differ, the model is not detectable, or the error of the linearisation does not decay.
    """

    plant: Plant
    model: DisturbanceModel
    gain: Array

    def __post_init__(self) -> None:
        system, outputs = self.model.augmented(self.plant.linearise(*self.plant.equilibrium)[0])
        if np.shape(self.gain) != outputs.T.shape:
            raise UserError(f"the observer gain needs shape {outputs.T.shape}, found {np.shape(self.gain)}")
        radius = np.abs(np.linalg.eigvals(system - system @ self.gain @ outputs)).max()
        if not radius < 1:
            raise UserError(f"the observer gain lets the estimation error grow: spectral radius {radius:.6g}")

    def start(self, y: ArrayLike) -> Estimate:
        """The estimate from a first measurement y (p,): no disturbance, the state that explains y near equilibrium."""
        x, C = self.plant.equilibrium[0], self.model.C
        return Estimate(x + np.linalg.pinv(C) @ (self._measured(y) - C @ x), np.zeros(len(C)))

    def correct(self, estimate: Estimate, y: ArrayLike) -> Estimate:
        """The estimate after a measurement y (p,).

        Raises:
            UserError: y has the wrong shape or is not finite.
        """
        innovation = self._measured(y) - self.model.C @ estimate.x - self.model.Cd @ estimate.d
        correction, n = self.gain @ innovation, len(estimate.x)
        return Estimate(estimate.x + correction[:n], estimate.d + correction[n:])

    def predict(self, estimate: Estimate, u: ArrayLike) -> Estimate:
        """The estimate one sampling period later, input u (m,) held."""
        return Estimate(self.plant.step(estimate.x, u) + self.model.Bd @ estimate.d, estimate.d)

    def _measured(self, y: ArrayLike) -> Array:
        value, size = np.asarray(y, np.float64), len(self.model.C)
        if value.shape != (size,) or not np.isfinite(value).all():
            raise UserError(f"the measurement needs shape ({size},) and finite numbers, found {value}")
        return value


def kalman_observer(
    plant: Plant, model: DisturbanceModel, *, process: ArrayLike, disturbance: ArrayLike, measurement: ArrayLike
) -> Observer:
    """The observer with the stationary Kalman gain of the linearisation at the plant's equilibrium.

    Args:
        plant, model: see `Observer`.
        process: covariance (n, n) of what is added to the state in a step, in the plant's units.
        disturbance: covariance (p, p) of a step of the disturbances, positive definite; larger follows faster.
        measurement: covariance (p, p) of the measurement noise, positive definite.

    Raises:
        UserError: sizes differ, a covariance is not one, or the model is not detectable.
    """
    system, outputs = model.augmented(plant.linearise(*plant.equilibrium)[0])
    p, n = model.C.shape
    W, D, V = (_covariance(value, size) for value, size in ((process, n), (disturbance, p), (measurement, p)))
    if np.linalg.eigvalsh(D).min() <= 0 or np.linalg.eigvalsh(V).min() <= 0:
        raise UserError("the covariances of disturbance and measurement must be positive definite")
    noise = np.block([[W, np.zeros((n, p))], [np.zeros((p, n)), D]])
    # the Riccati equation of the filter is that of the regulator of the transposed system
    covariance = lqr(system.T, outputs.T, noise, V).P
    innovation = outputs @ covariance @ outputs.T + V
    return Observer(plant, model, np.asarray(np.linalg.solve(innovation, outputs @ covariance).T, np.float64))


def _covariance(value: ArrayLike, size: int) -> Array:
    matrix = np.atleast_2d(np.asarray(value, np.float64))
    if matrix.shape != (size, size) or not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T):
        raise UserError(f"a covariance needs a symmetric ({size}, {size}) matrix, found shape {matrix.shape}")
    if np.linalg.eigvalsh(matrix).min() < -1e-12 * np.abs(matrix).max():
        raise UserError("a covariance must be positive semidefinite")
    return matrix
