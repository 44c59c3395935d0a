"""Pessimistic preconditioning: multipliers and Jacobians by autograd and NumPy, learned dynamics, whole updates."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

from lipctrl.agents.discriminator import RewardSettings
from lipctrl.agents.gail import GAIL, GailSettings
from lipctrl.agents.gail_learner import GailLearner
from lipctrl.agents.pessimism import Pessimism, PessimismSettings, preconditioned
from lipctrl.agents.sac_learner import compiled, train_together
from lipctrl.agents.update import Batch
from lipctrl.demos.demonstrations import Demonstrations, Trajectory

N, M, BIT = 3, 2, 1


def pessimism(seeds: tuple[int, ...] = (1, 2), **settings: Any) -> Pessimism:
    """With steep dynamics: the output matrices are drawn, not small."""
    chosen = PessimismSettings(**{"kind": "dynamics", "hidden": (16, 8), **settings})
    made = Pessimism(N, M, chosen, seeds, torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    for leaf in made.leaves[1::2]:
        leaf.copy_(torch.randn(leaf.shape, generator=draws))
    made.leaves[-2].copy_(torch.randn(made.leaves[-2].shape, generator=draws))
    return made


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn((*shape, N + BIT + M), generator=torch.Generator().manual_seed(seed))


def reference_norm(made: Pessimism, agent: int, x: Tensor) -> float:
    """Of the Jacobian of the next state at one input (d,) of a discriminator, by autograd."""
    pair = torch.cat([x[:N], x[N + BIT :]])

    def following(at: Tensor) -> Tensor:
        change: Tensor = made.changes(made.leaves, at.expand(len(made.seeds), 1, -1))[agent, 0]
        return at[:N] + change

    return float(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(following, pair)))


def test_slopes_are_norms_of_the_next_states_jacobian() -> None:
    made, x = pessimism(), inputs(2, 7)
    found = made.slopes(made.parts(x))
    for agent in range(2):
        for row in range(7):
            assert float(found[agent, row]) == pytest.approx(reference_norm(made, agent, x[agent, row]), rel=1e-5)


def test_multipliers_follow_the_definition() -> None:
    """Over two batches of windows that end early, with the running deviation of all penalties before and in them."""
    made = pessimism(threshold=1.3, multiplier=0.2)
    seen: list[list[float]] = [[], []]
    for batch in range(2):
        x, inside = inputs(2, 30, 4, seed=batch), torch.ones(2, 30, 4)
        inside[:, ::3, 2:] = 0
        found = made.multipliers(x, inside)
        assert isinstance(found, Tensor)
        for agent in range(2):
            penalties = []
            for row in range(30):
                steps = range(int(inside[agent, row].sum()))
                excess = [reference_norm(made, agent, x[agent, row, k]) - 1.3 * N**0.5 for k in steps]
                penalties.append(np.mean(np.maximum(excess, 0) ** 2))
            seen[agent] += penalties
            expected = np.clip(np.exp(-np.array(penalties) / max(np.std(seen[agent]), 0.1)), 0.2, 1)
            assert (expected < 1).sum() > 10 and len(np.unique(expected)) > 10
            np.testing.assert_allclose(found[agent], expected, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 10.0, 1e4])
def test_multipliers_are_between_the_smallest_and_one(scale: float) -> None:
    made = pessimism()
    made.leaves[-2].mul_(scale)
    found = made.multipliers(inputs(2, 200, 1), torch.ones(2, 200, 1))
    assert isinstance(found, Tensor)
    assert ((found >= PessimismSettings().multiplier) & (found <= 1)).all() and (found < 1).any()


def test_flat_dynamics_are_not_penalised() -> None:
    """Where every norm is at most the threshold, kappa is exactly one."""
    made, x = pessimism(), inputs(2, 50, 3)
    slopes = made.slopes(made.parts(x).flatten(1, 2))
    enough = float(slopes.max()) / N**0.5
    flat, not_quite = (pessimism(threshold=factor * enough) for factor in (1.0001, 0.99))
    assert torch.equal(flat.multipliers(x, torch.ones(2, 50, 3)), torch.ones(2, 50))  # type: ignore[arg-type]
    assert (not_quite.multipliers(x, torch.ones(2, 50, 3)) < 1).any()  # type: ignore[operator]


def test_a_linear_systems_jacobian_is_learned() -> None:
    a = torch.tensor([[0.9, 0.2, 0.0], [-0.3, 1.0, 0.1], [0.0, 0.0, 0.5]])
    b = torch.tensor([[0.0, 0.4], [0.2, 0.0], [0.1, 0.3]])
    made = Pessimism(N, M, PessimismSettings("dynamics", hidden=(32,), learning_rate=1e-2), (0,), torch.device("cpu"))
    for step in range(500):
        x = inputs(1, 64, seed=step)
        made.learn(x, x[..., :N] @ (a - torch.eye(N)).T + x[..., N + BIT :] @ b.T)
    found = made.jacobian(made.parts(inputs(1, 20, seed=1000)))[0]
    assert float((found - torch.cat([a, b], 1)).abs().max()) < 0.1


def agent(seed: int = 3, **others: Any) -> GAIL:
    """With a buffer of random transitions, some truncated, some terminal."""
    rng = np.random.default_rng(0)
    episodes = [
        Trajectory(rng.normal(size=(41, N)), a := rng.uniform(-1, 1, (40, 1)), a, np.zeros(40), k < 2, k >= 2)
        for k in range(4)
    ]
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [16, 16]}, "buffer_size": 300} | others
    demos = Demonstrations.from_trajectories(episodes, {})
    made = GAIL("MlpPolicy", "Pendulum-v1", seed=seed, device="cpu", demonstrations=demos, **settings)
    made.set_logger(Logger(None, []))
    assert made.replay_buffer is not None
    for k in range(200):
        x, y = rng.normal(size=(2, 1, N))
        info: list[dict[str, Any]] = [{"TimeLimit.truncated": k % 7 == 0}]
        made.replay_buffer.add(
            x, y, rng.uniform(-1, 1, (1, 1)), np.zeros(1), np.array([k % 7 == 0 or k % 5 == 0]), info
        )
    return made


def settings(kind: Any = "dynamics", n_step: int = 3, **others: Any) -> GailSettings:
    chosen = {"kind": kind, "hidden": (16,), "learning_rate": 1e-2, "threshold": 1.0, **others}
    return GailSettings(n_step=n_step, pessimism=PessimismSettings(**chosen))


def everything(made: GAIL) -> dict[str, Tensor]:
    state = {f"policy.{k}": v for k, v in made.policy.state_dict().items()} | dict(made.memory.state_dict())
    return {name: value.detach().clone() for name, value in state.items()}


def rewards_of(made: GAIL, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The rewards of its next update."""
    found: list[Tensor] = []
    learner = made.learner
    assert isinstance(learner, GailLearner)

    def step(batch: Batch, *, act: bool) -> Tensor:
        found.append(batch.rewards.clone())
        return torch.zeros(1, 3)

    monkeypatch.setattr(learner.stem, "step", step)
    made.train(1, 64)
    return found[0]


def test_a_constant_multiplier_scales_rewards_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of the absorbing state; a power of two, so that nothing is rounded."""
    plain = rewards_of(agent(imitation=GailSettings(n_step=3)), monkeypatch)
    scaled = rewards_of(agent(imitation=settings("constant", multiplier=0.5)), monkeypatch)
    assert torch.equal(scaled, 0.5 * plain) and plain.unique().numel() > 50


def test_steep_dynamics_scale_the_windows_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a buffer without ends, so that no absorbing state's share is in them."""
    reward = RewardSettings(absorbing=False)
    plain = rewards_of(agent(imitation=GailSettings(n_step=3), reward=reward), monkeypatch)
    made = agent(imitation=settings(threshold=0.9), reward=reward)
    learner = made.learner
    assert isinstance(learner, GailLearner)
    learner.pessimism.leaves[-2].normal_(0, 1, generator=torch.Generator().manual_seed(0))
    ratio = rewards_of(made, monkeypatch) / plain
    assert ((ratio > 0.7 - 1e-5) & (ratio < 1 + 1e-5)).all() and (ratio < 0.95).sum() > 10


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch needs g++")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, inside its compiler
def test_compiled_steps_are_the_plain_ones() -> None:
    """Of multipliers and dynamics alone; `test_gail.py` compiles the whole update, of which they are a part."""

    def step(made: Pessimism, x: Tensor, inside: Tensor, changes: Tensor) -> Tensor:
        found = made.multipliers(x, inside)
        made.learn(x[:, :, 0], changes)
        assert isinstance(found, Tensor)
        return found

    plain, other = pessimism(learning_rate=1e-2), pessimism(learning_rate=1e-2)
    run = compiled(partial(step, other), torch.device("cpu"), bounded=False)
    for k in range(20):
        x = inputs(2, 16, 2, seed=k)
        given = x, torch.ones(2, 16, 2), x[:, :, 1, :N]
        torch.testing.assert_close(run(*given), step(plain, *given), rtol=1e-4, atol=1e-5)
    assert float(plain.count[0]) == 20 and float(plain.seen[0]) == 20 * 16
    for name, value in plain.state().items():
        torch.testing.assert_close(other.state()[name], value, rtol=1e-4, atol=1e-5)


def test_agents_trained_together_are_those_trained_alone() -> None:
    alone, together = ([agent(seed, imitation=settings()) for seed in range(2)] for _ in range(2))
    GailLearner(together)
    train_together(together, 20, 32)
    for one, other in zip(alone, together, strict=True):
        one.train(20, 32)
        found = everything(other)
        for name, value in everything(one).items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_what_is_learned_is_saved(tmp_path: Path) -> None:
    made = agent(imitation=settings())
    made.train(10, 32)
    made.save(tmp_path / "agent")
    loaded = GAIL.load(tmp_path / "agent", device="cpu")
    learner, original = loaded.learner, made.learner
    assert isinstance(learner, GailLearner) and isinstance(original, GailLearner)
    assert loaded.imitation.pessimism == made.imitation.pessimism
    for name, value in original.pessimism.state().items():
        assert torch.equal(learner.pessimism.state()[name], value) and value.abs().sum() > 0, name


def test_diagnostics_of_the_dynamics() -> None:
    made = agent(imitation=settings())
    made.train(5, 32)
    made.history.clear()
    made.prepare()
    row = made.history[-1]
    assert row["dynamics/slope_95"] >= row["dynamics/slope_mean"] > 0.7 <= row["dynamics/multiplier_mean"] <= 1
    plain = agent()
    plain.prepare()
    assert not any(name.startswith("dynamics") for name in plain.history[-1])


def test_what_is_claimed_of_the_preconditioned_reward() -> None:
    assert preconditioned(PessimismSettings(), 3.0).value == 3.0
    assert preconditioned(PessimismSettings("constant", multiplier=0.8), 3.0).value == pytest.approx(2.4)
    learned = preconditioned(PessimismSettings("dynamics"), 3.0)
    assert learned.vacuous and "jumps" in learned.reason


@pytest.mark.parametrize(
    ("bad", "match"),
    [({"multiplier": 1.1}, "multiplier"), ({"threshold": -1}, "threshold"), ({"hidden": ()}, "hidden")],
)
def test_bad_settings(bad: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        PessimismSettings(**bad)
