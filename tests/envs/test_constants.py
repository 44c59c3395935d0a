"""Constants of plants: what a change of one means is known from symmetries of the equations, or from MuJoCo."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import RandomVertex
from lipctrl.attacks.threat import Threat
from lipctrl.cli.mpc_modes import mpc_with_backup
from lipctrl.disturb.channel import Mass, disturbed_model
from lipctrl.disturb.plants import PlantConstants
from lipctrl.disturb.wrapper import DisturbanceWrapper
from lipctrl.envs import ENVIRONMENTS
from lipctrl.envs.base import PlantEnv
from lipctrl.envs.cart_pole import cart_pole_plant, mujoco_advance, mujoco_model
from lipctrl.evaluation.rollout import Loops, surrounded
from lipctrl.files import UserError
from lipctrl.plant import Plant

Array = NDArray[np.float64]
Point = tuple[Array, Array, Array]
FACTOR = 1.3
OWN = tuple(name for name in ENVIRONMENTS if "Mujoco" not in name)


def make(name: str) -> PlantEnv:
    env = gymnasium.make(f"lipctrl/{name}-v0").unwrapped
    assert isinstance(env, PlantEnv)
    return env


def pushed(index: int, nominal: float) -> Callable[[Point], Point]:
    return lambda p: (p[0], p[1], p[2] + np.eye(len(p[2]))[index] * (FACTOR - 1) * nominal)


def scaled(*rows: int, by: float = FACTOR) -> Callable[[Point], Point]:
    def change(p: Point) -> Point:
        u = p[1].copy()
        u[list(rows)] *= by
        return p[0], u, p[2]

    return change


def steered(p: Point) -> Point:
    return p[0], np.array([np.arctan(np.tan(p[1][0]) / FACTOR), p[1][1]]), p[2]


# name of the environment, constants times FACTOR -> the point at which the nominal plant does the same
EQUAL: dict[tuple[str, tuple[str, ...]], Callable[[Point], Point]] = {
    ("Cstr", ("flow",)): pushed(1, 5.0),
    ("Cstr", ("feed temperature",)): pushed(0, 300.0),
    ("Cstr", ("heat of reaction", "density")): scaled(1, by=1 / FACTOR),
    ("Cstr", ("heat of reaction", "heat capacity")): scaled(1, by=1 / FACTOR),
    ("QuadTank", ("pump constant 1",)): scaled(0),
    ("Robot", ("wheel radius",)): scaled(0, 1),
    ("Vehicle", ("wheelbase",)): steered,
    ("Pendulum", ("gravity",)): lambda p: (p[0], p[1] + (FACTOR - 1) * 9.81 * np.sin(p[0][:1]), p[2]),
    ("PendulumSwingUp", ("mass",)): lambda p: (p[0], p[1] / FACTOR, p[2] / FACTOR),
    ("CartPole", ("cart mass", "pole mass")): lambda p: (p[0], p[1] / FACTOR, p[2] / FACTOR),
}


def factors(plant: Plant, names: tuple[str, ...]) -> Array:
    known = [name.split(" [")[0] for name in plant.constants]
    assert set(names) <= set(known)
    return np.where([name in names for name in known], FACTOR, 1.0)


def points(env: PlantEnv, count: int) -> list[Point]:
    rng, plant, found = np.random.default_rng(0), env.plant, []
    for seed in range(count):
        x = env.reset(seed=seed)[1]["state"]
        u, w = (rng.uniform(signal.low, signal.high) for signal in (plant.input, plant.disturbance))
        found.append((x, 0.3 * u, w))
    return found


@pytest.mark.parametrize(("name", "names"), EQUAL, ids=str)
def test_a_changed_constant_is_what_the_equations_say(name: str, names: tuple[str, ...]) -> None:
    env = make(name)
    changed = env.plant.varied(factors(env.plant, names))
    for point in points(env, 5):
        other = EQUAL[name, names](point)
        np.testing.assert_allclose(changed.step(*point), env.plant.step(*other), rtol=1e-10, atol=1e-10)
        assert np.abs(changed.step(*point) - env.plant.step(*point)).max() > 1e-9


def test_a_cart_pole_with_other_masses_and_gravity_is_the_one_of_mujoco() -> None:
    model = disturbed_model(mujoco_model(), [(Mass(body="pole"), np.array([FACTOR]))])
    model.opt.gravity[:] *= 0.8
    plant = cart_pole_plant()
    changed, advance = plant.varied([1.0, FACTOR, 1.0, 0.8]), mujoco_advance(model)
    for x, u, w in points(make("CartPole"), 10):
        np.testing.assert_allclose(changed.step(x, u, w), advance(x, u, w), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OWN)
def test_neutral_factors_change_no_bit_and_others_do_not_compound(name: str) -> None:
    env = make(name.split("/")[1].removesuffix("-v0"))
    x, u, w = points(env, 1)[0]
    nominal, before = env.plant.step(x, u, w), env.plant
    changed = before.varied(np.full(len(env.constants), 1.1)).step(x, u, w)
    for value, wanted in ((1.0, nominal), (1.1, changed), (1.1, changed), (1.0, nominal)):
        env.vary(np.full(len(env.constants), value))
        env.reset(options={"state": x})
        env.disturbance = w
        assert np.array_equal(env.step(u)[4]["state"], wanted) and env.plant is before


def test_in_the_loop_the_plant_changes_and_the_controllers_model_does_not() -> None:
    """Every episode meets one vertex of the box; numpy runs the changed matrices under the same gain."""

    def env() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("lipctrl/DoubleIntegrator-v0", max_episode_steps=15)

    threat = Threat.parse("parameters", np.ones(2), ("a", "b"), env())
    assert threat.names == (
        "factor of A[1,1] [-]",
        "factor of A[1,2] [-]",
        "factor of A[2,2] [-]",
        "factor of B[2,1] [-]",
    )
    loops, policy = Loops(lambda: surrounded(env(), threat)), mpc_with_backup(env(), 5)
    found = loops.run(policy, RandomVertex(), threat, (0.0, 0.1), episodes=3, seed=1)
    for trace in (found.traces[1], found.worst[1]):
        (d,), x = trace.disturbances, trace.observations[0]
        assert np.abs(d) == pytest.approx(0.1)
        A, B = np.array([[1 + d[0], 1 + d[1]], [0, 1 + d[2]]]), np.array([[0.0], [1 + d[3]]])
        total = 0.0
        for u in trace.actions:  # without active limits MPC with the LQR's terminal cost is the nominal LQR
            assert u == pytest.approx(-np.array([[0.57917087, 1.54562698]]) @ x, abs=1e-6)
            total -= x @ x + 0.1 * u @ u
            x = A @ x + B @ u
        assert total == pytest.approx(found.returns[1, trace.episode], rel=1e-9)


def test_one_constant_by_name_and_what_is_refused() -> None:
    cart = gymnasium.make("lipctrl/CartPole-v0")
    threat = Threat.parse("parameters@pole mass", np.ones(4), ("a",) * 4, cart)
    assert threat.names == ("factor of pole mass [-]",) and "of pole mass by at most the radius" in threat.sentence()
    wrapped = DisturbanceWrapper(cart, [PlantConstants(constant="pole mass")])
    wrapped.apply("parameters", [2.0])
    wrapped.reset(seed=0)
    x, u = wrapped.unwrapped.state, np.array([3.0])  # type: ignore[attr-defined]
    expected = cart_pole_plant().varied([1, 2, 1, 1]).step(x, u)
    assert np.array_equal(wrapped.step(u)[4]["state"], expected)
    wrapped.reset(seed=0)
    assert np.array_equal(wrapped.step(u)[4]["state"], cart_pole_plant().step(x, u))
    for line, env, word in (
        ("parameters@pole", "lipctrl/CartPole-v0", "pole mass"),
        ("parameters", "lipctrl/CartPoleMujoco-v0", "by its equations, found CartPoleMujocoEnv"),
        ("parameters", "Pendulum-v1", "by its equations"),
        ("parameters@pole", "InvertedPendulum-v5", "take no place"),
    ):
        with pytest.raises(UserError, match=word):
            Threat.parse(line, np.ones(4), ("a",) * 4, gymnasium.make(env))
    simulated = make("CartPoleMujoco")
    start, after = points(simulated, 1)[0], []
    for value in (2.0, 1.0):
        with pytest.raises(UserError, match="CartPoleMujocoEnv steps no plant by its equations"):
            simulated.vary(np.full(4, value))
        simulated.reset(options={"state": start[0]})
        after.append(simulated.step(start[1])[4]["state"])
    expected = mujoco_advance(mujoco_model())(start[0], start[1], np.zeros(1))
    assert all(np.array_equal(x, expected) for x in after)
    with pytest.raises(UserError, match="4 constants"):
        cart_pole_plant().varied([1.0])
    with pytest.raises(UserError, match="positive"):
        cart_pole_plant().varied([1.0, 1.0, -1.0, 1.0])
