"""Training learned adversaries: for a fixed policy the best observation adversary solves an MDP (arXiv 2101.08452).

Its state is the true observation, its action what it makes the policy see, its reward minus the policy's. PPO of
Stable-Baselines3 learns it, behind running normalisation of observations and rewards, which the stored network holds.
PPO is sensitive to its settings and the published numbers take the best of 216; here a small grid is searched by
successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), and every step is counted. On request all begin as
copies of an attack that is there already, so that what PPO has to find is only what that one misses.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from lipctrl.attacks.attack import Attack, Context
from lipctrl.attacks.learned import LearnedAttack, Steered, scaled_perturbation
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError
from lipctrl.nn.sb3 import actor_to_plain
from lipctrl.policy import Policy
from lipctrl.seeding import generator, seed_of

Array = NDArray[np.float64]
Env = gymnasium.Env[Any, Any]
LEARNING_RATES, ENTROPIES, CLIPS = (3e-4, 1e-3, 3e-3), (0.0, 1e-4, 1e-3), (0.1, 0.2, 0.4)
GRID = tuple(itertools.product(LEARNING_RATES, ENTROPIES, CLIPS))
PARALLEL, ROLLOUT = 4, 256  # environments, and steps of each between updates
SHOWN, COPYING, SPREAD = 20_000, 3000, 0.3  # of a copy: steps that are shown, gradient steps, noise it explores with


class AdversaryEnv(gymnasium.Env[Any, Array]):
    """The adversary's task.

    Observation: the true observation (n,). Action: (k,) in [-1, 1], turned into a perturbation by `steer`. Reward:
    minus that of the environment, so that failure pays what it costs the policy. Ends when the environment does.
    """

    def __init__(self, env: Env, policy: Policy, ball: Ball, steer: Steered) -> None:
        """`ball` has one row."""
        shape = env.observation_space.shape if steer is scaled_perturbation else env.action_space.shape
        self.observation_space = env.observation_space
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, shape, dtype=np.float64)
        self.env, self.policy, self.ball, self.steer = env, policy, ball, steer
        self._x, self._hidden = np.zeros((1, 1)), None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode of the environment."""
        super().reset(seed=seed)
        observation, info = self.env.reset(seed=seed, options=options)
        self._x, self._hidden = np.asarray(observation, dtype=np.float64)[None], None
        return observation, info

    def answer(self, attack: Attack) -> Array:
        """The action (n,) that disturbs as an attack would now."""
        found: Array = attack.perturb(self._context())[0] / (self.ball.radius[0] * self.ball.scale)
        return found

    def _context(self) -> Context:
        return Context(self._x, self.policy, self.ball, 1, self.np_random, hidden=self._hidden)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One step of the loop of environment and attacked policy."""
        context = self._context()
        d = self.steer(context, np.clip(np.asarray(action, dtype=np.float64)[None], -1.0, 1.0))
        if not self.ball.contains(d):
            raise RuntimeError("the adversary left its set of perturbations")
        answer, self._hidden = self.policy.predict(self._x + d, self._hidden, deterministic=True)
        applied = np.asarray(answer, dtype=np.float64)[0]
        observation, reward, end, cut, info = self.env.step(applied.astype(self.env.action_space.dtype))
        self._x = np.asarray(observation, dtype=np.float64)[None]
        return observation, -float(reward), end, cut, info


class _Count(BaseCallback):
    def __init__(self, advance: Callable[[int], object]) -> None:
        super().__init__()
        self.advance = advance

    def _on_step(self) -> bool:
        self.advance(PARALLEL)
        return True


class Adversary:
    """One candidate: an adversary in training. `settings`: learning rate, entropy coefficient, clip range."""

    def __init__(
        self,
        make: Callable[[], Env],
        policy: Policy,
        ball: Ball,
        steer: Steered,
        settings: tuple[float, float, float],
        *,
        seed: int,
    ) -> None:
        self.steer, self.settings = steer, settings
        task = DummyVecEnv([lambda: AdversaryEnv(make(), policy, ball, steer)] * PARALLEL)
        rate, entropy, clip = settings
        self.model = PPO(
            "MlpPolicy",
            VecNormalize(task),
            learning_rate=rate,
            ent_coef=entropy,
            clip_range=clip,
            n_steps=ROLLOUT,
            batch_size=PARALLEL * ROLLOUT // 8,
            policy_kwargs={"net_arch": [64, 64], "activation_fn": nn.Tanh},
            seed=seed_of(seed, "adversary"),
            device="cpu",
        )

    def train(self, steps: int, advance: Callable[[int], object]) -> int:
        """Go on training for about `steps` environment steps; returns how many they were."""
        before = self.model.num_timesteps
        self.model.learn(steps, callback=_Count(advance), reset_num_timesteps=False)
        return self.model.num_timesteps - before

    def copy(self, states: Array, outputs: Array) -> None:
        """Begin as what gives outputs (steps, n) at states (steps, n): least squares on the mean; smaller noise."""
        policy, task = self.model.policy, self.model.get_vec_normalize_env()
        assert task is not None
        task.obs_rms.update(states)
        seen, wanted = (torch.as_tensor(part, dtype=torch.float32) for part in (task.normalize_obs(states), outputs))
        optimiser = torch.optim.Adam(policy.parameters(), lr=1e-3)
        draws = torch.Generator().manual_seed(self.model.seed or 0)
        for _ in range(COPYING):
            rows = torch.randint(len(seen), (256,), generator=draws)
            found = policy.get_distribution(seen[rows]).mode()
            optimiser.zero_grad()
            (found - wanted[rows]).square().mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        policy.log_std.data.fill_(math.log(SPREAD))

    def attack(self) -> LearnedAttack:
        """A snapshot, with the deterministic mean of the adversary."""
        return LearnedAttack(
            actor_to_plain(self.model.policy, normalizer=self.model.get_vec_normalize_env()), self.steer
        )


def candidates(
    count: int, make: Callable[[], Env], policy: Policy, ball: Ball, steer: Steered, *, seed: int
) -> list[Adversary]:
    """Adversaries with different settings from the grid.

    Raises:
        UserError: more than the grid has, or none.
    """
    if not 1 <= count <= len(GRID):
        raise UserError(f"candidates must be between 1 and {len(GRID)}, found {count}")
    middle = len(GRID) // 2  # the settings of the literature's default come first
    others = [k for k in generator(seed, "grid").permutation(len(GRID)).tolist() if k != middle]
    return [
        Adversary(make, policy, ball, steer, GRID[k], seed=seed + i) for i, k in enumerate([middle, *others][:count])
    ]


def shown(
    env: AdversaryEnv, attack: Attack, *, seed: int, advance: Callable[[int], object] = lambda count: None
) -> tuple[Array, Array]:
    """States and outputs (steps, n) of an attack in the adversary's task, whose outputs are scaled perturbations."""
    x, _ = env.reset(seed=seed)
    states, outputs = [], []
    for _ in range(SHOWN):
        states.append(x)
        outputs.append(env.answer(attack))
        x, _, end, cut, _ = env.step(outputs[-1])
        advance(1)
        if end or cut:
            x, _ = env.reset()
    return np.array(states, dtype=np.float64), np.array(outputs)


@dataclass(frozen=True)
class Trial:
    """One snapshot: which settings, after how many of its own steps, and the score (the attacked mean return)."""

    settings: tuple[float, float, float]
    steps: int
    score: float


@dataclass(frozen=True)
class Search:
    """What a search found and spent: the snapshot with the lowest score, every trial, environment steps in training."""

    best: LearnedAttack
    score: float
    trials: tuple[Trial, ...]
    steps: int


def successive_halving(
    field: Sequence[Adversary],
    *,
    steps: int,
    score: Callable[[Attack], float],
    factor: int = 3,
    advance: Callable[[int], object] = lambda count: None,
) -> Search:
    """Train all, keep the best of every `factor`, train these on, until one is left.

    Args:
        steps: environment steps of all trainings together, the same share in every round (rounded up to rollouts).
        score: the policy's mean return under an attack, on seeds that have no part in what is reported.
    """
    rounds = 1 + math.ceil(math.log(len(field), factor) - 1e-9)
    alive, trials, spent = list(field), [], 0
    best: tuple[float, LearnedAttack] | None = None
    done = {id(one): 0 for one in field}
    for _ in range(rounds):
        scores = []
        for one in alive:
            count = one.train(max(1, steps // rounds // len(alive)), advance)
            spent, done[id(one)] = spent + count, done[id(one)] + count
            attack = one.attack()
            scores.append(score(attack))
            trials.append(Trial(one.settings, done[id(one)], scores[-1]))
            if best is None or scores[-1] < best[0]:  # later snapshots may be worse
                best = scores[-1], attack
        order = np.argsort(scores, kind="stable")
        alive = [alive[k] for k in order[: math.ceil(len(alive) / factor)]]
    assert best is not None
    return Search(best[1], best[0], tuple(trials), spent)
