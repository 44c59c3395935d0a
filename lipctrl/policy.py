"""Policy: anything with Stable-Baselines3's `predict`. Networks, LQR gains, MPC and SB3 agents are policies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]


@runtime_checkable
class Policy(Protocol):
    """What the whole library trains, embeds, attacks and compares."""

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Action and next hidden state for one observation (n,) or a batch (batch, n), in raw units."""
        ...


@runtime_checkable
class SolvingPolicy(Policy, Protocol):
    """A policy that solves a problem at every step, from a warm start in its hidden state, as MPC does."""

    def nudged(self, state: Any, offsets: Array) -> Any:
        """The hidden state with offsets (batch, k) added to the warm starts of the next solves."""
        ...

    def solves(self, state: Any) -> tuple[NDArray[np.bool_], Array]:
        """Of the solves behind a hidden state: where a fallback acted for want of a solution, iterations, (batch,)."""
        ...


@dataclass(frozen=True)
class FunctionPolicy:
    """A policy from a function that maps observations (batch, n) to actions (batch, m)."""

    function: Callable[[Array], Array]

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """See `Policy.predict`."""
        x = np.asarray(observation, dtype=np.float64)
        action = np.asarray(self.function(np.atleast_2d(x)), dtype=np.float64)
        return action.reshape(*x.shape[:-1], -1), state


@dataclass(frozen=True)
class PlainPolicy:
    """The deployed policy: a PlainNet in raw units, with a Jacobian for those who search."""

    net: PlainNet

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, Any]:
        """See `Policy.predict`."""
        return self.net(observation), state


@dataclass(frozen=True)
class Playback:
    """Recorded actions (T, m) as a policy: the hidden state counts the steps; after the last one it repeats."""

    actions: Array

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, int]:
        """See `Policy.predict`."""
        step = 0 if state is None else state
        action = self.actions[min(step, len(self.actions) - 1)]
        return np.tile(action, (len(observation), 1)), step + 1


def linear_policy(gain: Array, low: Array, high: Array) -> PlainPolicy:
    """u = clip(-K x, low, high): an LQR gain as a network without hidden layers.

    Args:
        gain: K, shape (m, n).
        low, high: input limits, shape (m,), finite or infinite.
    """
    net = PlainNet(({0: -np.atleast_2d(gain)},), (np.zeros(len(gain)),), (), low=low, high=high)
    return PlainPolicy(net)
