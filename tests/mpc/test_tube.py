"""The tube: sums against brute force, the closed loop under every attack and under the worst adversary, its limits."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from lipctrl.attacks import ATTACKS, Context
from lipctrl.certify.bracket import certify
from lipctrl.certify.certificate import Box, Certificate
from lipctrl.disturb.sets import Ball
from lipctrl.envs.cstr import cstr_plant
from lipctrl.envs.linear import linear_plant
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.problem import OCP, Softness, regulation
from lipctrl.mpc.tube import TubePolicy, TubeStep, mismatch_error, mismatch_network, reach
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair
from lipctrl.policy import PlainPolicy

Array = np.ndarray
Adversary = Callable[[int, Array], Array]  # (step, true state) -> perturbation
MASS = linear_plant([[1.0, 0.1], [0.0, 1.0]], [0.005, 0.1], dt=0.1, state_limit=10.0, input_limit=2.0)
A, B, _ = MASS.linearise(*MASS.equilibrium)
Q, R, RADIUS = np.eye(2), np.array([[0.1]]), 0.05
K = lqr(A, B, Q, R).K
LQR_NET = PlainNet(({0: -K},), (np.zeros(1),), ())
START, STEPS = np.array([-2.0, 0.4]), 80


def problem(speed: float = 1.0) -> OCP:
    limits = regulation(MASS, Q, R, horizon=40)
    return replace(limits, x_low=np.array([-5.0, -speed]), x_high=np.array([5.0, speed]))


@cache
def learned_net() -> PlainNet:
    """A linear skip and tanh features, fitted by ridge regression to values and slopes of the LQR law: close to it."""
    rng, skip = np.random.default_rng(0), 0.85 * K
    x, W, b = rng.uniform([-5.2, -1.7], [5.2, 1.7], (2000, 2)), rng.normal(size=(16, 2)), rng.uniform(-0.3, 0.3, 16)
    W = W * [0.04, 0.15]
    values = np.tanh(x @ W.T + b)
    slopes = np.vstack([(1 - values**2) * W[:, j] for j in range(2)])
    rest = skip - K
    targets = np.concatenate([(x @ rest.T).ravel(), *(np.full(2000, rest[0, j]) for j in range(2))])
    rows = np.vstack([np.hstack([values, np.ones((2000, 1))]), np.hstack([slopes, np.zeros((4000, 1))])])
    weights = np.linalg.solve(rows.T @ rows + 0.6 * np.eye(17), rows.T @ targets)
    plain = PlainNet.mlp([W, weights[None, :-1]], [b, weights[-1:]], "tanh")
    return replace(plain, blocks=(plain.blocks[0], {**plain.blocks[1], 0: -skip}))


@cache
def certificates(kind: str, norm: NormPair) -> tuple[PlainNet, Certificate, Certificate]:
    net = LQR_NET if kind == "lqr" else learned_net()
    region = None if kind == "lqr" else Box((-5.2, -1.7), (5.2, 1.7))
    mismatch = certify(mismatch_network(net, K), norm, region=region).upper
    return net, certify(net, norm).upper, mismatch


def tube(kind: str = "lqr", radius: float = RADIUS, norm: NormPair | None = None, ocp: OCP | None = None) -> TubePolicy:
    net, certificate, mismatch = certificates(kind, norm or NormPair("linf", "linf"))
    return TubePolicy(
        plant=MASS, ocp=ocp or problem(), net=net, certificate=certificate, mismatch=mismatch, radius=radius
    )


def run(
    policy: TubePolicy, adversary: Adversary, x: Array = START, steps: int = STEPS
) -> tuple[Array, Array, list[TubeStep]]:
    """States, inputs (as asked) and records of the loop under a measurement adversary."""
    states, inputs, records, hidden = [x], [], [], None
    for k in range(steps):
        u, hidden = policy.predict(states[-1] + adversary(k, states[-1]), hidden)
        inputs.append(u)
        records.append(hidden[0])
        states.append(MASS.step(states[-1], u))
    return np.array(states), np.array(inputs), records


def attack(name: str, policy: TubePolicy, radius: float) -> Adversary:
    rng, searcher = np.random.default_rng(7), ATTACKS[name][0]()
    ball = Ball(policy.certificate.norm.input, np.array([radius]), np.ones(2))

    def perturb(step: int, x: Array) -> Array:
        context = Context(x[None], PlainPolicy(policy.net), ball, 1, rng)
        return np.asarray(searcher.perturb(context)[0])

    return perturb


def worst_vertex(direction: Array, target: int, radius: float) -> Adversary:
    """The exact worst linf adversary of the LQR loop for direction'e at step `target`."""

    def perturb(step: int, x: Array) -> Array:
        ahead = target - 1 - step
        if ahead < 0:
            return np.zeros(2)
        gradient = -(direction @ np.linalg.matrix_power(A - B @ K, ahead) @ B) @ K
        if step == 0:
            gradient = gradient - direction @ np.linalg.matrix_power(A - B @ K, target)
        return radius * np.where(gradient < 0, -1.0, 1.0)

    return perturb


def greedy(policy: TubePolicy, direction: Array, radius: float) -> Adversary:
    """The vertex whose action moves the next state furthest along a direction."""
    vertices = radius * np.array([[i, j] for i in (-1.0, 1.0) for j in (-1.0, 1.0)])

    def perturb(step: int, x: Array) -> Array:
        return vertices[np.argmax(policy.net(x + vertices) @ B.T @ direction)]

    return perturb


def adversaries(policy: TubePolicy, radius: float) -> dict[str, Adversary]:
    found = {name: attack(name, policy, radius) for name in ATTACKS}
    if policy.certificate.norm.input == "linf":
        for sign in (1.0, -1.0):
            found[f"greedy speed {sign:+.0f}"] = greedy(policy, np.array([0.0, sign]), radius)
            found[f"greedy position {sign:+.0f}"] = greedy(policy, np.array([sign, 0.0]), radius)
            for target in (8, 20, 30):
                found[f"worst at {target} {sign:+.0f}"] = worst_vertex(np.array([0.0, sign]), target, radius)
    return found


def excess(states: Array, inputs: Array, ocp: OCP) -> float:
    return float(max((np.abs(states) - ocp.x_high).max(), (np.abs(inputs) - ocp.u_high).max()))


@pytest.mark.parametrize("kind", ["lqr", "learned"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_limit_is_violated_under_any_attack_of_the_library(kind: str, norm: str) -> None:
    policy = tube(kind, norm=NormPair(norm, norm))
    for name, adversary in adversaries(policy, RADIUS).items():
        states, inputs, records = run(policy, adversary)
        assert excess(states, inputs, policy.ocp) <= 0, name
        error = np.abs(states[:-1] - np.array([record.nominal for record in records]))
        assert (error <= policy.tightening.states).all() and all(record.inside for record in records), name
        assert np.abs(states[-1]).max() < 0.3


@pytest.mark.parametrize("kind", ["lqr", "learned"])
def test_without_tightening_the_same_adversaries_violate_the_limits(kind: str) -> None:
    bare = tube(kind, radius=0.0)
    worst = {name: excess(*run(bare, adversary)[:2], bare.ocp) for name, adversary in adversaries(bare, RADIUS).items()}
    assert worst["none"] <= 1e-9 and worst["greedy speed +1"] > 0.02 and worst["mad"] > 0


def test_a_larger_radius_than_declared_violates_the_limits() -> None:
    policy = tube(radius=RADIUS / 5)
    assert excess(*run(policy, greedy(policy, np.array([0.0, 1.0]), RADIUS))[:2], policy.ocp) > 0


def test_the_bound_is_nearly_attained_by_the_worst_adversary() -> None:
    policy = tube()
    for direction, i in ((np.array([1.0, 0.0]), 0), (np.array([0.0, 1.0]), 1)):
        states, _, records = run(policy, worst_vertex(direction, 60, RADIUS), np.array([-1.0, 0.0]), 62)
        reached = states[60, i] - records[60].nominal[i]
        # what the tube does not know: that d at the start and later ones are bounded one by one, and their signs
        assert 0.5 * policy.tightening.states[i] < reached <= policy.tightening.states[i]


@pytest.mark.parametrize("seed", range(4))
def test_sums_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = 3, 2
    a = rng.normal(size=(n, n))
    a *= 0.9 / np.abs(np.linalg.eigvals(a)).max()
    b, rows = rng.normal(size=(n, m)), rng.normal(size=(4, n))
    s_in, s_out = rng.uniform(0.5, 2, n), rng.uniform(0.5, 2, m)
    for norm, order in (("l2", 2), ("linf", 1)):
        pair = NormPair(norm, norm, tuple(s_in), tuple(s_out))
        p, q = reach(a, b, rows, pair)
        powers = [np.linalg.matrix_power(a, i) for i in range(1500)]
        expected_p = np.max([np.linalg.norm(rows @ power * s_in, ord=order, axis=1) for power in powers], axis=0)
        expected_q = sum(np.abs(rows @ power @ b) @ s_out for power in powers)
        assert (p >= expected_p).all() and (q >= expected_q).all()
        np.testing.assert_allclose(p, expected_p, rtol=1e-6)
        np.testing.assert_allclose(q, expected_q, rtol=1e-6)


def test_eta_of_the_exact_gain_is_its_constant_times_the_radius() -> None:
    policy = tube()
    assert policy.tightening.eta == pytest.approx(np.abs(K).sum() * RADIUS, rel=1e-6)
    assert tube("learned").tightening.eta > policy.tightening.eta * 0.99


@pytest.mark.parametrize("error", [0.0, 0.02])
def test_tightening_against_its_formula(error: float) -> None:
    _, certificate, _ = certificates("lqr", NormPair("linf", "linf"))
    policy = TubePolicy(plant=MASS, ocp=problem(), net=LQR_NET, certificate=certificate, mismatch=error, radius=RADIUS)
    powers = [np.linalg.matrix_power(A - B @ K, i) for i in range(400)]
    eta, found = np.abs(K).sum() * RADIUS + 2 * error, policy.tightening
    for row, own, total in (
        (np.eye(2)[0], 0, found.states[0]),
        (np.eye(2)[1], 0, found.states[1]),
        (K[0], eta, found.inputs[0]),
    ):
        start = RADIUS * max(np.abs(row @ power).sum() for power in powers)
        later = eta * sum(np.abs(row @ power @ B).sum() for power in powers)
        assert total == pytest.approx(start + later + own, rel=1e-4) and total >= (start + later + own) * (1 - 1e-12)


def test_the_nominal_start_must_be_one_that_can_be_held() -> None:
    policy = tube()
    for start in ([0.0, 0.9], [4.6, 0.7]):  # faster than the tightened limit; too late to stop before it
        with pytest.raises(UserError, match="outside what the limits"):
            policy.predict(np.array(start))
    short = tube(ocp=replace(problem(), horizon=2))
    with pytest.raises(UserError, match="outside what the limits"):  # two steps see no limit coming, the set does
        short.predict(np.array([4.55, 0.7]))


def test_the_error_bound_of_the_mismatch_is_above_every_sample_and_tight() -> None:
    net, _, mismatch = certificates("learned", NormPair("linf", "linf"))
    low, high = np.array([-5.0, -1.0]), np.array([5.0, 1.0])
    x = np.random.default_rng(5).uniform(low, high, (200_000, 2))
    middle = net(np.zeros((1, 2)))
    found = float(np.abs(net(x) + x @ K.T - middle).max())
    bounds = [mismatch_error(net, K, low, high, mismatch, cells=cells) for cells in (100, 10_000, 400_000)]
    assert bounds[0] > bounds[1] > bounds[2] >= found and bounds[2] < 1.05 * found
    with pytest.raises(UserError, match="finite state limits"):
        mismatch_error(net, K, low, np.array([np.inf, 1.0]), mismatch)
    with pytest.raises(UserError, match="smaller region"):
        mismatch_error(net, K, 2 * low, 2 * high, mismatch)
    with pytest.raises(UserError, match="does not verify"):
        mismatch_error(LQR_NET, K, low, high, mismatch)


def test_an_error_bound_stands_in_for_a_mismatch_certificate() -> None:
    net, certificate, _ = certificates("learned", NormPair("linf", "linf"))
    grid = np.stack(np.meshgrid(np.linspace(-5, 5, 201), np.linspace(-1, 1, 201)), -1).reshape(-1, 2)
    error = float(np.abs(net(grid) + grid @ K.T).max()) * 1.2
    policy = TubePolicy(plant=MASS, ocp=problem(), net=net, certificate=certificate, mismatch=error, radius=RADIUS)
    assert policy.tightening.eta == pytest.approx(certificate.bound * RADIUS + 2 * error)
    for adversary in adversaries(policy, RADIUS).values():
        assert excess(*run(policy, adversary)[:2], policy.ocp) <= 0


def test_too_large_a_radius_is_refused_with_the_largest_that_is_tolerated() -> None:
    largest = tube().tightening.largest_radius
    with pytest.raises(UserError, match=f"at most {largest:.6g}"):
        tube(radius=largest * 1.0001)
    assert tube(radius=largest * 0.999).tightening.states[1] < 1.0


def test_a_failed_solve_continues_the_last_plan() -> None:
    policy = tube()
    u, hidden = policy.predict(START)
    failing = replace(hidden[0], solution=replace(hidden[0].solution, feasible=False))

    class Failing:
        ocp = policy.nominal.ocp

        def solve(self, x: Array, guess: object = None) -> object:
            return failing.solution

    object.__setattr__(policy, "nominal", Failing())
    z = hidden[0].after
    _, (step,) = policy.predict(z, hidden)
    np.testing.assert_array_equal(step.plan[:-1], hidden[0].plan[1:])
    np.testing.assert_allclose(step.plan[-1], -K @ hidden[0].solution.states[-1], atol=1e-6)
    with pytest.raises(UserError, match="outside what the limits"):
        policy.predict(z, hidden, episode_start=[True])


def test_a_plant_that_is_not_as_assumed_is_noticed() -> None:
    policy = tube()
    _, hidden = policy.predict(START)
    assert not policy.predict(hidden[0].after + [0.0, 1.0], hidden)[1][0].inside


def test_refusals() -> None:
    net, certificate, mismatch = certificates("lqr", NormPair("linf", "linf"))
    good = {
        "plant": MASS,
        "ocp": problem(),
        "net": net,
        "certificate": certificate,
        "mismatch": mismatch,
        "radius": 0.01,
    }
    learned, learned_certificate, learned_mismatch = certificates("learned", NormPair("linf", "linf"))
    reactor = cstr_plant()
    l2 = certificates("lqr", NormPair())[2]
    steep = PlainNet(({0: -3 * K},), (np.zeros(1),), ())
    linf = NormPair("linf", "linf")
    for changes, words in (
        ({"radius": -1.0}, "radius must be finite"),
        ({"net": replace(net, low=np.array([-1.0]))}, "without_limits"),
        ({"net": learned}, "certificate of the policy does not verify"),
        ({"net": learned, "certificate": learned_certificate}, "certificate of the mismatch does not verify"),
        ({"mismatch": l2}, "same norms"),
        ({"mismatch": -1.0}, "bound of the mismatch"),
        (
            {"plant": reactor, "ocp": regulation(reactor, np.diag([10.0, 0.01]), np.diag([0.01, 3e-12]), horizon=3)},
            "linear plant",
        ),
        ({"ocp": replace(problem(), x_ref=np.array([0.0, 0.5]))}, "plant rests"),
        ({"ocp": replace(problem(), soft=Softness(np.ones(2), np.ones(2)))}, "hard state limits"),
        (
            {
                "net": steep,
                "certificate": certify(steep, linf).upper,
                "mismatch": certify(mismatch_network(steep, K), linf).upper,
            },
            "too far from the LQR gain",
        ),
        (
            {
                "net": learned,
                "certificate": learned_certificate,
                "mismatch": learned_mismatch,
                "ocp": problem(speed=1.695),
            },
            "smaller region",
        ),
    ):
        with pytest.raises(UserError, match=words):
            TubePolicy(**{**good, **changes})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="outside what the limits"):
        tube().predict(np.array([-5.0, 0.0]))
    with pytest.raises(UserError, match="stable closed loop"):
        reach(np.eye(2), B, np.eye(2), NormPair())
