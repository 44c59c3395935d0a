"""Run folder: what was run, with what, from which state of the code, and what came out.

runs/<name>/run.json       command, versions, git state, status, wall time, hashes of the files
runs/<name>/settings.yaml  resolved settings; `--config runs/<name>/settings.yaml` repeats the run
runs/<name>/metrics.csv    one row per logged step; the same seed gives the same bytes on the same machine
and what the command adds: model.zip, policy.npz, certificate.json, report.html, ...
"""

import csv
import io
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lipctrl.config import to_yaml
from lipctrl.files import UserError, sha256_of, write_text

PACKAGES = ("lipctrl", "numpy", "scipy", "torch", "gymnasium", "mujoco", "stable-baselines3", "casadi")


def package_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the checkout that the code runs from, or None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
        dirty = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())} if commit.returncode == 0 else None


def machine() -> dict[str, Any]:
    """What the run ran on."""
    return {"system": platform.platform(), "processor": platform.machine()}


@dataclass
class Run:
    """An open run folder.

    Attributes:
        path: the folder.
        record: what `run.json` holds.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @staticmethod
    def create(
        out: str | None, name: str, settings: Any, *, seed: int, without: Sequence[str] = ("out", "resume")
    ) -> "Run":
        """Make a new run folder: `out` if given, else the first free `runs/<name>-<k>`.

        settings.yaml has all settings but those named in `without`.

        Raises:
            UserError: the folder exists, or its parent cannot be written to.
        """
        path = Path(out) if out is not None else _free(name)
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise UserError(f"output folder {path} exists; choose another --out or remove it") from error
        except OSError as error:
            raise UserError(f"cannot create {path}: {error.strerror or error}") from error
        run = Run(path)
        run.record = {
            "command": ["lipctrl", *sys.argv[1:]],
            "seed": seed,
            "versions": package_versions(),
            "git": git_state(),
            "machine": machine(),
            "status": "running",
        }
        write_text(path / "settings.yaml", to_yaml(settings, without=without))
        run.record["files"] = {"settings.yaml": sha256_of(path / "settings.yaml")}  # a run that is killed keeps it
        run.write()
        return run

    @staticmethod
    def open(path: Path) -> "Run":
        """Open an existing run folder.

        Raises:
            UserError: it is not one.
        """
        try:
            return Run(path, json.loads((path / "run.json").read_text()))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a run folder (no readable run.json)") from error

    def write(self) -> None:
        """Write run.json."""
        write_text(self.path / "run.json", json.dumps(self.record, indent=1) + "\n")

    def finish(self, status: str = "finished", **results: Any) -> None:
        """Record the status, the wall time, the results and the hash of every file."""
        self.record["status"] = status
        self.record["wall_seconds"] = round(time.perf_counter() - self.started, 3)
        self.record |= results
        self.record["files"] = {
            str(file.relative_to(self.path)): sha256_of(file)
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and file.name != "run.json"
        }
        self.write()

    def checked(self, name: str) -> Path:
        """Path of a file of the run, after checking that it is the one that the run wrote.

        Raises:
            UserError: missing, or changed since.
        """
        path = self.path / name
        if not path.is_file():
            raise UserError(f"run {self.path} has no {name} (status: {self.record.get('status')})")
        expected = self.record.get("files", {}).get(name)
        if expected is not None and sha256_of(path) != expected:
            raise UserError(f"{path} was changed or damaged after the run wrote it: its hash does not match run.json")
        return path


def _free(name: str) -> Path:
    k = 0
    while (Path("runs") / f"{name}-{k}").exists():
        k += 1
    return Path("runs") / f"{name}-{k}"


def write_metrics(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write metric rows as CSV with all digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: repr(value) for key, value in row.items()} for row in rows)
    write_text(path, buffer.getvalue())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read a file of `write_metrics`."""
    with path.open(newline="") as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
