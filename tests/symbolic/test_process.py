"""A process model as a plant's dynamics: equal to its own prediction with the input held; models of other plants."""

import numpy as np
import pytest
import torch

from lipctrl.files import UserError
from lipctrl.models.model import ProcessModel, Scaling, build
from lipctrl.symbolic.process import one_period

STATES, INPUTS = ("a [K]", "b [cm]"), ("u [V]",)


def model(family: str = "iclrnn") -> ProcessModel:
    torch.manual_seed(0)
    cell = build(family, 2, 1, width=5, horizon=6).double()
    scaling = Scaling(np.array([1.0, 2.0]), np.array([3.0, 4.0]), np.array([0.5]), np.array([2.0]))
    return ProcessModel(family, cell, scaling, STATES, INPUTS, 0.1, "h")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_period_is_the_prediction_with_the_input_held(steps: int) -> None:
    made = model()
    update = one_period(made, states=STATES, inputs=INPUTS, dt=0.1 * steps, disturbances=2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, u = rng.normal(size=2), rng.normal(size=1)
        expected = made.predict(x, np.tile(u, (steps, 1)))[-1]
        np.testing.assert_allclose(np.array(update(x, u, np.ones(2))).ravel(), expected, rtol=1e-10)


def test_refusals() -> None:
    good = {"states": STATES, "inputs": INPUTS, "dt": 0.1, "disturbances": 0}
    for changes, words in (
        ({"states": ("a [K]", "c [cm]")}, "another plant"),
        ({"inputs": ("v [V]",)}, "another plant"),
        ({"dt": 0.15}, "sampled every 0.15 h"),
        ({"dt": 0.7}, "1 to 6 steps"),
    ):
        with pytest.raises(UserError, match=words):
            one_period(model(), **{**good, **changes})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="multiplies its gates"):
        one_period(model("lstm"), **good)  # type: ignore[arg-type]
