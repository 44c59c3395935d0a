"""Imitation without a learned reward: SAC whose batches mix demonstrations, of one reward, with replay, of another.

SQIL (Reddy, Dragan and Levine 2019, arXiv 1905.11108): rewards 1 and 0. LS-IQ (Al-Hafez et al. 2023, arXiv
2303.00599) shows that SQIL minimises a regularised inverse soft Bellman error and draws from it: symmetric rewards,
targets of the expert's pairs fixed at their largest possible value, targets clipped to possible values, and absorbing
states of known value. Its further critic of the entropy is not here: values are SAC's soft ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError

from .expert import check_spaces, subsampled
from .sac import SAC
from .sac_learner import Learner

Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # states, scaled actions, rewards, next states, going


@dataclass(frozen=True)
class SqilSettings:
    """Rewards and targets of imitation; by default SQIL's."""

    expert_reward: float = 1.0
    """Reward of a demonstrated step."""
    agent_reward: float = 0.0
    """Reward of an own step."""
    share: float = 0.5
    """Share of demonstrated steps in a batch."""
    fixed: bool = False
    """The targets of demonstrated steps are expert_reward / (1 - discount), without a bootstrapped value."""
    clipped: bool = False
    """Clip targets to what the rewards allow."""
    absorbing: bool = False
    """An episode that ends before its time limit is worth its last reward for ever; else nothing follows."""
    subsample: int = 1
    """Keep every so many-th step of the demonstrations, from a random start in each episode."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.agent_reward) and self.agent_reward < self.expert_reward < np.inf):
            raise ValueError(
                f"expert_reward must be above agent_reward, found {self.expert_reward} and {self.agent_reward}"
            )
        if not 0 <= self.share < 1 or self.subsample < 1:
            raise ValueError(f"share must be in [0, 1) and subsample at least 1, found {self.share}, {self.subsample}")


LS_IQ = SqilSettings(agent_reward=-1.0, fixed=True, clipped=True, absorbing=True)


class SQIL(SAC):
    """Soft Q imitation learning; with `LS_IQ` its successor.

    Args:
        policy, env, smoothness, compiled, others: as in `SAC`. The environment's reward is not used.
        demonstrations: what to imitate; needed to train, not to load and predict.
        imitation: rewards and targets.

    Attributes:
        expert: the demonstrated steps, None without.

    Raises:
        UserError: what `SAC` refuses; demonstrations of other spaces.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        demonstrations: Demonstrations | None = None,
        imitation: SqilSettings | None = None,
        _init_setup_model: bool = True,
        **others: Any,
    ) -> None:
        self.imitation = imitation if imitation is not None else SqilSettings()
        self.expert: Rows | None = None
        super().__init__(policy, env, _init_setup_model=_init_setup_model, **others)
        if _init_setup_model and demonstrations is not None:
            self.set_demonstrations(demonstrations)

    def _make_learner(self) -> None:
        SqilLearner([self])

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "expert"]

    def set_demonstrations(self, demonstrations: Demonstrations) -> None:
        """Imitate these from now on.

        Raises:
            UserError: demonstrations of other spaces or too few of them.
        """
        check_spaces(demonstrations, self.observation_space, self.action_space)
        rows = subsampled(demonstrations, self.imitation.subsample, seed=self.seed or 0)
        # a bootstrapped target belongs to the action that led to the next state, a fixed one to the expert's own
        scaled = self.policy.scale_action(rows.labels if self.imitation.fixed else rows.applied)
        states, actions, next_states, ended = (
            torch.as_tensor(part, dtype=torch.float32, device=self.device)
            for part in (rows.states, scaled, rows.next_states, rows.ended)
        )
        going = torch.zeros_like(ended) if self.imitation.fixed else 1 - ended
        whole = self.imitation.fixed or self.imitation.absorbing
        rewards = self._rewards(self.imitation.expert_reward, going if whole else torch.ones_like(ended))
        self.expert = states, actions, rewards, next_states, going

    def _rewards(self, each: float, going: Tensor) -> Tensor:
        """Of steps of this reward, where 0 in `going` stands for the same reward for ever."""
        return each * torch.where(going > 0, 1.0, 1 / (1 - self.gamma))

    def target_limits(self) -> tuple[float, float] | None:
        """See `SAC`."""
        low, high = (
            reward / (1 - self.gamma) for reward in (self.imitation.agent_reward, self.imitation.expert_reward)
        )
        return (low, high) if self.imitation.clipped else None

    def prepare(self) -> None:
        """Before updates: see `SAC`.

        Raises:
            UserError: no demonstrations.
        """
        if self.expert is None:
            raise UserError(f"{type(self).__name__} needs demonstrations to train: set_demonstrations(...)")
        super().prepare()

    def _transitions(self, count: int, size: int) -> Rows:
        """Own and demonstrated rows side by side."""
        theirs = round(self.imitation.share * size)
        states, actions, _, next_states, going = super()._transitions(count, size - theirs)
        rewards = self._rewards(
            self.imitation.agent_reward, going if self.imitation.absorbing else torch.ones_like(going)
        )
        own = states, actions, rewards, next_states, going
        if not theirs:
            return own
        assert self.expert is not None
        at = torch.randint(len(self.expert[0]), (count, theirs), generator=self.draws, device=self.device)
        parts = zip(own, self.expert, strict=True)
        return tuple(torch.cat([mine, demonstrated[at]], 1) for mine, demonstrated in parts)  # type: ignore[return-value]


class SqilLearner(Learner):
    """The update of several agents as one batch; see `Learner`."""

    def __init__(self, agents: Sequence[SQIL]) -> None:
        super().__init__(agents)

    def _shared(self, agent: SAC) -> tuple[Any, ...]:
        assert isinstance(agent, SQIL)
        return (*super()._shared(agent), agent.imitation)
