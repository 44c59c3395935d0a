"""A learned reward: values against its parts, one file without pickle, and an environment that pays it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from scipy.special import expit

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import LearnedReward, is_reward
from lipctrl.nn.reward_forms import REWARD_FORMS
from lipctrl.nn.reward_wrapper import RewardWrapper

RNG = np.random.default_rng(0)


def logit_net(inputs: int) -> PlainNet:
    rng = np.random.default_rng(inputs)
    shapes = [(8, inputs), (6, 8), (1, 6)]
    net = PlainNet.mlp([rng.normal(size=s) for s in shapes], [rng.normal(size=s[0]) for s in shapes], "tanh")
    return replace(net, input_names=tuple(f"x{k} [m]" for k in range(inputs)), input_scale=np.full(inputs, 2.0))


def reward_with(form: str = "softplus", **changes: object) -> LearnedReward:
    clip = 4.0 if form == "fairl" else float("inf")
    reward = LearnedReward(logit_net(4), form, "state-action", 3, clip=clip, provenance={"seed": 3, "demos": ["a"]})
    return replace(reward, **changes)  # type: ignore[arg-type]


def test_values_are_the_form_of_the_logit() -> None:
    states, actions = RNG.normal(size=(5, 7, 3)), RNG.normal(size=(5, 7, 1))
    reward = reward_with()
    z = reward.logit(np.concatenate([states, actions], -1))[..., 0]
    assert np.allclose(reward(states, actions), -np.log(1 - expit(z)), atol=1e-9)
    assert reward(states, actions).shape == (5, 7) and reward(states, actions).dtype == np.float64
    assert reward(states[0, 0], actions[0, 0]).shape == ()
    clipped = replace(reward, form="airl", clip=0.5)
    assert np.array_equal(clipped(states, actions), np.clip(z, -0.5, 0.5))


def test_inputs_of_each_kind_and_the_absorbing_bit() -> None:
    states, following = RNG.normal(size=(2, 6, 3))
    alone = LearnedReward(logit_net(3), "airl", "state", 3)
    assert np.array_equal(alone(states), alone.logit(states)[:, 0]) and alone.action_size == 0
    assert alone.blocks == ("all",)
    pair = LearnedReward(logit_net(6), "airl", "state-next", 3)
    assert np.array_equal(pair(states, None, following), pair.logit(np.hstack([states, following]))[:, 0])
    assert pair.columns("next").tolist() == [False] * 3 + [True] * 3
    ended = np.array([0, 0, 0, 1.0, 0])
    bit = LearnedReward(logit_net(5), "softplus", "state-action", 3, absorbing=ended)
    actions = RNG.normal(size=(6, 1))
    z = bit.logit(np.hstack([states, np.zeros((6, 1)), actions]))[:, 0]
    assert np.allclose(bit(states, actions), np.logaddexp(0, z)) and bit.action_size == 1
    assert bit.absorbing_reward() == pytest.approx(float(np.logaddexp(0, bit.logit(ended)[0])))
    assert bit.columns("state").tolist() == [True] * 3 + [False] * 2
    assert bit.columns("action").tolist() == [False] * 4 + [True]
    assert bit.columns("all").tolist() == [True] * 3 + [False, True]


@pytest.mark.parametrize("form", REWARD_FORMS)
@pytest.mark.parametrize("clip", [float("inf"), 1.0])
def test_the_reward_as_a_network(form: str, clip: float) -> None:
    x = RNG.normal(size=(200, 4)) * 3
    if form == "fairl":
        with pytest.raises(UserError, match="no layer"):
            reward_with(form).as_network()
        return
    reward = reward_with(form, clip=clip)
    assert np.allclose(reward.as_network()(x)[:, 0], reward.of_inputs(x), rtol=1e-13, atol=1e-13)
    assert (np.abs(reward.logit(x)) > clip).any() == (clip == 1.0)


@pytest.mark.parametrize("form", REWARD_FORMS)
def test_round_trip(form: str, tmp_path: Path) -> None:
    absorbing = np.array([0, 0, 1.0, 0.25])
    for reward in (reward_with(form), reward_with(form, state_size=2, absorbing=absorbing, clip=2.5)):
        path = tmp_path / "reward.npz"
        reward.save(path)
        first = path.read_bytes()
        found = LearnedReward.load(path)
        x = RNG.normal(size=(20, 4))
        assert np.array_equal(found.of_inputs(x), reward.of_inputs(x)) and found.sha256() == reward.sha256()
        assert (found.form, found.inputs, found.clip, found.state_size) == (
            reward.form,
            reward.inputs,
            reward.clip,
            reward.state_size,
        )
        assert found.provenance == reward.provenance and found.logit.input_names == reward.logit.input_names
        assert (found.absorbing is None) == (reward.absorbing is None) and is_reward(path)
        found.save(path)
        assert path.read_bytes() == first
        np.load(path, allow_pickle=False).close()


def test_the_hash_covers_all_that_defines_the_reward() -> None:
    reward = reward_with()
    bit = replace(reward, state_size=2, absorbing=np.array([0, 0, 1.0, 0]))
    others = [
        replace(reward, form="airl"),
        replace(reward, clip=3.0),
        replace(reward, state_size=2),
        replace(reward, inputs="state", state_size=4),
        bit,
        replace(bit, absorbing=np.array([0, 0, 1.0, 0.5])),
        replace(reward, logit=logit_net(4).rounded_to(np.float32)),
    ]
    assert len({one.sha256() for one in [reward, *others]}) == 8


def rewritten(path: Path, **changes: object) -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    header = json.loads(arrays["header"].tobytes()) | changes
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


def test_damaged_files_give_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "reward.npz"
    with pytest.raises(UserError, match="no reward at"):
        LearnedReward.load(path)
    reward_with().save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a whole file of a learned reward"):
            LearnedReward.load(path)
        assert not is_reward(path)
    for changes in ({"form": "airl"}, {"clip": 1.0}, {"sha256": "0"}):
        path.write_bytes(whole)
        rewritten(path, **changes)
        with pytest.raises(UserError, match="changed after it was written"):
            LearnedReward.load(path)
    for changes in ({"clip": "x"}, {"unknown": 1}, {"state_size": None}, {"format": 7}):
        path.write_bytes(whole)
        rewritten(path, **changes)
        with pytest.raises(UserError, match="reward"):
            LearnedReward.load(path)
    logit_net(4).save(path)
    with pytest.raises(UserError, match="holds no learned reward, but a lipctrl-plainnet-1"):
        LearnedReward.load(path)
    assert not is_reward(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(UserError, match="not a whole file"):
        LearnedReward.load(tmp_path / "array.npy")


def test_bad_rewards_and_bad_inputs_are_refused(tmp_path: Path) -> None:
    for changes, message in (
        ({"form": "airrl"}, "did you mean 'airl'"),
        ({"form": "fairl", "clip": float("inf")}, "needs a clip"),
        ({"inputs": "action"}, "unknown inputs"),
        ({"state_size": 0}, "do not split"),
        ({"state_size": 4}, "do not split"),
        ({"inputs": "state"}, "do not split"),
        ({"inputs": "state-next"}, "do not split"),
        ({"absorbing": np.zeros(4)}, "do not split"),
        ({"absorbing": np.zeros(3), "state_size": 2}, "4 finite numbers"),
        ({"absorbing": np.full(4, np.nan), "state_size": 2}, "4 finite numbers"),
        ({"logit": replace(logit_net(4), low=np.zeros(1))}, "no output limits"),
        ({"logit": PlainNet.mlp([np.ones((2, 4))], [np.zeros(2)], [])}, "one output"),
    ):
        with pytest.raises(UserError, match=message):
            reward_with(**changes)  # type: ignore[arg-type]
    reward = reward_with()
    for arguments, message in (
        ((np.zeros((5, 3)),), "needs actions, of size 1"),
        ((np.zeros((5, 2)), np.zeros((5, 1))), "states have shape"),
        ((np.zeros((5, 3)), np.zeros(5)), "actions have shape"),
        ((np.zeros((5, 3)), np.zeros((4, 1))), "differ in number"),
        ((np.full((5, 3), np.nan), np.zeros((5, 1))), "not finite"),
        ((np.zeros((5, 3)), np.full((5, 1), np.inf)), "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            reward(*arguments)
    with pytest.raises(UserError, match="without an absorbing state"):
        reward.absorbing_reward()
    with pytest.raises(UserError, match="must be JSON"):
        replace(reward, provenance={"seed": np.zeros(2)}).save(tmp_path / "reward.npz")
    assert not (tmp_path / "reward.npz").exists()


class Falling(gymnasium.Env[np.ndarray, np.ndarray]):
    """Counts up; ends in failure after three steps, or by the time limit after two."""

    observation_space = spaces.Box(-10, 10, (3,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, limit: int = 99) -> None:
        self.limit, self.t = limit, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        return np.full(3, self.t, np.float32), 7.0, self.t == 3, self.t == self.limit, {"t": self.t}


def test_the_wrapped_environment_pays_the_learned_reward() -> None:
    reward = reward_with("airl")
    env = RewardWrapper(Falling(), reward)
    env.reset(seed=0)
    for t in range(3):
        action = np.array([0.1 * t], np.float32)
        _, paid, terminated, _, info = env.step(action)
        assert paid == pytest.approx(float(reward(np.full(3, t), np.asarray(action, np.float64))), abs=1e-15)
        ended = {"environment_return": 21.0} if t == 2 else {}
        assert info == {"t": t + 1, "environment_reward": 7.0} | ended and terminated == (t == 2)
    pair = LearnedReward(logit_net(6), "airl", "state-next", 3)
    env = RewardWrapper(Falling(), pair)
    env.reset()
    assert env.step(np.zeros(1))[1] == pytest.approx(float(pair(np.zeros(3), None, np.ones(3))))


def test_a_failure_is_worth_the_absorbing_state_for_ever_and_a_time_limit_is_not() -> None:
    """The return of the episode equals that of the same episode continued in the absorbing state."""
    reward = LearnedReward(logit_net(5), "softplus", "state-action", 3, absorbing=np.array([0, 0, 0, 1.0, 0]))
    gamma = 0.9
    env = RewardWrapper(Falling(), reward, discount=gamma)
    env.reset()
    paid = [env.step(np.zeros(1))[1] for _ in range(3)]
    plain = [float(reward(np.full(3, t), np.zeros(1))) for t in range(3)]
    forever = plain + [reward.absorbing_reward()] * 400
    assert sum(gamma**k * r for k, r in enumerate(paid)) == pytest.approx(
        sum(gamma**k * r for k, r in enumerate(forever))
    )
    env = RewardWrapper(Falling(limit=2), reward, discount=gamma)
    env.reset()
    assert [env.step(np.zeros(1))[1] for _ in range(2)] == pytest.approx(plain[:2])
    env.reset()
    assert [env.step(np.zeros(1))[4].get("environment_return") for _ in range(2)] == [None, 14.0]


def test_environments_that_do_not_fit_are_refused() -> None:
    reward = reward_with()
    absorbing = LearnedReward(logit_net(5), "softplus", "state-action", 3, absorbing=np.array([0, 0, 0, 1.0, 0]))
    for call, message in (
        (lambda: RewardWrapper(gymnasium.make("CartPole-v1"), reward), "vectors of real numbers as actions"),
        (lambda: RewardWrapper(gymnasium.make("FrozenLake-v1"), reward), "vectors of real numbers as observations"),
        (lambda: RewardWrapper(gymnasium.make("MountainCarContinuous-v0"), reward), "environment has 2 and 1"),
        (lambda: RewardWrapper(Falling(), absorbing), "needed exactly"),
        (lambda: RewardWrapper(Falling(), reward, discount=0.9), "needed exactly"),
        (lambda: RewardWrapper(Falling(), absorbing, discount=1.0), "below 1"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_fresh_agent_trains_on_it() -> None:
    from stable_baselines3 import TD3

    env = RewardWrapper(gymnasium.make("Pendulum-v1"), reward_with())
    agent = TD3("MlpPolicy", env, learning_starts=20, buffer_size=200, batch_size=8, seed=0)
    agent.learn(60)
    stored = agent.replay_buffer
    assert stored is not None
    states, actions = stored.observations[:50, 0], agent.policy.unscale_action(stored.actions[:50, 0])
    expected = env.get_wrapper_attr("reward")(states, np.asarray(actions))
    assert np.allclose(stored.rewards[:50, 0], expected, atol=1e-5)
