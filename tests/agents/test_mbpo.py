"""MBPO: the published conformance, the model buffer, rollouts of a known system, diagnostics, and learning."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from torch import Tensor

from lipctrl.agents.mbpo import MBPO, ModelBuffer, RolloutSettings
from lipctrl.agents.regularisation import Smoothness
from lipctrl.agents.sac import SAC
from lipctrl.files import UserError
from lipctrl.models.dynamics import Dynamics, DynamicsSettings

TINY = DynamicsSettings(width=16, depth=2, cap=20)


def agent(env: Any = "Pendulum-v1", **others: Any) -> MBPO:
    settings: dict[str, Any] = {"learning_starts": 60, "batch_size": 256, "device": "cpu", "seed": 0, "dynamics": TINY}
    settings |= {"buffer_size": 5000, "policy_kwargs": {"net_arch": [16]}}
    settings["rollouts"] = RolloutSettings(refit_every=25, rows=40, epoch=100, schedule=(1, 3, 1, 3))
    return MBPO("MlpPolicy", env, **settings | others)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ((20, 100, 1, 15), {0: 1, 20: 1, 25: 1, 26: 2, 60: 8, 100: 15, 120: 15}),
        ((20, 150, 1, 15), {0: 1, 20: 1, 30: 2, 150: 15}),
        ((20, 100, 1, 1), {0: 1, 60: 1, 200: 1}),
        ((20, 100, 1, 25), {21: 1, 24: 2, 100: 25}),
        ((20, 300, 1, 25), {300: 25}),
    ],
)
def test_rollout_lengths_and_capacities_are_the_published_ones(
    schedule: tuple[int, int, int, int], expected: dict[int, int]
) -> None:
    """k = floor(k0 + (epoch - e0) / (e1 - e0) (k1 - k0)); capacity k * 400,000 for 100,000 rows every 250 of 1,000."""
    settings = RolloutSettings(rows=100_000, schedule=schedule)
    for epoch, length in expected.items():
        assert settings.length(1000 * epoch) == length
        assert settings.capacity(1000 * epoch + 999) == length * 400_000
    assert RolloutSettings(rows=100_000, retain=5, refit_every=1000).capacity(0) == 500_000


def test_three_epochs_have_the_published_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits, holdout rows, batches of 12 real and 244 predicted transitions, updates, lengths and capacities."""
    held: list[int] = []
    holdout = Dynamics._holdout
    monkeypatch.setattr(
        Dynamics, "_holdout", lambda self, *check: (held.append(len(check[0])), holdout(self, *check))[1]
    )
    splits: list[tuple[int, int]] = []
    real, predicted = SAC._transitions, ModelBuffer.sample
    monkeypatch.setattr(SAC, "_transitions", lambda self, n, size: (splits.append((0, size)), real(self, n, size))[1])
    monkeypatch.setattr(
        ModelBuffer,
        "sample",
        lambda self, n, size, draws: (splits.append((1, size)), predicted(self, n, size, draws))[1],
    )
    model = agent(gradient_steps=3, rollouts=RolloutSettings(refit_every=25, rows=40, epoch=100, schedule=(0, 2, 1, 3)))
    model.learn(300)
    fitted = list(range(61, 301, 25))
    assert [row["timesteps"] for row in model.history] == fitted
    assert [row["rollout/length"] for row in model.history] == [1 + (step // 100) for step in fitted]
    assert sorted(set(held)) == [step // 5 for step in fitted]
    assert set(splits) == {(0, 12), (1, 244)} and len(splits) == 2 * 240
    assert model._n_updates == 3 * 240
    assert len(model.model_buffer.fields[0]) == 40 * 3 * 4
    assert {row["model/steps"] for row in model.history} <= set(range(1, 21))


def test_the_first_actions_are_uniform_and_nothing_searches_for_anomalies() -> None:
    """The published warm-up draws from the action space, not from an untrained policy."""
    model, reference = agent(learning_starts=60), gymnasium.make("Pendulum-v1").action_space
    reference.seed(0)
    model.learn(60)
    assert not torch.is_anomaly_enabled()
    drawn = np.array([reference.sample() for _ in range(60)]) / 2  # scaled to [-1, 1]
    np.testing.assert_allclose(model.replay(slice(0, 60))[1].numpy(), drawn, atol=1e-6)


def test_model_buffer_keeps_the_newest_rows_through_a_change_of_size() -> None:
    buffer = ModelBuffer((1, 0), torch.device("cpu"))
    buffer.resize(10)

    def held() -> list[float]:
        assert torch.equal(buffer.fields[0].squeeze(-1), buffer.fields[1])
        return sorted(buffer.fields[1][: buffer.filled].tolist())

    for begin in range(0, 24, 4):
        rows = torch.arange(begin, begin + 4, dtype=torch.float32)
        buffer.add(rows[:, None], rows)
    assert held() == list(range(14, 24))
    buffer.resize(6)
    assert held() == list(range(18, 24))
    buffer.resize(9)
    rows = torch.tensor([50.0, 51.0])
    buffer.add(rows[:, None], rows)
    assert held() == [*range(18, 24), 50, 51]
    rows = torch.arange(100, 120, dtype=torch.float32)
    buffer.add(rows[:, None], rows)
    assert held() == list(range(111, 120))
    drawn = buffer.sample(3, 50, torch.Generator().manual_seed(0))
    assert drawn[0].shape == (3, 50, 1) and set(drawn[1].flatten().tolist()) == set(map(float, range(111, 120)))


class Drift(gymnasium.Env[Any, Any]):
    """x+ = x + (0.1, 0), reward x_1; never ends by itself; cut off after 50 steps."""

    def __init__(self, *, broken_at: int | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,))
        self.broken_at, self.count = broken_at, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.age = self.np_random.normal(size=2).astype(np.float32), 0
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.state, self.age, self.count = self.state + np.array([0.1, 0], np.float32), self.age + 1, self.count + 1
        seen = np.full(2, np.nan, np.float32) if self.count == self.broken_at else self.state
        return seen, float(self.state[0]), False, self.age == 50, {}


def rolled(**settings: Any) -> MBPO:
    rollouts = RolloutSettings(refit_every=200, rows=500, epoch=100, termination="never", **settings)
    dynamics = DynamicsSettings(width=32, depth=2, cap=400, probabilistic=False)
    model = agent(Drift(), learning_starts=400, rollouts=rollouts, dynamics=dynamics, gradient_steps=1)
    model.learn(401)
    return model


def test_rollouts_follow_the_system_and_truncation_does_not_end_them() -> None:
    model = rolled(schedule=(0, 0, 3, 3))
    states, _, rewards, next_states, going = (field[: model.model_buffer.filled] for field in model.model_buffer.fields)
    assert len(states) == 1500 and going.all()
    torch.testing.assert_close(next_states - states, torch.tensor([0.1, 0.0]).expand(1500, 2), atol=0.05, rtol=0)
    assert (rewards - next_states[:, 0]).square().mean() < 0.05 * next_states[:, 0].var()
    torch.testing.assert_close(states[500:1000], next_states[:500])  # the second step begins where the first ended
    *_, real = model.replay(slice(0, model.stored()))
    assert real.all()  # cut-off episodes in the replay buffer go on too


def test_a_biased_model_is_off_by_its_own_deviation() -> None:
    model = agent(rollouts=RolloutSettings(refit_every=25, rows=40, bias=2.0))
    model.learn(62)
    states, actions, *_ = model.replay(slice(0, 50))
    spread = model.model.spread(states, actions)
    model.model_draws.manual_seed(3)
    moved = model.predict_step(states, actions)[0]
    plain, _ = model.model.sample(states, actions, torch.Generator().manual_seed(3))
    torch.testing.assert_close(moved - plain, 2 * spread)


def test_predictions_that_are_not_finite_end_where_they_began() -> None:
    model = agent()
    model.learn(62)
    states = torch.tensor([[0.0, 1.0, 0.0], [torch.inf, 0.0, 0.0]])
    model.model.sample = lambda s, a, d: (s + torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, torch.nan]))  # type: ignore[method-assign]
    next_states, rewards, ended = model.predict_step(states, torch.zeros(2, 1))
    assert ended.tolist() == [False, True] and rewards.tolist() == [1.0, 0.0] and torch.equal(next_states[1], states[1])


def quadratic(model: MBPO, slope: Tensor) -> None:
    """Make both critics linear in the state: Q = slope . s."""
    for net in model.critic.q_networks:
        for parameter in net.parameters():
            parameter.data.zero_()
        first, last = net[0], net[-1]
        first.weight.data[0, : len(slope)], first.weight.data[1, : len(slope)] = slope, -slope
        last.weight.data[0, 0], last.weight.data[0, 1] = 1.0, -1.0


def test_diagnostics_of_a_linear_critic_are_exact() -> None:
    """|sigma * slope| everywhere; the secant of the box's worst vertex; V's error is the slope times the model's."""
    model = agent()
    model.learn(90)
    slope = torch.tensor([1.0, -2.0, 0.5])
    quadratic(model, slope)
    states, actions, _, next_states, _ = model.replay(slice(0, 60))
    unit = model.deviation()
    torch.testing.assert_close(model.diagnostics.slopes(model, states, actions), (unit * slope).norm().expand(60))
    worst = (unit * slope).abs().sum() / 3**0.5
    found = model.diagnostics.secants(model, states, actions)
    torch.testing.assert_close(found, worst.expand(60), rtol=1e-3, atol=1e-3)
    offset = torch.tensor([0.3, 0.1, -0.4])
    newest = [(model.stored() - 25 + k) for k in range(25)]
    truth = model.replay(torch.tensor(newest))[3]
    model.model.sample = lambda s, a, d: (truth + offset, torch.zeros(len(s)))  # type: ignore[method-assign]
    error, relative = model.diagnostics.value_error(model, 25)
    assert error == pytest.approx(float((slope * offset).sum().abs()), rel=1e-3)
    assert relative == pytest.approx(error / float((truth @ slope).std()), rel=1e-3)


def test_radius_from_the_models_own_deviation() -> None:
    model = agent(smoothness=Smoothness(perturbation="fgsm", unit="model"), gradient_steps=2)
    model.learn(70)
    batch = model.batches(2, 256)
    flat = model.model.spread(batch.states.flatten(0, 1), batch.actions.flatten(0, 1))
    torch.testing.assert_close(batch.scale, flat.view(2, 256, 3))


def test_bad_input() -> None:
    with pytest.raises(UserError, match="no termination rule"):
        agent(Drift())
    with pytest.raises(UserError, match="not finite at step 30"):
        agent(Drift(broken_at=30), rollouts=RolloutSettings(termination="never")).learn(100)
    with pytest.raises(ValueError, match="schedule"):
        RolloutSettings(schedule=(5, 2, 1, 1))
    with pytest.raises(ValueError, match="bias must be finite"):
        RolloutSettings(bias=float("nan"))


@pytest.mark.parametrize("seed", range(20))
def test_value_error_bounds_of_finite_processes(seed: int) -> None:
    """|V* - V^| <= g / (1 - g) sup |e_V^| <= g / (1 - g) Lip(V^) sup W1 on random processes embedded in the line."""
    rng, states, actions, discount = np.random.default_rng(seed), 8, 3, 0.9
    place = np.sort(rng.uniform(size=states))
    true, learned = (rng.dirichlet(np.full(states, 0.3), size=(states, actions)) for _ in range(2))
    learned = 0.7 * true + 0.3 * learned
    reward = rng.normal(size=(states, actions))

    def optimum(kernel: np.ndarray) -> np.ndarray:
        value = np.zeros(states)
        for _ in range(500):
            value = (reward + discount * kernel @ value).max(1)
        return value

    value = optimum(learned)
    error = np.abs((true - learned) @ value).max()
    distance = (np.abs(np.cumsum(true - learned, -1))[..., :-1] * np.diff(place)).sum(-1).max()  # W1 on the line
    lipschitz = np.abs(np.diff(value) / np.diff(place)).max()
    factor = discount / (1 - discount)
    gap = np.abs(optimum(true) - value).max()
    assert 0 < gap <= factor * error * (1 + 1e-9) and error <= lipschitz * distance * (1 + 1e-9)


@pytest.mark.slow
def test_solves_the_inverted_pendulum_within_5000_real_steps() -> None:
    settings = RolloutSettings(epoch=250)
    model = agent(
        "InvertedPendulum-v5", learning_starts=500, gradient_steps=10, policy_kwargs={"net_arch": [64, 64]},
        dynamics=DynamicsSettings(width=100, depth=3, cap=250), rollouts=settings, target_entropy=-0.05,
    )  # fmt: skip
    model.learn(5000)
    assert evaluate_policy(model, model.get_env(), 5)[0] == 1000  # type: ignore[arg-type]
