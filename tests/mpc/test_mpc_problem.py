"""The OCP record: defaults from the plant, scales, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.envs.cstr import cstr_plant
from lipctrl.envs.linear import double_integrator
from lipctrl.files import UserError
from lipctrl.mpc.invariant import box
from lipctrl.mpc.problem import OCP, Softness, regulation

PLANT, Q, R = double_integrator()


def problem() -> OCP:
    return regulation(PLANT, Q, R, horizon=5)


def test_limits_and_terminal_weight_come_from_the_plant() -> None:
    ocp = problem()
    np.testing.assert_allclose(ocp.P, [[2.66868908, 1.72660617], [1.72660617, 2.88116887]], atol=5e-9)
    assert ocp.x_low.tolist() == [-1e6, -1e6] and ocp.u_high.tolist() == [1e3]
    assert ocp.x_ref.tolist() == [0, 0] and ocp.u_ref.tolist() == [0]


def test_reference_moves_the_linearisation() -> None:
    plant = cstr_plant()
    weights = np.diag([10.0, 0.01]), np.diag([0.01, 3e-12])
    here = regulation(plant, *weights, horizon=5)
    there = regulation(plant, *weights, horizon=5, x_ref=here.x_ref + [0.2, 5.0], u_ref=here.u_ref + [0.1, 1e4])
    np.testing.assert_array_equal(there.x_ref, here.x_ref + [0.2, 5.0])
    assert np.abs(there.P / here.P - 1).max() > 0.01


def test_scales_are_by_cost_or_by_limits() -> None:
    ocp = replace(
        problem(),
        Q=np.diag([4.0, 0.0]),
        R=np.array([[0.25]]),
        x_low=np.array([-np.inf, -np.inf]),
        u_low=np.array([-1.0]),
        u_high=np.array([1.0]),
    )
    np.testing.assert_array_equal(ocp.x_scale, [0.5, 1.0])  # no cost and no limit: 1
    np.testing.assert_array_equal(ocp.u_scale, [1.0])  # the range is less than where it costs 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon"),
        ({"Q": np.eye(3)}, "weight Q"),
        ({"P": np.array([[1.0, 2.0], [0.0, 1.0]])}, "weight P must be symmetric"),
        ({"Q": np.diag([1.0, -1.0])}, "weight Q must be symmetric and positive"),
        ({"R": np.array([[0.0]])}, "positive definite"),
        ({"x_low": np.full(2, 2e6)}, "x_low"),
        ({"u_high": np.ones(2)}, "u_low and u_high"),
        ({"soft": Softness(np.ones(2), np.zeros(2))}, "prices"),
        ({"soft": Softness(np.ones(1), np.ones(1))}, "prices"),
        ({"terminal_set": box([-1.0], [1.0])}, "terminal set"),
    ],
)
def test_bad_problems_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(problem(), **change)
