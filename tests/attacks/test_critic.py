"""Critic attacks with the exact action value of an LQR loop, whose exact worst case is known; traps; bad critics."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.attacks import Context, MaximalActionDeviation
from lipctrl.attacks.ascent import ProjectedAscent
from lipctrl.attacks.attack import Attack
from lipctrl.attacks.critic import ActionValue, CriticAttack, StateValue
from lipctrl.attacks.linear import LinearLoop
from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.cli.oracle import DETUNED, X0, A, B, ExactValue, K, P, Q, R, S, linear_policy
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm
from lipctrl.policy import PlainPolicy

Array = NDArray[np.float64]
RADIUS, STEPS = 0.1, 8


def episodes_cost(attack: Attack, gain: Array, norm: Norm, *, rows: int = 4, seed: int = 0) -> Array:
    """Costs (rows,) of the attacked linear loop with terminal cost P."""
    policy, rng = linear_policy(gain), np.random.default_rng(seed)
    ball = Ball(norm, np.full(rows, RADIUS), np.ones(2))
    x, total = np.tile(X0, (rows, 1)), np.zeros(rows)
    for _ in range(STEPS):
        d = attack.perturb(Context(x, policy, ball, rows, rng))
        assert ball.contains(d)
        u = policy.predict(x + d)[0]
        total += (x @ Q * x).sum(1) + (u @ R * u).sum(1)
        x = x @ A.T + u @ B.T
    return np.asarray(total + (x @ P * x).sum(1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_with_the_optimal_gain_every_row_reaches_the_exact_worst_case_and_none_exceeds_it(norm: Norm) -> None:
    exact = X0 @ P @ X0 + lqr_extra_cost(K, S, norm=norm, radius=RADIUS, scale=np.ones(2), steps=STEPS)
    found = episodes_cost(CriticAttack(ExactValue(K)), K, norm)
    assert np.all(found <= exact + 1e-9) and np.all(found >= exact - 1e-6)


def test_on_a_detuned_gain_it_beats_greedy_and_stays_below_the_optimum() -> None:
    """It knows which way hurts, where maximal action deviation moves either way; but it does not plan."""
    form = LinearLoop(A, B, DETUNED, Q, R, P).stacked(X0, STEPS)
    nominal, exact = float(form(np.zeros(2 * STEPS))), form.largest_at_vertices(RADIUS)[0]
    found = episodes_cost(CriticAttack(ExactValue(DETUNED)), DETUNED, "linf")
    greedy = episodes_cost(MaximalActionDeviation(), DETUNED, "linf", rows=16).max()
    assert np.all(found <= exact + 1e-9) and np.all(found - nominal > 3 * (greedy - nominal))
    assert (exact - nominal) * 0.9 < found.max() - nominal


def network(seed: int, sizes: tuple[int, ...]) -> PlainNet:
    r = np.random.default_rng(seed)
    pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
    return PlainNet.mlp([r.normal(size=(b, a)) for a, b in pairs], [r.normal(size=b) for _, b in pairs], "tanh")


def context(policy_seed: int = 1, norm: Norm = "l2", radius: float = 0.3, seed: int = 0) -> Context:
    r = np.random.default_rng(seed)
    ball = Ball(norm, np.repeat([0.0, radius / 2, radius], 6), r.uniform(0.5, 2, 3))
    policy = PlainPolicy(network(policy_seed, (3, 8, 2)))
    return Context(np.tile(r.normal(size=(6, 3)), (3, 1)), policy, ball, 6, np.random.default_rng(seed))


CRITICS = {
    "action value": ActionValue((network(5, (5, 8, 1)), network(6, (5, 8, 1)))),
    "state value": StateValue(network(7, (3, 8, 1))),
}


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_inside_the_ball_repeatable_and_never_better_for_the_policy(name: str, norm: Norm) -> None:
    attack = CriticAttack(CRITICS[name])
    c = context(norm=norm)
    d = attack.perturb(c)
    assert c.ball.contains(d) and (d[:6] == 0).all() and (d[6:] != 0).any(axis=1).all()
    assert np.array_equal(d, attack.perturb(context(norm=norm)))
    before, after = CRITICS[name](c, np.zeros_like(d))[0], CRITICS[name](c, d)[0]
    assert (after[6:] < before[6:]).all() and (after[12:] < after[6:12]).all()


@pytest.mark.parametrize("name", CRITICS)
def test_gradients_against_differences(name: str) -> None:
    c, critic, step = context(), CRITICS[name], 1e-6
    d = 0.1 * np.random.default_rng(3).normal(size=c.observation.shape)
    gradient = critic(c, d)[1]
    for j in range(3):
        e = step * np.eye(3)[j]
        numeric = (critic(c, d + e)[0] - critic(c, d - e)[0]) / (2 * step)
        assert np.allclose(gradient[:, j], numeric, atol=1e-6)


def test_the_action_value_is_taken_at_the_true_state_and_the_perturbed_action() -> None:
    c = context()
    d = 0.2 * np.ones_like(c.observation)
    value = CRITICS["action value"](c, d)[0]
    nets = CRITICS["action value"].nets  # type: ignore[attr-defined]
    pair = np.hstack([c.observation, c.policy.predict(c.observation + d)[0]])
    assert np.allclose(value, np.minimum(nets[0](pair)[:, 0], nets[1](pair)[:, 0]))


def test_it_finds_what_a_fine_grid_finds() -> None:
    """One observation, one action: the ball is an interval and can be searched through."""
    policy, critic = PlainPolicy(network(11, (1, 8, 1))), ActionValue((network(12, (2, 8, 1)),))
    x = np.linspace(-2, 2, 41)[:, None]
    c = Context(x, policy, Ball("l2", np.full(41, 0.3), np.ones(1)), 41, np.random.default_rng(0))
    grid = np.min([critic(c, np.full((41, 1), s))[0] for s in np.linspace(-0.3, 0.3, 601)], axis=0)
    attack = CriticAttack(critic, ProjectedAscent(steps=30, restarts=4))
    found = critic(c, attack.perturb(c))[0]
    assert np.all(found >= grid - 1e-4) and np.mean(found <= grid + 1e-3) > 0.9


def test_critics_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="at least one network"):
        ActionValue(())
    with pytest.raises(UserError, match="one output"):
        ActionValue((network(1, (5, 8, 2)),))
    with pytest.raises(UserError, match="takes 4 numbers"):
        CriticAttack(ActionValue((network(1, (4, 8, 1)),))).perturb(context())
