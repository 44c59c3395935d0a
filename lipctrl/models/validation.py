"""How good a model is: errors over the horizon in raw units, under noise, against least squares; what is proved."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.all_active import applies
from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.certificate import Certificate, Witness
from lipctrl.certify.lower import gains_at, witness
from lipctrl.models.baselines import Features, baselines
from lipctrl.models.model import ProcessModel
from lipctrl.models.sensitivity import data_box
from lipctrl.models.windows import Windows
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
NOISE = {"inputs": (0.05, 0.1), "start": (0.05, 0.1)}  # Gaussian, standard deviations in scaled units
SAMPLES = 400  # points at which the Jacobian is looked at
CALLS = 50
LARGEST = 1000  # hidden units up to which the end-to-end semidefinite programme is solved: minutes beyond


@dataclass(frozen=True)
class Validation:
    """Errors on test windows.

    Attributes:
        mse: mean square in scaled units, all steps and states.
        rmse: root mean square per step and state in raw units, (T, n).
        noisy: mean square with noise of `NOISE`, by name such as "inputs 0.05", in scaled units.
        parameters, flops: numbers that were learned; multiplications and additions per window.
        microseconds: median of one prediction over the horizon, 0 where it was not measured.
    """

    mse: float
    rmse: Array
    noisy: Mapping[str, float]
    parameters: int
    flops: int = 0
    microseconds: float = 0.0


def disturbed(test: Windows, scaled: tuple[Array, Array]) -> Iterator[tuple[str, Array, Array]]:
    """(name, starts, inputs) with every noise of `NOISE`, the same for every model.

    Args:
        scaled: widths of a state and of an input in raw units per scaled unit, (n,) and (m,).
    """
    for what, levels in NOISE.items():
        for level in levels:
            rng, starts, inputs = np.random.default_rng(0), test.starts, test.inputs
            if what == "start":
                starts = starts + level * scaled[0] * rng.normal(size=starts.shape)
            else:
                inputs = inputs + level * scaled[1] * rng.normal(size=inputs.shape)
            yield f"{what} {level:g}", starts, inputs


def validate(model: ProcessModel, test: Windows) -> Validation:
    """Errors of a model on test windows."""
    s = model.scaling

    def squares(starts: Array, inputs: Array) -> Array:
        return np.asarray(((model.predict(starts, inputs) - test.states) / s.state_width) ** 2)

    times = []
    for k in range(CALLS):
        begin = time.perf_counter()
        model.predict(test.starts[k % len(test)], test.inputs[k % len(test)])
        times.append(time.perf_counter() - begin)
    clean = squares(test.starts, test.inputs)
    noisy = {key: float(squares(p, u).mean()) for key, p, u in disturbed(test, (s.state_width, s.input_width))}
    return Validation(
        float(clean.mean()),
        np.sqrt(clean.mean(0)) * s.state_width,
        noisy,
        sum(w.numel() for w in model.cell.parameters()),
        model.cell.flops(),
        1e6 * float(np.median(times)),
    )


def validate_baselines(train: Windows, model: ProcessModel, test: Windows) -> dict[str, Validation]:
    """The same errors of persistence and least squares, in the model's scaling."""
    s, found = model.scaling, {}
    y = s.scaled(test)[2]
    for name, baseline in baselines(train, s).items():

        def squares(starts: Array, inputs: Array, predict: Features = baseline.predict) -> Array:
            p, u = (starts - s.state_low) / s.state_width, (inputs - s.input_low) / s.input_width
            return np.asarray((predict(p, u) - y) ** 2)

        clean = squares(test.starts, test.inputs)
        noisy = {key: float(squares(p, u).mean()) for key, p, u in disturbed(test, (s.state_width, s.input_width))}
        rmse, parameters = np.sqrt(clean.mean(0)) * s.state_width, baseline.parameters
        found[name] = Validation(float(clean.mean()), rmse, noisy, parameters, 2 * parameters)
    return found


def worst_error(model: ProcessModel, test: Windows) -> Array:
    """The largest error of every state after every step on test windows, (T, n), raw units: an estimate from below."""
    return np.asarray(np.abs(model.predict(test.starts, test.inputs) - test.states).max(0))


def within_two_deviations(model: ProcessModel, test: Windows) -> float:
    """Share of one-step test errors within two of the deviations that the model expects: 95 % if those are right.

    Raises:
        UserError: a family that expects none.
    """
    deviation = model.deviation(test.starts, test.inputs[:, 0])
    error = model.predict(test.starts, test.inputs)[:, 0] - test.states[:, 0]
    return float((np.abs(error) <= 2 * deviation).mean())


def horizon_norm(model: ProcessModel) -> NormPair:
    """l2 to l2 of everything that enters to everything that is predicted, per range of the training data."""
    s, T = model.scaling, model.horizon
    inputs = np.concatenate([s.state_width, np.tile(s.input_width, T)])
    return NormPair(input_scale=tuple(inputs.tolist()), output_scale=tuple(np.tile(s.state_width, T).tolist()))


@dataclass(frozen=True)
class HorizonGain:
    """What is proved of a model over its whole horizon in `horizon_norm`, and what is attained.

    A constant of 1 says that a change over the whole range of one signal moves the predictions together by at most
    their range.

    Attributes:
        everywhere: certificate for all starts and inputs. on_data: for the range of the training data, or None.
        attained: the largest gain at test windows.
    """

    everywhere: Certificate
    on_data: Certificate | None
    attained: Witness


def horizon_gain(net: PlainNet, model: ProcessModel, test: Windows) -> HorizonGain:
    """The smallest proved constants: of the all-active network where it applies, of the end-to-end LMI otherwise.

    Args:
        net: `model.to_plain()`.
    """
    norm, box = horizon_norm(model), data_box(model, steps=model.horizon)
    methods = ["product", "all-active"] if applies(net) else ["product"]
    if not applies(net) and sum(net.widths) <= LARGEST:
        methods.append("lipsdp-neuron")
    everywhere = [c for method in methods for c in upper_bounds(net, norm, method=method)]
    on_data = upper_bounds(net, norm, region=box, method="jacobian")
    x = np.clip(np.hstack([test.starts, test.inputs.reshape(len(test), -1)])[:SAMPLES], box.low, box.high)
    gains, directions = gains_at(net, norm, x)
    best = int(np.argmax(gains))
    return HorizonGain(
        min(everywhere, key=lambda c: c.bound),
        min(on_data, key=lambda c: c.bound, default=None),
        witness(net, norm, x[best], directions[best], "sampling"),
    )


def as_json(found: Validation) -> dict[str, Any]:
    """For a run's record."""
    return {
        "mse": found.mse,
        "rmse": found.rmse.tolist(),
        "noisy": dict(found.noisy),
        "parameters": found.parameters,
        "flops": found.flops,
    }
