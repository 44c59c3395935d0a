"""A recorded episode as a file, and its replay: the same disturbances and actions give the same return, bit for bit.

One `.npz` without pickles. The environment and the set of the threat are made again from what the file says, so that a
replay also checks once more that every disturbance lies in the set.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.recorded import Recorded
from lipctrl.attacks.threat import Threat, Words
from lipctrl.evaluation.rollout import Loops, Rollouts, Trace
from lipctrl.files import UserError, write_atomically
from lipctrl.policy import Playback, Policy

Array = NDArray[np.float64]
FORMAT = "lipctrl-recording-1"
ARRAYS = ("disturbances", "actions", "deviation")


@dataclass(frozen=True)
class Facts:
    """What an episode was, in plain JSON values.

    Attributes:
        env: gymnasium id. threat: its line, see `line_of`. radius: of the attack.
        policy: its name on the command line. weights: hash of its network or PID controller, or "".
        horizon: steps that MPC looks ahead. attack: its name.
        seed, episode: of the start state, see `Loops.run`. result: the return. length: steps.
        failed: whether it ended before the time limit.
    """

    env: str
    threat: str
    radius: float
    policy: str
    weights: str
    horizon: int
    attack: str
    seed: int
    episode: int
    result: float
    length: int
    failed: bool


@dataclass(frozen=True)
class Recording:
    """An episode: what it was, the disturbances (T, k) or (1, k), the actions (T, m), and raw units per normalised
    unit of each observation (n,)."""

    facts: Facts
    disturbances: Array
    actions: Array
    deviation: Array

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            UserError: the folder cannot be written to.
        """
        header = json.dumps({"format": FORMAT, **asdict(self.facts)}).encode()
        buffer = io.BytesIO()
        arrays: Mapping[str, Any] = {name: getattr(self, name) for name in ARRAYS}
        np.savez(buffer, allow_pickle=False, header=np.frombuffer(header, dtype=np.uint8), **arrays)
        write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

    @staticmethod
    def load(path: Path) -> "Recording":
        """Read a file of `save`.

        Raises:
            UserError: missing, damaged, or of another format.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                header = json.loads(stored["header"].tobytes().decode())
                arrays = [np.asarray(stored[name], dtype=np.float64) for name in ARRAYS]
            if header.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            return Recording(Facts(**header), *arrays)
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a whole recording of lipctrl evaluate: {error}") from error

    def replay(self, loops: Loops, threat: Threat) -> float:
        """The return when disturbances and actions are played back: equal to the recorded one, to the last bit."""
        found = self._run(loops, threat, Playback(self.actions))
        return float(found.returns[0, self.facts.episode])

    def against(self, loops: Loops, threat: Threat, policy: Policy) -> tuple[float, Trace]:
        """Return and trace of a policy, this one or another, that meets the recorded disturbances and start state.

        Raises:
            UserError: see `Loops.run`.
        """
        found = self._run(loops, threat, policy)
        return float(found.returns[0, self.facts.episode]), found.traces[0]

    def _run(self, loops: Loops, threat: Threat, policy: Policy) -> Rollouts:
        attack, facts = Recorded(self.disturbances), self.facts
        radii, episodes = (facts.radius,), facts.episode + 1  # start states are numbered from 0
        return loops.run(policy, attack, threat, radii, episodes=episodes, seed=facts.seed, shown=facts.episode)


def line_of(words: Words) -> str:
    """The line of a threat. A limit of the rate is left out: keeping it moves a disturbance by rounding, and what kept
    it lies in the set of a step."""
    where = "" if words.where is None else f"@{words.where}"
    budget = "step" if words.budget.kind == "rate" else str(words.budget)
    return f"{words.channel}{where}:{words.norm}:{words.units}:{budget}:{words.access}"
