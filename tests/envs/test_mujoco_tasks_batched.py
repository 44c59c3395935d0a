"""The batched stepper against gymnasium's single environments, bit for bit, disturbances included."""

from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from lipctrl.disturb.channel import Friction, GeneralisedForce, Mass, Wrench, disturbed_model
from lipctrl.disturb.wrapper import DisturbanceWrapper
from lipctrl.envs.mujoco_tasks import TASKS
from lipctrl.envs.mujoco_tasks.batched import BatchedTask
from lipctrl.files import UserError

BATCH = 5


def random_actions(space: Any, steps: int, seed: int = 0) -> Any:
    """Random actions (steps, BATCH, m) in the precision of the space."""
    low, high = np.broadcast_to(space.low, (BATCH, *space.shape)), np.broadcast_to(space.high, (BATCH, *space.shape))
    return np.random.default_rng(seed).uniform(low, high, (steps, *low.shape)).astype(space.dtype)


def single(env: gymnasium.Env[Any, Any], seed: int, actions: Any) -> list[tuple[Any, ...]]:
    """(observation, reward, terminated, truncated) of one environment at every step, the reset first."""
    rows: list[tuple[Any, ...]] = [(env.reset(seed=seed)[0],)]
    for action in actions:
        rows.append(env.step(action)[:4])
    return rows


def compare(batched: list[tuple[Any, ...]], reference: list[tuple[Any, ...]], row: int) -> None:
    """Equality of every entry, NaN included."""
    for step, (ours, theirs) in enumerate(zip(batched, reference, strict=True)):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine[row], other, err_msg=f"step {step}, row {row}", strict=False)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("task", TASKS)
def test_equal_to_single_environments_bit_for_bit(task: str, threads: int) -> None:
    batch = BatchedTask(task, BATCH, threads=threads)
    actions = random_actions(batch.action_space, 300 if threads == 1 else 40)
    rows: list[tuple[Any, ...]] = [(batch.reset(range(10, 10 + BATCH)),)]
    rows += [batch.step(action) for action in actions]
    for i in range(BATCH):
        reference = gymnasium.make(task)
        compare(rows, single(reference, 10 + i, actions[:, i]), i)


VARIANTS: dict[str, dict[str, Any]] = {
    "Hopper-v5": {
        "exclude_current_positions_from_observation": False,
        "terminate_when_unhealthy": False,
        "healthy_reward": 0.3,
        "forward_reward_weight": 1.7,
    },
    "HalfCheetah-v5": {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": 0.7, "frame_skip": 3},
    "Reacher-v5": {"reward_dist_weight": 2.5, "reward_control_weight": 0.3},
    "Ant-v5": {
        "exclude_current_positions_from_observation": False,
        "include_cfrc_ext_in_observation": False,
        "main_body": 4,
        "contact_cost_weight": 0.1,
    },
    "Humanoid-v5": {
        "include_cinert_in_observation": False,
        "include_cvel_in_observation": False,
        "include_qfrc_actuator_in_observation": False,
        "include_cfrc_ext_in_observation": False,
        "contact_cost_range": (0.1, 0.2),
    },
}


@pytest.mark.parametrize("task", VARIANTS)
def test_settings_are_read_from_the_gymnasium_task(task: str) -> None:
    name = f"lipctrl-test/{task}"
    spec = gymnasium.spec(task)
    if name not in gymnasium.registry:
        gymnasium.register(name, spec.entry_point, max_episode_steps=spec.max_episode_steps, kwargs=VARIANTS[task])
    batch = BatchedTask(name, BATCH)
    actions = random_actions(batch.action_space, 60)
    rows: list[tuple[Any, ...]] = [(batch.reset(range(BATCH)),)]
    rows += [batch.step(action) for action in actions]
    for i in range(BATCH):
        compare(rows, single(gymnasium.make(name), i, actions[:, i]), i)


@pytest.mark.parametrize("task", ["Hopper-v5", "HalfCheetah-v5"])
def test_forces_and_models_per_environment_equal_the_wrapper(task: str) -> None:
    nominal = gymnasium.make(task).unwrapped.model  # type: ignore[attr-defined]
    factors = np.linspace(0.5, 2.0, BATCH)
    changes: list[Any] = [[(Mass(body="torso"), np.array([f])), (Friction(), np.array([f]))] for f in factors]
    batch = BatchedTask(task, BATCH, models=[disturbed_model(nominal, change) for change in changes])
    actions = random_actions(batch.action_space, 60)
    wrenches = np.zeros((60, BATCH, nominal.nbody, 6))
    forces = np.zeros((60, BATCH, nominal.nv))
    rng = np.random.default_rng(1)
    torso = nominal.body("torso").id
    wrenches[20:40, :, torso] = rng.normal(size=(20, BATCH, 6))
    forces[20:30] = rng.normal(size=(10, BATCH, nominal.nv))
    rows: list[tuple[Any, ...]] = [(batch.reset(range(BATCH)),)]
    planned = batch.rollout(actions[:20].swapaxes(0, 1))
    for k, action in enumerate(actions):
        if k == 20:
            np.testing.assert_array_equal(planned[:, -1, : nominal.nq], batch._batch["qpos"])
        pulse = {"wrenches": wrenches[k], "forces": forces[k]} if 20 <= k < 40 else {}
        rows.append(batch.step(action, **pulse))
    for i, factor in enumerate(factors):
        env = DisturbanceWrapper(
            gymnasium.make(task),
            [Mass(body="torso", value=factor), Friction(value=factor), Wrench(body="torso"), GeneralisedForce()],
        )
        reference: list[tuple[Any, ...]] = [(env.reset(seed=i)[0],)]
        for k in range(60):
            env.apply("wrench", wrenches[k, i, torso])
            env.apply("force", forces[k, i])
            reference.append(env.step(actions[k, i])[:4])
        compare(rows, reference, i)


@pytest.mark.parametrize("task", TASKS)
def test_open_loop_rollout_reaches_the_states_that_stepping_reaches(task: str) -> None:
    batch = BatchedTask(task, BATCH)
    actions = random_actions(batch.action_space, 50)
    wrenches = np.zeros((50, BATCH, batch.models[0].nbody, 6))
    wrenches[10:30, :, 1, 0] = 0.5
    batch.reset(range(BATCH))
    for action, wrench in zip(actions[:5], wrenches[:5], strict=True):
        batch.step(action, wrenches=wrench)
    planned = batch.rollout(actions[5:].swapaxes(0, 1), wrenches=wrenches[5:].swapaxes(0, 1))
    for k in range(5, 50):
        batch.step(actions[k], wrenches=wrenches[k])
        reached = np.concatenate([batch._batch["qpos"], batch._batch["qvel"]], axis=1)
        np.testing.assert_array_equal(planned[:, k - 5], reached)


def test_one_rollout_call_per_control_step_is_not_gymnasium_because_the_warm_start_is_lost() -> None:
    """Why `step` does not use mujoco.rollout: its full physics state lacks the start of the constraint solver."""
    batch = BatchedTask("HalfCheetah-v5", BATCH)
    actions = random_actions(batch.action_space, 40)
    batch.reset(range(BATCH))
    model, full = batch.models[0], mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    state = np.empty((BATCH, mujoco.mj_stateSize(model, full)))
    for i, data in enumerate(batch._datas):
        mujoco.mj_getState(model, data, state[i], full)
    for action in actions:
        control = np.repeat(action[:, None].astype(np.float64), 5, axis=1)
        state = batch._rollout.rollout(model, batch._scratch, state, control)[0][:, -1]
        batch.step(action)
    reached = np.concatenate([batch._batch["qpos"], batch._batch["qvel"]], axis=1)
    error = np.abs(state[:, 1 : 1 + 18] - reached).max()
    assert 0 < error < 0.1


def test_a_runaway_hopper_terminates_as_in_gymnasium() -> None:
    batch, env = BatchedTask("Hopper-v5", 2), gymnasium.make("Hopper-v5")
    batch.reset([0, 0])
    env.reset(seed=0)
    for data in (batch._datas[1], env.unwrapped.data):  # type: ignore[attr-defined]
        data.qvel[0] = 150.0  # beyond gymnasium's range for a healthy state, height and angle still fine
    _, rewards, terminated, _ = batch.step(np.zeros((2, 3), dtype=np.float32))
    _, reward, fallen, _, _ = env.step(np.zeros(3, dtype=np.float32))
    assert terminated.tolist() == [False, fallen] and fallen
    assert rewards[1] == reward


def test_an_ant_that_is_not_finite_is_not_healthy() -> None:
    batch, env = BatchedTask("Ant-v5", 2), gymnasium.make("Ant-v5").unwrapped
    batch.reset([0, 0])
    env.reset(seed=0)
    for data in (batch._datas[1], env.data):  # type: ignore[attr-defined]
        data.qpos[9] = np.nan
    judge = batch._formulas.judge
    _, terminated = judge(batch._task, batch._batch, np.zeros((2, 2)), np.zeros((2, 8)), np.zeros(0))
    assert terminated.tolist() == [False, not env.is_healthy]  # type: ignore[attr-defined]
    assert terminated[1]


def test_rows_reset_alone_and_truncation_counts_per_row() -> None:
    batch = BatchedTask("InvertedPendulum-v5", 2)
    batch.limit = 3
    batch.reset([0, 1])
    still = np.zeros((2, 1), dtype=np.float32)
    for _ in range(2):
        batch.step(still)
    first = batch.reset([7], rows=[1])
    np.testing.assert_array_equal(first[0], gymnasium.make("InvertedPendulum-v5").reset(seed=7)[0])
    np.testing.assert_array_equal(batch.step(still)[3], [True, False])
    np.testing.assert_array_equal(batch.elapsed, [3, 1])


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="batched stepping knows"):
        BatchedTask("Swimmer-v5", 2)
    with pytest.raises(UserError, match="no environment 'Hoper-v5'"):
        BatchedTask("Hoper-v5", 2)
    with pytest.raises(UserError, match="batch >= 1"):
        BatchedTask("Hopper-v5", 0)
    other = gymnasium.make("HalfCheetah-v5").unwrapped.model  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="structure and time step"):
        BatchedTask("Hopper-v5", 2, models=[other, other])
    batch = BatchedTask("Hopper-v5", 2)
    with pytest.raises(UserError, match=r"actions needs shape \(2, 3\), found \(3,\)"):
        batch.step(np.zeros(3))
    with pytest.raises(UserError, match="actions must be finite, found nan"):
        batch.step(np.full((2, 3), np.nan))
    with pytest.raises(UserError, match=r"wrenches needs shape \(2, 5, 6\), found \(2, 6\)"):
        batch.step(np.zeros((2, 3)), wrenches=np.zeros((2, 6)))
    with pytest.raises(UserError, match=r"actions needs shape \(2, steps, 3\)"):
        batch.rollout(np.zeros((2, 3)))
    with pytest.raises(UserError, match="one seed per row"):
        batch.reset([0])
