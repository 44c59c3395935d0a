"""`lipctrl compare`: paired differences from their definition, what is decided and what is not, bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipctrl.cli.compare import line, markdown
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
LQR = np.array([[0.57917087, 1.54562698]])


def policy(path: Path, gain: np.ndarray) -> Path:
    PlainNet(({0: -gain},), (np.zeros(1),), ()).save(path)
    return path


def test_a_worse_gain_is_worse_and_an_equal_one_is_not_decided(tmp_path: Path, run: Run) -> None:
    first, equal, worse = (policy(tmp_path / f"{n}.npz", g) for n, g in (("a", LQR), ("b", LQR), ("c", 1.15 * LQR)))
    status, text, _ = run("compare", first, equal, worse, "--episodes", 12, "--out", tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text())
    assert status == 0 and len(rows) == 6 and "not over trainings" in text
    nominal = rows[:3]
    assert nominal[1]["difference"] == nominal[1]["low"] == 0 and nominal[1]["improvement"] == 0.5
    assert nominal[2]["high"] < 0 and "c.npz is worse than" in text and "not decided by 12" in text
    assert nominal[2]["difference"] == pytest.approx(nominal[2]["mean"] - nominal[0]["mean"])
    assert all(row["cvar"] <= row["iqm_low"] <= row["iqm"] <= row["iqm_high"] for row in rows)
    again = run("compare", first, equal, worse, "--episodes", 12, "--out", tmp_path / "u.json")
    assert again[0] == 0 and (tmp_path / "u.json").read_bytes() == (tmp_path / "t.json").read_bytes()


def test_a_table_for_a_document() -> None:
    first, second = np.arange(12.0), np.arange(12.0) - 3
    text = markdown([line("a", 0.1, first, 0, first), line("b|c.npz", 0.1, second, 2, first)])
    head, rule, *rows = text.splitlines()
    assert head.count("|") == rule.count("|") == rows[0].count("|") == 8 and "paired by start state" in text
    assert "| 2 of 12 | -3 [-3, -3] |" in rows[1] and "| 2.5 " in rows[1] and "b\\|c.npz" in rows[1]


def test_pairing_takes_away_what_start_states_have_in_common() -> None:
    rng = np.random.default_rng(0)
    common = 100 * rng.normal(size=40)
    a, b = common, common + 1 + 0.1 * rng.normal(size=40)
    found = line("b", 0.1, b, 0, a)
    assert 0.9 < found.low < found.difference < found.high < 1.1 and 0.4 < found.improvement < 0.6
    assert np.isnan(line("b", 0.1, b[:2], 0, a[:2]).low)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lqr"], "two policies"),
        (["lqr", "lqr"], "different policies"),
        (["lqr", "none.npz"], "nothing at"),
        (["lqr", "mpc", "--attack", "lookahead"], "no network"),
        (["lqr", "mpc", "--attack", "made"], "mad"),
        (["lqr", "mpc", "--radius", -1], "not negative"),
        (["lqr", "mpc", "--threat", "action:l2:raw"], "observation"),
    ],
)
def test_bad_input(arguments: list[object], words: str, run: Run) -> None:
    status, _, err = run("compare", *arguments)
    assert status == 2 and words in err
