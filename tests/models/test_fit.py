"""Training: deterministic, seeds apart, resumed exactly, stopped early; better than least squares where it can be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lipctrl.envs.cstr import LEVEL, P, cstr_plant
from lipctrl.envs.linear import linear_plant
from lipctrl.files import UserError
from lipctrl.models.baselines import baselines
from lipctrl.models.cells import CELLS
from lipctrl.models.fit import FitSettings, Trainer, fit
from lipctrl.models.reactor import reactor_grid
from lipctrl.models.validation import within_two_deviations
from lipctrl.models.windows import Windows, from_plant
from lipctrl.plant import Plant, Signal, discrete

PLANT = linear_plant([[0.9, 0.2], [0.0, 0.8]], [[0.1], [1.0]], dt=0.5, state_limit=50.0, input_limit=1.0)


def data(windows: int = 200) -> tuple[Windows, Windows, Windows]:
    return from_plant(PLANT, windows=windows, horizon=3, seed=0).split(0)


def small(family: str = "iclrnn", **changes: object) -> FitSettings:
    return FitSettings(**{"family": family, "width": 6, "epochs": 4, "batch": 64, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("family", CELLS)
def test_a_batch_of_seeds_is_the_seeds_one_by_one(family: str) -> None:
    train, validation, _ = data()
    noisy = small(family, target_noise=0.1, input_noise=0.05, state_noise=0.05)
    both = fit(noisy, train, validation, seeds=(3, 7))
    for k, seed in enumerate((3, 7)):
        alone = fit(noisy, train, validation, seeds=(seed,))
        np.testing.assert_allclose(both.history[:, k], alone.history[:, 0], rtol=1e-3)
    again = fit(noisy, train, validation, seeds=(3, 7))
    assert again.history.tobytes() == both.history.tobytes()
    assert not np.allclose(both.history[:, 0], both.history[:, 1], rtol=1e-3)


@pytest.mark.parametrize("family", ["iclrnn", "lstm"])
def test_a_resumed_run_repeats_the_uninterrupted_one(family: str, tmp_path: Path) -> None:
    train, validation, _ = data()
    whole = fit(small(family), train, validation, seeds=(0, 1))
    first = Trainer(small(family), train, validation, seeds=(0, 1))
    first.epoch()
    first.epoch()
    first.save(tmp_path / "c.pt")
    second = Trainer(small(family), train, validation, seeds=(0, 1))
    second.restore(tmp_path / "c.pt")
    while not second.done:
        second.epoch()
    assert np.array(second.history).tobytes() == whole.history.tobytes()
    for a, b in zip(second.result({}).models, whole.models, strict=True):
        for x, y in zip(a.cell.parameters(), b.cell.parameters(), strict=True):
            assert torch.equal(x, y)
    (tmp_path / "c.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="whole checkpoint"):
        second.restore(tmp_path / "c.pt")


def test_the_best_weights_are_kept_and_patience_ends_a_run() -> None:
    train, validation, _ = data(160)
    fitted = fit(small(epochs=60, learning_rate=0.5, patience=3, batch=16), train, validation, seeds=(0,))
    best = int(fitted.history.argmin())
    assert len(fitted.history) == best + 4 < 60
    model = fitted.models[0]
    error = (model.predict(validation.starts, validation.inputs) - validation.states) / model.scaling.state_width
    assert (error**2).mean() == pytest.approx(fitted.history.min(), rel=1e-3)
    assert model.facts["validation_mse"] == pytest.approx(fitted.history.min())


def test_a_loss_that_is_not_finite_stops_with_advice() -> None:
    train, validation, _ = data()
    with pytest.raises(UserError, match="lower --learning-rate"):
        fit(small("icrnn", learning_rate=1e30, epochs=50), train, validation, seeds=(0,))


def test_the_one_step_model_learns_the_noise_of_every_state() -> None:
    """x+ = A x + B u + e with deviations 0.3 and 0.05: the windows are steps of it, the likelihood finds both."""
    rng, A, B, sigma = np.random.default_rng(0), np.diag([0.9, 0.8]), np.array([0.1, 1.0]), np.array([0.3, 0.05])
    x, u = rng.uniform(-2, 2, (1500, 2)), rng.uniform(-1, 1, (1500, 1, 1))
    after = x @ A.T + u[:, 0] * B + sigma * rng.normal(size=x.shape)
    windows = Windows(x, u, after[:, None], ("a [m]", "b [m]"), ("u [N]",), 1.0, "s")
    train, validation, test = windows.split(0)
    settings = small("gaussian", width=16, epochs=60, learning_rate=1e-2)
    (model,) = fit(settings, train, validation, seeds=(0,)).models
    found = model.deviation(test.starts, test.inputs[:, 0]).mean(0)
    np.testing.assert_allclose(found, sigma, rtol=0.2)
    assert within_two_deviations(model, test) == pytest.approx(0.954, abs=0.03)
    with pytest.raises(UserError, match="gaussian does"):
        fit(small(epochs=1), train, validation, seeds=(0,)).models[0].deviation(x, u[:, 0])


def test_bad_settings() -> None:
    for changes in (
        {"epochs": 0},
        {"width": 0},
        {"learning_rate": 0.0},
        {"target_noise": -1.0},
        {"activation": "tanh"},
    ):
        with pytest.raises(ValueError):
            small(**changes)  # type: ignore[arg-type]


def squared(sign: float) -> Plant:
    """x+ = 0.8 x + sign 0.3 u^2, convex or concave in the input."""
    update = discrete(lambda x, u, w: 0.8 * x + sign * 0.3 * u**2, 1, 1, 0)
    signals = [Signal((name,), (-1.0,), (1.0,)) for name in ("x [-]", "u [-]")]
    return Plant("squared", *signals, Signal((), (), ()), 1.0, update, None, (np.zeros(1), np.zeros(1)))


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "low", "high"), [(1.0, 0.0, 0.05), (-1.0, 0.8, 1.2)])
def test_the_convex_model_learns_what_is_convex_and_nothing_else(sign: float, low: float, high: float) -> None:
    """Against the affine map: the square is learned, its negative cannot be."""
    train, validation, test = from_plant(squared(sign), windows=2000, horizon=3, seed=0).split(0)
    (model,) = fit(FitSettings(width=16, epochs=150, batch=64), train, validation, seeds=(0,)).models
    p, u, y = model.scaling.scaled(test)
    affine = ((baselines(train, model.scaling)["affine"].predict(p, u) - y) ** 2).mean()
    error = (((model.predict(test.starts, test.inputs) - test.states) / model.scaling.state_width) ** 2).mean()
    assert low <= error / affine <= high


@pytest.mark.slow
def test_the_reactor_is_learned_to_1e_5() -> None:
    train, validation, test = reactor_grid(cstr_plant(), P, LEVEL).split(123)
    (model,) = fit(FitSettings(epochs=60), train, validation, seeds=(0,)).models
    error = (((model.predict(test.starts, test.inputs) - test.states) / model.scaling.state_width) ** 2).mean()
    assert error < 1.5e-5
