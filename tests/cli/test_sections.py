"""Sections of a report: the proved change of the action in the threat's own norm; any policy beside networks."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipctrl.attacks.threat import Threat
from lipctrl.cli.assembly import deviation_bound
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_proved_deviation_is_in_the_norm_and_units_of_the_threat(norm: str) -> None:
    """A linear policy: the l2 gain is a singular value, the largest over a box is at a corner."""
    r = np.random.default_rng(1)
    matrix, scale = r.normal(size=(2, 3)), r.uniform(0.1, 3, 3)
    net = PlainNet(({0: matrix},), (np.zeros(2),), ())
    threat = Threat.parse(f"observation:{norm}:normalised", scale, ("a", "b", "c"))
    corners = np.array(list(itertools.product([-1, 1], repeat=3))) * scale
    exact = {
        "l2": float(np.linalg.norm(matrix * scale, 2)),
        "linf": float(np.linalg.norm(corners @ matrix.T, axis=1).max()),
    }[norm]
    found = deviation_bound(net, threat)
    assert exact <= found < exact * (1 + 1e-6 if norm == "l2" else 1.5)


def test_a_network_lqr_and_mpc_under_one_threat_in_one_table(tmp_path: Path, run: Run) -> None:
    PlainNet(({0: -np.array([[0.5, 1.4]])},), (np.zeros(1),), ()).save(tmp_path / "net.npz")
    arguments = [tmp_path / "net.npz", "lqr", "mpc", "--radii", 0, 0.05, "--episodes", 1, "--out", tmp_path / "r"]
    status, out, _ = run("evaluate", *arguments, "--attacks", "none", "vertex", "mad", "--fresh", 1)
    assert status == 0 and "nothing" in out
    (section,) = json.loads((tmp_path / "r" / "report.json").read_text())["sections"]
    rows = {(row["policy"], row["attack"], row["radius"]): row for row in section["table"]}
    assert {policy for policy, *_ in rows} == {str(tmp_path / "net.npz"), "expert", "mpc"}
    for attack, radius in (("none", 0.0), ("vertex", 0.05), ("mad", 0.05)):
        lqr, mpc = rows["expert", attack, radius], rows["mpc", attack, radius]
        # without active limits MPC with the LQR's terminal cost is LQR; MAD may push either way, with equal deviation
        assert mpc["mean"] == pytest.approx(lqr["mean"], rel=0.05 if attack == "mad" else 1e-6)
        assert mpc["certified"] is None
        assert mpc["deviation"] == pytest.approx(lqr["deviation"], rel=1e-3, abs=1e-6)
    assert [x["policy"] for x in section["sensitivity"]] == [str(tmp_path / "net.npz"), "expert"]
    assert run("evaluate", "mpc", "--env", "InvertedPendulum-v5", "--out", tmp_path / "q")[0] == 2
