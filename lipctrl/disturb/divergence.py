"""Environments that diverge: found out at the step where they do, in one sentence, never averaged into a result.

MuJoCo resets a simulation that has blown up and goes on from there, with nothing but a warning; gymnasium does not look
at it, so that the episode ends as if the start state had been reached.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError

Array = NDArray[np.float64]


def check_finite(name: str, observations: Array, rewards: Array, rows: NDArray[np.int64]) -> None:
    """Refuse what an environment answered if it is not finite.

    Args:
        name: of the environment. observations: (k, n). rewards: (k,). rows: of the batch that they belong to, (k,).

    Raises:
        UserError: it diverged; the row is named.
    """
    finite = np.isfinite(observations).all(axis=1) & np.isfinite(rewards)
    if not finite.all():
        worst = int(np.flatnonzero(~finite)[0])
        raise UserError(
            f"{name} diverged in loop {rows[worst]} of a batch: observation {observations[worst].tolist()}, reward "
            f"{rewards[worst]:g}; nothing can be said of a loop that is not simulated"
        )


def check_stable(name: str, data: Any, row: int) -> None:
    """Refuse an episode in which MuJoCo started again because the simulation had blown up.

    Args:
        name: of the environment. data: MjData of its episode. row: of the batch.

    Raises:
        UserError: it diverged.
    """
    import mujoco

    kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
    if any(data.warning[kind].number for kind in kinds):
        raise UserError(
            f"{name} diverged in loop {row} of a batch: MuJoCo found positions, velocities or accelerations that are "
            "not finite or huge and began again from the start; nothing can be said of a loop that is not simulated"
        )
