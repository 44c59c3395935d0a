"""What all channels share."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError

Array = NDArray[np.float64]
Value = float | tuple[float, ...]
Lasts = Literal["step", "episode", "reset"]
Env = gymnasium.Env[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Channel:
    """What all channels share.

    Attributes:
        value: in every episode, in the units of the channel; None: no disturbance.
        name: by which `apply` and the log of the wrapper know the channel.
        neutral: the number that means no disturbance (class).
        smallest: the least value allowed (class).
        lasts: see `lipctrl.disturb.channel` (class).
        shared: whether one number may stand for all components (class); only where they have one unit.
        whole: whether the value counts something (class).
    """

    value: Value | None = None
    name: str = "channel"
    neutral: ClassVar[float] = 0.0
    smallest: ClassVar[float] = -np.inf
    lasts: ClassVar[Lasts] = "step"
    shared: ClassVar[bool] = False
    whole: ClassVar[bool] = False

    def checked(self, value: ArrayLike | None, size: int | None) -> Array:
        """A value as `size` numbers (any count for None); None gives the neutral one.

        Raises:
            UserError: wrong count, not finite, or below the smallest allowed.
        """
        if value is None:
            return np.full(size or 0, self.neutral)
        vector = np.array(value, dtype=np.float64)
        if vector.size == 1 and size is not None and (self.shared or size == 1):
            vector = np.full(size, vector.reshape(()))
        if vector.ndim != 1 or len(vector) != (len(vector) if size is None else size):
            count = "a list of" if size is None else size
            raise UserError(f"the channel {self.name!r} needs {count} numbers, found shape {vector.shape}")
        if not np.isfinite(vector).all():
            raise UserError(f"the channel {self.name!r} needs finite numbers, found {vector.tolist()}")
        if (vector < self.smallest).any():
            raise UserError(f"the channel {self.name!r} needs values >= {self.smallest:g}, found {vector.tolist()}")
        if self.whole and (vector != np.floor(vector)).any():
            raise UserError(f"the channel {self.name!r} counts control steps, found {vector.tolist()}")
        return vector
