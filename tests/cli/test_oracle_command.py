"""`lipctrl oracle`: all checks pass; an attack that leaves its set, or a weak one, does not."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.attacks import ATTACKS, SEARCHES, Context, MaximalActionDeviation
from lipctrl.attacks.blind import Uniform
from lipctrl.cli import oracle

Run = Callable[..., tuple[int, str, str]]


def test_all_checks_pass_and_are_written(tmp_path: Path, run: Run) -> None:
    status, text, _ = run("oracle", "--out", tmp_path / "o.json")
    rows = json.loads((tmp_path / "o.json").read_text())
    assert status == 0 and "no search exceeds" in text and all(row["passed"] for row in rows)
    assert {row["search"] for row in rows} >= {*ATTACKS, *SEARCHES, "planned gradient", "cross-entropy"}
    again = run("oracle", "--out", tmp_path / "p.json")
    assert again[0] == 0 and (tmp_path / "p.json").read_bytes() == (tmp_path / "o.json").read_bytes()


@dataclass(frozen=True)
class Stronger:
    """Says that it stays in its ball, and does not: the set is drawn larger on the way in."""

    def perturb(self, context: Context) -> np.ndarray:
        """See `Attack.perturb`."""
        ball = context.ball
        larger = replace(context, ball=replace(ball, radius=1.001 * ball.radius))
        return MaximalActionDeviation().perturb(larger)


def test_an_attack_that_leaves_its_set_or_is_weak_fails(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(ATTACKS, "mad", (Uniform, "not a search at all"))
    status, text, err = run("oracle")
    assert status == 3 and "FAIL" in text and "mad on LQR cost" in err
    monkeypatch.setitem(ATTACKS, "mad", (Stronger, "cheats"))
    with pytest.raises(AssertionError, match="left its set"):
        run("oracle")
    monkeypatch.setattr(oracle.Ball, "contains", lambda self, d: True)
    status, _, err = run("oracle")
    assert status == 3 and "checks fail" in err


def test_evaluate_with_lookahead_is_at_least_as_strong_as_greedy(tmp_path: Path, run: Run) -> None:
    arguments = ["lqr", "--env", "lipctrl/DoubleIntegrator-v0", "--radii", 0.1, "--episodes", 2, "--fresh", 3]
    assert run("evaluate", *arguments, "--attacks", "mad", "lookahead", "--out", tmp_path / "e")[0] == 0
    table = json.loads((tmp_path / "e" / "report.json").read_text())["sections"][0]["table"]
    means = {row["attack"]: row["mean"] for row in table}
    section = json.loads((tmp_path / "e" / "report.json").read_text())["sections"][0]
    nominal, worst = section["fresh"]
    assert (nominal["radius"], worst["radius"], worst["episodes"]) == (0.0, 0.1, 3) and worst["attack"] in means
    assert worst["worst"] <= worst["cvar"] <= worst["mean"] < nominal["mean"] and worst["mean"] not in means.values()
    assert any("new seeds" in line for line in section["verdicts"])
    assert "The worst attack on new seeds" in (tmp_path / "e" / "report.html").read_text()
    assert means["lookahead"] < means["mad"] + 0.02 * abs(means["mad"])
    for extra, words in (
        (["mpc", "--env", "lipctrl/Pendulum-v0"], "no network"),
        (["lqr", "--env", "InvertedPendulum-v5"], "plant of this library"),
    ):
        status, _, err = run("evaluate", *extra, "--attacks", "lookahead", "--out", tmp_path / "x")
        assert status == 2 and words in err and not (tmp_path / "x").exists()


def test_bad_input(run: Run) -> None:
    assert run("oracle", "--episodes", 0)[0] == 2
