"""Behaviour cloning: the contract of Stable-Baselines3, the bound, the update, and that it learns."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.agents.bc import BC, BCSettings, build, load
from lipctrl.certify.bracket import certify
from lipctrl.demos.collect import record
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.norms import NormPair
from lipctrl.policy import linear_policy

DI = "lipctrl/DoubleIntegrator-v0"
GAIN = lqr([[1, 1], [0, 1]], [[0], [1]], np.eye(2), [[0.1]]).K  # 2-norm 1.65057616


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    policy = linear_policy(GAIN, np.array([-1e3]), np.array([1e3]))
    env = gymnasium.make(DI)
    return record(env, policy, expert="LQR", episodes=6, dither=0.3, seed=0, versions={}, max_steps=30)


def agent(demos: Demonstrations, **changes: object) -> BC:
    settings = BCSettings(hidden=(8, 8), updates=60, batch_size=64, **changes)  # type: ignore[arg-type]
    return build(settings, gymnasium.make(DI), demos)


def test_same_seed_same_weights_other_seed_other_weights(demos: Demonstrations) -> None:
    nets = [agent(demos, seed=s).learn(40).policy.to_plain() for s in (0, 0, 1)]
    assert nets[0].sha256() == nets[1].sha256() != nets[2].sha256()


def test_plain_network_is_the_policy(demos: Demonstrations) -> None:
    model = agent(demos).learn(30)
    x = np.random.default_rng(0).normal(size=(50, 2))
    assert np.allclose(model.predict(x)[0], model.policy.to_plain()(x), atol=2e-6)


@pytest.mark.parametrize("lip", [0.3, 1.7, 20.0])
def test_the_setting_bounds_the_deployed_policy_in_raw_units(demos: Demonstrations, lip: float) -> None:
    net = agent(demos, lip=lip).learn(60).policy.to_plain()
    bracket = certify(net)
    assert bracket.upper.verify(net) and bracket.lower.bound <= bracket.upper.bound <= lip * (1 + 1e-5)


def test_normalised_units_bound_the_map_between_divided_signals(demos: Demonstrations) -> None:
    """Signals in other units give the same policy in those units, and the bound holds in the data's deviations."""
    scale_x, scale_u = np.array([1e-3, 50.0]), 1e5
    scaled = replace(
        demos, observations=demos.observations * scale_x, actions=demos.actions * scale_u, labels=demos.labels * scale_u
    )
    nets = []
    for data in (demos, scaled):
        model = agent(data, units="normalised", lip=0.9).learn(60)
        net = model.policy.to_plain().without_limits()
        x, u = model._train[0].numpy(), model._train[1].numpy()
        norm = NormPair(input_scale=tuple(x.std(0)), output_scale=tuple(u.astype(np.float64).std(0)))
        assert 0.3 < certify(net, norm).upper.bound <= 0.9 * (1 + 1e-5)
        nets.append(net)
    y = np.random.default_rng(0).normal(size=(40, 2))
    assert np.allclose(nets[0](y) * scale_u, nets[1](y * scale_x), rtol=1e-3, atol=1e-3 * scale_u)


def test_save_load_predict_and_go_on_training(demos: Demonstrations, tmp_path: Path) -> None:
    model = agent(demos).learn(20)
    model.save(tmp_path / "m.zip")
    again = load(tmp_path / "m.zip", gymnasium.make(DI), demos)
    x = np.random.default_rng(1).normal(size=(9, 2))
    assert np.array_equal(model.predict(x)[0], again.predict(x)[0])
    straight = agent(demos).learn(20)
    straight.learn(50, reset_num_timesteps=False)
    again.learn(50, reset_num_timesteps=False)
    assert again.num_timesteps == 50 and again.policy.to_plain().sha256() == straight.policy.to_plain().sha256()


def test_damaged_checkpoint(demos: Demonstrations, tmp_path: Path) -> None:
    agent(demos).save(tmp_path / "m.zip")
    data = (tmp_path / "m.zip").read_bytes()
    (tmp_path / "m.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="whole"):
        load(tmp_path / "m.zip", gymnasium.make(DI))


def test_callbacks_can_stop_training(demos: Demonstrations) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 7

    assert agent(demos).learn(60, callback=Stop()).num_timesteps == 7


def test_one_update_is_one_adam_step_on_the_relative_loss(demos: Demonstrations) -> None:
    model, twin = agent(demos), agent(demos)
    chosen = twin._batch(0)
    x, u = twin._train[0][chosen], twin._train[1][chosen]
    loss = ((twin.policy(x) - u) ** 2).mean() / 2 / (twin._train[1] ** 2).mean()
    gradients = torch.autograd.grad(loss, list(twin.policy.parameters()))
    assert model.train(1e-3) == pytest.approx(loss.item(), rel=1e-6)
    # Adam's first step is the learning rate times the sign of the gradient (where it is not tiny).
    for before, after, gradient in zip(twin.policy.parameters(), model.policy.parameters(), gradients, strict=True):
        clear = gradient.abs() > 1e-5
        assert torch.allclose((before - after)[clear], 1e-3 * gradient.sign()[clear], rtol=2e-2)


def test_batches_of_an_epoch_are_a_permutation(demos: Demonstrations) -> None:
    model = agent(demos)
    x, _ = model._train
    per_epoch = len(x) // 64
    seen = torch.cat([model._batch(k) for k in range(per_epoch)])
    assert len(torch.unique(seen)) == 64 * per_epoch


def test_validation_episodes_are_kept_apart(demos: Demonstrations) -> None:
    model = agent(demos, validation=0.34)
    train = {tuple(row) for row in model._train[0].tolist()}
    assert not train & {tuple(row) for row in model._validate[0].tolist()}
    assert len(model._validate[0]) == 60 and len(model._train[0]) == 120


def test_wrong_sizes_and_missing_demonstrations(demos: Demonstrations) -> None:
    with pytest.raises(UserError, match="demonstrations have observations"):
        BC("BCPolicy", gymnasium.make("InvertedPendulum-v5"), demos)
    with pytest.raises(UserError, match="needs demonstrations"):
        BC("BCPolicy", gymnasium.make(DI)).learn(3)
    with pytest.raises(ValueError, match="positive"):
        BCSettings(lip=-1.0)
    with pytest.raises(ValueError, match="null only"):
        BCSettings(lip=None)
    with pytest.raises(ValueError, match="target_loss"):
        BCSettings(target_loss=-1.0)
    with pytest.raises(ValueError, match="must not be negative"):
        BCSettings(dagger_rounds=-1)
    with pytest.raises(UserError, match="differentiable"):
        agent(demos, jacobian_weight=1.0)


EXPERT = linear_policy(GAIN, np.array([-1e3]), np.array([1e3]))


def test_jacobians_of_policy_and_plain_network_agree(demos: Demonstrations) -> None:
    model = agent(demos).learn(20)
    x = np.random.default_rng(2).normal(size=(7, 2))
    expected = model.policy.to_plain().without_limits().jacobian(x)
    assert np.allclose(model.policy.jacobian(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-5)


def test_matching_jacobians_adds_their_relative_mismatch_to_the_gradient(demos: Demonstrations) -> None:
    settings = BCSettings(hidden=(8, 8), batch_size=64, jacobian_weight=0.7)
    model, twin = (build(settings, gymnasium.make(DI), demos, EXPERT) for _ in range(2))
    chosen = twin._batch(0)
    x, u = twin._train[0][chosen], twin._train[1][chosen]
    square = (twin._train[1] ** 2).mean()
    mismatch = twin.policy.jacobian(x)[:, 0] + torch.from_numpy(GAIN).float()
    scale = float(twin.policy.observation_scale)
    loss = ((twin.policy(x) - u) ** 2).mean() / 2 / square + 0.7 * scale**2 * (mismatch**2).sum(1).mean() / 2 / square
    gradients = torch.autograd.grad(loss, list(twin.policy.parameters()), allow_unused=True)
    model.train(1e-3)
    for p, gradient in zip(model.policy.parameters(), gradients, strict=True):
        if gradient is not None:
            assert p.grad is not None and torch.allclose(p.grad, gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_smallest_bound_for_a_loss_margin_from_above_and_from_below(demos: Demonstrations) -> None:
    """Both come to the same bound, with the loss at its margin. It is below the expert's gain, which has no loss."""
    bounds = []
    for start in (0.3, 5.0):
        settings = BCSettings(lip=start, target_loss=1e-3, hidden=(32, 32))
        model = build(settings, gymnasium.make(DI), demos).learn(2000)
        assert model.history[-1]["train/loss"] == pytest.approx(1e-3, rel=0.1)
        bounds.append(model.history[-1]["train/bound"])
        net = model.policy.to_plain()
        assert certify(net).upper.bound == pytest.approx(bounds[-1], rel=1e-3)
    assert bounds[0] == pytest.approx(bounds[1], rel=0.02) and 1.3 < bounds[0] < 1.6505


@pytest.mark.slow
def test_a_constraint_on_an_ordinary_network_holds_at_the_data_and_not_everywhere(demos: Demonstrations) -> None:
    settings = BCSettings(lip=1.2, family="unconstrained", hidden=(32, 32))
    net = build(settings, gymnasium.make(DI), demos).learn(2000).policy.to_plain().without_limits()
    at_data = np.linalg.norm(net.jacobian(demos.pairs()[0]), 2, axis=(1, 2)).max()
    assert at_data == pytest.approx(1.2, rel=0.02) and certify(net).upper.bound > 1.3


@pytest.mark.slow
def test_it_learns_the_expert_when_the_bound_allows_and_not_when_it_forbids(demos: Demonstrations) -> None:
    """A gain of 1.65 is within a bound of 1.7; within 0.8 the error on radius r is at least (1.65 - 0.8) r."""
    x, u = demos.pairs()
    errors = {}
    for lip in (0.8, 1.7):
        settings = BCSettings(lip=lip, hidden=(32, 32), updates=2000)
        net = build(settings, gymnasium.make(DI), demos).learn(2000).policy.to_plain()
        errors[lip] = float(np.linalg.norm(net(x) - u, axis=1).max())
    assert errors[1.7] < 0.03 and errors[0.8] > 10 * errors[1.7]
