"""Fitted attacks as files: what was learned against one policy, stored, and applied to it or to another.

One `.npz` without pickles: a network, what it is, and what the fit was made with. Transfer between policies is the
point: an attack that was learned on one and hurts another needs no access to the second.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.attacks.attack import Attack
from lipctrl.attacks.critic import ActionValue, CriticAttack
from lipctrl.attacks.learned import LearnedAttack, along_direction, scaled_perturbation
from lipctrl.files import UserError, nearest, write_atomically
from lipctrl.nn.plain import PlainNet

FORMAT = "lipctrl-attack-1"
# kind -> sizes (inputs, outputs) of its network for n observations and m actions
SIZES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "robust-sarsa": lambda n, m: (n + m, 1),
    "sa-rl": lambda n, m: (n, n),
    "pa-ad": lambda n, m: (n, m),
}


@dataclass(frozen=True)
class FittedAttack:
    """A fitted attack.

    Attributes:
        kind: "robust-sarsa", "sa-rl" or "pa-ad".
        net: the critic, or the adversary.
        facts: what it was fitted with: policy, environment, threat, radius, seed, cost; plain JSON values.

    Raises:
        UserError: an unknown kind.
    """

    kind: str
    net: PlainNet
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.kind not in SIZES:
            raise nearest(self.kind, SIZES, "fitted attack")

    def attack(self, observations: int, actions: int) -> Attack:
        """The attack for a policy of these sizes.

        Raises:
            UserError: it was fitted to a policy of other sizes.
        """
        needed, found = SIZES[self.kind](observations, actions), (self.net.input_size, self.net.output_size)
        if needed != found:
            raise UserError(
                f"this {self.kind} attack has a network of {found[0]} inputs and {found[1]} outputs; a policy of "
                f"{observations} observations and {actions} actions needs {needed[0]} and {needed[1]}"
            )
        if self.kind == "robust-sarsa":
            return CriticAttack(ActionValue((self.net,)))
        return LearnedAttack(self.net, scaled_perturbation if self.kind == "sa-rl" else along_direction)

    def sha256(self) -> str:
        """Hash of all of it."""
        text = json.dumps([FORMAT, self.kind, dict(self.facts)], sort_keys=True)
        return hashlib.sha256(text.encode() + self.net.sha256().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            UserError: the name does not end in .npz, or the folder cannot be written to.
        """
        if path.suffix != ".npz":
            raise UserError(f"a fitted attack is stored in an .npz file, found {path}")
        header = {"format": FORMAT, "kind": self.kind, "facts": dict(self.facts), "sha256": self.sha256()}
        buffer = io.BytesIO()
        text, net = (np.frombuffer(part, dtype=np.uint8) for part in (json.dumps(header).encode(), self.net.to_bytes()))
        np.savez(buffer, allow_pickle=False, header=text, net=net)
        write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

    @staticmethod
    def load(path: Path) -> "FittedAttack":
        """Read a file of `save`.

        Raises:
            UserError: missing, damaged, of another format, or changed after it was written.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                header, net = (stored[name].tobytes() for name in ("header", "net"))
            record = json.loads(header.decode())
            if record["format"] != FORMAT:
                raise UserError(f"{path} has format {record['format']!r}; expected {FORMAT!r}")
            found = FittedAttack(record["kind"], PlainNet.from_bytes(net, str(path)), record["facts"])
        except FileNotFoundError as error:
            raise UserError(f"no fitted attack at {path}: make one with lipctrl attack fit") from error
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a whole fitted attack (of lipctrl attack fit): {error}") from error
        if found.sha256() != record["sha256"]:
            raise UserError(f"{path} was changed after it was written: it does not match its own hash")
        return found
