"""What sensor errors do to predictions: bounds above every attack at corners and steps, for all network families."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from lipctrl.envs.quad_tank import quad_tank_plant
from lipctrl.files import UserError
from lipctrl.models.cells import CELLS
from lipctrl.models.fit import FitSettings, fit
from lipctrl.models.model import ProcessModel, Scaling, build
from lipctrl.models.sensitivity import data_box, prediction_error, start_gains
from lipctrl.models.windows import from_plant
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.problem import OCP, regulation
from lipctrl.plant import Plant, Signal
from lipctrl.symbolic.process import one_period

N, M, T = 2, 1, 4
SCALING = Scaling(np.array([1.0, 300.0]), np.array([2.0, 50.0]), np.array([0.5]), np.array([7.0]))
NAMES = ("c [mol]", "T [K]"), ("feed [mol]",)


def model(family: str, seed: int) -> ProcessModel:
    torch.manual_seed(seed)
    cell = build(family, N, M, width=4, horizon=T).double()
    with torch.no_grad():
        for name, weight in cell.named_parameters():
            if name.startswith("from_"):
                weight.copy_(0.5 * torch.randn_like(weight))
    cell.project_(dict(cell.named_parameters()))
    return ProcessModel(family, cell, SCALING, *NAMES, 0.1, "h")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", [name for name in CELLS if name != "lstm"])
def test_no_error_of_the_sensors_moves_a_prediction_further_than_proved(family: str) -> None:
    for seed in range(3):
        made = model(family, seed)
        bounds, region = start_gains(made)
        assert (region is None) == made.cell.convex
        error = np.array([0.2, 6.0])
        allowed = prediction_error(bounds, error)
        rng, widest = np.random.default_rng(seed), np.zeros((T, N))
        box = data_box(made, steps=1)
        low, high = np.array(box.low[:N]) + error, np.array(box.high[:N]) - error  # both ends stay in the region
        for _ in range(200):
            x = rng.uniform(low, high)
            u = SCALING.input_low + rng.random((T, M)) * SCALING.input_width
            for signs in itertools.product((-1, 1), repeat=N):
                moved = np.abs(made.predict(x + error * np.array(signs), u) - made.predict(x, u))
                widest = np.maximum(widest, moved)
        assert (widest <= allowed).all() and widest.max() > 0.02 * allowed.max()


def test_an_affine_model_attains_the_bound() -> None:
    made = model("iclrnn", 0)
    with torch.no_grad():
        made.cell.get_parameter("out").fill_(-50.0)  # softplus(-50): nothing comes from the hidden units
    error = np.array([0.1, 2.0])
    allowed = prediction_error(start_gains(made)[0], error)
    x, u = np.array([2.0, 320.0]), np.full((T, M), 3.0)
    reached = np.zeros((T, N))
    for signs in itertools.product((-1, 1), repeat=N):
        reached = np.maximum(reached, np.abs(made.predict(x + error * np.array(signs), u) - made.predict(x, u)))
    np.testing.assert_allclose(reached, allowed, rtol=1e-6)


def tanks() -> tuple[Plant, OCP, ProcessModel]:
    """The quadruple tank as its own model would have it: the learned model is the plant, so that it has no error."""
    plant = quad_tank_plant()
    windows = from_plant(plant, windows=600, horizon=3, seed=0)
    (made,) = fit(FitSettings(width=6, epochs=15), *windows.split(0)[:2], seeds=(0,)).models
    x_e, _ = plant.equilibrium
    high = tuple(np.append(x_e[:2] + 0.4, [np.inf, np.inf]))
    limits = Signal(plant.state.names, (-np.inf,) * 4, high)
    tight = replace(plant, update=one_period(made, plant), ode=None, state=limits)
    # a set-point beyond the limits: MPC drives the levels against them
    ocp = replace(regulation(tight, np.eye(4), 0.01 * np.eye(2), horizon=5), x_ref=x_e + np.array([3.0, 3.0, 0.0, 0.0]))
    return tight, ocp, made


@pytest.mark.parametrize("tightened", [False, True])
def test_mpc_that_keeps_the_reserve_is_not_pushed_over_a_limit_by_its_sensors(tightened: bool) -> None:
    """Every corner of the sensors' errors is tried at every step, and the worst is taken."""
    plant, ocp, made = tanks()
    error = np.array([0.04, 0.04, 0.02, 0.02])
    reserve = prediction_error(start_gains(made, steps=1)[0], error)[-1]
    mpc = NMPC(plant, ocp.with_reserve(reserve) if tightened else ocp)
    x, worst, planned = plant.equilibrium[0], -np.inf, 0
    corners = error * np.array(list(itertools.product((-1, 1), repeat=4)))
    for _ in range(25):
        solutions = [mpc.solve(x + corner) for corner in corners]
        kept = [s for s in solutions if s.feasible]
        planned += len(kept)
        after = [plant.step(x, s.inputs[0]) for s in kept]
        excess = [float(np.max(y - plant.state.high)) for y in after]
        worst, x = max(worst, *excess), after[int(np.argmax(excess))]
    assert planned == 25 * len(corners)
    assert worst <= 1e-6 if tightened else worst > 0.02, worst


def test_bad_input() -> None:
    bounds, _ = start_gains(model("iclrnn", 0), steps=2)
    assert bounds.shape == (2, N, N)
    for error in ([0.1], [0.1, -1.0], [0.1, np.inf]):
        with pytest.raises(UserError, match="sensor errors need 2"):
            prediction_error(bounds, error)
    with pytest.raises(UserError, match="multiplies its gates"):
        start_gains(model("lstm", 0))
