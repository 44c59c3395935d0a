"""What a bounded error of the measured start does to a model's predictions: proved, per sensor, state and step.

With |x_0 - y_0| <= r entrywise and the same inputs, every predicted state differs by at most G r, where G bounds the
moduli of the Jacobian's entries: everywhere for models whose hidden units feed each other with nonnegative weights
(`certify.all_active`), on the range of the training data for others (`certify.jacobian`).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.certify.all_active import applies, gain_bounds
from lipctrl.certify.certificate import Box
from lipctrl.certify.enclosure import UNIT
from lipctrl.certify.jacobian import gains
from lipctrl.files import UserError
from lipctrl.models.model import ProcessModel

Array = NDArray[np.float64]


def data_box(model: ProcessModel, *, steps: int) -> Box:
    """The range of the training data: of the start state, and of the inputs at every step."""
    s = model.scaling
    low = np.concatenate([s.state_low, np.tile(s.input_low, steps)])
    width = np.concatenate([s.state_width, np.tile(s.input_width, steps)])
    return Box(tuple(low.tolist()), tuple((low + width).tolist()))


def start_gains(model: ProcessModel, *, steps: int | None = None) -> tuple[Array, Box | None]:
    """(G (T, n, n), region): after k+1 steps, state i moves by at most G[k, i, j] per unit of error of sensor j.

    Args:
        steps: T; by default all that the model was trained for.

    Returns:
        The bounds in raw units, proved on the region, which is the range of the training data, or None: everywhere.

    Raises:
        UserError: the family is no network (lstm).
    """
    T, n = steps or model.horizon, len(model.state_names)
    net = model.to_plain(steps=T)
    region = None if applies(net) else data_box(model, steps=T)
    low, high = gain_bounds(net) if region is None else gains(net, region)
    return np.maximum(-low, high)[:, :n].reshape(T, n, n), region


def prediction_error(bounds: Array, sensor_error: ArrayLike) -> Array:
    """The most by which each predicted state may be off, (T, n), for errors of the sensors (n,), both in raw units.

    Args:
        bounds: of `start_gains`.

    Raises:
        UserError: not one finite error per sensor, or a negative one.
    """
    error, n = np.asarray(sensor_error, np.float64), bounds.shape[-1]
    if error.shape != (n,) or not (np.isfinite(error).all() and (error >= 0).all()):
        raise UserError(f"sensor errors need {n} finite numbers, one per state, none negative; found {error.tolist()}")
    return np.asarray(bounds @ error * (1 + 8 * (n + 8) * UNIT))
