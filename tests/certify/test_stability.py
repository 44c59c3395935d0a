"""Five forms of stability on the double integrator (worked values), on the pendulum, and against simulation."""

import math

import numpy as np
import pytest

from lipctrl.certify.stability import (
    Lyapunov,
    allowed_slopes,
    converse_lyapunov,
    decay,
    gap_from_error,
    hinf_norm,
    incremental_gain,
    invariance_margin,
    iss,
    least_conservative,
    open_loop_gap,
    quadratic_lyapunov,
    tube,
)
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr

A, B = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [1.0]])
EXPERT = lqr(A, B, np.eye(2), [[0.1]])
CLOSED = EXPERT.A_cl
LIP = float(np.linalg.norm(EXPERT.K, 2))
PENDULUM = np.array([[1.0, 0.05], [-0.5, 0.7]]), np.array([[0.0], [0.05]])


def test_quadratic_lyapunov_values() -> None:
    w = quadratic_lyapunov(CLOSED, B, EXPERT.P)
    assert (w.rho, w.gain, w.widest) == pytest.approx((0.85398918, 1.69740062, 0.97820513), rel=1e-7)
    assert w.allowed_slope == pytest.approx(0.08793682, rel=1e-6)
    assert invariance_margin(w, 1.0) == pytest.approx(0.08602025, rel=1e-6)
    found = iss(w, offset=0.0, slope=0.0, lip=LIP, measurement=0.01, level=1.0)
    assert found.disturbance.value == pytest.approx(0.05211528, rel=1e-6)
    assert found.radius.value == pytest.approx(11.371801 * LIP * 0.01, rel=1e-6)


def test_gains_values() -> None:
    assert incremental_gain(CLOSED, B) == pytest.approx(2.99616132, rel=1e-8)
    assert hinf_norm(CLOSED, B) == pytest.approx(1.72660617, rel=1e-8)
    assert hinf_norm(CLOSED, B) == pytest.approx(1 / EXPERT.K[0, 0], rel=1e-8)
    assert incremental_gain(*PENDULUM) == pytest.approx(0.29582813, rel=1e-7)
    assert hinf_norm(*PENDULUM) == pytest.approx(0.19069252, rel=1e-7)


def test_the_static_gain_form_is_exact() -> None:
    """An error of slope 0.5791709 in x_1 puts an eigenvalue outside the unit circle, one of 0.5791708 does not."""
    limit = 1 / hinf_norm(CLOSED, B)
    assert 0.5791708 < limit < 0.5791709
    for slope, radius in ((0.5791708, 0.99999995), (0.5791709, 1.00000002)):
        loop = CLOSED + B @ np.array([[slope, 0.0]])
        assert np.abs(np.linalg.eigvals(loop)).max() == pytest.approx(radius, abs=1e-8)


def test_hinf_norm_against_a_fine_grid_of_frequencies() -> None:
    rng = np.random.default_rng(0)
    for k in range(20):
        a = rng.normal(size=(4, 4))
        a *= rng.uniform(0.3, 0.98) / np.abs(np.linalg.eigvals(a)).max()
        b = rng.normal(size=(4, 1 + k % 2))
        z = np.exp(1j * np.linspace(0, np.pi, 100_001))[:, None, None] * np.eye(4)
        grid = np.linalg.norm(np.linalg.solve(z - a, np.broadcast_to(b, (len(z), *b.shape))), 2, (1, 2)).max()
        found = hinf_norm(a, b)
        assert grid <= found <= grid * (1 + 1e-4) and found <= incremental_gain(a, b) * (1 + 1e-9)


@pytest.mark.parametrize(("lam", "eta"), [(3.26861015, 0.038135), (1.62256597, 0.076822)])
def test_converse_lyapunov_values(lam: float, eta: float) -> None:
    w = converse_lyapunov(4.30519107, 0.41161054, lam, 1.0)
    assert w.allowed_slope == pytest.approx(eta, abs=1e-5) and w.rho == pytest.approx(0.85405, abs=1e-3)


def test_decay_bounds_every_power() -> None:
    overshoot, rate = decay(CLOSED)
    assert (overshoot, rate) == pytest.approx((4.30519107, 0.41161054), rel=1e-6)
    power = np.eye(2)
    for t in range(60):
        assert np.linalg.norm(power, 2) <= overshoot * rate**t * (1 + 1e-12)
        power = power @ CLOSED


def test_the_order_of_conservatism() -> None:
    overshoot, rate = decay(CLOSED)
    slopes = allowed_slopes(CLOSED, B, EXPERT.P, overshoot=overshoot, rate=rate)
    assert list(slopes.values()) == sorted(slopes[k] for k in ("converse Lyapunov", "quadratic Lyapunov"))[::-1] + [
        slopes["incremental gain"],
        slopes["H-infinity"],
    ]
    assert slopes["incremental gain"] == pytest.approx(0.3338, abs=1e-4)


@pytest.mark.parametrize(("slope", "expected"), [(0.05, 0.03524100), (0.1, 0.04277885), (0.3, 0.29620503)])
def test_tube_values(slope: float, expected: float) -> None:
    found = tube(2.99616132, slope=slope, along=0.01, lip=LIP, measurement=0.0)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert tube(2.99616132, slope=slope, along=0.01, lip=LIP, measurement=0.0, radius=expected / 2).vacuous


def test_tube_is_vacuous_beyond_its_small_gain() -> None:
    assert tube(2.99616132, slope=0.33377, along=0.01, lip=1.0, measurement=0.0).vacuous


def test_pendulum_gap_values() -> None:
    """With the error bound 1.463619 over the set: 0.4330 without, 0.5554 with a measurement error of 0.02."""
    gain, lip = incremental_gain(*PENDULUM), 20.69869803
    assert gap_from_error(gain, 1.463619).value == pytest.approx(0.4330, abs=1e-4)
    assert gap_from_error(gain, 1.463619 + 0.02 * lip).value == pytest.approx(0.5554, abs=1e-4)


def test_open_loop_gap() -> None:
    assert open_loop_gap(2.0, 0.5, 0.1, 3).value == pytest.approx(0.5 * 0.1 * 7)
    assert open_loop_gap(1.0, 0.5, 0.1, 3).value == pytest.approx(0.15)


def test_iss_is_vacuous_with_a_reason() -> None:
    w = quadratic_lyapunov(CLOSED, B, EXPERT.P)
    steep = iss(w, offset=0.0, slope=0.1, lip=1.0, measurement=0.0)
    assert steep.rate.vacuous and "above the allowed" in steep.radius.reason
    far = iss(w, offset=0.2, slope=0.0, lip=1.0, measurement=0.0, level=1.0)
    assert far.disturbance.vacuous and "offset" in far.disturbance.reason
    loud = iss(w, offset=0.0, slope=0.0, lip=LIP, measurement=0.06, level=1.0)
    assert loud.radius.vacuous and not loud.disturbance.vacuous
    assert least_conservative([loud.radius, tube(1.0, slope=0.0, along=0.1, lip=0.0, measurement=0.0)]).value == 0.1


def test_no_simulated_loop_leaves_what_is_promised() -> None:
    """Worst-sign errors of given offset and slope: level, ultimate radius and tube are respected."""
    rng = np.random.default_rng(0)
    w = quadratic_lyapunov(CLOSED, B, EXPERT.P)
    gain, tightest = incremental_gain(CLOSED, B), 0.0
    for k in range(40):
        offset, slope = rng.uniform(0, 0.05), rng.uniform(0, 0.08)
        found = iss(w, offset=offset, slope=slope, lip=0.0, measurement=0.0)
        limit = tube(gain, slope=slope, along=offset + slope * 3.0, lip=0.0, measurement=0.0).value
        assert found.rate.value is not None and found.radius.value is not None and limit is not None
        x = star = rng.normal(size=2)
        x = star = x / np.linalg.norm(x)
        for t in range(200):
            size = offset + slope * np.linalg.norm(x)
            push = size * (np.sign((B.T @ EXPERT.P @ CLOSED @ x)[0]) if k % 2 else rng.choice([-1, 1]))
            before = math.sqrt(x @ EXPERT.P @ x)
            x, star = CLOSED @ x + B[:, 0] * push, CLOSED @ star
            after = math.sqrt(x @ EXPERT.P @ x)
            assert after <= found.rate.value * before + w.gain * offset + 1e-12
            assert np.linalg.norm(x - star) <= limit
            if t > 150:
                tightest = max(tightest, float(np.linalg.norm(x)) / found.radius.value)
    assert 0.05 < tightest <= 1 + 1e-9


def test_bad_input() -> None:
    with pytest.raises(UserError, match="must be stable"):
        incremental_gain(A, B)
    with pytest.raises(UserError, match="positive definite"):
        quadratic_lyapunov(CLOSED, B, -np.eye(2))
    with pytest.raises(UserError, match="does not decrease"):
        quadratic_lyapunov(CLOSED, B, np.eye(2))
    with pytest.raises(UserError, match="rho below 1"):
        Lyapunov(1.0, 1.0, 1.0)
    with pytest.raises(UserError, match="overshoot"):
        converse_lyapunov(0.5, 0.5, 1.0, 1.0)
