"""Closed loops as files: what a piece of an evaluation found, kept as soon as it is finished, found again by its key.

One `.npz` without pickles per piece. The key is a hash of everything that the result depends on, so that a changed
policy, attack or setting finds nothing and is run again, and nothing stale is ever taken for a result.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.attacks import Cost
from lipctrl.evaluation.rollout import Rollouts, Trace
from lipctrl.files import write_atomically

FORMAT = "lipctrl-loops-2"
SPECIAL = ("traces", "worst", "cost")  # fields of Rollouts that are not arrays


def key_of(facts: Mapping[str, Any]) -> str:
    """Hash of plain JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """A folder of finished pieces; None keeps nothing."""

    folder: Path | None

    def load(self, facts: Mapping[str, Any]) -> Rollouts | None:
        """What these facts led to, or None; a damaged file counts as none."""
        path = self._path(facts)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            header = json.loads(arrays.pop("header").tobytes().decode())
            if header["format"] != FORMAT or header["facts"] != json.loads(json.dumps(facts)):
                return None
            return _from_arrays(arrays, header["cost"])
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, facts: Mapping[str, Any], found: Rollouts) -> None:
        """Keep a finished piece.

        Raises:
            UserError: the folder cannot be written to.
        """
        path = self._path(facts)
        if path is None:
            return
        path.parent.mkdir(exist_ok=True)
        header = json.dumps({"format": FORMAT, "facts": facts, "cost": asdict(found.cost)}, sort_keys=True).encode()
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, header=np.frombuffer(header, np.uint8), **_arrays(found))
        write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

    def _path(self, facts: Mapping[str, Any]) -> Path | None:
        return None if self.folder is None else self.folder / f"{key_of(facts)[:24]}.npz"


def _arrays(found: Rollouts) -> dict[str, Any]:
    arrays: dict[str, Any] = {f.name: getattr(found, f.name) for f in fields(Rollouts) if f.name not in SPECIAL}
    for kind in ("traces", "worst"):
        for r, trace in enumerate(getattr(found, kind)):
            arrays |= {f"{kind}.{r}.{f.name}": np.asarray(getattr(trace, f.name)) for f in fields(Trace)}
    return arrays


def _from_arrays(arrays: Mapping[str, Any], cost: Mapping[str, int]) -> Rollouts:
    def trace(kind: str, r: int) -> Trace:
        parts = {f.name: arrays[f"{kind}.{r}.{f.name}"] for f in fields(Trace)}
        return Trace(**(parts | {"episode": int(parts["episode"])}))

    count = len(arrays["radii"])
    plain = {f.name: arrays[f.name] for f in fields(Rollouts) if f.name not in SPECIAL}
    traces, worst = (tuple(trace(kind, r) for r in range(count)) for kind in ("traces", "worst"))
    return Rollouts(**plain, traces=traces, worst=worst, cost=Cost(**cost))


def joined(parts: Sequence[Rollouts]) -> Rollouts:
    """The same policy and attack at several radii, as if they had run together."""
    names = [f.name for f in fields(Rollouts) if f.name not in SPECIAL]
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    traces, worst = (tuple(trace for part in parts for trace in getattr(part, kind)) for kind in ("traces", "worst"))
    costs = [asdict(part.cost) for part in parts]
    cost = Cost(**{name: sum(one[name] for one in costs) for name in costs[0]})
    return Rollouts(**arrays, traces=traces, worst=worst, cost=cost)
