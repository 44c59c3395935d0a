"""How good a model is: errors over the horizon in raw units, under noise, against least squares; what is proved."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.all_active import all_active_certificate
from lipctrl.certify.certificate import Certificate, Witness
from lipctrl.certify.lower import gains_at, witness
from lipctrl.certify.product import product_certificate
from lipctrl.models.baselines import baselines
from lipctrl.models.model import ProcessModel
from lipctrl.models.windows import Windows
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
NOISE = (0.0, 0.05, 0.1)  # on start and inputs, in scaled units
SAMPLES = 400  # points at which the Jacobian is looked at
CALLS = 50


@dataclass(frozen=True)
class Validation:
    """Errors on test windows.

    Attributes:
        mse: mean square in scaled units, all steps and states.
        rmse: root mean square per step and state in raw units, (T, n).
        noisy: mean square for each noise level on start and inputs, Gaussian, in scaled units.
        parameters, flops: numbers that were learned; operations per window, 0 where they do not count.
        microseconds: median of one prediction over the horizon, 0 where it was not measured.
    """

    mse: float
    rmse: Array
    noisy: Mapping[float, float]
    parameters: int
    flops: int = 0
    microseconds: float = 0.0


def noisy(model: ProcessModel, test: Windows, level: float) -> Array:
    """Scaled errors (W, T, n) with noise on starts and inputs; the targets stay clean."""
    rng, s = np.random.default_rng(0), model.scaling
    starts = test.starts + level * s.state_width * rng.normal(size=test.starts.shape)
    inputs = test.inputs + level * s.input_width * rng.normal(size=test.inputs.shape)
    return np.asarray((model.predict(starts, inputs) - test.states) / s.state_width)


def validate(model: ProcessModel, test: Windows) -> Validation:
    """Errors of a model on test windows."""
    errors = {level: noisy(model, test, level) for level in NOISE}
    times = []
    for k in range(CALLS):
        begin = time.perf_counter()
        model.predict(test.starts[k % len(test)], test.inputs[k % len(test)])
        times.append(time.perf_counter() - begin)
    return Validation(
        float((errors[0.0] ** 2).mean()),
        np.sqrt((errors[0.0] ** 2).mean(0)) * model.scaling.state_width,
        {level: float((error**2).mean()) for level, error in errors.items()},
        sum(w.numel() for w in model.cell.parameters()),
        model.cell.flops(),
        1e6 * float(np.median(times)),
    )


def validate_baselines(train: Windows, model: ProcessModel, test: Windows) -> dict[str, Validation]:
    """The same errors of persistence and least squares, in the model's scaling."""
    s, found = model.scaling, {}
    p, u, y = s.scaled(test)
    for name, baseline in baselines(train, s).items():
        rows = {}
        for level in NOISE:
            rng = np.random.default_rng(0)
            start, inputs = p + level * rng.normal(size=p.shape), u + level * rng.normal(size=u.shape)
            rows[level] = baseline.predict(start, inputs) - y
        rmse = np.sqrt((rows[0.0] ** 2).mean(0)) * s.state_width
        mean = {level: float((error**2).mean()) for level, error in rows.items()}
        found[name] = Validation(mean[0.0], rmse, mean, baseline.parameters)
    return found


def horizon_norm(model: ProcessModel) -> NormPair:
    """l2 to l2 of everything that enters to everything that is predicted, per range of the training data."""
    s, T = model.scaling, model.horizon
    inputs = np.concatenate([s.state_width, np.tile(s.input_width, T)])
    return NormPair(input_scale=tuple(inputs.tolist()), output_scale=tuple(np.tile(s.state_width, T).tolist()))


def horizon_bracket(net: PlainNet, model: ProcessModel, test: Windows) -> tuple[Certificate | None, Witness]:
    """What is proved of the model over its whole horizon, and the largest gain at test windows, which is attained.

    The norm is `horizon_norm`: a constant of 1 says that a change over the whole range of one signal moves the
    predictions together by at most their range.
    """
    norm = horizon_norm(model)
    x = np.hstack([test.starts, test.inputs.reshape(len(test), -1)])[:SAMPLES]
    gains, directions = gains_at(net, norm, x)
    best = int(np.argmax(gains))
    certificates = [c for c in (all_active_certificate(net, norm), product_certificate(net, norm)) if c is not None]
    upper = min(certificates, key=lambda c: c.bound, default=None)
    return upper, witness(net, norm, x[best], directions[best], "sampling")


def as_json(found: Validation) -> dict[str, Any]:
    """For a run's record."""
    return {
        "mse": found.mse,
        "rmse": found.rmse.tolist(),
        "noisy": {f"{level:g}": value for level, value in found.noisy.items()},
        "parameters": found.parameters,
        "flops": found.flops,
    }
