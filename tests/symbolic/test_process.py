"""A process model as a plant's dynamics: equal to its own prediction with the input held; models of other plants."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lipctrl.files import UserError
from lipctrl.models.cells import CELLS
from lipctrl.models.model import ProcessModel, Scaling, build
from lipctrl.plant import Plant, Signal, discrete
from lipctrl.symbolic.process import check_plant, one_period, unrolled

STATES, INPUTS = ("a [K]", "b [cm]"), ("u [V]",)


def model(family: str = "iclrnn") -> ProcessModel:
    torch.manual_seed(0)
    cell = build(family, 2, 1, width=5, horizon=6).double()
    cell.project_(dict(cell.named_parameters()))
    scaling = Scaling(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0.5]), np.array([2.0]))
    return ProcessModel(family, cell, scaling, STATES, INPUTS, 0.1, "h")  # type: ignore[arg-type]


def plant(dt: float, states: tuple[str, ...] = STATES, inputs: tuple[str, ...] = INPUTS) -> Plant:
    signals = [Signal(names, (-1.0,) * len(names), (1.0,) * len(names)) for names in (states, inputs, ("p", "q"))]
    update = discrete(lambda x, u, w: x, 2, 1, 2)
    return Plant("two", *signals, dt, update, None, (np.zeros(2), np.zeros(1)))


@pytest.mark.parametrize("family", CELLS)
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_period_is_the_prediction_with_the_input_held(steps: int, family: str) -> None:
    made = model(family)
    update = one_period(made, plant(0.1 * steps))
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, u = rng.normal(size=2), rng.normal(size=1)
        expected = made.predict(x, np.tile(u, (steps, 1)))[-1]
        np.testing.assert_allclose(np.array(update(x, u, np.ones(2))).ravel(), expected, rtol=1e-9)


@pytest.mark.parametrize("family", ["iclrnn", "lstm"])
def test_the_function_over_the_horizon_is_the_prediction(family: str) -> None:
    made, rng = model(family), np.random.default_rng(1)
    x, u = rng.normal(size=2), rng.normal(size=(4, 1))
    found = np.array(unrolled(made, steps=4)(np.concatenate([x, u.ravel()]))).reshape(4, 2)
    np.testing.assert_allclose(found, made.predict(x, u), rtol=1e-9)
    with pytest.raises(UserError, match="1 to 6 steps"):
        unrolled(made, steps=7)


def test_refusals() -> None:
    assert check_plant(model(), plant(0.3)) == 3
    for other, words in (
        (plant(0.1, states=("a [K]", "c [cm]")), "another plant"),
        (plant(0.1, inputs=("v [V]",)), "another plant"),
        (plant(0.15), "sampled every 0.15 h"),
        (replace(plant(0.1), dt=0.7), "1 to 6 steps"),
    ):
        with pytest.raises(UserError, match=words):
            one_period(model(), other)
