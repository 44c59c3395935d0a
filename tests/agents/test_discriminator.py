"""Discriminators: slopes and penalties against closed forms, autograd and finite differences; forms of the loss."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lipctrl.agents.discriminator import Discriminators, Pairs, RewardSettings

N, BIT, M, BATCH = 3, 1, 2, 16
NONE = RewardSettings(regulariser="none", hidden=(8, 8), entropy=0.0)


def made(agents: int = 2, **others: Any) -> Discriminators:
    settings = RewardSettings(**{"hidden": (8, 8), **others})
    return Discriminators(N + BIT + M, N + BIT, settings, list(range(agents)), torch.device("cpu"))


def doubled(judge: Discriminators) -> Discriminators:
    """With weights of unit size in float64, for finite differences."""
    g = torch.Generator().manual_seed(5)
    judge.leaves = [torch.randn(leaf.shape, generator=g, dtype=torch.float64) for leaf in judge.leaves]
    judge.right = [functional.normalize(v.double(), dim=-1) for v in judge.right]
    return judge


def pairs(agents: int = 2, dtype: torch.dtype = torch.float32, *, hidden: int = 0, noise: bool = True) -> Pairs:
    g = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn((agents, *shape), generator=g, dtype=dtype)

    def uniform(*shape: int) -> Tensor:
        return torch.rand((agents, *shape), generator=g, dtype=dtype)

    d = N + BIT + M
    return Pairs(
        normal(BATCH, d),
        normal(BATCH, d) + 1,
        uniform(BATCH, 2),
        normal(BATCH, d if noise else 0),
        uniform(BATCH),
        uniform(BATCH),
        uniform(2 * BATCH, hidden),
    )


@pytest.mark.parametrize("spectral", [False, True])
def test_slopes_are_the_gradients_of_the_logits(spectral: bool) -> None:
    judge = doubled(made(spectral=spectral))
    x = pairs(dtype=torch.float64).agent.requires_grad_()
    (expected,) = torch.autograd.grad(judge.logits(judge.leaves, x).sum(), x)
    torch.testing.assert_close(judge.slopes(judge.leaves, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spectral", [False, True])
@pytest.mark.parametrize("regulariser", ["one-sided", "two-sided", "r1"])
def test_gradient_of_the_penalty_by_finite_differences(regulariser: Any, spectral: bool) -> None:
    judge = doubled(made(agents=1, regulariser=regulariser, spectral=spectral, k=0.3))
    points = judge.points(pairs(1, torch.float64))
    leaves = [leaf.clone().requires_grad_() for leaf in judge.leaves]
    found = torch.autograd.grad(judge.penalty(leaves, points).sum(), leaves, allow_unused=True)
    slopes = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)]
    assert sum(float(slope.abs().max()) > 1e-3 for slope in slopes) >= 3
    g = torch.Generator().manual_seed(0)
    for k, slope in enumerate(slopes):
        direction = torch.randn(slope.shape, generator=g, dtype=torch.float64)
        moved = [
            judge.penalty(
                [leaf + s * 1e-6 * direction if j == k else leaf for j, leaf in enumerate(judge.leaves)], points
            )
            for s in (1, -1)
        ]
        expected = float((moved[0] - moved[1]).sum()) / 2e-6
        assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("size", "one_sided", "two_sided", "r1"), [(0.5, 0.0, 0.25, 0.25), (3.0, 4.0, 4.0, 9.0)])
def test_penalties_of_a_linear_logit(size: float, one_sided: float, two_sided: float, r1: float) -> None:
    for kind, expected in (("one-sided", one_sided), ("two-sided", two_sided), ("r1", r1)):
        judge = made(agents=1, regulariser=kind, hidden=(1,))
        w = torch.zeros(1, 1, N + BIT + M)
        w[..., 1] = size
        judge.leaves = [w, torch.full((1, 1), 1e3), torch.ones(1, 1, 1), torch.zeros(1, 1)]  # the neuron is always on
        points = judge.points(pairs(1))
        torch.testing.assert_close(judge.penalty(judge.leaves, points), torch.tensor([expected]), rtol=1e-5, atol=1e-6)


def test_points_of_the_penalty() -> None:
    both = pairs()
    ones, zeros = replace(both, share=torch.ones_like(both.share)), replace(both, share=torch.zeros_like(both.share))
    for kind in ("segment", "rectangle"):
        judge = made(points=kind)
        torch.testing.assert_close(judge.points(ones), both.agent)
        torch.testing.assert_close(judge.points(zeros), both.expert)
    segment, rectangle = made(points="segment").points(both), made(points="rectangle").points(both)
    torch.testing.assert_close(segment[..., : N + BIT], rectangle[..., : N + BIT])
    share = (segment - both.expert) / (both.agent - both.expert)
    torch.testing.assert_close(share.amax(-1), share.amin(-1), rtol=1e-3, atol=1e-4)  # one weight: on the segment
    share = ((rectangle - both.expert) / (both.agent - both.expert))[..., N + BIT :]
    torch.testing.assert_close(share, both.share[..., 1:].expand_as(share), rtol=1e-3, atol=1e-4)
    for kind, centre in (("dragan", both.expert), ("nagard", both.agent)):
        torch.testing.assert_close(made(points=kind, spread=2.0).points(both), centre + 2 * both.noise)


def test_the_loss_is_the_published_one() -> None:
    """E softplus(z) of the agent + E BCE(z, label) of the expert - weight * entropy, each by its definition."""
    judge, both = made(smoothing=(0.7, 1.2), entropy=0.3), pairs()
    fake, real = judge.logits(judge.leaves, both.agent).double(), judge.logits(judge.leaves, both.expert).double()
    label = (0.7 + 0.5 * both.label).double()
    bce = -(label * real.sigmoid().log() + (1 - label) * (1 - real.sigmoid()).log())
    p = torch.cat([fake, real], 1).sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    expected = -(1 - fake.sigmoid()).log().mean(1) + bce.mean(1) - 0.3 * entropy.mean(1)
    torch.testing.assert_close(
        judge.loss(partial(judge.logits, judge.leaves), both).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_mixup_labels_by_the_share_of_the_expert() -> None:
    both = pairs()
    judge = Discriminators(N + BIT + M, N + BIT, replace(NONE, mixup=True), [0, 1], torch.device("cpu"))
    only_expert = replace(both, mixture=torch.ones_like(both.mixture))
    z = judge.logits(judge.leaves, both.expert)
    expected = 2 * functional.binary_cross_entropy_with_logits(z, torch.ones_like(z), reduction="none").mean(-1)
    torch.testing.assert_close(judge.loss(partial(judge.logits, judge.leaves), only_expert), expected)


def test_dropout_leaves_out_and_keeps_the_mean() -> None:
    judge = made(dropout=0.25, regulariser="none")
    kept = judge._kept(torch.rand(2, 4000, 8, generator=torch.Generator().manual_seed(0)))
    assert kept is not None
    assert kept.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)


def test_weight_decay_shrinks_matrices_beside_adam() -> None:
    plain, decayed = made(regulariser="none"), made(regulariser="none", weight_decay=10.0)
    before = [leaf.clone() for leaf in plain.leaves]
    for judge in (plain, decayed):
        judge.step(*pairs().tensors())
    rate = plain.settings.learning_rate
    for k, (a, b, start) in enumerate(zip(plain.leaves, decayed.leaves, before, strict=True)):
        shift = -10 * rate * start if k % 2 == 0 else torch.zeros_like(start)
        torch.testing.assert_close(b - a, shift, rtol=1e-3, atol=1e-7)


def test_the_penalty_enters_the_step_by_its_weight() -> None:
    """A heavy penalty wins: the slopes at its points come to k; without one they do not."""
    found = {}
    for weight in (1e-6, 1e3):
        judge, both = made(regulariser="two-sided", weight=weight, k=0.5), pairs()
        judge.rate.fill_(1e-2)
        for _ in range(400):
            judge.step(*both.tensors())
        found[weight] = judge.slopes(judge.leaves, judge.points(both)).norm(dim=-1)
    assert float((found[1e3] - 0.5).abs().max()) < 0.1 < float((found[1e-6] - 0.5).abs().max())


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"regulariser": "none"},
        {"regulariser": "certified"},
        {"regulariser": "certified", "family": "orthogonal"},
        {"regulariser": "two-sided", "points": "rectangle", "spectral": True, "smoothing": (0.7, 1.2)},
        {"points": "dragan", "dropout": 0.5},
        {"regulariser": "r1", "points": "nagard", "mixup": True, "weight_decay": 1.0},
    ],
)
def test_steps_tell_pairs_apart_and_agents_do_not_see_each_other(others: dict[str, Any]) -> None:
    judge, both = made(**others), pairs(hidden=16 if "dropout" in others else 0)
    first = judge.step(*both.tensors())
    other = made(**others)
    second = replace(both, agent=both.agent.clone(), expert=both.expert.clone())
    second.agent[1], second.expert[1] = 7.0, -3.0
    other.step(*second.tensors())
    for mine, theirs in zip(judge.leaves, other.leaves, strict=True):
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-7)
        assert not torch.equal(mine[1], theirs[1]) or mine[1].ndim == 1
    judge.rate.fill_(5e-3)
    for _ in range(300):
        last = judge.step(*both.tensors())
    assert (last[:, 0] < first[:, 0] - 0.05).all()


@pytest.mark.parametrize("family", ["sandwich", "orthogonal"])
@pytest.mark.parametrize("k", [0.5, 2.0])
def test_a_certified_logit_never_exceeds_its_slope(family: str, k: float) -> None:
    """Trained to be as steep as it can, then attacked by ascent on the secant's slope."""
    judge, both = made(agents=1, regulariser="certified", family=family, k=k), pairs(1)
    judge.rate.fill_(1e-2)
    for _ in range(150):
        judge.step(*both.tensors())
    net = judge.plain()
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(200, N + BIT + M, generator=g) for _ in range(2))
    for _ in range(50):
        a.requires_grad_(), b.requires_grad_()
        z = judge.logits(judge.leaves, torch.stack([torch.cat([a, b])]))[0]
        ratio = (z[:200] - z[200:]).abs() / (a - b).norm(dim=-1)
        slopes = torch.autograd.grad(ratio.sum(), [a, b])
        a, b = ((x + 0.05 * s).detach() for x, s in zip((a, b), slopes, strict=True))
    left, right = a.double().numpy(), b.double().numpy()
    found = np.abs(net(left) - net(right))[:, 0] / np.linalg.norm(left - right, axis=1)
    assert found.max() <= k * (1 + 1e-9)
    assert found.max() > 0.5 * k  # the bound is used
    slopes = judge.slopes(judge.leaves, both.agent)[0].norm(dim=-1)
    assert float(slopes.max()) <= k * (1 + 1e-4)


@pytest.mark.parametrize("others", [{}, {"spectral": True}, {"regulariser": "certified"}])
def test_the_plain_network_is_the_discriminator(others: dict[str, Any]) -> None:
    judge, both = made(**others), pairs()
    for _ in range(20):
        judge.step(*both.tensors())
    for k in range(2):
        expected = judge.logits(judge.leaves, both.agent)[k].detach().double().numpy()
        np.testing.assert_allclose(judge.alone(k).plain()(both.agent[k].double().numpy())[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("others", "part"),
    [
        ({"form": "fairl"}, "clip"),
        ({"k": 0.0}, "k must be positive"),
        ({"regulariser": "certified", "dropout": 0.1}, "certified"),
        ({"regulariser": "certified", "spectral": True}, "certified"),
        ({"dropout": 1.0}, "dropout"),
        ({"smoothing": (1.2, 0.7)}, "smoothing"),
        ({"smoothing": (1.0, 1.2)}, "mean of at most 1"),
        ({"mixup": True, "smoothing": (0.7, 1.2)}, "mixup"),
        ({"ratio": 0}, "ratio"),
        ({"family": "sandwhich"}, "family"),
    ],
)
def test_settings_that_make_no_sense(others: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        RewardSettings(**others)


@pytest.mark.parametrize("family", ["sandwich", "aol", "sll"])
def test_certified_rewards_use_the_maps_of_the_last_step(family: str) -> None:
    """Which are those of the network before it; alone, an agent has its maps of now."""
    judge = made(regulariser="certified", family=family, form="airl")
    x = pairs().agent
    before = judge.logits(judge.leaves, x)
    torch.testing.assert_close(judge.reward(x), before)
    judge.step(*pairs().tensors())
    torch.testing.assert_close(judge.reward(x), before)
    now = judge.logits(judge.leaves, x)
    assert float((now - before).abs().max()) > 1e-5
    torch.testing.assert_close(judge.alone(1).reward(x[1:]), now[1:])
    plain = torch.as_tensor(judge.alone(1).plain()(x[1].double().numpy())[:, 0]).float()
    torch.testing.assert_close(now[1], plain, rtol=1e-4, atol=1e-5)


def test_a_certified_reward_is_narrower_unless_told_otherwise() -> None:
    certified = RewardSettings(regulariser="certified")
    assert RewardSettings().widths == (64, 64) and certified.widths == (32, 32)
    assert replace(certified, hidden=(64, 64)).widths == (64, 64) and replace(certified, hidden=(8,)).widths == (8,)
    for settings in (certified, RewardSettings()):
        made = Discriminators(3, 2, settings, [0], torch.device("cpu")).plain()
        assert max(len(bias) for bias in made.biases) == settings.widths[0]
