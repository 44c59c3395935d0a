"""Learned adversaries: a network looks at the true state and says how the observation is to be moved.

SA-RL (Zhang et al. 2021, arXiv 2101.08452): the network's output is the perturbation itself, in units of the radius,

    d = radius * scale * nu(s), brought back into the ball.

PA-AD (Sun et al. 2022, arXiv 2106.05087): the network (the director) names a direction w of the *action*, and an inner
search (the actor) finds the perturbation that moves the action there:

    maximise cos(pi(s + d) - pi(s), w) + |pi(s + d) - pi(s)|   over d in the ball.

The released code of PA-AD takes one full sign step, and against this objective's sign, which the director learns to
undo; here the sign is that of the objective and the search takes several projected steps.
`lipctrl.attacks.adversary` trains both.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.ascent import Objective, ProjectedAscent
from lipctrl.attacks.attack import Context
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
ACTOR = ProjectedAscent(steps=3, jumps=1, restarts=2)  # of the inner search: it runs at every step of a training


class Steered(Protocol):
    """What an adversary's output does at one step."""

    def __call__(self, context: Context, output: Array) -> Array:
        """Perturbations (batch, n) inside the ball for outputs (batch, k) with entries in [-1, 1]."""
        ...


def scaled_perturbation(context: Context, output: Array) -> Array:
    """The output (batch, n) as a perturbation in units of the radius."""
    ball = context.ball
    return ball.project(ball.radius[:, None] * ball.scale * output)


def towards(context: Context, direction: Array) -> Objective:
    """The actor's objective for directions (batch, m) of the action."""
    x = context.observation
    nominal = context.act(x)
    unit = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)

    def gain(d: Array) -> tuple[Array, Array]:
        change, jacobian = context.act(x + d) - nominal, context.jacobian(x + d)
        size = np.linalg.norm(change, axis=1, keepdims=True)
        heading = change / np.maximum(size, 1e-12)
        cosine = (heading * unit).sum(1, keepdims=True)
        # at no change the cosine has no gradient: go where the director points
        slope = np.where(size > 0, (unit - cosine * heading) / np.maximum(size, 1e-12) + heading, unit)
        return (cosine + size)[:, 0], np.einsum("bm,bmn->bn", slope, jacobian)

    return gain


def along_direction(context: Context, output: Array) -> Array:
    """The perturbation that moves the action furthest along the output (batch, m)."""
    gain = towards(context, output)
    # first the linearised policy's answer, which is exact for one action of a linear policy
    straight = context.ball.linear_maximiser(gain(np.zeros_like(context.observation))[1])
    reached = gain(straight)[0]
    found = ACTOR.search(context, gain, np.maximum(reached, 0.0))
    return np.where((found == 0).all(axis=1, keepdims=True) & (reached > 0)[:, None], straight, found)


@dataclass(frozen=True)
class LearnedAttack:
    """A trained adversary.

    Attributes:
        net: from observations in raw units to outputs, clipped to [-1, 1].
        steer: what the outputs do: `scaled_perturbation` (SA-RL) or `along_direction` (PA-AD).
    """

    timed: ClassVar[bool] = False
    net: PlainNet
    steer: Steered

    def perturb(self, context: Context) -> Array:
        """See `Attack.perturb`."""
        return self.steer(context, np.clip(self.net(context.observation), -1.0, 1.0))
