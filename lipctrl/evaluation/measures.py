"""What is measured of a closed loop beside its return: roughness, saturation, tracking, constraints, solves."""

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Measures:
    """Measures of a batch of episodes, counted up step by step."""

    def __init__(self, rows: int, space: spaces.Box, reference: Array | None) -> None:
        """Nothing measured yet.

        Args:
            space: of the actions; where all limits are finite, roughness is in half widths of the range, else raw.
            reference: observation (n,) that the task holds, or None.
        """
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        half = (self._high - self._low) / 2
        self._unit = half if np.isfinite(half).all() and (half > 0).all() else np.ones_like(half)
        self._reference, self._last = reference, np.zeros((rows, *space.shape))
        self._steps, self._change, self._limited, self._square = (np.zeros(rows) for _ in range(4))
        self.violation = np.zeros(rows)
        self.fallbacks, self._iterations = np.full(rows, np.nan), np.full(rows, np.nan)

    def step(self, observation: Array, actions: Array, running: Flags) -> None:
        """Count one step of the running rows: true observations (rows, n) and the policy's actions (rows, m)."""
        applied = np.clip(actions, self._low, self._high)
        later = np.logical_and(running, self._steps > 0)
        self._change[later] += np.linalg.norm((applied - self._last) / self._unit, axis=1)[later]
        at_limit: Flags = np.any(np.logical_or(actions <= self._low, actions >= self._high), axis=1)
        self._limited[running] += at_limit[running]
        if self._reference is not None:
            self._square[running] += ((observation - self._reference) ** 2).sum(1)[running]
        self._steps[running] += 1
        self._last = applied

    def reached(self, violation: Array, running: Flags) -> None:
        """Count where one step of the running rows led, a violation (rows,) of the task's constraints (see `Stepper`).

        `violation` is the largest of an episode, (rows,); NaN where the task declares no constraint.
        """
        self.violation[running] = np.maximum(self.violation, violation)[running]

    def solved(self, fallbacks: Flags, iterations: Array, running: Flags) -> None:
        """Count the solves of one step: where a fallback acted, and the iterations of the solver, (rows,).

        `fallbacks` are the steps with one, (rows,); NaN for policies that solve nothing.
        """
        self.fallbacks[running] = (np.nan_to_num(self.fallbacks) + fallbacks)[running]
        self._iterations[running] = (np.nan_to_num(self._iterations) + iterations)[running]

    @property
    def iterations(self) -> Array:
        """Mean iterations of the solver per step, (rows,); NaN for policies that solve nothing."""
        return self._iterations / np.maximum(self._steps, 1)

    @property
    def roughness(self) -> Array:
        """Mean l2 norm of the change of the applied action from step to step, (rows,); 0 for episodes of one step."""
        return self._change / np.maximum(self._steps - 1, 1)

    @property
    def saturated(self) -> Array:
        """Share of steps at which a component of the action was at or beyond its limits, (rows,)."""
        return self._limited / np.maximum(self._steps, 1)

    @property
    def tracking(self) -> Array:
        """Root mean square over steps of the l2 distance to the reference in raw units, (rows,); NaN without one."""
        if self._reference is None:
            return np.full(len(self._steps), np.nan)
        return np.sqrt(self._square / np.maximum(self._steps, 1))
