"""Linearisation of a MuJoCo task over one control step, by MuJoCo's own finite differences.

`mjd_transitionFD` does not support the Runge-Kutta integrator. Tasks that use it (InvertedPendulum, Hopper, ...) are
linearised with the semi-implicit Euler integrator at the same time step, which differs in second order of the step.
"""

import copy
from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linearise(env: gymnasium.Env[Any, Any], *, step: float = 1e-6) -> tuple[Array, Array]:
    """(A, B) of one control step (frame_skip physics steps, control held) at the model's reference position, at rest.

    Args:
        env: a gymnasium MuJoCo task. Its own state is not touched.
        step: of the centred differences of `mjd_transitionFD`.

    Returns:
        A, shape (2 nv, 2 nv), on (position, velocity) displacements, and B, shape (2 nv, nu).
    """
    model, frame_skip = copy.copy(env.unwrapped.model), env.unwrapped.frame_skip  # type: ignore[attr-defined]
    if model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4:
        model.opt.integrator = mujoco.mjtIntegrator.mjINT_EULER
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    size = 2 * model.nv + model.na
    a, b = np.zeros((size, size)), np.zeros((size, model.nu))
    mujoco.mjd_transitionFD(model, data, step, True, a, b, None, None)
    held, power = np.zeros_like(b), np.eye(size)
    for _ in range(frame_skip):
        held, power = a @ held + b, a @ power
    return power, held
