"""The wrapper: closed forms of force and delay, nothing left behind, nothing compounding, zero changes nothing."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.mujoco import MujocoEnv

import lipctrl.envs  # noqa: F401  # registers the environments
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
    SensorBias,
    SensorDelay,
    SensorNoise,
    Wrench,
)
from lipctrl.disturb.plants import PlantDisturbance
from lipctrl.disturb.wrapper import DisturbanceWrapper
from lipctrl.files import UserError

TASKS = (
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "HalfCheetah-v5",
    "Ant-v5",
    "Humanoid-v5",
)
STEP = 1e-3  # s, physics
SKIP = 10

FREE_BODY = f"""<mujoco><option gravity="0 0 0" timestep="{STEP}"/>
<worldbody><body name="block"><freejoint name="free"/>
<geom type="box" size=".1 .1 .1" mass="2"/></body></worldbody></mujoco>"""


class FreeBody(MujocoEnv):
    """A block of 2 kg in empty space; the observation is its position and velocity."""

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]}

    def __init__(self, model: Path) -> None:
        space = gymnasium.spaces.Box(-np.inf, np.inf, (13,), np.float64)
        super().__init__(str(model), SKIP, space)

    def _set_action_space(self) -> None:
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float64)

    def step(self, action: Any) -> Any:
        self.do_simulation(np.zeros(0), self.frame_skip)
        return self.state_vector(), 0.0, False, False, {}

    def reset_model(self) -> Any:
        self.set_state(self.init_qpos, self.init_qvel)  # type: ignore[no-untyped-call]
        return self.state_vector()


class Integrator(gymnasium.Env[Any, Any]):
    """x+ = x + u, observed, with the start state as an option."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        drawn = self.np_random.uniform(-1, 1, 1)
        self.x = np.array((options or {}).get("state", drawn))
        return self.x.copy(), {"state": self.x.copy()}

    def step(self, action: Any) -> Any:
        self.x = self.x + action
        return self.x.copy(), 0.0, False, False, {}


@pytest.fixture
def free_body(tmp_path: Path) -> FreeBody:
    path = tmp_path / "free.xml"
    path.write_text(FREE_BODY)
    return FreeBody(path)


def fall(count: int, force: float, mass: float) -> float:
    """Displacement after `count` physics steps of the semi-implicit Euler method: F t^2 / (2 m) (1 + 1 / count)."""
    t = count * STEP
    return force * t**2 / (2 * mass) * (1 + 1 / count)


def run(env: gymnasium.Env[Any, Any], actions: Any, seed: int = 3) -> tuple[bytes, ...]:
    """Everything that an episode returns, as bytes."""
    observation, _ = env.reset(seed=seed)
    parts = [observation.tobytes()]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        parts += [observation.tobytes(), np.float64(reward).tobytes(), bytes([terminated, truncated])]
    return tuple(parts)


def draws(env: gymnasium.Env[Any, Any], count: int) -> Any:
    assert isinstance(env.action_space, gymnasium.spaces.Box)
    shape = (count, *env.action_space.shape)
    uniform = np.random.default_rng(0).uniform(env.action_space.low, env.action_space.high, shape)
    return uniform.astype(env.action_space.dtype)


def everything(env: gymnasium.Env[Any, Any]) -> list[AnyChannel]:
    """Every channel, neutral."""
    model = env.unwrapped.model  # type: ignore[attr-defined]
    body = next(model.body(i).name for i in range(model.nbody - 1, 0, -1) if model.body(i).name)
    return [
        Wrench(body=body),
        GeneralisedForce(),
        ActuatorGain(),
        Friction(),
        Damping(),
        Mass(body=body),
        SensorNoise(),
        SensorBias(),
        SensorDelay(),
        ActionOffset(),
        ActuatorDelay(),
        Deadline(),
        InitialState(),
    ]


def test_wrench_moves_a_free_body_by_half_f_t_squared_over_m(free_body: FreeBody) -> None:
    env = DisturbanceWrapper(free_body, [Wrench(body="block")])
    env.reset(seed=0)
    for _ in range(100):  # 1 s
        env.apply("wrench", [0, 3.0, 0, 0, 0, 0])
        observation, *_ = env.step(np.zeros(1))
    assert observation[1] == pytest.approx(fall(1000, 3.0, 2.0), rel=1e-12)
    assert observation[1] == pytest.approx(3.0 / 4, rel=2e-3)  # F t^2 / (2 m)
    before, velocity = observation[1], observation[8]
    assert velocity == pytest.approx(1.5, rel=1e-12)  # F t / m
    for _ in range(100):  # nothing is left behind: uniform motion
        observation, _, _, _, info = env.step(np.zeros(1))
        assert observation[8] == velocity
        assert not info["disturbance"]["wrench"].any()
    assert observation[1] - before == pytest.approx(velocity * 1.0, rel=1e-12)
    assert not free_body.data.xfrc_applied.any()


def test_torque_turns_a_free_body_and_a_standing_wrench_acts_at_every_step(free_body: FreeBody) -> None:
    torque = DisturbanceWrapper(free_body, [Wrench(body="block", value=(0, 0, 0, 0, 0, 0.1))])
    torque.reset(seed=0)
    for _ in range(10):
        observation, *_ = torque.step(np.zeros(1))
    inertia = 2.0 * (0.2**2 + 0.2**2) / 12
    assert observation[12] == pytest.approx(0.1 * 0.1 / inertia, rel=1e-9)  # rate about z
    np.testing.assert_allclose(observation[:3], 0, atol=1e-15)


def test_generalised_force_on_a_free_joint_equals_the_wrench(free_body: FreeBody) -> None:
    env = DisturbanceWrapper(free_body, [GeneralisedForce(joint="free", value=(4.0, 0, 0, 0, 0, 0))])
    env.reset(seed=0)
    for _ in range(50):
        observation, *_ = env.step(np.zeros(1))
    assert observation[0] == pytest.approx(fall(500, 4.0, 2.0), rel=1e-12)
    assert not free_body.data.qfrc_applied.any()


def test_mass_halves_the_acceleration_for_one_episode_and_never_compounds(free_body: FreeBody) -> None:
    push = Wrench(body="block", value=(1.0, 0, 0, 0, 0, 0))
    env = DisturbanceWrapper(free_body, [push, Mass(body="block")])
    for factor in (2.0, 2.0, 2.0, None):
        if factor is not None:
            env.apply("mass", factor)
        env.reset(seed=0)
        observation, *_ = env.step(np.zeros(1))
        assert observation[0] == pytest.approx(fall(SKIP, 1.0, 2.0 * (factor or 1.0)), rel=1e-12)
        assert free_body.model.body("block").mass[0] == 2.0 * (factor or 1.0)


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_sensor_delay_shifts_an_integrator_by_exactly_k_samples(samples: int) -> None:
    plain, late = Integrator(), DisturbanceWrapper(Integrator(), [SensorDelay(value=float(samples))])
    actions = draws(plain, 30)
    true = [plain.reset(seed=3)[0], *[plain.step(action)[0] for action in actions]]
    seen = [late.reset(seed=3)[0], *[late.step(action)[0] for action in actions]]
    assert seen[:samples] == [true[0]] * samples
    np.testing.assert_array_equal(seen[samples:], true[: 31 - samples])


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_actuator_delay_shifts_an_integrator_by_exactly_k_samples(samples: int) -> None:
    plain, late = Integrator(), DisturbanceWrapper(Integrator(), [ActuatorDelay(value=float(samples))])
    actions = draws(plain, 30)
    actions[0] = 0.0  # the first action stands in before the delay is over
    true = [plain.reset(seed=3)[0], *[plain.step(action)[0] for action in actions]]
    moved = [late.reset(seed=3)[0], *[late.step(action)[0] for action in actions]]
    assert moved[:samples] == [true[0]] * samples
    np.testing.assert_array_equal(moved[samples:], true[: 31 - samples])


def test_a_missed_deadline_holds_the_action_before() -> None:
    plain, late = Integrator(), DisturbanceWrapper(Integrator(), [Deadline()])
    actions = draws(plain, 12)
    missed = np.random.default_rng(5).random(12) < 0.5
    missed[:3] = [True, True, False]  # the first action of an episode has nothing to hold but itself
    applied = actions.copy()
    for t in range(1, 12):
        applied[t] = applied[t - 1] if missed[t] else actions[t]
    for _ in range(2):  # what was held is forgotten at a reset
        true = [plain.reset(seed=3)[0], *[plain.step(action)[0] for action in applied]]
        found = [late.reset(seed=3)[0]]
        for action, miss in zip(actions, missed, strict=True):
            late.apply("deadline", float(miss))
            found.append(late.step(action)[0])
        np.testing.assert_array_equal(found, true)
        assert late.step(actions[3])[0] != found[-1]


def test_delays_are_forgotten_at_a_reset() -> None:
    env = DisturbanceWrapper(Integrator(), [SensorDelay(value=2.0), ActuatorDelay(value=2.0)])
    actions = draws(env, 6)
    assert run(env, actions) == run(env, actions)


@pytest.mark.parametrize("task", TASKS)
def test_neutral_channels_reproduce_the_nominal_rollout_bitwise(task: str) -> None:
    plain, wrapped = gymnasium.make(task), gymnasium.make(task)
    disturbed = DisturbanceWrapper(wrapped, everything(wrapped))
    actions = draws(plain, 60)
    for seed in (0, 1):
        assert run(plain, actions, seed) == run(disturbed, actions, seed)


@pytest.mark.parametrize("task", TASKS)
def test_equal_seeds_give_equal_bytes_and_every_channel_has_an_effect(task: str) -> None:
    env = gymnasium.make(task)
    model = env.unwrapped.model  # type: ignore[attr-defined]
    n = env.observation_space.shape[0]  # type: ignore[index]
    moved = np.zeros(2 * model.nv)
    moved[-1] = 0.01
    values: dict[str, Any] = {
        "wrench": [1.0, 0, 1.0, 0, 0.1, 0],
        "force": np.full(model.nv, 0.1),
        "gain": 0.7,
        "damping": 2.0,
        "mass": 1.5,
        "sensor_noise": np.full(n, 0.01),
        "sensor_bias": np.full(n, 0.01),
        "sensor_delay": 1,
        "action_offset": np.full(model.nu, 0.02),
        "actuator_delay": 1,
        "deadline": 1,
        "initial_state": moved,
    }
    actions = draws(env, 4)
    kinds = {channel.name: channel for channel in everything(env)}
    nominal = run(env, actions)
    for name, value in values.items():
        channel = type(kinds[name])
        body = {"body": model.body("pole2" if task.startswith("InvertedD") else 1).name}
        need = body if name in ("wrench", "mass") else {}
        standing = float(np.asarray(value)) if np.ndim(value) == 0 else tuple(np.asarray(value).tolist())
        disturbed = DisturbanceWrapper(gymnasium.make(task), [channel(value=standing, **need)])
        assert run(disturbed, actions) == run(disturbed, actions), name
        if name == "damping" and not model.dof_damping.any():
            continue
        assert run(disturbed, actions) != nominal, name


def test_noise_has_its_deviation_per_component_and_does_not_touch_the_environment_draws() -> None:
    plain = gymnasium.make("InvertedPendulum-v5")
    deviation = (0.1, 0.0, 2.0, 0.5)
    noisy = DisturbanceWrapper(gymnasium.make("InvertedPendulum-v5"), [SensorNoise(value=deviation)])
    error = [noisy.reset(seed=0)[0] - plain.reset(seed=0)[0]]
    error += [noisy.reset()[0] - plain.reset()[0] for _ in range(2000)]  # same start states throughout
    spread = np.std(error, axis=0)
    np.testing.assert_allclose(spread, deviation, rtol=0.08)
    assert np.abs(np.corrcoef(np.array(error)[:, [0, 2, 3]].T) - np.eye(3)).max() < 0.1


def test_without_a_seed_noise_leaves_the_environment_draws_alone() -> None:
    noisy, plain = DisturbanceWrapper(Integrator(), [SensorNoise(value=(1.0,))]), Integrator()
    states = [noisy.reset()[1]["state"]]
    states += [noisy.reset()[1]["state"] for _ in range(3)]
    first = plain.reset(seed=noisy.unwrapped.np_random_seed)[1]["state"]
    assert states == [first, *[plain.reset()[1]["state"] for _ in range(3)]]


def test_zero_noise_keeps_even_the_sign_of_zero() -> None:
    env = DisturbanceWrapper(Integrator(), [SensorNoise(), SensorBias()])
    observation, _ = env.reset(seed=0, options={"state": [-0.0]})
    assert np.signbit(observation[0])


def test_friction_applied_during_an_episode_lasts_until_the_reset() -> None:
    env = DisturbanceWrapper(gymnasium.make("Hopper-v5"), [Friction(value=0.8), ActuatorGain()])
    task = env.unwrapped
    env.reset(seed=0)
    nominal = task.model.geom_friction / 0.8  # type: ignore[attr-defined]
    env.apply("friction", 0.5)
    for _ in range(3):
        info = env.step(np.zeros(3, dtype=np.float32))[4]
        np.testing.assert_allclose(task.model.geom_friction, 0.5 * nominal, rtol=1e-15)  # type: ignore[attr-defined]
        assert info["disturbance"]["friction"] == 0.5
    info = env.reset(seed=0)[1]
    np.testing.assert_allclose(task.model.geom_friction, 0.8 * nominal, rtol=1e-15)  # type: ignore[attr-defined]
    assert info["disturbance"]["friction"] == 0.8


def test_action_offset_is_kept_inside_the_limits_and_lasts_one_step() -> None:
    env = DisturbanceWrapper(Integrator(), [ActionOffset()])
    start, _ = env.reset(seed=0)
    env.apply("action_offset", 0.7)
    assert env.step(np.array([0.6]))[0] == pytest.approx(start + 1.0)
    assert env.step(np.array([0.2]))[0] == pytest.approx(start + 1.2)
    assert env.step(np.array([1.5]))[0] == pytest.approx(start + 2.7)  # the policy's own excess is not the wrapper's


def test_initial_state_moves_along_the_manifold() -> None:
    plain = gymnasium.make("Ant-v5")
    plain.reset(seed=5)
    qpos = plain.unwrapped.data.qpos.copy()  # type: ignore[attr-defined]
    offset = np.zeros(28)
    offset[2], offset[5], offset[14] = 0.3, 0.2, 1.0  # up, turn about the body's z axis, forward speed
    env = DisturbanceWrapper(gymnasium.make("Ant-v5"), [InitialState(value=tuple(offset))])
    observation, _ = env.reset(seed=5)
    data = env.unwrapped.data  # type: ignore[attr-defined]
    assert data.qpos[2] == pytest.approx(qpos[2] + 0.3)
    w, x, y, z = qpos[3:7] / np.linalg.norm(qpos[3:7])
    c, s = np.cos(0.1), np.sin(0.1)
    np.testing.assert_allclose(data.qpos[3:7], [w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s], rtol=1e-12)
    np.testing.assert_array_equal(observation[:13], data.qpos[2:])
    with pytest.raises(UserError, match="inside each other"):
        DisturbanceWrapper(plain, [InitialState(value=(0, 0, -0.6, *[0.0] * 25))]).reset(seed=5)


def test_initial_state_of_an_environment_that_reports_its_state() -> None:
    env = DisturbanceWrapper(Integrator(), [InitialState(value=(0.25,))])
    plain, _ = Integrator().reset(seed=8)
    assert env.reset(seed=8)[0] == plain + 0.25
    with pytest.raises(UserError, match="needs 1 numbers, found 2"):
        DisturbanceWrapper(Integrator(), [InitialState(value=(0.25, 1.0))]).reset(seed=8)
    pendulum = gymnasium.make("Pendulum-v1")
    with pytest.raises(UserError, match="reports and accepts 'state', found PendulumEnv"):
        DisturbanceWrapper(pendulum, [InitialState(value=(0.25, 1.0))]).reset(seed=8)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="'wrench' needs a MuJoCo task of gymnasium, found Integrator"):
        DisturbanceWrapper(Integrator(), [Wrench(body="torso")])
    with pytest.raises(UserError, match="different names"):
        DisturbanceWrapper(Integrator(), [SensorBias(), SensorBias()])
    with pytest.raises(UserError, match="several of SensorDelay"):
        DisturbanceWrapper(Integrator(), [SensorDelay(), SensorDelay(name="second")])
    env = DisturbanceWrapper(Integrator(), [SensorBias()])
    with pytest.raises(UserError, match="unknown channel 'sensor_bia'; did you mean 'sensor_bias'"):
        env.apply("sensor_bia", 0.1)
    with pytest.raises(UserError, match="needs 1 numbers"):
        env.apply("sensor_bias", [1.0, 2.0])
    with pytest.raises(UserError, match="give all channels to one wrapper"):
        DisturbanceWrapper(gymnasium.Wrapper(env), [])
    with pytest.raises(UserError, match="observation space that is a vector"):
        DisturbanceWrapper(gymnasium.make("CliffWalking-v1"), [SensorBias()])


def test_a_plant_disturbance_is_added_for_one_step_to_the_environments_own() -> None:
    """x+ = A x + B u + w: one push moves the next state by itself, on top of the disturbance that the task has."""
    env, plain = (gymnasium.make("lipctrl/DoubleIntegrator-v0") for _ in range(2))
    wrapped = DisturbanceWrapper(env, [PlantDisturbance()])
    for one in (wrapped, plain):
        one.reset(seed=0)
        one.unwrapped.disturbance = np.array([0.5, 0.0])  # type: ignore[attr-defined]  # a PlantEnv
    push = np.array([0.25, -0.125])
    wrapped.apply("disturbance", push)
    action = np.zeros(1)
    first, other = wrapped.step(action)[0], plain.step(action)[0]
    assert np.allclose(first - other, push, atol=1e-15)
    assert np.array_equal(env.unwrapped.disturbance, [0.5, 0.0])  # type: ignore[attr-defined]
    # the push is over: the difference moves on as the plant does
    later = wrapped.step(action)[0] - plain.step(action)[0]
    assert np.allclose(later, [[1.0, 1.0], [0.0, 1.0]] @ push, atol=1e-15)
    with pytest.raises(UserError, match="needs a plant"):
        DisturbanceWrapper(gymnasium.make("InvertedPendulum-v5"), [PlantDisturbance()])
