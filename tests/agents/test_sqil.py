"""SQIL and LS-IQ: values of a chain in closed form, targets row by row, SAC without demonstrations, several agents."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from torch import Tensor

from lipctrl.agents.sac import SAC
from lipctrl.agents.sac_learner import train_together
from lipctrl.agents.sqil import LS_IQ, SQIL, SqilLearner, SqilSettings
from lipctrl.agents.together import learn_together
from lipctrl.demos.demonstrations import Demonstrations, Trajectory
from lipctrl.files import UserError


class Line(gymnasium.Env[Any, Any]):
    """Positions that the tests write into the buffer themselves; actions up to 2."""

    observation_space = spaces.Box(-5, 5, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (1,), np.float32)


def demonstrations(terminated: bool = False, *, m: int = 1) -> Demonstrations:
    """From state 1 to state 1, 40 times; what the expert answered (0.5) is not what was applied (1)."""
    states, actions = np.ones((41, 1)), np.ones((40, m))
    one = Trajectory(states, actions, 0.5 * actions, np.full(40, 7.0), terminated, not terminated)
    return Demonstrations.from_trajectories([one], {})


def agent(kind: type[SAC] = SQIL, seed: int = 0, **others: Any) -> Any:
    """Its buffer holds steps from 0 to 1 and failures at 2 with random actions."""
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [32]}, "ent_coef": 1e-6, "gamma": 0.5} | others
    if kind is SQIL:
        settings.setdefault("demonstrations", demonstrations())
    made = kind("MlpPolicy", Line(), seed=seed, device="cpu", buffer_size=400, **settings)
    made.set_logger(Logger(None, []))
    rng = np.random.default_rng(seed)
    assert made.replay_buffer is not None
    for k in range(200):
        start, end = ([[2.0]], [[9.0]]) if k % 2 else ([[0.0]], [[1.0]])
        actions, info = rng.uniform(-1, 1, (1, 1)), {"TimeLimit.truncated": False}
        made.replay_buffer.add(
            np.array(start), np.array(end), actions, np.full(1, 100.0), np.array([k % 2 == 1]), [info]
        )
    return made


def parameters(made: SAC) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in made.policy.state_dict().items()}


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (SqilSettings(), (1.0, 2.0, 0.0)),
        (SqilSettings(agent_reward=-1.0), (0.0, 2.0, -1.0)),
        (SqilSettings(agent_reward=-1.0, absorbing=True), (0.0, 2.0, -2.0)),
        (LS_IQ, (0.0, 2.0, -2.0)),
    ],
)
def test_values_of_a_chain(settings: SqilSettings, values: tuple[float, float, float]) -> None:
    """gamma is 0.5: the expert stays at 1 for ever, 1 / (1 - gamma); an own step leads from 0 to it; 2 is a failure.

    The own policy is moved to the expert's action, which is what the value at the next state is of.
    """
    made = agent(imitation=settings, learning_rate=1e-2, tau=0.05)
    made.train(600, 64)
    states = torch.tensor([[0.0], [1.0], [2.0]])
    expert = made.expert
    assert expert is not None
    actions = torch.stack([torch.zeros(1), expert[1][0], torch.zeros(1)])
    found = torch.cat(made.critic(states, actions), 1).mean(1)
    torch.testing.assert_close(found, torch.tensor(values), atol=0.15, rtol=0)


def test_rows_of_a_batch() -> None:
    made = agent(imitation=LS_IQ, gamma=0.75)
    states, actions, rewards, _, going = made._transitions(3, 8)
    assert states.shape == (3, 8, 1) and not torch.equal(states[0], states[1])
    own, theirs = slice(0, 4), slice(4, 8)
    assert (states[:, theirs] == 1).all() and (actions[:, theirs] == 0.25).all()  # the expert's own answer, of 2
    assert (rewards[:, theirs] == 4).all() and (going[:, theirs] == 0).all()
    failed = states[:, own, 0] == 2
    assert failed.any() and (~failed).any()
    assert torch.equal(rewards[:, own], torch.where(failed, -4.0, -1.0)) and torch.equal(
        going[:, own], 1.0 - failed.float()
    )
    plain = agent(imitation=SqilSettings(share=0.25))._transitions(3, 8)
    assert (plain[0][:, 6:] == 1).all() and (plain[1][:, 6:] == 0.5).all()  # what was applied, of 2
    assert (plain[2][:, 6:] == 1).all() and (plain[2][:, :6] == 0).all() and (plain[4][:, 6:] == 1).all()


@pytest.mark.parametrize(("absorbing", "last"), [(False, 1.0), (True, 2.0)])
def test_the_experts_end(absorbing: bool, last: float) -> None:
    settings = SqilSettings(absorbing=absorbing)
    _, _, rewards, _, going = agent(imitation=settings, demonstrations=demonstrations(terminated=True)).expert
    assert rewards.tolist() == [1.0] * 39 + [last] and going.tolist() == [1.0] * 39 + [0.0]


def test_clipped_targets_stay_possible() -> None:
    """With a temperature that makes entropy worth far more than the rewards."""
    largest = {}
    for clipped in (False, True):
        made = agent(imitation=SqilSettings(clipped=clipped), ent_coef=5.0, learning_rate=1e-2, tau=0.05)
        made.train(300, 64)
        states = torch.tensor([[0.0], [1.0], [2.0]])
        largest[clipped] = float(torch.cat(made.critic(states, torch.zeros(3, 1))).detach().max())
    assert largest[True] < 2.2 < 4 < largest[False]


def test_without_demonstrated_rows_it_is_sac() -> None:
    """On a buffer whose rewards are those of own steps."""
    both = [agent(imitation=SqilSettings(agent_reward=-1.0, share=0.0)), agent(SAC)]
    both[1].replay_buffer.rewards[:] = -1.0
    start = parameters(both[0])
    for made in both:
        made.train(20, 32)
    found, expected = (parameters(made) for made in both)
    for name, value in found.items():
        assert torch.equal(value, expected[name])
    assert max(float((found[name] - start[name]).abs().max()) for name in found) > 1e-3


def test_agents_trained_together_are_those_trained_alone() -> None:
    alone, together = ([agent(seed=seed, imitation=LS_IQ) for seed in range(2)] for _ in range(2))
    SqilLearner(together)
    train_together(together, 20, 32)
    for one, other in zip(alone, together, strict=True):
        one.train(20, 32)
        found = parameters(other)
        for name, value in parameters(one).items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def pendulum(seed: int) -> SQIL:
    rng = np.random.default_rng(0)
    labels = rng.uniform(-2, 2, (40, 1))
    demos = Demonstrations.from_trajectories(
        [Trajectory(rng.normal(size=(41, 3)), labels, labels, np.zeros(40), False, True)], {}
    )
    shape = {"net_arch": [16]}
    return SQIL(
        "MlpPolicy",
        "Pendulum-v1",
        demonstrations=demos,
        seed=seed,
        device="cpu",
        learning_starts=20,
        policy_kwargs=shape,
    )


def test_one_seed_one_result_saved_and_loaded(tmp_path: Path) -> None:
    first, second = ([pendulum(seed) for seed in range(2)] for _ in range(2))
    for agents in (first, second):
        learn_together(agents, 60)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(value, parameters(other)[name]) for name, value in parameters(one).items())
    first[0].save(tmp_path / "agent")
    loaded = SQIL.load(tmp_path / "agent", device="cpu")
    observation = np.array([0.1, 0.2, 0.3], np.float32)
    assert np.array_equal(
        loaded.predict(observation, deterministic=True)[0], first[0].predict(observation, deterministic=True)[0]
    )
    with pytest.raises(UserError, match="needs demonstrations"):
        loaded.train(1, 8)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="1 observations and 2 actions"):
        agent(demonstrations=demonstrations(m=2))
    with pytest.raises(ValueError, match="above agent_reward"):
        SqilSettings(agent_reward=1.0)
    with pytest.raises(ValueError, match="share"):
        SqilSettings(share=1.0)
    with pytest.raises(UserError, match="same networks and settings"):
        SqilLearner([agent(), agent(imitation=LS_IQ)])
