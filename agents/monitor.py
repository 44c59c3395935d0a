"""What the discriminator does to imitation, measured while training; estimates at sampled pairs, not bounds.

Slopes are norms of true gradients and Jacobians (the authors' monitors differentiate sums of outputs, which can vanish
where the Jacobian does not). C-validity is theirs: mean exp(-max(0, |grad z| - k)^2), 1 where no pair exceeds k.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .critic_bound import beside_bound
from .gail_batches import agent_pairs, expert_pairs

if TYPE_CHECKING:
    from .gail import GAIL

PAIRS = 1024  # of agent and of expert per measurement
SURE, STEEP = 0.95, 20.0  # accuracy and slope that announce a collapse


class CollapseWarning(UserWarning):
    """The discriminator has won; the message says what to do."""


class Monitor:
    """Measures, with random numbers of its own, so that measuring changes nothing.

    Args:
        seed, device: of its random numbers.
    """

    def __init__(self, *, seed: int, device: torch.device) -> None:
        self.draws = torch.Generator(device).manual_seed(seed)

    def measure(self, agent: "GAIL") -> dict[str, float]:
        """Slopes and answers of the discriminator, slopes of critic and policy.

        Args:
            agent: with demonstrations and data.
        """
        judge, expert = agent.discriminator(), agent.expert
        assert expert is not None
        own, theirs = agent_pairs(agent, PAIRS, self.draws), expert_pairs(agent, PAIRS, self.draws)
        slopes = judge.slopes(judge.leaves, own[None])[0].norm(dim=-1)
        answers = {
            name: judge.logits(judge.leaves, rows[None])[0]
            for name, rows in (("agent", own), ("expert", theirs), ("held", expert.held))
            if len(rows)
        }
        right = (answers["agent"] < 0).float().mean()
        row = {
            "reward/slope_mean": float(slopes.mean()),
            "reward/slope_95": float(slopes.quantile(0.95)),
            "reward/slope_99": float(slopes.quantile(0.99)),
            "reward/slope_max": float(slopes.max()),
            "reward/c_validity": float((-(slopes - agent.reward.k).relu().square()).exp().mean()),
            "reward/logit_gap": float(answers["expert"].mean() - answers["agent"].mean()),
            "reward/accuracy": float(right + (answers["expert"] > 0).float().mean()) / 2,
        }
        if "held" in answers:
            row["reward/accuracy_held"] = float(right + (answers["held"] > 0).float().mean()) / 2
        return row | agent.dynamics_slopes(own) | self.of_agent(agent)

    def of_agent(self, agent: "GAIL") -> dict[str, float]:
        """|grad Q| in standardised state and scaled action, its bound, the Frobenius norm of the policy's Jacobian."""
        rows = min(PAIRS, agent.stored())
        at = torch.randint(agent.stored(), (rows,), generator=self.draws, device=agent.device)
        states, actions, *_ = agent.replay(at.cpu())
        scale = agent.memory.get_buffer("reward_scale")
        of_critic = agent.value_slopes(states, actions)
        norms = torch.cat([of_critic[0] * scale, of_critic[1]], -1).norm(dim=-1)
        jacobian = torch.stack([policy_slope(agent, states, k) * scale for k in range(actions.shape[1])], 1)
        largest = float(torch.linalg.matrix_norm(jacobian, ord=2).max())
        return {
            "critic/slope_mean": float(norms.mean()),
            "critic/slope_95": float(norms.quantile(0.95)),
            "critic/slope_max": float(norms.max()),
            "policy/slope_95": float(jacobian.flatten(1).norm(dim=-1).quantile(0.95)),
        } | beside_bound(agent, at, largest)

    @staticmethod
    def diagnosis(history: Sequence[dict[str, float]]) -> str | None:
        """A sentence with a remedy if the discriminator has won: sure of itself, steep and getting steeper."""
        if len(history) < 3:
            return None
        last, slopes = history[-1], [row["reward/slope_95"] for row in history[-3:]]
        accuracy = last.get("reward/accuracy_held", last["reward/accuracy"])
        if accuracy < SURE or slopes[-1] < STEEP or not slopes[0] < slopes[1] < slopes[2]:
            return None
        grown = ", ".join(f"{slope:.3g}" for slope in slopes)
        return (
            f"the discriminator has won at step {last['timesteps']:.0f}: it tells {accuracy:.0%} of the pairs apart "
            f"and its slope grows ({grown}), so that the reward says little about the way to the expert; regularise it "
            "(regulariser one-sided or certified) or lower ratio"
        )


def policy_slope(agent: "GAIL", states: Tensor, output: int) -> Tensor:
    """Gradient (rows, n) of one scaled action of the deterministic policy at states (rows, n)."""
    point = states.clone().requires_grad_()
    actions = agent.scaled_actions(point)
    slope: Tensor = torch.autograd.grad(actions[:, output].sum(), point)[0]
    return slope
