"""Run folders: never overwritten, hashed, readable."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from lipctrl.files import UserError, write_atomically, write_text
from lipctrl.runs import Run, read_metrics, write_metrics


@dataclass(frozen=True)
class Example:
    steps: int = 3
    out: str | None = None


def test_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "keep").write_text("x")
    with pytest.raises(UserError, match="exists"):
        Run.create(str(tmp_path / "r"), "r", Example(), seed=0)
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["keep"]


def test_names_count_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [Run.create(None, "a", Example(), seed=0).path.name for _ in range(2)] == ["a-0", "a-1"]
    assert "out" not in (tmp_path / "runs" / "a-0" / "settings.yaml").read_text()


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    run = Run.create(str(tmp_path / "r"), "r", Example(), seed=0)
    write_text(run.path / "data", "1")
    run.finish()
    again = Run.open(run.path)
    assert again.record["status"] == "finished" and again.checked("data").read_text() == "1"
    (run.path / "data").write_text("2")
    with pytest.raises(UserError, match="hash"):
        again.checked("data")
    with pytest.raises(UserError, match="no other"):
        again.checked("other")
    with pytest.raises(UserError, match="not a run folder"):
        Run.open(tmp_path)


def test_changed_settings_of_a_run_that_was_killed_are_noticed(tmp_path: Path) -> None:
    run = Run.create(str(tmp_path / "r"), "r", Example(), seed=0)  # never finished
    assert Run.open(run.path).checked("settings.yaml").is_file()
    write_text(run.path / "settings.yaml", "steps: 4\n")
    with pytest.raises(UserError, match="settings.yaml was changed"):
        Run.open(run.path).checked("settings.yaml")


def test_metrics_keep_every_digit(tmp_path: Path) -> None:
    rows = [{"a": 0.1 + 0.2, "b": 1e-300}, {"a": 2.0, "b": -0.0}]
    write_metrics(tmp_path / "m.csv", rows)
    assert read_metrics(tmp_path / "m.csv") == rows


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def fail(stream: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
