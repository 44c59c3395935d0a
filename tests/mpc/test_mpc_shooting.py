"""The transcription: packing, the judge of returned points, and the order of rows and variables."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.envs.cstr import cstr_plant
from lipctrl.mpc.problem import Softness, regulation
from lipctrl.mpc.shooting import Programme, Trajectory, transcribe

PLANT = cstr_plant()
HORIZON = 4


def programme(soft: bool = False) -> Programme:
    price = Softness(np.array([50.0, 2.0]), np.array([5.0, 0.1])) if soft else None
    return transcribe(
        PLANT.update,
        regulation(PLANT, np.diag([10.0, 0.01]), np.diag([0.01, 3e-12]), horizon=HORIZON, soft=price),
    )


def motion(start: np.ndarray, seed: int = 0) -> Trajectory:
    """Random inputs and the states they lead to."""
    rng = np.random.default_rng(seed)
    inputs = np.array([4.0, 0.0]) + rng.uniform(-1, 1, size=(HORIZON, 2)) * [1.0, 1e5]
    states = [start]
    for u in inputs:
        states.append(PLANT.step(states[-1], u))
    return np.array(states), inputs


@pytest.mark.parametrize("soft", [False, True])
def test_packing_and_unpacking_are_inverse(soft: bool) -> None:
    states, inputs = motion(PLANT.equilibrium[0])
    found = programme(soft).unpack(programme(soft).pack((states, inputs)))
    np.testing.assert_allclose(found[0], states, rtol=1e-14)
    np.testing.assert_allclose(found[1], inputs, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("soft", [False, True])
def test_a_motion_of_the_plant_violates_nothing(soft: bool) -> None:
    made, (states, inputs) = programme(soft), motion(PLANT.equilibrium[0] + [0.1, -4.0])
    cost, violation = made.judge(made.pack((states, inputs)), made.parameter(states[0]))
    assert violation < 1e-12
    ocp = made.ocp
    dx, du = states - ocp.x_ref, inputs - ocp.u_ref
    expected = sum(x @ ocp.Q @ x + u @ ocp.R @ u for x, u in zip(dx[:-1], du, strict=True)) + dx[-1] @ ocp.P @ dx[-1]
    assert cost == pytest.approx(expected, rel=1e-10)


def test_every_kind_of_violation_is_measured_in_scales() -> None:
    made, (states, inputs) = programme(), motion(PLANT.equilibrium[0])
    start = made.parameter(states[0])
    gap = states.copy()
    gap[2, 1] += 0.3  # K, of a scale of 10
    assert made.judge(made.pack((gap, inputs)), start)[1] == pytest.approx(0.03, rel=0.5)
    assert made.judge(made.pack((states, inputs)), start + 0.2 * np.eye(1, len(start))[0])[1] == pytest.approx(0.2)
    tight = replace(made.ocp, u_high=np.array([inputs[:, 0].max() - 0.35, 5e5]), u_low=np.array([0.5, -5e5]))
    narrow = transcribe(PLANT.update, tight)
    judged = narrow.judge(narrow.pack((states, inputs)), narrow.parameter(states[0]))[1]
    assert judged == pytest.approx(0.35 / tight.u_scale[0])
    assert made.judge(np.full_like(made.lbx, np.nan), start) == (np.inf, np.inf)


def test_start_outside_the_limits_is_no_violation_but_later_states_are() -> None:
    """Limits: at least 300 K."""
    made = programme()
    for heat, broken in ((5e5, False), (-5e5, True)):
        inputs = np.tile([4.0, heat], (HORIZON, 1))
        states = [np.array([2.0, 299.0])]
        for u in inputs:
            states.append(PLANT.step(states[-1], u))
        deficit = 300.0 - np.array(states)[1:, 1].min()
        violation = made.judge(made.pack((np.array(states), inputs)), made.parameter(states[0]))[1]
        assert (deficit > 0) == broken
        assert violation == pytest.approx(max(deficit, 0.0) / made.ocp.x_scale[1], abs=1e-12)


def test_dynamics_come_first_in_each_stage() -> None:
    """The order that fatrop and hpipm recognise: x1 - f(x0, u0), then the rows of stage 0, and so on."""
    made = programme()
    assert made.equality == [True] * (2 * HORIZON + 2)
    states, inputs = motion(PLANT.equilibrium[0])
    moved = states.copy()
    moved[0, 0] += 1e-3
    rows = np.asarray(made.rows(made.pack((moved, inputs)), made.parameter(states[0]))[1]).ravel()
    assert (np.abs(rows[:4]) > 1e-9).sum() >= 2 and np.abs(rows[4:]).max() < 1e-9
    assert rows[2] == pytest.approx(1e-3 / made.ocp.x_scale[0], rel=1e-6)
