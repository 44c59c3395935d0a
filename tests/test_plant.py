"""Plant: steps, exact derivatives, integration order and refusals, on systems with closed-form solutions."""

import copy
import pickle
from dataclasses import replace

import casadi as ca
import numpy as np
import pytest
from scipy.linalg import expm

from lipctrl.files import UserError
from lipctrl.plant import Plant, Signal, continuous, discrete, rk4

A = np.array([[0.0, 1.0], [-2.0, -0.3]])


def oscillator(dt: float = 0.1, substeps: int = 4) -> Plant:
    """x' = A x + (0, u + w)."""
    ode = continuous(lambda x, u, w: ca.DM(A) @ x + ca.vertcat(0, u[0] + w[0]), n=2, m=1, d=1)
    return Plant(
        name="oscillator",
        state=Signal(("angle [rad]", "rate [rad/s]"), (-9.0, -9.0), (9.0, 9.0)),
        input=Signal(("torque [N m]",), (-1.0,), (1.0,)),
        disturbance=Signal(("push [N m]",), (-1.0,), (1.0,)),
        dt=dt,
        update=rk4(ode, dt, substeps),
        ode=ode,
        equilibrium=(np.zeros(2), np.zeros(1)),
    )


def exact(dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Sampled (A, B) from the exponential of the augmented matrix."""
    augmented = np.zeros((3, 3))
    augmented[:2, :2], augmented[1, 2] = A, 1.0
    result = expm(augmented * dt)
    return result[:2, :2], result[:2, 2:]


def test_a_sampled_linear_system_is_the_matrix_exponential() -> None:
    plant = oscillator()
    a, b = exact(0.1)
    np.testing.assert_allclose(plant.step([1.0, 2.0], [0.5], [0.25]), a @ [1.0, 2.0] + b[:, 0] * 0.75, rtol=1e-8)
    np.testing.assert_allclose(plant.step([1.0, 2.0], [0.5]), a @ [1.0, 2.0] + b[:, 0] * 0.5, rtol=1e-8)
    found = plant.linearise([3.0, -1.0], [0.2])
    for value, expected in zip(found, (a, b, b), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-7)


def test_runge_kutta_has_order_four() -> None:
    a, b = exact(0.8)
    reference = a @ [1.0, 2.0] + b[:, 0] * 0.5
    errors = [np.linalg.norm(oscillator(0.8, n).step([1.0, 2.0], [0.5]) - reference) for n in (2, 4, 8)]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 4.0, atol=0.2)


def test_derivatives_of_a_discrete_system_are_exact_and_at_the_given_point() -> None:
    plant = replace(
        oscillator(),
        update=discrete(lambda x, u, w: ca.vertcat(x[0] * x[1], ca.sin(x[1]) + u[0] ** 2 + 3 * w[0] * x[0]), 2, 1, 1),
        ode=None,
    )
    a, b, e = plant.linearise([2.0, 0.5], [3.0])
    np.testing.assert_allclose(a, [[0.5, 2.0], [0.0, np.cos(0.5)]], rtol=1e-15)
    np.testing.assert_allclose(b, [[0.0], [6.0]], rtol=1e-15)
    np.testing.assert_allclose(e, [[0.0], [6.0]], rtol=1e-15)
    a, _, _ = plant.linearise([1.0, 0.0], [3.0])  # a second call sees the new point
    np.testing.assert_allclose(a, [[0.0, 1.0], [0.0, 1.0]], rtol=1e-15)


def test_a_batch_steps_like_each_state_alone() -> None:
    plant, rng = oscillator(), np.random.default_rng(0)
    for size in (1, 2, 5):
        x, u, w = rng.normal(size=(size, 2)), rng.normal(size=(size, 1)), rng.normal(size=(size, 1))
        batch = plant.step(x, u, w)
        assert batch.shape == (size, 2) and batch.dtype == np.float64
        np.testing.assert_array_equal(batch, [plant.step(*p) for p in zip(x, u, w, strict=True)])


def test_a_constant_component_and_strided_arguments_are_stepped_right() -> None:
    plant = replace(oscillator(), update=discrete(lambda x, u, w: ca.vertcat(x[1], ca.SX(1, 1)), 2, 1, 1), ode=None)
    table = np.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(plant.step(table[:, 2], table[0, 3:]), [6.0, 0.0])
    single = plant.step(np.array([1, 2], dtype=np.int32), [0])
    np.testing.assert_array_equal(single, [2.0, 0.0])


def test_a_plant_can_be_copied_after_use() -> None:
    plant = oscillator()
    before = plant.step([1.0, 2.0], [0.5]), plant.linearise([1.0, 2.0], [0.5])[0]
    for copied in (copy.deepcopy(plant), pickle.loads(pickle.dumps(plant))):
        np.testing.assert_array_equal(copied.step([1.0, 2.0], [0.5]), before[0])
        np.testing.assert_array_equal(copied.linearise([1.0, 2.0], [0.5])[0], before[1])


@pytest.mark.parametrize(
    ("x", "u", "w", "message"),
    [
        (np.zeros(3), np.zeros(1), None, "x needs shape"),
        (np.zeros(2), np.zeros(2), None, "u needs shape"),
        (np.zeros(2), 0.0, None, "u needs shape"),
        (np.zeros((4, 2)), np.zeros((3, 1)), None, "u needs shape"),
        (np.zeros(2), np.zeros(1), np.zeros(2), "w needs shape"),
        (np.zeros((1, 1, 2)), np.zeros((1, 1, 1)), None, "x needs shape"),
    ],
)
def test_wrong_shapes_are_refused(x: np.ndarray, u: np.ndarray, w: np.ndarray | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        oscillator().step(x, u, w)


@pytest.mark.parametrize(("x", "u", "message"), [([0.0], [0.0], "x needs"), ([0.0, 0.0], 0.0, "u needs")])
def test_linearising_refuses_what_casadi_would_broadcast(x: object, u: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        oscillator().linearise(x, u)  # type: ignore[arg-type]


def test_inconsistent_plants_are_refused() -> None:
    plant = oscillator()
    with pytest.raises(UserError, match="update takes"):
        replace(plant, input=plant.state)
    x, u, w = (ca.SX.sym(name, size) for name, size in (("x", 2), ("u", 1), ("w", 1)))
    sparse = ca.vertcat(x[0], ca.SX(1, 1))
    for column in (sparse, ca.vertcat(x, u)):
        with pytest.raises(UserError, match="dense column of 2 numbers"):
            replace(plant, update=ca.Function("update", [x, u, w], [column], ["x", "u", "w"], ["x_next"]))
    with pytest.raises(UserError, match="sampling time"):
        replace(plant, dt=0.0)
    with pytest.raises(UserError, match="equilibrium state"):
        replace(plant, equilibrium=(np.zeros(3), np.zeros(1)))
    with pytest.raises(UserError, match="one lower and one upper limit"):
        Signal(("a [m]",), (0.0, 1.0), (1.0,))
