"""Reward forms against the closed forms in D = sigmoid(z), finite differences and torch."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from lipctrl.files import UserError
from lipctrl.nn.reward_forms import (
    REWARD_FORMS,
    least_slope,
    reward_form,
    reward_of,
    reward_range,
    reward_slope,
    reward_tensor,
)

CLIP = {name: 3.0 if name == "fairl" else math.inf for name in REWARD_FORMS}


def test_softplus_is_minus_log_of_one_minus_d() -> None:
    z = np.linspace(-15, 15, 3001)
    assert np.abs(reward_of("softplus", z) + np.log(1 - expit(z))).max() < 1e-9
    far = reward_of("softplus", [-100.0, 100.0])
    assert far[0] == pytest.approx(math.exp(-100)) and far[1] == 100.0
    slopes = REWARD_FORMS["softplus"].derivative(np.linspace(-30, 30, 601))
    assert (slopes > 0).all() and (slopes < 1).all()


def test_the_guarded_logarithm_saturates_and_ours_does_not() -> None:
    """-log(1 - D + 1e-8) stops at 18.4 and is off by 0.03 at z = 15 already."""
    z = np.array([15.0, 100.0])
    guarded = -np.log(1 - expit(z) + 1e-8)
    assert guarded[1] == pytest.approx(18.42, abs=0.01)
    assert reward_of("softplus", z)[0] - guarded[0] == pytest.approx(0.03, abs=0.005)


def test_the_other_forms_in_terms_of_d() -> None:
    z = np.linspace(-10, 10, 2001)
    d = expit(z)
    assert np.abs(reward_of("log-d", z) - np.log(d)).max() < 1e-9
    assert np.abs(reward_of("airl", z) - (np.log(d) - np.log(1 - d))).max() < 1e-9
    assert np.abs(reward_of("d", z) - d).max() < 1e-15
    ratio = d / (1 - d)
    assert np.abs(reward_of("fairl", z, 20.0) + ratio * np.log(ratio)).max() < 1e-6 * ratio.max()


@pytest.mark.parametrize("name", REWARD_FORMS)
def test_derivatives_slopes_ranges_and_signs(name: str) -> None:
    form, clip, h = REWARD_FORMS[name], CLIP[name], 1e-6
    z = np.linspace(-2.99, 2.99, 2001)
    numeric = (form.value(z + h) - form.value(z - h)) / (2 * h)
    assert np.abs(numeric - form.derivative(z)).max() < 1e-7 * max(1, np.abs(numeric).max())
    wide = np.linspace(-40, 40, 800_001) if clip == math.inf else np.linspace(-clip, clip, 800_001)
    steepest = np.abs(form.derivative(wide)).max()
    assert steepest <= reward_slope(name, clip) <= steepest * (1 + 1e-9)
    values, (low, high) = reward_of(name, wide, clip), reward_range(name, clip)
    assert low <= values.min() and values.max() <= high
    if clip < math.inf:
        assert (low, high) == pytest.approx((values.min(), values.max()), rel=1e-9)
    signs = {1: (values > 0).all(), -1: (values < 0).all(), 0: (values > 0).any() and (values < 0).any()}
    assert signs[form.sign] and sum(bool(s) for s in signs.values()) == 1
    assert form.monotone == bool((np.diff(values) >= 0).all())


@pytest.mark.parametrize("name", REWARD_FORMS)
def test_a_clip_bounds_the_reward_and_keeps_its_slope(name: str) -> None:
    z = np.linspace(-9, 9, 100_001)
    values, (low, high) = reward_of(name, z, 2.0), reward_range(name, 2.0)
    assert np.isfinite([low, high]).all() and low <= values.min() and values.max() <= high
    assert np.abs(np.diff(values) / np.diff(z)).max() <= reward_slope(name, 2.0) * (1 + 1e-9)
    assert np.ptp(values[z > 2]) == np.ptp(values[z < -2]) == 0
    assert np.array_equal(values[np.abs(z) < 2], reward_of(name, z[np.abs(z) < 2], CLIP[name]))


@pytest.mark.parametrize("name", REWARD_FORMS)
def test_torch_gives_the_same_numbers_and_slopes(name: str) -> None:
    z = torch.linspace(-25, 25, 501, dtype=torch.float64, requires_grad=True)
    for clip in (CLIP[name], 2.0):
        values = reward_tensor(name, z, clip)
        assert np.allclose(values.detach().numpy(), reward_of(name, z.detach().numpy(), clip), rtol=1e-14, atol=1e-14)
        (slopes,) = torch.autograd.grad(values.sum(), z)
        inside = np.abs(z.detach().numpy()) < clip
        expected = np.where(inside, REWARD_FORMS[name].derivative(np.clip(z.detach().numpy(), -clip, clip)), 0.0)
        assert np.allclose(slopes.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", REWARD_FORMS)
def test_least_slope_is_below_every_slope_of_the_interval(name: str) -> None:
    rng = np.random.default_rng(0)
    for clip in (2.5,) if name == "fairl" else (2.5, math.inf):
        for _ in range(200):
            low, high = np.sort(rng.uniform(-3, 3, 2))
            found = least_slope(name, low, high, clip)
            z = np.linspace(low, high, 400)
            slopes = np.where(np.abs(z) < clip, np.abs(REWARD_FORMS[name].derivative(z)), 0.0)
            assert 0 <= found <= slopes.min()
            if found > 0:
                assert found == pytest.approx(slopes.min(), rel=1e-9)
    assert least_slope(name, 0.0, 0.5, 2.5) > 0


def test_bad_forms_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'softplus'"):
        reward_form("softpls")
    with pytest.raises(UserError, match="must be positive"):
        reward_form("airl", -1.0)
    for clip in (math.inf, 800.0):
        with pytest.raises(UserError, match="needs a clip"):
            reward_of("fairl", [0.0], clip)
    with pytest.raises(UserError, match="must be positive"):
        reward_slope("d", math.nan)
