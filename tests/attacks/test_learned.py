"""What outputs of adversaries do: perturbations by definition, directions against closed forms of linear policies."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.attacks import Context
from lipctrl.attacks.learned import LearnedAttack, along_direction, scaled_perturbation, towards
from lipctrl.disturb.sets import Ball
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm
from lipctrl.policy import FunctionPolicy, PlainPolicy, Policy

Array = NDArray[np.float64]
SCALE = np.array([1.0, 2.0, 0.5])


def network(seed: int, n: int, m: int) -> PlainNet:
    r = np.random.default_rng(seed)
    net = PlainNet.mlp([r.normal(size=(8, n)), r.normal(size=(m, 8))], [r.normal(size=8), r.normal(size=m)], "tanh")
    return PlainNet(net.blocks, net.biases, net.activations, low=-np.ones(m), high=np.ones(m))


def context(policy: Policy, norm: Norm, radius: float = 0.3) -> Context:
    r = np.random.default_rng(0)
    ball = Ball(norm, np.repeat([0.0, radius / 2, radius], 6), SCALE)
    return Context(np.tile(r.normal(size=(6, 3)), (3, 1)), policy, ball, 6, np.random.default_rng(1))


STEERS = {"sa-rl": (scaled_perturbation, 3), "pa-ad": (along_direction, 2)}


@pytest.mark.parametrize("kind", STEERS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_inside_the_ball_repeatable_nothing_at_radius_zero(kind: str, norm: Norm) -> None:
    steer, outputs = STEERS[kind]
    attack, policy = LearnedAttack(network(1, 3, outputs), steer), PlainPolicy(network(2, 3, 2).without_limits())
    c = context(policy, norm)
    d = attack.perturb(c)
    assert c.ball.contains(d) and (d[:6] == 0).all() and (d[6:] != 0).any(axis=1).all()
    assert np.array_equal(d, attack.perturb(context(policy, norm)))


def test_perturbations_are_the_output_in_units_of_radius_and_scale() -> None:
    net = network(1, 3, 3)
    c = context(PlainPolicy(network(2, 3, 2)), "linf")
    d = LearnedAttack(net, scaled_perturbation).perturb(c)
    assert np.allclose(d, c.ball.radius[:, None] * SCALE * net(c.observation), rtol=1e-12)
    c = context(PlainPolicy(network(2, 3, 2)), "l2")
    d = scaled_perturbation(c, np.ones((18, 3)))  # longer than the radius
    assert np.allclose(c.ball.size(d), c.ball.radius) and np.allclose(d[12] / SCALE, 0.3 / np.sqrt(3))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_action_goes_as_far_as_it_can_in_the_direction_that_is_asked_for(norm: Norm, sign: float) -> None:
    """The closed form of a linear policy; the wrong sign of the published code would go the other way."""
    gain = np.array([[2.0, -0.5, 1.0]])
    policy = FunctionPolicy(lambda x: x @ gain.T)
    c = context(policy, norm)
    d = along_direction(c, np.full((18, 1), 0.01 * sign))
    exact = c.ball.radius * np.linalg.norm(gain[0] * SCALE, ord=2 if norm == "l2" else 1)
    assert np.allclose(d @ gain[0], sign * exact, rtol=1e-6)


def test_two_actions_maximise_cosine_plus_size_over_the_vertices() -> None:
    """A linear policy with equal gains: among the vertices of the box the best is found by enumeration."""
    gain = np.array([[1.0, 0.0, 0.3], [0.0, 1.0, -0.2]])
    c = context(FunctionPolicy(lambda x: x @ gain.T), "linf", radius=0.5)
    r = np.random.default_rng(5)
    wanted = r.normal(size=(18, 2))
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)

    def value(d: Array) -> Array:
        change = d @ gain.T
        size = np.linalg.norm(change, axis=1)
        return np.asarray((change * unit).sum(1) / np.maximum(size, 1e-12) + size)

    limit = c.ball.radius[:, None] * SCALE
    best = np.max([value(limit * np.array(s)) for s in itertools.product((-1.0, 1.0), repeat=3)], axis=0)
    found = value(along_direction(c, wanted))
    assert np.all(found[6:] >= 0.9 * best[6:]) and np.mean(found[6:]) > 0.97 * np.mean(best[6:])


def test_the_objective_of_the_actor_and_its_gradient() -> None:
    c = context(PlainPolicy(network(2, 3, 2).without_limits()), "l2")
    r = np.random.default_rng(5)
    wanted, d, step = r.normal(size=(18, 2)), 0.3 * r.normal(size=(18, 3)), 1e-6
    gain = towards(c, wanted)
    change = c.act(c.observation + d) - c.act(c.observation)
    size = np.linalg.norm(change, axis=1)
    value, gradient = gain(d)
    assert np.allclose(value, (change * wanted).sum(1) / size / np.linalg.norm(wanted, axis=1) + size)
    for j in range(3):
        e = step * np.eye(3)[j]
        assert np.allclose(gradient[:, j], (gain(d + e)[0] - gain(d - e)[0]) / (2 * step), rtol=1e-4, atol=1e-5)
