"""`lipctrl train sb3`: a whole run folder, one seed the same bytes, an interrupt that keeps the policy."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lipctrl.nn.plain import PlainNet
from lipctrl.runs import read_metrics

Run = Callable[..., tuple[int, str, str]]
SMALL = ["--env", "InvertedPendulum-v5", "--hidden", "8", "--timesteps", "2048", "--log-interval", "1000"]


def test_run_folder_and_reproducibility(tmp_path: Path, run: Run) -> None:
    for name in ("a", "b"):
        assert run("train", "sb3", *SMALL, "--lip", "5", "--normalize", "--out", str(tmp_path / name))[0] == 0
    rows = read_metrics(tmp_path / "a" / "metrics.csv")
    assert [row["timesteps"] for row in rows] == [1000, 2000, 2048]
    assert json.loads((tmp_path / "a" / "run.json").read_text())["status"] == "finished"
    for name in ("metrics.csv", "policy.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert PlainNet.load(tmp_path / "a" / "policy.npz").input_mean is not None
    assert run("certify", str(tmp_path / "a"))[0] == 0


def test_interrupt_keeps_the_policy(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.Adam.step

    def stepped(self: torch.optim.Adam, closure: None = None) -> None:
        step(self, closure)
        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler and not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)

    sent: list[bool] = []
    monkeypatch.setattr(torch.optim.Adam, "step", stepped)
    settings = [*SMALL[:-4], "--timesteps", "6000"]
    status, out, _ = run("train", "sb3", *settings, "--out", str(tmp_path / "cut"))
    assert status == 130 and "interrupted after 2049 steps" in out
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    PlainNet.load(tmp_path / "cut" / "policy.npz")


def test_discrete_actions_are_refused(run: Run) -> None:
    status, _, err = run("train", "sb3", "--env", "CartPole-v1")
    assert status == 2 and "needs a box" in err
