"""Balls: membership, projection and linear maximisers against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError

NORMS = ("l2", "linf")


def ball(norm: str, seed: int) -> tuple[Ball, np.random.Generator]:
    r = np.random.default_rng(seed)
    return Ball(norm, r.uniform(0, 2, 50), r.uniform(0.1, 5, 4)), r  # type: ignore[arg-type]


@given(st.sampled_from(NORMS), st.integers(0, 10**6))
def test_every_construction_lies_in_the_set(norm: str, seed: int) -> None:
    b, r = ball(norm, seed)
    normal, uniform = r.normal(size=(50, 4)), r.random((50, 4))
    for d in (b.project(10 * normal), b.boundary(normal), b.inside(normal, uniform), b.linear_maximiser(normal)):
        assert b.contains(d)
    assert np.allclose(b.size(b.boundary(normal)), b.radius)
    assert not b.contains(b.boundary(normal) * (1 + 1e-5) + 1e-9)


@given(st.sampled_from(NORMS), st.integers(0, 10**6))
def test_linear_maximiser_attains_the_dual_norm_and_is_never_beaten(norm: str, seed: int) -> None:
    b, r = ball(norm, seed)
    g = r.normal(size=(50, 4))
    best = (b.linear_maximiser(g) * g).sum(1)
    dual = np.linalg.norm(g * b.scale, ord=2 if norm == "l2" else 1, axis=1) * b.radius
    assert np.allclose(best, dual)
    others = (b.boundary(r.normal(size=(50, 4))) * g).sum(1)
    assert (others <= best + 1e-12).all()


def test_projection_is_the_identity_inside_and_scales_outside() -> None:
    b = Ball("l2", np.array([1.0, 1.0]), np.array([1.0, 2.0]))
    assert np.allclose(b.project(np.array([[0.3, 0.4], [3.0, 8.0]])), [[0.3, 0.4], [0.6, 1.6]])


def test_uniform_points_fill_the_ball() -> None:
    r = np.random.default_rng(0)
    b = Ball("l2", np.ones(20000), np.ones(2))
    sizes: NDArray[np.float64] = b.size(b.inside(r.normal(size=(20000, 2)), r.random((20000, 2))))
    assert abs((sizes < np.sqrt(0.5)).mean() - 0.5) < 0.02  # half of a disc's area lies within sqrt(1/2)


def test_bad_radii_and_scales() -> None:
    with pytest.raises(UserError, match="radii"):
        Ball("l2", np.array([-1.0]), np.ones(2))
    with pytest.raises(UserError, match="scales"):
        Ball("l2", np.array([1.0]), np.array([0.0, 1.0]))
