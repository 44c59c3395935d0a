"""Robust Sarsa: sound bounds of the critic, honest transitions, the action value of a linear loop recovered."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from lipctrl.attacks import Attack, MaximalActionDeviation, NoAttack
from lipctrl.attacks.critic import ActionValue, CriticAttack
from lipctrl.attacks.linear import LinearLoop
from lipctrl.attacks.sarsa import SarsaSettings, collect, fit, value_bounds
from lipctrl.attacks.threat import Threat
from lipctrl.cli.oracle import DETUNED, RADIUS, STEPS, X0, A, B, K, P, Q, R, linear_policy
from lipctrl.evaluation.rollout import Loops
from lipctrl.files import UserError
from lipctrl.policy import FunctionPolicy

Make = Callable[..., gymnasium.Env[Any, Any]]


def layers(sizes: tuple[int, ...], seed: int) -> list[nn.Linear]:
    source = torch.Generator().manual_seed(seed)
    found = [nn.Linear(a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
    with torch.no_grad():
        for layer in found:
            layer.weight.normal_(0, 0.6, generator=source)
            layer.bias.normal_(0, 0.3, generator=source)
    return found


def value(net: list[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    for layer in net[:-1]:
        x = torch.relu(layer(x))
    return net[-1](x)[..., 0]


@pytest.mark.parametrize("mix", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_for_every_point_of_the_box(mix: float, seed: int) -> None:
    net, r = layers((5, 16, 16, 1), seed), np.random.default_rng(seed)
    x = torch.tensor(r.normal(size=(6, 5)), dtype=torch.float32)
    with torch.no_grad():
        lower, upper = value_bounds(net, x, 0.2, mix)
        points = x + 0.2 * torch.tensor(r.uniform(-1, 1, size=(4000, 6, 5)), dtype=torch.float32)
        corners = x + 0.2 * torch.tensor(r.choice([-1.0, 1.0], size=(4000, 6, 5)), dtype=torch.float32)
        seen = torch.cat([value(net, points), value(net, corners)])
        assert (lower <= seen.min(0).values + 1e-5).all() and (upper >= seen.max(0).values - 1e-5).all()
        tight = value_bounds(net, x, 0.0, mix)
        assert all(torch.allclose(end, value(net, x), atol=1e-5) for end in tight)


def test_bounds_of_an_affine_network_are_exact_and_relaxation_is_the_tighter() -> None:
    net, x = layers((5, 1), 0), torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mix in (0.0, 1.0):
            lower, upper = value_bounds(net, x, 0.2, mix)
            width = 0.2 * net[0].weight.abs().sum()
            assert torch.allclose(upper - value(net, x), width.expand(6), atol=1e-6)
            assert torch.allclose(value(net, x) - lower, width.expand(6), atol=1e-6)
        deep = layers((5, 32, 32, 1), 1)
        boxes = [value_bounds(deep, x, 0.1, mix) for mix in (0.0, 1.0)]
        interval, relaxed = ((upper - lower).mean() for lower, upper in boxes)
        assert relaxed < 0.8 * interval


@pytest.mark.parametrize(("centre", "least"), [(0.05, -0.15), (-0.05, 0.0), (0.5, 0.3), (-0.5, 0.0)])
def test_the_lines_of_one_neuron(centre: float, least: float) -> None:
    """relu(x) on [centre - 0.2, centre + 0.2]: the chord is exact above; below lies x or 0, whichever is nearer."""
    neuron, up, down = layers((1, 1), 0)[0], *layers((1, 1), 0), *layers((1, 1), 0)
    x, top = torch.tensor([[centre]]), max(0.0, centre + 0.2)
    with torch.no_grad():
        for layer, weight in ((neuron, 1.0), (up, 1.0), (down, -1.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(0.0)
        bounds = [float(end) for end in value_bounds([neuron, up], x, 0.2, 1.0)]
        mirrored = [float(end) for end in value_bounds([neuron, down], x, 0.2, 1.0)]
    assert bounds == pytest.approx([least, top], abs=1e-6) and mirrored == pytest.approx([-top, -least], abs=1e-6)


def test_transitions_are_steps_of_the_environment(linear_loop: Make) -> None:
    policy = linear_policy(K)
    data = collect(lambda: linear_loop(spread=0.3), policy, steps=500, exploration=0.5, discount=0.9, seed=0)
    x, u = data.observation, data.action
    assert len(x) == 500 and np.allclose(data.after, x @ A.T + u @ B.T) and (data.last == 0).all()
    assert np.allclose(data.answer, data.after @ -K.T)
    cost = (x @ Q * x).sum(1) + (u @ R * u).sum(1)
    late = np.abs(data.reward + cost) > 1e-9
    end = (data.after @ P * data.after).sum(1)
    assert 0.05 < late.mean() < 0.2 and np.allclose(data.reward + cost, np.where(late, -end, 0.0))
    noise = u - x @ -K.T
    quiet = collect(lambda: linear_loop(spread=0.3), policy, steps=500, exploration=0.0, discount=0.9, seed=0)
    assert np.allclose(quiet.action, quiet.observation @ -K.T)
    assert noise.std() == pytest.approx(0.5 * quiet.action.std(), rel=0.3)
    failing = collect(lambda: linear_loop(fails=True), policy, steps=256, exploration=0.0, discount=0.9, seed=0)
    assert failing.last.sum() == 256 / STEPS
    again = collect(lambda: linear_loop(spread=0.3), policy, steps=500, exploration=0.5, discount=0.9, seed=0)
    assert np.array_equal(again.action, u)


def test_the_spread_of_the_noise_is_the_policys_own_not_the_limits(linear_loop: Make) -> None:
    """The limits of the actions are 100, the policy uses a few: noise of the limits' size would leave the loop."""
    data = collect(linear_loop, FunctionPolicy(lambda x: x @ -K.T), steps=200, exploration=0.5, discount=0.9, seed=0)
    assert np.abs(data.action).max() < 10


def exact_q(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    y = x @ A.T + u @ B.T
    return np.asarray(-((x @ Q * x).sum(1) + (u @ R * u).sum(1) + (y @ P * y).sum(1)))


def test_the_value_of_one_step_episodes_that_fail_is_regression(linear_loop: Make) -> None:
    """Nothing follows a failure, so that Q is the reward, which is known in closed form."""
    make = lambda: linear_loop(fails=True, spread=0.3, steps=1)  # noqa: E731
    data = collect(make, linear_policy(K), steps=3000, exploration=1.0, discount=0.9, seed=0)
    found = fit(data, SarsaSettings(weight=0.0, updates=1500, hidden=(32, 32)), seed=0)
    inside = data.observation[:500], data.action[:500]
    exact, fitted = exact_q(*inside), found.net(np.hstack(inside))[:, 0]
    assert np.mean((fitted - exact) ** 2) < 0.02 * exact.var() and found.error < 0.02
    # with a time limit instead, something would follow, and the value would be another
    cut = collect(
        lambda: linear_loop(spread=0.3, steps=1), linear_policy(K), steps=3000, exploration=1.0, discount=0.9, seed=0
    )
    other = fit(cut, SarsaSettings(weight=0.0, updates=1500, hidden=(32, 32)), seed=0)
    assert np.mean(other.net(np.hstack(inside))) < 2 * np.mean(exact)


def test_the_regularisation_makes_the_critic_smoother_and_the_seed_decides(linear_loop: Make) -> None:
    data = collect(lambda: linear_loop(spread=0.3), linear_policy(K), steps=1000, exploration=0.5, discount=0.9, seed=0)
    rough, smooth, again = (
        fit(data, SarsaSettings(box=0.3, weight=w, updates=600, hidden=(32, 32)), seed=0) for w in (0.0, 10.0, 10.0)
    )
    pairs = np.hstack([data.observation, data.action])
    slopes = [np.linalg.norm(f.net.jacobian(pairs)[:, 0] * pairs.std(0), axis=1).mean() for f in (rough, smooth)]
    assert slopes[1] < 0.5 * slopes[0] and again.net.sha256() == smooth.net.sha256()


def test_settings_that_cannot_be() -> None:
    for settings in ({"box": -1.0}, {"weight": -1.0}, {"updates": 0}, {"discount": 1.0}):
        with pytest.raises(UserError, match="Robust Sarsa needs"):
            SarsaSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_on_the_detuned_loop_the_best_critic_reaches_the_exact_worst_case_and_none_exceeds_it(
    linear_loop: Make,
) -> None:
    """Greedy attacks find nothing there: which way the action moves decides."""
    policy, threat = linear_policy(DETUNED), Threat.parse("observation:linf:raw", np.ones(2), ("x [m]", "v [m/s]"))
    data = collect(lambda: linear_loop(spread=0.3), policy, steps=20_000, exploration=0.5, discount=0.99, seed=0)
    form, loops = LinearLoop(A, B, DETUNED, Q, R, P).stacked(X0, STEPS), Loops(linear_loop)
    nominal, exact = float(form(np.zeros(2 * STEPS))), form.largest_at_vertices(RADIUS)[0]

    def shares(attack: Attack) -> np.ndarray:
        found = -loops.run(policy, attack, threat, (RADIUS,), episodes=4, seed=0).returns[0]
        return np.asarray((found - nominal) / (exact - nominal))

    critics = [fit(data, SarsaSettings(box=box, weight=w), seed=0) for box, w in ((0.02, 0.1), (0.05, 0.3), (0.1, 1.0))]
    found = np.array([shares(CriticAttack(ActionValue((critic.net,)))) for critic in critics])
    assert found.max() <= 1 + 1e-9 and found.mean(1).max() > 0.95
    assert shares(NoAttack()) == pytest.approx(0, abs=1e-9) and shares(MaximalActionDeviation()).max() < 0.2
