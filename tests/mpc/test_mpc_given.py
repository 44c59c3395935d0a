"""What a problem may know beside the state, and how it may be solved: each against a closed form or another way."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import casadi as ca
import numpy as np
import pytest

from lipctrl.envs.cstr import cstr_plant
from lipctrl.envs.linear import double_integrator, linear_plant
from lipctrl.envs.robot import obstacle_margin, robot_plant
from lipctrl.files import UserError
from lipctrl.mpc.collocation import POINTS, Collocation, collocation_of
from lipctrl.mpc.controller import GENERAL, NMPC, SOLVERS, Speed, solve_programme
from lipctrl.mpc.linear import LinearMPC, terminal_set
from lipctrl.mpc.loop import simulate
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.problem import OCP, Given, regulation
from lipctrl.mpc.shooting import transcribe
from lipctrl.plant import Plant, Signal, continuous, rk4

Array = np.ndarray
REACTOR = cstr_plant()
Q, R = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])
PUSHED = linear_plant([[1.1, 0.3], [0.0, 0.9]], [[0.2], [1.0]])


@pytest.mark.parametrize("solver", [*(name for name in SOLVERS if name != "sqpmethod-daqp"), "piqp", "hpipm"])
def test_a_state_may_cost_nothing(solver: str) -> None:
    ocp = regulation(PUSHED, np.diag([1.0, 0.0]), [[0.3]], horizon=6, P=np.eye(2))
    mpc = NMPC(PUSHED, ocp, solver) if solver in SOLVERS else LinearMPC(PUSHED, ocp, solver)
    given = Given(None, np.zeros(2), np.zeros(2), np.zeros(1))
    found = mpc.solve([1.0, -0.5], given=given)
    assert found.converged
    np.testing.assert_allclose(found.inputs[:, 0], least_squares(np.array([1.0, -0.5]), ocp, given), atol=1e-6)


@cache
def reactor_problem(horizon: int = 10) -> OCP:
    return regulation(REACTOR, Q, R, horizon=horizon)


def least_squares(x: Array, ocp: OCP, given: Given) -> Array:
    """First input of the unconstrained linear problem with references and pushes, by stacking all residuals."""
    A, B, E = PUSHED.linearise(*PUSHED.equilibrium)
    N, w, rows, targets = ocp.horizon, np.broadcast_to(given.disturbance, (ocp.horizon, 2)), [], []
    refs, inputs = np.broadcast_to(given.x_ref, (N + 1, 2)), np.broadcast_to(given.u_ref, (N, 1))
    free, reach = x, np.zeros((2, N))
    roots = {False: np.sqrt(ocp.Q), True: np.linalg.cholesky(ocp.P).T}  # Q is diagonal
    for k in range(N + 1):
        rows.append(roots[k == N] @ reach)
        targets.append(roots[k == N] @ (refs[k] - free))
        if k < N:
            free, reach = A @ free + E @ w[k], A @ reach
            reach[:, k] += B[:, 0]
    rows.append(np.sqrt(ocp.R[0, 0]) * np.eye(N))
    targets.append(np.sqrt(ocp.R[0, 0]) * inputs[:, 0])
    return np.linalg.lstsq(np.vstack(rows), np.concatenate(targets), rcond=None)[0]


@pytest.mark.parametrize("solver", [*SOLVERS, "linear"])
@pytest.mark.parametrize("per_stage", [False, True])
def test_references_and_disturbance_against_least_squares(solver: str, per_stage: bool) -> None:
    ocp, rng = regulation(PUSHED, np.diag([2.0, 0.5]), [[0.3]], horizon=6), np.random.default_rng(1)
    shapes = ((6, 2), (7, 2), (6, 1)) if per_stage else ((2,), (2,), (1,))
    given = Given(None, *(rng.normal(size=shape) for shape in shapes))
    x = np.array([1.0, -0.5])
    mpc = LinearMPC(PUSHED, ocp) if solver == "linear" else NMPC(PUSHED, ocp, solver)
    found = mpc.solve(x, given=given)
    assert found.feasible and found.converged
    np.testing.assert_allclose(found.inputs[:, 0], least_squares(x, ocp, given), atol=1e-6)


@pytest.mark.parametrize("solver", GENERAL)
def test_rate_limits_hold_and_count_from_the_previous_input(solver: str) -> None:
    """From position 10 the double integrator pushes as hard as it may: the first inputs follow the rate limit."""
    plant, weight, price = double_integrator()
    ocp = replace(regulation(plant, weight, price, horizon=12), u_rate=np.array([0.25]))
    for mpc in (NMPC(plant, ocp, solver), LinearMPC(plant, ocp)):
        found = mpc.solve([10.0, 0.0], given=Given(previous=np.array([0.1])))
        steps = np.diff(np.append(0.1, found.inputs[:, 0]))
        assert found.feasible and np.abs(steps).max() <= 0.25 + 1e-6
        np.testing.assert_allclose(found.inputs[:3, 0], [-0.15, -0.4, -0.65], atol=1e-5)
        free = mpc.solve([10.0, 0.0])
        assert free.inputs[0, 0] < -0.8 and np.abs(np.diff(free.inputs[:, 0])).max() <= 0.25 + 1e-6


def test_a_policy_hands_its_last_action_to_the_rate_limits() -> None:
    plant, weight, price = double_integrator()
    ocp = replace(regulation(plant, weight, price, horizon=20), u_rate=np.array([0.2]))
    loop = simulate(plant, MPCPolicy(LinearMPC(plant, ocp)), [3.0, 0.0], 30, stage_cost=lambda x, u: 0.0)
    assert loop.stopped is None and np.abs(np.diff(loop.inputs[:, 0])).max() <= 0.2 + 1e-6
    assert np.abs(loop.states[-1]).max() < 0.05
    assert np.abs(np.diff(loop.inputs[:, 0])).max() > 0.199  # they act


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "sqpmethod-daqp"])
def test_the_robot_drives_around_the_obstacle(solver: str) -> None:
    """The heading costs nothing; the straight way to the goal leads through the obstacle."""
    plant = robot_plant()
    weight = np.diag([1.0, 1.0, 0.0])
    problem = regulation(
        plant, weight, 0.0005 * np.eye(2), horizon=20, P=20 * weight + np.diag([0, 0, 1e-3]), margin=obstacle_margin
    )
    start = [-2.0, 0.05, 0.0]
    blind = simulate(
        plant, MPCPolicy(NMPC(plant, replace(problem, margin=None), solver)), start, 60, stage_cost=lambda x, u: 0.0
    )
    loop = simulate(plant, MPCPolicy(NMPC(plant, problem, solver)), start, 80, stage_cost=lambda x, u: 0.0)
    assert min(obstacle_margin(x) for x in blind.states) < -0.1
    assert loop.stopped is None and min(obstacle_margin(x) for x in loop.states) > -1e-6
    assert np.linalg.norm(loop.states[-1][:2]) < 0.1


def test_radau_coefficients_are_those_of_casadi() -> None:
    method = collocation_of(REACTOR)
    slopes, end, _ = ca.collocation_coeff(list(method.points))
    np.testing.assert_allclose(method.slopes, np.array(slopes), atol=1e-12)
    np.testing.assert_allclose(np.array(end).ravel(), np.eye(POINTS + 1)[-1], atol=1e-12)


def stiff_plant(rate: float) -> Plant:
    """dx/dt = -rate (x - u), exactly x+ = u + (x - u) exp(-rate dt)."""
    ode = continuous(lambda x, u, w: -rate * (x - u) + w, 1, 1, 1)
    limits = ((-10.0,), (10.0,))
    signal = [Signal((name,), *limits) for name in ("x [-]", "u [-]", "w [-]")]
    return Plant("stiff", *signal, 0.1, rk4(ode, 0.1, 1), ode, (np.zeros(1), np.zeros(1)))


@pytest.mark.parametrize(("rate", "error"), [(1.0, 1e-8), (10.0, 1e-3), (1e4, 1e-2)])
def test_collocation_follows_slow_and_stiff_plants(rate: float, error: float) -> None:
    """One period of Radau IIA: a Pade approximation of exp(-rate dt), which vanishes for infinite rates."""
    plant = stiff_plant(rate)
    ocp = regulation(plant, [[1.0]], [[1.0]], horizon=5, P=[[1.0]])
    found = NMPC(plant, ocp, transcription="collocation").solve([5.0])
    assert found.converged
    decay = np.exp(-rate * 0.1)
    exact = found.inputs[:, 0] + (found.states[:-1, 0] - found.inputs[:, 0]) * decay
    np.testing.assert_allclose(found.states[1:, 0], exact, atol=5 * error)
    z, pade = rate * 0.1, lambda z: (1 - 2 * z / 5 + z**2 / 20) / (1 + 3 * z / 5 + 3 * z**2 / 20 + z**3 / 60)
    radau = found.inputs[:, 0] + (found.states[:-1, 0] - found.inputs[:, 0]) * pade(z)
    np.testing.assert_allclose(found.states[1:, 0], radau, atol=1e-7)


@pytest.mark.parametrize("solver", GENERAL)
def test_collocation_and_shooting_agree_on_the_reactor(solver: str) -> None:
    x = REACTOR.equilibrium[0] + [0.3, -15.0]
    shooting, collocated = (NMPC(REACTOR, reactor_problem(), solver, t).solve(x) for t in ("shooting", "collocation"))
    np.testing.assert_allclose(collocated.inputs / [3.5, 5e5], shooting.inputs / [3.5, 5e5], atol=1e-4)
    assert collocated.cost == pytest.approx(shooting.cost, rel=1e-5)


def test_compiled_functions_give_the_same_plan_faster() -> None:
    x, plain = REACTOR.equilibrium[0] + [0.3, -15.0], NMPC(REACTOR, reactor_problem())
    fast = NMPC(REACTOR, reactor_problem(), speed=Speed(compiled=True))
    expected, found = plain.solve(x), fast.solve(x)
    assert found.converged and found.iterations == expected.iterations
    np.testing.assert_allclose(found.inputs / [3.5, 5e5], expected.inputs / [3.5, 5e5], atol=1e-9)


def test_without_a_compiler_compiled_mpc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="C compiler"):
        NMPC(REACTOR, reactor_problem(), speed=Speed(compiled=True))


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "fatrop"])
def test_a_deadline_stops_the_solver(solver: str) -> None:
    x = REACTOR.equilibrium[0] + [0.3, -15.0]
    stopped = NMPC(REACTOR, reactor_problem(), solver, speed=Speed(deadline=1e-6)).solve(x)
    assert not stopped.converged and stopped.iterations <= 1
    ample = NMPC(REACTOR, reactor_problem(), solver, speed=Speed(deadline=60.0))
    assert ample.solve(x).converged and ample.solve(x).converged  # the clock starts anew at every call


def test_real_time_iterations_cost_nearly_what_full_solves_cost() -> None:
    def loop_cost(speed: Speed) -> tuple[float, int]:
        policy = MPCPolicy(NMPC(REACTOR, reactor_problem(), speed=speed))
        loop = simulate(REACTOR, policy, REACTOR.equilibrium[0] + [0.3, -15.0], 60, stage_cost=cost)
        assert loop.stopped is None
        return loop.cost, max(d.solution.iterations for d in loop.decisions)

    def cost(x: Array, u: Array) -> float:
        dx, du = x - REACTOR.equilibrium[0], u - REACTOR.equilibrium[1]
        return float(dx @ Q @ dx + du @ R @ du)

    (full, most), (real_time, one) = loop_cost(Speed()), loop_cost(Speed(real_time=True))
    assert one == 1 < most
    assert full * (1 - 1e-9) <= real_time < 1.02 * full


def test_a_real_time_plan_is_a_motion_of_the_plant() -> None:
    controller = NMPC(REACTOR, reactor_problem(), speed=Speed(real_time=True))
    plan = controller.solve(REACTOR.equilibrium[0] + [0.3, -15.0], given=Given(disturbance=np.array([0.01, 0.0])))
    moved = REACTOR.step(plan.states[:-1], plan.inputs, np.tile([0.01, 0.0], (10, 1)))
    np.testing.assert_allclose(plan.states[1:], moved, rtol=1e-12)
    assert plan.feasible and not plan.converged


class Broken:
    def __init__(self, when: str) -> None:
        self.when = when

    def __call__(self, *, x0: Array, **_: object) -> dict[str, Array]:
        if self.when == "call":
            raise RuntimeError(".../conic.cpp:123: Assertion failed:\nsingular")
        return {"x": x0}

    def stats(self) -> dict[str, object]:
        raise RuntimeError("No stats available")


@pytest.mark.parametrize(("when", "words"), [("call", "broke down: singular"), ("stats", "broke down: No stats")])
def test_a_solver_that_breaks_down_is_a_status(when: str, words: str) -> None:
    found = solve_programme(Broken(when), transcribe(REACTOR.update, reactor_problem()), [2.0, 390.0], None)
    assert words in found.status and not found.feasible and not found.converged


def refused(change: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        change()


def test_refusals() -> None:
    plant, weight, price = double_integrator()
    ocp = regulation(plant, weight, price, horizon=3)
    limited, walled = replace(ocp, u_rate=np.ones(1)), replace(ocp, margin=lambda x: x[0])
    refused(lambda: replace(ocp, u_rate=np.zeros(1)), "rate limits need")
    refused(lambda: NMPC(plant, limited, "fatrop"), "rows of one stage")
    refused(lambda: NMPC(plant, walled, "sqpmethod-daqp"), "through an obstacle")
    unweighted = replace(ocp, Q=np.diag([1.0, 0.0]))
    refused(lambda: NMPC(plant, unweighted, "sqpmethod-daqp"), "costs nothing")
    refused(lambda: LinearMPC(plant, unweighted), "costs nothing")
    refused(lambda: NMPC(REACTOR, reactor_problem(), "sqpmethod-hpipm", "collocation"), "not collocation")
    refused(lambda: LinearMPC(plant, limited, "hpipm"), "rate limits")
    refused(lambda: LinearMPC(plant, walled), "margin")
    refused(lambda: terminal_set(plant, limited), "rate limits")
    refused(lambda: terminal_set(plant, walled), "margin")
    refused(lambda: NMPC(plant, ocp, transcription="collocation"), "continuous time")
    refused(lambda: NMPC(plant, ocp, "ipopt", speed=Speed(real_time=True)), "real-time iteration")
    refused(lambda: NMPC(plant, ocp, speed=Speed(deadline=0.0)), "deadline")
    refused(lambda: NMPC(plant, ocp, "fatrop", speed=Speed(deadline=1.0)), "deadline")
    mpc = NMPC(plant, ocp)
    for given, words in (
        (Given(previous=np.ones(2)), "previous input"),
        (Given(disturbance=np.ones(3)), "disturbance"),
        (Given(x_ref=np.array([np.nan, 0.0])), "x_ref"),
        (Given(u_ref=np.ones((2, 1))), "u_ref"),
    ):
        refused(lambda given=given: mpc.solve([1.0, 0.0], given=given), words)  # type: ignore[misc]
    pushed = Given(disturbance=np.ones(3))
    refused(lambda: NMPC(plant, ocp, speed=Speed(real_time=True)).solve([1.0, 0.0], given=pushed), "disturbance")
    wild = np.full((4, 2), np.inf), np.zeros((3, 1))
    refused(lambda: mpc.solve([1.0, 0.0], wild), "a guess needs finite")


@pytest.mark.parametrize(("said", "words"), [("", "status -9"), ("one\nno such file\n", "no such file")])
def test_a_compiler_that_fails_is_a_sentence(said: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, weight, price = double_integrator()
    ocp = regulation(plant, weight, price, horizon=3)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -9, "", said))
    refused(lambda: NMPC(plant, ocp, speed=Speed(compiled=True)), words)


def test_collocation_of_a_given_polynomial_is_exact() -> None:
    """x' = w has the straight line as its solution: every residual vanishes."""
    ode = continuous(lambda x, u, w: w, 1, 1, 1)
    method = Collocation(ode, 0.5)
    nodes = [ca.MX(0.5 * 3.0 * share) for share in (0.0, *method.points)]
    residual = ca.evalf(method.residuals(nodes[0], nodes[1:-1], nodes[-1], ca.MX(0), ca.MX(3.0)))
    assert np.abs(np.array(residual)).max() < 1e-14
