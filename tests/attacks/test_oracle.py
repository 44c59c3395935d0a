"""The closed-form worst case against brute force over every sign sequence, and against published numbers."""

import itertools

import numpy as np
import pytest

from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.cli.oracle import X0, A, B, K, P, Q, R, S
from lipctrl.files import UserError


def cost(perturbations: np.ndarray) -> float:
    x, total = X0.copy(), 0.0
    for d in perturbations:
        u = -K @ (x + d)
        total += float(x @ Q @ x + u @ R @ u)
        x = A @ x + B @ u
    return total + float(x @ P @ x)


def test_six_attacked_steps_equal_brute_force_over_all_sign_sequences() -> None:
    vertices = [0.1 * np.array(s) for s in itertools.product((-1.0, 1.0), repeat=2)]
    best = max(cost(np.array(sequence)) for sequence in itertools.product(vertices[:2], repeat=6))
    best = max(best, max(cost(np.array(sequence)) for sequence in itertools.product(vertices[2:], repeat=6)))
    exact = float(X0 @ P @ X0) + lqr_extra_cost(K, S, norm="linf", radius=0.1, scale=np.ones(2), steps=6)
    assert exact == pytest.approx(13.643440, abs=1e-5) and exact == pytest.approx(best, abs=1e-9)


def test_l2_per_step_is_attained_by_the_top_direction() -> None:
    direction = K[0] / np.linalg.norm(K)
    exact = lqr_extra_cost(K, S, norm="l2", radius=0.2, scale=np.ones(2), steps=9)
    assert cost(0.2 * np.tile(direction, (9, 1))) - float(X0 @ P @ X0) == pytest.approx(exact, rel=1e-9)


def test_scales_enter_as_units() -> None:
    scale = np.array([3.0, 0.5])
    direction = scale**2 * K[0] / np.linalg.norm(scale * K[0])
    exact = lqr_extra_cost(K, S, norm="l2", radius=0.2, scale=scale, steps=4)
    assert cost(0.2 * np.tile(direction, (4, 1))) - float(X0 @ P @ X0) == pytest.approx(exact, rel=1e-9)


def test_too_many_observations_for_enumeration() -> None:
    with pytest.raises(UserError, match="16"):
        lqr_extra_cost(np.ones((1, 17)), np.eye(1), norm="linf", radius=1.0, scale=np.ones(17), steps=1)
