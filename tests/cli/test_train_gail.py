"""`lipctrl train gail`: run folders, reproducibility, exact resume, what is said at the end, bad input."""

import io
import json
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor as StepMonitor

from lipctrl.agents.bc import BC
from lipctrl.agents.discriminator import RewardSettings
from lipctrl.agents.gail import GAIL, GailSettings
from lipctrl.agents.monitor import Monitor
from lipctrl.agents.off_policy import ImitationSettings
from lipctrl.agents.sac import SAC
from lipctrl.certify.bracket import certify
from lipctrl.cli.clone import pairs
from lipctrl.cli.demos_collect import CollectSettings, collect_demonstrations
from lipctrl.cli.loading import load_network
from lipctrl.cli.plot import levels_of
from lipctrl.cli.train_gail import beside_expert, favoured
from lipctrl.demos.demonstrations import ARRAYS, Demonstrations, Trajectory
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import LearnedReward
from lipctrl.policy import PlainPolicy
from lipctrl.runs import read_metrics
from lipctrl.seeding import seed_of

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--timesteps", "80", "--log-interval", "40", "--learning-starts", "30", "--episodes", "1", "--batch", "16"]
SMALL += ["--hidden", "8", "--reward.hidden", "8", "--reward.batch", "16", "--imitation.monitor-every", "20"]
PENALISED: list[str] = []
CERTIFIED = ["--reward.regulariser", "certified"]
SOFT = ["--imitation.stem", "sac"]
FILES = ("metrics.csv", "imitation.csv", "policy.npz", "reward.npz")


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes of the expert of Pendulum-v1."""
    path = tmp_path_factory.mktemp("demos") / "d.npz"
    settings = CollectSettings(env="Pendulum-v1", expert="swing-up", episodes=2, dither=0.0, max_steps=40)
    collect_demonstrations(settings).save(path)
    return path


def train(run: Run, demos: Path, out: Path, *more: object) -> tuple[int, str, str]:
    return run("train", "gail", *SMALL, "--demos", demos, "--out", out, *more)


@pytest.mark.parametrize(
    "kind",
    [
        PENALISED,
        [*CERTIFIED, "--imitation.n-step", "3"],
        [*SOFT, "--reward.spectral"],
        [*SOFT, *CERTIFIED, "--lip", "5"],
    ],
    ids=["td3", "td3-certified", "sac-spectral", "sac-certified-lip"],
)
def test_an_interrupted_run_is_resumed_exactly(
    tmp_path: Path, run: Run, demos: Path, monkeypatch: pytest.MonkeyPatch, kind: list[str]
) -> None:
    """Stopped between two checkpoints, in the middle of an episode; two seeds as one batch."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(run, demos, whole, "--seeds", 2, *kind)[0] == 0
    report = GAIL.report

    def interrupting(self: GAIL, losses: Sequence[float], updates: int) -> None:
        report(self, losses, updates)
        if self.num_timesteps == 60 and self.seed == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(GAIL, "report", interrupting)
        status, out, _ = train(run, demos, cut, "--seeds", 2, *kind)
    assert status == 130 and "interrupted after 60 steps" in out
    assert run("train", "gail", "--resume", cut)[0] == 0
    for seed in ("seed-0", "seed-1"):
        for name in FILES:
            assert (cut / seed / name).read_bytes() == (whole / seed / name).read_bytes(), (seed, name)
        assert [row["timesteps"] for row in read_metrics(cut / seed / "metrics.csv")] == [40, 80]
        assert [row["timesteps"] for row in read_metrics(cut / seed / "imitation.csv")] == [40, 60, 80]
    assert (whole / "seed-0" / "reward.npz").read_bytes() != (whole / "seed-1" / "reward.npz").read_bytes()
    status, _, err = run("train", "gail", "--resume", cut)
    assert status == 2 and "finished" in err


def test_a_run_folder_holds_policy_and_reward_and_its_next_commands_run(tmp_path: Path, run: Run, demos: Path) -> None:
    extra = [*CERTIFIED, "--reward.k", 2, "--lip", 5, "--demonstrations", 1]
    status, out, _ = train(run, demos, tmp_path / "a", *extra)
    assert status == 0 and "the expert's" in out
    proved = re.search(r"slope of the reward, proved: at most ([\d.]+) in normalised units", out)
    assert proved is not None and 0.5 < float(proved[1]) <= 2
    first = Demonstrations.load(demos).trajectories().__next__()
    reward = LearnedReward.load(tmp_path / "a" / "reward.npz")
    assert reward.provenance["demonstrations"] == 1 and reward.provenance["env_id"] == "Pendulum-v1"
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["demos_sha256"] == reward.provenance["demos_sha256"] != Demonstrations.load(demos).sha256()
    assert reward.logit.input_names[-2:] == ("absorbing [-]", "action 0 [-]")
    assert reward.logit.input_mean is not None  # in standard deviations of the one episode that was imitated
    np.testing.assert_allclose(reward.logit.input_mean[:3], first.observations[:-1].mean(0), rtol=1e-6, atol=1e-6)
    assert any("proved" in line for line in record["findings"])
    assert PlainNet.load(tmp_path / "a" / "policy.npz").input_size == 3
    commands = [line.removeprefix("next:").strip() for line in out.splitlines() if "lipctrl " in line]
    assert [line.split()[1] for line in commands] == ["plot", "certify", "reward", "evaluate"]
    assert run(*commands[1].split()[1:])[0] == 0
    zipped = load_network(tmp_path / "a" / "model.zip")  # its critics have LayerNorm, which no policy class knows
    assert np.array_equal(zipped(first.observations), PlainNet.load(tmp_path / "a" / "policy.npz")(first.observations))
    assert run(*commands[2].split()[1:], "--method", "own")[0] == 0


@pytest.mark.parametrize("inputs", ["state", "state-next"])
def test_rewards_of_other_inputs_are_proved_plotted_and_trained_on(
    tmp_path: Path, run: Run, demos: Path, inputs: str
) -> None:
    status, out, _ = train(run, demos, tmp_path / "a", *CERTIFIED, "--reward.inputs", inputs)
    assert status == 0 and ("(state" in out and "next" in out) == (inputs == "state-next") and "action" not in out
    path = tmp_path / "a" / "reward.npz"
    reward = LearnedReward.load(path)
    assert reward.inputs == inputs and reward.logit.input_names[3:] == (
        ("absorbing [-]",) + tuple(f"next {name}" for name in reward.logit.input_names[:3]) * (inputs == "state-next")
    )
    assert run("reward", "certify", path, "--method", "own", "--require", 1.001, "--units", "normalised")[0] == 0
    names = [name.rpartition(" [")[0] for name in reward.logit.input_names]
    across = ["--across", names[0], "--up", names[-1]]
    assert run("reward", "plot", path, *across, "--demos", demos, "--out", tmp_path / "r.svg")[0] == 0
    fresh = ["--env", "Pendulum-v1", "--timesteps", 60, "--learning-starts", 30, "--log-interval", 30, "--episodes", 1]
    assert run("train", "sac", *fresh, "--hidden", 8, "--reward", path, "--out", tmp_path / "b")[0] == 0


def test_plot_shows_the_learned_reward(tmp_path: Path, run: Run, demos: Path) -> None:
    for name, seeds in (("a", 1), ("b", 2)):
        assert train(run, demos, tmp_path / name, "--seeds", seeds)[0] == 0
    status, out, _ = run("plot", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "m.svg")
    figure = (tmp_path / "m.svg").read_text()
    assert status == 0 and "2 runs, 3 seeds" in out
    for words in ("C-validity", "slope of the logit", "accuracy", "a (1 seed)", "b (2 seeds)"):
        assert words in figure
    expert, k = levels_of(tmp_path / "a")
    assert k == 1 and expert == pytest.approx(Demonstrations.load(demos).returns.mean())
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text("{}")
    (other / "mechanism.csv").write_text("timesteps\n1\n")
    status, _, err = run("plot", tmp_path / "a", other)
    assert status == 2 and "runs of lipctrl train gail and of lipctrl train mbpo do not share" in err
    (other / "mechanism.csv").unlink()
    status, _, err = run("plot", other)
    assert status == 2 and "neither mechanism.csv nor imitation.csv" in err


@pytest.mark.parametrize("method", ["sqil", "ls-iq"])
def test_baselines_learn_no_reward_and_are_resumed_exactly(
    tmp_path: Path, run: Run, demos: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    common = ["--timesteps", 80, "--log-interval", 40, "--learning-starts", 30, "--episodes", 1, "--batch", 16]
    common += ["--hidden", 8, "--demos", demos, "--method", method, "--imitation.subsample", 2]
    common += ["--reward.hidden", 64, 64]  # the default, written out in settings of before
    whole, cut, report = tmp_path / "whole", tmp_path / "cut", SAC.report
    status, out, _ = run("train", "gail", *common, "--out", whole)
    assert status == 0 and "the expert's" in out and "reward certify" not in out and "slope" not in out

    def interrupting(self: SAC, losses: Sequence[float], updates: int) -> None:
        report(self, losses, updates)
        if self.num_timesteps == 60:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(SAC, "report", interrupting)
        assert run("train", "gail", *common, "--out", cut)[0] == 130
    assert run("train", "gail", "--resume", cut)[0] == 0
    for name in ("metrics.csv", "policy.npz"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert list(read_metrics(whole / "metrics.csv")[0])[-1] == "train/ent_coef"
    assert not (whole / "reward.npz").exists() and not (whole / "imitation.csv").exists()


CLONED = ["--method", "bc", "--timesteps", 200, "--log-interval", 80, "--episodes", 2, "--hidden", 8, "--lip", 3]


def test_cloning_is_a_method_with_the_same_run_folder(tmp_path: Path, run: Run, demos: Path) -> None:
    """A bounded policy of each seed, evaluated from GAIL's start states."""
    for name in ("a", "b"):
        status, out, _ = run("train", "gail", *CLONED, "--demos", demos, "--seeds", 2, "--out", tmp_path / name)
        assert status == 0 and "the expert's" in out
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    test = StepMonitor(gymnasium.make("Pendulum-v1"))
    for seed, found in zip(("seed-0", "seed-1"), record["results"]["mean_return"], strict=True):
        for name in ("metrics.csv", "policy.npz"):
            assert (tmp_path / "a" / seed / name).read_bytes() == (tmp_path / "b" / seed / name).read_bytes()
        rows = read_metrics(tmp_path / "a" / seed / "metrics.csv")
        assert [row["timesteps"] for row in rows] == [80, 160, 200]
        net = PlainNet.load(tmp_path / "a" / seed / "policy.npz")
        assert certify(net).upper.bound <= 3 * (1 + 1e-6)
        test.reset(seed=seed_of(1000, "evaluation") % 2**31)
        mean, _ = evaluate_policy(PlainPolicy(net), test, 2)  # type: ignore[arg-type]
        assert rows[-1]["evaluation/mean_return"] == found == pytest.approx(mean, rel=1e-3)
    assert record["status"] == "finished" and record["expert_return"] == Demonstrations.load(demos).returns.mean()


def test_cloning_sees_the_pairs_that_gail_sees(demos: Path) -> None:
    found = Demonstrations.load(demos)
    twin = GAIL("MlpPolicy", "Pendulum-v1", demonstrations=found, imitation=GailSettings(subsample=7), seed=1)
    assert twin.expert is not None
    mean, scale = (twin.memory.get_buffer(f"reward_{name}").numpy() for name in ("mean", "scale"))
    ours = (pairs(found, 7, seed=1).pairs()[0] - mean) / scale
    theirs = torch.cat([twin.expert.pairs, twin.expert.held])[:, :3].numpy()
    np.testing.assert_allclose(ours[np.argsort(ours[:, 0])], theirs[np.argsort(theirs[:, 0])], atol=1e-4)


def test_interrupted_cloning_is_started_anew(
    tmp_path: Path, run: Run, demos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = BC.train

    def interrupting(self: BC, rate: float) -> float:
        if self.num_timesteps == 100:
            signal.raise_signal(signal.SIGINT)
        return whole(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(BC, "train", interrupting)
        status, out, _ = run("train", "gail", *CLONED, "--demos", demos, "--out", tmp_path / "cut")
    assert status == 130 and "started anew" in out
    status, _, err = run("train", "gail", "--resume", tmp_path / "cut")
    assert status == 2 and "start it anew" in err


@pytest.mark.parametrize("family", ["orthogonal", "aol"])
def test_the_closing_line_proves_layer_wise_rewards_too(tmp_path: Path, run: Run, demos: Path, family: str) -> None:
    """Their activation, maxmin, has no multipliers; the agent's zip with LayerNorm critics is certified as it lies."""
    status, out, _ = train(run, demos, tmp_path / "a", *CERTIFIED, "--reward.k", 2, "--reward.family", family)
    proved = re.search(r"slope of the reward, proved: at most ([\d.]+) in normalised units", out)
    assert status == 0 and proved is not None and 0.1 < float(proved[1]) <= 2
    status, out, _ = run("certify", tmp_path / "a" / "model.zip", "--method", "product")
    assert status == 0
    reward = tmp_path / "a" / "reward.npz"
    status, _, err = run("reward", "certify", reward, "--method", "own")
    assert status == 2 and "the method auto runs all that apply" in " ".join(err.split())


def test_the_penalised_reward_is_called_an_estimate(tmp_path: Path, run: Run, demos: Path) -> None:
    status, out, _ = train(run, demos, tmp_path / "a")
    assert status == 0 and "an estimate, not a bound" in out and "proved:" not in out


def test_the_collapse_is_a_plain_line_once_per_run(
    tmp_path: Path, run: Run, demos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Monitor, "diagnosis", lambda *_: "the discriminator has won; lower ratio")
    status, _, err = train(run, demos, tmp_path / "a", "--seeds", 2)
    assert status == 0 and err.count("warning: the discriminator has won; lower ratio\n") == 1
    assert "CollapseWarning" not in err
    assert json.loads((tmp_path / "a" / "run.json").read_text())["warning"].endswith("lower ratio")


@pytest.mark.parametrize(
    ("form", "absorbing", "ended", "words"),
    [
        ("softplus", False, True, "positive: it favours survival"),
        ("d", False, True, "positive: it favours survival"),
        ("softplus", True, True, "staying alive pays by itself; the absorbing state"),
        ("log-d", False, True, "negative: it favours an early end"),
        ("log-d", True, True, ""),
        ("airl", False, True, ""),
        ("softplus", False, False, ""),
    ],
)
def test_what_a_reward_form_favours(form: Any, absorbing: bool, ended: bool, words: str) -> None:
    settings = ImitationSettings(reward=RewardSettings(form=form, absorbing=absorbing))
    found = favoured(settings, ended=ended)
    assert words in found and bool(words) == bool(found)


def test_ends_that_only_the_agents_see_are_told(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "d.npz"
    settings = CollectSettings(env="InvertedPendulum-v5", expert="lqr", episodes=1, dither=0.0, max_steps=30)
    made = collect_demonstrations(settings)
    assert not made.terminations.any()
    made.save(path)
    status, out, _ = train(
        run,
        path,
        tmp_path / "a",
        "--env",
        "InvertedPendulum-v5",
        "--reward.no-absorbing",
        "--learning-starts",
        100,
    )
    assert status == 0 and "episodes end here and the reward softplus is positive: it favours survival" in out
    assert "% of it" in out and "expert's 30," in out


def test_a_share_is_only_told_of_positive_returns() -> None:
    def of(reward: float) -> Demonstrations:
        one = Trajectory(np.zeros((3, 1)), np.zeros((2, 1)), np.zeros((2, 1)), np.full(2, reward), False, True)
        return Demonstrations.from_trajectories([one], {})

    assert beside_expert(5.0, of(5.0)) == "mean return 5, the expert's 10, 50% of it"
    assert beside_expert(-15.0, of(-5.0)) == "mean return -15, the expert's -10"
    assert "no rewards" in beside_expert(5.0, of(0.0))


def test_other_demonstrations_and_changed_settings_are_not_resumed(
    tmp_path: Path, run: Run, demos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(demos.read_bytes())
    assert train(run, path, tmp_path / "a")[0] == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    (tmp_path / "a" / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    found = Demonstrations.load(demos)
    Demonstrations.from_trajectories(list(found.trajectories())[::-1], found.provenance).save(path)
    status, _, err = run("train", "gail", "--resume", tmp_path / "a")
    assert status == 2 and "file of demos is not the one" in err
    path.write_bytes(demos.read_bytes())
    settings = (tmp_path / "a" / "settings.yaml").read_text()
    (tmp_path / "a" / "settings.yaml").write_text(settings.replace("discount: 0.99", "discount: 0.9"))
    status, _, err = run("train", "gail", "--resume", tmp_path / "a")
    assert status == 2 and "settings.yaml" in err


def changed(demos: Path, path: Path, **arrays: Any) -> Path:
    """A copy of a demonstration file with other arrays (None: without), whose own hash is not right any more."""
    with np.load(io.BytesIO(demos.read_bytes())) as stored:
        found = {name: stored[name] for name in (*ARRAYS, "header")} | arrays
    np.savez(path, **{name: value for name, value in found.items() if value is not None})
    return path


@pytest.mark.parametrize("method", ["sqil", "ls-iq", "bc"])
def test_baselines_leave_the_units_of_a_reward_alone(run: Run, method: str) -> None:
    """So that the preset of an environment serves all methods: what is missing is a file."""
    status, _, err = run("train", "gail", "--config", "hopper", "--method", method)
    assert status == 2 and "--demos FILE" in " ".join(err.split())
    status, _, err = run("train", "gail", "--config", "inverted-double-pendulum", "--method", method)
    assert status == 2 and "does not take reward.form, reward.regulariser; of" in " ".join(err.split())


def test_cloning_has_no_rounds() -> None:
    assert ImitationSettings(method="bc", timesteps=130, log_interval=7, train_every=0).timesteps == 130


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--demos FILE"),
        (["--demos", "nowhere.npz"], "no demonstrations at nowhere.npz"),
        (["--demos", "{demos}", "--demonstrations", "3"], "holds 2 episodes; demonstrations asks for 3"),
        (["--demos", "{demos}", "--demonstrations", "0"], "demonstrations must be at least 1"),
        (["--demos", "{demos}", "--env", "MountainCarContinuous-v0"], "recorded in Pendulum-v1"),
        (["--demos", "{pairs}", "--env", "MountainCarContinuous-v0"], "3 observations and 1 actions per step"),
        (["--demos", "{pairs}", "--imitation.n-step", "5"], "episode 0 of the demonstrations has 4 steps"),
        (["--demos", "{nan}"], "observations of the demonstrations hold 1 values that are not finite"),
        (["--demos", "{flagless}"], "an episode must end, and only end, where it is terminated or truncated"),
        (["--demos", "{missing}"], "not a whole demonstration file"),
        (["--demos", "{demos}", *CERTIFIED, "--reward.spectral"], "neither spectral normalisation nor dropout"),
        (["--demos", "{demos}", *CERTIFIED, "--reward.dropout", "0.5"], "neither spectral normalisation nor dropout"),
        (["--demos", "{demos}", "--timesteps", "130"], "whole rounds of train_every steps"),
        (["--demos", "{demos}", "--reward.form", "fairl"], "set clip"),
        (
            ["--demos", "{demos}", "--reward.inputs", "state", "--imitation.pessimism.kind", "dynamics"],
            "needs a reward of state and action",
        ),
        (["--demos", "{demos}", "--out", "{taken}"], "exists"),
        (["--resume", "nowhere"], "not a run folder"),
        (
            ["--demos", "{demos}", "--method", "sqil"],
            "sqil learns no reward and does not take reward.hidden, reward.batch, imitation.monitor_every; of the",
        ),
        (["--demos", "{demos}", "--method", "bc"], "bc learns no reward and does not take reward.hidden"),
        (["--demos", "{demos}", "--method", "sqil", "--timesteps", "130"], "whole rounds of train_every steps"),
    ],
)
def test_bad_input(
    run: Run, arguments: list[str], words: str, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Demonstrations.load(demos)
    spoilt = found.observations.copy()
    spoilt[0, 0] = np.nan
    files = {"demos": demos, "taken": tmp_path / "taken"}
    files["taken"].mkdir()
    files["nan"] = changed(demos, tmp_path / "nan.npz", observations=spoilt)
    files["flagless"] = changed(demos, tmp_path / "flagless.npz", truncations=np.zeros_like(found.truncations))
    files["missing"] = changed(demos, tmp_path / "missing.npz", terminations=None)
    files["pairs"] = tmp_path / "pairs.npz"
    Demonstrations.from_pairs(found.pairs()[0][:40], found.labels[:40], {}).save(files["pairs"])
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    status, _, err = run("train", "gail", *SMALL, *[argument.format(**files) for argument in arguments])
    assert status == 2 and words in " ".join(err.split())
    assert not list(folder.iterdir()) and not list(files["taken"].iterdir())
