"""A learned reward as one file: the logit as a plain network, the reward form, and what its inputs are (numpy).

`LearnedReward(states, actions)` gives float64 rewards in raw units, without torch. The normaliser and every scale of
the discriminator are folded into its network (see `nn.normalise`), so that a certificate of the stored network holds
for the reward that a fresh agent is trained on.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError, write_atomically
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.reward_forms import REWARD_FORMS, reward_form, reward_of

Array = NDArray[np.float64]
FORMAT = "lipctrl-reward-1"
Inputs = Literal["state-action", "state", "state-next"]
Block = Literal["all", "state", "action", "next"]


@dataclass(frozen=True)
class LearnedReward:
    """r(z(x)) with x = (state, [absorbing bit], action), or (state, [bit]), or (state, [bit], next state), raw units.

    Attributes:
        logit: z, a network with one output and no output limits, in raw units of its inputs.
        form: key of `REWARD_FORMS`.
        inputs: what x holds.
        state_size: entries of the state, without the absorbing bit.
        clip: the logit is clipped to [-clip, clip] before the form is applied; inf: not at all.
        absorbing: the input x that stands for the absorbing state after a failure, or None: the reward knows none. If
            given, x has one more coordinate after the state, which is 0 in every real state and as here in this one.
        provenance: how it was learned (JSON), for example demonstrations, seed, steps.
    """

    logit: PlainNet
    form: str
    inputs: Inputs
    state_size: int
    clip: float = math.inf
    absorbing: Array | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        reward_form(self.form, self.clip)
        if self.logit.output_size != 1 or self.logit.low is not None or self.logit.high is not None:
            raise UserError("a reward needs a logit network with one output and no output limits")
        if self.inputs not in get_args(Inputs):
            raise UserError(f"unknown inputs {self.inputs!r} of a reward; known: {', '.join(get_args(Inputs))}")
        bit = int(self.absorbing is not None)
        other = self.logit.input_size - self.state_size - bit
        expected = {"state-action": max(other, 1), "state": 0, "state-next": self.state_size}[self.inputs]
        if self.state_size < 1 or other != expected:
            raise UserError(
                f"the logit network has {self.logit.input_size} inputs, which do not split into {self.inputs} with "
                f"{self.state_size} states{' and the absorbing bit' if bit else ''}"
            )
        if self.absorbing is not None and (
            self.absorbing.shape != (self.logit.input_size,) or not np.isfinite(self.absorbing).all()
        ):
            raise UserError(f"the absorbing input needs {self.logit.input_size} finite numbers, found {self.absorbing}")

    @property
    def action_size(self) -> int:
        """Entries of the action; 0 if the reward does not depend on it."""
        return self.logit.input_size - self.state_size - (self.absorbing is not None) if self._has("action") else 0

    def _has(self, part: str) -> bool:
        return part in self.inputs

    def columns(self, block: Block) -> NDArray[np.bool_]:
        """Which inputs belong to a block, as a mask (n,); the absorbing bit belongs to none."""
        names = ["state"] * self.state_size + ["bit"] * (self.absorbing is not None)
        names += [self.inputs.partition("-")[2]] * (self.logit.input_size - len(names))
        wanted = {"state", "action", "next"} if block == "all" else {block}
        return np.array([name in wanted for name in names])

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the input: all of it, and its parts if it has several."""
        return {"state-action": ("all", "state", "action"), "state": ("all",), "state-next": ("all", "state", "next")}[
            self.inputs
        ]  # type: ignore[return-value]  # a dictionary's values widen to str

    def inputs_of(
        self, states: ArrayLike, actions: ArrayLike | None = None, next_states: ArrayLike | None = None
    ) -> Array:
        """The network's inputs (..., n) of real transitions: states (..., state_size), actions, next states.

        Raises:
            UserError: a size is wrong, an argument that the reward needs is missing, or a number is not finite.
        """
        parts = [_checked("states", states, self.state_size)]
        if self.absorbing is not None:
            parts.append(np.zeros((*parts[0].shape[:-1], 1)))
        if self._has("action"):
            parts.append(_checked("actions", actions, self.action_size))
        elif self._has("next"):
            parts.append(_checked("next states", next_states, self.state_size))
        if parts[-1].shape[:-1] != parts[0].shape[:-1]:
            raise UserError(f"states and what follows them differ in number: {parts[0].shape} and {parts[-1].shape}")
        return np.concatenate(parts, axis=-1)

    def of_inputs(self, x: ArrayLike) -> Array:
        """Rewards (...) of network inputs (..., n), float64."""
        return reward_of(self.form, self.logit(x)[..., 0], self.clip)

    def __call__(
        self, states: ArrayLike, actions: ArrayLike | None = None, next_states: ArrayLike | None = None
    ) -> Array:
        """Rewards (...) of real transitions, float64; arguments and errors as `inputs_of`."""
        return self.of_inputs(self.inputs_of(states, actions, next_states))

    def absorbing_reward(self) -> float:
        """The reward of every step in the absorbing state.

        Raises:
            UserError: the reward was learned without one.
        """
        if self.absorbing is None:
            raise UserError("this reward was learned without an absorbing state")
        return float(self.of_inputs(self.absorbing))

    def as_network(self) -> PlainNet:
        """The reward itself as a plain network with one more layer, for export, gains and local certificates.

        Raises:
            UserError: the form does not rise with the logit ("fairl").
        """
        if not REWARD_FORMS[self.form].monotone:
            raise UserError(f"the reward form {self.form!r} is no layer of a plain network")
        net, name = self.logit, {"softplus": "softplus", "log-d": "softplus", "d": "sigmoid"}.get(self.form)
        if name is not None:
            sign = -1.0 if self.form == "log-d" else 1.0  # log D = -softplus(-z)
            last = {j: sign * block for j, block in net.blocks[-1].items()}
            net = replace(
                net,
                blocks=(*net.blocks[:-1], last, {len(net.blocks): np.full((1, 1), sign)}),
                biases=(*net.biases[:-1], sign * net.biases[-1], np.zeros(1)),
                activations=(*net.activations, Activation.parse(name)),
                multipliers=None,
            )
        net = replace(net, output_names=(f"reward {REWARD_FORMS[self.form].formula}",))
        if not math.isfinite(self.clip):
            return net
        ends = reward_of(self.form, np.array([-self.clip, self.clip]), self.clip)
        return replace(net, low=ends[:1], high=ends[1:])

    def sha256(self) -> str:
        """Hash of everything that defines the reward."""
        digest = hashlib.sha256(f"{FORMAT} {self.logit.sha256()} {json.dumps(self._definition())}".encode())
        if self.absorbing is not None:
            digest.update(np.ascontiguousarray(self.absorbing, dtype="<f8").tobytes())
        return digest.hexdigest()

    def _definition(self) -> dict[str, Any]:
        clip = self.clip if math.isfinite(self.clip) else None
        return {"form": self.form, "inputs": self.inputs, "state_size": self.state_size, "clip": clip}

    def save(self, path: Path) -> None:
        """Write one `.npz` file (no pickle): the network as `PlainNet.to_bytes`, and a JSON header.

        Raises:
            UserError: the provenance is not JSON, or the file cannot be written.
        """
        try:
            header = json.dumps(
                {"format": FORMAT, **self._definition(), "provenance": dict(self.provenance), "sha256": self.sha256()}
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"the provenance of a reward must be JSON ({error})") from error
        arrays: dict[str, NDArray[Any]] = {"header": np.frombuffer(header.encode(), np.uint8)}
        arrays["logit"] = np.frombuffer(self.logit.to_bytes(), np.uint8)
        if self.absorbing is not None:
            arrays["absorbing"] = self.absorbing
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

    @staticmethod
    def load(path: Path) -> "LearnedReward":
        """Read a file written by `save`.

        Raises:
            UserError: missing, truncated, of another format, or not hashing to what its header says.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            header = json.loads(arrays["header"].tobytes().decode())
            if header.pop("format") != FORMAT:
                raise UserError(
                    f"{path} holds no learned reward, but a {json.loads(arrays['header'].tobytes())['format']}"
                )
            sha256, clip = header.pop("sha256"), header.pop("clip")
            net = PlainNet.from_bytes(arrays["logit"].tobytes(), str(path))
            reward = LearnedReward(
                net, clip=math.inf if clip is None else float(clip), absorbing=arrays.get("absorbing"), **header
            )
        except FileNotFoundError as error:
            raise UserError(f"no reward at {path}") from error
        except (OSError, KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a whole file of a learned reward ({error})") from error
        if reward.sha256() != sha256:
            raise UserError(f"{path} was changed after it was written: the reward does not match its own hash")
        return reward


def is_reward(path: Path) -> bool:
    """Whether a file is a `.npz` that holds a learned reward (its header says so; the rest may be damaged)."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes().decode())
        return isinstance(header, dict) and header.get("format") == FORMAT
    except (OSError, KeyError, ValueError, EOFError, AttributeError, zipfile.BadZipFile):
        return False


def _checked(name: str, values: ArrayLike | None, size: int) -> Array:
    if values is None:
        raise UserError(f"this reward needs {name}, of size {size}")
    found = np.asarray(values, np.float64)
    if found.ndim == 0 or found.shape[-1] != size:
        raise UserError(f"the {name} have shape {found.shape}; expected {size} entries each")
    if not np.isfinite(found).all():
        raise UserError(f"the {name} have entries that are not finite")
    return found
