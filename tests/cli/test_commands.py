"""Each command end to end on a tiny case, exit statuses, and bad input that damages nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lipctrl.certify.certificate import Certificate
from lipctrl.cli.interrupt import deferred_interrupt
from lipctrl.cli.main import COMMANDS, main
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.nn.plain import PlainNet
from lipctrl.runs import read_metrics

DI = "lipctrl/DoubleIntegrator-v0"
SMALL = ["--hidden", "8", "8", "--updates", "40", "--log-interval", "10"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demonstrations `d.npz` and a trained, certified run `r`."""
    folder = tmp_path_factory.mktemp("made")
    assert (
        main(["demos", "collect", "--env", DI, "--episodes", "3", "--max-steps", "20", "--out", str(folder / "d.npz")])
        == 0
    )
    assert main(["train", "bc", "--demos", str(folder / "d.npz"), "--out", str(folder / "r"), *SMALL]) == 0
    assert main(["certify", str(folder / "r")]) == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, run: Run) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0 and f"lipctrl {command}" in out


def test_top_level_help_and_version(run: Run) -> None:
    assert all(name in run("--help")[1] for name in COMMANDS)
    assert run("--version")[1].startswith("lipctrl ")


def test_training_writes_a_whole_run(made: Path) -> None:
    record = json.loads((made / "r" / "run.json").read_text())
    assert record["status"] == "finished" and {"model.zip", "policy.npz", "metrics.csv"} <= set(record["files"])
    rows = read_metrics(made / "r" / "metrics.csv")
    assert [row["update"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_a_run_can_be_repeated_to_the_byte(made: Path, tmp_path: Path, run: Run) -> None:
    status, _, _ = run("train", "bc", "--config", str(made / "r" / "settings.yaml"), "--out", str(tmp_path / "again"))
    assert status == 0
    for name in ("metrics.csv", "policy.npz"):
        assert (tmp_path / "again" / name).read_bytes() == (made / "r" / name).read_bytes()


def test_another_seed_changes_the_metrics(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "other"
    run("train", "bc", "--config", str(made / "r" / "settings.yaml"), "--seed", "1", "--out", str(out))
    assert (out / "metrics.csv").read_bytes() != (made / "r" / "metrics.csv").read_bytes()


def test_certificate_is_below_the_setting_and_verifies(made: Path, run: Run) -> None:
    certificate = Certificate.load(made / "r" / "certificate.json")
    net = PlainNet.load(made / "r" / "policy.npz")
    assert certificate.verify(net) and certificate.bound <= 2.0 * (1 + 1e-6)
    status, out, _ = run("certify", str(made / "r"), "--check", str(made / "r" / "certificate.json"))
    assert status == 0 and "verified" in out


def test_requirements_exit_with_three(made: Path, tmp_path: Path, run: Run) -> None:
    out = str(tmp_path / "c.json")
    assert run("certify", str(made / "r"), "--require", "1e-3", "--out", out)[0] == 3
    assert run("certify", str(made / "r"), "--require", "1e3", "--out", out)[0] == 0
    forged = json.loads(Path(out).read_text())
    forged["bound"] *= 0.5
    Path(out).write_text(json.dumps(forged))
    status, _, err = run("certify", str(made / "r"), "--check", out)
    assert status == 3 and "does not hold" in err


def test_evaluate_writes_a_report(made: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "e"
    arguments = ["evaluate", str(made / "r"), "lqr", "--config", "double-integrator", "--episodes", "2"]
    arguments += ["--radii", "0", "0.1", "--out", str(out)]
    status, text, _ = run(*arguments)
    assert status == 0 and "report:" in text
    page = (out / "report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    data = json.loads((out / "report.json").read_text())["sections"][0]
    assert data["exact"][0]["ratio"] == pytest.approx(1.0, abs=1e-6) and data["exact"][0]["ratio"] <= 1 + 1e-9
    assert all(x["verified"] for x in data["sensitivity"])
    assert all(row["deviation"] <= row["certified"] for row in data["table"])
    status, _, err = run(*arguments[:-1], str(tmp_path / "f"), "--require", "worst>=1e9")
    assert status == 3 and "worst is -" in err


def test_list_names_everything(run: Run) -> None:
    _, out, _ = run("list")
    assert all(word in out for word in (DI, "InvertedPendulum-v5", "sandwich", "mad", "double-integrator"))


def test_demos_info(made: Path, run: Run) -> None:
    status, out, _ = run("demos", "info", str(made / "d.npz"))
    assert status == 0 and "3, of 20 to 20 steps" in out and "LQR" in out


Bad = tuple[list[str], str]
BAD: dict[str, Bad] = {
    "command": (["evalute", "x"], "evaluate"),
    "subcommand": (["demos", "colect"], "demos collect"),
    "environment": (
        ["demos", "collect", "--env", "lipctrl/DoubleIntegratr-v0", "--out", "{new}.npz"],
        "DoubleIntegrator-v0",
    ),
    "attack": (["evaluate", "{run}", "--attacks", "madd"], "mad"),
    "threat": (["evaluate", "{run}", "--threat", "observation:l2:metres", "--out", "{new}"], "metres"),
    "preset": (["train", "bc", "--config", "duoble-integrator"], "double-integrator"),
    "flag": (["train", "bc", "--lipp", "2"], "lip"),
    "negative bound": (["train", "bc", "--lip", "-1"], "positive"),
    "bound that is not a number": (["train", "bc", "--lip", "nan"], "positive"),
    "negative seed": (["train", "bc", "--demos", "{demos}", "--seed", "-1", "--out", "{new}"], "seed"),
    "learning rate": (["train", "bc", "--learning-rate", "-1"], "learning_rate"),
    "widths": (["train", "bc", "--hidden", "8", "0"], "at least 1"),
    "device": (["train", "bc", "--device", "gpu"], "cuda"),
    "activation": (
        ["train", "bc", "--demos", "{demos}", "--activation", "gelu", "--out", "{new}"],
        "slopes in [0, 1]",
    ),
    "quickstart without episodes": (["quickstart", "--episodes", "0", "--out", "{new}"], "episode"),
    "quickstart with a negative seed": (["quickstart", "--seed", "-1", "--out", "{new}"], "seed"),
    "family": (["train", "bc", "--family", "sandwhich"], "sandwich"),
    "no demonstrations": (["train", "bc"], "--demos"),
    "missing demonstrations": (["train", "bc", "--demos", "{new}.npz"], "no demonstrations"),
    "demonstrations of another environment": (
        ["train", "bc", "--demos", "{demos}", "--env", "InvertedPendulum-v5", "--out", "{new}"],
        "recorded in",
    ),
    "output exists": (["train", "bc", "--demos", "{demos}", "--out", "{run}"], "exists"),
    "output file exists": (["demos", "collect", "--env", DI, "--out", "{demos}"], "exists"),
    "no network": (["certify", "{new}"], "nothing at"),
    "not a network": (["certify", "{demos}"], "expected 'lipctrl-plainnet-1'"),
    "unknown method": (["certify", "{run}", "--method", "lipsdp-network"], "method"),
    "region": (["certify", "{run}", "--region", "0:1"], "intervals"),
    "negative radius": (["evaluate", "{run}", "--radii", "-0.1"], "negative"),
    "policy of other sizes": (["evaluate", "{run}", "--env", "InvertedPendulum-v5", "--out", "{new}"], "observations"),
    "resume a finished run": (["train", "bc", "--resume", "{run}"], "finished"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_status_two_and_harmless(case: str, made: Path, tmp_path: Path, run: Run) -> None:
    places = {"run": made / "r", "demos": made / "d.npz", "new": tmp_path / "new"}
    before = snapshot(made)
    arguments, words = BAD[case]
    status, out, err = run(*[argument.format(**places) for argument in arguments])
    assert status == 2, (out, err)
    assert words in out + err and "Traceback" not in out + err
    assert snapshot(made) == before and not (tmp_path / "new").exists()


def test_unknown_key_in_a_settings_file(made: Path, tmp_path: Path, run: Run) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("updatez: 3\n")
    status, _, err = run("train", "bc", "--config", str(file))
    assert status == 2 and "updates" in err and err.count("\n") == 1


def test_demonstrations_with_nan(made: Path, tmp_path: Path, run: Run) -> None:
    with np.load(made / "d.npz") as stored:
        arrays = dict(stored)
    arrays["labels"][3] = np.nan
    np.savez(tmp_path / "bad.npz", **arrays)
    status, _, err = run("train", "bc", "--demos", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "x"))
    assert status == 2 and "not finite" in err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("how", ["truncated", "tampered"])
def test_damaged_checkpoints(how: str, made: Path, tmp_path: Path, run: Run) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made / "r", copy)
    record = json.loads((copy / "run.json").read_text())
    record["status"] = "interrupted"
    if how == "truncated":
        record["files"].pop("model.zip")
    (copy / "run.json").write_text(json.dumps(record))
    whole = (copy / "model.zip").read_bytes()
    (copy / "model.zip").write_bytes(whole[:-200] if how == "truncated" else whole + b"x")
    status, _, err = run("train", "bc", "--resume", str(copy))
    assert status == 2 and ("whole" in err or "hash" in err), err


def test_tampered_policy_of_a_run(made: Path, tmp_path: Path, run: Run) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made / "r", copy)
    (copy / "policy.npz").write_bytes((copy / "policy.npz").read_bytes()[:-100])
    status, _, err = run("certify", str(copy))
    assert status == 2 and "hash" in err


def test_certificate_of_other_weights(made: Path, tmp_path: Path, run: Run) -> None:
    PlainNet.mlp([np.eye(2), np.ones((1, 2))], [np.zeros(2), np.zeros(1)], "tanh").save(tmp_path / "n.npz")
    status, _, err = run("certify", str(tmp_path / "n.npz"), "--check", str(made / "r" / "certificate.json"))
    assert status == 2 and "weights" in err


def test_unwritable_folder(made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # root may write anywhere: a file in the place of the folder stops it as well
        (tmp_path / "full").write_text("")
    else:
        (tmp_path / "full").mkdir(mode=0o500)
    status, _, err = run("train", "bc", "--demos", str(made / "d.npz"), "--out", str(tmp_path / "full" / "r"), *SMALL)
    assert status == 2 and "cannot create" in err
    status, _, err = run("demos", "collect", "--env", DI, "--episodes", "1", "--out", str(tmp_path / "full" / "d.npz"))
    assert status == 2 and "cannot write" in err


def test_interrupt_leaves_a_resumable_run_that_ends_the_same(made: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["train", "bc", "--demos", str(made / "d.npz"), "--hidden", "8", "8", "--log-interval", "10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lipctrl", *arguments, "--updates", "1500", "--out", str(tmp_path / "cut")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut" / "metrics.csv").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    assert run("train", "bc", "--resume", str(tmp_path / "cut"))[0] == 0
    assert run(*arguments, "--updates", "1500", "--out", str(tmp_path / "whole"))[0] == 0
    for name in ("metrics.csv", "policy.npz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_interrupt_inside_an_update_waits_for_its_end(
    made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes when the weights have moved and the update is not counted yet."""
    step, calls = torch.optim.Adam.step, 0

    def stepped(self: torch.optim.Adam, closure: None = None) -> None:
        nonlocal calls
        step(self, closure)
        calls += 1
        if calls == 13:
            signal.raise_signal(signal.SIGINT)

    arguments = ["train", "bc", "--demos", str(made / "d.npz"), *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stepped)
        assert run(*arguments, "--out", str(tmp_path / "cut"))[0] == 130
    assert calls == 13 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run("train", "bc", "--resume", str(tmp_path / "cut"))[0] == 0
    assert run(*arguments, "--out", str(tmp_path / "whole"))[0] == 0
    for name in ("metrics.csv", "policy.npz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_dagger_rounds_are_resumed_exactly(
    made: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second of three parts, when the first round's data are in the run folder."""
    arguments = [
        "train",
        "bc",
        "--demos",
        str(made / "d.npz"),
        *SMALL,
        "--dagger-rounds",
        "2",
        "--dagger-episodes",
        "1",
    ]
    status, _, err = run(*arguments)
    assert status == 2 and "--expert" in err
    arguments += ["--expert", "lqr", "--jacobian-weight", "0.1"]
    assert run(*arguments, "--out", str(tmp_path / "whole"))[0] == 0
    step, calls = torch.optim.Adam.step, 0

    def stepped(self: torch.optim.Adam, closure: None = None) -> None:
        nonlocal calls
        step(self, closure)
        calls += 1
        if calls == 20:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", stepped)
        assert run(*arguments, "--out", str(tmp_path / "cut"))[0] == 130
    assert run("train", "bc", "--resume", str(tmp_path / "cut"))[0] == 0
    for name in ("metrics.csv", "policy.npz", "demos.npz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(Demonstrations.load(tmp_path / "cut" / "demos.npz").lengths) == 5


def test_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as interrupted:
        signal.raise_signal(signal.SIGTERM)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("group", "kind"),
    [("demos", "demos collect"), ("bc", "train bc"), ("evaluate", "evaluate"), ("gail", "train gail")],
)
def test_every_preset_loads_and_validates(group: str, kind: str, run: Run) -> None:
    from lipctrl.config import presets

    assert len(presets(group)) >= 2
    for name in presets(group):
        status, out, err = run(*kind.split(), "--config", name, "--print-config")
        assert status == 0 and "env:" in out, err


def test_demonstration_file_says_where_it_comes_from(made: Path) -> None:
    provenance = Demonstrations.load(made / "d.npz").provenance
    assert provenance["env_id"] == DI and provenance["seed"] == 0 and "K = (0.57917, 1.5456)" in provenance["expert"]
    assert "torch" in provenance["versions"]
