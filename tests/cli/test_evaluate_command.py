"""`lipctrl evaluate` as a machine: workers, budget, interrupts, resuming, tiers, requirements, partial results."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from lipctrl.attacks.blind import RandomVertex
from lipctrl.cli import cells, evaluate, extras, fits
from lipctrl.cli.main import main
from lipctrl.evaluation import engine
from lipctrl.evaluation.tiers import TIERS
from lipctrl.nn.onnx import write_onnx
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
Case = tuple[Path, list[Any]]
DI = "lipctrl/DoubleIntegrator-v0"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "git_state", lambda: None)  # a commit while the tests run would be in the reports
        patch.setattr(Figure, "savefig", what_is_drawn)  # half of the time of an evaluation of this size is drawing
        patch.setattr(extras, "film", lambda recording, threat: "")
        yield
    for pool, stop in engine._pools.values():
        stop.set()
        pool.shutdown()
    engine._pools.clear()


def what_is_drawn(figure: Figure, file: Any, **_: Any) -> None:
    """Instead of an SVG: the numbers in it, which say as well whether two reports show the same."""
    lines = [[line.get_xydata().tolist() for line in axes.lines] for axes in figure.axes]
    texts = [text.get_text() for text in figure.findobj(Text)]
    file.write(f"<svg>{lines}{texts}</svg>")


def linear() -> PlainNet:
    return PlainNet(({0: -np.array([[0.5, 1.4]])},), (np.zeros(1),), ())


def pages(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("report.html", "report.json")]


def section(folder: Path) -> dict[str, Any]:
    (found,) = json.loads((folder / "report.json").read_text())["sections"]
    return dict(found)


def status(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["status"])


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A folder with net.npz and `whole`, an evaluation of eight cells (a search is one), and its arguments."""
    folder = tmp_path_factory.mktemp("case")
    linear().save(folder / "net.npz")
    arguments = ["evaluate", folder / "net.npz", "lqr", "--radii", 0, 0.1, "--episodes", 2, "--fresh", 2]
    arguments += ["--attacks", "none", "vertex", "pulse-search", "--search", 4, "--ladder", "--parts", 0]
    assert main([str(one) for one in [*arguments, "--out", folder / "whole"]]) == 0
    return folder, arguments


def test_eight_workers_write_the_bytes_of_one(case: Case, tmp_path: Path, run: Run) -> None:
    (folder, arguments), whole = case, pages(case[0] / "whole")
    assert run(*arguments, "--workers", 8, "--out", tmp_path / "eight")[0] == 0
    assert pages(tmp_path / "eight") == whole
    assert (folder / "whole" / "settings.yaml").read_bytes() == (tmp_path / "eight" / "settings.yaml").read_bytes()


def test_a_budget_ends_at_the_same_cell_and_is_resumed(
    case: Case, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells have 200 steps: the fourth begins with 600 spent, the fifth does not begin."""
    (folder, arguments), whole = case, pages(case[0] / "whole")
    found = []
    for workers in (1, 8):  # whose processes are there already
        out = tmp_path / f"budget{workers}"
        code, text, _ = run(*arguments, "--budget", 700, "--workers", workers, "--out", out)
        assert code == 0 and "partial: 4 of 10 combinations" in text and "--resume" in text
        assert status(out) == "partial" and "PARTIAL RESULT" in (out / "report.html").read_text()
        assert section(out)["partial"].endswith("the budget of 700 environment steps is spent")
        rows = [(row["policy"], row["attack"], row["radius"]) for row in section(out)["table"]]
        net = str(folder / "net.npz")
        assert sorted(rows) == sorted(
            [(net, "none", 0), ("expert", "none", 0), (net, "vertex", 0), (net, "vertex", 0.1)]
        )
        found.append(pages(out))
    assert found[0] == found[1]
    ran: list[str] = []
    monkeypatch.setattr(cells, "run_cell", _counted(ran))
    assert run("evaluate", "--resume", tmp_path / "budget1")[0] == 0
    assert pages(tmp_path / "budget1") == whole and status(tmp_path / "budget1") == "finished"
    assert len(ran) == 8 + 2 - 4  # cells, those of the new seeds, what was there
    ran.clear()
    assert run("evaluate", "--resume", tmp_path / "budget1")[0] == 0 and not ran


def _counted(ran: list[str]) -> Callable[[cells.Cell], Any]:
    original = cells.run_cell

    def run_cell(cell: cells.Cell) -> Any:
        ran.append(cell.label)
        return original(cell)

    return run_cell


def test_a_budget_that_ends_before_the_new_seeds(case: Case, tmp_path: Path, run: Run) -> None:
    folder, arguments = case
    steps = sum(row["episodes"] * row["length"] for row in section(folder / "whole")["table"])
    searched = sum(row["loop_steps"] for row in section(folder / "whole")["table"]) / 2  # stands in both radii
    code, text, _ = run(*arguments, "--budget", int(steps + searched), "--out", tmp_path / "b")
    assert code == 0 and "before all was run of: new seeds" in " ".join(text.split())
    assert len(section(tmp_path / "b")["table"]) == 10 and not section(tmp_path / "b")["fresh"]
    code, _, err = run(*arguments, "--budget", 300, "--require", "worst>=-1e9", "--out", tmp_path / "c")
    assert code == 3 and "not shown by a partial result" in err


def test_a_budget_that_ends_in_the_ladder_or_the_map(tmp_path: Path, run: Run) -> None:
    """100 steps per cell: three cells in the table, two with less effort, two components and two parts."""
    linear().save(tmp_path / "net.npz")
    arguments = ["evaluate", tmp_path / "net.npz", "--radii", 0, 0.1, "--episodes", 1, "--fresh", 0, "--attacks"]
    arguments += ["none", "mad", "--ladder", 0, 0.5, "--parts", 2, "--out"]
    for budget, rungs, rest in ((400, 2, "less effort, mad confined"), (800, 3, "mad confined")):
        assert run(*arguments, tmp_path / str(budget), "--budget", budget)[0] == 0
        found = section(tmp_path / str(budget))
        assert found["partial"] == f"the budget was spent before all was run of: {rest}"
        assert len(found["ladder"]) == rungs and not found["components"]
        assert status(tmp_path / str(budget)) == "partial"
    assert run("evaluate", "--resume", tmp_path / "800")[0] == 0
    found = section(tmp_path / "800")
    assert not found["partial"] and len(found["components"]) == 2 and status(tmp_path / "800") == "finished"
    # the note's 7.5.10: the parts of the episode include both ends
    assert [part["name"] for part in found["times"]] == ["steps 0 to 49", "steps 50 to 99"]


def test_an_interrupt_keeps_what_is_finished(
    case: Case, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, whole = case[1], pages(case[0] / "whole")
    with monkeypatch.context() as patch:
        calls = _interrupt_after(patch, 350)
        code, text, err = run(*arguments, "--out", tmp_path / "r")
    assert code == 130 and calls == [350] and "interrupted" in err and "--resume" in text
    assert status(tmp_path / "r") == "interrupted" and "interrupted" in section(tmp_path / "r")["partial"]
    assert len(section(tmp_path / "r")["table"]) == 2 + 3
    assert run("evaluate", "--resume", tmp_path / "r")[0] == 0
    assert pages(tmp_path / "r") == whole
    with monkeypatch.context() as patch:
        _interrupt_after(patch, 0)
        assert run(*arguments, "--attacks", "vertex", "--out", tmp_path / "nothing")[0] == 130
    assert status(tmp_path / "nothing") == "interrupted" and not (tmp_path / "nothing" / "report.json").exists()


def _interrupt_after(patch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Ctrl-C in the vertex attack after `count` of its steps."""
    calls, original = [0], RandomVertex.perturb

    def perturb(self: RandomVertex, context: Any) -> Any:
        if calls[0] == count:
            raise KeyboardInterrupt
        calls[0] += 1
        return original(self, context)

    patch.setattr(RandomVertex, "perturb", perturb)
    return calls


def test_ctrl_c_reaches_the_workers(tmp_path: Path) -> None:
    out = tmp_path / "r"
    words = ["evaluate", "lqr", "--attacks", "none", "pulse-search", "--search", "9000", "--workers", "2"]
    command = [sys.executable, "-m", "lipctrl", *words, "--radii", "0", "0.1", "--episodes", "1", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "1 of 3 combinations" in section(out)["partial"]
    with pytest.raises(ProcessLookupError):  # soon nobody of the group is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_a_policy_that_was_changed_is_run_again(tmp_path: Path, run: Run) -> None:
    linear().save(tmp_path / "net.npz")
    arguments = ["evaluate", tmp_path / "net.npz", "--attacks", "none", "--episodes", 1, "--fresh", 0, "--out"]
    assert run(*arguments, tmp_path / "old")[0] == 0
    before = pages(tmp_path / "old")
    PlainNet(({0: -np.array([[0.4, 1.3]])},), (np.zeros(1),), ()).save(tmp_path / "net.npz")
    assert run("evaluate", "--resume", tmp_path / "old")[0] == 0 and run(*arguments, tmp_path / "new")[0] == 0
    assert pages(tmp_path / "old") == pages(tmp_path / "new") != before


class Diverging(gymnasium.Env[Any, Any]):
    """x+ = x + a until an action is too large, from where on there is no state."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1000, 1000, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.x = np.zeros(2, dtype=np.float32)
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x = self.x + action if abs(action[0]) < 1 else np.full(2, np.inf, dtype=np.float32)
        return self.x, 0.0, False, False, {}


def overflowing() -> PlainNet:
    """-0.5 x - 1.4 v, and infinity minus infinity as well where v is beyond 1000."""
    first = np.vstack([np.eye(2), -np.eye(2), [[0.0, 1e305]] * 2])
    bias = np.array([0, 0, 0, 0, -1e308, -1e308])
    return PlainNet.mlp([first, np.array([[-0.5, -1.4, 0.5, 1.4, 1.0, -1.0]])], [bias, np.zeros(1)], "relu")


BAD: dict[str, tuple[str, PlainNet, list[Any], str]] = {
    "a policy outside the action space": (DI, linear(), [0, 1e5], "outside the action space"),
    "a policy that is not a number": (DI, overflowing(), [0, 1e5], "not finite"),
    "an environment that diverges": ("lipctrl-test/Diverging-v0", linear(), [0, 10], "diverged"),
}


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("name", BAD)
def test_what_goes_wrong_on_the_way_keeps_what_was_found(name: str, tmp_path: Path, run: Run) -> None:
    gymnasium.register("lipctrl-test/Diverging-v0", Diverging, max_episode_steps=20)
    env, net, radii, words = BAD[name]
    net.save(tmp_path / "net.npz")
    arguments = ["--env", env, "--radii", *radii, "--attacks", "none", "vertex", "--episodes", 1]
    code, text, err = run("evaluate", tmp_path / "net.npz", *arguments, "--out", tmp_path / "r")
    del gymnasium.registry["lipctrl-test/Diverging-v0"]
    (sentence,) = [line for line in err.splitlines() if line.startswith("lipctrl: ")]
    assert code == 2 and words in sentence and "Traceback" not in err
    assert status(tmp_path / "r") == "failed" and words in section(tmp_path / "r")["partial"]
    assert [(row["attack"], row["radius"]) for row in section(tmp_path / "r")["table"]] == [("none", 0), ("vertex", 0)]


def test_a_tier_sets_what_is_not_said(tmp_path: Path, run: Run) -> None:
    arguments = ["evaluate", "lqr", "--threat", "action:l2:raw", "--radii", 0, 0.1, "--out"]
    assert run(*arguments, tmp_path / "smoke", "--tier", "smoke")[0] == 0
    found = section(tmp_path / "smoke")
    assert {row["attack"] for row in found["table"]} == {"none", "uniform", "vertex", "constant"}
    assert {row["episodes"] for row in found["table"]} == {5} and found["facts"]["tier"].startswith("smoke, seconds")
    chosen = ["--tier", "standard", "--episodes", 1, "--fresh", 0, "--search", 8]
    assert run(*arguments, tmp_path / "standard", *chosen)[0] == 0
    found = section(tmp_path / "standard")
    assert {row["episodes"] for row in found["table"]} == {1} and not found["fresh"]
    assert {row["loops"] for row in found["table"]} == {0, 8}
    assert "pulse-search" in {row["attack"] for row in found["table"]}
    assert "works on the observation" in found["facts"]["left out: mad"]  # the threat is on the action
    assert run(*arguments, tmp_path / "x", "--tier", "hard")[0] == 2


def test_one_network_in_every_form_a_policy_may_have(tmp_path: Path, run: Run) -> None:
    random = np.random.default_rng(0)
    weights, biases = [random.normal(size=(4, 2)) / 2, random.normal(size=(1, 4)) / 2], [np.zeros(4), np.zeros(1)]
    net = PlainNet.mlp(weights, biases, "tanh")
    net.save(tmp_path / "net.npz")
    write_onnx(net, tmp_path / "net.onnx")
    arrays = {f"{k}.weight": w for k, w in enumerate(weights)} | {f"{k}.bias": b for k, b in enumerate(biases)}
    torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, tmp_path / "net.pt")
    files = [tmp_path / f"net.{ending}" for ending in ("npz", "onnx", "pt")]
    arguments = ["--attacks", "none", "mad", "--radii", 0, 0.1, "--episodes", 1, "--fresh", 0, "--ladder", "--parts", 0]
    assert run("evaluate", *files, *arguments, "--activation", "tanh", "--out", tmp_path / "r")[0] == 0
    found = section(tmp_path / "r")["table"]
    first, *others = ([row["mean"] for row in found if row["policy"] == str(file)] for file in files)
    assert len(first) == 3 and all(other == pytest.approx(first, rel=1e-5) for other in others)
    code, _, err = run("evaluate", files[2], *arguments, "--out", tmp_path / "x")
    assert code == 2 and "add --activation" in err


def test_the_strong_tier_trains_attacks_and_tries_them_on_all(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits, "KINDS", ("robust-sarsa",))  # the others are trained in the same way, and take longer
    monkeypatch.setattr(fits, "CANDIDATES", {"robust-sarsa": 1})
    monkeypatch.setitem(TIERS, "strong", replace(TIERS["strong"], attacks=("none", "vertex")))
    linear().save(tmp_path / "net.npz")
    arguments = ["evaluate", tmp_path / "net.npz", "lqr", "--tier", "strong", "--training", 400, "--radii", 0, 0.1]
    arguments += ["--episodes", 1, "--fresh", 0, "--ladder", "--parts", 0, "--out", tmp_path / "r"]
    assert run(*arguments)[0] == 0
    found, files = section(tmp_path / "r"), sorted((tmp_path / "r" / "attacks").iterdir())
    assert [file.name for file in files] == ["robust-sarsa-0.npz", "robust-sarsa-1.npz"]
    tried = {(row["policy"], row["attack"]) for row in found["table"]}
    assert {(policy, str(file)) for policy in (str(tmp_path / "net.npz"), "expert") for file in files} <= tried
    assert "fitted to expert" in found["facts"][str(files[1])]
    stamps = [file.stat().st_mtime_ns for file in files]
    assert run("evaluate", "--resume", tmp_path / "r")[0] == 0
    assert stamps == [file.stat().st_mtime_ns for file in files]
    assert run(*arguments[:-1], tmp_path / "b", "--budget", 700)[0] == 0
    assert "800 steps, over the budget" in section(tmp_path / "b")["facts"]["left out: trained attacks"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--require", "worst>900"], "QUANTITY>=NUMBER"),
        (["--require", "worts>=900"], "did you mean 'worst'"),
        (["--workers", "0"], "workers"),
        (["--budget", "0"], "budget"),
        (["--engine", "slurm"], "engine"),
        (["--resume", "nowhere"], "not a run folder"),
    ],
)
def test_bad_settings_are_one_sentence_and_harmless(arguments: list[str], word: str, tmp_path: Path, run: Run) -> None:
    code, out, err = run("evaluate", "lqr", *arguments, "--out", tmp_path / "new")
    assert code == 2 and word in out + err and "Traceback" not in out + err and not (tmp_path / "new").exists()


def test_only_an_evaluation_is_resumed(tmp_path: Path, run: Run) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "settings.yaml").write_text("lip: 3\n")
    code, _, err = run("evaluate", "--resume", tmp_path)
    assert code == 2 and "lip" in err
