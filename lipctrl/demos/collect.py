"""Roll any policy in any environment and record it, with dither so that the data cover more than one path."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lipctrl.demos.demonstrations import Demonstrations, Trajectory
from lipctrl.files import UserError
from lipctrl.policy import Policy
from lipctrl.seeding import generator, seed_of

Array = NDArray[np.float64]


def collect(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    *,
    episodes: int,
    dither: float,
    seed: int,
    max_steps: int | None = None,
    acting: Policy | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Trajectory]:
    """Record episodes of a policy.

    Args:
        env: a gymnasium environment with Box spaces of one axis.
        policy: the expert. Its undithered answer is stored as the label.
        episodes: number of episodes.
        dither: standard deviation of Gaussian noise added to the action, in the action's raw unit, before clipping.
        seed: of start states and dither; every episode has its own.
        max_steps: truncate episodes after this many steps, besides the environment's own limit.
        acting: who drives while the expert labels; by default the expert itself.
        progress: called with the number of finished episodes after each.

    Raises:
        UserError: the policy answers with something that is not finite.
    """
    acting = acting or policy
    return [_episode(env, policy, acting, dither, seed, e, max_steps, progress) for e in range(episodes)]


def _episode(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    acting: Policy,
    dither: float,
    seed: int,
    episode: int,
    max_steps: int | None,
    progress: Callable[[int], object],
) -> Trajectory:
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    noise = generator(seed, "dither", episode)
    observation, _ = env.reset(seed=seed_of(seed, "start", episode))
    observations, actions, labels, rewards = [np.asarray(observation, dtype=np.float64)], [], [], []
    terminated = truncated = False
    hidden: Any = None  # MPC takes its warm start from it
    while not (terminated or truncated):
        answer, hidden = policy.predict(observations[-1], hidden, deterministic=True)
        label = np.asarray(answer, dtype=np.float64)
        if not np.isfinite(label).all():
            raise UserError(f"the expert answered {label} to the observation {observations[-1]}")
        driven = label
        if acting is not policy:
            driven = np.asarray(acting.predict(observations[-1], deterministic=True)[0], dtype=np.float64)
        action = np.clip(driven + dither * noise.standard_normal(label.shape), space.low, space.high)
        observation, reward, terminated, truncated, _ = env.step(action.astype(space.dtype))
        observations.append(np.asarray(observation, dtype=np.float64))
        actions.append(action.astype(space.dtype).astype(np.float64))
        labels.append(label)
        rewards.append(float(reward))
        truncated = truncated or (max_steps is not None and len(rewards) >= max_steps)
    progress(episode + 1)
    return Trajectory(
        np.array(observations), np.array(actions), np.array(labels), np.array(rewards), terminated, truncated
    )


def record(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    *,
    expert: str,
    episodes: int,
    dither: float,
    seed: int,
    versions: dict[str, str],
    max_steps: int | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Demonstrations:
    """`collect`, with provenance.

    Args:
        expert: one line that says what the expert is.
        versions: of the packages that made the data.
    """
    trajectories = collect(
        env, policy, episodes=episodes, dither=dither, seed=seed, max_steps=max_steps, progress=progress
    )
    assert env.spec is not None
    provenance = {
        "env_id": env.spec.id,
        "env_spec": env.spec.to_json(),
        "expert": expert,
        "dither": dither,
        "seed": seed,
        "versions": versions,
    }
    return Demonstrations.from_trajectories(trajectories, provenance)
