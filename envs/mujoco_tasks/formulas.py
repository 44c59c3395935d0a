"""Observation, reward and termination of gymnasium's MuJoCo tasks (version 5) for a whole batch at once.

Gymnasium evaluates them for one environment; here each is one line of array arithmetic with every weight and limit read
from the gymnasium task object. The operations and their order are gymnasium's, so that results are equal bit for bit,
which the tests check for every task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Batch:
    """Fields of the MjData of many environments as arrays with a leading batch axis."""

    def __init__(self, models: Sequence[Any], datas: Sequence[Any]) -> None:
        self.pairs = list(zip(models, datas, strict=True))
        self._views: dict[str, list[Array]] = {}
        self.body_mass = np.stack([model.body_mass for model in models])

    def views(self, field: str) -> list[Array]:
        """The field of each environment, writable; made once, because making a view costs more than reading it."""
        if field not in self._views:
            self._views[field] = [getattr(data, field) for _, data in self.pairs]
        return self._views[field]

    def __getitem__(self, field: str) -> Array:
        views = self.views(field)
        return np.concatenate(views).reshape(len(views), *views[0].shape)


@dataclass(frozen=True)
class Formulas:
    """One task.

    Attributes:
        observe: (task, batch) -> observations (batch, n).
        mark: (task, batch) -> what the reward needs from before the step.
        judge: (task, batch, mark, actions, observations) -> rewards (batch,) and terminated (batch,).
        contacts: whether contact forces are read, which MuJoCo computes on request only.
    """

    observe: Callable[[Any, Batch], Array]
    mark: Callable[[Any, Batch], Array]
    judge: Callable[[Any, Batch, Array, NDArray[Any], Array], tuple[Array, Flags]]
    contacts: bool = False


def formulas_of(task: Any) -> Formulas:
    """The formulas of a gymnasium task.

    Raises:
        UserError: a task that is not supported.
    """
    module, name = type(task).__module__, type(task).__name__
    key = f"{module.rpartition('.')[2]}:{name}"
    if key not in _FORMULAS:
        raise UserError(f"batched stepping knows {', '.join(_FORMULAS)}; found {key}")
    return _FORMULAS[key]


def _nothing(task: Any, batch: Batch) -> Array:
    return np.zeros(0)


def _forward_position(task: Any, batch: Batch) -> Array:
    return batch["qpos"][:, 0]


def _forward_reward(task: Any, batch: Batch, mark: Array) -> Array:
    velocity: Array = (batch["qpos"][:, 0] - mark) / task.dt
    return np.asarray(task._forward_reward_weight * velocity)


def _effort(task: Any, squared: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(task._ctrl_cost_weight * np.sum(squared, axis=1))


def _skipping(task: Any, count: int, position: Array) -> Array:
    return position[:, count if task._exclude_current_positions_from_observation else 0 :]


# ---- inverted pendulum


def _pendulum_observe(task: Any, batch: Batch) -> Array:
    return np.concatenate([batch["qpos"], batch["qvel"]], axis=1)


def _pendulum_judge(task: Any, batch: Batch, mark: Array, action: Any, seen: Array) -> tuple[Array, Flags]:
    fallen = ~np.isfinite(seen).all(axis=1) | (np.abs(seen[:, 1]) > 0.2)
    return np.where(fallen, 0.0, 1.0), fallen


# ---- inverted double pendulum


def _squares(values: Array) -> Array:
    """Squares by the C library's pow, as numpy's scalars do; its arrays multiply, which may differ in the last bit."""
    return np.array([value**2 for value in values.tolist()])


def _double_pendulum_observe(task: Any, batch: Batch) -> Array:
    position = batch["qpos"]
    return np.concatenate(
        [
            position[:, :1],
            np.sin(position[:, 1:]),
            np.cos(position[:, 1:]),
            np.clip(batch["qvel"], -10, 10),
            np.clip(batch["qfrc_constraint"], -10, 10)[:, :1],
        ],
        axis=1,
    )


def _double_pendulum_judge(task: Any, batch: Batch, mark: Array, action: Any, seen: Array) -> tuple[Array, Flags]:
    tip, rate = batch["site_xpos"][:, 0], batch["qvel"]
    fallen = tip[:, 2] <= 1
    distance = 0.01 * _squares(tip[:, 0]) + _squares(tip[:, 2] - 2)
    speed = 1e-3 * _squares(rate[:, 1]) + 5e-3 * _squares(rate[:, 2])
    return task._healthy_reward * (~fallen).astype(int) - distance - speed, fallen


# ---- reacher


def _reacher_gap(task: Any, batch: Batch) -> Array:
    position, model = batch["xpos"], task.model
    return position[:, model.body("fingertip").id] - position[:, model.body("target").id]


def _reacher_observe(task: Any, batch: Batch) -> Array:
    position = batch["qpos"]
    angles = position[:, :2]
    gap = _reacher_gap(task, batch)[:, :2]
    return np.concatenate([np.cos(angles), np.sin(angles), position[:, 2:], batch["qvel"][:, :2], gap], axis=1)


def _reacher_judge(task: Any, batch: Batch, mark: Array, action: Any, seen: Array) -> tuple[Array, Flags]:
    gap = _reacher_gap(task, batch)
    near = -np.sqrt(np.vecdot(gap, gap)) * task._reward_dist_weight
    effort = -np.square(action).sum(axis=1) * task._reward_control_weight
    return near + effort, np.zeros(len(gap), dtype=bool)


# ---- hopper, walker, half cheetah


def _planar_observe(task: Any, batch: Batch) -> Array:
    return np.concatenate([_skipping(task, 1, batch["qpos"]), np.clip(batch["qvel"], -10, 10)], axis=1)


def _inside(value: Array, limits: tuple[float, float]) -> Flags:
    return (limits[0] < value) & (value < limits[1])


def _walker_healthy(task: Any, batch: Batch) -> Flags:
    position = batch["qpos"]
    return _inside(position[:, 1], task._healthy_z_range) & _inside(position[:, 2], task._healthy_angle_range)


def _hopper_healthy(task: Any, batch: Batch) -> Flags:
    state = np.concatenate([batch["qpos"], batch["qvel"]], axis=1)[:, 2:]
    return _inside(state, task._healthy_state_range).all(axis=1) & _walker_healthy(task, batch)


def _planar_judge(
    healthy: Callable[[Any, Batch], Flags],
) -> Callable[[Any, Batch, Array, NDArray[Any], Array], tuple[Array, Flags]]:
    def judge(task: Any, batch: Batch, mark: Array, action: Any, seen: Array) -> tuple[Array, Flags]:
        upright = healthy(task, batch)
        reward = _forward_reward(task, batch, mark) + upright * task._healthy_reward - _effort(task, np.square(action))
        return reward, ~upright & task._terminate_when_unhealthy

    return judge


def _cheetah_observe(task: Any, batch: Batch) -> Array:
    return np.concatenate([_skipping(task, 1, batch["qpos"]), batch["qvel"]], axis=1)


def _cheetah_judge(task: Any, batch: Batch, mark: Array, action: Any, seen: Array) -> tuple[Array, Flags]:
    reward = _forward_reward(task, batch, mark) - _effort(task, np.square(action))
    return reward, np.zeros(len(reward), dtype=bool)


# ---- ant


def _ant_contacts(task: Any, batch: Batch) -> Array:
    return np.asarray(np.clip(batch["cfrc_ext"], *task._contact_force_range))


def _ant_observe(task: Any, batch: Batch) -> Array:
    parts = [_skipping(task, 2, batch["qpos"]), batch["qvel"]]
    if task._include_cfrc_ext_in_observation:
        contacts = _ant_contacts(task, batch)[:, 1:]
        parts.append(contacts.reshape(len(contacts), -1))
    return np.concatenate(parts, axis=1)


def _ant_place(task: Any, batch: Batch) -> Array:
    return batch["xpos"][:, task.model.body(task._main_body).id, :2]


def _ant_judge(task: Any, batch: Batch, mark: Array, action: Any, seen: Array) -> tuple[Array, Flags]:
    velocity = (_ant_place(task, batch) - mark) / task.dt
    position = batch["qpos"]
    low, high = task._healthy_z_range
    finite = np.isfinite(position).all(axis=1) & np.isfinite(batch["qvel"]).all(axis=1)
    upright = finite & (low <= position[:, 2]) & (position[:, 2] <= high)
    contacts = np.square(_ant_contacts(task, batch)).reshape(len(position), -1)
    costs = _effort(task, np.square(action)) + task._contact_cost_weight * np.sum(contacts, axis=1)
    reward = velocity[:, 0] * task._forward_reward_weight + upright * task._healthy_reward - costs
    return reward, ~upright & task._terminate_when_unhealthy


# ---- humanoid


def _humanoid_observe(task: Any, batch: Batch) -> Array:
    position = batch["qpos"]
    count = len(position)
    parts = [_skipping(task, 2, position), batch["qvel"]]
    if task._include_cinert_in_observation:
        parts.append(batch["cinert"][:, 1:].reshape(count, -1))
    if task._include_cvel_in_observation:
        parts.append(batch["cvel"][:, 1:].reshape(count, -1))
    if task._include_qfrc_actuator_in_observation:
        parts.append(batch["qfrc_actuator"][:, 6:])
    if task._include_cfrc_ext_in_observation:
        parts.append(batch["cfrc_ext"][:, 1:].reshape(count, -1))
    return np.concatenate(parts, axis=1)


def _humanoid_centre(task: Any, batch: Batch) -> Array:
    moments = np.einsum("nb,nbj->nj", batch.body_mass, batch["xipos"])
    return np.asarray((moments / batch.body_mass.sum(axis=1, keepdims=True))[:, :2])


def _humanoid_judge(task: Any, batch: Batch, mark: Array, action: Any, seen: Array) -> tuple[Array, Flags]:
    velocity = (_humanoid_centre(task, batch) - mark) / task.dt
    upright = _inside(batch["qpos"][:, 2], task._healthy_z_range)
    contacts = np.square(batch["cfrc_ext"]).reshape(len(upright), -1)
    contact_cost = np.clip(task._contact_cost_weight * np.sum(contacts, axis=1), *task._contact_cost_range)
    # gymnasium charges the control as MuJoCo holds it, in double precision
    costs = _effort(task, np.square(batch["ctrl"])) + contact_cost
    reward = task._forward_reward_weight * velocity[:, 0] + upright * task._healthy_reward - costs
    return reward, ~upright & task._terminate_when_unhealthy


_FORMULAS = {
    "inverted_pendulum_v5:InvertedPendulumEnv": Formulas(_pendulum_observe, _nothing, _pendulum_judge),
    "inverted_double_pendulum_v5:InvertedDoublePendulumEnv": Formulas(
        _double_pendulum_observe, _nothing, _double_pendulum_judge
    ),
    "reacher_v5:ReacherEnv": Formulas(_reacher_observe, _nothing, _reacher_judge),
    "hopper_v5:HopperEnv": Formulas(_planar_observe, _forward_position, _planar_judge(_hopper_healthy)),
    "walker2d_v5:Walker2dEnv": Formulas(_planar_observe, _forward_position, _planar_judge(_walker_healthy)),
    "half_cheetah_v5:HalfCheetahEnv": Formulas(_cheetah_observe, _forward_position, _cheetah_judge),
    "ant_v5:AntEnv": Formulas(_ant_observe, _ant_place, _ant_judge, contacts=True),
    "humanoid_v5:HumanoidEnv": Formulas(_humanoid_observe, _humanoid_centre, _humanoid_judge, contacts=True),
}
