"""The closed-loop table of a process model: how far sensor errors move its predictions, and MPC's reserve for them.

MPC that believes the model and plans from a measured state whose error is at most r keeps the true state within its
limits one sampling period later if the plan keeps them tightened by G r + d: G r bounds what the measurement does to
the prediction (`lipctrl.models.sensitivity`), d what the model misses of the plant.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.guarantees import Guarantee
from lipctrl.files import UserError
from lipctrl.models.model import ProcessModel
from lipctrl.models.sensitivity import prediction_error, start_gains
from lipctrl.plant import Plant
from lipctrl.symbolic.process import check_plant

Array = NDArray[np.float64]
REGION = "measured and true states and inputs in the range of the training data"


@dataclass(frozen=True)
class Reserve:
    """What MPC keeps from the state limits of a plant, in its units.

    Attributes:
        sensors: (n,), proved bound of what the sensor errors do to the prediction of one period.
        model: (n,), the largest error of one period on the model's test windows, an estimate; None: not known.
        region: in words, where `sensors` is proved, or None: everywhere.
    """

    sensors: Array
    model: Array | None
    region: str | None

    @property
    def total(self) -> Array:
        """By how much every state limit is tightened, (n,)."""
        return self.sensors if self.model is None else self.sensors + self.model


def reserve_of(model: ProcessModel, plant: Plant, sensor_error: tuple[float, ...]) -> Reserve:
    """The reserve for one sampling period of the plant.

    Raises:
        UserError: a model of another plant, an lstm, or not one error per sensor.
    """
    steps = check_plant(model, plant)
    bounds, region = start_gains(model, steps=steps)
    worst = model.facts.get("worst_error")
    missed = None if worst is None else np.array(worst, np.float64)[steps - 1]
    return Reserve(prediction_error(bounds, sensor_error)[-1], missed, None if region is None else REGION)


def model_table(model: ProcessModel, plant: Plant, sensor_error: tuple[float, ...] | None) -> tuple[Guarantee, ...]:
    """The rows for a plant.

    Args:
        sensor_error: largest error of each sensor, in the unit of its state.

    Raises:
        UserError: see `reserve_of`.
    """
    if sensor_error is None:
        names = ", ".join(model.state_names)
        raise UserError(f"--closed-loop of a process model needs --sensor-error, one number per state: {names}")
    reserve = reserve_of(model, plant, sensor_error)
    bounds, region = start_gains(model)
    last, where = prediction_error(bounds, sensor_error)[-1], () if region is None else (REGION,)
    rows = []
    for i, name in enumerate(plant.state.names):
        quantity, _, unit = name.partition(" [")
        unit = unit.rstrip("]")
        low, high, known = plant.state.low[i], plant.state.high[i], reserve.model is not None
        missed = None if reserve.model is None else reserve.model[i]
        rows += [
            Guarantee(
                f"{quantity}: prediction moved by the sensors, one period", reserve.sensors[i], unit, "proved", where
            ),
            Guarantee(f"{quantity}: after {model.horizon} steps of the model", last[i], unit, "proved", where),
            Guarantee(
                f"{quantity}: largest error of the model itself, one period",
                missed,
                unit,
                "estimate",
                ("its test windows",),
                "" if known else "the model file does not say",
            ),
        ]
        if np.isfinite([low, high]).any():
            room = high - low - 2 * reserve.total[i]
            rows.append(
                Guarantee(
                    f"{quantity}: room that MPC is left with between its limits",
                    room if room > 0 else None,
                    unit,
                    "estimate" if known else "bound",
                    ("the model's error is not larger than on its test windows",) if known else ("the model is exact",),
                    "" if room > 0 else "the errors are larger than the room between the limits",
                )
            )
    return tuple(rows)
