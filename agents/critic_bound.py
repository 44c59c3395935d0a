"""The critic's slope beside the bound of the value that it approximates (S3 and S7 of `certify.value_bounds`).

The reward's constant is proved; those of dynamics and policy are the largest slopes that were seen, in standardised
states and scaled actions. They are lower bounds, so that a bound which is vacuous with them is vacuous for certain, and
one that is not is an estimate. The noise on TD3's target actions changes nothing: it is the same in two states.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipctrl.certify.guarantees import Guarantee
from lipctrl.certify.value_bounds import compare_critic, infinite_bound, one_step_lip
from lipctrl.nn.reward_forms import reward_slope

from .pessimism import preconditioned

if TYPE_CHECKING:
    from .gail import GAIL

APART = 1e-3  # of two points whose slope is not rounding


def reward_constant(agent: "GAIL") -> Guarantee:
    """Of the reward over standardised state and scaled action; vacuous where none is proved."""
    settings = agent.reward
    quantity, unit = "slope of the reward", "per standardised state and scaled action"
    if not settings.certified:
        return Guarantee(quantity, None, unit, reason="a penalty proves nothing")
    clip = float("inf") if settings.clip is None else settings.clip
    return preconditioned(agent.imitation.pessimism, settings.k * reward_slope(settings.form, clip))


def steepest(points: Tensor, values: Tensor) -> float:
    """Largest |change of the value| / |change of the point| between two of the rows (rows, d) and (rows, n)."""
    far, changes = (torch.cdist(part.double(), part.double()) for part in (points, values))
    return float(torch.where(far > APART, changes / far, 0.0).max())


def beside_bound(
    agent: "GAIL", rows: tuple[Tensor, Tensor, Tensor], policy_lip: float, norms: Tensor
) -> dict[str, float]:
    """Discount times the one-step constant, and the bound of the value's slope: NaN where it is vacuous.

    Nothing without a proved constant of the reward, or with SAC, whose values hold an entropy.

    Args:
        rows: standardised states (rows, n), scaled actions (rows, m), standardised next states (rows, n).
        policy_lip: largest slope seen of the policy. norms: |grad Q|, (rows,).
    """
    reward = reward_constant(agent)
    if reward.value is None or not agent.deterministic:
        return {}
    states, actions, next_states = rows
    dynamics_lip = steepest(torch.cat([states, actions], -1), next_states)
    step = one_step_lip(dynamics_lip, policy_lip)
    # a reward of the next state changes with state and action as much as that one does
    reward_lip = reward.value * (math.hypot(1.0, dynamics_lip) if agent.reward.inputs == "state-next" else 1.0)
    found = compare_critic(infinite_bound(reward_lip, step, agent.gamma), norms.cpu().numpy())
    bound = found.certificate.value
    return {"critic/growth": agent.gamma * step, "critic/bound": float("nan") if bound is None else bound}


def bound_line(rows: list[dict[str, float]]) -> str:
    """What the last rows of diagnostics of all agents say of critic and bound; nothing without one."""
    if not rows or "critic/growth" not in rows[0]:
        return ""
    worst = max(rows, key=lambda row: row["critic/growth"])
    high, top = (max(row[f"critic/slope_{name}"] for row in rows) for name in ("95", "max"))
    seen = f"slope of the critic at sampled pairs, normalised units: 95 % below {high:.4g}, largest {top:.4g}"
    if worst["critic/growth"] >= 1:
        return (
            f"{seen}; a bound of the value's slope is vacuous: discount times the one-step constant is at least "
            f"{worst['critic/growth']:.3g}, not below 1"
        )
    bound = f"{worst['critic/bound']:.4g}"
    return f"{seen}; the value's is at most {bound} if dynamics and policy are nowhere steeper than seen"
