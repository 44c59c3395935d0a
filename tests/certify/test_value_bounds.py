"""Slopes of values against closed forms: scalar and random linear systems, tanh systems, the pendulum."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lipctrl.certify.guarantees import Guarantee
from lipctrl.certify.value_bounds import (
    Contraction,
    closed_loop_bounds,
    compare_critic,
    contraction,
    horizon_bound,
    infinite_bound,
    linear_loop_bounds,
    one_step_lip,
    preconditioned_lip,
    published_expression_not_a_bound,
    state_value_bound,
    stochastic_bound,
    stochastic_state_bound,
)
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr

Array = np.ndarray
GAMMA = 0.99


def pendulum_jacobian(angle: float) -> Array:
    """d(angle, rate) / d(angle, rate, torque) of gymnasium's Pendulum-v1: g 10, dt 0.05, unit mass and length."""
    c = math.cos(angle)
    return np.array([[1 + 0.0375 * c, 0.05, 0.0075], [0.75 * c, 1.0, 0.15]])


UPRIGHT = pendulum_jacobian(0.0)
FROBENIUS, SPECTRAL = float(np.linalg.norm(UPRIGHT)), float(np.linalg.norm(UPRIGHT, 2))
REGULATOR = lqr(UPRIGHT[:, :2], UPRIGHT[:, 2:], np.diag([1.0, 0.1]), [[0.001]])
GAIN = float(np.linalg.norm(REGULATOR.K, 2))


def number(guarantee: Guarantee) -> float:
    assert guarantee.value is not None
    return guarantee.value


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 0.99])
def test_scalar_system_is_exact(alpha: float, gamma: float) -> None:
    """s' = alpha s, a = 0, r = 2 s: Q = 2 s / (1 - gamma alpha)."""
    step = one_step_lip(alpha, 0.0)
    assert number(infinite_bound(2.0, step, gamma)) == pytest.approx(2 / (1 - gamma * alpha), rel=1e-12)
    for n in (1, 2, 7, 300):
        truth = 2 * sum((gamma * alpha) ** k for k in range(n))
        assert number(horizon_bound(2.0, step, gamma, n)) == pytest.approx(truth, rel=1e-12)
    loop = closed_loop_bounds(2.0, alpha, 0.0, gamma, Contraction(alpha))
    for found in (loop.state, loop.action):
        assert number(found) == pytest.approx(2 / (1 - gamma * alpha), rel=1e-12)


def test_the_published_expression_fails_on_every_scalar_system() -> None:
    for alpha in np.linspace(0.01, 1.0, 40):
        for gamma in np.linspace(0.01, 0.99, 40):
            truth = 1 / (1 - gamma * alpha)
            published = number(published_expression_not_a_bound(1.0, float(alpha), 0.0, float(gamma)))
            assert published < truth
            assert truth / published == pytest.approx(math.sqrt((1 + gamma * alpha) / (1 - gamma * alpha)))
    assert number(published_expression_not_a_bound(1.0, 0.9, 0.0, 0.99)) == pytest.approx(2.20, abs=0.01)
    assert number(infinite_bound(1.0, 0.9, 0.99)) == pytest.approx(9.17, abs=0.01)
    assert "not a bound" in str(published_expression_not_a_bound(1.0, 0.9, 0.0, 0.99))


def linear_mdps(rng: np.random.Generator, n: int, m: int, count: int) -> tuple[Array, Array, Array, Array]:
    """Dynamics (count, n, n+m), gains (count, m, n), unit reward gradients, discounts, over all scales."""
    f = rng.normal(size=(count, n, n + m)) * rng.uniform(0.05, 1.0, (count, 1, 1))
    gain = rng.normal(size=(count, m, n)) * 10 ** rng.uniform(-2, 0.5, (count, 1, 1))
    w = rng.normal(size=(count, n + m))
    return f, gain, w / np.linalg.norm(w, axis=1, keepdims=True), rng.uniform(0.3, 0.99, count)


def test_ten_thousand_random_linear_mdps() -> None:
    """Q_n = w' sum_k (gamma F)^k (s, a) with F = [1; K] [A B]: no violation of the sound form, many of the other."""
    rng = np.random.default_rng(0)
    sound, broken, worst, held = 0, 0, 0.0, 0
    for n, m in [(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)]:
        f, gain, w, gammas = linear_mdps(rng, n, m, 2000)
        pair = np.concatenate([np.broadcast_to(np.eye(n), (2000, n, n)), gain], axis=1)
        step = pair @ f
        a, b = np.linalg.norm(f, 2, (1, 2)), np.linalg.norm(gain, 2, (1, 2))
        stable = gammas * np.abs(np.linalg.eigvals(step)).max(1) < 1
        shape = np.eye(n + m) - gammas[:, None, None] * step
        slope_q = np.linalg.solve(np.swapaxes(shape, 1, 2), w[..., None])[..., 0]
        slope_v = np.linalg.norm(np.einsum("bij,bi->bj", pair, slope_q), axis=1)
        total, power = w.copy(), w.copy()
        for _ in range(4):
            power = gammas[:, None] * np.einsum("bij,bi->bj", step, power)
            total += power
        for i in range(2000):
            lip = one_step_lip(a[i], b[i])
            assert np.linalg.norm(total[i]) <= number(horizon_bound(1.0, lip, gammas[i], 5)) * (1 + 1e-9)
            if not stable[i]:
                assert infinite_bound(1.0, lip, gammas[i]).vacuous
                continue
            truth, bound = float(np.linalg.norm(slope_q[i])), infinite_bound(1.0, lip, gammas[i])
            if bound.value is not None:
                sound += 1
                worst = max(worst, truth / bound.value)
                assert slope_v[i] <= number(state_value_bound(bound, b[i])) * (1 + 1e-9)
            published = published_expression_not_a_bound(1.0, a[i], b[i], gammas[i])
            if published.value is not None:
                held += 1
                broken += truth > published.value * (1 + 1e-9)
    assert sound > 2000 and 0.9 < worst <= 1 + 1e-9
    assert broken > 0.15 * held > 300


def test_linear_loop_bounds_on_random_loops() -> None:
    """Below the bound of a metric, above the truth for the worst linear reward, equal to it for scalar loops."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        n, m = int(rng.integers(1, 5)), int(rng.integers(1, 3))
        a, b, k = rng.normal(size=(n, n)), rng.normal(size=(n, m)), rng.normal(size=(m, n))
        closed = a - b @ k
        closed *= rng.uniform(0.2, 0.97) / np.abs(np.linalg.eigvals(closed)).max()
        a, gamma = closed + b @ k, float(rng.uniform(0.5, 0.99))
        pair = np.vstack([np.eye(n), -k])
        value = np.linalg.norm(pair @ np.linalg.inv(np.eye(n) - gamma * closed), 2)
        step = pair @ np.hstack([a, b])
        action = np.linalg.norm(np.linalg.inv(np.eye(n + m) - gamma * step), 2)
        found = linear_loop_bounds(1.0, a, b, k, gamma)
        assert value <= number(found.state) * (1 + 1e-9) and action <= number(found.action) * (1 + 1e-9)
        if n == 1 and closed[0, 0] > 0:
            assert number(found.state) == pytest.approx(value, rel=1e-8)
        metric = closed_loop_bounds(
            1.0, float(np.linalg.norm(np.hstack([a, b]), 2)), float(np.linalg.norm(k, 2)), gamma, contraction(closed)
        )
        assert number(found.state) <= number(metric.state) * (1 + 1e-9)
        assert number(found.action) <= number(metric.action) * (1 + 1e-9)


class Tanh:
    """s' = W2 tanh(W1 (s, a)), a = K tanh(s), r = w' tanh((s, a)): constants known, gradients by the chain rule."""

    def __init__(self, rng: np.random.Generator, n: int, m: int, dynamics: float, policy: float) -> None:
        self.n, self.gain = n, policy
        self.w1, self.w2 = (self._of_norm(rng, shape, dynamics**0.5) for shape in ((6, n + m), (n, 6)))
        self.k = self._of_norm(rng, (m, n), policy)
        self.w = rng.normal(size=n + m)
        self.w /= np.abs(self.w).max()  # |grad r| <= |w| <= sqrt(n + m)
        self.reward = float(np.linalg.norm(self.w))

    @staticmethod
    def _of_norm(rng: np.random.Generator, shape: tuple[int, int], norm: float) -> Array:
        matrix = rng.normal(size=shape)
        return np.asarray(norm * matrix / np.linalg.norm(matrix, 2))

    def slope(self, x: Array, gamma: float, steps: int) -> Array:
        """Gradient of the discounted return of x = (s, a)."""
        jacobian, total, weight = np.eye(len(x)), np.zeros(len(x)), 1.0
        for _ in range(steps):
            total = total + weight * (self.w / np.cosh(x) ** 2) @ jacobian
            z = self.w1 @ x
            f = self.w2 / np.cosh(z) ** 2 @ self.w1
            s = self.w2 @ np.tanh(z)
            mu = self.k / np.cosh(s) ** 2
            jacobian, x = np.vstack([f, mu @ f]) @ jacobian, np.concatenate([s, self.k @ np.tanh(s)])
            weight *= gamma
        return total


def test_tanh_systems_never_exceed_the_bounds() -> None:
    rng = np.random.default_rng(2)
    closest = 0.0
    for _ in range(300):
        n, m, gamma = int(rng.integers(1, 4)), int(rng.integers(1, 3)), float(rng.uniform(0.5, 0.99))
        system = Tanh(rng, n, m, float(rng.uniform(0.3, 1.5)), float(rng.uniform(0, 2)))
        dynamics = float(np.linalg.norm(system.w1, 2) * np.linalg.norm(system.w2, 2))
        step = one_step_lip(dynamics, system.gain)
        x = rng.normal(size=n + m) * 10 ** rng.uniform(-3, 0.5)
        for steps in (1, 5, 80):
            found = float(np.linalg.norm(system.slope(x, gamma, steps)))
            bound = horizon_bound(system.reward, step, gamma, steps)
            assert bound.value is None or found <= bound.value * (1 + 1e-9)
        forever = infinite_bound(system.reward, step, gamma)
        if forever.value is not None:
            assert found <= forever.value * (1 + 1e-9)
            closest = max(closest, found / forever.value)
    assert closest > 0.3  # the test is not idle


def test_contraction_of_a_nonlinear_loop_from_its_corners() -> None:
    """g(s) = G tanh(s) has Jacobians G diag(d), d in [0, 1]^2; trajectories approach as the corners promise."""
    loop = np.array([[0.7, 0.6], [-0.4, 0.5]])
    corners = np.array([loop * d for d in np.array([[0, 0], [0, 1], [1, 0], [1, 1]])])
    found = contraction(corners, P=np.diag([1.0, 1.4]))
    assert found.overshoot == pytest.approx(math.sqrt(1.4)) and found.rate < 1
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 1000, 2)) * 3
    start = np.linalg.norm(x - y, axis=1)
    for k in range(30):
        assert (np.linalg.norm(x - y, axis=1) <= found.overshoot * found.rate**k * start * (1 + 1e-12)).all()
        x, y = np.tanh(x) @ loop.T, np.tanh(y) @ loop.T


def test_pendulum_is_vacuous_at_every_gain() -> None:
    assert (FROBENIUS, SPECTRAL) == pytest.approx((1.632, 1.483), abs=5e-4)
    angles = np.linspace(0, 2 * np.pi, 721)
    assert max(np.linalg.norm(pendulum_jacobian(a)) for a in angles) == pytest.approx(FROBENIUS)
    for gamma, expected in ((0.9, 2.16), (0.95, 2.40), (0.99, 2.61)):
        assert (gamma * FROBENIUS) ** 2 == pytest.approx(expected, abs=0.005)
        for gain in (0.0, 1.0, GAIN):
            found = infinite_bound(1.0, one_step_lip(SPECTRAL, gain), gamma)
            assert found.vacuous and "not below 1" in str(found) and "vacuous" in str(found)
            assert published_expression_not_a_bound(1.0, FROBENIUS, gain, gamma).vacuous
    assert (GAMMA * FROBENIUS * GAIN) ** 2 == pytest.approx(1085, abs=0.5)


def test_pendulum_is_finite_over_a_horizon() -> None:
    step = one_step_lip(FROBENIUS, 1.0)
    for n, sound, published in ((5, 47.7, 8.6), (10, 3020.0, 95.6)):
        assert number(horizon_bound(1.0, step, GAMMA, n)) == pytest.approx(sound, rel=2e-3)
        expression = published_expression_not_a_bound(1.0, FROBENIUS, 1.0, GAMMA, steps=n)
        assert number(expression) == pytest.approx(published, rel=6e-3)


def test_pendulum_is_finite_after_lqr() -> None:
    """The loop of the regulator at the upright: rate 0.870, 2,621 and 3,848; the truth is 40.7 and 46.5."""
    assert GAIN == pytest.approx(20.4, abs=0.02)
    loop = contraction(REGULATOR.A_cl)
    assert loop.rate == pytest.approx(0.870, abs=5e-4)
    found = closed_loop_bounds(1.0, SPECTRAL, GAIN, GAMMA, loop)
    assert number(found.state) == pytest.approx(2621, rel=2e-3)
    assert number(found.action) == pytest.approx(3848, rel=2e-3)
    pair = np.vstack([np.eye(2), -REGULATOR.K])
    state = np.linalg.norm(pair @ np.linalg.inv(np.eye(2) - GAMMA * REGULATOR.A_cl), 2)
    action = np.linalg.norm(np.linalg.inv(np.eye(3) - GAMMA * pair @ UPRIGHT), 2)
    assert (state, action) == pytest.approx((40.7, 46.5), abs=0.05)
    sharper = linear_loop_bounds(1.0, UPRIGHT[:, :2], UPRIGHT[:, 2:], REGULATOR.K, GAMMA)
    assert state <= number(sharper.state) < 1.2 * state and action <= number(sharper.action) < 1.2 * action
    riccati = closed_loop_bounds(1.0, SPECTRAL, GAIN, GAMMA, contraction(REGULATOR.A_cl, REGULATOR.P))
    assert number(riccati.action) < number(found.action)


def test_closed_loop_is_vacuous_for_loops_that_spread_faster_than_the_discount() -> None:
    found = closed_loop_bounds(1.0, 2.0, 1.0, 0.9, Contraction(1.2, 1.0))
    assert found.state.vacuous and found.action.vacuous and "1.08" in found.action.reason
    assert state_value_bound(found.action, 1.0).vacuous
    assert number(closed_loop_bounds(1.0, 2.0, 0.0, 0.9, Contraction(1.05)).state) == pytest.approx(1 / (1 - 0.945))


def test_stochastic_bound_and_why_the_square_root_does_not_carry_over() -> None:
    """Deterministic systems are a special case; a policy that jumps with a small probability needs 1 + policy_lip."""
    assert number(stochastic_bound(2.0, 0.5, 0.0, 0.9)) == pytest.approx(number(infinite_bound(2.0, 0.5, 0.9)))
    assert number(stochastic_bound(1.0, 0.4, 1.0, 0.9)) == pytest.approx(1 / 0.28)
    assert stochastic_bound(1.0, 0.6, 1.0, 0.99).vacuous
    # r(s, a) = |(s, a)|, and at s the action is 1 with probability |s|, else 0: W1-Lipschitz with constant 1
    mean = {s: s * math.hypot(s, 1) + (1 - s) * s for s in (0.0, 1e-4)}
    assert (mean[1e-4] - mean[0.0]) / 1e-4 > 1.9 > math.sqrt(2)


def test_the_state_value_of_a_random_policy_needs_its_own_factor() -> None:
    """r = |(s, a)|, s' = |(s, a)| / 2, and a = c s with probability K / c, else 0: W1-Lipschitz with constant K.

    V(s) = v s with v = g (1 + gamma v / 2), g = 1 - K / c + K sqrt(1 + c^2) / c, and Q = (1 + gamma v / 2) |(s, a)|.
    """
    gain, gamma, c = 0.5, 0.9, 1e4
    g = 1 - gain / c + gain / c * math.hypot(1, c)
    v = g / (1 - gamma / 2 * g)
    action = stochastic_bound(1.0, 0.5, gain, gamma)
    assert 0.999 * number(action) < 1 + gamma / 2 * v <= number(action)
    state = stochastic_state_bound(action, gain)
    assert number(state) == pytest.approx(4.615, abs=1e-3) and 0.999 * number(state) < v <= number(state)
    assert v > 1.3 * number(action) * math.hypot(1, gain)  # 3.44, of a deterministic policy
    assert state.quantity == "slope of the state value" and state.assumptions == action.assumptions
    with pytest.raises(UserError, match="use stochastic_state_bound"):
        state_value_bound(action, gain)
    assert stochastic_state_bound(stochastic_bound(1.0, 0.6, 1.0, 0.99), 1.0).vacuous


def test_the_state_value_keeps_what_the_action_value_assumes() -> None:
    loop = linear_loop_bounds(1.0, UPRIGHT[:, :2], UPRIGHT[:, 2:], REGULATOR.K, GAMMA)
    metric = closed_loop_bounds(1.0, SPECTRAL, GAIN, GAMMA, contraction(REGULATOR.A_cl))
    for action, what in ((loop.action, "the loop is linear"), (metric.action, "the contraction of the closed loop")):
        found = state_value_bound(action, GAIN)
        assert what in found.assumptions and set(action.assumptions) < set(found.assumptions)
        assert number(found) == pytest.approx(number(action) * math.hypot(1, GAIN), rel=1e-12)
    for convert in (state_value_bound, stochastic_state_bound):
        with pytest.raises(UserError, match="found the slope of the state value"):
            convert(loop.state, GAIN)


def test_a_value_jumps_where_the_episode_ends() -> None:
    """s' = s, r = 1, end at s >= 1: no constant bounds the value, which is why the bounds exclude the end."""
    value = {s: 1 / (1 - 0.9) if s < 1 else 1.0 for s in (1 - 1e-9, 1.0)}
    assert abs(value[1.0] - value[1 - 1e-9]) / 1e-9 > 1e9
    for found in (infinite_bound(0.0, 1.0, 0.9), horizon_bound(0.0, 1.0, 0.9, 3)):
        assert number(found) == 0 and any("not end" in text for text in found.assumptions)


def test_a_constant_multiplier_scales_every_bound() -> None:
    for kappa in (0.7, 0.85, 1.0):
        reward = number(preconditioned_lip(2.0, kappa))
        assert reward == pytest.approx(kappa * 2.0)
        assert number(infinite_bound(reward, 0.5, 0.9)) == pytest.approx(kappa * number(infinite_bound(2.0, 0.5, 0.9)))


def test_a_varying_multiplier_needs_a_cap_and_the_product_rule() -> None:
    assert preconditioned_lip(2.0, 1.0, multiplier_lip=0.1).vacuous
    bound = number(preconditioned_lip(2.0, 1.0, multiplier_lip=1.5, reward_cap=3.0))
    assert bound == pytest.approx(2.0 + 4.5)
    x = np.linspace(-5, 5, 200_001)
    kappa, reward = 0.85 + 0.15 * np.sin(10 * x), np.clip(2 * x, -3, 3)
    steepest = np.abs(np.diff(kappa * reward) / np.diff(x)).max()
    assert 2.0 < steepest <= bound  # scaling by the largest multiplier alone would be wrong


def test_critic_against_its_certificate() -> None:
    """The fitted critic of the regulator's loop, linear least squares on exact values, stays within both bounds."""
    pair = np.vstack([np.eye(2), -REGULATOR.K])
    w = np.array([0.6, 0.0, -0.8])
    slope = w @ np.linalg.inv(np.eye(3) - GAMMA * pair @ UPRIGHT)
    x = np.random.default_rng(4).normal(size=(50, 3))
    fitted = np.linalg.lstsq(x, x @ slope, rcond=None)[0]
    norms = np.full(50, np.linalg.norm(fitted))
    certificate = closed_loop_bounds(1.0, SPECTRAL, GAIN, GAMMA, contraction(REGULATOR.A_cl)).action
    good = compare_critic(certificate, norms, network_lip=float(norms[0]))
    assert good.verdict == "within the certificate" and number(good.network) == good.largest == good.median
    bad = compare_critic(certificate, [*norms, 2 * number(certificate)])
    assert bad.verdict == "not the value of this policy" and bad.network.vacuous
    assert bad.p95 < bad.largest == 2 * number(certificate)
    assert compare_critic(infinite_bound(1.0, 2.0, 0.9), norms).verdict == "no certificate"


def test_bad_numbers_are_refused() -> None:
    for call in (
        lambda: horizon_bound(1.0, 1.0, 0.9, 0),
        lambda: infinite_bound(float("nan"), 1.0, 0.9),
        lambda: infinite_bound(1.0, 1.0, 1.0),
        lambda: one_step_lip(-1.0, 0.0),
        lambda: contraction(np.eye(2)),
        lambda: contraction(np.zeros((2, 3))),
        lambda: contraction(0.5 * np.eye(2), np.eye(3)),
        lambda: contraction(0.5 * np.eye(2), -np.eye(2)),
        lambda: contraction([[0.0, 9.0], [0.0, 0.0]], np.eye(2)),
        lambda: Contraction(0.5, 0.9),
        lambda: linear_loop_bounds(1.0, np.eye(2), np.ones((2, 1)), np.zeros((1, 3)), 0.9),
        lambda: compare_critic(infinite_bound(1.0, 0.5, 0.9), []),
        lambda: compare_critic(infinite_bound(1.0, 0.5, 0.9), [np.nan]),
        lambda: preconditioned_lip(1.0, 0.7, multiplier_lip=1.0, reward_cap=-1.0),
    ):
        with pytest.raises(UserError):
            call()


@pytest.mark.parametrize("gamma", [1e-300, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("step", [5e-324, 1e-300, 1e-20, 1e-16, 0.3, 0.55, 0.6, 1.0, 1 + 1e-12, 1 / 0.9, 1.2, 7.0])
def test_horizons_are_not_below_the_exact_sum(gamma: float, step: float) -> None:
    """In rational arithmetic, from ratios that round to nothing beside 1 up to large ones."""
    for steps in (1, 2, 5, 90):
        exact = sum((Fraction(gamma) * Fraction(step)) ** k for k in range(steps))
        found = Fraction(number(horizon_bound(1.0, step, gamma, steps)))
        assert exact <= found <= exact * (1 + Fraction(1, 10**11))


def test_long_horizons_do_not_overflow_into_a_number() -> None:
    found = horizon_bound(1.0, 2.0, 0.99, 100_000)
    assert found.vacuous and "overflows" in found.reason
    near = horizon_bound(1.0, (1 + 1e-9) / 0.99, 0.99, 1000)
    assert number(near) == pytest.approx(1000 * (1 + 499.5e-9), rel=1e-10)
