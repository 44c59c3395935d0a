"""The training loop of all process models: several seeds as one batch, early stopping, exact resume.

The weights of all seeds are stacked along a leading axis and trained by one vectorised step; every seed keeps its own
order of the data, its own noise and its own best weights. The random numbers of an epoch depend on its number alone, so
that a resumed run repeats what an uninterrupted one does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from lipctrl.files import UserError, write_atomically
from lipctrl.models.baselines import causal_affine
from lipctrl.models.cell import Cell
from lipctrl.models.cells import Family
from lipctrl.models.iclrnn import Iclrnn
from lipctrl.models.model import ProcessModel, Scaling, build
from lipctrl.models.windows import Windows

Array = NDArray[np.float64]
Stacked = dict[str, Tensor]
MARGIN = 1 - 1e-5  # of a gain in single precision below the one that is wanted


@dataclass(frozen=True)
class FitSettings:
    """How a model is trained. Noise is Gaussian, its deviations in scaled units ([0, 1] is the data's range).

    Attributes:
        family, width, activation: the cell; `activation` (softplus or relu) is of the iclrnn.
        epochs, batch, learning_rate: Adam, the rate falls to a hundredth along a cosine.
        patience: epochs without a better validation error after which a run stops.
        input_noise, state_noise: on the inputs and on the start state, drawn anew for every batch.
        target_noise: on the targets of training, drawn once, as if they had been recorded so.
        lipschitz: largest gain over the whole horizon, l2, per range of the data, of the iclrnn; None: as it comes.
    """

    family: Family = "iclrnn"
    width: int = 32
    activation: str = "softplus"
    epochs: int = 250
    batch: int = 256
    learning_rate: float = 3e-3
    patience: int = 60
    input_noise: float = 0.0
    state_noise: float = 0.0
    target_noise: float = 0.0
    lipschitz: float | None = None

    def __post_init__(self) -> None:
        for name in ("width", "epochs", "batch", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "input_noise", "state_noise", "target_noise"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0) or (name == "learning_rate" and value == 0):
                raise ValueError(f"{name} must be finite and not negative, found {value}")
        if self.activation not in ("softplus", "relu"):
            raise ValueError(f"activation must be softplus or relu, found {self.activation!r}")
        if self.lipschitz is not None and not (self.family == "iclrnn" and 0 < self.lipschitz < math.inf):
            raise ValueError(
                f"lipschitz must be positive, and is of the iclrnn; found {self.lipschitz} of {self.family}"
            )


@dataclass(frozen=True)
class Fitted:
    """Models of all seeds, and the validation error of every epoch, shape (epochs, seeds)."""

    models: tuple[ProcessModel, ...]
    history: Array


class Trainer:
    """Training in progress: `epoch()` after `epoch()` until `done`.

    Args:
        train, validation: windows; the scaling is that of the training ones.
        seeds: one run each. device: where it computes.

    Raises:
        UserError: a constant signal.
    """

    def __init__(
        self, settings: FitSettings, train: Windows, validation: Windows, *, seeds: Sequence[int], device: str = "cpu"
    ) -> None:
        torch.set_flush_denormal(True)  # weights that are driven to zero would make every product ten times slower
        self.settings, self.train, self.seeds, self.device = settings, train, tuple(seeds), device
        self.scaling = Scaling.of(train)
        starts, inputs, states = self.scaling.scaled(train)
        self.data = [_tensor(part, device) for part in (starts, inputs)]
        # as recorded data are: the noise of the targets is drawn once, each seed's its own
        self.targets = {
            seed: states + settings.target_noise * np.random.default_rng(seed).normal(size=states.shape)
            for seed in self.seeds
        }
        self.answers = torch.stack([_tensor(self.targets[seed], device) for seed in self.seeds])
        self.check = [_tensor(part, device) for part in self.scaling.scaled(validation)]
        cells = [self._cell(seed).to(device) for seed in seeds]
        self.base, self.criterion = cells[0], _Criterion(cells[0])
        params, buffers = stack_module_state(cells)
        self.params = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
        self.buffers = buffers
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=settings.learning_rate)
        self.best = {name: value.detach().clone() for name, value in self.params.items()}
        self.history: list[list[float]] = []
        self.number = 0

    def _cell(self, seed: int) -> Cell:
        s, windows = self.settings, self.train
        torch.manual_seed(seed)
        n, m = len(windows.state_names), len(windows.input_names)
        cell = build(s.family, n, m, width=s.width, horizon=windows.horizon, activation=s.activation)
        if isinstance(cell, Iclrnn):  # the plant is nearly affine over a short time: start from least squares
            starts, inputs, _ = self.scaling.scaled(windows)
            parts = causal_affine(starts, inputs, self.targets[seed])
            with torch.no_grad():
                for weight, part in zip((cell.from_start, cell.from_inputs, cell.offset), parts, strict=True):
                    weight.copy_(torch.from_numpy(part))
        return cell

    def _outputs(self, params: Stacked, p: Tensor, u: Tensor, *, shared: bool) -> Tensor:
        """Predictions (seeds, batch, T, n)."""

        def one(weights: Stacked, buffers: Stacked, start: Tensor, inputs: Tensor) -> Tensor:
            return functional_call(self.base, (weights, buffers), (start, inputs))  # type: ignore[no-any-return]

        axes = None if shared else 0
        return torch.vmap(one, in_dims=(0, 0, axes, axes))(params, self.buffers, p, u)

    def _losses(self, p: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """What each seed minimises, (seeds,)."""

        def one(weights: Stacked, buffers: Stacked, *batch: Tensor) -> Tensor:
            inner = {f"cell.{name}": value for name, value in {**weights, **buffers}.items()}
            return functional_call(self.criterion, inner, batch)  # type: ignore[no-any-return]

        return torch.vmap(one)(self.params, self.buffers, p, u, y)

    @property
    def done(self) -> bool:
        """All epochs are over, or no seed has improved for `patience` of them."""
        if self.number >= self.settings.epochs:
            return True
        best = np.argmin(self.history, axis=0) if self.history else np.zeros(1)
        return bool((self.number - 1 - best >= self.settings.patience).all())

    def epoch(self) -> None:
        """One pass over the training windows.

        Raises:
            UserError: the loss is not finite.
        """
        s, rows = self.settings, len(self.train)
        draws = [torch.Generator(self.device).manual_seed(seed * 1_000_003 + self.number) for seed in self.seeds]
        orders = torch.stack([torch.randperm(rows, generator=g, device=self.device) for g in draws])
        rate = s.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.number / s.epochs)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for begin in range(0, rows, s.batch):
            picked = orders[:, begin : begin + s.batch]
            noise = (s.state_noise, s.input_noise)
            p, u = (_noisy(part[picked], size, draws) for part, size in zip(self.data, noise, strict=True))
            y = torch.stack([own[rows_] for own, rows_ in zip(self.answers, picked, strict=True)])
            loss = self._losses(p, u, y).sum()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            type(self.base).project_(self.params)
            if s.lipschitz is not None:
                Iclrnn.limit_gain_(self.params, MARGIN * s.lipschitz)
        self._validate()

    @torch.no_grad()
    def _validate(self) -> None:
        p, u, y = self.check
        errors = ((self._outputs(self.params, p, u, shared=True) - y) ** 2).mean((1, 2, 3)).double().cpu().numpy()
        if not np.isfinite(errors).all():
            raise UserError(f"training diverged in epoch {self.number + 1}: lower --learning-rate")
        lowest = np.min(self.history, axis=0) if self.history else np.full(len(errors), np.inf)
        better = torch.from_numpy(errors < lowest).to(self.device)
        for name, value in self.params.items():
            shape = (-1,) + (1,) * (value.ndim - 1)
            self.best[name] = torch.where(better.reshape(shape), value.detach(), self.best[name])
        self.history.append(errors.tolist())
        self.number += 1

    def result(self, facts: dict[str, Any]) -> Fitted:
        """The best weights of every seed so far, in float64."""
        windows, models = self.train, []
        for k, seed in enumerate(self.seeds):
            cell = self._cell(seed)
            cell.load_state_dict({name: value[k] for name, value in {**self.best, **self.buffers}.items()})
            names = windows.state_names, windows.input_names
            own = {**facts, "seed": seed, "validation_mse": float(np.min([row[k] for row in self.history]))}
            models.append(
                ProcessModel(
                    self.settings.family, cell.double(), self.scaling, *names, windows.dt, windows.time_unit, own
                )
            )
        return Fitted(tuple(models), np.array(self.history))

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "params": {name: value.detach() for name, value in self.params.items()},
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "number": self.number,
        }
        write_atomically(path, lambda stream: torch.save(state, stream))

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: missing or damaged.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises whatever zip or its unpickler raised
            raise UserError(f"{path} is not a whole checkpoint ({type(error).__name__})") from error
        with torch.no_grad():
            for name, value in self.params.items():
                value.copy_(state["params"][name])
        self.best, self.history, self.number = state["best"], state["history"], state["number"]
        self.optimizer.load_state_dict(state["optimizer"])


class _Criterion(nn.Module):
    """The loss of a cell as a module, which is what torch calls with other weights."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, p: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.cell.loss(p, u, y)


def _tensor(values: Array, device: str) -> Tensor:
    return torch.from_numpy(values).float().to(device)


def _noisy(values: Tensor, size: float, draws: Sequence[torch.Generator]) -> Tensor:
    """Values (seeds, ...) with noise, each seed's from its own generator."""
    if size == 0:
        return values
    noise = [torch.randn(v.shape, generator=g, device=v.device) for v, g in zip(values, draws, strict=True)]
    return values + size * torch.stack(noise)


def fit(
    settings: FitSettings,
    train: Windows,
    validation: Windows,
    *,
    seeds: Sequence[int],
    device: str = "cpu",
    progress: Callable[[], object] = lambda: None,
) -> Fitted:
    """Train to the end; `progress` is called after every epoch. See `Trainer`."""
    trainer = Trainer(settings, train, validation, seeds=seeds, device=device)
    while not trainer.done:
        trainer.epoch()
        progress()
    return trainer.result({})
