"""A process model as the dynamics of MPC: one sampling period of the plant, input held, as a CasADi function."""

import casadi as ca

from lipctrl.files import UserError
from lipctrl.models.model import ProcessModel
from lipctrl.symbolic.network import to_casadi

SAME = 1e-6  # relative difference of times that counts as none


def one_period(
    model: ProcessModel, *, states: tuple[str, ...], inputs: tuple[str, ...], dt: float, disturbances: int
) -> ca.Function:
    """(x, u, w) -> x+ in raw units, w without effect: the model over as many of its steps as a period has.

    Args:
        states, inputs: names with units of the plant's signals, which must be the model's.
        dt: the plant's sampling time, in the model's time unit. disturbances: size of w.

    Raises:
        UserError: a model of another plant, a period that is not a whole number of the steps that it was trained
            for, or a family without symbolic form.
    """
    if (model.state_names, model.input_names) != (states, inputs):
        raise UserError(
            f"the model is of another plant: it knows {', '.join(model.state_names)} and "
            f"{', '.join(model.input_names)}; the plant has {', '.join(states)} and {', '.join(inputs)}"
        )
    steps = round(dt / model.dt)
    if steps < 1 or abs(steps * model.dt - dt) > SAME * dt or steps > model.horizon:
        raise UserError(
            f"the plant is sampled every {dt:g} {model.time_unit}; the model knows 1 to {model.horizon} steps of "
            f"{model.dt:g} {model.time_unit}"
        )
    network = to_casadi(model.to_plain(steps=steps))
    x, u, w = ca.MX.sym("x", len(states)), ca.MX.sym("u", len(inputs)), ca.MX.sym("w", disturbances)
    after = network(ca.vertcat(x, ca.repmat(u, steps, 1)))[-len(states) :]
    return ca.Function("update", [x, u, w], [after], ["x", "u", "w"], ["x_next"])
