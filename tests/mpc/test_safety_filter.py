"""The safety filter against bad policies, against independent linear programmes, and with a solver that fails."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.optimize import linprog

from lipctrl.envs.cstr import cstr_plant
from lipctrl.envs.linear import linear_plant
from lipctrl.files import UserError
from lipctrl.mpc.linear import terminal_set
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.problem import Softness, regulation
from lipctrl.mpc.safety_filter import LevelSet, SafetyFilter, invariant_level, summarise
from lipctrl.policy import FunctionPolicy, Policy, linear_policy

Array = np.ndarray
MASS = linear_plant([[1.0, 1.0], [0.0, 1.0]], [0.0, 1.0], state_limit=5.0, input_limit=1.0)
Q, R, N = np.eye(2), np.array([[0.1]]), 8
K = lqr(*MASS.linearise(*MASS.equilibrium)[:2], Q, R).K
SAFE = linear_policy(K, np.array([-1.0]), np.array([1.0]))
REACTOR = cstr_plant()
REGULATOR = lqr(*REACTOR.linearise(*REACTOR.equilibrium)[:2], np.diag([10.0, 0.01]), np.diag([0.01, 3e-12]))


def reactor_backup() -> FunctionPolicy:
    (x_ref, u_ref), low, high = REACTOR.equilibrium, REACTOR.input.low, REACTOR.input.high
    return FunctionPolicy(lambda x: np.clip(u_ref - (x - x_ref) @ REGULATOR.K.T, low, high))


def mass_filter(policy: Policy) -> SafetyFilter:
    problem = regulation(MASS, Q, R, horizon=N)
    return SafetyFilter(
        policy=policy, plant=MASS, ocp=replace(problem, terminal_set=terminal_set(MASS, problem)), backup=SAFE
    )


LEVEL = invariant_level(REACTOR, reactor_backup(), REGULATOR.P, largest=2000.0, rng=np.random.default_rng(0))
TIGHT = replace(
    regulation(REACTOR, np.diag([10.0, 0.01]), np.diag([0.01, 3e-12]), horizon=10),
    x_low=np.array([1.0, 340.0]),
    x_high=np.array([3.0, 440.0]),
)


def reactor_filter(policy: Policy) -> SafetyFilter:
    level = LevelSet(LEVEL.center, LEVEL.P, min(LEVEL.level, 8.0))
    return SafetyFilter(policy=policy, plant=REACTOR, ocp=TIGHT, backup=reactor_backup(), level_set=level)


def no_cost(x: Array, u: Array) -> float:
    return 0.0


def noise(seed: int, center: Array, size: Array) -> FunctionPolicy:
    rng = np.random.default_rng(seed)
    return FunctionPolicy(lambda x: center + size * rng.uniform(-1, 1, (len(x), len(center))))


BAD_MASS = {
    "destabilising": FunctionPolicy(lambda x: x @ K.T),
    "push": FunctionPolicy(lambda x: np.ones((len(x), 1))),
    "noise": noise(0, np.zeros(1), np.array([3.0])),
    "bang": FunctionPolicy(lambda x: 100 * np.sign(x[:, 1:] + 0.1)),
    "nan": FunctionPolicy(lambda x: np.where(x[:, :1] > 1, np.nan, 1.0)),
}


def violated(loop: ClosedLoop, low: Array, high: Array) -> bool:
    return bool(((loop.states < low) | (loop.states > high)).any())


@pytest.mark.parametrize("name", BAD_MASS)
def test_no_bad_policy_violates_a_limit_of_the_mass(name: str) -> None:
    x, low, high = [-4.0, 1.0], np.array(MASS.state.low), np.array(MASS.state.high)
    bare = simulate(MASS, BAD_MASS[name], x, 80, stage_cost=no_cost)
    assert violated(bare, low, high) or bare.stopped
    loop = simulate(MASS, mass_filter(BAD_MASS[name]), x, 80, stage_cost=no_cost)
    assert loop.stopped is None and len(loop.records) == 80
    assert not violated(loop, low, high) and loop.input_excess.max() == 0
    log = summarise(loop.records)
    assert 0 < log.share <= 1 and log.largest >= log.mean > 0 and log.sources["lost"] == 0
    assert sum(log.sources.values()) == 80 and len(log.interventions) == round(log.share * 80)


BAD_REACTOR = {
    "hot": FunctionPolicy(lambda x: np.tile([7.5, 5e5], (len(x), 1))),
    "cold": FunctionPolicy(lambda x: np.tile([0.5, -5e5], (len(x), 1))),
    "idle": FunctionPolicy(lambda x: np.tile([4.0, 2e4], (len(x), 1))),
    "noise": noise(1, np.array([4.0, 0.0]), np.array([5.0, 7e5])),
}


@pytest.mark.parametrize("name", BAD_REACTOR)
def test_no_bad_policy_violates_a_limit_of_the_reactor(name: str) -> None:
    x = REACTOR.equilibrium[0] + [0.3, -15.0]
    bare = simulate(REACTOR, BAD_REACTOR[name], x, 60, stage_cost=no_cost)
    assert violated(bare, TIGHT.x_low, TIGHT.x_high)
    loop = simulate(REACTOR, reactor_filter(BAD_REACTOR[name]), x, 60, stage_cost=no_cost)
    assert loop.stopped is None and not violated(loop, TIGHT.x_low, TIGHT.x_high) and loop.input_excess.max() == 0
    sources = summarise(loop.records).sources
    assert sources["lost"] == 0 and sources["plan"] >= 5 and sources["backup"] <= 5


def test_a_safe_policy_is_left_alone() -> None:
    for plant, policy, filtered, x in (
        (MASS, SAFE, mass_filter(SAFE), np.array([-3.0, 0.5])),
        (REACTOR, reactor_backup(), reactor_filter(reactor_backup()), REACTOR.equilibrium[0] + [0.3, -15.0]),
    ):
        loop = simulate(plant, filtered, x, 40, stage_cost=no_cost)
        assert summarise(loop.records).share == 0 and loop.stopped is None
        np.testing.assert_array_equal(loop.states, simulate(plant, policy, x, 40, stage_cost=no_cost).states)


def independent_action(x: Array, wish: float) -> float | None:
    """Two linear programmes give the interval of first inputs that have a plan; the nearest point of it is safe."""
    final = terminal_set(MASS, regulation(MASS, Q, R, horizon=N))
    A, B, _ = MASS.linearise(*MASS.equilibrium)
    power = [np.linalg.matrix_power(A, k) for k in range(N + 1)]
    free = np.concatenate([power[k] @ x for k in range(1, N + 1)])
    reach = np.block([[power[k - j] @ B if j <= k else np.zeros((2, 1)) for j in range(N)] for k in range(N)])
    limits = block_diag(*[np.vstack([np.eye(2), -np.eye(2)])] * (N - 1), np.vstack([np.eye(2), -np.eye(2), final.H]))
    room = np.concatenate([np.full(4 * N, 5.0), final.h]) - limits @ free
    ends = [
        linprog(sign * np.eye(N)[0], A_ub=limits @ reach, b_ub=room, bounds=(-1, 1), method="highs") for sign in (1, -1)
    ]
    return float(np.clip(wish, ends[0].x[0], ends[1].x[0])) if all(end.success for end in ends) else None


def test_the_action_is_that_of_independent_linear_programmes() -> None:
    rng, compared, changed = np.random.default_rng(3), 0, 0
    for _ in range(40):
        x, wish = rng.uniform([-5, -2.5], [5, 2.5]), float(rng.uniform(-2, 2))
        expected = independent_action(x, wish)
        guard = mass_filter(FunctionPolicy(lambda x, wish=wish: np.full((len(x), 1), wish)))
        if expected is None:
            with pytest.raises(UserError, match="no safe plan of 8 steps"):
                guard.predict(x)
            continue
        action, (record,) = guard.predict(x)
        assert action[0] == pytest.approx(expected, abs=1e-4)
        assert record.change == pytest.approx(abs(action[0] - wish) / guard.ocp.u_scale[0])
        compared, changed = compared + 1, changed + (record.change > 1e-3)
    assert compared > 20 and changed > 5


class Broken:
    """A solver that returns NaN, or breaks down."""

    def __init__(self, down: bool) -> None:
        self.down = down

    def __call__(self, x0: Array, **_: object) -> dict[str, Array]:
        if self.down:
            raise RuntimeError("Assertion failed")
        return {"x": np.full_like(x0, np.nan)}

    def stats(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("down", [False, True])
def test_without_a_solver_the_last_plan_is_kept_and_no_limit_violated(down: bool) -> None:
    push = FunctionPolicy(lambda x: np.ones((len(x), 1)))
    guard = mass_filter(push)
    x = np.array([-1.0, 2.2])
    _, state = guard.predict(x)
    object.__setattr__(guard, "_solve", Broken(down))
    assert state[0].source == "plan"
    kept = 0
    x = MASS.step(x, state[0].action)
    for _ in range(30):
        planned = state[0].plan[1][1:]
        action, state = guard.predict(x, state)
        if state[0].source == "backup":
            np.testing.assert_array_equal(state[0].plan[1][:-1], planned)
            kept += 1
        x = MASS.step(x, action)
        assert (np.abs(x) <= 5).all() and state[0].source in ("policy", "backup")
        assert guard.safe(state[0].plan)
    assert kept > 5


def test_a_plan_must_end_in_the_terminal_set() -> None:
    problem = regulation(MASS, Q, R, horizon=1)  # one step sees no limit coming
    guard = replace(mass_filter(SAFE), ocp=replace(problem, terminal_set=terminal_set(MASS, problem)))
    guard = replace(guard, policy=BAD_MASS["destabilising"])
    loop = simulate(MASS, guard, [-1.0, 0.5], 60, stage_cost=no_cost)
    assert loop.stopped is None and not violated(loop, np.array(MASS.state.low), np.array(MASS.state.high))
    assert not guard.safe((np.tile([4.9, 1.0], (2, 1)), np.zeros((1, 1))))


def test_a_disturbed_plant_is_reported_as_lost_and_still_steered() -> None:
    loop = simulate(
        MASS,
        mass_filter(BAD_MASS["push"]),
        [-4.0, 1.0],
        25,
        stage_cost=no_cost,
        disturbances=np.tile([1.5, 0.5], (25, 1)),
    )
    assert loop.stopped is None and summarise(loop.records).sources["lost"] > 0


def test_hidden_state_belongs_to_its_row_and_ends_with_the_episode() -> None:
    guard = mass_filter(BAD_MASS["push"])
    x = np.array([[-4.0, 1.0], [2.0, 0.0]])
    actions, records = guard.predict(x)
    single = [guard.predict(row)[0] for row in x]
    np.testing.assert_allclose(actions, single, atol=1e-9)
    again, _ = guard.predict(x, records, episode_start=[True, True])
    np.testing.assert_allclose(again, actions, atol=1e-9)
    hopeless = np.array([4.9, 2.5])
    assert guard.predict(hopeless, records[:1])[1][0].source == "lost"
    with pytest.raises(UserError, match="no safe plan"):  # a new episode does not know the plan
        guard.predict(hopeless, records[:1], episode_start=[True])
    with pytest.raises(UserError, match="2 observations came with 1 hidden"):
        guard.predict(x, records[:1])


def test_level_set_is_where_the_backup_brings_the_function_down() -> None:
    assert LEVEL.level > 20
    rng = np.random.default_rng(5)
    normal = rng.standard_normal((4000, 2))
    ball = normal / np.linalg.norm(normal, axis=1, keepdims=True) * rng.uniform(0, 1, (4000, 1)) ** 0.5
    x = LEVEL.center + np.sqrt(LEVEL.level) * ball @ np.linalg.inv(np.linalg.cholesky(LEVEL.P))
    assert LEVEL.contains(x).all()
    assert LEVEL.contains(REACTOR.step(x, reactor_backup().predict(x)[0])).all()
    # idle, the reactor is unstable: no level set
    idle = FunctionPolicy(lambda x: np.tile(REACTOR.equilibrium[1], (len(x), 1)))
    with pytest.raises(UserError, match="no level set"):
        invariant_level(REACTOR, idle, REGULATOR.P, largest=100.0, rng=rng)


def test_refusals() -> None:
    problem = regulation(MASS, Q, R, horizon=N)
    with pytest.raises(UserError, match="one terminal set"):
        SafetyFilter(policy=SAFE, plant=MASS, ocp=problem, backup=SAFE)
    with pytest.raises(UserError, match="limits of state 0"):
        SafetyFilter(
            policy=SAFE, plant=MASS, ocp=problem, backup=SAFE, level_set=LevelSet(np.zeros(2), np.eye(2), 26.0)
        )
    with pytest.raises(UserError, match="hard state limits"):
        soft = replace(problem, soft=Softness(np.ones(2), np.ones(2)), terminal_set=terminal_set(MASS, problem))
        SafetyFilter(policy=SAFE, plant=MASS, ocp=soft, backup=SAFE)
    with pytest.raises(UserError, match="positive definite"):
        LevelSet(np.zeros(2), -np.eye(2), 1.0)
    with pytest.raises(UserError, match="level must be positive"):
        LevelSet(np.zeros(2), np.eye(2), 0.0)
    with pytest.raises(UserError, match="actions of shape"):
        mass_filter(FunctionPolicy(lambda x: np.ones((len(x), 2)))).predict(np.zeros(2))
    with pytest.raises(UserError, match="at least one step"):
        summarise([])
