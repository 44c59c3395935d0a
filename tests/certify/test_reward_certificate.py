"""Proved slopes of learned rewards: by construction, per block and unit, attained, and never exceeded."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.certify.certificate import Box
from lipctrl.certify.reward import RewardCertificate, attained_slope, block_norm, certify_reward, proved_slopes
from lipctrl.certify.reward_monitors import c_validity, gradient_norms, gradient_percentiles, jacobian_norms
from lipctrl.files import UserError
from lipctrl.nn.network import lipschitz_mlp
from lipctrl.nn.normalise import deployed
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import LearnedReward
from lipctrl.nn.reward_forms import REWARD_FORMS, reward_slope

SCALE = np.array([0.5, 2.0, 1.0, 4.0])


def constructed(lip: float = 1.0, *, family: str = "sandwich", activation: str = "relu", seed: int = 0) -> PlainNet:
    """A logit that is lip-Lipschitz by construction in normalised units, its normaliser folded in."""
    net = lipschitz_mlp(family, (4, 12, 8, 1), lip, activation=activation, seed=seed).to_plain()
    wide = np.full(1, np.inf)
    return deployed(
        net, mean=np.arange(4.0), scale=SCALE, output_offset=np.zeros(1), output_scale=np.ones(1), low=-wide, high=wide
    ).without_limits()


def reward_of_net(net: PlainNet, form: str = "softplus", clip: float | None = None) -> LearnedReward:
    return LearnedReward(net, form, "state-action", 3, clip=clip or (2.0 if form == "fairl" else float("inf")))


def linear(weights: list[float]) -> PlainNet:
    return PlainNet.mlp([np.array([weights])], [np.zeros(1)], [])


@pytest.mark.parametrize("form", REWARD_FORMS)
def test_linear_logits_are_exact_per_block_and_unit(form: str) -> None:
    """z = 3 x0 + 4 a: 5 in all, 3 per state, 4 per action; in standard deviations 6 per state, 16 per action."""
    net = replace(linear([3, 0, 0, 4]), input_scale=SCALE)
    found = certify_reward(reward_of_net(net, form))
    factor = reward_slope(form, 2.0 if form == "fairl" else float("inf"))
    expected = {
        ("all", "raw"): 5.0,
        ("state", "raw"): 3.0,
        ("action", "raw"): 4.0,
        ("all", "normalised"): np.hypot(1.5, 16),
        ("state", "normalised"): 1.5,
        ("action", "normalised"): 16.0,
    }
    assert {(s.block, s.units) for s in found.slopes} == set(expected)
    for (block, units), value in expected.items():
        one = found.of(block, units)  # type: ignore[arg-type]
        alone = proved_slopes(reward_of_net(net, form))[block, units]  # type: ignore[index]
        assert factor * value <= alone == pytest.approx(factor * value, rel=1e-6)
        assert value <= one.logit.bound * (1 + 1e-12) and one.logit.bound == pytest.approx(value, rel=1e-9)
        assert one.logit_witness.bound == pytest.approx(value, rel=1e-9)
        assert one.reward == pytest.approx(factor * value, rel=1e-9)
        assert 0.9 * one.reward < one.reward_witness.bound <= one.reward
    assert found.verify(reward_of_net(net, form))


@pytest.mark.parametrize(("family", "lip"), [("sandwich", 1.0), ("orthogonal", 3.0), ("ldlt", 0.5)])
def test_rewards_bounded_by_construction(family: str, lip: float) -> None:
    """In normalised units the construction's own proof gives k; raw, at most k over the smallest deviation."""
    reward = reward_of_net(constructed(lip, family=family))
    found = certify_reward(reward)
    assert found.of("all", "normalised").logit.bound <= lip * (1 + 1e-6)
    assert found.of("all", "raw").reward <= lip / SCALE.min() * (1 + 1e-6)
    for units in ("raw", "normalised"):
        whole = found.of("all", units)  # type: ignore[arg-type]
        for block in ("state", "action"):
            one = found.of(block, units)  # type: ignore[arg-type]
            assert one.logit_witness.bound <= one.logit.bound <= whole.logit.bound * (1 + 1e-5)
            assert 0 < one.reward_witness.bound <= one.reward == one.logit.bound
    assert found.verify(reward)


def test_no_pair_and_no_ascent_exceeds_the_certificate() -> None:
    """|z(x) - z(y)| / |x - y| over random pairs and under gradient ascent on both points (note, check 6)."""
    reward = reward_of_net(constructed(1.0))
    found, rng = certify_reward(reward), np.random.default_rng(0)
    for units, block in (("normalised", "all"), ("raw", "all"), ("raw", "state"), ("raw", "action")):
        proved = found.of(block, units)  # type: ignore[arg-type]
        scale, mask = (SCALE if units == "normalised" else np.ones(4)), reward.columns(block)  # type: ignore[arg-type]
        x = rng.normal(size=(20_000, 4)) * 10 ** rng.uniform(-1, 1.5, (20_000, 1))
        y = x + mask * rng.normal(size=x.shape) * 10 ** rng.uniform(-3, 1, (20_000, 1))

        def ratio(x: np.ndarray, y: np.ndarray, scale: np.ndarray = scale) -> np.ndarray:
            return np.abs(reward.logit(x) - reward.logit(y))[:, 0] / np.linalg.norm((x - y) / scale, axis=1)

        start = ratio(x, y)
        best = np.argsort(-start)[:50]
        x, y, value = x[best], y[best], start[best]
        for _ in range(200):
            step = 0.1 * rng.normal(size=(2, 50, 4))
            new_x = x + step[0]
            new_y = np.where(mask, y + step[1], new_x)
            better = ratio(new_x, new_y) > value
            x, y = np.where(better[:, None], new_x, x), np.where(better[:, None], new_y, y)
            value = ratio(x, y)
        assert start.max() <= value.max() <= proved.logit.bound
        assert value.max() > 0.8 * proved.logit_witness.bound  # the search is not idle


@pytest.mark.parametrize("form", REWARD_FORMS)
def test_gradients_of_the_reward_stay_below_its_bound(form: str) -> None:
    """By central differences of the reward itself; for slopes of at most 1 also below the logit's (note, check 5)."""
    reward = reward_of_net(constructed(2.0, activation="tanh"), form)
    found = certify_reward(reward, method="own").of("all", "raw")
    x, h = np.random.default_rng(1).normal(size=(4000, 4)) * 4, 1e-5
    steps = h * np.eye(4)
    gradients = np.stack([(reward.of_inputs(x + s) - reward.of_inputs(x - s)) / (2 * h) for s in steps], -1)
    norms = np.linalg.norm(gradients, axis=1)
    assert norms.max() <= found.reward
    if form != "fairl":
        assert (norms <= gradient_norms(reward.logit, x) * (1 + 1e-6)).all()


@pytest.mark.parametrize("form", REWARD_FORMS)
def test_what_a_witness_says_is_attained(form: str) -> None:
    """A difference quotient at the witness reaches its bound; inside the clip, and 0 outside of it."""
    reward = reward_of_net(constructed(2.0, activation="tanh"), form, clip=1.5)
    witness = certify_reward(reward, method="own").of("state", "raw").reward_witness
    x, d = np.array(witness.x), np.array(witness.direction)
    assert d[3] == 0 and witness.verify(reward) and witness.bound > 0
    h = 1e-6 / np.linalg.norm(d)
    quotient = abs(reward.of_inputs(x + h * d) - reward.of_inputs(x - h * d)) / (2 * h * np.linalg.norm(d))
    assert quotient == pytest.approx(witness.bound, rel=1e-5)
    assert not replace(witness, bound=witness.bound * 1.001).verify(reward)
    beyond = replace(reward, clip=abs(float(reward.logit(x)[0])) * 0.99)
    assert attained_slope(beyond, witness.norm, x, d) == 0.0


def test_limits_of_the_reward() -> None:
    found = certify_reward(reward_of_net(linear([1, 1, 1, 1])), method="product")
    assert (found.low, found.high) == (0.0, None)
    found = certify_reward(reward_of_net(linear([1, 1, 1, 1]), "airl", clip=5.0), method="product")
    assert (found.low, found.high) == (-5.0, 5.0)


def test_a_region_gives_smaller_bounds() -> None:
    reward = reward_of_net(constructed(1.0, activation="tanh"))
    region = Box((0.9,) * 4, (1.1,) * 4)
    local = certify_reward(reward, region=region).of("all", "raw")
    assert local.logit.region == region
    assert local.logit.bound < certify_reward(reward).of("all", "raw").logit.bound
    assert region.contains(np.array(local.reward_witness.x))


def test_the_absorbing_bit_does_not_count() -> None:
    """z = 2 x0 + 100 bit + a: between real states, 2 per state and sqrt(5) in all."""
    reward = LearnedReward(linear([2, 100, 1]), "airl", "state-action", 1, absorbing=np.array([0, 1.0, 0]))
    found = certify_reward(reward)
    assert found.of("all").reward == pytest.approx(5**0.5, rel=1e-6)
    assert found.of("state").reward == pytest.approx(2, rel=1e-6)
    assert found.of("all").reward_witness.direction[1] == 0
    with pytest.raises(UserError, match="no normalised units"):
        block_norm(reward, "all", "normalised")


def test_certificates_are_stored_whole_and_checked(tmp_path: Path) -> None:
    reward = reward_of_net(constructed())
    found = certify_reward(reward)
    path = tmp_path / "certificate.json"
    found.save(path)
    loaded = RewardCertificate.load(path)
    assert loaded == found and loaded.verify(reward)
    other = reward_of_net(constructed(seed=1))
    assert not loaded.verify(other) and not loaded.verify(replace(reward, form="airl"))
    one = found.slopes[0]
    for wrong in (
        replace(one, reward=one.reward * 0.999),
        replace(one, block="state"),
        replace(one, units="normalised"),
        replace(one, logit=replace(one.logit, bound=one.logit_witness.bound * 0.9)),
        replace(one, reward_witness=replace(one.reward_witness, bound=one.reward)),
        replace(one, logit_witness=replace(one.logit_witness, bound=one.logit.bound * 1.1)),
    ):
        assert not replace(found, slopes=(wrong, *found.slopes[1:])).verify(reward)
    assert not replace(found, high=3.0).verify(reward)
    data = json.loads(path.read_text())
    for text in ("", "{}", json.dumps(data | {"slopes": [1]}), json.dumps(data | {"format": "other"})):
        path.write_text(text)
        with pytest.raises(UserError, match=r"certificate"):
            RewardCertificate.load(path)
    with pytest.raises(UserError, match="no certificate at"):
        RewardCertificate.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="known: all in raw units"):
        found.of("next")


def test_bad_requests_are_refused() -> None:
    reward = reward_of_net(linear([1, 1, 1, 1]))
    for keywords, message in (
        ({"method": "sandwhich"}, "unknown method"),
        ({"region": Box((0.0,), (1.0,))}, "region has 1 entries"),
    ):
        with pytest.raises(UserError, match=message):
            certify_reward(reward, **keywords)  # type: ignore[arg-type]


def test_progress_names_what_is_computed() -> None:
    said = list[str]()
    certify_reward(reward_of_net(linear([1, 1, 1, 1])), method="product", progress=said.append)
    assert said == ["all, raw units: product", "state, raw units: product", "action, raw units: product"]


def test_c_validity_is_one_for_a_lipschitz_logit_and_falls_with_the_weights() -> None:
    x = np.random.default_rng(2).normal(size=(500, 4)) * SCALE + np.arange(4.0)
    values = [c_validity(gradient_norms(constructed(k), x, scale=SCALE)) for k in (1.0, 20.0, 60.0, 200.0)]
    assert values[0] == 1.0 and values[0] > values[1] > values[2] > values[3] >= 0
    norms = np.array([0.5, 1.0, 2.0, 3.0])
    assert c_validity(norms) == pytest.approx((2 + np.exp(-1) + np.exp(-4)) / 4)
    assert c_validity(norms, k=2.0) == pytest.approx((3 + np.exp(-1)) / 4)


def test_norms_of_gradients_and_jacobians() -> None:
    net, x = constructed(activation="tanh"), np.random.default_rng(3).normal(size=(50, 4))
    h = 1e-6
    numeric = np.stack([(net(x + h * e) - net(x - h * e))[:, 0] / (2 * h) for e in np.eye(4)], -1)
    assert np.allclose(gradient_norms(net, x), np.linalg.norm(numeric, axis=1), rtol=1e-6)
    assert np.allclose(gradient_norms(net, x, scale=SCALE), np.linalg.norm(numeric * SCALE, axis=1), rtol=1e-6)
    rng = np.random.default_rng(4)
    two = PlainNet.mlp([np.array([[1.0, 0], [-1.0, 0]])], [np.zeros(2)], [])
    assert np.allclose(jacobian_norms(two, rng.normal(size=(3, 2))), 2**0.5)  # the sum of the outputs is constant
    found = gradient_percentiles(np.arange(101.0))
    assert (found.median, found.p95, found.p99, found.largest) == (50.0, 95.0, 99.0, 100.0)


def test_bad_batches_are_refused() -> None:
    net = constructed()
    for call in (
        lambda: gradient_norms(net, np.zeros((5, 3))),
        lambda: gradient_norms(net, np.zeros(4)),
        lambda: gradient_norms(net, np.zeros((0, 4))),
        lambda: gradient_norms(net, np.full((5, 4), np.nan)),
        lambda: gradient_norms(net, np.zeros((5, 4)), scale=np.ones(3)),
        lambda: gradient_norms(PlainNet.mlp([np.ones((2, 4))], [np.zeros(2)], []), np.zeros((5, 4))),
        lambda: jacobian_norms(net, np.zeros((5, 3))),
        lambda: c_validity([]),
        lambda: c_validity([np.nan]),
        lambda: c_validity([1.0], k=-1.0),
        lambda: gradient_percentiles([-1.0]),
    ):
        with pytest.raises(UserError):
            call()


@pytest.mark.parametrize("family", ["orthogonal", "aol"])
def test_layers_with_group_activations_have_a_quick_bound_without_multipliers(family: str) -> None:
    """At most the k of the construction; the method own says what to use, since it has nothing to go by."""
    reward = reward_of_net(constructed(3.0, family=family, activation="maxmin"))
    found = proved_slopes(reward)
    assert found["all", "normalised"] <= 3 * (1 + 1e-9) and found["all", "raw"] <= 3 / SCALE.min() * (1 + 1e-9)
    x = np.random.default_rng(5).normal(size=(2000, 4)) * SCALE + np.arange(4.0)
    slopes = reward.logit.jacobian(x)[:, 0]
    for block in reward.blocks:
        for units, scale in (("raw", np.ones(4)), ("normalised", SCALE)):
            steepest = np.linalg.norm(slopes * scale * reward.columns(block), axis=1).max()
            assert 0.2 * found[block, units] < steepest <= found[block, units]  # type: ignore[index]
    huge = replace(reward, logit=linear([1e308, 1e308, 1e308, 1e308]))
    with pytest.raises(UserError, match="weights overflow"):
        proved_slopes(huge)
    with pytest.raises(UserError, match="'own' gives no bound .*; the method auto runs all that apply"):
        certify_reward(reward, method="own")


def test_a_certificate_without_every_block_and_unit_is_not_verified() -> None:
    reward = reward_of_net(constructed())
    found = certify_reward(reward, method="own")
    assert found.verify(reward) and len(found.slopes) == 6
    assert not replace(found, slopes=()).verify(reward)
    for k in range(6):
        assert not replace(found, slopes=found.slopes[:k] + found.slopes[k + 1 :]).verify(reward)
    assert not replace(found, slopes=(*found.slopes[:5], found.slopes[0])).verify(reward)
