"""`lipctrl sweep`: table and report, resumed sweeps, the choice, bad input."""

import csv
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lipctrl.cli.sweep import SweepSettings, Trained, bounds_of, choose
from lipctrl.demos.cover import Slope
from lipctrl.evaluation.summary import Row
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
DI = "lipctrl/DoubleIntegrator-v0"
TINY = ["--hidden", "8", "--updates", "300", "--episodes", "2", "--radii", "0", "0.1", "--lips", "0.8", "1.7"]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lipctrl.cli.main import main

    path = tmp_path_factory.mktemp("sweep") / "d.npz"
    assert main(["demos", "collect", "--env", DI, "--episodes", "3", "--max-steps", "20", "--out", str(path)]) == 0
    return path


def test_a_sweep_and_its_resumption_give_the_same_table(demos: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["sweep", "--demos", str(demos), *TINY, "--seeds", "0", "1", "--out", str(tmp_path / "s")]
    arguments += ["--unconstrained"]
    status, out, _ = run(*arguments)
    assert status == 0 and "Chosen bound" in out and (tmp_path / "s" / "report.html").exists()
    rows = list(csv.DictReader((tmp_path / "s" / "sweep.csv").read_text().splitlines()))
    assert [(row["lip"], row["seed"]) for row in rows] == [(a, b) for a in ("0.8", "1.7", "inf") for b in "01"]
    for row in rows:
        assert float(row["witness"]) <= float(row["proved"]) <= float(row["lip"]) * (1 + 1e-5)
        assert float(row["tolerated_measurement_error"]) >= 0
    before, kept = (tmp_path / "s" / "sweep.csv").read_bytes(), (tmp_path / "s" / "lip-0.8-s0" / "run.json")
    stamp = kept.stat().st_mtime_ns
    record = tmp_path / "s" / "lip-1.7-s1" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "interrupted"}))
    assert run("sweep", "--resume", str(tmp_path / "s"))[0] == 0
    assert json.loads(record.read_text())["status"] == "finished"
    assert (tmp_path / "s" / "sweep.csv").read_bytes() == before and kept.stat().st_mtime_ns == stamp


def test_two_workers_train_and_attack_as_one_does(demos: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["sweep", "--demos", str(demos), *TINY, "--updates", "100", "--attacks", "vertex", "mad", "--out"]
    assert run(*arguments, tmp_path / "one")[0] == 0 and run(*arguments, tmp_path / "two", "--workers", 2)[0] == 0
    for name in ("sweep.csv", "report.json", "report.html", "lip-0.8-s0/policy.npz", "lip-1.7-s0/metrics.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    (section,) = json.loads((tmp_path / "one" / "report.json").read_text())["sections"]
    (first, _) = csv.DictReader((tmp_path / "one" / "sweep.csv").read_text().splitlines())
    means = {
        row["attack"]: row["mean"] for row in section["table"] if (row["policy"], row["radius"]) == ("bound 0.8", 0.1)
    }
    assert set(means) == {"vertex", "mad"} and float(first["return_at_0.1"]) == min(means.values())


def row(policy: str, mean: float, radius: float) -> Row:
    numbers: dict[str, Any] = {field.name: 0 for field in fields(Row)}
    return Row(**(numbers | {"policy": policy, "attack": "mad", "radius": radius, "mean": mean}))


def test_the_choice_is_the_smallest_bound_that_is_as_good_as_the_best() -> None:
    net = PlainNet.mlp([[[1.0]]], [[0.0]], "relu")
    trained = {f"b{lip}": Trained(lip, 0, net, 0.0) for lip in (1.0, 2.0, 3.0)}
    table = [row("b1.0", -9.0, 0.1), row("b2.0", -5.05, 0.1), row("b3.0", -5.0, 0.1)]
    assert choose(table, trained, "mad")[0] == 2.0
    assert bounds_of(SweepSettings(), Slope(2.0, (0, 1))) == (1.0, 1.4, 1.7, 2.0, 2.4, 3.0, 4.0)


def test_bad_input(demos: Path, run: Run) -> None:
    assert "--demos FILE" in run("sweep")[2]
    status, _, err = run("sweep", "--demos", str(demos), "--env", "InvertedPendulum-v5")
    assert status == 2 and "recorded in" in err
    with pytest.raises(ValueError, match="attacks other than none"):
        SweepSettings(attacks=("none",))
    with pytest.raises(ValueError, match="did you mean 'mad'"):
        SweepSettings(attacks=("madd",))
    with pytest.raises(ValueError, match="data alone"):
        SweepSettings(dagger_rounds=1)
    with pytest.raises(ValueError, match="lips"):
        SweepSettings(lips=(-1.0,))
