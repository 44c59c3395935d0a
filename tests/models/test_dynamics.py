"""The Gaussian dynamics model against a system whose mean and noise are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lipctrl.files import UserError
from lipctrl.models.dynamics import Dynamics, DynamicsSettings

A = torch.tensor([[-0.2, 0.5], [-0.4, -0.1]])
B = torch.tensor([[0.3], [1.0]])
NOISE = torch.tensor([0.3, 0.1, 0.2])  # of the reward and of the two states


def outcome_mean(x: Tensor, u: Tensor) -> Tensor:
    return torch.cat([x.sum(-1, keepdim=True) - u, x @ A.T + u @ B.T], -1)


def transitions(rows: int, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, u = torch.randn(rows, 2, generator=g) * torch.tensor([3.0, 1.0]) + 1, torch.randn(rows, 1, generator=g)
    y = outcome_mean(x, u) + noise * NOISE * torch.randn(rows, 3, generator=g)
    return x, u, y[:, 0], x + y[:, 1:]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Tensor]]:
    """Rows and squared errors of every holdout evaluation, in order."""
    seen: list[tuple[int, Tensor]] = []
    holdout = Dynamics._holdout

    def watching(self: Dynamics, *check: Tensor) -> tuple[Tensor, Tensor]:
        result = holdout(self, *check)
        seen.append((len(check[0]), result[0]))
        return result

    monkeypatch.setattr(Dynamics, "_holdout", watching)
    return seen


def test_recovers_mean_and_noise_of_a_linear_gaussian_system() -> None:
    model = Dynamics(2, 1, DynamicsSettings(width=64, depth=2, cap=6000, patience=20))
    model.fit(*transitions(10_000))
    x, u, *_ = transitions(2000)
    mean, log_variance = model(torch.cat([x, u], -1))
    truth = outcome_mean(x, u)
    error = (mean[0] - truth).detach().square().mean(0).sqrt()
    assert (error < 0.02 * truth.std(0)).all(), error / truth.std(0)
    sigma = (0.5 * log_variance[0]).exp().mean(0).detach()
    torch.testing.assert_close(sigma, NOISE, rtol=0.1, atol=0)
    scaled = log_variance - 2 * model.unit.log()
    assert (scaled < model.highest).all() and (scaled > model.lowest).all()
    assert (model.highest != 0.5).all() and (model.lowest != -10).all()  # trained
    following, rewards = model.sample(x, u, torch.Generator().manual_seed(1))
    spread = torch.cat([rewards[:, None], following - x], -1) - truth
    torch.testing.assert_close(spread.std(0), NOISE, rtol=0.15, atol=0)


@pytest.mark.parametrize("probabilistic", [True, False])
def test_keeps_each_members_best_weights_and_the_best_members(
    probabilistic: bool, watched: list[tuple[int, Tensor]]
) -> None:
    settings = DynamicsSettings(
        members=4, elites=2, width=16, depth=2, probabilistic=probabilistic, learning_rate=0.02, batch=32
    )
    model = Dynamics(2, 1, settings)
    report = model.fit(*transitions(300))
    per_output = torch.stack([error for _, error in watched])  # (epochs, members, outputs)
    errors = (per_output / model.unit.square()).log().mean(-1).exp()
    lowest = errors[:-1].amin(0)
    assert (errors[-1] <= lowest / 0.99 * (1 + 1e-5)).all()  # a fall below one per cent does not count
    assert (errors[-2] > errors[-1] * 1.001).any()  # the last weights were worse for some member
    assert model.elites.tolist() == errors[-1].argsort()[:2].tolist()
    np.testing.assert_allclose(report.holdout_mse, per_output[-1].mean(-1), rtol=1e-6)
    assert report.epochs == len(watched) - 2 and report.steps <= 2000


def test_deterministic_model_has_no_noise() -> None:
    model = Dynamics(2, 1, DynamicsSettings(probabilistic=False, width=16, depth=2))
    model.fit(*transitions(500, noise=0.0))
    x, u, *_ = transitions(50)
    first, second = (model.sample(x, u, torch.Generator().manual_seed(k))[0] for k in (0, 1))
    assert torch.equal(first, second)


def test_members_are_those_of_separate_networks_and_elites_alone_predict() -> None:
    model = Dynamics(2, 1, DynamicsSettings(members=3, elites=1, width=8, depth=1))
    model.elites = torch.tensor([2])
    x, u, *_ = transitions(5)
    inputs = torch.cat([x, u], -1)
    mean, log_variance = model(inputs)
    h = torch.nn.functional.silu(inputs @ model.weights[0][1] + model.biases[0][1])
    torch.testing.assert_close(mean[1], (h @ model.weights[1][1] + model.biases[1][1])[:, :3])
    assert not torch.equal(log_variance[1], log_variance[2])


def test_every_elite_predicts_an_equal_share_of_the_rows_and_the_spread_is_the_mixtures() -> None:
    model = Dynamics(2, 1, DynamicsSettings(members=3, elites=2, width=8, depth=1, probabilistic=False))
    model.elites = torch.tensor([2, 0])
    x, u, *_ = transitions(8)
    mean = model(torch.cat([x, u], -1))[0].detach()
    following, rewards = model.sample(x, u, torch.Generator().manual_seed(4))
    found = torch.cat([rewards[:, None], following - x], -1)
    of = [torch.isclose(found, mean[k], atol=1e-5).all(-1) for k in range(3)]
    assert of[0].sum() == of[2].sum() == 4 and not of[1].any() and (of[0] ^ of[2]).all()
    torch.testing.assert_close(model.spread(x, u), ((mean[0] - mean[2]) / 2).abs()[:, 1:])
    noisy = Dynamics(2, 1, DynamicsSettings(width=8, depth=1))
    draws = torch.stack([noisy.sample(x, u, torch.Generator().manual_seed(k))[0] for k in range(4000)])
    torch.testing.assert_close(draws.std(0), noisy.spread(x, u), rtol=0.1, atol=0)


def test_a_fit_learns_small_outputs_beside_one_that_cannot_be_predicted() -> None:
    """Outputs of deviations 100 (noise) and 0.01 (exact): stopping by the raw error would end before the second."""
    g = torch.Generator().manual_seed(0)
    x, u = torch.randn(400, 2, generator=g), torch.randn(400, 1, generator=g)
    step = 0.01 * torch.stack([torch.sin(x[:, 0]), x[:, 1] * u[:, 0]], -1)
    model = Dynamics(2, 1, DynamicsSettings(width=64, depth=2))
    model.fit(x, u, 100 * torch.randn(400, generator=g), x + step)
    error = (model(torch.cat([x, u], -1))[0][0, :, 1:] - step).detach()
    assert (error.std(0) < 0.2 * step.std(0)).all()


@pytest.mark.parametrize(("rows", "held"), [(100, 20), (30_000, 5000)])
def test_cap_counts_gradient_steps_and_holdout_is_a_fifth_of_at_most_5000(
    rows: int, held: int, watched: list[tuple[int, Tensor]]
) -> None:
    report = Dynamics(2, 1, DynamicsSettings(width=4, depth=1, cap=7, patience=50)).fit(*transitions(rows))
    assert report.steps == 7 and {count for count, _ in watched} == {held}


def test_every_member_draws_its_training_rows_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n rows drawn n times a share of 1 - 1/e = 0.632 is seen, a permutation would see all."""
    drawn: list[Tensor] = []
    epoch = Dynamics._epoch

    def watching(self: Dynamics, inputs: Tensor, targets: Tensor, rows: Tensor, most: int) -> int:
        drawn.append(rows)
        return epoch(self, inputs, targets, rows, most)

    monkeypatch.setattr(Dynamics, "_epoch", watching)
    Dynamics(2, 1, DynamicsSettings(members=3, width=4, depth=1, cap=20)).fit(*transitions(2500))
    assert drawn[0].shape == (3, 2000) and all(torch.equal(rows, drawn[0]) for rows in drawn)
    for member in drawn[0]:
        assert len(member.unique()) / 2000 == pytest.approx(1 - np.exp(-1), abs=0.03)
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_a_diverging_fit_leaves_the_model_as_it_was() -> None:
    model = Dynamics(2, 1, DynamicsSettings(width=8, depth=1, learning_rate=1e30))
    before = [value.detach().clone() for value in (*model.weights, *model.biases, model.mean, model.std)]
    with pytest.raises(UserError, match="diverged"):
        model.fit(*transitions(500))
    for value, old in zip((*model.weights, *model.biases, model.mean, model.std), before, strict=True):
        assert torch.equal(value, old)
    assert not model.optimizer.state_dict()["state"]


def test_bad_inputs() -> None:
    x, u, r, y = transitions(10)
    with pytest.raises(UserError, match="finite"):
        Dynamics(2, 1, DynamicsSettings(width=4, depth=1)).fit(x, u, r * torch.nan, y)
    with pytest.raises(ValueError, match="elites"):
        DynamicsSettings(members=2, elites=3)
