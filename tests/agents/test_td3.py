"""TD3's update against Stable-Baselines3's own; critics that predict distributions against loops over atoms."""

from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from lipctrl.agents.gail import GAIL, GailSettings
from lipctrl.agents.gail_learner import deterministic_update
from lipctrl.agents.td3 import SUPPORT, Td3Settings, bootstrapped, clipped, critic_loss, expectation
from lipctrl.agents.update import Batch

SHAPE = {"net_arch": [32, 32]}
AS_SB3 = Td3Settings(soft_minimum=1.0, loss="squared", delay=1, clip=1e9)


def batch(rng: np.random.Generator, size: int = 32) -> Batch:
    def normal(*shape: int) -> torch.Tensor:
        return torch.as_tensor(rng.normal(size=(1, size, *shape)), dtype=torch.float32)

    going = torch.as_tensor(rng.uniform(size=(1, size)) < 0.8, dtype=torch.float32)
    unused = torch.zeros(1, 1, 1)
    return Batch(normal(3), normal(1).clamp(-1, 1), normal(), normal(3), going, normal(1), normal(1), unused, unused)


@pytest.mark.parametrize(("policy", "shape"), [("MlpPolicy", SHAPE), ("LipschitzMlpPolicy", {"lip": 5.0, **SHAPE})])
def test_200_updates_are_those_of_stable_baselines3(policy: str, shape: dict[str, Any]) -> None:
    ours = GAIL(
        policy, "Pendulum-v1", seed=1, td3=AS_SB3, imitation=GailSettings(layer_norm=False), policy_kwargs=dict(shape)
    )
    theirs = stable_baselines3.TD3(
        policy, "Pendulum-v1", seed=1, policy_delay=1, learning_rate=3e-4, policy_kwargs=dict(shape)
    )
    theirs.policy.load_state_dict(ours.policy.state_dict())
    theirs.set_logger(Logger(None, []))
    update, rng = deterministic_update([ours]), np.random.default_rng(0)
    update.rate.fill_(3e-4)
    start = {name: value.clone() for name, value in ours.policy.state_dict().items()}
    for k in range(200):
        one = batch(rng)
        torch.manual_seed(k)
        one.next_noise = torch.empty_like(one.actions[0]).normal_(0, 0.2)[None] / 0.2
        parts = (one.states, one.actions, one.next_states, 1 - one.going[..., None], one.rewards[..., None])
        samples = ReplayBufferSamples(*[part[0] for part in parts], None)  # type: ignore[arg-type]
        theirs.replay_buffer.sample = lambda *_, samples=samples, **__: samples  # type: ignore[union-attr, method-assign]
        torch.manual_seed(k)
        theirs.train(gradient_steps=1, batch_size=32)
        update.step(one, act=True)
    expected = theirs.policy.state_dict()
    for name, value in ours.policy.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)
    assert max(float((value - start[name]).abs().max()) for name, value in expected.items()) > 1e-2


def test_the_actor_waits() -> None:
    agent = GAIL("MlpPolicy", "Pendulum-v1", seed=1, policy_kwargs=SHAPE)
    update, rng = deterministic_update([agent]), np.random.default_rng(0)
    update.rate.fill_(1e-3)
    before = [leaf.clone() for leaf in update.actors.leaves]
    update.step(batch(rng), act=False)
    assert all(torch.equal(a, b) for a, b in zip(before, update.actors.leaves, strict=True))
    update.step(batch(rng), act=True)
    assert not any(torch.equal(a, b) for a, b in zip(before, update.actors.leaves, strict=True))
    assert float(update.count) == 2 and float(update.actor_count) == 1


def test_the_soft_minimum_is_between_the_critics() -> None:
    predicted = torch.tensor([[[[1.0]], [[3.0]]]])
    target = bootstrapped(Td3Settings(soft_minimum=0.75), predicted, torch.tensor([[0.5]]), torch.tensor([[0.9]]))
    assert float(target) == pytest.approx(0.5 + 0.9 * (0.75 * 1 + 0.25 * 3))


def test_gradients_are_clipped_for_each_agent_by_itself() -> None:
    slopes = [torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[4.0], [0.4]])]
    found = clipped(slopes, 1.0)
    torch.testing.assert_close(found[0], torch.tensor([[0.6, 0.0], [0.3, 0.0]]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], torch.tensor([[0.8], [0.4]]), rtol=1e-5, atol=1e-6)


def test_the_categorical_projection_atom_by_atom() -> None:
    """Bellemare et al. 2017, algorithm 1, one atom after the other."""
    settings, rng = Td3Settings(critic="c51", atoms=11), np.random.default_rng(0)
    predicted = torch.as_tensor(rng.normal(size=(2, 1, 5, 11)))
    rewards, discount = torch.as_tensor(60 * rng.normal(size=(2, 5))), torch.as_tensor(rng.uniform(0, 1, (2, 5)))
    found = bootstrapped(settings, predicted, rewards, discount)
    low, high = SUPPORT
    atoms, width = np.linspace(low, high, 11), (high - low) / 10
    for i in range(2):
        for j in range(5):
            expected, p = np.zeros(11), predicted[i, 0, j].softmax(0).numpy()
            for q, z in zip(p, atoms, strict=True):
                b = (np.clip(float(rewards[i, j]) + float(discount[i, j]) * z, low, high) - low) / width
                lower, upper = int(np.floor(b)), int(np.ceil(b))
                expected[lower] += q * (upper - b) if upper > lower else q
                if upper > lower:
                    expected[upper] += q * (b - lower)
            np.testing.assert_allclose(found[i, j].numpy(), expected, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_of_two_distributions_the_one_of_the_smaller_mean_is_the_target() -> None:
    settings = Td3Settings(critic="quantile", atoms=3)
    predicted = torch.tensor([[[[0.0, 10.0, 20.0]], [[5.0, 6.0, 7.0]]]])
    found = bootstrapped(settings, predicted, torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    torch.testing.assert_close(found, torch.tensor([[[3.5, 4.0, 4.5]]]))


@pytest.mark.parametrize("kind", ["c51", "quantile"])
def test_critics_that_predict_distributions_learn_a_known_one(kind: Any) -> None:
    """Rewards +-20 with equal odds, nothing after: the mean is 0, the quartiles are at -20 and 20."""
    settings, g = Td3Settings(critic=kind, atoms=21), torch.Generator().manual_seed(0)
    predicted = torch.zeros(1, 1, 1, 21, requires_grad=True)
    optimizer = torch.optim.Adam([predicted], lr=0.1)
    for _ in range(800):
        rewards = 20.0 * (2 * torch.randint(2, (1, 64), generator=g) - 1)
        target = bootstrapped(settings, torch.zeros(1, 1, 64, 21), rewards, torch.zeros(1, 64))
        loss = critic_loss(settings, predicted.expand(-1, -1, 64, -1), target).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learned = predicted.detach()[0, 0, 0]
    assert float(expectation(settings, learned)) == pytest.approx(0, abs=2.5)
    if kind == "quantile":
        assert [float(learned[3]), float(learned[17])] == pytest.approx([-20, 20], abs=1)
    else:
        p = learned.softmax(0)
        assert [float(p[8]), float(p[12])] == pytest.approx([0.5, 0.5], abs=0.05)
