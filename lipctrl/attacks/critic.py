"""Critic attacks: move the observation so that a critic values what the policy then does least.

With an action value Q (SAC, TD3, DDPG, or one fitted to the policy by `lipctrl.attacks.sarsa`)

    minimise Q(s, pi(s + d))   over d in the ball:

the *true* state, from which the plant goes on, with the action of the *perturbed* observation (Zhang et al. 2020, arXiv
2003.08938, attack of Robust Sarsa). With a state value V alone (PPO, A2C)

    minimise V(s + d)

as Pattanaik et al. 2018 (arXiv 1712.03632): a state that looks bad, which need not make a bad action. The search is
projected descent with restarts from random starts. It is as good as the critic: one that generalises badly over actions
hides the damage.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.ascent import ProjectedAscent
from lipctrl.attacks.attack import Context
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]


class Critic(Protocol):
    """What a perturbed observation is worth to the policy."""

    def __call__(self, context: Context, d: Array) -> tuple[Array, Array]:
        """Values (batch,) and their gradients with respect to the perturbations d (batch, n)."""
        ...


@dataclass(frozen=True)
class ActionValue:
    """Q(s, pi(s + d)), the smallest of several networks from (s, a) side by side to one value, in raw units.

    Raises:
        UserError: no network, networks of different inputs, or more than one output.
    """

    nets: tuple[PlainNet, ...]

    def __post_init__(self) -> None:
        if not self.nets or len({(net.input_size, net.output_size) for net in self.nets}) > 1:
            raise UserError("an action value needs at least one network, all with the same inputs")
        if self.nets[0].output_size != 1:
            raise UserError(f"an action value has one output, found {self.nets[0].output_size}")

    def __call__(self, context: Context, d: Array) -> tuple[Array, Array]:
        """See `Critic`; the gradient is that before the policy's clipping, which would hide it."""
        x, seen = context.observation, context.observation + d
        action = context.act(seen)
        pair = np.concatenate([x, action], axis=1)
        if pair.shape[1] != self.nets[0].input_size:
            raise UserError(
                f"the critic takes {self.nets[0].input_size} numbers; observation and action have {pair.shape[1]}"
            )
        value, slope = self.linearised(pair)
        return value, np.einsum("bm,bmn->bn", slope[:, x.shape[1] :], context.jacobian(seen))

    def linearised(self, pair: Array) -> tuple[Array, Array]:
        """Values (batch,) and gradients (batch, n + m) at (s, a) side by side."""
        values, slopes = zip(*(net.linearised(pair) for net in self.nets), strict=True)
        stacked = np.concatenate(values, axis=1)
        least, rows = stacked.argmin(axis=1), np.arange(len(pair))
        return stacked[rows, least], np.concatenate(slopes, axis=1)[rows, least]


@dataclass(frozen=True)
class StateValue:
    """V(s + d) of a network from observations to one value, in raw units."""

    net: PlainNet

    def __call__(self, context: Context, d: Array) -> tuple[Array, Array]:
        """See `Critic`."""
        value, slope = self.net.linearised(context.observation + d)
        return value[:, 0], slope[:, 0]


@dataclass(frozen=True)
class CriticAttack:
    """Projected descent on a critic."""

    timed: ClassVar[bool] = False
    critic: Critic
    ascent: ProjectedAscent = field(default_factory=ProjectedAscent)

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""

        def loss(d: Array) -> tuple[Array, Array]:
            value, gradient = self.critic(context, d)
            return -value, -gradient

        return self.ascent.search(context, loss, loss(np.zeros_like(context.observation))[0])
