"""Searches over whole closed loops: no gradient, no equations, any policy and channel; the number of loops is counted.

For every episode (start state) and radius the worst of a family of disturbances is sought:

* "held": one value for the whole episode: a constant bias, a force, model parameters, a delay, the start state;
* "pulse": a value, the step at which it begins, and how many steps it lasts;
* "wave": a value that changes its sign periodically, with its period and the step at which it begins. What excites a
  linear loop most is a wave at the peak of its frequency response.

Random search draws extreme points of the set, and times evenly spread. The cross-entropy method (Rubinstein and Kroese,
2004) begins with a generation of it and goes on with normal samples around the best ones, clipped to the set; the best
one is also tried at the extreme point in its direction. Both run for all episodes at once and try no disturbance first,
so that what they report is never better than the nominal loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks.blind import Held
from lipctrl.disturb.budget import Budget
from lipctrl.disturb.sets import Ball

Array = NDArray[np.float64]
Returns = Callable[[Held, Ball], Array]
ELITE = 0.2  # share of a generation that the next one is drawn from
SMOOTHING = 0.3
GENERATIONS = 6  # at most
SMALLEST = 8  # closed loops per generation; fewer in all are one generation


@dataclass(frozen=True)
class Search:
    """A search with a budget of closed loops.

    Attributes:
        family: "held", "pulse" or "wave". method: "cross-entropy" or "random".
        loops: closed loops per episode and radius.
    """

    family: Literal["held", "pulse", "wave"]
    method: Literal["cross-entropy", "random"]
    loops: int = 100

    def generations(self) -> list[int]:
        """Closed loops per episode of every generation; they sum up to `loops`."""
        number = max(1, min(GENERATIONS, self.loops // SMALLEST))
        whole, rest = divmod(self.loops, number)
        return [whole + rest] + [whole] * (number - 1)

    def worst(
        self, returns: Returns, ball: Ball, budget: Budget, *, steps: int, random: np.random.Generator
    ) -> tuple[Held, Array]:
        """The worst disturbance found for every episode, and its returns (episodes,).

        Args:
            returns: runs the closed loops of given disturbances, `count` times all episodes, in balls of as many rows.
            ball: the set, one row per episode, all of one radius.
            budget: over time. steps: of an episode at most.
        """
        episodes, k = len(ball.radius), len(ball.scale)
        size = k + (0 if self.family == "held" else 2)
        mean, deviation = np.zeros((episodes, size)), np.zeros((episodes, size))
        best, lowest = np.zeros((episodes, size)), np.full(episodes, np.inf)
        for g, count in enumerate(self.generations()):
            points = mean + deviation * random.standard_normal((count, episodes, size))
            if g == 0 or self.method == "random":
                shape = (count, episodes, size - k)
                strata = random.permuted(np.broadcast_to(np.arange(count)[:, None, None], shape), axis=0)
                times = 2 * (strata + random.random(shape)) / count - 1  # every part of the range once
                times[1::4] = np.resize([-1.0, 1.0], size - k)  # from the first step, as long as possible
                values = random.standard_normal((count, episodes, k))
                points = self._extreme(np.concatenate([values, times], axis=-1), ball)
            else:
                points[0] = self._extreme(best, ball)
            points[0] = 0.0 if g == 0 else points[0]
            held = self._decode(points.reshape(count * episodes, size), ball, count, budget, steps)
            found = returns(held, _repeated(ball, count)).reshape(count, episodes)
            winner = found.argmin(0)
            value = np.take_along_axis(found, winner[None], 0)[0]
            better = value < lowest
            best = np.where(better[:, None], points[winner, np.arange(episodes)], best)
            lowest = np.where(better, value, lowest)
            elite = np.argsort(found, axis=0)[: max(2, round(ELITE * count))]
            chosen = np.take_along_axis(points, elite[..., None], axis=0)
            keep = SMOOTHING if g else 0.0
            mean = keep * mean + (1 - keep) * chosen.mean(0)
            deviation = keep * deviation + (1 - keep) * chosen.std(0)
        return self._decode(best, ball, 1, budget, steps), lowest

    @staticmethod
    def nothing(rows: int, size: int) -> Held:
        """No disturbance, of `rows` episodes and `size` components."""
        return Held(np.zeros((rows, size)), np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows))

    @staticmethod
    def _extreme(points: Array, ball: Ball) -> Array:
        """Points (.., episodes, size) with their values moved to the extreme points of the set in their direction."""
        k = len(ball.scale)
        flat = points[..., :k].reshape(-1, k)
        values = type(ball)(ball.norm, np.ones(len(flat)), np.ones(k)).boundary(flat)
        return np.concatenate([values.reshape(*points.shape[:-1], k), points[..., k:]], axis=-1)

    def _decode(self, points: Array, ball: Ball, count: int, budget: Budget, steps: int) -> Held:
        """Disturbances (count x episodes) from points: values in radii, then start and length or frequency, if any."""
        whole, k, rows = _repeated(ball, count), len(ball.scale), len(points)
        longest = min(steps, int(budget.amount)) if budget.kind == "sparse" else steps
        start, length, frequency = np.zeros(rows, np.int64), np.full(rows, longest, np.int64), np.zeros(rows)
        if self.family != "held":
            at, span = np.clip(points[:, k:].T, -1, 1) / 2 + 0.5
            start = np.minimum((at * steps).astype(np.int64), steps - 1)
            if self.family == "pulse":
                length = np.rint(longest**span).astype(np.int64)  # short and long pulses are equally likely
            else:
                frequency = 0.5 * (0.5 / steps) ** span  # from a change at every step to none in the episode
        values = points[:, :k] * whole.radius[:, None] * whole.scale
        values = whole.project(values)
        if budget.kind == "episode":
            values = values / np.sqrt(np.minimum(length, steps - start))[:, None]
        return Held(values, start, start + length, frequency)


def _repeated(ball: Ball, count: int) -> Ball:
    """The same balls for `count` blocks of episodes."""
    return type(ball)(ball.norm, np.tile(ball.radius, count), ball.scale)


SEARCHES: dict[str, tuple[Search, str]] = {
    "constant-search": (Search("held", "cross-entropy"), "worst value held over the episode, by cross-entropy"),
    "random-search": (Search("held", "random"), "worst of random extreme points held over the episode"),
    "wave-search": (Search("wave", "cross-entropy"), "worst square wave: value, period and start, by cross-entropy"),
    "pulse-search": (Search("pulse", "cross-entropy"), "worst pulse: value, start and length, by cross-entropy"),
}
"""Searches over closed loops and one-line descriptions by name."""
