"""Reports with all their parts, and worst episodes that replay to the last bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.cli.contenders import contender
from lipctrl.cli.main import main
from lipctrl.cli.probes import column_bound, family_of
from lipctrl.evaluation.recording import Recording
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two policies under an energy of disturbances of the plant."""
    tmp_path = tmp_path_factory.mktemp("report")
    PlainNet(({0: -np.array([[0.5, 1.4]])},), (np.zeros(1),), ()).save(tmp_path / "net.npz")
    attacks = ("none", "vertex", "pulse-search")
    arguments = [tmp_path / "net.npz", "lqr", "--threat", "disturbance:l2:raw:episode", "--radii", 0, 0.5]
    options = ["--episodes", 3, "--fresh", 2, "--search", 6, "--parts", 2, "--ladder", 0.5, "--out", tmp_path / "r"]
    assert main([str(word) for word in ("evaluate", *arguments, "--attacks", *attacks, *options)]) == 0
    return tmp_path / "r"


def test_the_worst_episode_replays_to_the_last_bit(folder: Path, run: Run) -> None:
    (section,) = json.loads((folder / "report.json").read_text())["sections"]
    lowest = min(row["worst"] for row in section["table"] if row["policy"] == "expert")
    facts = section["episodes"][1]
    assert facts["result"] == lowest and facts["replay"] == "lipctrl replay episode-0-1.npz"
    status, text, err = run("replay", folder / "episode-0-1.npz")
    assert status == 0, err
    assert text.count(repr(lowest)) >= 2 and "equal to the last bit" in text
    assert "lqr in the loop" in text
    status, text, _ = run("replay", folder)
    assert status == 0 and text.count("equal to the last bit") == 2


def test_another_policy_meets_the_same_disturbances(folder: Path, run: Run) -> None:
    (section,) = json.loads((folder / "report.json").read_text())["sections"]
    transfer, returns = section["transfer"], [one["result"] for one in section["episodes"]]
    assert np.diag(transfer) == pytest.approx(returns, rel=1e-12)
    status, text, _ = run("replay", folder / "episode-0-0.npz", "--policy", "lqr")
    assert status == 0 and f"lqr in the loop: return {transfer[0][1]!r}" in text


def test_a_recording_that_does_not_fit_is_noticed(folder: Path, tmp_path: Path, run: Run) -> None:
    recording = Recording.load(folder / "episode-0-1.npz")
    replace(recording, actions=recording.actions * (1 + 1e-9)).save(tmp_path / "other.npz")
    status, _, err = run("replay", tmp_path / "other.npz")
    assert status == 3 and "recorded is" in err
    (tmp_path / "cut.npz").write_bytes((folder / "episode-0-1.npz").read_bytes()[:200])
    assert run("replay", tmp_path / "cut.npz")[0] == 2
    assert run("replay", tmp_path / "none.npz")[0] == 2
    assert run("replay", tmp_path)[0] == 2 and run("replay")[0] == 2
    # a disturbance beyond the radius is not a witness of this threat
    beyond = replace(recording, disturbances=recording.disturbances * 3)
    with pytest.raises(RuntimeError, match="left its set"):
        beyond.save(tmp_path / "beyond.npz")
        run("replay", tmp_path / "beyond.npz")


def test_a_report_has_its_ten_parts_in_one_file(folder: Path) -> None:
    (section,) = json.loads((folder / "report.json").read_text())["sections"]
    assert {"headlines", "health", "ladder", "sensitivity", "units", "transfer", "episodes", "verdicts"} <= set(section)
    assert len(section["headlines"]) == 2 and set(section["health"]) == {h["policy"] for h in section["headlines"]}
    assert {(x["attack"], x["share"]) for x in section["ladder"]} >= {("pulse-search", 0.5), ("pulse-search", 1.0)}
    few = [sign for sign in section["health"]["expert"] if sign["name"] == "enough episodes"]
    assert few[0]["status"] == "bad" and section["warnings"]["expert"] >= 1
    page = (folder / "report.html").read_text()
    for words in (
        "Threat.",
        "Headline",
        "Return against radius",
        "Health",
        "How hard the search was",
        "Worst episodes",
    ):
        assert words in page
    for outside in ('src="http', "url(http", "<script", '<link rel="stylesheet"'):
        assert outside not in page
    assert page.count("<svg") >= 4 and "robust" not in page.lower()


def test_a_component_that_the_policy_ignores_is_proved_not_to_matter() -> None:
    r = np.random.default_rng(0)
    first = r.normal(size=(6, 3))
    first[:, 1] = 0.0
    net = PlainNet.mlp([first, r.normal(size=(2, 6))], [r.normal(size=6), np.zeros(2)], "tanh")
    assert column_bound(net, 1) < 1e-9
    linear = PlainNet(({0: np.array([[3.0, 0.0], [4.0, 1.0]])},), (np.zeros(2),), ())
    assert column_bound(linear, 0) == pytest.approx(5, rel=1e-9) and column_bound(linear, 1) == pytest.approx(
        1, rel=1e-9
    )
    # at any value of the others, which the bias of the part stands for
    x = r.normal(size=(200, 3)) * 3
    slopes = np.linalg.norm(net.jacobian(x)[:, :, 0], axis=1)
    assert slopes.max() <= column_bound(net, 0)


def test_families_of_attacks() -> None:
    known = {"none": "none", "vertex": "blind", "mad": "gradient", "lookahead": "gradient", "critic": "gradient"}
    assert {name: family_of(name) for name in known} == known
    assert family_of("spsa") == family_of("wave-search") == family_of("adversary.npz") == "query"


def test_trainings_of_a_run_are_one_method(tmp_path: Path, run: Run) -> None:
    """A run folder of several seeds stands for its policies; statistics over them are apart from the others."""
    for method, gain in (("soft", 1.3), ("stiff", 1.9)):
        for k in range(3):
            (tmp_path / method / f"seed-{k}").mkdir(parents=True)
            gains = -np.array([[0.5, gain + 0.05 * k]])
            PlainNet(({0: gains},), (np.zeros(1),), ()).save(tmp_path / method / f"seed-{k}" / "policy.npz")
    options = ["--attacks", "none", "mad", "--episodes", 2, "--fresh", 0, "--ladder", "--parts", 0, "--radii", 0, 0.3]
    status, _, err = run("evaluate", tmp_path / "soft", tmp_path / "stiff", *options, "--out", tmp_path / "r")
    assert status == 0, err
    (section,) = json.loads((tmp_path / "r" / "report.json").read_text())["sections"]
    over, soft = section["trainings"], str(tmp_path / "soft")
    own = {row["policy"]: row["mean"] for row in section["table"] if row["radius"] == 0.3}
    lowest = [own[f"{soft}/seed-{k}/policy.npz"] for k in range(3)]
    assert over["scores"][soft][1] == {"radius": 0.3, "returns": lowest}
    middle = over["interquartile mean"][soft][1]
    assert middle["runs"] == 3 and not middle["calibrated"] and middle["low"] <= middle["value"] <= middle["high"]
    chances = {(x["method"], x["radius"]): x["probability"] for x in over["probability of improvement"]}
    assert chances[soft, 0.3] + chances[str(tmp_path / "stiff"), 0.3] == 1
    assert "Over trainings" in (tmp_path / "r" / "report.html").read_text()


def test_contenders_know_what_they_are_called() -> None:
    net = PlainNet(({0: -np.array([[0.5, 1.4]])},), (np.zeros(1),), ())
    names = (("a", "b"), ("u",))
    assert contender("expert", net, env_names=names).word == "lqr"
    assert replace(contender("x", net, env_names=names), source=Path("runs/x")).word == "runs/x"
