"""The channel of the set point: by hand, through the wrapper, and through the loop that is evaluated."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import Attack, NoAttack, RandomVertex
from lipctrl.attacks.threat import Threat
from lipctrl.disturb.plants import PlantReference
from lipctrl.disturb.wrapper import DisturbanceWrapper
from lipctrl.envs.base import PlantEnv
from lipctrl.evaluation.rollout import Loops, surrounded
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy


def test_a_moved_set_point_is_charged_at_once_and_seen_one_step_later() -> None:
    """By hand: the cost is of x - d from the step at which d comes, the observation x - d after it."""
    env = gymnasium.make("lipctrl/DoubleIntegrator-v0")
    wrapped, task = DisturbanceWrapper(env, [PlantReference(entry="position")]), env.unwrapped
    assert isinstance(task, PlantEnv) and task.Q is not None and task.R is not None
    A, B, _ = task.plant.linearise(*task.plant.equilibrium)
    gain, d, x = np.array([[0.4, 1.1]]), np.array([0.5, 0.0]), np.array([1.0, -0.25])
    seen, _ = wrapped.reset(options={"state": x})
    for k in range(6):
        u = -gain @ seen
        moved = d if k >= 2 else np.zeros(2)
        wrapped.apply("reference", moved[:1])
        cost = (x - moved) @ task.Q @ (x - moved) + u @ task.R @ u
        x = A @ x + B @ u
        seen, reward, _, _, info = wrapped.step(u)
        assert np.allclose(seen, x - moved, atol=1e-13) and reward == pytest.approx(-cost, abs=1e-12)
        assert np.allclose(info["state"], x, atol=1e-13)
    # the plant can rest at d, so from here on the loop is one that started at x - d with nothing moved
    other = gymnasium.make("lipctrl/DoubleIntegrator-v0")
    alike, _ = other.reset(options={"state": seen})
    for _ in range(4):
        wrapped.apply("reference", d[:1])
        seen, reward, *_ = wrapped.step(-gain @ seen)
        alike, same, *_ = other.step(-gain @ alike)
        assert np.allclose(seen, alike, atol=1e-12) and reward == pytest.approx(float(same), abs=1e-12)


def test_without_displacement_a_set_point_of_the_tasks_own_stays() -> None:
    wrapped = DisturbanceWrapper(gymnasium.make("lipctrl/DoubleIntegrator-v0"), [PlantReference()])
    plain = gymnasium.make("lipctrl/DoubleIntegrator-v0")
    found = []
    for env in (wrapped, plain):
        env.reset(options={"state": np.array([1.0, 0.0])})
        env.unwrapped.reference = np.array([0.5, 0.0])  # type: ignore[attr-defined]  # a PlantEnv
        found.append([env.step(np.array([0.1]))[:2] for _ in range(3)])
    for (seen, reward), (same, equal) in zip(*found, strict=True):
        assert np.array_equal(seen, same) and reward == equal
    wrapped.apply("reference", [0.1, 0.2])
    wrapped.step(np.zeros(1))
    assert np.array_equal(wrapped.unwrapped.reference, [0.5, 0.0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["CartPole", "Cstr", "Robot"])
def test_a_threat_on_the_set_point_through_the_evaluated_loop(name: str) -> None:
    """Radius zero changes no bit, equal seeds give equal returns, and a moved set point other ones."""
    env_id = f"lipctrl/{name}-v0"
    task: Any = gymnasium.make(env_id)
    size, low = task.observation_space.shape[0], task.action_space.low
    entry = task.unwrapped.plant.state.names[0].split(" [")[0]
    threat = Threat.parse(f"reference@{entry}:linf:raw", np.ones(size), ("",) * size, task)
    policy = PlainPolicy(PlainNet(({0: np.zeros((len(low), size))},), (task.unwrapped.plant.equilibrium[1],), ()))

    def returns(attack: Attack, radii: tuple[float, ...]) -> Any:
        made = Loops(lambda: surrounded(gymnasium.make(env_id), threat))
        return made.run(policy, attack, threat, radii, episodes=2, seed=0).returns

    found = returns(RandomVertex(), (0.0, 1.0))
    assert np.array_equal(found, returns(RandomVertex(), (0.0, 1.0)))
    assert np.array_equal(found[0], returns(NoAttack(), (0.0,))[0])
    assert (found[1] != found[0]).all()
