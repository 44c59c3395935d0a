"""Run-time monitor: every step it is checked that what the proofs assumed is true, and a backup acts where it is not.

A guarantee of a learned policy rests on assumptions that only hold near the data, inside a level set, with the model
that was written down. Each check compares one number with the largest that the proof allows; the numbers are logged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.policy import Policy

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """What a check sees: observation (n,), the policy's action (m,), and both of the step before (None at a start)."""

    observation: Array
    action: Array
    before: tuple[Array, Array] | None


class Check(Protocol):
    """One assumption."""

    limit: float

    def __call__(self, step: Step) -> float:
        """The number that must not exceed `limit`."""
        ...


@dataclass(frozen=True)
class ErrorNearData:
    """The pointwise bound of the policy's error, or the distance to the data (see `demos.cover.ErrorBound`).

    Attributes:
        bound: function of states (batch, n) -> (batch,). limit: what the certificate used, in the bound's unit.
    """

    bound: Callable[[Array], Array]
    limit: float

    def __call__(self, step: Step) -> float:
        """See `Check`."""
        return float(self.bound(step.observation[None])[0])


@dataclass(frozen=True)
class Level:
    """Membership of the level set {W <= limit} in which the proof holds.

    Attributes:
        function: W of a state (n,).
    """

    function: Callable[[Array], float]
    limit: float

    def __call__(self, step: Step) -> float:
        """See `Check`."""
        return self.function(step.observation)


@dataclass(frozen=True)
class PredictedLevel:
    """The level that the next state is proved to stay below: rho W(x) + gain (error(x) + measurement).

    Attributes:
        function: W. rho: its contraction under the expert, per step.
        gain: b, with W(f(x, u)) <= W(f(x, expert(x))) + b |u - expert(x)|.
        error: pointwise bound of the policy's error, states (batch, n) -> (batch,).
        measurement: the policy's constant times the largest measurement disturbance, in the action's unit.
        limit: level c of the proof.
    """

    function: Callable[[Array], float]
    rho: float
    gain: float
    error: Callable[[Array], Array]
    measurement: float
    limit: float

    def __call__(self, step: Step) -> float:
        """See `Check`."""
        error = float(self.error(step.observation[None])[0])
        return self.rho * self.function(step.observation) + self.gain * (error + self.measurement)


@dataclass(frozen=True)
class Saturation:
    """How far the action asked for is beyond the limits between which the expert acts, in the action's unit (l_inf)."""

    low: Array
    high: Array
    limit: float = 0.0

    def __call__(self, step: Step) -> float:
        """See `Check`."""
        return float(np.maximum(self.low - step.action, step.action - self.high).max())


@dataclass(frozen=True)
class ModelMismatch:
    """|x - f(x_before, u_before)|_2 against what the model's error and the measurement allow; 0 at a start.

    Attributes:
        model: f, states (n,) and inputs (m,) -> next state (n,), for example `Plant.step`.
    """

    model: Callable[[Array, Array], Array]
    limit: float

    def __call__(self, step: Step) -> float:
        """See `Check`."""
        if step.before is None:
            return 0.0
        return float(np.linalg.norm(step.observation - self.model(*step.before)))


@dataclass(frozen=True)
class Verdict:
    """What was checked at one step.

    Attributes:
        values: number of every check. violated: names of those above their limits; then the backup acted.
        observation, action: of this step; the action is the one that was applied.
        hidden: states of policy and backup, carried on.
    """

    values: Mapping[str, float]
    violated: tuple[str, ...]
    observation: Array
    action: Array
    hidden: tuple[Any, Any]


@dataclass(frozen=True)
class MonitoredPolicy:
    """A policy that acts as long as every check holds; otherwise the backup does, for that step.

    Pure: the log of a step travels in `predict`'s hidden state, as in SB3. A number that is not finite is a violation.

    Attributes:
        policy: the learned one. backup: the expert, or whatever is declared safe.
        checks: by name.
    """

    policy: Policy
    backup: Policy
    checks: Mapping[str, Check]

    def __post_init__(self) -> None:
        if not self.checks:
            raise UserError("a monitor needs at least one check")

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, tuple[Verdict, ...]]:
        """Action and hidden state; see `Policy.predict`.

        Args:
            observation: one (n,) or a batch (batch, n).
            state: the verdicts that the last call returned, or None.
            episode_start: where true, the step before is forgotten; shape () or (batch,), or None.
            deterministic: no effect.

        Raises:
            UserError: the numbers of observations, hidden states and starts differ.
        """
        observations = np.asarray(observation, dtype=np.float64)
        rows = np.atleast_2d(observations)
        before: Sequence[Verdict | None] = [None] * len(rows) if state is None else list(state)
        fresh = np.zeros(len(rows), bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
        if len(before) != len(rows) or len(fresh) != len(rows):
            raise UserError(f"{len(rows)} observations came with {len(before)} hidden states and {len(fresh)} starts")
        verdicts = tuple(
            self._judge(row, None if new else last) for row, last, new in zip(rows, before, fresh, strict=True)
        )
        actions = np.array([verdict.action for verdict in verdicts])
        return actions.reshape(*observations.shape[:-1], -1), verdicts

    def _judge(self, observation: Array, last: Verdict | None) -> Verdict:
        memory, spare = (None, None) if last is None else last.hidden
        answer, memory = self.policy.predict(observation, memory, deterministic=True)
        action = np.asarray(answer, dtype=np.float64)
        step = Step(observation, action, None if last is None else (last.observation, last.action))
        values = {name: check(step) for name, check in self.checks.items()}
        violated = tuple(name for name, check in self.checks.items() if not values[name] <= check.limit)
        if not np.isfinite(action).all():
            violated = (*violated, "finite action")
        if violated:
            answer, spare = self.backup.predict(observation, spare, deterministic=True)
            action = np.asarray(answer, dtype=np.float64)
        return Verdict(values, violated, observation, action, (memory, spare))


@dataclass(frozen=True)
class MonitorLog:
    """A run under a monitor.

    Attributes:
        share: of the steps at which the backup acted.
        violations: per check, the number of steps at which it failed.
        largest: per check, its largest number.
        switches: steps at which the backup took over or handed back.
    """

    share: float
    violations: Mapping[str, int]
    largest: Mapping[str, float]
    switches: tuple[int, ...]


def summarise(verdicts: Sequence[Verdict]) -> MonitorLog:
    """The log of one episode's verdicts, in order.

    Raises:
        UserError: there are none.
    """
    if not verdicts:
        raise UserError("a monitor's log needs at least one step")
    acted = np.array([bool(verdict.violated) for verdict in verdicts])
    names = dict.fromkeys(name for verdict in verdicts for name in (*verdict.values, *verdict.violated))
    return MonitorLog(
        share=float(acted.mean()),
        violations={name: sum(name in verdict.violated for verdict in verdicts) for name in names},
        largest={name: max(verdict.values[name] for verdict in verdicts) for name in verdicts[0].values},
        switches=tuple((np.flatnonzero(np.diff(np.concatenate([[False], acted]).astype(int)))).tolist()),
    )
