"""Which predicted next observations end an episode: the rule of the task, or a classifier learned from what was seen.

A rule is written in the observation and reads its limits from the task. The simulator judges by its own state, which
the observation may not hold whole: velocities of gymnasium's MuJoCo tasks are clipped there, so that the limit of 100
on them, which a walking task never reaches, is not tested; the tip of the inverted double pendulum is computed from
the angles at the end of a step, the simulator's from the last stage of its integrator.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lipctrl.files import UserError

Termination = Callable[[Tensor], Tensor]
"""From next observations (rows, n) to whether the episode ends there, (rows,) booleans; it ends at NaN and infinity."""

NEVER = ("HalfCheetah", "Swimmer", "Reacher", "Pusher", "PendulumEnv")
LINK = 0.6  # length of each link of gymnasium's inverted double pendulum [m]


def termination_of(env: gymnasium.Env[Any, Any]) -> Termination:
    """The rule of a task.

    Raises:
        UserError: a task whose rule is not known, or a wrapper that changes its observations.
    """
    layer: Any = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.ObservationWrapper):
            raise UserError(f"the termination rule of {env} is not known behind {type(layer).__name__}; use 'learned'")
        layer = layer.env
    rule = _rule(layer)
    if rule is None:
        name = type(layer).__name__
        raise UserError(f"no termination rule is known for {name}: use termination 'learned' or 'never'")
    return lambda seen: ~seen.isfinite().all(-1) | rule(seen)


def never(seen: Tensor) -> Tensor:
    """No episode ends before its time limit, except where a number is not finite."""
    return ~seen.isfinite().all(-1)


def _rule(task: Any) -> Termination | None:
    name = type(task).__name__
    if hasattr(task, "plant") and hasattr(task, "state_of"):
        return _plant_rule(task)
    if getattr(task, "_exclude_current_positions_from_observation", True) is False:
        return None  # positions shift the indices below
    if any(name.startswith(known) for known in NEVER) or not getattr(task, "_terminate_when_unhealthy", True):
        return lambda seen: torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
    if name in ("HopperEnv", "Walker2dEnv"):
        return _walker_rule(task)
    if name in ("AntEnv", "HumanoidEnv"):
        low, high = task._healthy_z_range
        closed = name == "AntEnv"  # gymnasium's ant may be at its limits, its humanoid not
        return lambda seen: _outside(seen[:, 0], low, high, closed=closed)
    if name == "InvertedPendulumEnv":
        return lambda seen: seen[:, 1].abs() > 0.2
    if name == "InvertedDoublePendulumEnv":
        return _double_pendulum
    return None


def _outside(value: Tensor, low: float, high: float, *, closed: bool = False) -> Tensor:
    return (value < low) | (value > high) if closed else (value <= low) | (value >= high)


def _walker_rule(task: Any) -> Termination:
    height, angle = task._healthy_z_range, task._healthy_angle_range
    joints = getattr(task, "_healthy_state_range", (-np.inf, np.inf))

    def rule(seen: Tensor) -> Tensor:
        fallen = _outside(seen[:, 0], *height) | _outside(seen[:, 1], *angle)
        return fallen | _outside(seen[:, 1:], *joints).any(-1)

    return rule


def _double_pendulum(seen: Tensor) -> Tensor:
    sines, cosines = seen[:, 1:3], seen[:, 3:5]
    both = cosines[:, 0] * cosines[:, 1] - sines[:, 0] * sines[:, 1]
    return LINK * (cosines[:, 0] + both) <= 1


def _plant_rule(task: Any) -> Termination:
    """States outside their limits, or a collision; one row after the other where the observation is no state."""
    low, high = torch.as_tensor(task._low), torch.as_tensor(task._high)
    if task.state_of is np.copy and task.margin is None:
        return lambda seen: ((seen < low.to(seen)) | (seen > high.to(seen))).any(-1)

    def rule(seen: Tensor) -> Tensor:
        states = [task.state_of(row) for row in seen.double().cpu().numpy()]
        failed = [
            not ((task._low <= x) & (x <= task._high)).all() or (task.margin is not None and bool(task.margin(x) < 0))
            for x in states
        ]
        return torch.tensor(failed, dtype=torch.bool, device=seen.device)

    return rule


class LearnedTermination:
    """A logistic network of two hidden layers on the next observation, fitted to the transitions seen.

    Args:
        observations: n. seed: of weights and batches. device: of its tensors.
    """

    WIDTH, STEPS, BATCH, RATE = 64, 200, 256, 1e-3

    def __init__(self, observations: int, *, seed: int, device: str | torch.device = "cpu") -> None:
        self.draws = torch.Generator(device).manual_seed(seed)
        self.leaves: list[Tensor] = []
        sizes = (observations, self.WIDTH, self.WIDTH, 1)
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            weight = torch.randn(fan_out, fan_in, generator=self.draws, device=device) / fan_in**0.5
            self.leaves += [weight.requires_grad_(), torch.zeros(fan_out, device=device, requires_grad=True)]
        self.mean, self.std = torch.zeros(observations, device=device), torch.ones(observations, device=device)
        self.seen_end = False
        self.optimizer = torch.optim.Adam(self.leaves, lr=self.RATE)

    def state_dict(self) -> dict[str, Any]:
        """What the classifier must remember to go on exactly."""
        return {
            "leaves": [leaf.detach().clone() for leaf in self.leaves],
            "scaling": [self.mean.clone(), self.std.clone()],
            "seen_end": self.seen_end,
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for leaf, value in zip(self.leaves, state["leaves"], strict=True):
            leaf.copy_(value)
        self.mean, self.std = (value.to(self.mean.device) for value in state["scaling"])
        self.seen_end = state["seen_end"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"])

    def logits(self, seen: Tensor) -> Tensor:
        """Logarithmic odds (rows,) that the episode ends."""
        h = (seen - self.mean) / self.std
        for k in range(0, len(self.leaves), 2):
            h = functional.linear(h, self.leaves[k], self.leaves[k + 1])
            h = functional.silu(h) if k + 2 < len(self.leaves) else h
        return h.squeeze(-1)

    @torch.no_grad()
    def __call__(self, seen: Tensor) -> Tensor:
        """As `Termination`; never before an episode has ended in the data."""
        broken = ~seen.isfinite().all(-1)
        return broken | (self.logits(seen) > 0) if self.seen_end else broken

    def fit(self, seen: Tensor, ended: Tensor) -> None:
        """Gradient steps on next observations (rows, n) and whether the episode ended there, (rows,); half of each."""
        ends, others = ended.nonzero().squeeze(-1), (ended == 0).nonzero().squeeze(-1)
        self.seen_end = self.seen_end or len(ends) > 0
        if not len(ends) or not len(others):
            return
        self.std, self.mean = torch.std_mean(seen, 0, correction=0)
        self.std = torch.where(self.std < 1e-12, 1.0, self.std)
        half = self.BATCH // 2
        labels = torch.cat([torch.ones(half, device=seen.device), torch.zeros(half, device=seen.device)])
        for _ in range(self.STEPS):
            rows = [
                part[torch.randint(len(part), (half,), generator=self.draws, device=seen.device)]
                for part in (ends, others)
            ]
            # half of the batch ends: the odds are shifted back to those of the data
            shift = float(np.log(len(ends) / len(others)))
            logits = self.logits(seen[torch.cat(rows)]) - shift
            loss = functional.binary_cross_entropy_with_logits(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
