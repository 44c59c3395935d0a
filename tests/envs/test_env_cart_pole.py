"""Cart-pole: the symbolic plant against MuJoCo, energy, momentum and the linearised eigenvalue."""

import gymnasium
import mujoco
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  registers
from lipctrl.envs import cart_pole
from lipctrl.envs.base import PlantEnv


def test_plant_and_mujoco_agree_over_a_second_of_forced_motion() -> None:
    plant, advance = cart_pole.cart_pole_plant(), cart_pole.mujoco_advance(cart_pole.mujoco_model())
    rng = np.random.default_rng(0)
    x = y = np.array([0.1, 0.3, 0.2, -0.5])
    for _ in range(50):
        u, w = rng.uniform(-10, 10, 1), rng.uniform(-0.5, 0.5, 1)
        x, y = plant.step(x, u, w), advance(y, u, w)
        np.testing.assert_allclose(x, y, atol=1e-11)
    assert np.max(np.abs(x - [0.1, 0.3, 0.2, -0.5])) > 0.1  # it did move


def test_both_environments_agree_over_a_second() -> None:
    symbolic, physical = (gymnasium.make(f"lipctrl/CartPole{kind}-v0") for kind in ("", "Mujoco"))
    symbolic.reset(seed=3), physical.reset(seed=3)
    rng = np.random.default_rng(1)
    for _ in range(50):
        u = rng.uniform(-3, 3, 1)
        a, b = symbolic.step(u), physical.step(u)
        np.testing.assert_allclose(a[0], b[0], atol=1e-11)
        assert a[1] == pytest.approx(b[1], abs=1e-10) and a[2:4] == b[2:4]


def test_energy_is_conserved_without_force() -> None:
    plant = cart_pole.cart_pole_plant()
    x = np.array([0.1, 0.3, 0.2, -0.5])
    start = cart_pole.energy(x)
    for _ in range(250):
        x = plant.step(x, [0.0])
        assert cart_pole.energy(x) == pytest.approx(start, abs=1e-7)


def test_energy_formula_equals_that_of_mujoco() -> None:
    """Independent of the equations of motion: MuJoCo sums body energies itself."""
    model = cart_pole.mujoco_model()
    model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    data = mujoco.MjData(model)
    for x in np.random.default_rng(2).normal(size=(5, 4)):
        data.qpos[:], data.qvel[:] = x[:2], x[2:]
        mujoco.mj_forward(model, data)
        assert cart_pole.energy(x) == pytest.approx(float(np.sum(data.energy)), abs=1e-12)


def test_a_force_changes_the_momentum_by_force_times_time() -> None:
    plant = cart_pole.cart_pole_plant()

    def momentum(x: np.ndarray) -> float:
        return float(1.1 * x[2] + 0.1 * 0.5 * np.cos(x[1]) * x[3])

    x = np.array([0.0, 0.2, 0.1, 0.5])
    for u, w in ((5.0, 0.0), (0.0, 0.4), (-3.0, 0.2)):
        y = plant.step(x, [u], [w])
        assert momentum(y) - momentum(x) == pytest.approx((u + w) * 0.02, abs=1e-9)


def test_upright_falls_at_the_linearised_rate() -> None:
    """Lambda^2 = (M + m) g / ((M + m)(4/3) l - m l), from the linearised equations by hand."""
    plant = cart_pole.cart_pole_plant()
    A = plant.linearise(np.zeros(4), np.zeros(1))[0]
    rate = np.sqrt(1.1 * 9.81 / (1.1 * 4 / 3 * 0.5 - 0.1 * 0.5))
    expected = [np.exp(-rate * 0.02), 1.0, 1.0, np.exp(rate * 0.02)]
    np.testing.assert_allclose(sorted(np.linalg.eigvals(A).real), expected, rtol=1e-6)


def test_falling_fails_and_wind_acts() -> None:
    for kind in ("", "Mujoco"):
        env = gymnasium.make(f"lipctrl/CartPole{kind}-v0").unwrapped
        assert isinstance(env, PlantEnv)
        env.reset(options={"state": [0.0, 0.79, 0.0, 2.0]})
        assert env.step([0.0])[2] is True
        env.reset(options={"state": np.zeros(4)})
        env.disturbance = np.array([0.5])
        assert env.step([0.0])[0][3] > 1e-3  # wind towards positive positions tips the pole that way
