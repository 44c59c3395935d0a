"""A battery over every registered attack, and exact answers for linear and constant policies."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.attacks import ATTACKS, Context, MaximalActionDeviation
from lipctrl.attacks.threat import Threat
from lipctrl.certify.bracket import certify
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair
from lipctrl.policy import FunctionPolicy, PlainPolicy, Policy, linear_policy

INF = np.array([np.inf])


def network(seed: int, m: int = 2) -> PlainPolicy:
    r = np.random.default_rng(seed)
    weights = [r.normal(size=(8, 3)), r.normal(size=(m, 8))]
    return PlainPolicy(PlainNet.mlp(weights, [r.normal(size=8), r.normal(size=m)], "tanh"))


def context(policy: Policy, norm: str, radius: float, *, n: int = 3, episodes: int = 6, seed: int = 0) -> Context:
    r = np.random.default_rng(seed)
    b = Ball(norm, np.repeat([0.0, radius / 2, radius], episodes), r.uniform(0.5, 2, n))  # type: ignore[arg-type]
    return Context(r.normal(size=(3 * episodes, n)), policy, b, episodes, np.random.default_rng(seed))


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_attack_stays_in_its_set_and_does_nothing_at_radius_zero(name: str, norm: str) -> None:
    c = context(network(1), norm, 0.3)
    for _ in range(20):
        d = ATTACKS[name][0]().perturb(c)
        assert d.shape == c.observation.shape and c.ball.contains(d)
        assert (d[:6] == 0).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_equal_seeds_give_equal_bytes(name: str) -> None:
    first, second = (ATTACKS[name][0]().perturb(context(network(1), "l2", 0.3, seed=5)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_constant_policy_cannot_be_moved(name: str) -> None:
    policy = PlainPolicy(PlainNet.mlp([np.zeros((4, 3)), np.ones((1, 4))], [np.ones(4), np.ones(1)], "tanh"))
    c = context(policy, "l2", 1.0)
    d = ATTACKS[name][0]().perturb(c)
    assert np.array_equal(policy.predict(c.observation + d)[0], policy.predict(c.observation)[0])


def deviation(c: Context, d: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(c.act(c.observation + d) - c.act(c.observation), axis=1))


def test_mad_is_exact_for_linear_policies_l2() -> None:
    gain = np.random.default_rng(3).normal(size=(2, 3))
    c = context(linear_policy(gain, np.repeat(-INF, 2), np.repeat(INF, 2)), "l2", 0.4)
    found = deviation(c, MaximalActionDeviation(restarts=3, jumps=60).perturb(c))
    exact = c.ball.radius * np.linalg.svd(gain * c.ball.scale)[1][0]
    assert np.all(found <= exact * (1 + 1e-12) + 1e-12) and np.allclose(found, exact, rtol=1e-6)


def test_mad_is_exact_for_one_output_in_both_norms() -> None:
    gain = np.array([[2.5857, -3.4434, 0.0]])
    for norm, order in (("l2", 2), ("linf", 1)):
        c = context(linear_policy(gain, -INF, INF), norm, 0.1)
        found = deviation(c, MaximalActionDeviation().perturb(c))
        assert np.allclose(found, c.ball.radius * np.linalg.norm(gain * c.ball.scale, ord=order, axis=1)[0], rtol=1e-9)


def test_mad_published_values_for_the_lqr_gain() -> None:
    policy = linear_policy(np.array([[2.5857, 3.4434]]), -INF, INF)
    for norm, value in (("linf", 0.602914), ("l2", 0.430617)):
        b = Ball(norm, np.full(2, 0.1), np.ones(2))  # type: ignore[arg-type]
        c = Context(np.zeros((2, 2)), policy, b, 2, np.random.default_rng(0))
        assert deviation(c, MaximalActionDeviation().perturb(c)) == pytest.approx(value, abs=1e-5)


def test_mad_finds_the_best_vertex_of_a_network_and_beats_random_vertices() -> None:
    policy = network(4, m=1)
    c = context(policy, "linf", 0.2)
    found = deviation(c, MaximalActionDeviation(restarts=4).perturb(c))
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    vertices = np.array([deviation(c, c.ball.radius[:, None] * c.ball.scale * s) for s in signs]).max(0)
    assert (found >= 0.98 * vertices).all()
    random = deviation(c, ATTACKS["vertex"][0]().perturb(c))
    assert found[6:].mean() > random[6:].mean()


def test_a_relu_network_of_two_inputs_is_between_grid_and_certificate() -> None:
    """One hidden layer, exact by a grid: attack <= exact <= certificate, and the attack comes close."""
    r = np.random.default_rng(7)
    net = PlainNet.mlp([r.normal(size=(6, 2)), r.normal(size=(1, 6))], [r.normal(size=6), np.zeros(1)], "relu")
    b = Ball("linf", np.full(4, 0.5), np.ones(2))
    c = Context(r.normal(size=(4, 2)), PlainPolicy(net), b, 4, r)
    found = deviation(c, MaximalActionDeviation(restarts=8).perturb(c))
    axis = np.linspace(-0.5, 0.5, 201)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)  # with all corners
    proved = certify(net, NormPair("linf", "l2")).upper.bound
    for x, one in zip(c.observation, found, strict=True):
        exact = float(np.abs(net(x + grid) - net(x)).max())
        step = proved * (axis[1] - axis[0])
        assert 0.95 * exact <= one <= exact + step and exact <= 0.5 * proved


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_more_restarts_never_move_the_action_less(norm: str) -> None:
    """Restarts draw one after the other from the same generator, so that fewer are the first of more."""
    found = []
    for restarts in (1, 2, 4, 8):
        c = context(network(8), norm, 0.4)
        found.append(deviation(c, MaximalActionDeviation(restarts=restarts).perturb(c)))
    assert (np.diff(found, axis=0) >= 0).all() and (found[-1] > found[0]).any()


def test_units_rescaled_with_the_radius_change_nothing() -> None:
    """Observation i in units that are c_i times smaller, network and set adapted: the same deviations."""
    units, policy = np.array([1.0, 100.0, 1e-3]), network(9)
    c = context(policy, "linf", 0.3)
    first = {0: policy.net.blocks[0][0] / units}
    scaled = PlainPolicy(replace(policy.net, blocks=(first, *policy.net.blocks[1:])))
    b = Ball("linf", c.ball.radius, c.ball.scale * units)
    other = Context(c.observation * units, scaled, b, 6, np.random.default_rng(0))
    d, e = (MaximalActionDeviation().perturb(one) for one in (c, other))
    assert np.allclose(e / units, d, atol=1e-9) and np.allclose(deviation(c, d), deviation(other, e), atol=1e-9)


def test_saturated_policies_can_still_be_attacked() -> None:
    net = PlainNet(({0: np.array([[1.0, 0.0, 0.0]])},), (np.zeros(1),), (), low=-np.ones(1), high=np.ones(1))
    b = Ball("l2", np.full(1, 2.0), np.ones(3))
    c = Context(np.array([[2.5, 0.0, 0.0]]), PlainPolicy(net), b, 1, np.random.default_rng(0))
    assert deviation(c, MaximalActionDeviation().perturb(c))[0] == pytest.approx(0.5, rel=1e-6)


def test_policies_without_a_jacobian_are_attacked_by_differences() -> None:
    net = network(6)
    c1, c2 = context(net, "l2", 0.3), context(FunctionPolicy(net.net), "l2", 0.3)
    d1, d2 = (MaximalActionDeviation().perturb(c) for c in (c1, c2))
    assert np.allclose(deviation(c1, d1), deviation(c2, d2), rtol=1e-4)
    assert c1.cost.jacobians > 0 and c2.cost.jacobians == 0 and c2.cost.evaluations > c1.cost.evaluations


def test_random_draws_are_common_to_all_radii() -> None:
    c = context(network(1), "linf", 0.2)
    d = ATTACKS["vertex"][0]().perturb(c)
    assert np.allclose(d[6:12] * 2, d[12:])


def test_threat_lines() -> None:
    names, std = ("a [m]", "b [rad]"), np.array([2.0, 0.5])
    threat = Threat.parse("observation:linf:normalised", std, names)
    assert np.allclose(threat.ball(np.array([0.1])).scale, std) and "standard deviations" in threat.sentence()
    assert threat.table(0.1)[0]["raw"] == pytest.approx(0.2) and threat.table(0.1)[0]["normalised"] == pytest.approx(
        0.1
    )
    assert Threat.parse("observation:l2:raw", std, names).table(0.1)[1]["normalised"] == pytest.approx(0.2)
    for line, word in (
        ("observation:l2", "CHANNEL"),
        ("observaton:l2:raw", "observation"),
        ("observation:l3:raw", "l2"),
    ):
        with pytest.raises(UserError, match=word):
            Threat.parse(line, std, names)
