"""The update of several soft actor-critics as one batch; what an agent of `sac.py` remembers is a slice of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lipctrl.files import UserError
from lipctrl.nn.graph import GraphNet
from lipctrl.nn.sb3 import LipschitzSacActor

from .regularisation import Smoothness
from .stacked import Stacked
from .update import Update

if TYPE_CHECKING:
    from .sac import SAC

SHAPES = 64  # of agents that one process may compile; torch's own limit is 8
LOG_STD = (-20, 2)  # SB3's limits
EXACT = 100  # updates between exact projections under a hard spectral bound; power iteration lags behind


class Memory(nn.Module):
    """What an agent must remember to go on exactly, besides its policy: slices of what its learner holds.

    Args:
        state: by name, the agents' parts one after the other along the leading axis.
        agent, agents: which part, of how many.
    """

    log_temperature: Tensor
    count: Tensor
    beta: Tensor

    def __init__(self, state: Mapping[str, Tensor], agent: int, agents: int) -> None:
        super().__init__()
        for name, value in state.items():
            each = len(value) // agents
            self.register_buffer(name, value[agent * each : (agent + 1) * each])


class StackedActors:
    """SB3's actors, ordinary or Lipschitz, as one function.

    Args:
        actors: of equal structure. reduced: see `Stacked`.
    """

    def __init__(self, actors: Sequence[Any], *, reduced: bool = False) -> None:
        self._bounded = isinstance(actors[0], LipschitzSacActor)  # its mean is a network of its own
        names = ("latent_pi", "mu", "log_std")
        self._parts = [Stacked([getattr(a, name) for a in actors], reduced=reduced) for name in names]
        self.leaves = [leaf for part in self._parts for leaf in part.leaves]

    def __call__(self, leaves: Sequence[Tensor], states: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before squashing, (actors, batch, m), at states (actors, batch, n)."""
        rest, split = list(leaves), []
        for part in self._parts:
            split.append(rest[: len(part.leaves)])
            rest = rest[len(part.leaves) :]
        trunk, mean, log_std = self._parts
        h = trunk(split[0], states)
        if self._bounded:
            return mean(split[1], states), log_std(split[2], h).clamp(*LOG_STD)
        both = [torch.cat(pair, 1) for pair in zip(split[1], split[2], strict=True)]  # two heads, one product
        means, log_stds = mean(both, h).chunk(2, -1)
        return means, log_stds.clamp(*LOG_STD)


class Learner:
    """The update of several agents as one batch; it becomes the learner of each.

    Args:
        agents: of one shape and with equal settings of the update.

    Attributes:
        agents: whose parameters are slices of the update's. update: see there. each: critics per agent.

    Raises:
        UserError: agents that differ in what they share.
    """

    update: Update

    def __init__(self, agents: Sequence["SAC"]) -> None:
        first, self.agents = agents[0], list(agents)
        shared = [self._shared(agent) for agent in agents]
        if any(one != shared[0] for one in shared):
            raise UserError("agents that are trained together must have the same networks and settings of the update")
        before = [getattr(agent, "memory", None) for agent in agents]
        self.each = len(first.critic.q_networks)
        self._build()
        for k, agent in enumerate(agents):
            memory, agent.memory, agent.learner = before[k], Memory(self.state(), k, len(agents)), self
            if memory is not None:
                agent.memory.load_state_dict(memory.state_dict())
            self._adopt(agent)

    def _shared(self, agent: "SAC") -> tuple[Any, ...]:
        """What agents must have in common."""
        of_update = (agent.gamma, agent.tau, agent.target_entropy, agent.smoothness)
        return (*of_update, agent.device, agent.compiled, agent.products, str(agent.policy))

    def _build(self) -> None:
        """Stack what the agents learn."""
        self.update = soft_update(self.agents)
        first = self.agents[0]
        self._step: Callable[..., Tensor] = self.update.step
        if first.compiled:
            self._step = compiled(self.update.step, first.device, bounded=has_bounds(first))

    def _adopt(self, agent: "SAC") -> None:
        """Let an agent see what it learns."""
        if agent.log_ent_coef is not None:
            agent.log_ent_coef.data = agent.memory.log_temperature

    def state(self) -> dict[str, Tensor]:
        """All that is learned or counted besides the parameters of policies, by name."""
        return self.update.state()

    def run(self, batches: Sequence[Any]) -> list[list[float]]:
        """As many updates as the batches hold; mean critics' loss, actor's loss and temperature of each agent."""
        self.update.rate.copy_(torch.tensor([agent.rate() for agent in self.agents]))
        losses = [
            self._step(*fields) for fields in zip(*[part.unbind(0) for part in side_by_side(batches)], strict=True)
        ]
        before = self.agents[0]._n_updates
        if before // EXACT != (before + len(losses)) // EXACT:
            self.update.project_exactly()
        return torch.stack(losses).mean(0).tolist()


def side_by_side(batches: Sequence[Any]) -> list[Tensor]:
    """The fields of every agent's batches (updates, ...) with the agents' axis, (updates, agents, ...)."""
    fields = zip(*[batch.tensors() for batch in batches], strict=True)
    return [torch.stack(parts, 1) if len(parts) > 1 else parts[0].unsqueeze(1) for parts in fields]


def soft_update(agents: Sequence["SAC"]) -> Update:
    """The update of agents of one shape; their parameters become slices of its own."""
    first, device, count = agents[0], agents[0].device, len(agents)
    smooth, reduced = first.smoothness, first.products == "bfloat16"
    critics = Stacked([net for agent in agents for net in agent.critic.q_networks], reduced=reduced)
    targets = Stacked([net for agent in agents for net in agent.critic_target.q_networks], reduced=reduced)
    actors = StackedActors([agent.actor for agent in agents], reduced=reduced)
    constrained = _constrained(critics, smooth)
    matrices = [critics.leaves[k] for k in constrained]
    tuned = first.ent_coef_optimizer is not None
    return Update(
        actor=actors,
        actor_leaves=actors.leaves,
        critics=critics,
        targets=targets,
        log_temperature=torch.stack([_log_temperature(agent) for agent in agents]),
        target_entropy=float(first.target_entropy) if tuned else None,
        discount=first.gamma,
        tau=first.tau,
        smoothness=smooth,
        constrained=constrained,
        right=[torch.linalg.svd(matrix, full_matrices=False).Vh[:, 0].clone() for matrix in matrices],
        count=torch.zeros(count, device=device, dtype=torch.float64),
        rate=torch.zeros(count, device=device, dtype=torch.float64),
        beta=torch.full((count,), float("inf") if smooth.beta is None else smooth.beta, device=device),
        limits=first.target_limits(),
    )


def has_bounds(agent: "SAC") -> bool:
    """Whether actor or critics are bounded networks."""
    return any(isinstance(part, GraphNet) for part in agent.policy.modules())


def compiled(step: Callable[..., Tensor], device: torch.device, *, bounded: bool) -> Callable[..., Tensor]:
    """A step as one compiled function; every shape of agents is compiled once per process.

    Args:
        bounded: the step computes bounded networks' matrices. Without, on a processor, the calls of the kernels are
            compiled too; for parts of those matrices torch has no such call, says so at length, and gains little.
    """
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    return torch.compile(step, fullgraph=True, options={"cpp_wrapper": device.type == "cpu" and not bounded})


def train_together(agents: Sequence["SAC"], gradient_steps: int, batch_size: int) -> None:
    """Updates of several agents that share a learner, each from its own replay buffer."""
    learner = agents[0].learner
    for agent in agents:
        agent.policy.set_training_mode(True)
        agent.prepare()
    start = time.perf_counter()
    losses = learner.run([agent.batches(gradient_steps, batch_size) for agent in agents])
    for agent in agents:
        agent.seconds["updates"] += (time.perf_counter() - start) / len(agents)
    for agent, row in zip(agents, losses, strict=True):
        agent.report(row, gradient_steps)


def _log_temperature(agent: "SAC") -> Tensor:
    if agent.log_ent_coef is not None:
        return agent.log_ent_coef.detach().squeeze().clone()
    return agent.ent_coef_tensor.detach().log().squeeze()


def _constrained(critics: Stacked, smoothness: Smoothness) -> list[int]:
    """Which of the critics' leaves are constrained.

    Raises:
        UserError: a constraint on critics that are not made of linear layers.
    """
    if smoothness.spectral == "none":
        return []
    matrices = critics.matrices()
    if len(matrices) < 2:
        raise UserError("a spectral constraint needs critics of linear layers; bounded critics have their own")
    return {"all": matrices, "hidden": matrices[:-1], "penultimate": matrices[-2:-1]}[smoothness.layers]
