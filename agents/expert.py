"""Demonstrations on the way into an off-policy agent: spaces that fit, rows that are kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError
from lipctrl.seeding import generator

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Transitions:
    """Rows of demonstrations.

    Attributes:
        states, next_states: (rows, n). applied: what the environment received, (rows, m). labels: what the expert
            answered, (rows, m). ended: whether the episode ended with the step, not by a time limit, (rows,).
    """

    states: Array
    applied: Array
    labels: Array
    next_states: Array
    ended: NDArray[np.bool_]


def check_spaces(demos: Demonstrations, observations: Any, actions: Any) -> None:
    """That demonstrations are of these spaces.

    Raises:
        UserError: they are not.
    """
    assert isinstance(observations, spaces.Box) and isinstance(actions, spaces.Box)
    wanted = (observations.shape[0], actions.shape[0])
    found = (demos.observations.shape[1], demos.actions.shape[1])
    if found != wanted:
        raise UserError(
            f"the demonstrations have {found[0]} observations and {found[1]} actions per step; the environment has "
            f"{wanted[0]} and {wanted[1]}"
        )
    low, high = actions.low, actions.high
    if (demos.labels < low - 1e-6).any() or (demos.labels > high + 1e-6).any():
        raise UserError(f"the demonstrations hold actions outside the limits {low} to {high} of the environment")


def subsampled(demos: Demonstrations, every: int, *, seed: int) -> Transitions:
    """Every so many-th step of each episode, from a random start.

    Raises:
        UserError: nothing is left.
    """
    rng, parts = generator(seed, "subsample"), []
    for one in demos.trajectories():
        start = int(rng.integers(every))
        last = np.arange(len(one.labels)) == len(one.labels) - 1
        whole = (one.observations[:-1], one.actions, one.labels, one.observations[1:], last & one.terminated)
        parts.append([part[start::every] for part in whole])
    states, applied, labels, next_states, ended = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    if not len(states):
        raise UserError(f"no pair is left of {int(demos.lengths.sum())} when every {every}th is kept")
    return Transitions(states, applied, labels, next_states, ended)
