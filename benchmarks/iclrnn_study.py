"""The reactor study of input-convex Lipschitz RNNs, in full: open loop over families, noise and seeds; closed loop.

    OMP_NUM_THREADS=1 python benchmarks/iclrnn_study.py open-loop     # about 25 minutes; goes on where it was stopped
    OMP_NUM_THREADS=1 python benchmarks/iclrnn_study.py closed-loop   # minutes, from the models of open-loop

writes benchmarks/results/iclrnn-open-loop.json and iclrnn-closed-loop.json; models go to runs/iclrnn-study. Data: the
published grid (`lipctrl.models.reactor`), split with seed 123. Errors are mean squares in [0, 1]-scaled units on clean
test data, as published; raw errors are at the end of the period.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from certify_speed import processor, versions
from rich.progress import track

from lipctrl.envs.cstr import LEVEL, P, cstr_plant
from lipctrl.evaluation.statistics import stratified_bootstrap
from lipctrl.files import write_text
from lipctrl.models.baselines import baselines
from lipctrl.models.cells import CELLS
from lipctrl.models.fit import FitSettings, fit
from lipctrl.models.model import ProcessModel, Scaling
from lipctrl.models.reactor import reactor_grid
from lipctrl.models.windows import Windows

RESULTS = Path(__file__).parent / "results"
FOLDER = Path("runs") / "iclrnn-study"
SEEDS = (0, 1, 2, 3, 4)
TARGET_NOISE = (0.0, 0.3, 0.9)
INPUT_NOISE = (0.0, 0.05, 0.1)
EPOCHS = 150
PLANT = cstr_plant()


def test_error(model: ProcessModel, test: Windows, *, noise: float = 0.0) -> tuple[float, np.ndarray]:
    """Scaled mean square, and raw root mean square at the last step (n,); noise on starts and inputs, scaled units."""
    rng, s = np.random.default_rng(0), model.scaling
    starts = test.starts + noise * s.state_width * rng.normal(size=test.starts.shape)
    inputs = test.inputs + noise * s.input_width * rng.normal(size=test.inputs.shape)
    error = model.predict(starts, inputs) - test.states
    return float(((error / s.state_width) ** 2).mean()), np.sqrt((error[:, -1] ** 2).mean(0))


def trained(family: str, noise: float, data: tuple[Windows, Windows]) -> tuple[list[ProcessModel], float]:
    """Five models of a family, from the folder if they are there, and seconds per seed."""
    paths = [FOLDER / f"{family}-noise{noise:g}-s{seed}.npz" for seed in SEEDS]
    if not all(path.exists() for path in paths):
        settings = FitSettings(family=family, epochs=EPOCHS, target_noise=noise)  # type: ignore[arg-type]
        start = time.perf_counter()
        with_bar = track(range(EPOCHS), f"{family}, noise {noise:g}")
        ticks = iter(with_bar)
        fitted = fit(settings, *data, seeds=SEEDS, progress=lambda: next(ticks, None))
        seconds = (time.perf_counter() - start) / len(SEEDS)
        for model, path in zip(fitted.models, paths, strict=True):
            model.save(path)
        write_text(FOLDER / f"{family}-noise{noise:g}.seconds", repr(seconds))
    seconds = float((FOLDER / f"{family}-noise{noise:g}.seconds").read_text())
    return [ProcessModel.load(path) for path in paths], seconds


def interval(values: list[float]) -> list[float]:
    """Interquartile mean with its bootstrap interval over seeds."""
    found = stratified_bootstrap(np.array(values), seed=0)
    return [found.value, found.low, found.high]


def open_loop() -> dict[str, Any]:
    """Test errors of every family against noise on training targets and on inputs, beside least squares."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    train, validation, test = reactor_grid(PLANT, P, LEVEL).split(123)
    scaling = Scaling.of(train)
    p, u, y = scaling.scaled(test)
    table: dict[str, Any] = {
        name: {"parameters": b.parameters, "test mse": float(((b.predict(p, u) - y) ** 2).mean())}
        for name, b in baselines(train, scaling).items()
    }
    for family in CELLS:
        rows: dict[str, Any] = {}
        for noise in TARGET_NOISE:
            models, seconds = trained(family, noise, (train, validation))
            errors = [test_error(model, test) for model in models]
            rows[f"target noise {noise:g}"] = interval([e for e, _ in errors])
            if noise == 0:
                rows["raw rmse"] = np.median([raw for _, raw in errors], axis=0).tolist()
                rows["seconds per seed"] = seconds
                for level in INPUT_NOISE[1:]:
                    found = [test_error(model, test, noise=level)[0] for model in models]
                    rows[f"input noise {level:g}"] = interval(found)
                rows["parameters"] = sum(w.numel() for w in models[0].cell.parameters())
                rows["flops"] = models[0].cell.flops()
        table[family] = rows
    return {"windows": [len(train), len(validation), len(test)], "epochs": EPOCHS, "seeds": len(SEEDS), "table": table}


ROWS = {"open-loop": open_loop}


def main() -> None:
    """Run the parts named on the command line."""
    unknown = [name for name in sys.argv[1:] if name not in ROWS]
    if unknown or len(sys.argv) < 2:
        sys.exit(f"name parts of {', '.join(ROWS)}; found {unknown}")
    for name in sys.argv[1:]:
        record = {"machine": {"processor": processor(), "threads": 1}, "versions": versions(), **ROWS[name]()}
        RESULTS.mkdir(exist_ok=True)
        write_text(RESULTS / f"iclrnn-{name}.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
