"""Infinite-horizon linear-quadratic regulator of a sampled linear plant: the reference controller."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LqrSolution:
    """u = -K x minimises sum x'Qx + u'Ru over x+ = A x + B u.

    Attributes:
        K: gain (m, n). P: cost-to-go matrix (n, n), optimal cost x_0' P x_0. S: R + B'PB (m, m).
        A_cl: A - B K. eigenvalues: of A_cl.
    """

    K: Array
    P: Array
    S: Array
    A_cl: Array
    eigenvalues: NDArray[np.complex128]


def lqr(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike) -> LqrSolution:
    """Solve the discrete algebraic Riccati equation.

    Args:
        A, B: plant, shapes (n, n) and (n, m). Q, R: weights (n, n), positive semidefinite, and (m, m), positive.

    Raises:
        UserError: shapes do not match, or (A, B) cannot be stabilised.
    """
    a, b, q, r = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (A, B, Q, R))
    n, m = b.shape
    if a.shape != (n, n) or q.shape != (n, n) or r.shape != (m, m):
        raise UserError(
            f"LQR needs A (n, n), B (n, m), Q (n, n), R (m, m); found {a.shape} {b.shape} {q.shape} {r.shape}"
        )
    try:
        p = scipy.linalg.solve_discrete_are(a, b, q, r)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise UserError(
            f"the Riccati equation has no stabilising solution for this plant and weights ({error})"
        ) from error
    s = r + b.T @ p @ b
    k = np.linalg.solve(s, b.T @ p @ a)
    closed = a - b @ k
    eigenvalues = np.asarray(np.linalg.eigvals(closed), np.complex128)
    if not np.abs(eigenvalues).max() < 1:
        raise UserError(
            "the Riccati equation has no stabilising solution for this plant and weights "
            f"(a closed-loop eigenvalue has modulus {np.abs(eigenvalues).max():.9g})"
        )
    return LqrSolution(k, p, s, closed, eigenvalues)
