"""Lyapunov-based MPC of the reactor: V contracts as demanded, the level set holds where NMPC leaves it, refusals."""

from collections.abc import Callable

import casadi as ca
import numpy as np
import pytest

from lipctrl.envs.cstr import LEVEL, TERMINAL_LEVEL, P, cstr_plant, lyapunov
from lipctrl.files import UserError
from lipctrl.mpc.controller import GENERAL, NMPC
from lipctrl.mpc.lmpc import LMPC
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.problem import OCP, regulation
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import FunctionPolicy
from lipctrl.symbolic.network import to_casadi

PLANT = cstr_plant()
X_REF, U_REF = PLANT.equilibrium
Q, R = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])
# the initial states of the published study, as deviations
STARTS = X_REF + np.array([(1.5, -70.0), (-1.5, 70.0), (-1.25, 50.0), (1.25, -50.0)])
DECAY = 0.95


def problem(horizon: int = 6) -> OCP:
    return regulation(PLANT, Q, R, horizon=horizon)


def lmpc(model: ca.Function = PLANT.update, *, decay: float = DECAY, solver: str = GENERAL[0]) -> LMPC:
    return LMPC(model=model, ocp=problem(), lyapunov=P, level=LEVEL, small=TERMINAL_LEVEL, decay=decay, solver=solver)


def run(controller: LMPC | NMPC, x: np.ndarray, steps: int = 60) -> tuple[ClosedLoop, np.ndarray]:
    """The loop on the plant and V along it."""

    def stage_cost(state: np.ndarray, u: np.ndarray) -> float:
        return float((state - X_REF) @ Q @ (state - X_REF) + (u - U_REF) @ R @ (u - U_REF))

    loop = simulate(PLANT, MPCPolicy(controller), x, steps, stage_cost=stage_cost)
    assert loop.stopped is None
    return loop, lyapunov(loop.states, X_REF)


@pytest.mark.parametrize("solver", GENERAL)
@pytest.mark.parametrize("start", range(4))
def test_v_contracts_to_the_small_set_and_stays_there(start: int, solver: str) -> None:
    loop, V = run(lmpc(solver=solver), STARTS[start], steps=110)
    assert all(decision.solution.feasible for decision in loop.decisions)
    assert (V[1:] <= np.maximum(DECAY * V[:-1], TERMINAL_LEVEL) + 1e-6).all()
    # the bound on the steps to the small set that the rate gives
    needed = int(np.ceil(np.log(TERMINAL_LEVEL / V[0]) / np.log(DECAY)))
    assert needed < 105 and (V[needed:] <= TERMINAL_LEVEL + 1e-6).all()
    np.testing.assert_allclose(loop.states[-1], X_REF, atol=1e-3)
    assert loop.input_excess.max() < 1e-9


@pytest.mark.parametrize("start", range(4))
def test_contraction_costs_and_keeps_the_level_set(start: int) -> None:
    """NMPC with the same cost is cheaper and leaves the region; a faster rate cannot be cheaper in one problem."""
    contracting, V = run(lmpc(), STARTS[start])
    free, V_free = run(NMPC(PLANT, problem()), STARTS[start])
    assert V.max() <= V[0] + 1e-9 <= LEVEL < V_free.max()
    assert free.cost < contracting.cost < 1.4 * free.cost
    costs = [lmpc(decay=decay).solve(STARTS[start]).cost for decay in (1.0, 0.97, 0.94)]
    assert NMPC(PLANT, problem()).solve(STARTS[start]).cost < costs[0] < costs[1] < costs[2]


def test_the_whole_plan_contracts_outside_and_stays_inside_the_small_set() -> None:
    controller = lmpc()
    outside = controller.solve(STARTS[0])
    V = lyapunov(outside.states, X_REF)
    assert V[1:].max() == pytest.approx(DECAY * V[0], abs=1e-6)  # it acts
    to_region = np.linalg.inv(np.linalg.cholesky(P).T)
    for angle in np.linspace(0, 2 * np.pi, 7):
        x = X_REF + np.sqrt(0.99 * TERMINAL_LEVEL) * to_region @ [np.cos(angle), np.sin(angle)]
        inside = controller.solve(x)
        assert inside.feasible and (lyapunov(inside.states, X_REF) <= TERMINAL_LEVEL + 1e-6).all()


def test_inside_the_small_set_the_plan_is_that_of_nmpc() -> None:
    """V <= small does not act near the reference."""
    x = X_REF + [0.005, -0.1]
    np.testing.assert_allclose(
        lmpc().solve(x).inputs / [1, 1e5], NMPC(PLANT, problem()).solve(x).inputs / [1, 1e5], atol=1e-6
    )


def test_a_start_outside_the_level_set_is_never_feasible() -> None:
    controller, outside = lmpc(), X_REF + [1.75, -78.0]
    assert lyapunov(outside, X_REF) > LEVEL
    solution = controller.solve(outside)
    assert not solution.feasible and not solution.converged
    assert (
        solution.status == f"the start is outside the level set: V = {float(lyapunov(outside, X_REF)):.6g}, above 372"
    )
    with pytest.raises(UserError, match="outside the level set"):
        MPCPolicy(controller).predict(outside)
    rest = FunctionPolicy(lambda x: np.tile(U_REF, (len(x), 1)))
    action, (decision,) = MPCPolicy(controller, fallback=rest).predict(outside)
    np.testing.assert_array_equal(action, U_REF)
    assert decision.fallback == "infeasible"


def test_a_rate_that_no_input_reaches_is_infeasible() -> None:
    """Where the region is hardest to leave, the best of many inputs reaches a decay of 0.90 in one step."""
    angle = np.linspace(0, 2 * np.pi, 60)
    border = X_REF + (np.sqrt(LEVEL) * np.linalg.inv(np.linalg.cholesky(P).T) @ [np.cos(angle), np.sin(angle)]).T
    inputs = [(a, b) for a in np.linspace(0.5, 7.5, 8) for b in np.linspace(-5e5, 5e5, 21)]
    best = np.min([lyapunov(PLANT.step(border, np.tile(u, (60, 1))), X_REF) for u in inputs], axis=0) / LEVEL
    hardest = border[best.argmax()]
    assert 0.88 < best.max() < 0.91
    inner = X_REF + 0.999 * (hardest - X_REF)
    assert lmpc(decay=0.92).solve(inner).feasible
    assert not lmpc(decay=0.8).solve(inner).feasible


@pytest.fixture(scope="module")
def learned() -> ca.Function:
    """x + one period's motion, fitted by least squares: affine plus random tanh features of state and input."""
    rng = np.random.default_rng(0)
    low, high = X_REF - [1.8, 80.0], X_REF + [1.8, 80.0]
    x = rng.uniform(low, high, (12000, 2))
    x = x[lyapunov(x, X_REF) < 1.2 * LEVEL]
    u = rng.uniform(PLANT.input.low, PLANT.input.high, x.shape)
    middle = np.concatenate([X_REF, U_REF])
    scale = np.array([1.8, 80.0, 3.5, 5e5])
    hidden, bias = 0.7 * rng.normal(size=(60, 4)) / scale, rng.uniform(-1, 1, 60)
    features = np.tanh((np.hstack([x, u]) - middle) @ hidden.T + bias)
    columns = np.hstack([features, np.hstack([x, u]) - middle, np.ones((len(x), 1))])
    weights, *_ = np.linalg.lstsq(columns, PLANT.step(x, u) - x, rcond=None)
    top, skip, offset = weights.T[:, :60], weights.T[:, 60:64], weights[-1]
    blocks = ({0: hidden}, {0: skip, 1: top})
    net = PlainNet(blocks, (bias - hidden @ middle, offset - skip @ middle), (Activation("tanh"),))
    function, state, control, push = to_casadi(net), ca.MX.sym("x", 2), ca.MX.sym("u", 2), ca.MX.sym("w", 2)
    return ca.Function("learned", [state, control, push], [state + function(ca.vertcat(state, control))])


def test_learned_model_in_the_loop_contracts_on_the_plant(learned: ca.Function) -> None:
    controller = lmpc(learned)
    for x in STARTS:
        loop, V = run(controller, x)
        planned = np.array([float(controller.value(d.solution.states[1])) for d in loop.decisions])
        # the model meets the constraint exactly, the plant up to the model's error
        assert (planned <= np.maximum(DECAY * V[:-1], TERMINAL_LEVEL) + 1e-5).all()
        assert (V[1:] <= np.maximum(0.97 * V[:-1], 1.5 * TERMINAL_LEVEL)).all()
        assert V[-1] < TERMINAL_LEVEL


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lyapunov": np.eye(3)}, "positive definite of shape"),
        ({"lyapunov": np.diag([1.0, -1.0])}, "positive definite"),
        ({"small": 400.0}, "0 < small < level"),
        ({"decay": 1.2}, r"in \(0, 1\]"),
        ({"solver": "fatrop"}, "unknown solver"),
        ({"solver": "sqpmethod-qrqp"}, "is refused"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], match: str) -> None:
    settings = {"model": PLANT.update, "ocp": problem(), "lyapunov": P, "level": LEVEL, "small": 2.0, "decay": 0.95}
    build: Callable[..., LMPC] = LMPC
    with pytest.raises(UserError, match=match):
        build(**{**settings, **change})
