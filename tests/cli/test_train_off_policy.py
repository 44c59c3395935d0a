"""`lipctrl train sac`, `train mbpo` and `plot`: run folders, reproducibility, exact resume, bad input."""

import json
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv

import lipctrl.cli.off_policy
from lipctrl.agents.checkpoint import load_agents
from lipctrl.agents.sac import SAC
from lipctrl.cli.train_sac import SacTraining, TrainSettings
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import LearnedReward
from lipctrl.runs import read_metrics

Run = Callable[..., tuple[int, str, str]]
SMALL = [
    "--env",
    "InvertedPendulum-v5",
    "--hidden",
    "8",
    "--timesteps",
    "130",
    "--log-interval",
    "50",
    "--episodes",
    "1",
]
SMALL += ["--learning-starts", "60", "--batch", "32", "--updates", "2"]
MODEL = ["--dynamics.width", "16", "--dynamics.depth", "1", "--dynamics.cap", "10", "--rollouts.refit-every", "20"]
MODEL += ["--rollouts.rows", "30"]
FILES = ("metrics.csv", "policy.npz")


@pytest.mark.parametrize("kind", ["sac", "mbpo"])
def test_one_seed_gives_the_same_bytes_and_a_policy_that_certifies(tmp_path: Path, run: Run, kind: str) -> None:
    extra = MODEL if kind == "mbpo" else []
    for name in ("a", "b"):
        status, out, _ = run("train", kind, *SMALL, *extra, "--lip", 5, "--out", tmp_path / name)
        assert status == 0 and "mean return" in out
    for name in (*FILES, *(["mechanism.csv"] if kind == "mbpo" else [])):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert [row["timesteps"] for row in read_metrics(tmp_path / "a" / "metrics.csv")] == [50, 100, 130]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "finished"
    status, out, _ = run("certify", tmp_path / "a")
    assert status == 0
    net = PlainNet.load(tmp_path / "a" / "policy.npz")
    assert net.input_names[1] == "pole angle [rad]"


def test_several_seeds_are_trained_side_by_side_and_differ(tmp_path: Path, run: Run) -> None:
    assert run("train", "mbpo", *SMALL, *MODEL, "--seeds", 2, "--seed", 7, "--out", tmp_path / "a")[0] == 0
    first, second = tmp_path / "a" / "seed-7", tmp_path / "a" / "seed-8"
    assert (first / "policy.npz").read_bytes() != (second / "policy.npz").read_bytes()
    assert run("train", "mbpo", *SMALL, *MODEL, "--seed", 8, "--out", tmp_path / "b")[0] == 0
    alone, together = (read_metrics(path / "mechanism.csv") for path in (tmp_path / "b", second))
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, rel=1e-3, nan_ok=True)


def test_an_interrupted_run_is_resumed_exactly(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", "mbpo", *SMALL, *MODEL, "--seeds", 2, "--out", tmp_path / "whole")[0] == 0
    save, saved = lipctrl.cli.off_policy.Training.save, []

    def interrupting(self: lipctrl.cli.off_policy.Training) -> None:
        save(self)
        saved.append(True)
        if len(saved) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(lipctrl.cli.off_policy.Training, "save", interrupting)
    status, out, _ = run("train", "mbpo", *SMALL, *MODEL, "--seeds", 2, "--out", tmp_path / "cut")
    assert status == 130 and "interrupted after 100 steps" in out
    monkeypatch.setattr(lipctrl.cli.off_policy.Training, "save", save)
    assert run("train", "mbpo", "--resume", tmp_path / "cut")[0] == 0
    for seed in ("seed-0", "seed-1"):
        for name in (*FILES, "mechanism.csv"):
            assert (tmp_path / "cut" / seed / name).read_bytes() == (tmp_path / "whole" / seed / name).read_bytes(), (
                name
            )
    status, _, err = run("train", "mbpo", "--resume", tmp_path / "cut")
    assert status == 2 and "finished" in err


def test_a_run_whose_settings_were_changed_is_not_resumed(tmp_path: Path, run: Run) -> None:
    assert run("train", "sac", *SMALL, "--out", tmp_path / "a")[0] == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    (tmp_path / "a" / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    settings = (tmp_path / "a" / "settings.yaml").read_text()
    (tmp_path / "a" / "settings.yaml").write_text(settings.replace("discount: 0.99", "discount: 0.9"))
    status, _, err = run("train", "sac", "--resume", tmp_path / "a")
    assert status == 2 and f"{tmp_path / 'a' / 'settings.yaml'} was changed or damaged after the run wrote it" in err


def test_a_run_is_not_resumed_with_other_settings_than_its_own(tmp_path: Path, run: Run) -> None:
    assert run("train", "mbpo", *SMALL, *MODEL, "--out", tmp_path / "a")[0] == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    (tmp_path / "a" / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    before = (tmp_path / "a" / "checkpoint.pt").read_bytes()
    others = (("updates", "3", "2"), ("dynamics.cap", "11", "10"), ("out", "b", str(tmp_path / "a")))
    for flag, value, used in others:
        status, _, err = run("train", "mbpo", "--resume", tmp_path / "a", f"--{flag}", value)
        assert status == 2 and err.splitlines()[-1] == (
            f"lipctrl: the run was started with {flag} {used} and goes on with it, but {value} is asked for: "
            "leave it out, or start a new run"
        )
    assert (tmp_path / "a" / "checkpoint.pt").read_bytes() == before
    assert run("train", "mbpo", "--resume", tmp_path / "a", "--updates", 2)[0] == 0


def test_a_model_that_diverges_keeps_the_last_checkpoint(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = lipctrl.models.dynamics.Dynamics._losses, []

    def broken(self: object, *arguments: torch.Tensor, weighted: bool) -> torch.Tensor:
        calls.append(True)
        found = losses(self, *arguments, weighted=weighted)  # type: ignore[arg-type]
        return found * torch.nan if len(calls) > 30 else found

    monkeypatch.setattr(lipctrl.models.dynamics.Dynamics, "_losses", broken)
    status, _, err = run("train", "mbpo", *SMALL, *MODEL, "--out", tmp_path / "a")
    sentence = r"lipctrl: the dynamics model diverged in epoch \d+: lower its learning rate"
    assert status == 2 and re.fullmatch(sentence, err.splitlines()[-1])
    stopped_with_its_last_checkpoint(tmp_path / "a")


def stopped_with_its_last_checkpoint(path: Path) -> None:
    """A failed run from which one can go on."""
    assert json.loads((path / "run.json").read_text())["status"] == "failed"
    assert (path / "checkpoint.pt").exists() and (path / "policy.npz").exists()
    agent = SAC("MlpPolicy", "InvertedPendulum-v5", policy_kwargs={"net_arch": [8]}, buffer_size=130, device="cpu")
    if not (path / "mechanism.csv").exists():
        load_agents([agent], (path / "checkpoint.pt").read_bytes())
        assert agent.num_timesteps >= 50 and all(value.isfinite().all() for value in agent.policy.parameters())


@pytest.mark.parametrize("kind", ["sac", "mbpo"])
def test_critics_that_diverge_keep_the_last_checkpoint(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    report = SAC.report

    def broken(self: SAC, losses: Sequence[float], updates: int) -> None:
        report(self, [float("nan"), 0.0, 0.0] if self.num_timesteps > 100 else losses, updates)

    monkeypatch.setattr(SAC, "report", broken)
    status, _, err = run("train", kind, *SMALL, *(MODEL if kind == "mbpo" else []), "--out", tmp_path / "a")
    assert status == 2
    assert err.splitlines()[-1] == "lipctrl: SAC diverged after 82 updates: its critics' loss is nan"
    stopped_with_its_last_checkpoint(tmp_path / "a")


class Broken(InvertedPendulumEnv):
    """The inverted pendulum whose sensor fails after 110 steps."""

    count = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step."""
        seen, *others = super().step(action)
        self.count += 1
        return (seen * np.nan if self.count > 110 else seen), *others  # type: ignore[return-value]


class Strange(gymnasium.Env[Any, Any]):
    """An environment that is never stepped."""

    def __init__(self, observations: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, gymnasium.spaces.Box(-1.0, 1.0, (1,))


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Registers environments for one test."""
    before = dict(gymnasium.registry)
    yield gymnasium.register
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.mark.parametrize("kind", ["sac", "mbpo"])
def test_an_observation_that_is_not_finite_stops_the_run(
    tmp_path: Path, run: Run, register: Callable[..., None], kind: str
) -> None:
    register("Broken-v0", Broken, max_episode_steps=1000)
    extra = [*MODEL, "--rollouts.termination", "never"] if kind == "mbpo" else []
    status, _, err = run("train", kind, "--env", "Broken-v0", *SMALL[2:], *extra, "--out", tmp_path / "a")
    assert status == 2
    assert err.splitlines()[-1] == "lipctrl: the environment returned a number that is not finite at step 111"
    stopped_with_its_last_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("kind", ["sac", "mbpo"])
def test_images_and_discrete_spaces_are_refused(
    tmp_path: Path, run: Run, register: Callable[..., None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spaces = {"Image-v0": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), "Grid-v0": gymnasium.spaces.Discrete(4)}
    for name, space in spaces.items():
        register(name, Strange, kwargs={"observations": space}, disable_env_checker=True)
        status, _, err = run("train", kind, "--env", name)
        sentence = f"lipctrl: {name} has observations in {space}; lipctrl needs a box of one axis"
        assert status == 2 and " ".join(err.split()) == " ".join(sentence.split())
    status, _, err = run("train", kind, "--env", "CartPole-v1")
    assert status == 2
    assert err.splitlines()[-1] == "lipctrl: CartPole-v1 has actions in Discrete(2); lipctrl needs a box of one axis"
    assert not list(tmp_path.iterdir())


def test_a_fresh_agent_is_trained_on_a_learned_reward(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is the learned reward of state and action; evaluations are of the environment's; exact resume."""
    net = PlainNet.mlp([np.array([[1.0, -2.0, 0.5, 0.1, 3.0]])], [np.array([0.7])], [])
    path = tmp_path / "reward.npz"
    LearnedReward(net, "softplus", "state-action", 4).save(path)
    (agent,) = SacTraining.prepare(TrainSettings(env="InvertedPendulum-v5", hidden=(8,), reward=str(path))).agents
    agent.learn(20)
    states, actions, rewards, *_ = agent.replay(slice(0, 20))
    scaled = agent.policy.unscale_action(actions.numpy())
    np.testing.assert_allclose(rewards, LearnedReward.load(path)(states, scaled), rtol=1e-5)
    assert rewards.std() > 0
    extra = ["--reward", path]
    assert run("train", "sac", *SMALL, *extra, "--out", tmp_path / "whole")[0] == 0
    returns = [row["evaluation/mean_return"] for row in read_metrics(tmp_path / "whole" / "metrics.csv")]
    assert all(value == round(value) for value in returns)  # the environment pays 1 per step
    save = lipctrl.cli.off_policy.Training.save

    def interrupting(self: lipctrl.cli.off_policy.Training) -> None:
        save(self)
        if self.agents[0].num_timesteps == 100:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(lipctrl.cli.off_policy.Training, "save", interrupting)
        assert run("train", "sac", *SMALL, *extra, "--out", tmp_path / "cut")[0] == 130
    original = path.read_bytes()
    LearnedReward(net, "airl", "state-action", 4).save(path)
    status, _, err = run("train", "sac", "--resume", tmp_path / "cut")
    assert status == 2 and "file of reward is not the one" in err
    path.write_bytes(original)
    assert run("train", "sac", "--resume", tmp_path / "cut")[0] == 0
    for name in FILES:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    status, _, err = run("train", "sac", "--env", "Pendulum-v1", *extra, "--out", tmp_path / "other")
    assert status == 2 and "learned on 4 observations" in err and not (tmp_path / "other").exists()


def test_plot_shows_the_mechanism(tmp_path: Path, run: Run) -> None:
    for name in ("a", "b"):
        assert run("train", "mbpo", *SMALL, *MODEL, "--out", tmp_path / name)[0] == 0
    status, out, _ = run("plot", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "m.svg")
    figure = (tmp_path / "m.svg").read_text()
    assert status == 0 and "2 runs" in out
    for words in ("value-aware model error", "slope of Q", "spread of predictions", "holdout MSE", "a (1 seed)"):
        assert words in figure


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", "mbpo", "--env", "MountainCarContinuous-v0"],
            "lipctrl: no termination rule is known for Continuous_MountainCarEnv: use termination 'learned' or 'never'",
        ),
        (["train", "sac", "--updates", "0"], "updates"),
        (["train", "sac", "--critic-lip", "3"], "bounded actor"),
        (["train", "mbpo", "--env", "Hoper-v5"], "Hopper-v5"),
        (["train", "mbpo", "--dynamics.elites", "3"], "elites"),
        (["train", "sac", "--device", "cuda"], "device cuda"),
        (["train", "sac", "--resume", "nowhere"], "not a run folder"),
        (["plot"], "at least one run"),
    ],
)
def test_bad_input(run: Run, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = run(*arguments)
    assert status == 2 and words in " ".join(err.split())
    assert not list(tmp_path.iterdir())
