"""Attack: searches a set of perturbations at every step, counts what it spends. One interface, batched."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lipctrl.disturb.sets import Ball
from lipctrl.policy import PlainPolicy, Policy

Array = NDArray[np.float64]
STEP = 1e-4  # relative step of the differences for policies without a Jacobian: solvers and float32 are noisy


@dataclass
class Cost:
    """What a search spent: policy evaluations and Jacobians, counted per observation, closed loops with their steps,
    and how many of these loops failed."""

    evaluations: int = 0
    jacobians: int = 0
    loops: int = 0
    steps: int = 0
    failures: int = 0


@dataclass
class Context:
    """What an attack may use at one step of a batch of closed loops.

    The batch holds `len(ball.radius)` rows: every radius with the same `episodes` episodes, so that random draws are
    common to all radii.

    Attributes:
        observation: true observations, shape (batch, n).
        policy: the policy under attack.
        ball: where the disturbance of each row must lie, k numbers in the units of the threat's channel (k = n for
            the observation).
        episodes: rows per radius.
        random: generator of the attack.
        cost: counted up by the attack.
        hidden: state of the policy before this step, None before the first.
    """

    observation: Array
    policy: Policy
    ball: Ball
    episodes: int
    random: np.random.Generator
    cost: Cost = field(default_factory=Cost)
    hidden: Any = None

    def draw(self, kind: Callable[[tuple[int, int]], Array]) -> Array:
        """Draws of shape (batch, k), equal for all radii of an episode."""
        return np.tile(kind((self.episodes, len(self.ball.scale))), (len(self.observation) // self.episodes, 1))

    def act(self, observation: Array) -> Array:
        """The deployed policy's actions (batch, m)."""
        self.cost.evaluations += len(observation)
        return np.asarray(self.policy.predict(observation, self.hidden, deterministic=True)[0], dtype=np.float64)

    def jacobian(self, observation: Array) -> Array:
        """Jacobian (batch, m, n): the network's own before clipping, else central differences of `act`."""
        if isinstance(self.policy, PlainPolicy):
            self.cost.jacobians += len(observation)
            return self.policy.net.jacobian(observation, clipped=False)
        columns = []
        for j in range(observation.shape[1]):
            step = np.zeros(observation.shape[1])
            step[j] = STEP * self.ball.scale[j] * max(1.0, float(np.abs(observation[:, j]).max()))
            columns.append((self.act(observation + step) - self.act(observation - step)) / (2 * step[j]))
        return np.stack(columns, axis=-1)


class Attack(Protocol):
    """A search over the ball of a context, step by step; on channels that act once per episode it is asked once."""

    timed: ClassVar[bool]
    """Whether it chooses when to spend a budget over the episode; for the others the loop spreads it."""

    def perturb(self, context: Context) -> Array:
        """A disturbance of each row, shape (batch, k), inside the ball."""
        ...
