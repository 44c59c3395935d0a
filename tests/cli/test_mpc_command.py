"""`lipctrl mpc` and MPC as an expert, against LQR and through bad input."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipctrl.demos.demonstrations import Demonstrations

Run = Callable[..., tuple[int, str, str]]
P11 = 2.66868908  # optimal cost of the double integrator from (1, 0)


@pytest.mark.parametrize("controller", ["nmpc", "linear"])
def test_unconstrained_mpc_costs_what_the_riccati_equation_says(controller: str, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "r"
    arguments = ["--env", "lipctrl/DoubleIntegrator-v0", "--controller", controller, "--start", 1, 0, "--steps", 40]
    assert run("mpc", *arguments, "--out", out)[0] == 0
    assert json.loads((out / "run.json").read_text())["costs"][controller] == pytest.approx(P11, rel=1e-6)
    rows = list(csv.DictReader((out / f"{controller}.csv").read_text().splitlines()))
    assert len(rows) == 40 and float(rows[0]["position [m]"]) == 1.0
    assert (out / "trajectories.svg").read_text().startswith("<svg")


def test_reactor_is_brought_to_its_unstable_steady_state(tmp_path: Path, run: Run) -> None:
    assert run("mpc", "--env", "lipctrl/Cstr-v0", "--steps", 60, "--out", tmp_path / "r")[0] == 0
    last = list(csv.DictReader((tmp_path / "r" / "nmpc.csv").read_text().splitlines()))[-1]
    assert float(last["concentration [kmol/m3]"]) == pytest.approx(1.95368832, abs=1e-3)
    assert float(last["temperature [K]"]) == pytest.approx(401.87265959, abs=1e-2)


def test_mpc_is_an_expert_for_demonstrations(tmp_path: Path, run: Run) -> None:
    arguments = ["--env", "lipctrl/DoubleIntegrator-v0", "--expert", "mpc", "--episodes", 1, "--max-steps", 5]
    assert run("demos", "collect", *arguments, "--dither", 0, "--out", tmp_path / "d.npz")[0] == 0
    x, u = Demonstrations.load(tmp_path / "d.npz").pairs()
    assert np.allclose(u, -x @ np.array([[0.57917087], [1.54562698]]), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--env", "InvertedPendulum-v5"], "no symbolic plant"),
        (["--env", "lipctrl/PendulumSwingUp-v0"], "quadratic cost"),
        (["--solver", "qrqp"], "sqpmethod-daqp"),
        (["--horizon", "0"], "at least 1"),
        (["--env", "lipctrl/DoubleIntegrator-v0", "--start", "1"], "start state"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, run: Run) -> None:
    status, out, err = run("mpc", *arguments, "--out", tmp_path / "r")
    assert status == 2 and words in out + err and "Traceback" not in err


def test_an_infeasible_start_ends_in_one_sentence_and_keeps_the_folder(tmp_path: Path, run: Run) -> None:
    arguments = ["--env", "lipctrl/QuadTank-v0", "--start", 1e4, 1e4, 1e4, 1e4, "--steps", 5]
    status, _, err = run("mpc", *arguments, "--out", tmp_path / "r")
    assert status == 2 and "stopped at step 0" in err and (tmp_path / "r" / "nmpc.csv").exists()
