"""`lipctrl train model`: a process model from a plant, a recorded series or a file of windows, with its validation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lipctrl.cli.experts import plant_env
from lipctrl.cli.interrupt import deferred_interrupt
from lipctrl.cli.mpc_modes import plant_of
from lipctrl.cli.progress import CONSOLE, bar
from lipctrl.config import parse, read_config, updated
from lipctrl.evaluation.plots import model_figure
from lipctrl.files import UserError, write_text
from lipctrl.models.fit import FitSettings, Trainer
from lipctrl.models.model import ProcessModel
from lipctrl.models.validation import (
    Validation,
    as_json,
    horizon_gain,
    validate,
    validate_baselines,
    within_two_deviations,
    worst_error,
)
from lipctrl.models.windows import Windows, from_plant, from_series, joined, read_columns
from lipctrl.runs import Run, write_metrics

CHECKPOINT = 10  # epochs between two checkpoints
SPLIT = 123  # seed of the split into training, validation and test windows


@dataclass(frozen=True)
class ModelSettings(FitSettings):
    """Settings of `lipctrl train model`."""

    plant: str | None = None
    """Simulate this plant for data, by short name such as cstr or quad-tank, or an environment id."""
    published_grid: bool = False
    """With --plant cstr: the published grid of the reactor study instead of random inputs."""
    data: str | None = None
    """Data of your own plant: a series as CSV or .npz with one column per signal, named with its unit, such as
    "temperature [K]"; windows written by this library (.npz); or a run folder of `lipctrl mpc` or `train model`."""
    states: tuple[str, ...] = ()
    """Columns of a series that are predicted."""
    inputs: tuple[str, ...] = ()
    """Columns of a series that are known inputs."""
    time: str = "time [s]"
    """Column of a series that holds the times; sampling must be uniform."""
    horizon: int = 10
    """Steps that the model is trained to look ahead."""
    windows: int = 4000
    """Windows to simulate."""
    hold: int = 1
    """Steps for which a simulated input is held."""
    spread: tuple[float, ...] | None = None
    """Half range of simulated start states about the equilibrium, one per state; none: a tenth of the state limits."""
    sensor_noise: tuple[float, ...] | None = None
    """Standard deviation of measurement noise on simulated states, one per state."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, trained as one batch; the one with the smallest validation error becomes model.npz."""
    device: str = "auto"
    """cpu, cuda, or auto: cuda where there is one."""
    resume: str | None = None
    """Go on with this interrupted run."""
    out: str | None = None
    """Run folder; by default the first free runs/model-<family>-<k>."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("horizon", "windows", "hold"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not self.seeds:
            raise ValueError("training needs at least one seed")


def windows_of(settings: ModelSettings) -> Windows:
    """The data that the settings name.

    Raises:
        UserError: none or two sources, or data that cannot be used; see `lipctrl.models.windows`.
    """
    if (settings.plant is None) == (settings.data is None):
        raise UserError("training needs one source: --plant NAME to simulate, or --data FILE of your own plant")
    if settings.data is not None:
        return recorded(settings, Path(settings.data))
    assert settings.plant is not None
    plant = plant_of(plant_env(settings.plant)).plant
    if settings.published_grid:
        if plant.name != "cstr":
            raise UserError("the published grid is of the reactor: --plant cstr")
        from lipctrl.envs.cstr import LEVEL, P
        from lipctrl.models.reactor import reactor_grid

        return reactor_grid(plant, P, LEVEL)
    return from_plant(
        plant,
        windows=settings.windows,
        horizon=settings.horizon,
        seed=0,
        spread=None if settings.spread is None else np.array(settings.spread),
        hold=settings.hold,
        noise=None if settings.sensor_noise is None else np.array(settings.sensor_noise),
    )


def recorded(settings: ModelSettings, path: Path) -> Windows:
    """Windows of a file or of a run folder; see `windows_of`."""
    states, inputs, time, files = settings.states, settings.inputs, settings.time, [path]
    if path.is_dir():
        if (path / "windows.npz").exists():
            return Windows.load(Run.open(path).checked("windows.npz"))
        files = sorted(path.glob("*.csv"))
        name = read_config(str(Run.open(path).path / "settings.yaml"), "mpc")[0].get("plant")
        if not files or not isinstance(name, str):
            raise UserError(f"{path} holds no windows and no series of `lipctrl mpc` to learn from")
        plant = plant_of(plant_env(name)).plant
        states, inputs = states or plant.state.names, inputs or plant.input.names
        time = f"time [{plant.time_unit}]"
    elif not states and not inputs:
        return Windows.load(path)
    return joined(
        [
            from_series(
                read_columns(file), states=states, inputs=inputs, time=time, horizon=settings.horizon, source=file.name
            )
            for file in files
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        ModelSettings(),
        group="model",
        prog="lipctrl train model",
        description="Train a process model of a plant, simulated or recorded, and validate it against least squares. "
        "Writes model.npz, the windows, metrics.csv, certificate.json and plots into a run folder.",
        args=arguments,
    )
    if settings.resume is not None:
        run = Run.open(Path(settings.resume))
        if run.record.get("status") == "finished":
            raise UserError(f"run {run.path} is finished; there is nothing to resume")
        data, source = read_config(str(run.path / "settings.yaml"), "model")
        settings, windows = updated(ModelSettings(), data, source), Windows.load(run.checked("windows.npz"))
        parts = windows.split(SPLIT)
        trainer = _trainer(settings, parts)
        trainer.restore(run.checked("checkpoint.pt"))
    else:
        windows = windows_of(settings)
        parts = windows.split(SPLIT)
        trainer = _trainer(settings, parts)  # refuses data that do not fit before anything is written
        run = Run.create(settings.out, f"model-{settings.family}", settings, seed=settings.seeds[0])
        windows.save(run.path / "windows.npz")
    try:
        _train(trainer, settings, run)
    except KeyboardInterrupt:
        run.finish("interrupted")
        print(f"interrupted after {trainer.number} epochs; go on with: lipctrl train model --resume {run.path}")
        raise
    _finish(trainer, settings, parts, run)


def _trainer(settings: ModelSettings, parts: tuple[Windows, Windows, Windows]) -> Trainer:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = FitSettings(**{name: getattr(settings, name) for name in FitSettings.__annotations__})
    return Trainer(plain, parts[0], parts[1], seeds=settings.seeds, device=device)


def _train(trainer: Trainer, settings: ModelSettings, run: Run) -> None:
    """All epochs, with a checkpoint every few of them and at an interrupt.

    Raises:
        KeyboardInterrupt: interrupted between two epochs, after a checkpoint was written.
    """
    with deferred_interrupt() as interrupted, bar(f"{settings.family}", settings.epochs) as advance:
        advance(trainer.number)
        while not trainer.done:
            trainer.epoch()
            advance()
            if trainer.number % CHECKPOINT == 0 or interrupted() or trainer.done:
                rows = [
                    {"epoch": k + 1.0, **{f"validation/mse_s{s}": e for s, e in zip(trainer.seeds, row, strict=True)}}
                    for k, row in enumerate(trainer.history)
                ]
                write_metrics(run.path / "metrics.csv", rows)
                trainer.save(run.path / "checkpoint.pt")
            if interrupted():
                raise KeyboardInterrupt


def _finish(trainer: Trainer, settings: ModelSettings, parts: tuple[Windows, Windows, Windows], run: Run) -> None:
    """Save the models, validate the best one, print what is known of it."""
    train, _, test = parts
    models = trainer.result({"source": dict(train.source), "settings": settings.family}).models
    models = tuple(replace(m, facts={**m.facts, "worst_error": worst_error(m, test).tolist()}) for m in models)
    for model in models:
        model.save(run.path / f"model-s{model.facts['seed']}.npz")
    best = min(models, key=lambda m: float(m.facts["validation_mse"]))
    best.save(run.path / "model.npz")
    table = {settings.family: validate(best, test), **validate_baselines(train, best, test)}
    lines = [verdict(settings.family, table)] + sensitivity(best, test, run)
    if settings.family == "gaussian":
        share = 100 * within_two_deviations(best, test)
        lines.append(f"{share:.3g} % of one-step errors are within two deviations that the model expects (right: 95 %)")
    write_text(run.path / "model.svg", model_figure(best.predict(test.starts, test.inputs), test, table))
    run.finish(validation={name: as_json(found) for name, found in table.items()}, findings=lines)
    show(best, table)
    for line in lines:
        print(line)
    print(f"{run.path}: model.npz (seed {best.facts['seed']}), model.svg")


def verdict(family: str, table: dict[str, Validation]) -> str:
    """Whether the model is worth its trouble, in a sentence."""
    errors = {name: found.mse for name, found in table.items()}
    rival = min((name for name in table if name != family), key=errors.__getitem__)
    if errors[rival] < errors[family]:
        return (
            f"{rival} least squares is better: {errors[rival]:.3g} against {errors[family]:.3g}; take it, or more data"
            if rival != "persistence"
            else f"saying that the state stays is better: {errors[rival]:.3g} against {errors[family]:.3g}"
        )
    return f"the {family} has {errors[family] / errors[rival]:.2g} of the error of {rival}, the best of the others"


def sensitivity(model: ProcessModel, test: Windows, run: Run) -> list[str]:
    """What is convex in what, and the proved constant over the horizon with its certificate."""
    try:
        net = model.to_plain()
    except UserError as error:
        return [f"nothing is proved: {error}"]
    lines = []
    if model.cell.convex:
        n, m = ", ".join(model.state_names), ", ".join(model.input_names)
        lines.append(
            f"proved by structure: for k = 1..{model.horizon} every predicted state is convex in the start ({n}) and "
            f"the inputs ({m}) of the steps before it, jointly; not if predictions are fed back"
        )
    with CONSOLE.status("proving the constant over the horizon"):
        found = horizon_gain(net, model, test)
    found.everywhere.save(run.path / "certificate.json")
    net.save(run.path / "network.npz")
    on_data = f", {found.on_data.bound:.4g} on the data's range" if found.on_data is not None else ""
    lines.append(
        f"constant over {model.horizon} steps, l2, per range of the data: {found.attained.bound:.4g} (witness) to "
        f"{found.everywhere.bound:.4g} (proved by {found.everywhere.method}){on_data}; certificate.json is of "
        "network.npz, unrolled, in raw units"
    )
    return lines


def show(model: ProcessModel, table: dict[str, Validation]) -> None:
    """Print errors of the model and of least squares: overall, under noise, and per state over the horizon."""
    console, T = Console(), model.horizon
    noise = list(next(iter(table.values())).noisy)
    overall = Table(f"test windows of {T} steps", *table)
    overall.add_row("mean square, scaled", *(f"{found.mse:.3g}" for found in table.values()))
    for key in noise:
        overall.add_row(f"  with noise, {key}", *(f"{found.noisy[key]:.3g}" for found in table.values()))
    overall.add_row("parameters", *(str(found.parameters) for found in table.values()))
    overall.add_row("floating-point operations", *(str(found.flops) for found in table.values()))
    times = (f"{found.microseconds:.0f}" if found.microseconds else "" for found in table.values())
    overall.add_row("us per call", *times)
    console.print(overall)
    steps = sorted({1, (T + 1) // 2, T})
    horizon = Table("root mean square error", "step", *table)
    for i, state in enumerate(model.state_names):
        for k in steps:
            horizon.add_row(escape(state), str(k), *(f"{found.rmse[k - 1, i]:.3g}" for found in table.values()))
    console.print(horizon)
