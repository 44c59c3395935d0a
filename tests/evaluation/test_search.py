"""Attacks on channels other than the observation, in closed loops whose worst case is known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import ATTACKS, SEARCHES, Context, Held, NoAttack, Search, Uniform
from lipctrl.attacks.linear import Quadratic
from lipctrl.attacks.threat import Threat
from lipctrl.certify.stability import hinf_norm
from lipctrl.disturb.channel import ActuatorGain, AnyChannel, Damping, Friction, Mass
from lipctrl.disturb.sets import Ball
from lipctrl.disturb.wrapper import DisturbanceWrapper
from lipctrl.evaluation.rollout import Loops, Rollouts, surrounded
from lipctrl.evaluation.search import run_search
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.policy import FunctionPolicy, PlainPolicy, linear_policy
from lipctrl.seeding import seed_of

Array = NDArray[np.float64]
A, B = np.array([[1.0, 0.1], [0.0, 0.9]]), np.array([[0.05, 0.1], [0.1, -0.05]])
Q, R, STEPS, EPISODES, SEED = np.eye(2), 0.1 * np.eye(2), 30, 3, 4
K = lqr(A, B, Q, R).K + 0.5  # detuned, so that the sign of an offset matters
POLICY = linear_policy(K, np.full(2, -1e3), np.full(2, 1e3))
CLOSED = A - B @ K
Env = gymnasium.Env[Any, Any]


def linear() -> Env:
    return gymnasium.make("lipctrl/Linear-v0", A=A, B=B, Q=Q, R=R, max_episode_steps=STEPS)


def run(line: str, name: str, radii: Sequence[float], *, loops: int = 300) -> Rollouts:
    """An attack on the linear loop."""
    threat = Threat.parse(line, np.ones(2), ("a", "b"), linear())
    batch = Loops(lambda: surrounded(linear(), threat))
    if name in SEARCHES:
        search = Search(SEARCHES[name][0].family, SEARCHES[name][0].method, loops)
        return run_search(batch, POLICY, search, threat, radii, episodes=EPISODES, seed=SEED)
    return batch.run(POLICY, ATTACKS[name][0](), threat, radii, episodes=EPISODES, seed=SEED)


def starts() -> list[Array]:
    env = linear()
    return [env.reset(seed=seed_of(SEED, "episode", e))[0] for e in range(EPISODES)]


def form(x0: Array, channel: str, steps: int = STEPS) -> Quadratic:
    """Cost of an episode as a quadratic form of the stacked disturbances of its steps, (steps x 2,)."""
    size = 2 * steps
    reached, drift = np.zeros((2, size)), x0
    M, b, c = np.zeros((size, size)), np.zeros(size), 0.0
    for t in range(STEPS):
        here = np.zeros((2, size))
        if t < steps:
            here[:, 2 * t : 2 * t + 2] = np.eye(2)
        to_input = here if channel == "action" else 0 * here
        for rows, offset, weight in ((reached, drift, Q), (-K @ reached + to_input, -K @ drift, R)):
            M, b, c = M + rows.T @ weight @ rows, b + rows.T @ weight @ offset, c + offset @ weight @ offset
        reached, drift = CLOSED @ reached + (B @ here if channel == "action" else here), CLOSED @ drift
    return Quadratic((M + M.T) / 2, b, float(c))


def held_form(x0: Array, channel: str) -> Quadratic:
    """The same of one value that is held."""
    whole, hold = form(x0, channel), np.tile(np.eye(2), (STEPS, 1))
    return Quadratic(hold.T @ whole.M @ hold, hold.T @ whole.b, whole.c)


def close_below(found: Array, exact: Array, nominal: Array, share: float) -> None:
    """Costs that never exceed the exact ones and reach a share of the damage."""
    assert (found <= exact * (1 + 1e-9)).all()
    assert (found - nominal >= share * (exact - nominal)).all(), (found - nominal) / (exact - nominal)


@pytest.mark.parametrize("channel", ["action", "disturbance"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_worst_constant_is_the_maximum_of_a_quadratic_form(channel: str, norm: str) -> None:
    result = run(f"{channel}:{norm}:raw", "constant-search", (0.0, 0.2))
    forms = [held_form(x0, channel) for x0 in starts()]
    exact = [f.largest_in_ball(0.2)[0] if norm == "l2" else f.largest_at_vertices(0.2)[0] for f in forms]
    nominal = np.array([f.c for f in forms])
    assert np.allclose(-result.returns[0], nominal, rtol=1e-12)
    close_below(-result.returns[1], np.array(exact), nominal, 0.995)
    assert result.cost.loops == 300 * EPISODES and result.cost.steps == 300 * EPISODES * STEPS
    assert (result.deviation == 0).all()
    for name in ("uniform", "constant", "random-search"):
        other = -run(f"{channel}:{norm}:raw", name, (0.2,), loops=60).returns[0]
        if name != "uniform":
            assert (other <= np.array(exact) * (1 + 1e-9)).all()
        if name == "random-search":
            close_below(other, np.array(exact), nominal, 0.9)


def test_the_worst_start_state_is_the_maximum_of_the_cost_to_go() -> None:
    P = sum(
        np.linalg.matrix_power(CLOSED, t).T @ (Q + K.T @ R @ K) @ np.linalg.matrix_power(CLOSED, t)
        for t in range(STEPS)
    )
    forms = [Quadratic(np.asarray(P), P @ x0, float(x0 @ P @ x0)) for x0 in starts()]
    nominal = np.array([f.c for f in forms])
    exact = np.array([f.largest_in_ball(0.3)[0] for f in forms])
    found = -run("initial_state:l2:raw", "constant-search", (0.3,)).returns[0]
    close_below(found, exact, nominal, 0.995)
    best = np.array([f.largest_at_vertices(0.3)[0] for f in forms])
    close_below(-run("initial_state:linf:raw", "random-search", (0.3,), loops=60).returns[0], best, nominal, 1 - 1e-9)
    blind = -run("initial_state:l2:raw", "vertex", (0.3,)).returns[0]
    assert (blind <= exact * (1 + 1e-9)).all() and not np.allclose(blind, nominal)


def test_an_energy_is_spent_best_where_the_trust_region_problem_says() -> None:
    forms = [form(x0, "action") for x0 in starts()]
    nominal = np.array([f.c for f in forms])
    exact = np.array([f.largest_in_ball(0.5)[0] for f in forms])
    pulse = -run("action:l2:raw:episode", "pulse-search", (0.5,)).returns[0]
    # a pulse is not the optimal sequence; on this plant it does most of the damage
    close_below(pulse, exact, nominal, 0.6)
    held = -run("action:l2:raw:episode", "constant-search", (0.5,)).returns[0]
    best = np.array([held_form(x0, "action").largest_in_ball(0.5 / np.sqrt(STEPS))[0] for x0 in starts()])
    close_below(held, best, nominal, 0.995)
    for name in ("uniform", "vertex", "constant"):
        assert (-run("action:l2:raw:episode", name, (0.5,)).returns[0] <= exact * (1 + 1e-9)).all()


def test_a_single_hit_is_found_at_the_worst_time() -> None:
    nominal = np.array([form(x0, "action").c for x0 in starts()])
    exact = []
    for x0 in starts():
        whole = form(x0, "action")
        parts = [slice(2 * t, 2 * t + 2) for t in range(STEPS)]
        exact.append(max(Quadratic(whole.M[p, p], whole.b[p], whole.c).largest_at_vertices(0.5)[0] for p in parts))
    found = -run("action:linf:raw:sparse=1", "pulse-search", (0.5,)).returns[0]
    close_below(found, np.array(exact), nominal, 0.9)


def test_a_wave_approaches_the_peak_of_the_frequency_response() -> None:
    """An oscillator: |z|_2 <= |G|_inf |w|_2; a square wave keeps 8 / pi^2 of its energy in its first harmonic."""
    turn, peak = 2 * np.pi / 9, 0.9
    a = peak * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    b, steps = np.array([[1.0], [0.0]]), 150

    def make() -> Env:
        return gymnasium.make("lipctrl/Linear-v0", A=a, B=b, Q=Q, R=[[0.0]], max_episode_steps=steps)

    idle = FunctionPolicy(lambda x: np.zeros((len(x), 1)))
    threat = Threat.parse("action:linf:raw", np.ones(2), ("a", "b"), make())
    loops = Loops(lambda: surrounded(make(), threat))
    cost = {}
    for name in ("none", "constant-search", "wave-search"):
        if name == "none":
            found = loops.run(idle, NoAttack(), threat, (0.0,), episodes=2, seed=0)
        else:
            found = run_search(loops, idle, replace(SEARCHES[name][0], loops=150), threat, (10.0,), episodes=2, seed=0)
        cost[name] = -found.returns[0]
    # the start state decays within this share of the bound
    bound = steps * (10.0 * hinf_norm(a, b, np.eye(2))) ** 2
    assert (cost["wave-search"] < bound + 10 * np.sqrt(cost["none"] * bound)).all()
    assert (cost["wave-search"] > 0.5 * bound).all() and (cost["constant-search"] < 0.05 * bound).all()


def test_pulses_and_waves_begin_with_constants() -> None:
    held = run("action:l2:raw", "constant-search", (0.2,), loops=20).returns
    for name in ("pulse-search", "wave-search"):
        assert (run("action:l2:raw", name, (0.2,), loops=60).returns < 0.97 * held).all()


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_tries_nothing_first(name: str) -> None:
    """So that it never reports less damage than none; with one closed loop that is all it can do."""
    nominal = run("action:l2:raw", "none", (0.0,)).returns[0]
    assert np.array_equal(run("action:l2:raw", name, (0.2,), loops=1).returns[0], nominal)


def test_a_larger_set_never_shows_less_damage() -> None:
    """What was found at a smaller radius is tried at a larger one, whatever the order in which radii are given."""
    asked: list[tuple[float, object, Held]] = []

    class Recorder(Search):
        def worst(self, returns: object, ball: Ball, *given: Any, known: Held | None = None, **named: Any) -> Held:
            found = super().worst(returns, ball, *given, known=known, **named)  # type: ignore[arg-type]  # passed on
            asked.append((ball.radius[0], known, found))
            return found

    threat = Threat.parse("action:l2:raw", np.ones(2), ("a", "b"), linear())
    loops = Loops(lambda: surrounded(linear(), threat))
    recorder = Recorder("pulse", "cross-entropy", 40)
    found = run_search(loops, POLICY, recorder, threat, (0.05, 0.3, 0.0, 0.1), episodes=EPISODES, seed=SEED).returns
    assert [radius for radius, *_ in asked] == [0.05, 0.1, 0.3]
    assert [known for _, known, _ in asked] == [None, asked[0][2], asked[1][2]]
    assert (np.diff(found[[2, 0, 3, 1]], axis=0) <= 1e-12).all()
    search = Search("held", "random", 2)
    zeros, ones = np.zeros(EPISODES), np.ones(EPISODES, np.int64)
    known = Held(np.tile([[0.12, -0.16]], (EPISODES, 1)), 0 * ones, STEPS * ones, zeros)

    def returns(held: Held, ball: Ball) -> Array:
        return loops.run(POLICY, held, threat, (0.2, 0.2), episodes=EPISODES, seed=SEED).returns

    ball = threat.ball(np.full(EPISODES, 0.2))
    worst = search.worst(returns, ball, threat.words.budget, steps=STEPS, random=np.random.default_rng(0), known=known)
    moved = (worst.values != 0).any(1)
    assert moved.any() and np.array_equal(worst.values[moved], known.values[moved])


def test_a_coupled_disturbance_ramps_up() -> None:
    ramp = np.minimum(1.0, 0.1 * np.arange(1, STEPS + 1))[:, None] * np.ones((1, 2))
    exact = []
    for x0 in starts():
        whole = form(x0, "action")
        signs = [np.array([a, b]) for a in (1, -1) for b in (1, -1)]
        exact.append(max(float(whole((0.5 * ramp * s).ravel())) for s in signs))
    found = -run("action:linf:raw:rate=0.1", "random-search", (0.5,), loops=40).returns[0]
    assert np.allclose(found, exact, rtol=1e-9)


@pytest.mark.parametrize("name", ["none", "uniform", "vertex", "constant", *SEARCHES])
@pytest.mark.parametrize("line", ["action:l2:raw", "disturbance:linf:raw:sparse=4", "action:l2:raw:episode"])
def test_radius_zero_is_the_nominal_loop_bitwise(name: str, line: str) -> None:
    nominal = Loops(linear).run(POLICY, NoAttack(), OBSERVATION, (0.0,), episodes=EPISODES, seed=SEED)
    found = run(line, name, (0.0, 0.1), loops=5)
    assert np.array_equal(found.returns[0], nominal.returns[0])
    assert (found.returns[1] <= nominal.returns[0]).all() or name not in SEARCHES


OBSERVATION = Threat.parse("observation:l2:raw", np.ones(2), ("a", "b"))


def integrator() -> Env:
    return gymnasium.make(
        "lipctrl/Linear-v0", A=[[1.0]], B=[[1.0]], Q=[[1.0]], R=[[0.0]], max_episode_steps=200, state_limit=1e9
    )


def test_a_delayed_integrator_is_stable_up_to_the_known_gain() -> None:
    """x+ = x - a x[t-k] is stable if and only if 0 < a < 2 cos(k pi / (2 k + 1)): 2, 1, 0.618, 0.445, 0.347."""
    threat = Threat.parse("delay", np.ones(1), ("x",), integrator())
    loops, delays = Loops(lambda: surrounded(integrator(), threat)), np.arange(5)
    limits = 2 * np.cos(delays * np.pi / (2 * delays + 1))
    for k, gain in enumerate(limits[1:] * 1.05):
        policy = linear_policy(np.array([[gain]]), np.array([-1e3]), np.array([1e3]))
        result = loops.run(policy, ATTACKS["vertex"][0](), threat, delays.tolist(), episodes=2, seed=0)
        grown = np.abs(result.final[..., 0]).max(1) > 1.5
        assert (grown == (gain > limits)).all()
        search = Search("held", "cross-entropy", 20)
        worst = run_search(loops, policy, search, threat, (k + 1.0,), episodes=2, seed=0)
        assert np.allclose(worst.returns[0], result.returns[k + 1])
    # at the smallest of these gains every delay up to 3 is stable and 4 is not: uniform delays hit both
    some = loops.run(policy, Uniform(), threat, (4.0,), episodes=30, seed=0)
    assert 0 < (np.abs(some.final[0, :, 0]) > 1).sum() < 15


@pytest.mark.parametrize("line", ["gain:linf", "parameters"])
def test_model_parameters_are_those_of_the_wrapper(line: str) -> None:
    def make() -> Env:
        return gymnasium.make("HalfCheetah-v5", max_episode_steps=20)

    weights = np.random.default_rng(0).normal(size=(6, 17))
    policy = FunctionPolicy(lambda x: np.clip(x @ weights.T, -1, 1))
    threat = Threat.parse(line, np.ones(17), ("a",) * 17, make())
    loops = Loops(lambda: surrounded(make(), threat))
    change = np.random.default_rng(2).uniform(-0.3, 0.3, (1, len(threat.names)))
    channels: list[AnyChannel] = [ActuatorGain(value=tuple(1 + change[0, :6]))]
    if line == "parameters":  # 6 actuators, friction, 9 degrees of freedom, mass
        factors = 1 + change[0]
        channels += [Friction(value=factors[6]), Damping(value=tuple(factors[7:16])), Mass(value=factors[16])]
    held = Held(change, np.zeros(1, np.int64), np.ones(1, np.int64), np.zeros(1))
    found = loops.run(policy, held, threat, (0.3,), episodes=1, seed=1)
    env = DisturbanceWrapper(make(), channels)
    x, total = env.reset(seed=seed_of(1, "episode", 0))[0], 0.0
    for _ in range(20):
        x, reward, *_ = env.step(policy.predict(x)[0].astype(np.float32))
        total += float(reward)
    assert found.returns[0, 0] == pytest.approx(total, rel=1e-9)
    worst = run_search(loops, policy, Search("held", "cross-entropy", 40), threat, (0.3,), episodes=1, seed=1)
    nominal = loops.run(policy, NoAttack(), threat, (0.0,), episodes=1, seed=1)
    assert worst.returns[0, 0] < nominal.returns[0, 0]
    with pytest.raises(UserError, match="below 1"):
        loops.run(policy, Uniform(), threat, (1.0,), episodes=1, seed=1)


def test_a_grey_adversary_has_no_jacobian() -> None:
    grey = Threat.parse("observation:l2:raw:grey", np.ones(2), ("a", "b"))
    assert isinstance(POLICY, PlainPolicy)
    found = [Loops(linear).run(POLICY, ATTACKS["mad"][0](), t, (0.1,), episodes=2, seed=0) for t in (OBSERVATION, grey)]
    assert found[0].cost.jacobians > 0 and found[1].cost.jacobians == 0
    assert np.allclose(found[0].deviation, found[1].deviation, rtol=1e-4)


def test_attacks_outside_their_set_are_bugs() -> None:
    class Cheat(Uniform):
        def perturb(self, context: Context) -> Array:
            return 2 * context.ball.boundary(context.draw(context.random.standard_normal))

    threat = Threat.parse("action:l2:raw", np.ones(2), ("a", "b"), linear())
    with pytest.raises(RuntimeError, match="Cheat"):
        Loops(lambda: surrounded(linear(), threat)).run(POLICY, Cheat(), threat, (0.1,), episodes=2, seed=0)
