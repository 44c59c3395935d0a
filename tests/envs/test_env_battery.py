"""Every environment: gymnasium's checker, determinism, the plant against the step, the card against the code."""

import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.linalg import solve_discrete_are

import lipctrl.envs
from lipctrl.envs.base import Array, PlantEnv
from lipctrl.files import UserError

SECTIONS = (
    "Description",
    "Action space",
    "Observation space",
    "Reward",
    "Start state",
    "Termination and truncation",
    "Disturbance",
    "Arguments",
)

NOT_REGULATION = ("PendulumSwingUp", "Robot")


@pytest.fixture(params=sorted(lipctrl.envs.ENVIRONMENTS))
def env(request: pytest.FixtureRequest) -> Iterator[PlantEnv]:
    made = gymnasium.make(request.param)
    assert isinstance(made.unwrapped, PlantEnv)
    yield made.unwrapped
    made.close()


def spec_id(env: PlantEnv) -> str:
    assert env.spec is not None
    return env.spec.id


def time_limit(env: PlantEnv) -> int:
    steps = gymnasium.spec(spec_id(env)).max_episode_steps
    assert steps is not None
    return steps


def points(env: PlantEnv, count: int) -> Iterator[tuple[Array, Array, Array]]:
    """Start states with admissible inputs and disturbances."""
    rng = np.random.default_rng(3)
    plant = env.plant
    for seed in range(count):
        env.reset(seed=seed)
        u, w = (rng.uniform(0.2, 0.8, len(s)) for s in (plant.input, plant.disturbance))
        u = np.array(plant.input.low) + u * np.subtract(plant.input.high, plant.input.low)
        w = np.array(plant.disturbance.low) + w * np.subtract(plant.disturbance.high, plant.disturbance.low)
        yield env.state.copy(), u, w


def test_gymnasium_accepts_the_environment(env: PlantEnv) -> None:
    with warnings.catch_warnings():
        # gymnasium recommends actions in [-1, 1]; ours are in physical units
        warnings.filterwarnings("ignore", message=".*symmetric and normalized space")
        check_env(env)


def rollout(env: PlantEnv, seed: int) -> list[Any]:
    observation, _ = env.reset(seed=seed)
    rng, log = np.random.default_rng(seed), [observation.tobytes()]
    for _ in range(20):
        action = rng.uniform(env.action_space.low, env.action_space.high)  # type: ignore[attr-defined]
        observation, reward, failed, truncated, _ = env.step(action)
        log += [observation.tobytes(), reward, failed, truncated]
    return log


def test_equal_seeds_give_equal_bytes(env: PlantEnv) -> None:
    other = gymnasium.make(spec_id(env)).unwrapped
    assert isinstance(other, PlantEnv)
    assert rollout(env, 5) == rollout(other, 5) == rollout(env, 5)
    assert rollout(env, 5) != rollout(env, 6)


def test_the_environment_steps_its_plant_with_the_disturbance(env: PlantEnv) -> None:
    for x, u, w in points(env, 10):
        env.reset(options={"state": x})
        env.disturbance = w
        _, reward, _, truncated, info = env.step(u)
        np.testing.assert_allclose(info["state"], env.plant.step(x, u, w), rtol=1e-12, atol=1e-12)
        assert np.max(np.abs(info["state"] - env.plant.step(x, u))) > 1e-9  # the disturbance matters
        assert info["stage_cost"] == env.stage_cost(x, u) == -reward - env.failure_cost * info["failed"]
        assert truncated is False
        env.reset(options={"state": x})
        np.testing.assert_allclose(env.step(u)[4]["state"], env.plant.step(x, u), rtol=1e-12, atol=1e-12)


def test_linearisation_equals_finite_differences(env: PlantEnv) -> None:
    plant = env.plant
    for x, u, w in points(env, 3):
        sizes = [np.maximum(1.0, np.abs(v)) * 1e-6 for v in (x, u, w)]
        numeric = [np.empty((len(x), len(v))) for v in (x, u, w)]
        for which, value in enumerate((x, u, np.zeros_like(w))):
            for i in range(len(value)):
                step = sizes[which][i] * np.eye(len(value))[i]
                up, down = [x, u, np.zeros_like(w)], [x, u, np.zeros_like(w)]
                up[which], down[which] = value + step, value - step
                numeric[which][:, i] = (plant.step(*up) - plant.step(*down)) / (2 * sizes[which][i])
        for exact, approximate in zip(plant.linearise(x, u), numeric, strict=True):
            np.testing.assert_allclose(exact, approximate, rtol=1e-5, atol=1e-7)


def test_the_equilibrium_rests_and_costs_nothing_unless_it_fails(env: PlantEnv) -> None:
    x, u = env.plant.equilibrium
    np.testing.assert_allclose(env.plant.step(x, u), x, rtol=1e-12, atol=1e-12)
    if env.plant.ode is not None:
        np.testing.assert_allclose(env.plant.ode(x, u, np.zeros(len(env.plant.disturbance))), 0.0, atol=1e-9)
    env.reset(options={"state": x})
    assert env.step(u)[1] == 0.0


def test_actions_are_clipped_to_their_limits(env: PlantEnv) -> None:
    x = env.reset(seed=1)[1]["state"]
    low, high = np.array(env.plant.input.low), np.array(env.plant.input.high)
    np.testing.assert_array_equal(env.action_space.low, low)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(env.action_space.high, high)  # type: ignore[attr-defined]
    for limit, beyond in ((low, low - 1 - np.abs(low)), (high, high + 1 + np.abs(high))):
        env.reset(options={"state": x})
        clipped = env.step(beyond)
        env.reset(options={"state": x})
        exact = env.step(limit)
        np.testing.assert_array_equal(clipped[0], exact[0])
        assert clipped[1] == exact[1]


def test_leaving_the_limits_fails_and_terminates(env: PlantEnv) -> None:
    signal = env.plant.state
    i = next(i for i, limit in enumerate(signal.high) if np.isfinite(limit))
    for outside in (signal.high[i] + 0.5 * abs(signal.high[i]), signal.low[i] - 0.5 * abs(signal.low[i]) - 0.5):
        x, u = (v.copy() for v in env.plant.equilibrium)
        x[i] = outside
        env.reset(options={"state": x})
        _, reward, failed, truncated, info = env.step(u)
        if np.any(info["state"] < signal.low) or np.any(info["state"] > signal.high):
            assert failed and info["failed"] and not truncated
            assert reward == -info["stage_cost"] - env.failure_cost
            return
    raise AssertionError("no state outside the limits was reached")


def test_a_state_that_is_not_a_number_fails(env: PlantEnv) -> None:
    env.reset(seed=0)
    env._advance = lambda x, u, w: np.full_like(x, np.nan)
    assert env.step(env.plant.equilibrium[1])[2] is True


def test_the_time_limit_truncates_and_does_not_terminate(env: PlantEnv) -> None:
    steps = time_limit(env)
    limited = gymnasium.make(spec_id(env))
    x, u = env.plant.equilibrium
    inner = limited.unwrapped
    assert isinstance(inner, PlantEnv)
    limited.reset(options={"state": x})
    for step in range(steps):
        inner.state = x.copy()
        _, _, terminated, truncated, _ = limited.step(u)
        assert not terminated
        assert truncated == (step + 1 == steps)


def test_start_states_are_admissible(env: PlantEnv) -> None:
    for seed in range(200):
        observation, info = env.reset(seed=seed)
        assert np.all(env.plant.state.low <= info["state"]) and np.all(info["state"] <= env.plant.state.high)
        assert env.margin is None or env.margin(info["state"]) > 0
        assert observation in env.observation_space


def test_a_batch_of_states_steps_like_each_alone(env: PlantEnv) -> None:
    x, u, w = (np.array(v) for v in zip(*points(env, 4), strict=True))
    alone = [env.plant.step(*p) for p in zip(x, u, w, strict=True)]
    np.testing.assert_array_equal(env.plant.step(x, u, w), alone)
    assert env.plant.step(x[:1], u[:1]).shape == (1, x.shape[1])


# a linear law cannot stabilise the robot, and the swing-up has a cost of its own
@pytest.mark.parametrize("name", sorted({*lipctrl.envs.ENVIRONMENTS} - {f"lipctrl/{n}-v0" for n in NOT_REGULATION}))
def test_a_saturated_linear_regulator_solves_every_regulation_task(name: str) -> None:
    """The tasks are feasible: from any start the regulator reaches the operating point without failure."""
    limited = gymnasium.make(name)
    env = limited.unwrapped
    assert isinstance(env, PlantEnv) and env.Q is not None and env.R is not None
    x, u = env.plant.equilibrium
    A, B, _ = env.plant.linearise(x, u)
    P = solve_discrete_are(A, B, env.Q, env.R)
    K = np.linalg.solve(env.R + B.T @ P @ B, B.T @ P @ A)
    for seed in range(5):
        state, terminated, truncated = limited.reset(seed=seed)[0], False, False
        while not truncated:
            state, _, terminated, truncated, _ = limited.step(u - K @ (state - x))
            assert not terminated
        scale = np.minimum(1.0, np.subtract(env.plant.state.high, env.plant.state.low))
        assert np.all(np.abs(state - x) < 0.05 * scale)


def test_an_observation_determines_the_state(env: PlantEnv) -> None:
    """Up to full turns, which neither the observation nor the motion can tell."""
    for x, u, _ in points(env, 20):
        found = env.state_of(env.observe(x))
        np.testing.assert_allclose(env.observe(found), env.observe(x), rtol=1e-12, atol=1e-12)
        moved = env.observe(env.plant.step(x, u))
        np.testing.assert_allclose(env.observe(env.plant.step(found, u)), moved, rtol=1e-9, atol=1e-9)


def test_every_signal_names_its_unit(env: PlantEnv) -> None:
    plant = env.plant
    for signal in (plant.state, plant.input, plant.disturbance, env.observed):
        assert all(re.fullmatch(r".+ \[.+\]", name) for name in signal.names)


def test_results_do_not_alias_the_environment(env: PlantEnv) -> None:
    observation, info = env.reset(seed=2)
    before = env.state.copy()
    observation[:] = info["state"][:] = 7.0
    np.testing.assert_array_equal(env.state, before)
    observation, *_, info = env.step(env.plant.equilibrium[1])
    before = env.state.copy()
    observation[:] = info["state"][:] = 7.0
    np.testing.assert_array_equal(env.state, before)


def table(card: str, section: str) -> list[tuple[float, float]]:
    """Limits (low, high) per row of a table of the card; a row "0-1" counts twice."""
    text = card.split(f"## {section}\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()[2:]]
    limits = []
    for index, _, low, high, _ in rows:
        first, last = (int(part) for part in (index.split("-") * 2)[:2])
        row = tuple(float(v.replace("pi", str(np.pi))) for v in (low, high))
        limits += [(row[0], row[1])] * (last - first + 1)
    return limits


def test_the_card_is_complete_and_agrees_with_the_spaces(env: PlantEnv) -> None:
    card = inspect.getdoc(type(env))
    assert card is not None
    assert re.findall(r"^## (.+)$", card, flags=re.MULTILINE) == list(SECTIONS)
    assert f"truncated after {time_limit(env)} steps" in " ".join(card.split())
    if env.failure_cost:
        assert f"-{env.failure_cost:.0f} once on failure" in " ".join(card.split())
    arguments = card.split("## Arguments\n")[1]
    for name in inspect.signature(type(env)).parameters:
        assert re.search(rf"\b{name}\b", arguments), f"the card does not explain {name}"
    if spec_id(env) == "lipctrl/Linear-v0":
        return  # its sizes are arguments
    for section, space in (("Action space", env.action_space), ("Observation space", env.observation_space)):
        limits = np.array(table(card, section))
        np.testing.assert_allclose(limits[:, 0], space.low)  # type: ignore[attr-defined]
        np.testing.assert_allclose(limits[:, 1], space.high)  # type: ignore[attr-defined]


@pytest.mark.parametrize("action", [[np.nan], [[0.0]], [0.0, 0.0, 0.0]])
def test_a_bad_action_is_refused(env: PlantEnv, action: Any) -> None:
    env.reset(seed=0)
    with pytest.raises(UserError, match="action needs"):
        env.step(action)


def test_bad_reset_options_are_refused(env: PlantEnv) -> None:
    with pytest.raises(UserError, match="option 'state' only"):
        env.reset(options={"stat": [0.0]})
    with pytest.raises(UserError, match="start state needs"):
        env.reset(options={"state": [np.inf] * len(env.plant.state)})


def test_a_bad_disturbance_is_refused(env: PlantEnv) -> None:
    env.reset(seed=0)
    env.disturbance = np.zeros(9)
    with pytest.raises(UserError, match="disturbance needs"):
        env.step(env.plant.equilibrium[1])


def test_registering_twice_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    lipctrl.envs.register_all()
    assert dict(gymnasium.registry) == before
    assert set(lipctrl.envs.ENVIRONMENTS) <= set(before)


def test_importing_the_registry_imports_no_physics() -> None:
    code = "import sys, lipctrl.envs; print({'casadi', 'mujoco', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
