"""DisturbedTask: a batch of a MuJoCo task with disturbances, bit-equal to `DisturbanceWrapper` around single tasks.

It is what closed loops of evaluations run on (the `Stepper` of `lipctrl.evaluation.stepping`): one call per control
step for all rows. What the wrapper does in one environment is done here for a batch, in the same order: at a reset the
model is rebuilt, then the task resets, then the start state is displaced; at a step the action is held or not, delayed,
then offset; forces act; what is seen is delayed.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.disturb.channel import (
    ActionOffset,
    ActuatorDelay,
    ActuatorGain,
    AnyChannel,
    Damping,
    Deadline,
    Friction,
    GeneralisedForce,
    InitialState,
    Mass,
    SensorDelay,
    Wrench,
    disturbed_model,
    scale_fields,
)
from lipctrl.disturb.divergence import check_finite, check_stable
from lipctrl.files import UserError

from .batched import BatchedTask
from .formulas import Array, Flags

MODEL = (ActuatorGain, Damping, Friction, Mass)
KNOWN = (*MODEL, ActionOffset, ActuatorDelay, Deadline, GeneralisedForce, InitialState, SensorDelay, Wrench)
Sized = tuple[AnyChannel, int]


class DisturbedTask:
    """Many episodes of one MuJoCo task, stepped together; finished rows stay where they are."""

    def __init__(self, env_id: str, batch: int, channels: Sequence[Sized] = (), *, threads: int = 1) -> None:
        """Make a batch.

        Args:
            env_id: one of `lipctrl.envs.mujoco_tasks.TASKS`.
            batch: number of episodes.
            channels: where disturbances enter, each with the number of its components.
            threads: that step the physics; results do not depend on it.

        Raises:
            UserError: a task or a channel that cannot be batched.
        """
        if unknown := [channel.name for channel, _ in channels if not isinstance(channel, KNOWN)]:
            raise UserError(f"batched stepping does not know the channel {unknown[0]!r}")
        self._id, self._channels = env_id, list(channels)
        self._task = BatchedTask(env_id, batch, threads=threads)
        self._nominal = self._task.models[0]
        self._output, self.violation = np.zeros(0), np.full(batch, np.nan)  # gymnasium's tasks declare no constraint
        self._seen: list[Array] = []
        self._sent: list[NDArray[Any]] = []
        self._held: NDArray[Any] = np.zeros(0)
        self._late = {SensorDelay: np.zeros(batch, np.int64), ActuatorDelay: np.zeros(batch, np.int64)}

    def start(self, seeds: Sequence[int], values: Array | None) -> Array:
        """Reset all rows: see `lipctrl.evaluation.stepping.Stepper.start`."""
        given = self._split(values, self._task.batch, once=True)
        self._build_models(given)
        offsets = [given[channel.name] for channel, _ in self._channels if isinstance(channel, InitialState)]
        x = self._task.reset(seeds, displacements=offsets[0] if offsets else None)
        self._scale_models(given)
        for channel, _ in self._channels:
            for kind, late in self._late.items():
                if isinstance(channel, kind):
                    late[:] = given[channel.name][:, 0]
        self._output, self._seen, self._sent, self._held = x, [x.copy()], [], np.zeros(0)
        return x.copy()

    def step(self, actions: Array, values: Array | None, running: Flags) -> tuple[Array, Array, Flags, Flags]:
        """One control step: see `lipctrl.evaluation.stepping.Stepper.step`."""
        rows = np.flatnonzero(running)
        command = self._command(actions, values, rows)
        wrenches, forces = self._forces(values, rows)
        x, reward, end, cut = self._task.step(command, wrenches=wrenches, forces=forces, rows=rows.tolist())
        check_finite(self._id, x, reward, rows)
        for row in rows[end | cut]:
            check_stable(self._id, self._task.data[row], int(row))
        self._sense(x, rows)
        rewards, ended, truncated = np.zeros(len(running)), np.zeros(len(running), bool), np.zeros(len(running), bool)
        rewards[rows], ended[rows], truncated[rows] = reward, end, cut
        return self._output.copy(), rewards, ended, truncated

    def _split(self, values: Array | None, rows: int, *, once: bool) -> dict[str, Array]:
        """Checked values (rows, k) by the name of the channel, the neutral ones where none are given."""
        result, first = {}, 0
        for channel, size in self._channels:
            own = np.full((rows, size), channel.neutral)
            if values is not None:
                own = channel.neutral + values[:, first : first + size]
            result[channel.name] = np.array([channel.checked(value, size) for value in own]) if once else own
            first += size
        return result

    def _models(self) -> list[tuple[ActuatorGain | Friction | Damping | Mass, int]]:
        return [(c, k) for c, k in self._channels if isinstance(c, ActuatorGain | Friction | Damping | Mass)]

    def _build_models(self, given: dict[str, Array]) -> None:
        """What lasts from a reset on is in the model when the task resets; the rest is nominal until then."""
        scales = self._models()
        if scales:
            neutral = {c.name: np.full(k, c.neutral) for c, k in scales}
            chosen = [
                [(c, given[c.name][row] if c.lasts == "reset" else neutral[c.name]) for c, _ in scales]
                for row in range(self._task.batch)
            ]
            self._task.use([disturbed_model(self._nominal, pairs) for pairs in chosen])

    def _scale_models(self, given: dict[str, Array]) -> None:
        """What lasts from the first step on."""
        changed = [c for c, _ in self._models() if c.lasts == "episode"]
        if changed:
            for row, model in enumerate(self._task.models):
                scale_fields(model, self._nominal, [(c, given[c.name][row]) for c in changed])

    def _command(self, actions: Array, values: Array | None, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Delayed, then offset inside the limits, in the precision of the action space."""
        space = self._task.action_space
        command = actions.astype(space.dtype)
        if len(self._held) and values is not None:
            for channel, _ in self._channels:
                if isinstance(channel, Deadline):
                    missed = self._split(values, len(values), once=False)[channel.name] > 0
                    command = np.where(missed, self._held, command)
        self._held = command
        kinds = {type(channel) for channel, _ in self._channels}
        if ActuatorDelay in kinds:
            self._sent.append(command)
            command = _delayed(self._sent, self._late[ActuatorDelay])
        command = command[rows]
        if ActionOffset in kinds and values is not None:
            (name,) = [channel.name for channel, _ in self._channels if isinstance(channel, ActionOffset)]
            offset = self._split(values, len(values), once=False)[name][rows]
            low, high = np.minimum(space.low, command), np.maximum(space.high, command)  # type: ignore[attr-defined]
            command = np.clip(command + offset, low, high).astype(command.dtype)
        return command

    def _forces(self, values: Array | None, rows: NDArray[np.int64]) -> tuple[Array | None, Array | None]:
        """Wrenches on all bodies and generalised forces of these rows; None where no such channel is."""
        pushes = [c for c, _ in self._channels if isinstance(c, Wrench | GeneralisedForce)]
        if not pushes or values is None:
            return None, None
        model, given = self._nominal, self._split(values, len(values), once=False)
        wrenches, forces = np.zeros((len(rows), model.nbody, 6)), np.zeros((len(rows), model.nv))
        for k, row in enumerate(rows):
            applied = SimpleNamespace(xfrc_applied=wrenches[k], qfrc_applied=forces[k])
            for channel in pushes:
                channel.add(applied, model, given[channel.name][row])
        return wrenches, forces

    def _sense(self, x: Array, rows: NDArray[np.int64]) -> None:
        """Put what is seen of new observations (k, n) into the output; rows that have ended keep theirs."""
        late = self._late[SensorDelay]
        if late.any():
            newest = self._output.copy()
            newest[rows] = x
            self._seen.append(newest)
            x = _delayed(self._seen, late)[rows]
        self._output[rows] = x


def _delayed(history: list[NDArray[Any]], late: NDArray[np.int64]) -> NDArray[Any]:
    """For every row the entry that is `late` old; the first one stands in for those before it."""
    newest = len(history) - 1
    return np.stack([history[max(0, newest - k)][row] for row, k in enumerate(late.tolist())])
