"""Demonstrations: trajectories with checked shapes, truncation apart from termination, provenance, no pickle.

File format "lipctrl-demos-1", a NumPy `.npz` archive without pickled objects. With E episodes of T_1..T_E steps,
N = T_1 + ... + T_E, episodes stored one after the other:

    lengths       (E,)      int64    T_e
    observations  (N + E, n) float64 observation before each step, then the last one of the episode (T_e + 1 rows each)
    actions       (N, m)    float64  what the environment received, dither included
    labels        (N, m)    float64  what the expert answered to the observation: what a policy is trained on
    rewards       (N,)      float64
    terminations  (N,)      bool     the task ended here (failure or success); no value follows
    truncations   (N,)      bool     a time limit or the collector cut the episode here; the value goes on
    header        JSON, UTF-8 bytes as uint8: format, environment id and gymnasium EnvSpec as JSON, expert, dither,
                  seed, package versions, names, and the sha256 of the arrays
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError, write_atomically

Array = NDArray[np.float64]
FORMAT = "lipctrl-demos-1"
ARRAYS = ("lengths", "observations", "actions", "labels", "rewards", "terminations", "truncations")


@dataclass(frozen=True)
class Trajectory:
    """One episode of T steps: observations (T+1, n), actions and labels (T, m), the rest (T,)."""

    observations: Array
    actions: Array
    labels: Array
    rewards: Array
    terminated: bool
    truncated: bool


@dataclass(frozen=True)
class Demonstrations:
    """A data set of episodes. See the module's docstring for shapes.

    Attributes:
        provenance: environment id, EnvSpec as JSON, expert, dither, seed, versions.
    """

    lengths: NDArray[np.int64]
    observations: Array
    actions: Array
    labels: Array
    rewards: Array
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        episodes, steps = len(self.lengths), int(self.lengths.sum())
        if episodes == 0 or steps == 0:
            raise UserError("demonstrations hold zero episodes; at least one step is needed")
        if (self.lengths < 1).any():
            raise UserError("demonstrations hold an episode without steps")
        if self.observations.ndim != 2 or len(self.observations) != steps + episodes:
            raise UserError(f"observations have shape {self.observations.shape}; expected ({steps + episodes}, n)")
        if self.actions.ndim != 2 or len(self.actions) != steps or self.labels.shape != self.actions.shape:
            raise UserError(
                f"actions have shape {self.actions.shape}, labels {self.labels.shape}; expected ({steps}, m) for both"
            )
        for name in ("rewards", "terminations", "truncations"):
            if getattr(self, name).shape != (steps,):
                raise UserError(f"{name} have shape {getattr(self, name).shape}; expected ({steps},)")
        for name in ("observations", "actions", "labels", "rewards"):
            bad = ~np.isfinite(getattr(self, name))
            if bad.any():
                raise UserError(f"{name} of the demonstrations hold {int(bad.sum())} values that are not finite")
        ends = self.lengths.cumsum() - 1
        inner = np.delete(self.terminations | self.truncations, ends)
        if inner.any() or not (self.terminations | self.truncations)[ends].all():
            raise UserError("an episode must end, and only end, where it is terminated or truncated")

    @staticmethod
    def from_trajectories(trajectories: list[Trajectory], provenance: Mapping[str, Any]) -> "Demonstrations":
        """Put episodes one after the other."""
        if not trajectories:
            raise UserError("demonstrations hold zero episodes; at least one step is needed")
        ends = [np.arange(len(t.rewards)) == len(t.rewards) - 1 for t in trajectories]
        return Demonstrations(
            np.array([len(t.rewards) for t in trajectories], dtype=np.int64),
            np.concatenate([t.observations for t in trajectories]),
            np.concatenate([t.actions for t in trajectories]),
            np.concatenate([t.labels for t in trajectories]),
            np.concatenate([t.rewards for t in trajectories]),
            np.concatenate([end & t.terminated for end, t in zip(ends, trajectories, strict=True)]),
            np.concatenate([end & t.truncated for end, t in zip(ends, trajectories, strict=True)]),
            provenance,
        )

    @staticmethod
    def from_pairs(
        observations: Array, actions: Array, provenance: Mapping[str, Any], *, episodes: int = 10
    ) -> "Demonstrations":
        """Independent pairs (N, n) and (N, m) as truncated episodes without rewards; validation takes whole episodes.

        Raises:
            UserError: different numbers of rows, or fewer than episodes.
        """
        if observations.ndim != 2 or actions.ndim != 2 or len(observations) != len(actions):
            raise UserError(f"pairs need shapes (N, n) and (N, m), found {observations.shape} and {actions.shape}")
        if len(observations) < episodes:
            raise UserError(f"{len(observations)} pairs cannot be {episodes} episodes")
        parts = zip(np.array_split(observations, episodes), np.array_split(actions, episodes), strict=True)
        return Demonstrations.from_trajectories(
            [Trajectory(np.vstack([x, x[-1:]]), u, u, np.zeros(len(x)), False, True) for x, u in parts], provenance
        )

    def trajectories(self) -> Iterator[Trajectory]:
        """The episodes."""
        step = 0
        for e, length in enumerate(self.lengths):
            stop = step + int(length)
            yield Trajectory(
                self.observations[step + e : stop + e + 1],
                self.actions[step:stop],
                self.labels[step:stop],
                self.rewards[step:stop],
                bool(self.terminations[stop - 1]),
                bool(self.truncations[stop - 1]),
            )
            step = stop

    @property
    def returns(self) -> Array:
        """Undiscounted return of each episode, shape (E,)."""
        return np.array([trajectory.rewards.sum() for trajectory in self.trajectories()])

    def pairs(self) -> tuple[Array, Array]:
        """Observations (N, n) before each step and the expert's answers (N, m)."""
        return np.concatenate([t.observations[:-1] for t in self.trajectories()]), self.labels

    def sha256(self) -> str:
        """Hash of the arrays."""
        digest = hashlib.sha256(FORMAT.encode())
        for name in ARRAYS:
            array = getattr(self, name)
            digest.update(f"{name}{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file format of this module, atomically."""
        header = json.dumps({"format": FORMAT, "sha256": self.sha256(), **self.provenance})
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name) for name in ARRAYS}
        np.savez_compressed(buffer, allow_pickle=False, header=np.frombuffer(header.encode(), dtype=np.uint8), **arrays)
        write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

    @staticmethod
    def load(path: Path) -> "Demonstrations":
        """Read a file of this format.

        Raises:
            UserError: missing, damaged, of another format, changed since it was written, or with invalid content.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                header = json.loads(stored["header"].tobytes().decode())
                if header.pop("format") != FORMAT:
                    raise UserError(f"{path} is not of the format {FORMAT}")
                demos = Demonstrations(**{name: stored[name] for name in ARRAYS}, provenance=header)
        except FileNotFoundError as error:
            raise UserError(f"no demonstrations at {path}") from error
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a whole demonstration file ({error})") from error
        if demos.sha256() != header.pop("sha256"):
            raise UserError(f"{path} was changed after it was written: its arrays do not match its own hash")
        return demos


def check_environment(demos: Demonstrations, env_id: str, observation_size: int, action_size: int) -> None:
    """Check that demonstrations fit an environment.

    Raises:
        UserError: recorded in another environment, or with other sizes.
    """
    recorded = demos.provenance.get("env_id")
    if recorded is not None and recorded != env_id:
        raise UserError(f"the demonstrations were recorded in {recorded}; expected {env_id}")
    found = (demos.observations.shape[1], demos.actions.shape[1])
    if found != (observation_size, action_size):
        raise UserError(
            f"the demonstrations have {found[0]} observations and {found[1]} actions per step; "
            f"{env_id} has {observation_size} and {action_size}"
        )
