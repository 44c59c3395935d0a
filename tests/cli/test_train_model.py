"""`lipctrl train model`: a plant, a recorded series, resumption, and every bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipctrl.certify.certificate import Certificate
from lipctrl.models.model import ProcessModel
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
TINY = ["--epochs", 3, "--width", 4, "--horizon", 3, "--windows", 120, "--batch", 32]


def test_a_model_of_a_plant_is_validated_and_certified(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "r"
    status, text, _ = run("train", "model", "--plant", "quad-tank", *TINY, "--seeds", 0, 1, "--out", out)
    assert status == 0 and "convex in the start" in text and "level 1" in text
    record = json.loads((out / "run.json").read_text())
    assert {"iclrnn", "persistence", "affine"} <= set(record["validation"])
    errors = [float(ProcessModel.load(out / f"model-s{seed}.npz").facts["validation_mse"]) for seed in (0, 1)]
    assert float(ProcessModel.load(out / "model.npz").facts["validation_mse"]) == min(errors)
    net = PlainNet.load(out / "network.npz")
    assert Certificate.load(out / "certificate.json").verify(net) and (out / "model.svg").exists()
    assert net.input_size == 4 + 3 * 2 and net.output_size == 3 * 4


def test_an_lstm_says_that_nothing_is_proved(tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "double-integrator", "--family", "lstm", *TINY, "--spread", 1, 1]
    status, text, _ = run("train", "model", *arguments, "--out", tmp_path / "r")
    assert status == 0 and "nothing is proved" in text and "is better" in text  # a linear plant: affine wins


def series(path: Path, rows: int = 300) -> None:
    rng, x = np.random.default_rng(0), np.zeros(rows)
    u = rng.uniform(-1, 1, rows)
    for k in range(rows - 1):
        x[k + 1] = 0.9 * x[k] + 0.1 * np.tanh(2 * u[k])
    table = np.column_stack([np.arange(rows) * 2.0, x, u])
    np.savetxt(path, table, delimiter=",", header="time [s],level [cm],valve [-]", comments="")


COLUMNS = ["--states", "level [cm]", "--inputs", "valve [-]"]


def test_a_recorded_series_and_an_interrupted_run(tmp_path: Path, run: Run) -> None:
    series(tmp_path / "plant.csv")
    arguments = ["--data", tmp_path / "plant.csv", *COLUMNS, *TINY[:4], "--horizon", 4, "--seeds", 5]
    assert run("train", "model", *arguments, "--out", tmp_path / "a")[0] == 0
    model = ProcessModel.load(tmp_path / "a" / "model.npz")
    assert model.dt == 2.0 and model.state_names == ("level [cm]",) and model.horizon == 4
    assert "nothing to resume" in run("train", "model", "--resume", tmp_path / "a")[2]
    path = tmp_path / "a" / "run.json"
    before = (tmp_path / "a" / "model.npz").read_bytes()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "interrupted"}))
    assert run("train", "model", "--resume", tmp_path / "a")[0] == 0
    assert (tmp_path / "a" / "model.npz").read_bytes() == before
    assert run("train", "model", "--config", tmp_path / "a" / "settings.yaml", "--out", tmp_path / "b")[0] == 0
    assert (tmp_path / "b" / "metrics.csv").read_bytes() == (tmp_path / "a" / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one source"),
        (["--plant", "cstr", "--data", "x.csv"], "one source"),
        (["--plant", "cst"], "cstr"),
        (["--plant", "quad-tank", "--published-grid"], "of the reactor"),
        (["--plant", "cstr", "--family", "iclrn"], "iclrnn"),
        (["--plant", "cstr", "--epochs", "0"], "at least 1"),
        (["--plant", "cstr", "--windows", "10"], "too few"),
        (["--data", "none.csv", *COLUMNS], "no data"),
        (["--data", "plant.csv", "--states", "level [m]", "--inputs", "valve [-]"], "level [cm]"),
        (["--data", "plant.csv", *COLUMNS, "--horizon", "290"], "at least 20"),
        (["--data", "plant.csv", *COLUMNS, "--time", "time [min]"], "time [s]"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    series(tmp_path / "plant.csv")
    status, out, err = run("train", "model", *arguments, "--out", tmp_path / "r")
    assert status == 2 and words in out + err and not (tmp_path / "r").exists()


def test_a_model_is_believed_by_mpc_and_one_of_another_plant_is_refused(tmp_path: Path, run: Run) -> None:
    arguments = ["--plant", "quad-tank", "--epochs", 20, "--width", 8, "--windows", 600, "--horizon", 5]
    assert run("train", "model", *arguments, "--out", tmp_path / "m")[0] == 0
    mpc = ["--plant", "quad-tank", "--horizon", 10, "--steps", 40, "--seed", 3]
    assert run("mpc", *mpc, "--out", tmp_path / "true")[0] == 0
    assert run("mpc", *mpc, "--model", tmp_path / "m", "--out", tmp_path / "learned")[0] == 0
    costs = [json.loads((tmp_path / name / "run.json").read_text())["costs"]["nmpc"] for name in ("true", "learned")]
    assert costs[0] < costs[1] < 1.5 * costs[0]
    status, _, err = run("mpc", "--plant", "cstr", "--model", tmp_path / "m", "--out", tmp_path / "x")
    assert status == 2 and "another plant" in err and not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def tanks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lipctrl.cli.main import main

    out = tmp_path_factory.mktemp("tanks") / "m"
    arguments = ["--plant", "quad-tank", "--epochs", "20", "--width", "8", "--windows", "600", "--horizon", "6"]
    main(["train", "model", *arguments, "--out", str(out)])
    return out


CONVEX = ["--plant", "quad-tank", "--controller", "convex", "--state-high", 13, 13, "inf", "inf", "--steps", 12]


def test_convex_mpc_reports_its_proved_gap_and_costs_no_more_than_ipopt(tanks: Path, tmp_path: Path, run: Run) -> None:
    arguments = [*CONVEX, "--horizon", 6, "--input-reference", 3.4, 3.4, "--start", 12.5, 12.5, 1.6, 1.4]
    status, text, err = run("mpc", *arguments, "--model", tanks, "--out", tmp_path / "c")
    assert status == 0 and "globally optimal up to" in text and "without a proof" not in text + err
    cost = json.loads((tmp_path / "c" / "run.json").read_text())["costs"]["convex"]
    status, text, err = run("mpc", *arguments, "--out", tmp_path / "n")  # the plant's own equations: IPOPT
    other = json.loads((tmp_path / "n" / "run.json").read_text())["costs"]["convex"]
    assert status == 0 and "not known to be convex" in text and cost == pytest.approx(other, rel=0.2) and cost > 0


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--horizon", 7], "extrapolated"),
        (["--horizon", 4, "--state-low", 0, 0, 0, 0], "a lower limit on a state is not a convex set"),
    ],
)
def test_what_is_not_convex_says_so_and_is_solved_all_the_same(
    extra: list[object], words: str, tanks: Path, tmp_path: Path, run: Run
) -> None:
    arguments = [*CONVEX[:-1], 3, *extra, "--input-reference", 3.2, 3.2]
    status, text, _ = run("mpc", *arguments, "--model", tanks, "--out", tmp_path / "c")
    assert status == 0 and "solved as nonlinear MPC, without a proof" in text and words in text.replace("\n", " ")


def test_sensor_errors_tighten_limits_and_are_in_the_closed_loop_table(tanks: Path, tmp_path: Path, run: Run) -> None:
    error = ["--sensor-error", 0.05, 0.05, 0.02, 0.02]
    mpc = ["--plant", "quad-tank", "--steps", 5, "--horizon", 6]
    status, text, _ = run("mpc", *mpc, *error, "--model", tanks, "--out", tmp_path / "t")
    assert status == 0 and "state limits tightened" in text and "proved everywhere" in text
    status, text, _ = run("mpc", *mpc, *error, "--out", tmp_path / "u")
    assert status == 0 and "not tightened" in text
    status, text, _ = run("certify", tanks, "--closed-loop", "--plant", "quad-tank", *error)
    assert status == 0 and "moved by the" in text and "proved" in text and "estimate" in text
    for command, words in (
        (["certify", tanks, "--closed-loop", "--plant", "quad-tank"], "--sensor-error"),
        (["certify", tanks, "--closed-loop", "--plant", "cstr", *error], "another plant"),
        (["mpc", *mpc, "--sensor-error", 0.1, "--out", tmp_path / "x"], "needs 4 finite numbers"),
        (["mpc", *mpc, "--sensor-error", 9, 9, 9, 9, "--model", tanks, "--out", tmp_path / "x"], "leaves nothing"),
        (["mpc", *CONVEX, "--solver", "ipopt", "--out", tmp_path / "x"], "--solver has no effect"),
        (["mpc", *mpc, "--input-reference", 3, 3, "--out", tmp_path / "x"], "has no effect without"),
        (["mpc", "--plant", "quad-tank", "--controller", "convex", "--input-reference", 3], "needs 2 numbers"),
    ):
        status, _, err = run(*command)
        assert status == 2 and words in err, (words, err)
    assert not (tmp_path / "x").exists()


def test_data_of_run_folders(tanks: Path, tmp_path: Path, run: Run) -> None:
    assert run("mpc", "--plant", "quad-tank", "--steps", 250, "--horizon", 5, "--out", tmp_path / "p")[0] == 0
    assert run("train", "model", "--data", tmp_path / "p", *TINY, "--out", tmp_path / "a")[0] == 0
    model = ProcessModel.load(tmp_path / "a" / "model.npz")
    assert model.state_names[0] == "level 1 [cm]" and model.dt == 5.0 and len(model.facts["worst_error"]) == 3
    assert run("train", "model", "--data", tanks, *TINY, "--out", tmp_path / "b")[0] == 0
    assert (tmp_path / "b" / "windows.npz").read_bytes() == (tanks / "windows.npz").read_bytes()


def test_the_gain_is_kept_below_a_target(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "r"
    status, text, _ = run("train", "model", "--plant", "quad-tank", *TINY, "--lipschitz", 1.5, "--out", out)
    bound = Certificate.load(out / "certificate.json").bound
    assert status == 0 and 1 < bound <= 1.5
    status, _, err = run("train", "model", "--plant", "quad-tank", "--family", "rnn", "--lipschitz", 1.5)
    assert status == 2 and "of the iclrnn" in err


def test_lyapunov_based_mpc_draws_its_region(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "l"
    assert run("mpc", "--plant", "cstr", "--controller", "lmpc", "--horizon", 2, "--steps", 3, "--out", out)[0] == 0
    figure = (out / "region.svg").read_text()  # texts are drawn as paths, with what they say in a comment
    assert "V = 372" in figure and "lmpc" in figure and "temperature [K]" in figure
