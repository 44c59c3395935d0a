"""`lipctrl reward certify`, `reward plot` and a fresh agent on a learned reward."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.certify.reward import RewardCertificate
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward import LearnedReward
from lipctrl.runs import read_metrics

Run = Callable[..., tuple[int, str, str]]
NET = PlainNet(
    ({0: np.array([[3.0, 0, 0, 4]])},),
    (np.zeros(1),),
    (),
    input_mean=np.zeros(4),
    input_scale=np.array([0.5, 1, 1, 2]),
    input_names=("x [m]", "y [m]", "speed [m/s]", "force [N]"),
)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """z = 3 x + 4 force: 5 over all inputs, 3 over the state, 4 over the action."""
    LearnedReward(NET, "softplus", "state-action", 3).save(tmp_path / "reward.npz")
    return tmp_path / "reward.npz"


def test_certify_prints_and_stores_what_is_proved(linear: Path, run: Run, tmp_path: Path) -> None:
    status, out, _ = run("reward", "certify", linear)
    assert status == 0 and "5 .. 5" in out and "3 .. 3" in out and "4 .. 4" in out
    assert "-log(1 - D) = softplus(z)" in out and "[0, inf]" in out and "favours staying alive" in out
    path = tmp_path / "reward.certificate.json"
    found = RewardCertificate.load(path)
    assert found.verify(LearnedReward.load(linear)) and found.of("state", "normalised").reward == pytest.approx(1.5)
    status, out, _ = run("reward", "certify", linear, "--check", path)
    assert status == 0 and "verified: 6 bounds" in out
    replace(found, slopes=(replace(found.slopes[0], reward=4.0), *found.slopes[1:])).save(path)
    assert run("reward", "certify", linear, "--check", path)[0] == 3
    replace(found, reward_sha256="0" * 64).save(path)
    status, _, err = run("reward", "certify", linear, "--check", path)
    assert status == 2 and "was made for the reward 000000000000" in err


def test_a_requirement_gates(linear: Path, run: Run) -> None:
    for limit, units, expected in ((5.1, "raw", 0), (4.9, "raw", 3), (8.2, "normalised", 0), (8.1, "normalised", 3)):
        assert run("reward", "certify", linear, "--require", limit, "--units", units)[0] == expected  # hypot(1.5, 8)
    assert run("reward", "certify", linear, "--region=-1:1,-1:1,-1:1,-1:1", "--require", 5.1)[0] == 0


def test_signs_are_told(linear: Path, run: Run) -> None:
    for form, text in (("airl", None), ("log-d", "favours ending"), ("d", "favours staying alive")):
        replace(LearnedReward.load(linear), form=form).save(linear)
        out = run("reward", "certify", linear, "--method", "product")[1]
        assert ("favours" in out) == (text is not None) and (text or "") in out
    LearnedReward(NET, "softplus", "state-action", 2, absorbing=np.array([0, 0, 1.0, 0])).save(linear)
    assert "favours" not in run("reward", "certify", linear, "--method", "product")[1]


def test_plot(linear: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "map.svg"
    status, text, _ = run("reward", "plot", linear, "--across", "force", "--up", "x [m]", "--out", out)
    assert status == 0 and str(out) in text
    drawn = out.read_text()
    assert "force [N]" in drawn and "x [m]" in drawn and "speed" not in drawn
    run("reward", "plot", linear, "--across", 3, "--up", 0, "--out", out)
    assert out.read_text() == drawn
    run("reward", "plot", linear, "--across", 3, "--up", 0, "--range=-6:6,-1.5:1.5", "--out", out)
    assert out.read_text() == drawn  # three deviations
    run("reward", "plot", linear, "--across", 3, "--up", 0, "--range=-6:6,-1:1", "--out", out)
    assert out.read_text() != drawn


def test_plot_of_other_values_and_with_demonstrations(linear: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "map.svg"
    drawn = []
    for at in ("0 0 0 0", "9 9 9 0", "0 0 0 1"):
        assert run("reward", "plot", linear, "--at", *at.split(), "--out", out)[0] == 0
        drawn.append(out.read_text())
    assert drawn[0] == drawn[1] != drawn[2]  # x and y are on the axes, speed has no weight, force has
    rng = np.random.default_rng(0)
    demos = Demonstrations.from_pairs(rng.normal(size=(40, 3)), rng.normal(size=(40, 1)), {}, episodes=2)
    demos.save(tmp_path / "d.npz")
    assert run("reward", "plot", linear, "--demos", tmp_path / "d.npz", "--out", out)[0] == 0
    assert out.read_text().count("<use") > drawn[0].count("<use")
    other = Demonstrations.from_pairs(rng.normal(size=(40, 2)), rng.normal(size=(40, 1)), {}, episodes=2)
    other.save(tmp_path / "d.npz")
    status, _, err = run("reward", "plot", linear, "--demos", tmp_path / "d.npz", "--out", out)
    assert status == 2 and "the states have shape" in err


def test_mistakes_give_one_sentence(linear: Path, run: Run, tmp_path: Path) -> None:
    NET.save(tmp_path / "net.npz")
    for arguments, message in (
        (("reward", "certify"), "needs a file"),
        (("reward", "plot"), "needs a file"),
        (("reward", "certify", tmp_path / "none.npz"), "no reward at"),
        (("reward", "certify", tmp_path / "net.npz"), "holds no learned reward"),
        (("reward", "certify", linear, "--region", "0:1"), "the region has 1 intervals"),
        (("reward", "certify", linear, "--method", "ownn"), "unknown method"),
        (("reward", "certify", linear, "--check", tmp_path / "none.json"), "no certificate at"),
        (("reward", "plot", linear, "--across", "forse"), "did you mean 'force'"),
        (("reward", "plot", linear, "--up", "0"), "two different inputs"),
        (("reward", "plot", linear, "--range", "1:2"), "LOW:HIGH,LOW:HIGH"),
        (("reward", "plot", linear, "--at", "1", "2"), "4 finite values"),
        (("certify", linear), "lipctrl reward certify"),
        (("reward", "cretify", linear), "did you mean 'reward certify'"),
        (("train", "sb3", "--reward", linear, "--env", "InvertedPendulum-v5"), "the environment has 4 and 1"),
    ):
        status, _, err = run(*arguments)
        assert status == 2 and message in err and err.count("\n") == 1 and "Traceback" not in err
    LearnedReward(replace(NET, input_scale=None), "d", "state-action", 3).save(linear)
    status, _, err = run("reward", "certify", linear, "--require", 1, "--units", "normalised")
    assert status == 2 and "needs a reward with a normaliser" in err


def test_a_fresh_agent_is_trained_on_a_reward_file(run: Run, tmp_path: Path) -> None:
    """A constant reward of log 2 per step: the learned return says so, the environment's own stands beside it."""
    net = PlainNet.mlp([np.zeros((1, 4))], [np.zeros(1)], [])
    LearnedReward(net, "softplus", "state-action", 3).save(tmp_path / "reward.npz")
    arguments = ["--env", "Pendulum-v1", "--algorithm", "td3", "--hidden", 8, "--timesteps", 401, "--log-interval", 200]
    status, _, _ = run("train", "sb3", *arguments, "--reward", tmp_path / "reward.npz", "--out", tmp_path / "r")
    assert status == 0
    rows = read_metrics(tmp_path / "r" / "metrics.csv")
    assert [row["timesteps"] for row in rows] == [400, 401]  # an episode is known one step after its end
    for row in rows:
        assert row["train/mean_return"] == pytest.approx(200 * np.log(2), rel=1e-6)
        assert row["environment/mean_return"] < -200
    assert "environment/mean_return" not in read_metrics_of_a_plain_run(run, tmp_path)[0]


def read_metrics_of_a_plain_run(run: Run, tmp_path: Path) -> list[dict[str, float]]:
    arguments = ["--env", "Pendulum-v1", "--algorithm", "td3", "--hidden", 8, "--timesteps", 201, "--log-interval", 200]
    assert run("train", "sb3", *arguments, "--out", tmp_path / "plain")[0] == 0
    return read_metrics(tmp_path / "plain" / "metrics.csv")
