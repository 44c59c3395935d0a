"""Validation: errors from their definition, noise apart, gains proved above what is attained."""

import numpy as np
import pytest

from lipctrl.envs.quad_tank import quad_tank_plant
from lipctrl.models.baselines import baselines
from lipctrl.models.fit import FitSettings, fit
from lipctrl.models.model import ProcessModel
from lipctrl.models.validation import NOISE, horizon_gain, horizon_norm, validate, validate_baselines, worst_error
from lipctrl.models.windows import Windows, from_plant


@pytest.fixture(scope="module")
def data() -> tuple[Windows, Windows, Windows]:
    return from_plant(quad_tank_plant(), windows=300, horizon=4, seed=0).split(0)


def trained(data: tuple[Windows, Windows, Windows], family: str) -> ProcessModel:
    settings = FitSettings(family=family, width=6, epochs=5)  # type: ignore[arg-type]
    return fit(settings, *data[:2], seeds=(0,)).models[0]


def test_errors_are_what_they_are_called(data: tuple[Windows, Windows, Windows]) -> None:
    model, test = trained(data, "iclrnn"), data[2]
    found, error = validate(model, test), model.predict(test.starts, test.inputs) - test.states
    np.testing.assert_allclose(found.rmse, np.sqrt((error**2).mean(0)))
    assert found.mse == pytest.approx(((error / model.scaling.state_width) ** 2).mean())
    np.testing.assert_array_equal(worst_error(model, test), np.abs(error).max(0))
    assert (worst_error(model, test) >= found.rmse).all() and found.flops == model.cell.flops() and found.microseconds
    assert set(found.noisy) == {f"{what} {level:g}" for what, levels in NOISE.items() for level in levels}


def test_noise_on_an_affine_map_adds_its_gain_squared(data: tuple[Windows, Windows, Windows]) -> None:
    """E|f(x + s e)|^2 - |f(x)|^2 = s^2 |A|_F^2 for an affine map, of the inputs and of the start apart."""
    model, (train, _, test) = trained(data, "iclrnn"), data
    found = validate_baselines(train, model, test)["affine"]
    s, rng = model.scaling, np.random.default_rng(0)
    p, u = rng.random((60, 4)), rng.random((60, 4, 2))

    predict = baselines(train, s)["affine"].predict
    A = np.linalg.lstsq(np.hstack([np.ones((60, 1)), p, u.reshape(60, -1)]), predict(p, u).reshape(60, -1), rcond=None)[
        0
    ]
    for what, rows in (("start", A[1:5]), ("inputs", A[5:])):
        for level in NOISE[what]:
            expected = level**2 * (rows**2).sum() / A.shape[1]
            assert found.noisy[f"{what} {level:g}"] - found.mse == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("family", ["iclrnn", "rnn", "lrnn"])
def test_the_gain_over_the_horizon_is_proved_above_what_is_attained(
    family: str, data: tuple[Windows, Windows, Windows]
) -> None:
    model = trained(data, family)
    net = model.to_plain()
    found = horizon_gain(net, model, data[2])
    assert found.everywhere.verify(net) and found.everywhere.region is None
    assert found.on_data is not None and found.on_data.verify(net)
    assert 0 < found.attained.bound <= min(found.everywhere.bound, found.on_data.bound)
    assert found.attained.norm == horizon_norm(model)
    if family == "rnn":  # the product of norms says nothing here
        assert found.everywhere.method == "lipsdp-neuron"
