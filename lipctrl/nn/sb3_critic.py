"""The critic of a Stable-Baselines3 zip as plain networks in raw units: what critic attacks descend."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.sb3 import layers_to_plain, load_policy

Array = NDArray[np.float64]


def load_critic(path: Path, *, policy: PlainNet | None = None) -> tuple[PlainNet, ...]:
    """The critic of a zip. Loading unpickles: open only files that you trust.

    Args:
        path: of the zip.
        policy: its exported policy where it was trained behind VecNormalize, whose statistics the zip lacks.

    Returns:
        The Q networks of SAC, TD3 or DDPG, each from (observation, action) side by side; or the one value network of
        PPO or A2C, from the observation. Inputs are in raw units. Values are those that the algorithm was trained on
        (discounted, with rewards normalised where VecNormalize did so).

    Raises:
        UserError: damaged, no critic inside, or one of other layers than those that can be exported.
    """
    agent = load_policy(path)
    if isinstance(agent, SACPolicy | TD3Policy) and not hasattr(agent, "critic"):
        raise UserError(
            f"the critics of {path} have LayerNorm or predict distributions, and only plain ones can be read: fit one "
            "with lipctrl attack fit --attack robust-sarsa"
        )
    if isinstance(agent, SACPolicy | TD3Policy):
        space = agent.action_space
        low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)  # type: ignore[attr-defined]
        nets = [layers_to_plain(list(net)) for net in agent.critic.q_networks]  # type: ignore[call-overload]
        return tuple(_from_raw(net, low, high, policy) for net in nets)
    if isinstance(agent, ActorCriticPolicy):
        parts = [*agent.mlp_extractor.value_net, agent.value_net]
        return (_from_raw(layers_to_plain(parts), np.zeros(0), np.zeros(0), policy),)
    raise UserError(f"{path} holds no critic: {type(agent).__name__} has none; use one of SAC, TD3, DDPG, PPO or A2C")


def _from_raw(net: PlainNet, low: Array, high: Array, policy: PlainNet | None) -> PlainNet:
    """Put in front what the algorithm does to its inputs: actions go from [low, high] to [-1, 1], observations through
    VecNormalize's (x - mean) / std, clipped."""
    n = net.input_size - len(low)
    slope = 2 / (high - low)
    scale, offset = np.concatenate([np.ones(n), slope]), np.concatenate([np.zeros(n), -1 - slope * low])
    blocks, biases = [dict(row) for row in net.blocks], list(net.biases)
    for k, row in enumerate(blocks):
        if 0 in row:
            biases[k] = biases[k] + row[0] @ offset
            row[0] = row[0] * scale
    if policy is None or policy.input_scale is None or policy.input_mean is None:
        return replace(net, blocks=tuple(blocks), biases=tuple(biases), multipliers=None)
    first = policy.blocks[0][0]  # the exported policy begins with the same clipped normalisation
    clip = 1 / (np.diag(first) * policy.input_scale)
    observed, acted = np.eye(n + len(low))[:, :n], np.diag(np.concatenate([np.zeros(n), np.ones(len(low))]))
    shifted = [{0: np.hstack([first, np.zeros((n, len(low)))])}]
    for row in blocks:
        moved = {j + 1: w for j, w in row.items() if j > 0}
        if 0 in row:
            moved |= {0: row[0] @ acted, 1: (row[0] @ observed) * clip}
        shifted.append(moved)
    return replace(
        net,
        blocks=tuple(shifted),
        biases=(policy.biases[0], *biases),
        activations=(policy.activations[0], *net.activations),
        multipliers=None,
    )
