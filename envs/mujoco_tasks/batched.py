"""BatchedTask: many copies of a MuJoCo task, one call per control step, bit-equal to gymnasium's single environment.

What bit equality needs was measured. The solver of MuJoCo's constraints starts each physics step from the accelerations
of the one before (`qacc_warmstart`). `mujoco.rollout` takes this warm start but does not return it, and its full
physics state does not hold it; chaining one rollout call per control step therefore drifts from gymnasium (after 40
random control steps 1e-14 on Hopper, 1e-4 on HalfCheetah), and site positions, contact forces and centres of mass,
which gymnasium reads from the last stage of the integrator, cannot be had from it at all. So:

* `step` (closed loop) keeps one MjData per environment and calls `mj_step` for `frame_skip` physics steps on each, on
  a pool of threads (MuJoCo releases the interpreter lock); everything gymnasium reads is there. A whole closed loop,
  policy and attack included, keeps 8 to 9 tenths of the speed of rollout's bare physics (benchmarks/rollout_speed.py).
* `rollout` (open loop) hands whole sequences of controls and wrenches to `mujoco.rollout` in one call, with the warm
  start of now; inside one call the warm start is carried on, so its states are those that `step` would reach.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import gymnasium
import mujoco
import numpy as np
from mujoco.rollout import Rollout
from numpy.typing import ArrayLike, NDArray

from lipctrl.disturb.wrapper import displaced
from lipctrl.files import UserError

from .formulas import Array, Batch, Flags, formulas_of

_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS.value


class BatchedTask:
    """A batch of one MuJoCo task.

    Rows never reset themselves: what to do with a finished row is the caller's business (`reset` takes rows), and
    stepping a finished row goes on, as in gymnasium.

    Attributes:
        batch: number of environments.
        observation_space, action_space: of one environment.
        models: MjModel of each environment; friction, damping and gain may be changed between steps.
        limit: control steps after which an episode is truncated; None: never.
        elapsed: control steps of each row since its reset, shape (batch,).
    """

    def __init__(self, env_id: str, batch: int, *, threads: int = 1, models: Sequence[Any] | None = None) -> None:
        """Make a batch.

        Args:
            env_id: gymnasium's id, one of `lipctrl.envs.mujoco_tasks.TASKS`.
            batch: number of environments.
            threads: that step them; results do not depend on it.
            models: one MjModel per environment, for example from `lipctrl.disturb.channel.disturbed_model`; by default
                the task's own, whose option to look for islands is off where there is one tree.

        Raises:
            UserError: an unknown or unsupported task, numbers below one, or models of wrong number or structure.
        """
        if batch < 1 or threads < 1:
            raise UserError(f"a batched task needs batch >= 1 and threads >= 1, found {batch} and {threads}")
        try:
            env = gymnasium.make(env_id)
        except gymnasium.error.Error as error:
            raise UserError(f"no environment {env_id!r}: {error}") from error
        self._task = cast(Any, env.unwrapped)  # a MujocoEnv, checked by formulas_of
        self._formulas = formulas_of(self._task)
        self.batch, self.limit = batch, env.spec.max_episode_steps if env.spec is not None else None
        self.observation_space, self.action_space = env.observation_space, env.action_space
        nominal = self._task.model
        if nominal.ntree == 1:  # its constraints are one island, which need not be looked for: same numbers, sooner
            nominal.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
        self.models = [nominal] * batch if models is None else list(models)
        sizes = {(m.nq, m.nv, m.nu, m.nbody, m.opt.timestep) for m in [nominal, *self.models]}
        if len(self.models) != batch or len(sizes) > 1:
            raise UserError(
                f"models needs {batch} models of the structure and time step of {env_id}, found {len(self.models)}"
                + (" of several structures" if len(sizes) > 1 else "")
            )
        self._datas = [mujoco.MjData(model) for model in self.models]
        self._batch = Batch(self.models, self._datas)
        self._part, self._part_rows = self._batch, tuple(range(batch))
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._rollout = Rollout(nthread=threads if threads > 1 else 0)
        self._scratch = [mujoco.MjData(nominal) for _ in range(threads)]
        self.elapsed = np.zeros(batch, dtype=np.int64)

    @property
    def data(self) -> Sequence[Any]:
        """MjData of every row."""
        return self._datas

    def use(self, models: Sequence[Any]) -> None:
        """Go on with other models, one per row, of the same structure; follow it by a reset.

        Raises:
            UserError: another number of models.
        """
        if len(models) != self.batch:
            raise UserError(f"a batch of {self.batch} needs as many models, found {len(models)}")
        self.models = list(models)
        self._batch = self._part = Batch(self.models, self._datas)
        self._part_rows = tuple(range(self.batch))

    def reset(
        self, seeds: Sequence[int], rows: Sequence[int] | None = None, *, displacements: ArrayLike | None = None
    ) -> Array:
        """Start episodes by gymnasium's own reset.

        Args:
            seeds: one per row to reset; each row starts as a single environment with that seed.
            rows: which; by default all.
            displacements: of the start states, (len(rows), 2 nv), see `lipctrl.disturb.channel.InitialState`.

        Returns:
            Observations of those rows, shape (len(rows), n).
        """
        rows = range(self.batch) if rows is None else rows
        if len(seeds) != len(rows) or not all(0 <= row < self.batch for row in rows):
            raise UserError(f"reset needs one seed per row below {self.batch}, found {len(seeds)} for {list(rows)}")
        offsets = np.zeros((len(rows), 1)) if displacements is None else np.asarray(displacements, dtype=np.float64)
        observations = []
        for seed, row, offset in zip(seeds, rows, offsets, strict=True):
            self._task.model, self._task.data = self.models[row], self._datas[row]
            start = self._task.reset(seed=int(seed))[0]
            observations.append(displaced(self._task, offset) if offset.any() else start)
        self.elapsed[list(rows)] = 0
        return np.stack(observations)

    def step(
        self,
        actions: NDArray[Any],
        *,
        wrenches: ArrayLike | None = None,
        forces: ArrayLike | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[Array, Array, Flags, Flags]:
        """One control step of some rows; k is their number, all of the batch by default.

        Args:
            actions: (k, m). As in gymnasium, cost is computed in their precision.
            wrenches: force (N) and torque (N m) on every body, world frame, at its centre of mass, (k, bodies, 6);
                they act during this control step only.
            forces: generalised forces, (k, nv); likewise.
            rows: which go on; the others stay as they are.

        Returns:
            Observations (k, n), rewards (k,), terminated (k,), truncated (k,).

        Raises:
            UserError: an array of wrong shape or not finite.
        """
        self._select(range(self.batch) if rows is None else rows)
        part = self._part
        actions = np.asarray(actions)
        self._write("ctrl", "actions", actions)
        if wrenches is not None:
            self._write("xfrc_applied", "wrenches", np.asarray(wrenches))
        if forces is not None:
            self._write("qfrc_applied", "forces", np.asarray(forces))
        mark = self._formulas.mark(self._task, part)
        if self._pool is None:
            self._advance(part.pairs)
        else:
            list(self._pool.map(self._advance, [part.pairs[i :: self._threads] for i in range(self._threads)]))
        for field, given in (("xfrc_applied", wrenches), ("qfrc_applied", forces)):
            if given is not None:
                for view in part.views(field):
                    view[:] = 0
        chosen = list(self._part_rows)
        self.elapsed[chosen] += 1
        observations = self._formulas.observe(self._task, part)
        rewards, terminated = self._formulas.judge(self._task, part, mark, actions, observations)
        truncated = np.full(len(chosen), False) if self.limit is None else self.elapsed[chosen] >= self.limit
        return observations, rewards, terminated, truncated

    def rollout(self, actions: ArrayLike, *, wrenches: ArrayLike | None = None) -> Array:
        """The states that sequences of actions would lead to from the present ones, which stay as they are.

        Args:
            actions: (batch, steps, m).
            wrenches: on every body at every control step, (batch, steps, bodies, 6).

        Returns:
            Positions and velocities after every control step, (batch, steps, nq + nv).

        Raises:
            UserError: an array of wrong shape.
        """
        model, skip = self.models[0], self._task.frame_skip
        control, spec = np.asarray(actions, dtype=np.float64), mujoco.mjtState.mjSTATE_CTRL.value
        if control.ndim != 3 or control.shape[::2] != (self.batch, model.nu):
            raise UserError(f"actions needs shape ({self.batch}, steps, {model.nu}), found {control.shape}")
        if wrenches is not None:
            pushes = np.asarray(wrenches, dtype=np.float64)
            if pushes.shape != (*control.shape[:2], model.nbody, 6):
                raise UserError(f"wrenches needs shape {(*control.shape[:2], model.nbody, 6)}, found {pushes.shape}")
            spec |= mujoco.mjtState.mjSTATE_XFRC_APPLIED.value
            control = np.concatenate([control, pushes.reshape(*control.shape[:2], -1)], axis=2)
        start = np.empty((self.batch, mujoco.mj_stateSize(model, _FULL)))
        for row, (own, data) in enumerate(zip(self.models, self._datas, strict=True)):
            mujoco.mj_getState(own, data, start[row], _FULL)
        states, _ = self._rollout.rollout(
            self.models,
            self._scratch,
            start,
            np.repeat(control, skip, axis=1),
            control_spec=spec,
            initial_warmstart=self._batch["qacc_warmstart"],
        )
        return np.asarray(states[:, skip - 1 :: skip, 1 : 1 + model.nq + model.nv])  # entry 0 is time

    def _select(self, rows: Sequence[int]) -> None:
        """Make `_part` the fields of these rows; they change seldom, so that the views are kept."""
        chosen = tuple(rows)
        if chosen != self._part_rows:
            if not chosen or not all(0 <= row < self.batch for row in chosen):
                raise UserError(f"step needs rows from 0 to {self.batch - 1}, found {list(chosen)}")
            self._part = Batch([self.models[row] for row in chosen], [self._datas[row] for row in chosen])
            self._part_rows = chosen

    def _write(self, field: str, name: str, values: NDArray[Any]) -> None:
        views = self._part.views(field)
        expected = (len(views), *views[0].shape)
        if values.shape != expected:
            raise UserError(f"{name} needs shape {expected}, found {values.shape}")
        if not np.isfinite(values).all():
            raise UserError(f"{name} must be finite, found {values[~np.isfinite(values)][0]}")
        for view, value in zip(views, values, strict=True):
            view[:] = value

    def _advance(self, chunk: Sequence[tuple[Any, Any]]) -> None:
        """Physics of some rows; runs in a thread."""
        skip, contacts = self._task.frame_skip, self._formulas.contacts
        for model, data in chunk:
            mujoco.mj_step(model, data, skip)
            if contacts:
                mujoco.mj_rnePostConstraint(model, data)
