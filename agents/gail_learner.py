"""The updates of agents of `gail.py` and of their discriminators as one batch."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lipctrl.files import UserError
from lipctrl.seeding import seed_of

from .discriminator import Discriminators
from .gail_batches import OWN
from .pessimism import Pessimism
from .sac import SAC
from .sac_learner import Learner, compiled, has_bounds, side_by_side, soft_update
from .stacked import Stacked
from .td3 import Td3Update
from .update import Batch, Update

if TYPE_CHECKING:
    from .gail import GAIL


class GailLearner(Learner):
    """The updates of several agents and of their discriminators as one batch; see `Learner`.

    Attributes:
        discriminators, pessimism: of all agents. mean, scale: units of the states in the reward, (agents, n).
    """

    _step: Callable[..., Tensor]
    _judge: Callable[..., Tensor]

    def __init__(self, agents: Sequence["GAIL"]) -> None:
        super().__init__(agents)

    def _shared(self, agent: SAC) -> tuple[Any, ...]:
        one = cast("GAIL", agent)
        return (*super()._shared(agent), one.reward, one.imitation, one.td3)

    def _build(self) -> None:
        first = cast("GAIL", self.agents[0])
        n, bit, rest = first.sizes
        seeds = [seed_of(agent.seed or 0, "reward") for agent in self.agents]
        self.discriminators = Discriminators(n + bit + rest, n + bit, first.reward, seeds, first.device)
        of_dynamics = [seed_of(agent.seed or 0, "dynamics") for agent in self.agents]
        self.pessimism = Pessimism(n, rest, first.imitation.pessimism, of_dynamics, first.device)
        self.mean = torch.zeros(len(seeds), n, device=first.device)
        self.scale = torch.ones(len(seeds), n, device=first.device)
        self.stem: Td3Update | Update = (
            deterministic_update(self.agents) if first.deterministic else soft_update(self.agents)
        )
        self.zero = first.absorbing().expand(len(seeds), 1, -1)
        self._step, self._judge = self.step, self.discriminators.step
        if first.compiled:
            self._step = compiled(self.step, first.device, bounded=has_bounds(first))
            self._judge = compiled(self.discriminators.step, first.device, bounded=first.reward.certified)

    def _adopt(self, agent: SAC) -> None:
        if isinstance(self.stem, Update):
            super()._adopt(agent)
        self.discriminators.refresh()
        # what an agent or a checkpoint loads goes into the parameters, behind the back of what is computed from them
        agent.memory.register_load_state_dict_post_hook(lambda *_: self.discriminators.refresh())  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Tensor]:
        """See `Learner`."""
        units = {"reward_mean": self.mean, "reward_scale": self.scale}
        return self.stem.state() | self.discriminators.state() | self.pessimism.state() | units

    @torch.no_grad()
    def step(self, act: bool, *tensors: Tensor) -> Tensor:
        """One update of all agents from the tensors of a `GailBatch` without pairs; losses (agents, 3)."""
        inputs, weights, ending, states, actions, next_states, going, noise, next_noise, changes = tensors
        found = self.discriminators.reward(torch.cat([inputs.flatten(1, 2), self.zero], 1))  # one pass for both
        multipliers = self.pessimism.multipliers(inputs, (weights > 0).to(weights.dtype))
        rewards = (weights * found[:, :-1].view(weights.shape)).sum(-1) * multipliers
        rewards = rewards + ending * found[:, -1:] * self.pessimism.settings.constant
        self.pessimism.learn(inputs[:, :, 0], changes)
        unused = states.new_zeros(len(states), 1, 1)
        batch = Batch(states, actions, rewards, next_states, going, noise, next_noise, unused, unused)
        if isinstance(self.stem, Update):
            return self.stem.step(*batch.tensors())
        return self.stem.step(batch, act=act)

    def run(self, batches: Sequence[Any]) -> list[list[float]]:
        """See `Learner`; the losses are followed by the discriminator's loss and penalty."""
        first = cast("GAIL", self.agents[0])
        self.stem.rate.copy_(torch.tensor([agent.rate() for agent in self.agents]))
        tensors = side_by_side(batches)
        updates, ratio = len(tensors[0]), first.reward.ratio
        own, pairs = tensors[:OWN], tensors[OWN:]
        acts = self._acts(updates)
        totals = torch.zeros(len(batches), 3, device=first.device)
        judged = torch.zeros(len(batches), 2, device=first.device)
        for at in range(updates):
            for k in range(ratio):
                judged += self._judge(*[part[at, :, k] for part in pairs])
            totals += self._step(acts[at], *[part[at] for part in own])
        counts = totals.new_tensor([updates, sum(acts), updates])
        return torch.cat([totals / counts, judged / (updates * ratio)], -1).tolist()

    def _acts(self, updates: int) -> list[bool]:
        """In which of the next updates the actor moves.

        Raises:
            UserError: not the same for all agents.
        """
        first = cast("GAIL", self.agents[0])
        if not first.deterministic:
            return [True] * updates

        def of(agent: SAC) -> list[bool]:
            numbers = range(agent._n_updates + 1, agent._n_updates + updates + 1)
            return [number % first.td3.delay == 0 and number > first.td3.wait for number in numbers]

        if any(of(agent) != of(first) for agent in self.agents):
            raise UserError("agents that are trained together must have made as many updates, up to the actor's delay")
        return of(first)


def deterministic_update(agents: Sequence[SAC]) -> Td3Update:
    """TD3's update of agents of one shape; their parameters become slices of its own."""
    first, count, reduced = cast("GAIL", agents[0]), len(agents), agents[0].products == "bfloat16"
    policies: list[Any] = [agent.policy for agent in agents]

    def numbers() -> Tensor:
        return torch.zeros(count, device=first.device, dtype=torch.float64)

    return Td3Update(
        actors=Stacked([policy.actor.mu for policy in policies], reduced=reduced),
        actor_targets=Stacked([policy.actor_target.mu for policy in policies], reduced=reduced),
        critics=Stacked([net for agent in agents for net in agent.critic.q_networks], reduced=reduced),
        targets=Stacked([net for agent in agents for net in agent.critic_target.q_networks], reduced=reduced),
        discount=first.gamma,
        tau=first.tau,
        settings=first.td3,
        count=numbers(),
        actor_count=numbers(),
        rate=numbers(),
    )
