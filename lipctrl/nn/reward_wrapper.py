"""An environment with a learned reward in the place of its own, so that a fresh agent can be trained on it."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from lipctrl.files import UserError
from lipctrl.nn.reward import LearnedReward


class RewardWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """`step` returns the learned reward; the environment's own is in `info["environment_reward"]`.

    At the end of an episode `info["environment_return"]` is the sum of the environment's own rewards, which
    Stable-Baselines3 logs with `Monitor(env, info_keywords=("environment_return",))`.

    A reward that was learned with an absorbing state says what a failure is worth: on termination (never on
    truncation) the discounted sum of the absorbing rewards that follow, gamma / (1 - gamma) times
    `absorbing_reward()`, is added, as if the episode went on there for ever. Without it, a positive reward pays for
    staying alive whatever the demonstrations did, and a negative one for ending.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], reward: LearnedReward, *, discount: float | None = None) -> None:
        """Wrap an environment.

        Args:
            env: with vectors of real numbers as observations and actions, in the units that the reward was learned in.
            discount: of the agent to be trained; needed exactly if the reward has an absorbing state.

        Raises:
            UserError: other spaces, sizes that differ from the reward's, a discount missing, idle or not in [0, 1).
        """
        super().__init__(env)
        sizes = [_size("observations", env.observation_space), _size("actions", env.action_space)]
        if sizes[0] != reward.state_size or reward.action_size not in (0, sizes[1]):
            raise UserError(
                f"the reward was learned on {reward.state_size} observations and {reward.action_size} actions; the "
                f"environment has {sizes[0]} and {sizes[1]}"
            )
        if (discount is None) != (reward.absorbing is None):
            raise UserError("a discount is needed exactly for a reward that was learned with an absorbing state")
        if discount is not None and not 0 <= discount < 1:
            raise UserError(f"the discount must be at least 0 and below 1, found {discount}")
        self.reward = reward
        self.after_failure = 0.0 if discount is None else discount / (1 - discount) * reward.absorbing_reward()
        self._state, self._return = np.zeros(reward.state_size), 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._state, self._return = np.array(observation, np.float64), 0.0
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment; the reward is that of the state before, the action and the next state."""
        observation, own, terminated, truncated, info = self.env.step(action)
        following = np.array(observation, np.float64)
        reward = float(self.reward(self._state, np.asarray(action, np.float64), following))
        self._state = following
        if terminated:
            reward += self.after_failure
        info = {**info, "environment_reward": float(own)}
        self._return += float(own)
        if terminated or truncated:
            info["environment_return"] = self._return
        return observation, reward, terminated, truncated, info


def _size(name: str, space: spaces.Space[Any]) -> int:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise UserError(f"a learned reward needs vectors of real numbers as {name}, found {space}")
    return int(space.shape[0])
