"""GAIL: windows, relabelling, absorbing states against closed forms; together, compiled, saved; that it imitates."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger

from lipctrl.agents.critic_bound import bound_line
from lipctrl.agents.discriminator import RewardSettings
from lipctrl.agents.expert import subsampled
from lipctrl.agents.gail import ABSORBED, GAIL, GailSettings
from lipctrl.agents.gail_batches import OWN, agent_pairs, expert_pairs, windows
from lipctrl.agents.gail_learner import GailLearner
from lipctrl.agents.monitor import Monitor
from lipctrl.agents.pessimism import PessimismSettings
from lipctrl.agents.sac import SAC
from lipctrl.agents.sac_learner import train_together
from lipctrl.agents.sqil import SQIL
from lipctrl.agents.td3 import Td3Settings
from lipctrl.agents.together import learn_together
from lipctrl.certify.reward import proved_slopes
from lipctrl.demos.demonstrations import Demonstrations, Trajectory
from lipctrl.files import UserError

SHAPE = {"net_arch": [32, 32]}
PLAIN = GailSettings(layer_norm=False)


def demonstrations(n: int = 3, m: int = 1, *, failures: int = 0, episodes: int = 4) -> Demonstrations:
    rng = np.random.default_rng(0)
    return Demonstrations.from_trajectories(
        [
            Trajectory(
                rng.normal(size=(41, n)), a := rng.uniform(-1, 1, (40, m)), a, np.zeros(40), k < failures, k >= failures
            )
            for k in range(episodes)
        ],
        {},
    )


def agent(seed: int = 3, *, rows: int = 200, **others: Any) -> GAIL:
    """With a buffer of random transitions, some truncated, some terminal."""
    settings: dict[str, Any] = {"policy_kwargs": SHAPE, "demonstrations": demonstrations(), "buffer_size": 250} | others
    made = GAIL("MlpPolicy", "Pendulum-v1", seed=seed, device="cpu", **settings)
    made.set_logger(Logger(None, []))
    fill(made, rows)
    return made


def fill(made: GAIL, rows: int) -> None:
    rng, memory = np.random.default_rng(0), made.replay_buffer
    assert memory is not None
    for k in range(rows):
        x, y = rng.normal(size=(2, 1, 3))
        info: list[dict[str, Any]] = [{"TimeLimit.truncated": k % 7 == 0}]
        memory.add(x, y, rng.uniform(-1, 1, (1, 1)), np.full(1, 1e6), np.array([k % 7 == 0 or k % 5 == 0]), info)


def parameters(made: GAIL) -> dict[str, torch.Tensor]:
    state = {f"policy.{k}": v for k, v in made.policy.state_dict().items()}
    return {k: v.detach().clone() for k, v in (state | dict(made.memory.state_dict())).items()}


@pytest.mark.parametrize("rows", [40, 250, 370])
@pytest.mark.parametrize("n_step", [1, 4])
def test_windows_step_by_step(rows: int, n_step: int) -> None:
    """Also where the buffer is full and begins anew in the middle."""
    made = agent(rows=rows, imitation=GailSettings(n_step=n_step))
    memory = made.replay_buffer
    assert memory is not None
    at = torch.arange(memory.size())
    found, lengths, ended = windows(made, at)
    for start in range(memory.size()):
        row, steps = start, 1
        while not memory.dones[row, 0] and row != (memory.pos - 1) % memory.buffer_size and steps < n_step:
            row, steps = (row + 1) % memory.size(), steps + 1
        assert lengths[start] == steps and found[start, steps - 1] == row
        assert ended[start] == (memory.dones[row, 0] and not memory.timeouts[row, 0])
    assert memory.dones[found[:, -1].numpy()].any() and (n_step == 1 or (lengths < n_step).any())


def test_a_window_that_ends_at_a_terminal_does_not_bootstrap() -> None:
    """Also where the terminal step is the last of a whole window; a time limit does bootstrap."""
    made = agent(rows=60, imitation=GailSettings(n_step=5), gamma=0.9)
    batch = made.batches(1, 4000)
    rows = [
        (float(g), float(e), int((w > 0).sum()))
        for g, e, w in zip(batch.going[0], batch.ending[0], batch.weights[0], strict=True)
    ]
    assert {steps for g, _, steps in rows if g == 0} == {1, 2, 3, 4, 5}
    for going, ending, steps in rows:
        if going == 0:
            assert ending == pytest.approx(0.9**steps / 0.1, rel=1e-5)
        else:
            assert ending == 0 and going == pytest.approx(0.9 ** (steps - 1), rel=1e-5)


def test_rewards_are_those_of_the_discriminator_of_now() -> None:
    """The stored ones, 10^6 each, are never read."""
    made = agent()
    targets = []
    for _ in range(2):
        made.draws.manual_seed(1)
        batch = made.batches(1, 32)
        learner = made.learner
        assert isinstance(learner, GailLearner)
        found = learner.discriminators.reward(batch.inputs[:, :, 0])
        targets.append(found.clone())
        for leaf in learner.discriminators.leaves:
            leaf.add_(0.1)
    assert (targets[0] != targets[1]).all() and float(targets[1].abs().max()) < 100


@pytest.mark.parametrize("inputs", ["state-action", "state", "state-next"])
def test_a_batch_row_by_row(inputs: Any) -> None:
    """Rewards' weights, inputs, next states and units of four-step windows, by loops over the buffer."""
    made = agent(rows=210, imitation=GailSettings(n_step=4), gamma=0.9, reward=RewardSettings(inputs=inputs))
    memory = made.replay_buffer
    assert memory is not None
    made.draws.manual_seed(5)
    at = torch.randint(made.stored(), (64,), generator=torch.Generator().manual_seed(5))
    batch = made.batches(1, 64)
    mean, scale = (made.memory.get_buffer(f"reward_{name}").numpy() for name in ("mean", "scale"))
    for k, row in enumerate(at.tolist()):
        rows, lengths, _ = windows(made, at[k : k + 1])
        steps = int(lengths)
        last = int(rows[0, steps - 1])
        expected = [0.9**i if i < steps else 0.0 for i in range(4)]
        np.testing.assert_allclose(batch.weights[0, k].numpy(), expected, rtol=1e-6)
        np.testing.assert_allclose(batch.states[0, k].numpy(), memory.observations[row, 0], rtol=1e-6)
        np.testing.assert_allclose(batch.next_states[0, k].numpy(), memory.next_observations[last, 0], rtol=1e-6)
        for i in range(steps):
            now = int(rows[0, i])
            before, after = (
                (part[now, 0] - mean[0]) / scale[0] for part in (memory.observations, memory.next_observations)
            )
            x = [*before, 0.0, *{"state-action": memory.actions[now, 0], "state": (), "state-next": after}[inputs]]
            np.testing.assert_allclose(batch.inputs[0, k, i].numpy(), x, rtol=1e-4, atol=1e-5)
    noise = made.batches(50, 64)
    assert [float(n.std()) for n in (noise.noise, noise.next_noise)] == pytest.approx([1, 1], abs=0.05)


@pytest.mark.parametrize(("wait", "acted"), [(0, 3), (4, 1), (5, 1), (7, 0)])
def test_how_often_what_is_updated(wait: int, acted: int) -> None:
    made = agent(reward=RewardSettings(ratio=3), td3=Td3Settings(delay=2, wait=wait))
    made.train(3, 16)
    made.train(4, 16)
    counted = {name: float(made.memory.get_buffer(name)) for name in ("count", "actor_count", "reward_count")}
    assert counted == {"count": 7, "actor_count": acted, "reward_count": 21}


def test_exploration_adds_the_noise_that_is_set() -> None:
    made = agent(rows=0, td3=Td3Settings(noise=0.3), learning_starts=0)
    made._last_obs = np.zeros((1, 3), np.float32)
    found = np.concatenate([made._sample_action(0)[1] for _ in range(2000)])
    assert float(found.std()) == pytest.approx(0.3, rel=0.1)
    assert float(found.mean()) == pytest.approx(float(made.scaled_actions(torch.zeros(1, 3)).detach()), abs=0.05)


def test_stored_rewards_are_never_read() -> None:
    """Targets are the same bytes whatever the environment paid."""
    both = [agent(), agent()]
    memory = both[1].replay_buffer
    assert memory is not None
    memory.rewards[:] = np.nan
    for made in both:
        made.train(5, 16)
    found = parameters(both[1])
    assert all(torch.equal(value, found[name]) for name, value in parameters(both[0]).items())


def test_held_out_pairs_are_not_trained_on_and_units_stay() -> None:
    made = agent(imitation=GailSettings(holdout=0.25), demonstrations=demonstrations(failures=4))
    expert = made.expert
    assert expert is not None
    held, kept = ({tuple(row) for row in rows.tolist()} for rows in (expert.held, expert.pairs))
    assert len(held) == 40 and len(kept) == 120 and not held & kept
    assert expert.absorbed == pytest.approx(4 * 0.75)
    before = made.memory.get_buffer("reward_scale").clone()
    made.train(1, 8)
    other = demonstrations()
    made.set_demonstrations(Demonstrations(**{**vars(other), "observations": 3 * other.observations}))
    assert torch.equal(made.memory.get_buffer("reward_scale"), before)


def test_units_are_each_coordinates_own() -> None:
    demos = demonstrations()
    scaled = demos.observations * np.array([5e3, 1e-2, 0.0]) + np.array([0.0, 0.0, 7.0])
    made = agent(demonstrations=Demonstrations(**{**vars(demos), "observations": scaled}))
    states = np.concatenate([t.observations[:-1] for t in made_trajectories(scaled, demos)])
    expected = [*states.std(0)[:2], 1.0]  # what never changes keeps its unit
    np.testing.assert_allclose(made.memory.get_buffer("reward_scale")[0].numpy(), expected, rtol=1e-5)


def made_trajectories(observations: np.ndarray, demos: Demonstrations) -> list[Trajectory]:
    return list(Demonstrations(**{**vars(demos), "observations": observations}).trajectories())


def test_no_window_runs_into_another_training() -> None:
    made = agent(rows=0, imitation=GailSettings(n_step=5, monitor_every=20), learning_starts=20, batch_size=16)
    made.learn(90)
    made.learn(60)  # the environment begins anew behind row 89
    assert int(windows(made, torch.tensor([87]))[1]) == 3
    assert float(windows(made, torch.tensor([87]))[2]) == 0  # and its value goes on
    assert [row["timesteps"] for row in made.history] == [21, 40, 60]


def test_monitors_of_a_linear_logit_and_a_linear_policy() -> None:
    """|grad z| = 3 everywhere, C-validity exp(-(3 - k)^2), the policy's Jacobian a given row in the reward's units."""
    made = agent(reward=RewardSettings(hidden=(1,), k=2.0), policy_kwargs={"net_arch": []}, imitation=PLAIN)
    judge = made.learner.discriminators  # type: ignore[attr-defined]
    for leaf, value in zip(judge.leaves, (0.0, 1e3, 1.0, 0.0), strict=True):
        leaf.fill_(value)
    judge.leaves[0][..., 1] = 3.0
    layer = made.actor.mu[0]  # type: ignore[index, union-attr]
    layer.weight.data.copy_(torch.tensor([[1e-4, 2e-4, -1e-4]]))  # type: ignore[union-attr, operator]
    layer.bias.data.zero_()  # type: ignore[union-attr, operator]
    row = made.monitor.measure(made)
    assert [row["reward/slope_mean"], row["reward/slope_max"]] == pytest.approx([3, 3], rel=1e-5)
    assert row["reward/c_validity"] == pytest.approx(np.exp(-1), rel=1e-4)
    expected = float((torch.tensor([1e-4, 2e-4, -1e-4]) * made.memory.get_buffer("reward_scale")[0]).norm())
    assert row["policy/slope_95"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("shrink", "form", "kind", "inputs"),
    [
        (0.5, "softplus", "none", "state-action"),
        (0.9, "d", "none", "state"),
        (0.5, "airl", "constant", "state-action"),
        (0.5, "softplus", "none", "state-next"),
    ],
)
def test_the_critic_beside_the_bound_of_its_value(shrink: float, form: Any, kind: Any, inputs: Any) -> None:
    """s' = shrink s under a linear policy: growth = gamma shrink sqrt(1 + B^2), bound = constant / (1 - growth)."""
    made = shrinking(
        np.random.default_rng(0).normal(size=(50, 3)),
        shrink,
        reward=RewardSettings(regulariser="certified", k=2.0, form=form, inputs=inputs),
        imitation=GailSettings(layer_norm=False, pessimism=PessimismSettings(kind, multiplier=0.3)),
    )
    slope = float((torch.tensor([0.01, -0.02, 0.01]) * made.memory.get_buffer("reward_scale")[0]).norm())
    row = made.monitor.measure(made)
    growth = 0.99 * shrink * np.hypot(1, slope)
    constant = 2.0 * (0.25 if form == "d" else 1.0) * (0.3 if kind == "constant" else 1.0)
    constant *= np.hypot(1, shrink) if inputs == "state-next" else 1.0
    assert row["critic/growth"] == pytest.approx(growth, rel=1e-3)
    assert row["critic/bound"] == pytest.approx(constant / (1 - growth), rel=1e-2)
    assert "is at most" in bound_line([row]) and "vacuous" not in bound_line([row])


@pytest.mark.parametrize("who", ["agent", "expert"])
def test_where_episodes_end_the_value_has_no_bound(who: str) -> None:
    """One failure is enough: the value jumps there; a time limit is no end."""
    ends: dict[str, Any] = {"demonstrations": demonstrations(failures=int(who == "expert"))}
    made = shrinking(np.random.default_rng(0).normal(size=(50, 3)), 0.5, **ends)
    memory = made.replay_buffer
    assert memory is not None
    memory.dones[7], memory.timeouts[7] = 1, who == "expert"
    row = made.monitor.measure(made)
    assert row["critic/growth"] < 1 and np.isnan(row["critic/bound"])
    assert "episodes end here" in bound_line([row]) and "at most" not in bound_line([row])


@pytest.mark.parametrize(("mean", "spread"), [(1.0, 1e-4), (300.0, 1e-2), (1.0, 1e-5)])
def test_rounding_makes_no_dynamics_steep(mean: float, spread: float) -> None:
    """A state that hardly moves, far from 0: the growth is a lower bound, and of use where rounding leaves digits."""
    made = shrinking(np.random.default_rng(0).normal(size=(250, 3)), 0.5, mean=mean, spread=spread)
    found = made.monitor.measure(made)["critic/growth"]
    exact = 0.99 * 0.5 * np.hypot(1, np.sqrt(6) * 0.01 * spread)
    assert (0.95 if spread > 1e-5 else 0.5) * exact < found <= exact


def test_the_line_of_several_agents() -> None:
    """The largest bound, which need not be that of the largest growth, and whether a critic is above its own."""
    names = ("critic/growth", "critic/bound", "critic/slope_95", "critic/slope_max")
    rows = [dict(zip(names, row, strict=True)) for row in ((0.9, 10.0, 3.0, 9.0), (0.8, 20.0, 3.0, 5.0))]
    assert "at most 20 if" in bound_line(rows) and "not the value" not in bound_line(rows)
    rows[0]["critic/slope_max"] = 11.0
    assert "not the value of its policy" in bound_line(rows)


def shrinking(x: np.ndarray, shrink: float, *, mean: float = 0.0, spread: float = 1.0, **others: Any) -> GAIL:
    """Under a linear policy of gains (0.01, -0.02, 0.01), transitions s' - mean = shrink (s - mean).

    Args:
        x: (s - mean) / spread, (rows, n), where spread is the unit of the reward unless it is 1.
    """
    certified = RewardSettings(regulariser="certified", k=2.0)
    settings: dict[str, Any] = {"reward": certified, "imitation": PLAIN} | others
    made = agent(rows=0, policy_kwargs={"net_arch": []}, **settings)
    memory = made.replay_buffer
    assert memory is not None
    for row in x[:, None]:
        states = (mean + spread * row, mean + spread * shrink * row)
        memory.add(*states, np.zeros((1, 1)), np.zeros(1), np.array([False]), [{}])
    if spread != 1:
        made.memory.get_buffer("reward_scale").fill_(spread)
    layer = made.actor.mu[0]  # type: ignore[index, union-attr]
    layer.weight.data.copy_(torch.tensor([[0.01, -0.02, 0.01]]))  # type: ignore[union-attr, operator]
    layer.bias.data.zero_()  # type: ignore[union-attr, operator]
    return made


def test_where_the_value_has_no_bound() -> None:
    """The random buffer is steeper than 1; a penalty proves no constant; SAC's values hold an entropy."""
    certified = RewardSettings(regulariser="certified")
    row = agent(reward=certified).monitor.measure(agent(reward=certified))
    assert row["critic/growth"] > 1 and np.isnan(row["critic/bound"])
    assert "vacuous" in bound_line([row])
    learned = PessimismSettings("dynamics", hidden=(8,))
    for made in (
        agent(),
        agent(reward=certified, imitation=GailSettings(stem="sac")),
        agent(reward=certified, imitation=GailSettings(pessimism=learned)),
    ):
        row = made.monitor.measure(made)
        assert "critic/bound" not in row and bound_line([row]) == ""
        assert row["critic/slope_mean"] <= row["critic/slope_95"] <= row["critic/slope_max"]


class Ends(gymnasium.Env[Any, Any]):
    """From 0 by any action to a failure, or from 1 by any action to 1 for ever."""

    observation_space = spaces.Box(-2, 2, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)


@pytest.mark.parametrize(
    ("stem", "absorbing", "inputs"),
    [
        ("td3", True, "state-action"),
        ("td3", False, "state-action"),
        ("sac", True, "state-action"),
        ("sac", False, "state-action"),
        ("td3", True, "state"),
        ("td3", True, "state-next"),
    ],
)
def test_value_of_the_last_state(stem: Any, absorbing: bool, inputs: Any) -> None:
    """Q(failure) = r + gamma r_absorbing / (1 - gamma); Q before a time limit = r / (1 - gamma)."""
    made = GAIL(
        "MlpPolicy",
        Ends(),
        seed=0,
        device="cpu",
        gamma=0.5,
        tau=0.05,
        ent_coef=0.0001,
        learning_rate=3e-3,
        reward=RewardSettings(absorbing=absorbing, hidden=(8,), inputs=inputs),
        imitation=GailSettings(stem=stem, layer_norm=False, holdout=0.0),
        td3=Td3Settings(smoothing=(0.0, 0.0)),
        policy_kwargs=SHAPE,
        demonstrations=demonstrations(1),
    )
    memory, learner = made.replay_buffer, made.learner
    assert memory is not None and isinstance(learner, GailLearner)
    for _ in range(32):
        memory.add(np.array([[0.0]]), np.array([[2.0]]), np.zeros((1, 1)), np.zeros(1), np.array([True]), [{}])
        limit = [{"TimeLimit.truncated": True}]
        memory.add(np.array([[1.0]]), np.array([[1.0]]), np.zeros((1, 1)), np.zeros(1), np.array([True]), limit)
    for leaf in learner.discriminators.leaves:
        leaf.mul_(30)  # so that rewards differ between states
    learner.stem.rate.fill_(3e-3)
    for _ in range(600):
        batch = made.batches(1, 64)
        for leaf in made.actor.parameters():
            leaf.data.zero_()  # the action stays 0, where the data are
        if stem == "sac":
            made.actor.log_std.bias.data.fill_(-20.0)  # type: ignore[union-attr, operator]
        learner.step(False, *[part[:1] for part in batch.tensors()[:OWN]])
    judge = made.discriminator()
    states = torch.tensor([[0.0], [1.0]])
    rewards = judge.reward(made.inputs(states, torch.zeros(2, 1), torch.tensor([[2.0], [1.0]]))[None])[0]
    after = float(judge.reward(made.absorbing()[None, None])) if absorbing else 0.0
    expected = [float(rewards[0]) + 0.5 / 0.5 * after, float(rewards[1]) / 0.5]
    values = made.critic.q_networks[0](torch.cat([states, torch.zeros(2, 1)], -1))[:, 0].tolist()
    assert values == pytest.approx(expected, abs=0.03)
    assert abs(expected[0] - expected[1]) > 0.1


def test_the_absorbing_state_has_its_share_among_the_pairs() -> None:
    made = agent(rows=210, demonstrations=demonstrations(failures=2), imitation=GailSettings(subsample=4, holdout=0.0))
    draws = torch.Generator().manual_seed(0)
    memory = made.replay_buffer
    assert memory is not None
    failures = float((memory.dones * (1 - memory.timeouts)).sum())
    for rows, expected in (
        (agent_pairs(made, 20_000, draws), failures / (failures + 210)),
        (expert_pairs(made, 20_000, draws), (2 / 4) / (2 / 4 + 40)),
    ):
        bits = rows[:, 3] / ABSORBED
        assert float(bits.mean()) == pytest.approx(expected, abs=0.01)
        assert float(rows[bits == 1][:, [0, 1, 2, 4]].abs().max()) == 0


def test_subsampled_pairs_are_of_the_expert() -> None:
    demos = demonstrations()
    found = subsampled(demos, 20, seed=0)
    states, actions = found.states, found.labels
    assert len(states) == 8
    known = {tuple(row) for t in demos.trajectories() for row in np.hstack([t.observations[:-1], t.labels])}
    assert all(tuple(row) in known for row in np.hstack([states, actions]))


@pytest.mark.parametrize("inputs", ["state", "state-next"])
def test_the_expert_as_states_and_next_states(inputs: Any) -> None:
    demos = demonstrations(failures=1)
    made = agent(demonstrations=demos, reward=RewardSettings(inputs=inputs), imitation=GailSettings(holdout=0.0))
    mean, scale = (made.memory.get_buffer(f"reward_{name}").numpy()[0] for name in ("mean", "scale"))
    known = []
    for one in demos.trajectories():
        x = (one.observations - mean) / scale
        rest = x[1:] if inputs == "state-next" else x[1:, :0]
        known.append(np.hstack([x[:-1], np.zeros((40, 1)), rest]))
    assert made.expert is not None
    found = made.expert.pairs.numpy()
    order = [rows[np.argsort(rows[:, 0])] for rows in (np.concatenate(known), found)]
    np.testing.assert_allclose(order[0], order[1], atol=1e-5)


@pytest.mark.parametrize("inputs", ["state", "state-next"])
def test_the_certified_reward_of_other_inputs_is_proved(inputs: Any) -> None:
    made = agent(reward=RewardSettings(inputs=inputs, regulariser="certified", k=2.0, form="d"))
    made.train(20, 32)
    reward = made.learned_reward()
    found = proved_slopes(reward)
    assert 0.1 < found["all", "normalised"] <= 2.0 / 4 * (1 + 1e-6)
    assert reward.blocks == (("all", "state", "next") if inputs == "state-next" else ("all",))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2, 3))
    y = x + 0.01 * rng.normal(size=(500, 2, 3))
    slopes = np.abs(reward(x[:, 0], None, x[:, 1]) - reward(y[:, 0], None, y[:, 1]))
    seen = slopes / np.linalg.norm((y - x).reshape(500, -1)[:, : 6 if inputs == "state-next" else 3], axis=1)
    assert seen.max() <= found["all", "raw"] * (1 + 1e-9)


KINDS: list[dict[str, Any]] = [
    {
        "imitation": GailSettings(n_step=3, pessimism=PessimismSettings("dynamics", hidden=(16,))),
        "reward": RewardSettings(ratio=2, points="rectangle"),
    },
    {"imitation": GailSettings(stem="sac"), "reward": RewardSettings(regulariser="certified", form="airl")},
    {"td3": Td3Settings(critic="c51"), "reward": RewardSettings(points="dragan", spectral=True, clip=2.0)},
    {"reward": RewardSettings(inputs="state-next", points="rectangle"), "imitation": GailSettings(n_step=2)},
    {"td3": Td3Settings(critic="quantile"), "reward": RewardSettings(dropout=0.3, mixup=True, absorbing=False)},
]


@pytest.mark.parametrize("settings", KINDS)
def test_agents_trained_together_are_those_trained_alone(settings: dict[str, Any]) -> None:
    alone, together = ([agent(seed, **settings) for seed in (1, 2)] for _ in range(2))
    for one in alone:
        one.train(6, 32)
    GailLearner(together)
    train_together(together, 6, 32)
    for one, other in zip(alone, together, strict=True):
        found, start = parameters(other), parameters(agent(one.seed or 0, **settings))
        bounded = one.reward.certified  # its scales have no gradient but rounding, which Adam magnifies
        for name, value in parameters(one).items():
            if not (bounded and name.startswith("reward_")):
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
        x = np.random.default_rng(0).normal(size=(50, 4))
        rewards = [each.learned_reward()(x[:, :3], x[:, 3:], 0.9 * x[:, :3]) for each in (one, other)]
        np.testing.assert_allclose(rewards[0], rewards[1], rtol=1e-3, atol=1e-4)
        weights = [name for name in found if name.endswith("0.weight") and "actor." in name] + ["reward_1"]
        assert len(weights) > 1 and not any(torch.equal(found[name], start[name]) for name in weights)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch needs g++")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, inside its compiler
def test_compiled_updates_are_the_plain_ones() -> None:
    steep = PessimismSettings("dynamics", hidden=(16,), threshold=1.0)
    settings = {"reward": RewardSettings(spectral=True), "imitation": GailSettings(n_step=2, pessimism=steep)}
    both = [agent(compiled=compiled, **settings) for compiled in (False, True)]
    for one in both:
        one.train(100, 32)
    compiled = parameters(both[1])
    for name, value in parameters(both[0]).items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("settings", KINDS)
def test_one_seed_gives_the_same_bytes_and_files_predict(settings: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        made = agent(rows=0, learning_starts=20, batch_size=16, **settings)
        made.learn(60)
        found.append(parameters(made))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
    made.save(tmp_path / "agent.zip")
    loaded = GAIL.load(tmp_path / "agent.zip")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(x, deterministic=True)[0], made.predict(x, deterministic=True)[0])
    states, actions = x.astype(np.float64), np.full((5, 1), 0.3)
    both = [one.learned_reward()(states, actions, 0.9 * states) for one in (loaded, made)]
    np.testing.assert_array_equal(*both)


def test_a_certified_reward_that_is_loaded_or_adopted_is_the_one_of_now(tmp_path: Path) -> None:
    """In what updates are computed with: its maps are not those of the initial weights."""
    made = agent(reward=RewardSettings(regulariser="certified"))
    initial = made.discriminator().reward(x := torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0)))
    made.train(30, 16)
    expected = made.discriminator().reward(x)
    assert float((expected - initial).abs().max()) > 1e-3
    made.save(tmp_path / "agent.zip")
    loaded = GAIL.load(tmp_path / "agent.zip")
    for learner in (loaded.learner, GailLearner([loaded])):
        assert isinstance(learner, GailLearner)
        torch.testing.assert_close(learner.discriminators.reward(x), expected)
        torch.testing.assert_close(learner.discriminators.alone(0).reward(x), expected)
    one, before = loaded.discriminator(), loaded.discriminator().reward(x)
    loaded.learner.discriminators.leaves[-1].add_(1.0)  # type: ignore[attr-defined]
    torch.testing.assert_close(one.reward(x), before)  # neither all of the change nor half of it


@pytest.mark.parametrize("inputs", ["state-action", "state", "state-next"])
def test_the_learned_reward_is_what_the_agent_is_trained_on(inputs: Any) -> None:
    made = agent(reward=RewardSettings(clip=3.0, inputs=inputs))
    made.train(50, 32)
    states, scaled, _, next_states, _ = made.replay(slice(0, 100))
    expected = made.discriminator().reward(made.inputs(states, scaled, next_states)[None])[0]
    reward = made.learned_reward()
    parts = (states.double().numpy(), 2.0 * scaled.double().numpy(), next_states.double().numpy())  # torque in [-2, 2]
    found = reward(*parts)
    np.testing.assert_allclose(found, expected.double().numpy(), atol=1e-5)
    absorbing = float(made.discriminator().reward(made.absorbing()[None, None]))
    assert reward.absorbing_reward() == pytest.approx(absorbing, abs=1e-6)


def test_the_collapse_is_announced_once() -> None:
    row = {"reward/accuracy_held": 0.99, "reward/accuracy": 1.0}
    rows = [{**row, "timesteps": float(k), "reward/slope_95": 15.0 + 5 * k} for k in range(4)]
    advice = Monitor.diagnosis(rows)
    assert advice is not None and "regularise" in advice and "99%" in advice
    assert Monitor.diagnosis(rows[:2]) is None
    assert Monitor.diagnosis([*rows[:3], {**rows[3], "reward/slope_95": 10.0}]) is None
    assert Monitor.diagnosis([*rows[:3], {**rows[3], "reward/accuracy_held": 0.9}]) is None


def test_what_cannot_be_imitated() -> None:
    with pytest.raises(UserError, match="2 observations and 1 actions"):
        agent(demonstrations=demonstrations(2))
    with pytest.raises(UserError, match="outside the limits"):
        demos = demonstrations()
        agent(demonstrations=Demonstrations(**{**vars(demos), "labels": 5 * demos.labels}))
    with pytest.raises(UserError, match="needs demonstrations"):
        agent(demonstrations=None).train(1, 8)
    with pytest.raises(UserError, match="must have the same"):
        GailLearner([agent(), agent(reward=RewardSettings(k=2.0))])
    with pytest.raises(UserError, match="needs a reward of state and action"):
        pessimism = PessimismSettings("dynamics")
        agent(reward=RewardSettings(inputs="state"), imitation=GailSettings(pessimism=pessimism))
    with pytest.raises(UserError, match="discount"):
        agent(gamma=1.0)
    with pytest.raises(UserError, match="no smoothness"):
        agent(smoothness=None)
    ahead = agent()
    ahead.train(1, 8)
    with pytest.raises(UserError, match="as many updates"):
        GailLearner([ahead, agent(4)]).run([ahead.batches(1, 8), ahead.batches(1, 8)])
    with pytest.raises(ValueError, match="n_step above 1"):
        GailSettings(stem="sac", n_step=2)
    with pytest.raises(UserError, match="one environment"):
        from stable_baselines3.common.env_util import make_vec_env

        GAIL("MlpPolicy", make_vec_env("Pendulum-v1", 2), demonstrations=demonstrations())


BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize("kind", [GAIL, SAC, SQIL])
@pytest.mark.parametrize(
    ("observations", "actions", "words"),
    [
        (spaces.Dict({"a": BOX}), BOX, "needs observations in a box of one axis, found Dict"),
        (spaces.Box(0, 255, (3, 8, 8), np.uint8), BOX, "needs observations in a box of one axis, found Box"),
        (BOX, spaces.Discrete(3), "needs actions in a box of one axis, found Discrete"),
        (BOX, spaces.Box(-np.inf, 1, (2,), np.float32), "needs actions with finite limits, found Box"),
    ],
)
def test_other_spaces_are_refused_in_one_sentence(kind: Any, observations: Any, actions: Any, words: str) -> None:
    env = Ends()
    env.observation_space, env.action_space = observations, actions
    with pytest.raises(UserError, match=f"{kind.__name__} {words}"):
        kind("MlpPolicy", env)


@pytest.mark.slow
def test_penalty_and_certificate_imitate_where_nothing_fails() -> None:
    """Pendulum-v1, four demonstrations, 10,000 steps, three seeds each. Benchmarks: `gail_study.py pendulum`."""
    from stable_baselines3.common.evaluation import evaluate_policy

    from lipctrl.cli.demos_collect import CollectSettings, collect_demonstrations

    demos = collect_demonstrations(CollectSettings(env="Pendulum-v1", expert="swing-up", episodes=4, dither=0.0))
    means, slopes = {}, {}
    for kind in ("none", "one-sided", "certified"):
        agents = [
            GAIL(
                "MlpPolicy",
                "Pendulum-v1",
                demonstrations=demos,
                reward=RewardSettings(regulariser=kind),  # type: ignore[arg-type]
                seed=seed,
                device="cpu",
                buffer_size=10_000,
                batch_size=128,
                learning_rate=1e-3,
                learning_starts=1000,
                train_freq=20,
                gradient_steps=20,
                policy_kwargs={"net_arch": [64, 64]},
            )
            for seed in range(3)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # none collapses, and says so
            learn_together(agents, 10_000)
        test = gymnasium.make("Pendulum-v1")
        test.reset(seed=1000)
        means[kind] = float(np.mean([evaluate_policy(one, test, 10, warn=False)[0] for one in agents]))
        slopes[kind] = [one.history[-1] for one in agents]
    assert means["one-sided"] - means["none"] > 300 and means["certified"] - means["none"] > 300
    assert max(row["reward/slope_95"] for row in slopes["one-sided"]) <= 1.3
    assert max(row["reward/slope_max"] for row in slopes["certified"]) <= 1 + 1e-4
    assert min(row["reward/slope_95"] for row in slopes["none"]) >= 20


def test_units_of_expert_and_agent_are_those_of_a_mixture() -> None:
    """Half expert, half agent, whatever their numbers; taken before the first update and kept from then on."""
    made = agent(imitation=GailSettings(units="both"))
    made.train(1, 32)
    expert, own = subsampled(demonstrations(), 1, seed=3).states, made.replay(slice(0, 200))[0].double().numpy()
    weights = np.concatenate([np.full(len(expert), 0.5 / len(expert)), np.full(len(own), 0.5 / len(own))])
    rows = np.concatenate([expert, own])
    mean = weights @ rows
    units = made.memory.get_buffer("reward_mean").clone(), made.memory.get_buffer("reward_scale").clone()
    np.testing.assert_allclose(units[0][0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(units[1][0], np.sqrt(weights @ (rows - mean) ** 2), rtol=1e-5)
    fill(made, 20)
    made.train(1, 32)
    made.set_demonstrations(demonstrations(episodes=2))
    assert torch.equal(units[0], made.memory.get_buffer("reward_mean"))
    assert torch.equal(units[1], made.memory.get_buffer("reward_scale"))
