"""Exact worst cases: what every search is measured against, and may never exceed.

For x+ = A x + B u, cost sum x'Qx + u'Ru plus x_T' P x_T with P from the Riccati equation, and u = -K (x + d_t) with the
optimal K, completing the square gives (S = R + B'PB)

    cost = x_0' P x_0 + sum_t d_t' K' S K d_t,

so the worst perturbation separates over time and does not depend on the state.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.norms import Norm

Array = NDArray[np.float64]
LARGEST = 16  # observations whose sign vectors are still enumerated


def lqr_extra_cost(gain: Array, weight: Array, *, norm: Norm, radius: float, scale: Array, steps: int) -> float:
    """The largest cost that an observation perturbation can add to an LQR loop with terminal cost P.

    Args:
        gain: optimal K, shape (m, n). weight: S = R + B'PB, shape (m, m).
        norm, radius, scale: at every step |d / scale| <= radius.
        steps: number of perturbed steps.

    Raises:
        UserError: l_inf with more than 16 observations (the vertices are enumerated).
    """
    quadratic = (gain * scale).T @ weight @ (gain * scale)
    if norm == "l2":
        return float(steps * radius**2 * np.linalg.eigvalsh(quadratic)[-1])
    n = gain.shape[1]
    if n > LARGEST:
        raise UserError(f"the exact l_inf worst case enumerates sign vectors: at most {LARGEST} observations, not {n}")
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=n)))
    return float(steps * radius**2 * np.einsum("ki,ij,kj->k", signs, quadratic, signs).max())
