"""The critic's slope beside the bound of the value that it approximates (S3 and S7 of `certify.value_bounds`).

The reward's constant is proved; those of dynamics and policy are the largest slopes that were seen, in standardised
states and scaled actions. They are lower bounds, whatever rounding did to the stored numbers, so that a bound which is
vacuous with them is vacuous for certain if the dynamics are deterministic, and one that is not is an estimate. Where
episodes end the value jumps and has no bound. The noise on TD3's target actions changes nothing: it is the same in two
states.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lipctrl.certify.guarantees import Guarantee
from lipctrl.certify.value_bounds import infinite_bound, one_step_lip
from lipctrl.nn.reward_forms import reward_slope

from .pessimism import preconditioned

if TYPE_CHECKING:
    from .gail import GAIL

APART = 1e-3  # of two points, between which a simulator's tolerances and hidden state are small
# Relative error of a stored observation or action: half of float32's spacing, with room for the action's scaling.
ROUNDED = 4 * float(np.finfo(np.float32).eps)


def reward_constant(agent: "GAIL") -> Guarantee:
    """Of the reward over standardised state and scaled action; vacuous where none is proved."""
    settings = agent.reward
    quantity, unit = "slope of the reward", "per standardised state and scaled action"
    if not settings.certified:
        return Guarantee(quantity, None, unit, reason="a penalty proves nothing")
    clip = float("inf") if settings.clip is None else settings.clip
    return preconditioned(agent.imitation.pessimism, settings.k * reward_slope(settings.form, clip))


def episodes_end(agent: "GAIL") -> bool:
    """Whether an episode of agent or expert ended otherwise than by its time limit."""
    memory, demonstrations = agent.replay_buffer, agent.demonstrations
    of_expert = demonstrations is not None and demonstrations.terminations.any()
    return bool(of_expert or (memory is not None and (memory.dones > memory.timeouts).any()))


def steepest(points: Tensor, values: Tensor, errors: tuple[Tensor, Tensor]) -> float:
    """What |change of the value| / |change of the point| is at least between some two rows, or 0.

    Args:
        points, values: (rows, d) and (rows, n), float64. errors: l2 distances at most from the true ones, (rows,) each.
    """
    exact = "donot_use_mm_for_euclid_dist"  # squares of uncentred rows would cancel
    far, changes = (torch.cdist(part, part, compute_mode=exact) for part in (points, values))
    of_points, of_values = (error[:, None] + error for error in errors)
    return float(torch.where(far > APART, (changes - of_values) / (far + of_points), 0.0).max())


def dynamics_lip(agent: "GAIL", at: Tensor) -> float:
    """Lower bound of the slope of the dynamics in standardised states and scaled actions, from transitions (rows,).

    In float64, since a state may lie many of its deviations from 0.
    """
    memory = agent.replay_buffer
    assert memory is not None
    scale = agent.memory.get_buffer("reward_scale").double().cpu()
    states, actions, next_states = (
        torch.from_numpy(part[at.cpu().numpy(), 0]).double()
        for part in (memory.observations, memory.actions, memory.next_observations)
    )
    states, next_states = states / scale, next_states / scale
    errors = (torch.cat([states, torch.ones_like(actions)], -1).norm(dim=-1), next_states.norm(dim=-1))
    return steepest(torch.cat([states, actions], -1), next_states, (ROUNDED * errors[0], ROUNDED * errors[1]))


def beside_bound(agent: "GAIL", at: Tensor, policy_lip: float) -> dict[str, float]:
    """Discount times the one-step constant, and the bound of the value's slope: NaN where it is vacuous.

    Nothing without a proved constant of the reward, or with SAC, whose values hold an entropy.

    Args:
        at: numbers of stored transitions, (rows,). policy_lip: largest slope seen of the policy.
    """
    reward = reward_constant(agent)
    if reward.value is None or not agent.deterministic:
        return {}
    of_dynamics = dynamics_lip(agent, at)
    step = one_step_lip(of_dynamics, policy_lip)
    # a reward of the next state changes with state and action as much as that one does
    reward_lip = reward.value * (math.hypot(1.0, of_dynamics) if agent.reward.inputs == "state-next" else 1.0)
    bound = None if episodes_end(agent) else infinite_bound(reward_lip, step, agent.gamma).value
    return {"critic/growth": agent.gamma * step, "critic/bound": float("nan") if bound is None else bound}


def bound_line(rows: list[dict[str, float]]) -> str:
    """What the last rows of diagnostics of all agents say of critic and bound; nothing without one."""
    if not rows or "critic/growth" not in rows[0]:
        return ""
    growth, bounds = (np.array([row[f"critic/{name}"] for row in rows]) for name in ("growth", "bound"))
    high, top = (max(row[f"critic/slope_{name}"] for row in rows) for name in ("95", "max"))
    seen = f"slope of the critic at sampled pairs, normalised units: 95 % below {high:.4g}, largest {top:.4g}"
    if growth.max() >= 1:
        return (
            f"{seen}; a bound of the value's slope is vacuous: discount times the one-step constant is at least "
            f"{growth.max():.3g}, not below 1"
        )
    if np.isnan(bounds).any():
        return f"{seen}; the value's has no bound: episodes end here, and there it jumps"
    line = f"{seen}; the value's is at most {bounds.max():.4g} if dynamics and policy are nowhere steeper than seen"
    if any(row["critic/slope_max"] > row["critic/bound"] for row in rows):
        line += ", and then a critic that is steeper is not the value of its policy"
    return line
