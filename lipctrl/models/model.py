"""A trained process model: cell, scaling and names; predictions in raw units, export, and a file without pickle."""

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError, nearest, write_atomically
from lipctrl.models.cell import Cell
from lipctrl.models.cells import CELLS, Family
from lipctrl.models.convexity import is_convex, midpoint_violation
from lipctrl.models.gaussian import Gaussian
from lipctrl.models.graph import Graph, stacked
from lipctrl.models.iclrnn import Iclrnn
from lipctrl.models.windows import Windows
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
FORMAT = "lipctrl-process-model-1"
MIDPOINTS = 200  # pairs at which a claim of convexity is tried before export
ROUNDING = 1e-9  # in scaled units, by which a convex model may seem not to be


@dataclass(frozen=True)
class Scaling:
    """Raw = low + width * scaled, for states and inputs; of the training data, which are in [0, 1]."""

    state_low: Array
    state_width: Array
    input_low: Array
    input_width: Array

    @staticmethod
    def of(windows: Windows) -> "Scaling":
        """From the smallest and largest values of training windows.

        Raises:
            UserError: a signal is constant.
        """
        states = np.concatenate([windows.starts[:, None], windows.states], axis=1).reshape(-1, len(windows.state_names))
        inputs = windows.inputs.reshape(-1, len(windows.input_names))
        for values, names in ((states, windows.state_names), (inputs, windows.input_names)):
            for k, name in enumerate(names):
                if np.ptp(values[:, k]) == 0:
                    raise UserError(f"{name!r} is constant in the training data: nothing can be learned from it")
        return Scaling(states.min(0), np.ptp(states, axis=0), inputs.min(0), np.ptp(inputs, axis=0))

    def scaled(self, windows: Windows) -> tuple[Array, Array, Array]:
        """(starts, inputs, states), scaled."""
        return (
            (windows.starts - self.state_low) / self.state_width,
            (windows.inputs - self.input_low) / self.input_width,
            (windows.states - self.state_low) / self.state_width,
        )


@dataclass(frozen=True)
class ProcessModel:
    """States x_1..x_T from a start state and inputs u_0..u_{T-1}, in raw units.

    Attributes:
        family, cell, scaling: what it is.
        state_names, input_names, dt, time_unit: as in `Windows`.
        facts: where it comes from: data, settings, seed.
    """

    family: Family
    cell: Cell
    scaling: Scaling
    state_names: tuple[str, ...]
    input_names: tuple[str, ...]
    dt: float
    time_unit: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def horizon(self) -> int:
        """T, the steps that it was trained for."""
        return self.cell.horizon

    def extrapolation(self, steps: int) -> str:
        """What is to be said of predictions over more steps than the model was trained for."""
        return (
            f"the model was trained for {self.horizon} steps of {self.dt:g} {self.time_unit}, asked for {steps}: from "
            f"step {self.horizon + 1} on it starts again at its own predictions, which are extrapolated; nothing that "
            "is proved of it holds there. Train on longer windows to avoid this"
        )

    def predict(self, start: ArrayLike, inputs: ArrayLike) -> Array:
        """States (T, n) from x_0 (n,) and inputs (T, m), or batches of both, in float64.

        More steps than the model was trained for come with a warning: from there on it starts again at its own
        prediction, which it never saw in training, and what is proved or convex is so no longer.

        Raises:
            UserError: shapes that do not match.
        """
        x, u = np.asarray(start, np.float64), np.asarray(inputs, np.float64)
        n, m = len(self.state_names), len(self.input_names)
        if x.shape[-1:] != (n,) or u.shape[-1:] != (m,) or u.shape[:-2] != x.shape[:-1]:
            raise UserError(
                f"a prediction needs a start (..., {n}) and inputs (..., T, {m}), found {x.shape}, {u.shape}"
            )
        if u.shape[-2] > self.horizon:
            warnings.warn(self.extrapolation(u.shape[-2]), stacklevel=2)
            first = self.predict(x, u[..., : self.horizon, :])
            pieces = [first]
            for k in range(self.horizon, u.shape[-2], self.horizon):
                pieces.append(self.predict(pieces[-1][..., -1, :], u[..., k : k + self.horizon, :]))
            return np.concatenate(pieces, axis=-2)
        s, flat = self.scaling, (-1, u.shape[-2], m)
        p = torch.from_numpy(((x - s.state_low) / s.state_width).reshape(-1, n))
        q = torch.from_numpy(((u - s.input_low) / s.input_width).reshape(flat))
        pad = torch.zeros(len(q), self.horizon - q.shape[1], m, dtype=q.dtype)  # outputs do not see later inputs
        with torch.no_grad():
            y = self.cell.double()(p, torch.cat([q, pad], dim=1))[:, : q.shape[1]].numpy()
        return np.asarray(s.state_low + s.state_width * y).reshape(*u.shape[:-1], n)

    def deviation(self, start: ArrayLike, inputs: ArrayLike) -> Array:
        """Standard deviation of the next state that the model itself expects, (..., n), raw units.

        Args:
            start: states (..., n). inputs: (..., m), of one step.

        Raises:
            UserError: a family that predicts states only.
        """
        if not isinstance(self.cell, Gaussian):
            raise UserError(f"the family {self.family} does not say how far off it expects to be; gaussian does")
        s = self.scaling
        p = torch.from_numpy((np.asarray(start, np.float64) - s.state_low) / s.state_width)
        u = torch.from_numpy((np.asarray(inputs, np.float64) - s.input_low) / s.input_width)
        with torch.no_grad():
            log_variance = self.cell.double().one_step(p, u)[1].numpy()
        return np.asarray(np.exp(log_variance / 2) * s.state_width)

    def to_plain(self, *, steps: int | None = None, hold: int = 1) -> PlainNet:
        """The model over `steps` (by default T) as one network from (x_0, u_0, ..) to (x_1, .., x_steps), raw units.

        Args:
            hold: steps for which an input is held; with more than 1 the network has one input and one state for each
                of these periods.

        Raises:
            UserError: the family is not a PlainNet, more steps than it was trained for, or weights that break the
                family's claim to be convex.
        """
        T = self.horizon if steps is None else steps
        if not 1 <= T <= self.horizon or hold < 1 or T % hold:
            raise UserError(
                f"the model unrolls over 1 to {self.horizon} steps in periods of whole steps, asked for {T} steps "
                f"and periods of {hold}"
            )
        s, n, m = self.scaling, len(self.state_names), len(self.input_names)
        graph = Graph(n + T // hold * m)
        whole = graph.input
        p = np.diag(1 / s.state_width) @ (whole[slice(0, n)] + -s.state_low)
        where = [n + (k // hold) * m for k in range(T)]
        u = [np.diag(1 / s.input_width) @ (whole[slice(at, at + m)] + -s.input_low) for at in where]
        outputs = self.cell.unroll(graph, p, u)
        if outputs is None:
            raise UserError(f"{self.family} multiplies its gates: it is no network that certificates or export know")
        raw = [np.diag(s.state_width) @ y + s.state_low for y in outputs[hold - 1 :: hold]]
        begins = range(0, T, hold)
        names_in = (*self.state_names, *(f"{name} at step {k}" for k in begins for name in self.input_names))
        names_out = tuple(f"{name} at step {k + hold}" for k in begins for name in self.state_names)
        net = graph.network(stacked(raw), input_names=names_in, output_names=names_out)
        if self.cell.convex and not self._is_convex(net, T // hold):
            raise UserError(f"the weights of this {self.family} break its claim to be convex: it is not exported")
        return net

    def _is_convex(self, net: PlainNet, periods: int) -> bool:
        """By structure, which proves it, and at random midpoints of the data's range, which would disprove it."""
        s = self.scaling
        low = np.concatenate([s.state_low, np.tile(s.input_low, periods)])
        high = low + np.concatenate([s.state_width, np.tile(s.input_width, periods)])
        scale = np.tile(s.state_width, periods)
        violation = midpoint_violation(lambda z: net(z) / scale, low, high, seed=0, pairs=MIDPOINTS)
        return is_convex(net) and violation <= ROUNDING

    def save(self, path: Path) -> None:
        """Write one `.npz` file."""
        facts = {
            "format": FORMAT,
            "family": self.family,
            "width": self.cell.width,
            "horizon": self.horizon,
            "activation": self.cell.activation if isinstance(self.cell, Iclrnn) else None,
            "state_names": self.state_names,
            "input_names": self.input_names,
            "dt": self.dt,
            "time_unit": self.time_unit,
            "facts": dict(self.facts),
        }
        arrays = {f"cell.{name}": value.double().cpu().numpy() for name, value in self.cell.state_dict().items()}
        arrays |= {f"scaling.{name}": getattr(self.scaling, name) for name in Scaling.__annotations__}
        buffer = io.BytesIO()
        np.savez(buffer, facts=np.array(json.dumps(facts)), **arrays)
        write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

    @staticmethod
    def load(path: Path) -> "ProcessModel":
        """Read a file of `save`.

        Raises:
            UserError: missing, damaged, or of another kind.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
                facts = json.loads(str(data["facts"]))
                arrays = {name: np.asarray(data[name]) for name in data.files if name != "facts"}
        except FileNotFoundError:
            raise UserError(f"no process model at {path}") from None
        except Exception as error:  # numpy raises whatever zip raised
            raise UserError(f"{path} is not a whole process model ({type(error).__name__})") from error
        if facts.get("format") != FORMAT:
            raise UserError(f"{path} is not a process model: format {facts.get('format')!r}, expected {FORMAT!r}")
        cell = build(
            facts["family"],
            len(facts["state_names"]),
            len(facts["input_names"]),
            width=facts["width"],
            horizon=facts["horizon"],
            activation=facts["activation"] or "softplus",
        ).double()
        weights = {name.removeprefix("cell."): value for name, value in arrays.items() if name.startswith("cell.")}
        try:
            cell.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
            scaling = Scaling(*(arrays[f"scaling.{name}"] for name in Scaling.__annotations__))
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{path} is not a whole process model: weights are missing") from error
        names = tuple(facts["state_names"]), tuple(facts["input_names"])
        return ProcessModel(facts["family"], cell, scaling, *names, facts["dt"], facts["time_unit"], facts["facts"])


def build(family: str, n: int, m: int, *, width: int, horizon: int, activation: str = "softplus") -> Cell:
    """A new cell.

    Raises:
        UserError: an unknown family.
    """
    if family not in get_args(Family):
        raise nearest(family, get_args(Family), "family")
    if family == "iclrnn":
        return Iclrnn(n, m, width, horizon, "relu" if activation == "relu" else "softplus")
    return CELLS[family](n, m, width, horizon)  # type: ignore[index]  # one of the families, just checked
