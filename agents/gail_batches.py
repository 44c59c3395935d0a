"""What off-policy imitation samples: windows of the replay buffer and pairs of agent and expert.

A window of several steps stops where an episode ends or the data do. The absorbing state is among the pairs in its
share: every failure adds one.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .discriminator import Pairs

if TYPE_CHECKING:
    from .gail import GAIL


@dataclass
class GailBatch:
    """What an update needs, with a leading axis of updates, or of agents in its place.

    Attributes:
        inputs: of the reward at every step of every window, (..., batch, n_step, d).
        weights: discount of each of these rewards, 0 behind the window's end, (..., batch, n_step).
        ending: discount of the absorbing state's value, 0 where the episode goes on, (..., batch).
        states, actions, next_states: of the first step of a window and behind its last one.
        going: discount of the value of the next state beyond that of one step, (..., batch).
        noise, next_noise: standard normal, (..., batch, m).
        changes: of the standardised state in the first step, (..., batch, n), or (..., batch, 0): not needed.
        pairs: the fields of `Pairs` with a further axis of the discriminator's steps before their batch.
    """

    inputs: Tensor
    weights: Tensor
    ending: Tensor
    states: Tensor
    actions: Tensor
    next_states: Tensor
    going: Tensor
    noise: Tensor
    next_noise: Tensor
    changes: Tensor
    pairs: Pairs

    def tensors(self) -> list[Tensor]:
        """All fields in order."""
        return [*list(vars(self).values())[:-1], *self.pairs.tensors()]


OWN = len(fields(GailBatch)) - 1  # tensors of the agent's update; those of the discriminator's follow


@dataclass(frozen=True)
class Expert:
    """The expert's pairs as inputs of a discriminator.

    Attributes:
        pairs, held: (rows, d) that are trained on and that are held out.
        absorbed: weight of the absorbing state among the pairs, in pairs.
    """

    pairs: Tensor
    held: Tensor
    absorbed: float


def sampled(agent: "GAIL", count: int, size: int) -> GailBatch:
    """What `count` updates need, without the agents' axis."""
    at = torch.randint(agent.stored(), (count * size,), generator=agent.draws, device=agent.device).cpu()
    rows, lengths, ended = windows(agent, at)
    states, actions = _states_actions(agent, rows.flatten())
    n = agent.sizes[0]
    steps = agent.imitation.n_step
    m = actions.shape[-1]
    inputs = _inputs(agent, rows.flatten(), states, actions).view(count, size, steps, -1)
    power = torch.arange(steps)
    discounts = torch.as_tensor(agent.gamma, dtype=torch.float32) ** power
    weights = torch.where(power < lengths[:, None], discounts, 0.0).view(count, size, steps)
    last = rows.gather(1, (lengths - 1)[:, None]).squeeze(1)
    reach = agent.gamma**lengths
    absorbed = reach / (1 - agent.gamma) * ended if agent.reward.absorbing else torch.zeros(len(at))
    going = agent.gamma ** (lengths - 1) * (1 - ended)
    noise, next_noise = (torch.randn((count, size, m), generator=agent.draws, device=agent.device) for _ in range(2))
    device = agent.device
    return GailBatch(
        inputs,
        weights.to(device),
        absorbed.float().view(count, size).to(device),
        states.view(count, size, steps, n)[:, :, 0],
        actions.view(count, size, steps, m)[:, :, 0],
        _next_states(agent, last).view(count, size, n),
        going.float().view(count, size).to(device),
        noise,
        next_noise,
        _changes(agent, rows[:, 0]).view(count, size, -1),
        _pairs(agent, count),
    )


def windows(agent: "GAIL", at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windows of the replay buffer that begin at given rows and stop where an episode ends or the data do.

    Returns:
        Their rows (count, n_step), lengths (count,), and 1 where the last step ended the episode, (count,), for
        good: not by a time limit.
    """
    memory = agent.replay_buffer
    assert memory is not None
    size, newest = memory.size(), (memory.pos - 1) % memory.buffer_size
    rows = (at[:, None] + torch.arange(agent.imitation.n_step)) % size
    done = torch.from_numpy(memory.dones[:, 0])[rows] > 0
    stop = done | (rows == newest)
    lengths = 1 + (~stop[:, :-1]).long().cumprod(1).sum(1)
    last = rows.gather(1, (lengths - 1)[:, None]).squeeze(1)
    timeouts = torch.from_numpy(memory.timeouts[:, 0])[last]
    return rows, lengths, torch.from_numpy(memory.dones[:, 0])[last] * (1 - timeouts)


def _states_actions(agent: "GAIL", rows: Tensor) -> tuple[Tensor, Tensor]:
    memory = agent.replay_buffer
    parts = (memory.observations, memory.actions)  # type: ignore[union-attr]
    states, actions = (torch.from_numpy(part[:, 0])[rows] for part in parts)
    return states.to(agent.device, torch.float32), actions.to(agent.device, torch.float32)


def _next_states(agent: "GAIL", rows: Tensor) -> Tensor:
    found = torch.from_numpy(agent.replay_buffer.next_observations[:, 0])[rows]  # type: ignore[union-attr]
    return found.to(agent.device, torch.float32)


def _inputs(agent: "GAIL", rows: Tensor, states: Tensor, actions: Tensor) -> Tensor:
    """Of the discriminator, in the transitions of these rows."""
    following = _next_states(agent, rows) if agent.reward.inputs == "state-next" else None
    return agent.inputs(states, actions, following)


def _changes(agent: "GAIL", rows: Tensor) -> Tensor:
    """Of the standardised state in the transitions of these rows, for learned dynamics."""
    if not agent.imitation.pessimism.learned:
        return torch.zeros(len(rows), 0, device=agent.device)
    return (_next_states(agent, rows) - _states_actions(agent, rows)[0]) / agent.memory.get_buffer("reward_scale")


def agent_pairs(agent: "GAIL", count: int, draws: torch.Generator) -> Tensor:
    """Inputs (count, d) of random pairs of the replay buffer; every failure adds one pair, the absorbing state."""
    memory, stored = agent.replay_buffer, agent.stored()
    assert memory is not None
    ended = memory.dones[:stored, 0] > memory.timeouts[:stored, 0]  # a count kept beside would save 0.1 ms per million
    failures = float(np.count_nonzero(ended)) if agent.reward.absorbing else 0.0

    def pairs(rows: Tensor) -> Tensor:
        return _inputs(agent, rows, *_states_actions(agent, rows))

    return _with_absorbing(agent, pairs, stored, failures, count, draws)


def expert_pairs(agent: "GAIL", count: int, draws: torch.Generator) -> Tensor:
    """Inputs (count, d) of random pairs of the expert, the absorbing state among them."""
    expert = agent.expert
    assert expert is not None
    return _with_absorbing(agent, lambda at: expert.pairs[at], len(expert.pairs), expert.absorbed, count, draws)


def _with_absorbing(
    agent: "GAIL", rows: Any, stored: int, absorbed: float, count: int, draws: torch.Generator
) -> Tensor:
    at = torch.randint(stored, (count,), generator=draws, device=agent.device)
    found: Tensor = rows(at.cpu() if agent.device.type != "cpu" else at)
    if not absorbed:
        return found
    hit = torch.rand(count, generator=draws, device=agent.device) < absorbed / (absorbed + stored)
    return torch.where(hit[:, None], agent.absorbing(), found)


def _pairs(agent: "GAIL", count: int) -> Pairs:
    """Fields of `Pairs` with leading axes (updates, steps of the discriminator)."""
    settings, draws, device = agent.reward, agent.draws, agent.device
    lead, total = (count, settings.ratio), count * settings.ratio * settings.batch
    d = sum(agent.sizes)

    def uniform(*shape: int) -> Tensor:
        return torch.rand((*lead, *shape), generator=draws, device=device)

    noisy = settings.penalised and settings.points in ("dragan", "nagard")
    noise = torch.randn((*lead, settings.batch, d if noisy else 0), generator=draws, device=device)
    return Pairs(
        agent_pairs(agent, total, draws).view(*lead, settings.batch, d),
        expert_pairs(agent, total, draws).view(*lead, settings.batch, d),
        uniform(settings.batch, 2),
        noise,
        uniform(settings.batch),
        uniform(settings.batch),
        uniform(2 * settings.batch, sum(settings.widths) if settings.dropout else 0),
    )
