"""A process model as the dynamics of MPC: one sampling period of the plant, input held, as a CasADi function."""

import casadi as ca
import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.models.cell import numbers
from lipctrl.models.model import ProcessModel
from lipctrl.models.recurrent import Lstm
from lipctrl.plant import Plant
from lipctrl.symbolic.network import to_casadi

SAME = 1e-6  # relative difference of times that counts as none
Array = NDArray[np.float64]


def check_plant(model: ProcessModel, plant: Plant) -> int:
    """Steps of the model in one sampling period of the plant.

    Raises:
        UserError: a model of another plant, or a period that is not a whole number of the steps it was trained for.
    """
    states, inputs, dt = plant.state.names, plant.input.names, plant.dt
    if (model.state_names, model.input_names) != (states, inputs):
        raise UserError(
            f"the model is of another plant: it knows {', '.join(model.state_names)} and "
            f"{', '.join(model.input_names)}; {plant.name} has {', '.join(states)} and {', '.join(inputs)}"
        )
    steps = round(dt / model.dt)
    if steps < 1 or abs(steps * model.dt - dt) > SAME * dt or steps > model.horizon:
        raise UserError(
            f"the plant is sampled every {dt:g} {model.time_unit}; the model knows 1 to {model.horizon} steps of "
            f"{model.dt:g} {model.time_unit}"
        )
    return steps


def unrolled(model: ProcessModel, *, steps: int) -> ca.Function:
    """(x_0, u_0, .., u_{steps-1}) stacked -> (x_1, .., x_steps) stacked, in raw units.

    Raises:
        UserError: more steps than the model was trained for, or weights that break its claim to be convex.
    """
    if not isinstance(model.cell, Lstm):
        return to_casadi(model.to_plain(steps=steps))
    if not 1 <= steps <= model.horizon:
        raise UserError(f"the model unrolls over 1 to {model.horizon} steps, asked for {steps}")
    s, n, m = model.scaling, len(model.state_names), len(model.input_names)
    whole = ca.MX.sym("x", n + steps * m)
    p = (whole[:n] - s.state_low) / s.state_width
    u = [(whole[n + k * m : n + (k + 1) * m] - s.input_low) / s.input_width for k in range(steps)]
    states = [y * s.state_width + s.state_low for y in _lstm(model.cell, p, u)]
    return ca.Function("lstm", [whole], [ca.vertcat(*states)], ["x"], ["y"])


def _lstm(cell: Lstm, p: ca.MX, u: list[ca.MX]) -> list[ca.MX]:
    """Scaled states after every step, as in `Lstm.forward`."""
    w1, u1, w2, u2, out = (ca.DM(numbers(w)) for w in cell.matrices())
    b1, b2, bo = (ca.DM(numbers(b)) for b in (cell.b1, cell.b2, cell.bo))

    def step(gates: ca.MX, c: ca.MX) -> tuple[ca.MX, ca.MX]:
        i, f, g, o = ca.vertsplit(gates, cell.width)
        c = _sigmoid(f) * c + _sigmoid(i) * ca.tanh(g)
        return _sigmoid(o) * ca.tanh(c), c

    h1 = h2 = c1 = c2 = ca.MX.zeros(cell.width)
    found = []
    for now in u:
        h1, c1 = step(w1 @ ca.vertcat(p, now) + b1 + u1 @ h1, c1)
        h2, c2 = step(w2 @ h1 + u2 @ h2 + b2, c2)
        found.append(out @ h2 + bo)
    return found


def _sigmoid(z: ca.MX) -> ca.MX:
    return 0.5 + 0.5 * ca.tanh(z / 2)  # does not overflow


def one_period(model: ProcessModel, plant: Plant) -> ca.Function:
    """(x, u, w) -> x+ in raw units, w without effect: the model over as many of its steps as a period has.

    Raises:
        UserError: see `check_plant` and `unrolled`.
    """
    steps = check_plant(model, plant)
    network, n = unrolled(model, steps=steps), len(plant.state)
    x, u, w = ca.MX.sym("x", n), ca.MX.sym("u", len(plant.input)), ca.MX.sym("w", len(plant.disturbance))
    after = network(ca.vertcat(x, ca.repmat(u, steps, 1)))[-n:]
    return ca.Function("update", [x, u, w], [after], ["x", "u", "w"], ["x_next"])
