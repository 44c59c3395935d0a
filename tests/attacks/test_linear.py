"""Exact worst cases: against published numbers, brute force, the closed form of the tuned loop, and dense searches."""

import itertools

import numpy as np
import pytest

from lipctrl.attacks.linear import LinearLoop, Quadratic, finite_horizon_gain, peak_gains
from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.certify.stability import hinf_norm
from lipctrl.cli.oracle import DETUNED as DETUNED_GAIN
from lipctrl.cli.oracle import X0, A, B, K, P, Q, R, S
from lipctrl.files import UserError

TUNED, DETUNED = (LinearLoop(A, B, gain, Q, R, P) for gain in (K, DETUNED_GAIN))


@pytest.mark.parametrize("loop", [TUNED, DETUNED])
def test_the_quadratic_form_is_the_simulated_cost(loop: LinearLoop) -> None:
    form, rng = loop.stacked(X0, 7), np.random.default_rng(0)
    for _ in range(5):
        d = rng.normal(size=(7, 2))
        assert form(d.ravel()) == pytest.approx(loop.cost(X0, d), rel=1e-12)
    assert np.linalg.eigvalsh(form.M)[0] > -1e-12


@pytest.mark.parametrize("channel", ["action", "disturbance"])
def test_the_form_of_other_channels_is_the_simulated_cost(channel: str) -> None:
    rng, size = np.random.default_rng(1), {"action": 1, "disturbance": 2}[channel]
    form = DETUNED.stacked(X0, 7, channel)  # type: ignore[arg-type]  # both are channels
    held = DETUNED.held(X0, 7, channel)  # type: ignore[arg-type]

    def cost(d: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> float:
        x, total = X0, 0.0
        for one in d:
            u = -DETUNED_GAIN @ x + (one if channel == "action" else 0)
            total += float(x @ Q @ x + u @ R @ u)
            x = A @ x + B @ u + (one if channel == "disturbance" else 0)
        return total + float(x @ P @ x)

    d = rng.normal(size=(7, size))
    assert form(d.ravel()) == pytest.approx(cost(d), rel=1e-12)
    assert held(d[0]) == pytest.approx(cost(np.tile(d[0], (7, 1))), rel=1e-12)


def test_the_form_of_a_displaced_start_is_the_cost_from_there() -> None:
    move = np.array([0.3, -0.2])
    assert DETUNED.displaced(X0, 5)(move) == pytest.approx(DETUNED.cost(X0 + move, np.zeros((5, 2))), rel=1e-12)


def test_the_cross_term_vanishes_for_the_optimal_gain_only() -> None:
    assert np.abs(TUNED.stacked(X0, 10).b).max() < 1e-12 and np.abs(DETUNED.stacked(X0, 10).b).max() > 0.1


@pytest.mark.parametrize(("budget", "expected"), [(0.1, 13.344959), (0.5, 14.010596), (1.0, 16.090709)])
def test_published_energy_budgets_which_are_the_hard_case(budget: float, expected: float) -> None:
    """Numbers for this loop; b = 0, so that the secular equation alone has no solution."""
    value, z = TUNED.stacked(X0, 12).largest_in_ball(budget)
    assert value == pytest.approx(expected, abs=1e-5) and np.linalg.norm(z) == pytest.approx(budget)
    exact = TUNED.cost(X0, np.zeros((12, 2))) + budget**2 * np.linalg.eigvalsh(K.T @ S @ K)[-1]
    assert value == pytest.approx(exact, rel=1e-9)


def test_vertices_equal_brute_force_and_the_separated_closed_form() -> None:
    form = TUNED.stacked(X0, 6)
    value, z = form.largest_at_vertices(0.1)
    assert value == pytest.approx(13.643440, abs=1e-5) and np.abs(z).max() == pytest.approx(0.1)
    extra = lqr_extra_cost(K, S, norm="linf", radius=0.1, scale=np.ones(2), steps=6)
    assert value == pytest.approx(float(X0 @ P @ X0) + extra, rel=1e-10)
    loop = DETUNED.stacked(X0, 3)
    brute = max(DETUNED.cost(X0, 0.2 * np.array(s).reshape(3, 2)) for s in itertools.product((-1, 1), repeat=6))
    assert loop.largest_at_vertices(0.2)[0] == pytest.approx(brute, rel=1e-12)


def near(form: Quadratic, radius: float, seed: int) -> float:
    """The best of many local searches on the sphere."""
    rng, best = np.random.default_rng(seed), -np.inf
    for _ in range(10):
        z = rng.normal(size=len(form.b))
        z *= radius / np.linalg.norm(z)
        for _ in range(400):
            g = form.M @ z + form.b + 1e-3 * z
            z = radius * g / np.linalg.norm(g)
        best = max(best, float(form(z)))
    return best


@pytest.mark.parametrize("kind", ["generic", "hard", "nearly hard", "indefinite", "zero b"])
@pytest.mark.parametrize("seed", range(4))
def test_the_ball_against_local_searches_and_optimality(kind: str, seed: int) -> None:
    rng, k = np.random.default_rng(seed), 5
    vectors = np.linalg.qr(rng.normal(size=(k, k)))[0]
    values = np.sort(rng.uniform(0.1, 2, k)) if kind != "indefinite" else np.array([-3.0, -1.0, -0.5, 0.2, 1.0])
    beta = rng.normal(size=k)
    if kind in ("hard", "nearly hard"):
        beta[-1] = 0.0 if kind == "hard" else 1e-11
    form = Quadratic((vectors * values) @ vectors.T, vectors @ (beta if kind != "zero b" else np.zeros(k)), 1.0)
    for radius in (0.3, 2.0, 30.0):
        value, z = form.largest_in_ball(radius)
        assert np.linalg.norm(z) <= radius * (1 + 1e-12) and form(z) == pytest.approx(value)
        assert value >= near(form, radius, seed) - 1e-9 * abs(value)
        # the dual bound: for any shift with shift I - M positive semidefinite no point of the ball is above this
        shift = (z @ (form.M @ z + form.b)) / (z @ z)
        shift = max(shift, values[-1] * (1 + 1e-13), 0.0)
        dual = form.c + shift * radius**2 + form.b @ np.linalg.lstsq(shift * np.eye(k) - form.M, form.b, rcond=1e-11)[0]
        assert value <= dual + 1e-7 * abs(dual) and value >= dual - 1e-6 * abs(dual)


def test_a_negative_definite_form_has_its_maximum_inside() -> None:
    form = Quadratic(-np.eye(2), np.array([0.3, 0.0]), 0.0)
    value, z = form.largest_in_ball(5.0)
    assert value == pytest.approx(0.09) and z == pytest.approx([0.3, 0.0])
    value, z = form.largest_in_ball(0.1)
    assert z == pytest.approx([0.1, 0.0]) and form.largest_in_ball(0.0)[0] == 0.0


def test_h_infinity_and_peak_gains() -> None:
    one = np.array([[1.0]])
    assert hinf_norm(0.9 * one, one, one) == pytest.approx(10, rel=1e-8)
    assert peak_gains(0.9 * one, one, one)[0] == pytest.approx(10, rel=1e-10)
    closed, C = A - B @ K, np.vstack([np.eye(2), -np.sqrt(0.1) * K])
    norm = hinf_norm(closed, B, C)
    assert norm == pytest.approx(0.52400, abs=1e-5)
    gains = [finite_horizon_gain(closed, B, C, steps) for steps in (5, 20, 80, 300)]
    assert gains == sorted(gains) and 0.999 * norm < gains[-1] < norm
    np.testing.assert_allclose(peak_gains(closed, B, np.eye(2)), [0.386742, 0.463313], atol=1e-6)
    frequency = np.exp(0.098j)
    at = np.linalg.norm(C @ np.linalg.solve(frequency * np.eye(2) - closed, B), 2)
    assert at == pytest.approx(norm, rel=1e-4)


def test_refusals() -> None:
    with pytest.raises(UserError, match="at most 16"):
        TUNED.stacked(X0, 9).largest_at_vertices(0.1)
    with pytest.raises(UserError, match="positive semidefinite"):
        Quadratic(-np.eye(2), np.zeros(2), 0.0).largest_at_vertices(1.0)
    with pytest.raises(UserError, match="stable"):
        peak_gains(np.eye(1), np.eye(1), np.eye(1))
