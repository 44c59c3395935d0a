"""Regret: the LQR identity to rounding, worked values, and bounds against simulated loops."""

import numpy as np
import pytest

from lipctrl.certify import regret as r
from lipctrl.certify.stability import hinf_norm
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr

A, B, Q, R = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [1.0]]), np.eye(2), np.array([[0.1]])
EXPERT = lqr(A, B, Q, R)


def rollout(start: np.ndarray, errors: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    states, inputs = [start], []
    for error in errors:
        inputs.append(-k @ states[-1] + error)
        states.append(A @ states[-1] + B @ inputs[-1])
    return np.array(states), np.array(inputs)


@pytest.mark.parametrize("discount", [1.0, 0.99])
def test_the_identity_holds_for_any_inputs(discount: float) -> None:
    root = np.sqrt(discount)
    expert = lqr(root * A, root * B, Q, R)
    rng = np.random.default_rng(0)
    for _ in range(50):
        states, inputs = rollout(rng.normal(size=2), rng.normal(size=(30, 1)), expert.K)
        weights = discount ** np.arange(31)
        cost = (
            sum(w * (x @ Q @ x + u @ R @ u) for w, x, u in zip(weights, states, inputs, strict=False))
            + weights[-1] * states[-1] @ expert.P @ states[-1]
        )
        extra = cost - states[0] @ expert.P @ states[0]
        assert r.lqr_regret(states, inputs, expert.K, expert.S, discount) == pytest.approx(extra, rel=1e-10)
    if discount == 0.99:
        assert expert.K[0] == pytest.approx([0.57620000, 1.54209595], rel=1e-7)
        assert expert.S[0, 0] == pytest.approx(2.93220270, rel=1e-7)


@pytest.mark.parametrize(("slope", "expected"), [(0.05, 0.02340921), (0.1, 0.11419781), (0.3, 3.02789573)])
def test_closed_form_values(slope: float, expected: float) -> None:
    found = r.lqr_regret_bound(EXPERT.A_cl, B, EXPERT.S, [1.0, 0.0], slope=slope, steps=1000)
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_closed_form_against_worst_errors() -> None:
    """Errors of slope eta in the worst direction and random ones; the bound is nearly reached by the linear error."""
    rng = np.random.default_rng(0)
    tightest = 0.0
    for k in range(300):
        slope, extra, start = rng.uniform(0, 0.55), rng.uniform(0, 0.05) * (k % 2), rng.normal(size=2)
        bound = r.lqr_regret_bound(EXPERT.A_cl, B, EXPERT.S, start, slope=slope, extra=extra, steps=100).value
        states, inputs, kind = [start], [], k % 3
        for _ in range(100):
            x = states[-1]
            size = slope * np.linalg.norm(x) + extra
            sign = (slope * x[0] + extra) / size if kind == 0 and size else rng.choice([-1.0, 1.0])
            if kind == 1:
                sign = np.sign((B.T @ EXPERT.P @ EXPERT.A_cl @ x)[0])
            inputs.append(-EXPERT.K @ x + np.clip(sign, -1, 1) * size)
            states.append(A @ x + B @ inputs[-1])
        found = r.lqr_regret(np.array(states), np.array(inputs), EXPERT.K, EXPERT.S)
        assert bound is not None and found <= bound
        tightest = max(tightest, found / bound)
    assert tightest > 0.5


def test_average_regret_is_the_limit_of_the_bound() -> None:
    average = r.lqr_average_regret(EXPERT.A_cl, B, EXPERT.S, slope=0.1, extra=0.05).value
    total = r.lqr_regret_bound(EXPERT.A_cl, B, EXPERT.S, [1.0, 0.0], slope=0.1, extra=0.05, steps=10**8).value
    assert average is not None and total is not None and total / 10**8 == pytest.approx(average, rel=1e-3)


def test_beyond_the_allowed_slope_nothing_is_claimed() -> None:
    limit = 1 / hinf_norm(EXPERT.A_cl, B)
    for found in (
        r.lqr_regret_bound(EXPERT.A_cl, B, EXPERT.S, [1.0, 0.0], slope=limit * 1.001, steps=10),
        r.lqr_average_regret(EXPERT.A_cl, B, EXPERT.S, slope=limit * 1.001, extra=0.1),
        r.regret(1.0, 1.0, 1.0, 0.1, discount=1.0),
        r.regret_from_gap(1.0, 1.0, 1.0, 1.0, 0.1, discount=1.0),
        r.value_constant(1.0, 1.0, 1.0, 1.2, 0.9),
        r.degradation(1.0, 1.0, 1.0, (1.0, 1.0), 0.1, 0.9),
    ):
        assert found.vacuous and found.reason


def test_discounted_bounds_against_simulated_loops() -> None:
    """Contractive linear plant with absolute-value costs, whose constants are exact; random bounded errors."""
    rng = np.random.default_rng(1)
    gamma = 0.95
    for _ in range(100):
        a = rng.normal(size=(2, 2))
        a *= 0.7 / np.linalg.norm(a, 2)
        b, k = rng.normal(size=(2, 1)) * 0.3, rng.normal(size=(1, 2)) * 0.2
        lx, lu, lip = float(np.linalg.norm(a, 2)), float(np.linalg.norm(b, 2)), float(np.linalg.norm(k, 2))
        closed = float(np.linalg.norm(a - b @ k, 2))
        value = r.value_constant(1.0, 1.0, lip, closed, gamma).value
        assert value is not None
        size = 0.1
        costs = []
        for error in (np.zeros((400, 1)), rng.uniform(-size, size, (400, 1)), np.full((400, 1), size)):
            x, total = np.ones(2), 0.0
            for t, e in enumerate(error):
                u = -k @ x + e
                total += gamma**t * (np.linalg.norm(x) + np.linalg.norm(u))
                x = a @ x + b @ u
            costs.append(total)
        gap = max(abs(cost - costs[0]) for cost in costs)
        first = r.regret(value, 1.0, lu, size, gamma).value
        gain = lu / (1 - closed)
        second = r.regret_from_gap(gain, 1.0, 1.0, lip, size, gamma).value
        assert first is not None and second is not None and gap <= min(first, second)
        third = r.degradation(1.0, 1.0, lip, (lx, lu), size / lip, gamma).value  # the error is lip times its size
        assert third is None or gap <= third


def test_quadratic_constants_and_bad_input() -> None:
    assert r.quadratic_constants(np.diag([1.0, 3.0]), [[0.1]], 2.0, 5.0) == pytest.approx((12.0, 1.0))
    with pytest.raises(UserError, match="steps"):
        r.lqr_regret_bound(EXPERT.A_cl, B, EXPERT.S, [1.0, 0.0], slope=0.1, steps=0)
