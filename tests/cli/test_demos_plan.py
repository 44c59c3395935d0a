"""`lipctrl demos plan`: cover, error, needed samples, proposals, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipctrl.demos.demonstrations import Demonstrations, Trajectory
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def grid_file(tmp_path: Path) -> str:
    """A 21 x 21 grid on [-1, 1]^2 labelled by u = -0.6 x_1 - 0.8 x_2, whose constant is 1."""
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, 21)] * 2, indexing="ij"), -1).reshape(-1, 2)
    u = -x @ np.array([[0.6], [0.8]])
    one = Trajectory(np.vstack([x, x[-1:]]), u, u, np.zeros(len(x)), False, True)
    Demonstrations.from_trajectories([one], {}).save(tmp_path / "d.npz")
    return str(tmp_path / "d.npz")


def number(text: str, name: str) -> list[float]:
    line = next(line for line in text.splitlines() if name in line)
    return [float(x) for x in re.findall(r"\d+\.?\d*(?:e-?\d+)?", line.split("│")[2])]


def test_numbers_of_a_grid(grid_file: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    settings = [
        "--lip",
        "1.5",
        "--expert-lip",
        "1",
        "--error",
        "0.05",
        "--points",
        "3",
        "--out",
        str(tmp_path / "plan"),
    ]
    status, out, _ = run("demos", "plan", grid_file, *settings)
    assert status == 0
    half_diagonal = np.sqrt(2) / 20
    low, high = number(out, "covering radius ")
    assert low <= half_diagonal * (1 + 1e-4) and half_diagonal <= high * (1 + 1e-4) and high <= 1.03 * low
    assert number(out, "largest error")[1] == pytest.approx(2.5 * half_diagonal, rel=0.03)
    assert number(out, "covering radius needed") == [0.02]
    assert number(out, "grid points") == [np.ceil(2 / (0.04 / np.sqrt(2))) ** 2]
    assert len((tmp_path / "plan" / "next.csv").read_text().splitlines()) == 4
    assert "<svg" in (tmp_path / "plan" / "plan.svg").read_text()


def test_without_the_experts_constant_nothing_is_a_bound(grid_file: str, run: Run) -> None:
    status, out, _ = run("demos", "plan", grid_file, "--points", "0")
    assert status == 0 and "estimate" in out and "--expert-lip" in out.replace("\n", " ")


def test_a_policy_brings_residuals_and_its_constant(grid_file: str, tmp_path: Path, run: Run) -> None:
    PlainNet.mlp([[[-0.6, -0.8]]], [[0.3]], "relu").save(tmp_path / "p.npz")
    settings = ["--policy", str(tmp_path / "p.npz"), "--expert-lip", "1", "--error", "0.2", "--points", "1"]
    status, out, _ = run("demos", "plan", grid_file, *settings)
    assert status == 0 and "residuals alone" in out.replace("\n", " ")
    low = number(out, "largest error")[0]
    assert low == pytest.approx(0.3 + 2 * np.sqrt(2) / 20, rel=0.03)


def test_bad_input(grid_file: str, tmp_path: Path, run: Run) -> None:
    assert run("demos", "plan")[0] == 2
    for settings, message in (
        (["--expert-lip", "0.5"], "pair of slope 1"),
        (["--box", "0:1"], "needs 2 intervals"),
        (["--box", "a"], "LOW:HIGH"),
        (["--out", str(tmp_path)], "exists"),
    ):
        status, _, err = run("demos", "plan", grid_file, *settings)
        assert status == 2 and message in err, err
    PlainNet.mlp([[[1.0]]], [[0.0]], "relu").save(tmp_path / "q.npz")
    assert "maps 1 to 1" in run("demos", "plan", grid_file, "--policy", str(tmp_path / "q.npz"))[2]
