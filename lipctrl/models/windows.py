"""Windows: what a process model learns from. A start state, the inputs of T steps, and the state after each of them.

A window is x_0 (n,), u_0..u_{T-1} (T, m) and x_1..x_T (T, n), in the plant's units. Windows come from a plant that is
simulated, the published grid of the reactor study, or a recorded time series; one `.npz` file, no pickle.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError, nearest, write_atomically
from lipctrl.plant import Plant

Array = NDArray[np.float64]
FORMAT = "lipctrl-windows-1"
FEWEST = 20  # windows below which nothing is learned
UNIFORM = 1e-6  # relative difference of sampling times that counts as uniform


@dataclass(frozen=True)
class Windows:
    """W windows of T steps.

    Attributes:
        starts: (W, n). inputs: (W, T, m). states: (W, T, n), after each step.
        state_names, input_names: with units, for example "temperature [K]".
        dt: time between two steps, in `time_unit`.
        source: where they come from: plant, seed, file.
    """

    starts: Array
    inputs: Array
    states: Array
    state_names: tuple[str, ...]
    input_names: tuple[str, ...]
    dt: float
    time_unit: str
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, m = len(self.state_names), len(self.input_names)
        W, T = self.inputs.shape[:2]
        if self.starts.shape != (W, n) or self.inputs.shape != (W, T, m) or self.states.shape != (W, T, n):
            raise UserError(
                f"windows have starts {self.starts.shape}, inputs {self.inputs.shape}, states {self.states.shape}; "
                f"expected (W, {n}), (W, T, {m}), (W, T, {n})"
            )
        if W < FEWEST or T < 1:
            raise UserError(f"{W} windows of {T} steps are too few to learn from; at least {FEWEST} of 1 are needed")
        for name in ("starts", "inputs", "states"):
            bad = ~np.isfinite(getattr(self, name))
            if bad.any():
                raise UserError(f"{name} of the windows hold {int(bad.sum())} values that are not finite")
        if not self.dt > 0:
            raise UserError(f"the sampling time must be positive, found {self.dt}")

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def horizon(self) -> int:
        """T, steps of each window."""
        return int(self.inputs.shape[1])

    def take(self, rows: NDArray[np.int64]) -> "Windows":
        """Some of the windows."""
        return replace(self, starts=self.starts[rows], inputs=self.inputs[rows], states=self.states[rows])

    def split(
        self, seed: int, *, test: float = 0.3, validation: float = 0.25
    ) -> tuple["Windows", "Windows", "Windows"]:
        """(training, validation, test): `test` of all and `validation` of the rest, drawn at random.

        Windows of a series overlap, so that those are split by time, and the ones that share samples with the part
        before theirs are left out.

        Raises:
            UserError: a part would be empty or too small.
        """
        overlap = int(self.source.get("overlap", 0))
        order = np.random.default_rng(seed).permutation(len(self)) if not overlap else np.arange(len(self))[::-1]
        tests = int(round(test * len(self)))
        checks = int(round(validation * (len(self) - tests)))
        if min(tests - overlap, checks - overlap, len(self) - tests - checks) < 1:
            raise UserError(f"{len(self)} windows cannot be split into training, validation and test data")
        test_rows, check_rows = order[: tests - overlap], order[tests : tests + checks - overlap]
        return self.take(order[tests + checks :]), self.take(check_rows), self.take(test_rows)

    def save(self, path: Path) -> None:
        """Write one `.npz` file."""
        facts = {
            "format": FORMAT,
            "state_names": self.state_names,
            "input_names": self.input_names,
            "dt": self.dt,
            "time_unit": self.time_unit,
            "source": dict(self.source),
        }
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, starts=self.starts, inputs=self.inputs, states=self.states, facts=np.array(json.dumps(facts))
        )
        write_atomically(path, lambda stream: stream.write(buffer.getvalue()))

    @staticmethod
    def load(path: Path) -> "Windows":
        """Read a file of `save`.

        Raises:
            UserError: missing, damaged, or of another kind.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
                facts = json.loads(str(data["facts"]))
                starts, inputs, states = (np.asarray(data[name], np.float64) for name in ("starts", "inputs", "states"))
        except FileNotFoundError:
            raise UserError(f"no windows at {path}") from None
        except Exception as error:  # numpy raises whatever zip raised
            raise UserError(f"{path} is not a whole file of windows ({type(error).__name__})") from error
        if facts.get("format") != FORMAT:
            raise UserError(f"{path} is not a file of windows: format {facts.get('format')!r}, expected {FORMAT!r}")
        names = tuple(facts["state_names"]), tuple(facts["input_names"])
        return Windows(starts, inputs, states, *names, float(facts["dt"]), facts["time_unit"], facts["source"])


def from_plant(
    plant: Plant,
    *,
    windows: int,
    horizon: int,
    seed: int,
    spread: Array | None = None,
    hold: int = 1,
    noise: Array | None = None,
) -> Windows:
    """Windows of a simulated plant: starts about the equilibrium, inputs uniform within their limits.

    Args:
        windows, horizon: how many, and their steps.
        seed: of starts, inputs and noise.
        spread: half range of the starts, (n,); by default a tenth of the plant's state limits' range.
        hold: steps for which an input is held.
        noise: standard deviation of measurement noise on starts and states, (n,), or None.

    Raises:
        UserError: a range is not finite, or every simulated state leaves the finite numbers.
    """
    rng, n, m = np.random.default_rng(seed), len(plant.state), len(plant.input)
    low, high = np.array(plant.input.low), np.array(plant.input.high)
    width = (np.array(plant.state.high) - np.array(plant.state.low)) / 10 if spread is None else np.asarray(spread)
    if not np.isfinite([low, high]).all() or width.shape != (n,) or not np.isfinite(width).all():
        raise UserError(f"windows of {plant.name} need finite input limits and a finite spread of {n} start states")
    x = plant.equilibrium[0] + rng.uniform(-1, 1, (windows, n)) * width
    drawn = rng.uniform(low, high, (windows, -(-horizon // hold), m))
    inputs = np.repeat(drawn, hold, axis=1)[:, :horizon]
    states = [x]
    for t in range(horizon):
        states.append(plant.step(states[-1], inputs[:, t]))
    path = np.stack(states, axis=1)
    kept = np.isfinite(path).all((1, 2))
    path, inputs = path[kept], inputs[kept]
    if noise is not None:
        path = path + rng.normal(size=path.shape) * noise
    source = {"plant": plant.name, "seed": seed, "spread": width.tolist(), "hold": hold}
    source |= {} if noise is None else {"noise": np.asarray(noise).tolist()}
    names = plant.state.names, plant.input.names
    return Windows(path[:, 0], inputs, path[:, 1:], *names, plant.dt, plant.time_unit, source)


def from_series(
    columns: Mapping[str, Array],
    *,
    states: Sequence[str],
    inputs: Sequence[str],
    time: str,
    horizon: int,
    stride: int = 1,
    source: str = "",
) -> Windows:
    """Windows of a recorded time series with uniform sampling; overlapping by all but `stride` steps.

    Args:
        columns: name with unit ("T [K]") -> samples. states, inputs: which columns they are.
        time: the column of times, whose unit is the model's time unit.

    Raises:
        UserError: a column is missing, constant, without unit, or not finite; times that are not uniform; too few rows.
    """
    for name in (*states, *inputs, time):
        if name not in columns:
            raise nearest(name, columns, "column")
        if not np.isfinite(columns[name]).all():
            bad = int((~np.isfinite(columns[name])).sum())
            raise UserError(f"column {name!r} holds {bad} values that are not finite")
        if "[" not in name or not name.endswith("]") or name.endswith(("[]", "[?]")):
            raise UserError(f"column {name!r} has no unit: name it like 'temperature [K]'")
        if name != time and np.ptp(columns[name]) == 0:
            raise UserError(f"column {name!r} is constant: nothing can be learned from it")
    steps = np.diff(columns[time])
    if len(steps) < 1 or not (np.abs(steps - steps.mean()) <= UNIFORM * np.abs(steps.mean())).all() or steps[0] <= 0:
        raise UserError(f"column {time!r} is not uniformly sampled: resample it first")
    x, u = (np.stack([columns[name] for name in names], axis=1) for names in (states, inputs))
    begins = np.arange(0, len(x) - horizon, stride)
    if len(begins) < FEWEST:
        raise UserError(f"{len(x)} rows give {len(begins)} windows of {horizon} steps; at least {FEWEST} are needed")
    rows = begins[:, None] + np.arange(horizon)
    unit, facts = time[time.index("[") + 1 : -1], {"file": source, "overlap": -(-horizon // stride)}
    return Windows(x[begins], u[rows], x[rows + 1], tuple(states), tuple(inputs), float(steps.mean()), unit, facts)


def joined(parts: Sequence[Windows]) -> Windows:
    """Windows of several series of the same signals as one, in their order.

    Raises:
        UserError: names or sampling times differ.
    """
    first = parts[0]
    for part in parts[1:]:
        same = (part.state_names, part.input_names) == (first.state_names, first.input_names)
        if not same or abs(part.dt - first.dt) > UNIFORM * first.dt or part.horizon != first.horizon:
            raise UserError("series that are joined need the same signals, sampling time and horizon")
    starts, inputs, states = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "inputs", "states")
    )
    files = ", ".join(str(part.source.get("file", "")) for part in parts)
    return replace(first, starts=starts, inputs=inputs, states=states, source={**first.source, "file": files})


def read_columns(path: Path) -> dict[str, Array]:
    """Columns of a CSV file with a header row, or of a `.npz` file with one array per column.

    Raises:
        UserError: missing or damaged, no rows, or a cell that is not a number.
    """
    if not path.exists():
        raise UserError(f"no data at {path}")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as data:
            return {name: np.asarray(data[name], np.float64) for name in data.files}
    rows = list(csv.reader(path.read_text().splitlines()))
    if len(rows) < 2:
        raise UserError(f"{path} has no rows below its header")
    try:
        values = np.array([[float(cell) for cell in row] for row in rows[1:]])
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if values.ndim != 2 or values.shape[1] != len(rows[0]):
        raise UserError(f"{path} has rows of other lengths than its header of {len(rows[0])} columns")
    return {name.strip(): values[:, k] for k, name in enumerate(rows[0])}
