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
