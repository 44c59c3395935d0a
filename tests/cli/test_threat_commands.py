"""Threats on every channel from the command line: one table for all kinds of policies, bad input in one sentence."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipctrl.cli.cells import Victim
from lipctrl.cli.contenders import contender_named
from lipctrl.cli.experts import make_env
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
DI, PENDULUM = "lipctrl/DoubleIntegrator-v0", "InvertedPendulum-v5"


def test_network_lqr_and_mpc_under_one_threat_on_the_action(tmp_path: Path, run: Run) -> None:
    """Without active limits MPC with the LQR's terminal cost is LQR, whatever disturbs the action."""
    PlainNet(({0: -np.array([[0.5, 1.4]])},), (np.zeros(1),), ()).save(tmp_path / "net.npz")
    (tmp_path / "threat.yaml").write_text("channel: action\nnorm: linf\nunits: raw\nbudget: sparse=3\n")
    arguments = [tmp_path / "net.npz", "lqr", "mpc", "--threat", tmp_path / "threat.yaml", "--radii", 0, 0.5]
    attacks = ["--attacks", "none", "vertex", "constant", "pulse-search", "--search", 12, "--episodes", 1]
    status, out, _ = run("evaluate", *arguments, *attacks, "--fresh", 1, "--out", tmp_path / "r")
    assert status == 0 and "in at most 3 steps of the episode" in out.replace("\n", " ")
    assert "found / proved" not in out  # nothing moves the action of the policy itself
    (section,) = json.loads((tmp_path / "r" / "report.json").read_text())["sections"]
    rows = {(row["policy"], row["attack"], row["radius"]): row for row in section["table"]}
    for attack in ("vertex", "constant", "pulse-search"):
        lqr, mpc = rows["expert", attack, 0.5], rows["mpc", attack, 0.5]
        assert mpc["mean"] == pytest.approx(lqr["mean"], rel=1e-5)
        assert lqr["mean"] < rows["expert", "none", 0.0]["mean"] or attack != "pulse-search"
        assert lqr["certified"] is None and lqr["deviation"] == 0
        assert lqr["loops"] == (12 if attack == "pulse-search" else 0)
        assert lqr["loop_steps"] == 100 * lqr["loops"]
    # twelve loops of 100 steps, and those of the seven rows
    assert "No failure found in 1,900 closed-loop steps of search" in " ".join(section["verdicts"])
    assert section["units"][0]["raw"] == 0.5 and section["units"][0]["normalised"] == pytest.approx(0.5 / 1000)


def test_parameters_and_delays_in_one_table(tmp_path: Path, run: Run) -> None:
    """The pendulum's controller survives what it was tuned for; a pole that is late by five samples falls."""
    common = ["--env", PENDULUM, "--episodes", 1, "--fresh", 1, "--out"]
    late = ["--threat", "delay", "--radii", 0, 5, "--attacks", "none", "vertex", "constant-search", "--search", 4]
    status, *_ = run("evaluate", "lqr", *late, *common, tmp_path / "late")
    assert status == 0
    (section,) = json.loads((tmp_path / "late" / "report.json").read_text())["sections"]
    rows = {(row["attack"], row["radius"]): row for row in section["table"]}
    assert rows["none", 0.0]["failures"] == 0 and rows["vertex", 5.0]["failures"] == 1
    assert rows["constant-search", 5.0]["mean"] <= rows["vertex", 5.0]["mean"]
    assert rows["constant-search", 5.0]["loop_failures"] >= 1


def test_a_pid_controller_beside_the_others(tmp_path: Path, run: Run) -> None:
    """A proportional controller is a network with one layer; an integral makes it another policy."""
    PlainNet(({0: -np.array([[0.5, 1.4]])},), (np.zeros(1),), ()).save(tmp_path / "net.npz")
    file, arguments = (
        tmp_path / "pid.yaml",
        ["--episodes", 1, "--fresh", 0, "--parts", 0, "--ladder"],
    )
    file.write_text("kp: [[0.5, 1.4]]\nsetpoint: [0, 0]\n")
    attacks = ["--radii", 0, 0.1, "--attacks", "none", "vertex", "--threat", "action:linf:raw"]
    status, *_ = run("evaluate", file, tmp_path / "net.npz", *arguments, *attacks, "--out", tmp_path / "r")
    assert status == 0
    status, text, _ = run("replay", tmp_path / "r")
    assert status == 0 and "today" not in text
    (section,) = json.loads((tmp_path / "r" / "report.json").read_text())["sections"]
    rows = {(row["policy"], row["attack"], row["radius"]): row["mean"] for row in section["table"]}
    for attack, radius in (("none", 0.0), ("vertex", 0.1)):
        own, net = (rows[str(path), attack, radius] for path in (file, tmp_path / "net.npz"))
        assert own == pytest.approx(net, rel=1e-9)
    file.write_text("kp: [[0.5, 1.4]]\nki: [[0.1, 0]]\nsetpoint: [0, 0]\n")
    status, text, _ = run("replay", tmp_path / "r" / "episode-0-0.npz")
    assert status == 0 and "other weights or gains today" in text
    assert run("evaluate", "--resume", tmp_path / "r")[0] == 0  # the file was changed: it is run again
    (section,) = json.loads((tmp_path / "r" / "report.json").read_text())["sections"]
    again = {(row["policy"], row["attack"], row["radius"]): row["mean"] for row in section["table"]}
    assert again[str(file), "none", 0.0] != rows[str(file), "none", 0.0]
    one = contender_named(str(file), make_env(DI), None, 10)
    victim = pickle.loads(pickle.dumps(Victim.of(one)))  # another process gets the controller itself, not its file
    assert victim.contender(DI, 10).policy.sha256() == Victim.of(one).pid.sha256()  # type: ignore[union-attr]
    code, _, err = run("certify", file)
    assert code == 2 and "is no network" in err


def test_compare_takes_the_same_threats(tmp_path: Path, run: Run) -> None:
    PlainNet(({0: -np.array([[0.5, 1.4]])},), (np.zeros(1),), ()).save(tmp_path / "net.npz")
    arguments = ["--threat", "disturbance:l2:raw", "--attack", "constant-search", "--search", 6, "--radius", 0.05]
    status, *_ = run("compare", "lqr", tmp_path / "net.npz", *arguments, "--episodes", 3, "--out", tmp_path / "c.json")
    assert status == 0
    lines = json.loads((tmp_path / "c.json").read_text())
    nominal, attacked = ([line for line in lines if line["radius"] == radius] for radius in (0.0, 0.05))
    assert [line["policy"] for line in attacked] == ["expert", str(tmp_path / "net.npz")]
    assert all(b["mean"] < a["mean"] for a, b in zip(nominal, attacked, strict=True))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--threat", "action:linf"], "needs units"),
        (["--threat", "gain"], "MuJoCo"),
        (["pid.yaml"], "no settings file"),
        (["--threat", "wheel:l2:raw"], "unknown channel"),
        (["--threat", "warm_start:l2:raw", "--attacks", "vertex"], "needs MPC"),
        (["--threat", "action:l2:raw", "--attacks", "mad"], "works on the observation"),
        (["--threat", "observation:l2:raw:black", "--attacks", "mad"], "black-box"),
        (["--threat", "observation:l2:raw:grey", "--attacks", "lookahead"], "grey-box"),
        (["--threat", "observation:l2:raw:rate=0.1", "--attacks", "lookahead"], "rate=0.1"),
        (["--threat", "delay", "--radii", "0", "1", "--attacks", "pulse-search"], "once per episode"),
        (["--threat", "delay", "--radii", "0.5", "--attacks", "vertex"], "whole number"),
        (["--threat", "gain", "--radii", "1", "--attacks", "vertex", "--env", PENDULUM], "below 1"),
        (["--attacks", "puls-search"], "pulse-search"),
        (["--search", "0"], "search"),
    ],
)
def test_bad_threats_are_one_sentence_and_harmless(arguments: list[str], word: str, tmp_path: Path, run: Run) -> None:
    status, out, err = run("evaluate", "lqr", *arguments, "--out", tmp_path / "new")
    assert status == 2 and word in out + err and "Traceback" not in out + err
    assert not (tmp_path / "new").exists()
    assert run("sweep", "--threat", "action:l2:raw", "--out", tmp_path / "new")[0] == 2
