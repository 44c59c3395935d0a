"""PlainNet: stored affine maps and activations. What is certified, exported and deployed is this object (numpy).

With a_0 = x and hidden layers k = 1..l,

    z_k = sum_{j<k} W[k][j] a_j + b_k,   a_k = phi_k(z_k),   y = sum_{j<=l} W[l+1][j] a_j + b_{l+1},

and y is clipped to [low, high] if limits are given. An MLP has W[k][k-1] alone; a linear skip, a residual network or
any other loop-free network is the same object with more blocks. Observation normalisation and action scaling are folded
into the first and last maps, so that inputs and outputs are in raw units.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError, write_atomically
from lipctrl.nn.activations import Activation

Array = NDArray[np.float64]
FORMAT = "lipctrl-plainnet-1"


@dataclass(frozen=True)
class PlainNet:
    """A loop-free network in raw units.

    Attributes:
        blocks: l+1 mappings; `blocks[k-1][j]` is W[k][j], shape (n_k, n_j), for sources j < k (0 is the input).
        biases: l+1 vectors b_k.
        activations: l activations.
        low, high: limits of the output, shape (m,), or None. Clipping is 1-Lipschitz in every absolute norm.
        input_mean, input_scale: the normaliser that was folded in (raw = mean + scale * normalised), kept only to
            state radii and bounds in normalised units; None if there was none.
        multipliers: l vectors that the parametrisation proves its bound with (in the scale of the master LMI of
            `certify.lmi`), or None. A hint for the certificate, never trusted.
        input_names, output_names: with units, for example "angle [rad]".
    """

    blocks: tuple[Mapping[int, Array], ...]
    biases: tuple[Array, ...]
    activations: tuple[Activation, ...]
    low: Array | None = None
    high: Array | None = None
    input_mean: Array | None = None
    input_scale: Array | None = None
    multipliers: tuple[Array, ...] | None = None
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.biases) or len(self.activations) != len(self.blocks) - 1:
            raise UserError("a PlainNet needs one bias per layer and one activation per hidden layer")
        widths = [self.input_size, *(len(b) for b in self.biases)]
        for k, row in enumerate(self.blocks, start=1):
            if not row:
                raise UserError(f"layer {k} has no incoming weights")
            for j, block in row.items():
                if not 0 <= j < k or block.shape != (widths[k], widths[j]):
                    raise UserError(f"W[{k}][{j}] has shape {block.shape}; expected ({widths[k]}, {widths[j]})")
                if not np.isfinite(block).all():
                    raise UserError(f"W[{k}][{j}] has entries that are not finite")
            if not np.isfinite(self.biases[k - 1]).all():
                raise UserError(f"the bias of layer {k} has entries that are not finite")
        for k, activation in enumerate(self.activations, start=1):
            if widths[k] % activation.group_size:
                raise UserError(f"layer {k} of width {widths[k]} does not split into groups of {activation.group_size}")
        for limit in (self.low, self.high):
            if limit is not None and (np.shape(limit) != (self.output_size,) or np.isnan(limit).any()):
                raise UserError(f"a limit needs shape ({self.output_size},) and numbers, found {limit}")
        if self.low is not None and self.high is not None and not np.less_equal(self.low, self.high).all():
            raise UserError(f"the limits need low <= high, found {self.low} and {self.high}")

    @staticmethod
    def mlp(
        weights: Sequence[ArrayLike],
        biases: Sequence[ArrayLike],
        activation: str | Activation | Sequence[Activation],
    ) -> "PlainNet":
        """A multilayer perceptron; `activation` is one for all hidden layers or one per hidden layer."""
        if isinstance(activation, str):
            activation = Activation.parse(activation)
        if isinstance(activation, Activation):
            activation = [activation] * (len(weights) - 1)
        return PlainNet(
            tuple({k: np.array(w, dtype=np.float64, ndmin=2)} for k, w in enumerate(weights)),
            tuple(np.array(b, dtype=np.float64, ndmin=1) for b in biases),
            tuple(activation),
        )

    @property
    def input_size(self) -> int:
        """Number of inputs n_0."""
        return int(self.blocks[0][0].shape[1]) if 0 in self.blocks[0] else 0

    @property
    def output_size(self) -> int:
        """Number of outputs m."""
        return len(self.biases[-1])

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden widths n_1..n_l."""
        return tuple(len(b) for b in self.biases[:-1])

    @property
    def is_mlp(self) -> bool:
        """Whether every layer is fed by the one before it alone."""
        return all(set(row) == {k} for k, row in enumerate(self.blocks))

    def preactivations(self, x: ArrayLike) -> list[Array]:
        """z_1..z_l and the output before clipping, each (..., n_k), for inputs of shape (..., n_0)."""
        values, result = [np.asarray(x, dtype=np.float64)], []
        for k, row in enumerate(self.blocks):
            terms = [values[j] @ block.T for j, block in row.items()]
            z = sum(terms[1:], terms[0]) + self.biases[k]
            result.append(z)
            if k < len(self.activations):
                values.append(self.activations[k](z))
        return result

    def __call__(self, x: ArrayLike) -> Array:
        """Outputs (..., m) for inputs (..., n_0), in raw units, float64."""
        y = self.preactivations(x)[-1]
        return y if self.low is None and self.high is None else np.clip(y, self.low, self.high)

    def linearised(self, x: ArrayLike) -> tuple[Array, Array]:
        """(outputs before clipping (..., m), their Jacobian (..., m, n_0)) at x; at a kink, as `jacobian`."""
        x = np.asarray(x, dtype=np.float64)
        zs, parts = self.preactivations(x), [np.zeros(0)]  # what acts on the input itself is its own derivative
        for k, row in enumerate(self.blocks):
            terms = [block if j == 0 else block @ parts[j] for j, block in row.items()]
            part = sum(terms[1:], terms[0])
            if k < len(self.activations):
                d = self.activations[k].derivative(zs[k])
                part = d[..., None] * part if self.activations[k].is_scalar else d @ part
            parts.append(part)
        return zs[-1], np.broadcast_to(parts[-1], (*zs[-1].shape, self.input_size))

    def jacobian(self, x: ArrayLike, *, clipped: bool = True) -> Array:
        """Jacobian (..., m, n_0) at x; at a kink, that of the one-sided derivative the activation declares.

        With `clipped` the rows of outputs that sit outside the limits are zero, as in the deployed map.
        """
        y, jacobian = self.linearised(x)
        inside = np.ones_like(y, dtype=np.bool_)
        if clipped and self.low is not None:
            inside &= y >= self.low
        if clipped and self.high is not None:
            inside &= y <= self.high
        return np.asarray(inside[..., None] * jacobian)

    def without_limits(self) -> "PlainNet":
        """The same network without clipping at the end."""
        return replace(self, low=None, high=None)

    def rounded_to(self, dtype: type[np.floating]) -> "PlainNet":
        """The network whose weights and biases are rounded to `dtype` (and stored, exactly, in float64)."""

        def cast(a: Array) -> Array:
            return a.astype(dtype).astype(np.float64)

        return replace(
            self,
            blocks=tuple({j: cast(b) for j, b in row.items()} for row in self.blocks),
            biases=tuple(cast(b) for b in self.biases),
        )

    def sha256(self) -> str:
        """Hash of everything that defines the map: weights, biases, activations and limits."""
        digest = hashlib.sha256(FORMAT.encode())
        for name, array in sorted(self._arrays().items()):
            if not name.startswith(("multipliers", "input_")):
                digest.update(f"{name}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        digest.update(" ".join(a.spec() for a in self.activations).encode())
        return digest.hexdigest()

    def _arrays(self) -> dict[str, Array]:
        arrays = {f"weight.{k}.{j}": b for k, row in enumerate(self.blocks, 1) for j, b in row.items()}
        arrays |= {f"bias.{k}": b for k, b in enumerate(self.biases, 1)}
        arrays |= {f"vectors.{k}": a.vectors for k, a in enumerate(self.activations, 1) if a.vectors is not None}
        if self.multipliers is not None:
            arrays |= {f"multipliers.{k}": m for k, m in enumerate(self.multipliers, 1)}
        for name in ("low", "high", "input_mean", "input_scale"):
            value = getattr(self, name)
            if value is not None:
                arrays[name] = value
        return arrays

    def save(self, path: Path) -> None:
        """Write one `.npz` file (no pickle): the arrays and a JSON header."""
        data = self.to_bytes()
        write_atomically(path, lambda stream: stream.write(data))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        header = {
            "format": FORMAT,
            "activations": [a.spec() for a in self.activations],
            "input_names": self.input_names,
            "output_names": self.output_names,
            "sha256": self.sha256(),
        }
        buffer = io.BytesIO()
        text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        np.savez(buffer, allow_pickle=False, header=text, **self._arrays())
        return buffer.getvalue()

    @staticmethod
    def load(path: Path) -> "PlainNet":
        """Read a file written by `save`.

        Raises:
            UserError: missing, truncated, of another format, or not hashing to what its header says.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise UserError(f"no network at {path}") from error
        except OSError as error:
            raise UserError(f"{path} is not a whole lipctrl network file ({error})") from error
        return PlainNet.from_bytes(data, str(path))

    @staticmethod
    def from_bytes(data: bytes, source: str) -> "PlainNet":
        """Read what `to_bytes` made; `source` is where it came from, for errors, which are those of `load`."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            header = json.loads(arrays.pop("header").tobytes().decode())
            if header["format"] != FORMAT:
                raise UserError(f"{source} has format {header['format']!r}; expected {FORMAT!r}")
            net = _from_arrays(header, {name: a.astype(np.float64) for name, a in arrays.items()})
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{source} is not a whole lipctrl network file ({error})") from error
        if net.sha256() != header["sha256"]:
            raise UserError(f"{source} was changed after it was written: its weights do not match its own hash")
        return net


def _from_arrays(header: Mapping[str, Sequence[str]], arrays: Mapping[str, Array]) -> PlainNet:
    layers = sum(name.startswith("bias.") for name in arrays)
    blocks: list[dict[int, Array]] = [{} for _ in range(layers)]
    for name, array in arrays.items():
        if name.startswith("weight."):
            _, k, j = name.split(".")
            blocks[int(k) - 1][int(j)] = array
    specs = header["activations"]
    multipliers = tuple(arrays[f"multipliers.{k}"] for k in range(1, layers) if f"multipliers.{k}" in arrays)
    return PlainNet(
        tuple(blocks),
        tuple(arrays[f"bias.{k}"] for k in range(1, layers + 1)),
        tuple(Activation.parse(text, arrays.get(f"vectors.{k}")) for k, text in enumerate(specs, 1)),
        **{name: arrays.get(name) for name in ("low", "high", "input_mean", "input_scale")},
        multipliers=multipliers if len(multipliers) == layers - 1 and multipliers else None,
        input_names=tuple(header["input_names"]),
        output_names=tuple(header["output_names"]),
    )
