"""Planned attacks: the exact optimum of linear loops and never above it; gradients by differences; a real plant."""

import numpy as np
import pytest

from lipctrl.attacks.linear import LinearLoop
from lipctrl.attacks.planned import (
    Episode,
    PlannedCrossEntropy,
    PlannedGradient,
    Sequences,
    quadratic_costs,
)
from lipctrl.cli.oracle import DETUNED, X0, A, B, K, P, Q, R
from lipctrl.envs.linear import linear_plant
from lipctrl.envs.pendulum import pendulum_plant
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy

STEPS = 8


def linear(gain: np.ndarray) -> tuple[Episode, LinearLoop]:
    plant = linear_plant(A, B, state_limit=1e6, input_limit=1e6)
    policy = PlainPolicy(PlainNet(({0: -gain},), (np.zeros(1),), ()))
    return Episode(plant, policy, X0, *quadratic_costs(Q, R, P, [0, 0], [0])), LinearLoop(A, B, gain, Q, R, P)


def allowed(budget: str, norm: str, radius: float, scale: tuple[float, ...] = (1.0, 1.0)) -> Sequences:
    return Sequences(budget, norm, radius, np.array(scale), STEPS)  # type: ignore[arg-type]


@pytest.mark.parametrize("gain", [K, DETUNED])
def test_costs_and_gradients_are_those_of_the_loop(gain: np.ndarray) -> None:
    episode, loop = linear(gain)
    d = np.random.default_rng(0).normal(size=(3, STEPS, 2))
    cost, gradient = episode.gradient(d)
    form = loop.stacked(X0, STEPS)
    np.testing.assert_allclose(cost, form(d.reshape(3, -1)), rtol=1e-10)
    expected = 2 * (d.reshape(3, -1) @ form.M + form.b)
    np.testing.assert_allclose(gradient.reshape(3, -1), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("gain", [K, DETUNED])
@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0])
def test_the_planned_attack_is_the_exact_optimum_of_an_energy_budget(gain: np.ndarray, budget: float) -> None:
    episode, loop = linear(gain)
    exact = loop.stacked(X0, STEPS).largest_in_ball(budget)[0]
    found = PlannedGradient(iterations=2000).search(episode, allowed("episode", "l2", budget), seed=0)
    assert exact - 1e-6 <= found.cost <= exact + 1e-9
    assert np.linalg.norm(found.sequence) <= budget * (1 + 1e-9)


def test_the_planned_attack_is_the_best_vertex() -> None:
    episode, loop = linear(DETUNED)
    exact = loop.stacked(X0, STEPS).largest_at_vertices(0.1)[0]
    found = PlannedGradient().search(episode, allowed("step", "linf", 0.1), seed=0)
    assert exact - 1e-9 <= found.cost <= exact + 1e-9


def greedy(loop: LinearLoop, radius: float) -> float:
    """Each step moves the action as far as it can, to the side where the cost is larger; the better sign of all."""
    direction = loop.K[0] / np.linalg.norm(loop.K)
    return max(loop.cost(X0, sign * radius / np.sqrt(STEPS) * np.tile(direction, (STEPS, 1))) for sign in (1, -1))


def test_greedy_is_strictly_below_planned_on_a_detuned_gain() -> None:
    _, loop = linear(DETUNED)
    exact = loop.stacked(X0, STEPS).largest_in_ball(0.5)[0]
    assert greedy(loop, 0.5) < exact - 0.01


def test_cross_entropy_approaches_the_optimum_from_below() -> None:
    episode, loop = linear(DETUNED)
    exact = loop.stacked(X0, STEPS).largest_in_ball(0.5)[0]
    nominal = loop.cost(X0, np.zeros((STEPS, 2)))
    found = PlannedCrossEntropy().search(episode, allowed("episode", "l2", 0.5), seed=0)
    assert nominal + 0.97 * (exact - nominal) <= found.cost <= exact + 1e-9


@pytest.mark.parametrize("search", [PlannedGradient(iterations=30), PlannedCrossEntropy(generations=5)])
@pytest.mark.parametrize(("budget", "norm"), [("step", "l2"), ("step", "linf"), ("episode", "l2")])
def test_sequences_stay_in_their_set_and_seeds_repeat(
    search: PlannedGradient | PlannedCrossEntropy, budget: str, norm: str
) -> None:
    episode, _ = linear(DETUNED)
    here = allowed(budget, norm, 0.3, scale=(2.0, 0.5))
    found, again = (search.search(episode, here, seed=3) for _ in range(2))
    assert here.contains(found.sequence[None]) and found.sequence.tobytes() == again.sequence.tobytes()
    assert episode.spent.evaluations > 0
    nothing = search.search(episode, allowed(budget, norm, 0.0), seed=0)
    assert not nothing.sequence.any() and nothing.cost == episode.cost(np.zeros((1, STEPS, 2)))[0]


def test_a_network_on_a_pendulum_with_clipped_torque() -> None:
    """Gradients by central differences where nothing is clipped; the gradient search beats 2,000 random sequences."""
    plant, rng = pendulum_plant(), np.random.default_rng(0)
    net = PlainNet.mlp([rng.normal(size=(8, 2)), 0.7 * rng.normal(size=(1, 8))], [np.zeros(8), np.zeros(1)], "tanh")
    x_e, u_e = plant.equilibrium
    costs = quadratic_costs(np.eye(2), 0.01 * np.eye(1), np.eye(2), x_e, u_e)
    episode = Episode(plant, PlainPolicy(net), x_e + np.array([0.3, 0.0]), *costs)
    d = 0.05 * rng.normal(size=(1, STEPS, 2))
    _, gradient = episode.gradient(d)
    for t, i in ((0, 0), (3, 1), (STEPS - 1, 0)):
        step = np.zeros_like(d)
        step[0, t, i] = 1e-5
        difference = (episode.cost(d + step) - episode.cost(d - step))[0] / 2e-5
        assert gradient[0, t, i] == pytest.approx(difference, rel=1e-4, abs=1e-6)
    here = allowed("step", "l2", 0.1)
    found = PlannedGradient().search(episode, here, seed=0)
    random = episode.cost(here.linear_maximiser(rng.normal(size=(2000, STEPS, 2))))
    assert found.cost > random.max()


def test_an_episode_budget_is_an_energy() -> None:
    with pytest.raises(UserError, match="energy"):
        allowed("episode", "linf", 1.0)
