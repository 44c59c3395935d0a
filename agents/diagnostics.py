"""What a critic's smoothness does to model-based learning: the quantities of Zheng et al. 2023 (arXiv 2302.01244).

Slopes are in the unit of each observation's standard deviation. Value-aware model error: V(predicted next state) less
V(real next state), averaged over samples of the model, as a root mean square over transitions that the model was not
fitted to (Farahmand et al. 2017, with the current V in the place of the worst one); also divided by the spread of V,
because whoever shrinks V shrinks the raw error.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .regularisation import perturb

if TYPE_CHECKING:
    from .mbpo import MBPO

STATES = 2048  # real states at which slopes are measured
SAMPLES = 8  # of the model, and of the policy, per transition
SEARCH = 20  # ascent steps of the secant's search


class Diagnostics:
    """Measures, with random numbers of its own, so that measuring changes nothing.

    Args:
        seed, device: of its random numbers.
    """

    def __init__(self, *, seed: int, device: torch.device) -> None:
        self.draws = torch.Generator(device).manual_seed(seed)

    def measure(self, agent: "MBPO", *, newest: int) -> dict[str, float]:
        """Estimates of Q's Lipschitz constant and the value-aware model error.

        Args:
            agent: whose critics and model are measured.
            newest: number of latest real transitions, which the model has not seen.
        """
        stored = agent.stored()
        at = torch.randint(stored, (min(STATES, stored),), generator=self.draws, device=agent.device)
        states, actions, *_ = agent.replay(at.cpu())
        slopes = self.slopes(agent, states, actions)
        error, relative = self.value_error(agent, newest)
        return {
            "critic/slope_mean": float(slopes.mean()),
            "critic/slope_95": float(slopes.quantile(0.95)),
            "critic/slope_max": float(slopes.max()),
            "critic/secant": float(self.secants(agent, states, actions).mean()),
            "value/model_error": error,
            "value/model_error_relative": relative,
        }

    def slopes(self, agent: "MBPO", states: Tensor, actions: Tensor) -> Tensor:
        """|sigma * grad_s Q|_2 of the mean of the critics, (rows,)."""
        point = states.clone().requires_grad_()
        slope: Tensor = torch.autograd.grad(_values(agent, point, actions).mean(0).sum(), point)[0]
        return (slope * agent.deviation()).square().sum(-1).sqrt()

    def secants(self, agent: "MBPO", states: Tensor, actions: Tensor) -> Tensor:
        """|Q(s + d) - Q(s)| / |d / sigma|_2 for the worst d found in the box of epsilon deviations, (rows,)."""
        radius = agent.smoothness.epsilon * agent.deviation()
        start = 2 * torch.rand(states.shape, generator=self.draws, device=agent.device) - 1

        def values(at: Tensor) -> Tensor:
            return _values(agent, at, actions).mean(0)

        moved = perturb(values, states, radius, start, kind="pgd", steps=SEARCH)
        with torch.no_grad():
            change: Tensor = (values(moved) - values(states)).abs()
            length = ((moved - states) / agent.deviation()).square().sum(-1).sqrt()
            return change / length.clamp(min=1e-12)

    @torch.no_grad()
    def value_error(self, agent: "MBPO", newest: int) -> tuple[float, float]:
        """Root mean square of the value-aware model error on the latest transitions, raw and per spread of V."""
        stored = agent.stored()
        states, actions, _, next_states, _ = agent.replay(_latest(agent, min(newest, stored)))
        true = self.value(agent, next_states)
        found = torch.zeros_like(true)
        for _ in range(SAMPLES):
            predicted, _ = agent.model.sample(states, actions, self.draws)
            found += self.value(agent, predicted) / SAMPLES
        error = float((found - true).square().mean().sqrt())
        return error, error / max(float(true.std()), 1e-12)

    def value(self, agent: "MBPO", states: Tensor) -> Tensor:
        """V(s), the mean of the smaller critic over the policy's actions, (rows,); every call draws the same noise."""
        noise = torch.Generator(agent.device).manual_seed(0)
        found = [_values(agent, states, agent.explore(states, noise)).amin(0) for _ in range(SAMPLES)]
        return torch.stack(found).mean(0)


def _values(agent: "MBPO", states: Tensor, actions: Tensor) -> Tensor:
    pairs = torch.cat([states, actions], -1)
    return torch.stack([net(pairs).squeeze(-1) for net in agent.critic.q_networks])


def _latest(agent: "MBPO", count: int) -> Tensor:
    """Numbers of the newest rows of the replay buffer."""
    memory = agent.replay_buffer
    assert memory is not None
    return (torch.arange(count) + memory.pos - count) % memory.buffer_size
