"""PID control as a policy, from a YAML file of gains: what most plants are run by, beside which others are judged.

At step k, with the error e = setpoint - observation and the sampling time T,

    u = P + I + D,   P = Kp e_k,   I_k = I_{k-1} + Ki e_k T,   D = Kd (e_k - e_{k-1}) / T, zero at the first step,

kept within the output limits. Where an output is beyond a limit and the integral would push it further, the integral
waits (conditional integration), so that it does not wind up. The memory, I and the last error, travels in `predict`'s
hidden state; without it every step is a first one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.config import read_config
from lipctrl.files import UserError, nearest

Array = NDArray[np.float64]
GAINS, LIMITS = ("kp", "ki", "kd"), ("low", "high")


@dataclass(frozen=True)
class Memory:
    """What a PID controller remembers: integral part of the output (batch, m), last error (batch, n), NaN at first."""

    integral: Array
    error: Array


@dataclass(frozen=True)
class PidPolicy:
    """See the module.

    Attributes:
        kp, ki, kd: gains (m, n), outputs x observations, ki per unit of the environment's time (seconds; hours for the
            reactor), kd times it. setpoint: (n,). low, high: limits of the output (m,). dt: sampling time.

    Raises:
        UserError: shapes do not match, a number is not finite, a limit is not below the other, or dt is not positive.
    """

    kp: Array
    ki: Array
    kd: Array
    setpoint: Array
    low: Array
    high: Array
    dt: float

    def __post_init__(self) -> None:
        m, n = len(self.low), len(self.setpoint)
        for name in GAINS:
            if getattr(self, name).shape != (m, n) or not np.isfinite(getattr(self, name)).all():
                raise UserError(
                    f"the gains {name} of a PID controller are {m} rows (actions) of {n} finite numbers "
                    f"(observations), found {getattr(self, name).tolist()}"
                )
        if not np.isfinite(self.setpoint).all():
            raise UserError(f"the setpoint needs finite numbers, found {self.setpoint.tolist()}")
        if self.high.shape != (m,) or not (self.low < self.high).all():
            raise UserError(
                f"low must be below high for each of {m} outputs, found {self.low.tolist()}, {self.high.tolist()}"
            )
        if not 0 < self.dt < np.inf:
            raise UserError(f"the sampling time must be positive and finite, found {self.dt}")

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Memory]:
        """Output and memory; see `Policy.predict`.

        Args:
            observation: one (n,) or a batch (batch, n). state: the memory that the last call returned, or None.
            episode_start: where true, the memory is dropped; shape () or (batch,), or None.
            deterministic: no effect.

        Raises:
            UserError: a size does not match.
        """
        seen = np.asarray(observation, dtype=np.float64)
        rows = np.atleast_2d(seen)
        if rows.shape[1] != len(self.setpoint):
            raise UserError(f"the PID controller needs {len(self.setpoint)} observations, found shape {seen.shape}")
        error = self.setpoint - rows
        integral, before = np.zeros((len(rows), len(self.low))), np.full_like(error, np.nan)
        if state is not None:
            fresh = np.zeros(len(rows), bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
            if not len(state.error) == len(fresh) == len(rows):
                raise UserError(f"{len(rows)} observations came with {len(state.error)} memories, {len(fresh)} starts")
            integral = np.where(fresh[:, None], integral, state.integral)
            before = np.where(fresh[:, None], before, state.error)
        slope = np.where(np.isnan(before), 0.0, (error - before) / self.dt)
        grown = error @ self.ki.T * self.dt
        wanted = error @ self.kp.T + integral + grown + slope @ self.kd.T
        winding = ((wanted > self.high) & (grown > 0)) | ((wanted < self.low) & (grown < 0))
        grown = np.where(winding, 0.0, grown)
        output = np.clip(error @ self.kp.T + integral + grown + slope @ self.kd.T, self.low, self.high)
        return output.reshape(*seen.shape[:-1], -1), Memory(integral + grown, error)

    def sha256(self) -> str:
        """Hash of all numbers."""
        parts = [getattr(self, name) for name in (*GAINS, "setpoint", *LIMITS)]
        return hashlib.sha256(b"".join([*(part.tobytes() for part in parts), repr(self.dt).encode()])).hexdigest()


def load_pid(path: Path, *, low: Array, high: Array, observations: int, dt: float) -> PidPolicy:
    """The controller in a YAML file with the keys kp, ki, kd (rows: actions; what is left out is zero), setpoint (one
    number per observation) and, where the output is to be kept within less than the actuator allows, low and high.

    Args:
        low, high: limits of the action (m,). observations: their number. dt: sampling time.

    Raises:
        UserError: no such file, unknown keys, shapes that do not match, or limits beyond those of the action.
    """
    data, source = read_config(str(path), "pid")
    for key in data:
        if key not in (*GAINS, "setpoint", *LIMITS):
            raise UserError(f"{source}: {nearest(str(key), (*GAINS, 'setpoint', *LIMITS), 'key')}")
    if not any(name in data for name in GAINS) or "setpoint" not in data:
        raise UserError(f"{source} is no PID controller: it needs setpoint and some of kp, ki, kd")
    m, n = len(low), observations
    known = {**{name: np.zeros((m, n)) for name in GAINS}, "low": low, "high": high}
    known |= {key: _numbers(data, key, source, ndmin=2 if key in GAINS else 1) for key in data}
    for key, shape in (("setpoint", (n,)), ("low", (m,)), ("high", (m,))):
        if known[key].shape != shape:
            raise UserError(f"{source}: {key} needs {shape[0]} numbers, found {known[key].tolist()}")
    if (known["low"] < low).any() or (known["high"] > high).any():
        raise UserError(f"{source}: the action is limited to {low.tolist()} .. {high.tolist()}, low and high go beyond")
    try:
        return PidPolicy(**known, dt=dt)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _numbers(data: Mapping[str, Any], key: str, source: str, *, ndmin: int) -> Array:
    try:
        return np.array(data[key], dtype=np.float64, ndmin=ndmin)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {key} needs numbers, found {data[key]!r}") from error
