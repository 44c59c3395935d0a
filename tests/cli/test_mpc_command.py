"""`lipctrl mpc` and MPC as an expert, against LQR and through bad input."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipctrl.attacks import ATTACKS
from lipctrl.cli.experts import plant_env
from lipctrl.cli.mpc_modes import Choice, combination, limited, plant_of
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.mpc.safety_filter import SafetyFilter
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
P11 = 2.66868908  # optimal cost of the double integrator from (1, 0)


@pytest.mark.parametrize("controller", ["nmpc", "linear"])
def test_unconstrained_mpc_costs_what_the_riccati_equation_says(controller: str, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "r"
    arguments = ["--plant", "double-integrator", "--controller", controller, "--start", 1, 0, "--steps", 40]
    assert run("mpc", *arguments, "--out", out)[0] == 0
    assert json.loads((out / "run.json").read_text())["costs"][controller] == pytest.approx(P11, rel=1e-6)
    rows = list(csv.DictReader((out / f"{controller}.csv").read_text().splitlines()))
    assert len(rows) == 40 and float(rows[0]["position [m]"]) == 1.0
    assert (out / "trajectories.svg").read_text().startswith("<svg")


def test_reactor_is_brought_to_its_unstable_steady_state(tmp_path: Path, run: Run) -> None:
    assert run("mpc", "--plant", "cstr", "--steps", 60, "--out", tmp_path / "r")[0] == 0
    last = list(csv.DictReader((tmp_path / "r" / "nmpc.csv").read_text().splitlines()))[-1]
    assert float(last["concentration [kmol/m3]"]) == pytest.approx(1.95368832, abs=1e-3)
    assert float(last["temperature [K]"]) == pytest.approx(401.87265959, abs=1e-2)


def test_mpc_is_an_expert_for_demonstrations(tmp_path: Path, run: Run) -> None:
    arguments = ["--env", "lipctrl/DoubleIntegrator-v0", "--expert", "mpc", "--episodes", 1, "--max-steps", 5]
    assert run("demos", "collect", *arguments, "--dither", 0, "--out", tmp_path / "d.npz")[0] == 0
    x, u = Demonstrations.load(tmp_path / "d.npz").pairs()
    assert np.allclose(u, -x @ np.array([[0.57917087], [1.54562698]]), atol=1e-5)


def linear_net(gain: np.ndarray) -> PlainNet:
    """u = -gain x."""
    return PlainNet(({0: -gain},), (np.zeros(1),), ())


@pytest.fixture
def near_lqr(tmp_path: Path) -> Path:
    """A policy of the double integrator with nine tenths of the LQR's gain."""
    gain = 0.9 * np.array([[0.57917087, 1.54562698]])
    linear_net(gain).save(tmp_path / "net.npz")
    return tmp_path / "net.npz"


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


@pytest.mark.parametrize("mode", ["warm-start", "terminal"])
def test_modes_that_change_the_solve_cost_what_mpc_costs(mode: str, near_lqr: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "double-integrator", "--start", 1, 0, "--steps", 40, "--mode", mode]
    assert run("mpc", *arguments, "--policy", near_lqr, "--out", tmp_path / "r")[0] == 0
    costs = record(tmp_path / "r")["costs"]
    assert costs[mode] == pytest.approx(P11, rel=1e-3) and costs["policy"] > P11 * 1.001


def test_the_filter_holds_the_limits_that_the_policy_breaks(near_lqr: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "double-integrator", "--start", 3, 0, "--steps", 40, "--mode", "filter"]
    arguments += ["--state-low", -5, -0.7, "--state-high", 5, 0.7]
    status, out, _ = run("mpc", *arguments, "--policy", near_lqr, "--out", tmp_path / "r")
    found = record(tmp_path / "r")
    assert status == 0 and "the filter changed the action at" in out
    assert found["state_excess"]["policy"] > 0.1 and found["state_excess"]["filter"] == 0


def test_the_filters_set_holds_on_a_plant_that_is_discrete_and_not_linear() -> None:
    """LQR leaves the invariant set of the linearised pendulum; the set that the filter takes, it must not leave."""
    inner = plant_of(plant_env("pendulum"))
    inner.plant = limited(inner.plant, (-1.5, -3.0), (1.5, 3.0))
    guard = combination("filter", inner, linear_net(np.array([[20.0, 6.0]])), Choice(), rollout=1, radius=0.0)
    assert isinstance(guard, SafetyFilter) and guard.level_set is not None
    x = np.random.default_rng(0).uniform(guard.ocp.x_low, guard.ocp.x_high, (20000, 2))
    x = x[guard.level_set.contains(x)]
    assert len(x) > 1000
    for _ in range(50):
        x = inner.plant.step(x, guard.backup.predict(x)[0])
        assert guard.level_set.contains(x).all()
        assert ((x >= guard.ocp.x_low) & (x <= guard.ocp.x_high)).all()


def test_the_fallback_acts_when_the_solver_is_late(near_lqr: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "double-integrator", "--start", 1, 0, "--steps", 20, "--mode", "fallback"]
    status, out, _ = run("mpc", *arguments, "--deadline", 1e-6, "--policy", near_lqr, "--out", tmp_path / "r")
    costs = record(tmp_path / "r")["costs"]
    assert status == 0 and "acted at 100 %: 20 late" in out and costs["fallback"] == costs["policy"]


def test_the_tube_holds_tight_limits_under_every_attack(near_lqr: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "double-integrator", "--start", 2, 0, "--steps", 40, "--mode", "tube", "--radius", 0.05]
    arguments += ["--state-low", -5, -1.5, "--state-high", 5, 1.5]
    status, out, _ = run("mpc", *arguments, "--policy", near_lqr, "--out", tmp_path / "r")
    excess = record(tmp_path / "r")["state_excess"]
    assert status == 0 and "stayed in its tube" in out
    assert {f"tube, {name}" for name in ATTACKS} < set(excess)
    assert all(value == 0 for name, value in excess.items() if name != "policy")


def test_the_policy_alone_and_lyapunov_based_mpc(near_lqr: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "double-integrator", "--controller", "policy", "--steps", 5, "--policy", near_lqr]
    assert run("mpc", *arguments, "--out", tmp_path / "p")[0] == 0 and set(record(tmp_path / "p")["costs"]) == {
        "policy"
    }
    assert run("mpc", "--controller", "lmpc", "--horizon", 6, "--steps", 60, "--out", tmp_path / "l")[0] == 0
    last = list(csv.DictReader((tmp_path / "l" / "lmpc.csv").read_text().splitlines()))[-1]
    assert float(last["temperature [K]"]) == pytest.approx(401.87265959, abs=0.5)


def test_the_robot_keeps_its_distance_and_rate_limits_hold(tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "robot", "--start", -2, 0.1, 0, "--steps", 50, "--rate", 5, 5, "--out", tmp_path / "r"]
    assert run("mpc", *arguments)[0] == 0
    rows = list(csv.DictReader((tmp_path / "r" / "nmpc.csv").read_text().splitlines()))
    assert min(float(row["margin"]) for row in rows) > -1e-6
    left = np.array([float(row["left wheel [rad/s]"]) for row in rows])
    assert np.abs(np.diff(left)).max() <= 5 + 1e-4 and np.abs(left).max() > 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plant", "InvertedPendulum-v5"], "no symbolic plant"),
        (["--plant", "cstrr"], "cstr"),
        (["--plant", "pendulum-swing-up"], "quadratic cost"),
        (["--solver", "qrqp"], "sqpmethod-daqp"),
        (["--horizon", "0"], "at least 1"),
        (["--plant", "double-integrator", "--start", "1"], "2 finite numbers"),
        (["--mode", "filter"], "needs a network"),
        (["--state-low", "1"], "give one limit for each"),
        (["--mode", "filter", "--policy", "x", "--compiled"], "no effect in --mode filter"),
        (["--mode", "tube", "--policy", "x", "--solver", "piqp"], "no effect in --mode tube"),
        (["--controller", "policy", "--policy", "x", "--solver", "piqp"], "no effect with --controller policy"),
        (["--controller", "policy", "--policy", "x", "--rate", "1"], "no effect with --controller policy"),
        (["--controller", "policy", "--policy", "x", "--horizon", "5"], "no effect with --controller policy"),
        (["--radius", "0.5"], "no effect without --mode tube"),
        (["--mode", "filter", "--policy", "x", "--rollout", "3"], "no effect without --mode terminal"),
        (["--rate", "0", "1"], "rate limits need"),
        (["--controller", "policy"], "needs a network"),
        (["--controller", "linear", "--compiled"], "go with nmpc"),
        (["--controller", "linear", "--solver", "ipopt"], "takes solver daqp"),
        (["--deadline", "-1"], "deadline must be positive"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, run: Run) -> None:
    status, out, err = run("mpc", *arguments, "--out", tmp_path / "r")
    assert status == 2 and words in out + err and "Traceback" not in err and not (tmp_path / "r").exists()


def test_a_policy_that_does_not_fit_is_refused(near_lqr: Path, tmp_path: Path, run: Run) -> None:
    for arguments, words in (
        (["--plant", "cart-pole"], "4 observations"),
        (["--plant", "pendulum", "--mode", "tube"], "tube"),
        (["--controller", "lmpc", "--mode", "filter"], "brings its own controller"),
    ):
        status, _, err = run("mpc", *arguments, "--policy", near_lqr, "--out", tmp_path / "r")
        assert status == 2 and words in err and not (tmp_path / "r").exists()


def test_an_infeasible_start_ends_in_one_sentence_and_keeps_the_folder(tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "lipctrl/QuadTank-v0", "--start", 1e4, 1e4, 1e4, 1e4, "--steps", 5]
    status, _, err = run("mpc", *arguments, "--out", tmp_path / "r")
    assert status == 2 and "stopped at step 0" in err and (tmp_path / "r" / "nmpc.csv").exists()
