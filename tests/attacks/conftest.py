"""The double integrator of `lipctrl oracle` as an environment: 8 steps from (1, 0), then the terminal cost."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from lipctrl.cli.oracle import STEPS, X0, A, B, P, Q, R


class LinearLoopEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Reward minus the quadratic cost. With `fails` the last step is a failure, else the time is up."""

    def __init__(self, fails: bool = False, spread: float = 0.0, steps: int = STEPS) -> None:
        self.observation_space = gymnasium.spaces.Box(-100.0, 100.0, (2,), dtype=np.float64)
        self.action_space = gymnasium.spaces.Box(-100.0, 100.0, (1,), dtype=np.float64)
        self.fails, self.spread, self.steps = fails, spread, steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = X0 + self.spread * self.np_random.standard_normal(2), 0
        return self.x.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        cost = float(self.x @ Q @ self.x + action @ R @ action)
        self.x, self.t = A @ self.x + B @ action, self.t + 1
        over = self.t == self.steps
        cost += float(self.x @ P @ self.x) if over else 0.0
        return self.x.copy(), -cost, over and self.fails, over and not self.fails, {}


@pytest.fixture
def linear_loop() -> Callable[..., LinearLoopEnv]:
    """Makes the environment."""
    return LinearLoopEnv
