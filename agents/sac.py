"""Soft actor-critic with smooth critics (Haarnoja et al. 2018, arXiv 1812.05905): Stable-Baselines3's, with our update.

`learn`, `predict`, `save`, `load`, callbacks and logger are those of `stable_baselines3.SAC`; what it computes in an
update is in `update.py`. Batches are gathered for all updates of a call at once, from tensors that share the replay
buffer's memory; nothing is read back from the device before the last update of a call. Several agents of one shape can
be trained as one batch (`train_together`), each with its own environment, replay buffer and random numbers.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.sac.policies import Actor
from torch import Tensor, nn

from lipctrl.files import UserError
from lipctrl.nn.sb3 import LipschitzSacActor  # importing it registers LipschitzMlpPolicy
from lipctrl.seeding import seed_of

from .regularisation import Smoothness
from .sac_learner import Learner, Memory, train_together
from .update import Batch

Actions = NDArray[np.float32]
CALIBRATION = 10_000  # updates before a spectral bound is measured
PERCENTILE = 0.95
PHASES = ("environment", "updates", "model", "rollouts", "diagnostics")  # of the wall time


class _Actor(nn.Module):
    """SB3's actor as a function: mean and log standard deviation before squashing."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Both (batch, m) for states (batch, n)."""
        mean, log_std, _ = self.actor.get_action_dist_params(states)
        return mean, log_std


class SAC(stable_baselines3.SAC):
    """Soft actor-critic.

    Args:
        policy, env, others: as in Stable-Baselines3.
        smoothness: regularisation of the critics.
        compiled: compile the update (half a minute once; needs a C++ compiler or a CUDA device).
        products: precision of the update's matrix products; bfloat16 is faster where the processor has it, and leaves
            bounded networks, and all that is proved or measured of a network, in full precision.

    Attributes:
        learner: with the agent's update, of which it may be one of several agents. memory: its part of that state.
        draws, steps: random numbers of its updates and of its actions in the environment.
        seconds: wall time by phase.

    Raises:
        UserError: spaces that are no boxes of one axis, actions without limits, use_sde, several steps per target,
            other optimisers than Adam, or a spectral bound on critics that are no plain networks.
    """

    learner: Learner
    memory: Memory

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        smoothness: Smoothness | None = None,
        compiled: bool = False,
        products: Literal["float32", "bfloat16"] = "float32",
        **others: Any,
    ) -> None:
        self.smoothness = smoothness if smoothness is not None else Smoothness()
        self.compiled, self.products = compiled, products
        self.seconds = {phase: 0.0 for phase in PHASES}
        self._deviation: Tensor | None = None
        self._measured = 0
        if env is not None:
            env = maybe_make_env(env, 0)
            check_boxes(type(self).__name__, env)  # before Stable-Baselines3, which asserts
        super().__init__(policy, env, **others)

    def _setup_model(self) -> None:
        if self.use_sde or self.n_steps != 1:
            raise UserError("SAC with smooth critics supports neither use_sde nor targets over several steps")
        super()._setup_model()
        if self.policy.optimizer_class is not torch.optim.Adam or self.policy.optimizer_kwargs:
            raise UserError("SAC with smooth critics trains with Adam and its defaults")
        if self.smoothness.layer_norm:
            with_layer_norm(self.critic)
            with_layer_norm(self.critic_target)
            self.critic_target.load_state_dict(self.critic.state_dict())
        self._acting = self._actor_function()  # on the CPU, where the environment is
        if self.device.type != "cpu":
            self._acting = copy.deepcopy(self._acting).cpu()
        self.draws = torch.Generator(self.device).manual_seed(seed_of(self.seed or 0, "updates"))
        self.steps = torch.Generator().manual_seed(seed_of(self.seed or 0, "actions"))
        self._make_learner()

    def _actor_function(self) -> nn.Module:
        """From observations to what `_sample_action` needs.

        Raises:
            UserError: another actor than those whose parameters can be stacked.
        """
        if type(self.actor) not in (Actor, LipschitzSacActor) or not isinstance(
            self.actor.features_extractor, FlattenExtractor
        ):
            raise UserError("SAC with smooth critics needs the actor of MlpPolicy or LipschitzMlpPolicy")
        return _Actor(self.actor)

    def _make_learner(self) -> None:
        Learner([self])

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "learner", "memory", "draws", "steps", "_acting", "_deviation"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "memory"], []

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the wall time of the block to a phase; on a GPU what was queued is waited for."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[phase] += time.perf_counter() - start

    def collect_rollouts(self, *arguments: Any, **others: Any) -> RolloutReturn:
        """As in Stable-Baselines3, timed."""
        with self.clock("environment"):
            return super().collect_rollouts(*arguments, **others)

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        """As in Stable-Baselines3.

        Raises:
            UserError: an observation or a reward that is not finite.
        """
        if not (np.isfinite(new_obs).all() and np.isfinite(reward).all()):
            raise UserError(f"the environment returned a number that is not finite at step {self.num_timesteps}")
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def rate(self) -> float:
        """Learning rate of now."""
        return self.lr_schedule(self._current_progress_remaining)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[Actions, Actions]:
        """As in Stable-Baselines3, with this agent's own random numbers; the action and the scaled one."""
        if self.num_timesteps < learning_starts or action_noise is not None:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        with torch.no_grad():
            mean, log_std = self._acting(torch.as_tensor(np.asarray(self._last_obs), dtype=torch.float32))
            noise = torch.randn(mean.shape, generator=self.steps)
            scaled = (mean + log_std.exp() * noise).tanh().numpy()
        return self.policy.unscale_action(scaled), scaled

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Updates of temperature, critics, actor and target critics, in this order, `gradient_steps` times.

        Raises:
            UserError: the critics' loss is not finite.
        """
        train_together([self], gradient_steps, batch_size)

    def batches(self, count: int, size: int) -> Batch:
        """Transitions and noise of `count` updates: the fields of `Batch` without the agents' axis, (count, ...)."""
        states, actions, rewards, next_states, going = self._transitions(count, size)
        noise, next_noise = (torch.randn(actions.shape, generator=self.draws, device=self.device) for _ in range(2))
        start = torch.zeros(count, 1, 1, 1, device=self.device)
        if self.smoothness.perturbation in ("uniform", "pgd"):
            shape = (count, self.learner.each, size, states.shape[-1])
            start = 2 * torch.rand(shape, generator=self.draws, device=self.device) - 1
        scale = self._scale(states, actions)
        return Batch(states, actions, rewards, next_states, going, noise, next_noise, start, scale)

    def _transitions(self, count: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Random rows of the replay buffer: states, actions, rewards, next states, going; (count, size, ...)."""
        stored = self.stored()
        at = torch.randint(stored, (count * size,), generator=self.draws, device=self.device)
        states, actions, rewards, next_states, going = (
            part.view(count, size, *part.shape[1:]) for part in self.replay(at.cpu())
        )
        return states, actions, rewards, next_states, going

    def target_limits(self) -> tuple[float, float] | None:
        """What targets are clipped to; None: they are not."""
        return None

    def stored(self) -> int:
        """Number of transitions in the replay buffer."""
        assert self.replay_buffer is not None
        return self.replay_buffer.size() * self.n_envs

    def replay(self, at: Tensor | slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Stored transitions by number: states, scaled actions, rewards, next states, 1 where the episode goes on."""
        memory = self.replay_buffer
        if not isinstance(memory, ReplayBuffer) or memory.optimize_memory_usage or self._vec_normalize_env is not None:
            raise UserError(
                "SAC with smooth critics needs SB3's plain ReplayBuffer and an environment without VecNormalize"
            )

        def rows(array: Any) -> Tensor:
            flat = torch.from_numpy(array).flatten(0, 1)  # shares the buffer's memory
            found = flat[at] if isinstance(at, slice) else flat.index_select(0, at)
            return found.to(self.device, torch.float32, non_blocking=True)

        ended = rows(memory.dones) * (1 - rows(memory.timeouts))
        states, next_states = rows(memory.observations), rows(memory.next_observations)
        return states, rows(memory.actions), rows(memory.rewards), next_states, 1 - ended

    def _scale(self, states: Tensor, actions: Tensor) -> Tensor:
        """Unit of the robust term's radius, (count, 1, n): the standard deviation of each observation stored."""
        if self.smoothness.unit == "model":
            raise UserError("the unit model of epsilon needs an agent with a dynamics model: MBPO")
        return self.deviation().expand(len(states), 1, -1)

    def deviation(self) -> Tensor:
        """Standard deviation of each observation stored, (n,), 1 where constant; measured as the buffer grows."""
        stored = self.stored()
        if self._deviation is None or stored >= 1.1 * self._measured:
            found = self.replay(slice(0, stored))[0].double().std(0, correction=0).float()
            self._deviation, self._measured = torch.where(found < 1e-12, 1.0, found), stored
        return self._deviation

    def gradient_norms(self, states: Tensor, actions: Tensor) -> Tensor:
        """|grad Q| in state and scaled action of the critic that is steeper, (batch,)."""
        point = torch.cat([states, actions], -1).detach().requires_grad_()
        norms = []
        for net in self.critic.q_networks:
            (slope,) = torch.autograd.grad(net(point).sum(), point)
            norms.append(slope.norm(dim=-1))
        return torch.stack(norms).amax(0)

    def explore(self, states: Tensor, draws: torch.Generator) -> Tensor:
        """Scaled actions (rows, m) of the stochastic policy at states (rows, n), without gradient."""
        with torch.no_grad():
            mean, log_std = _Actor(self.actor)(states)
            noise = torch.randn(mean.shape, generator=draws, device=self.device)
            return (mean + log_std.exp() * noise).tanh()  # type: ignore[no-any-return]

    def prepare(self) -> None:
        """Before updates: set the spectral bound once enough were made without it."""
        unset = self.smoothness.beta is None and torch.isinf(self.memory.beta).item()
        if self.smoothness.spectral == "none" or not unset or self._n_updates < CALIBRATION:
            return
        states, actions, *_ = self._transitions(1, 1024)
        steep = self.gradient_norms(states[0], actions[0]).quantile(PERCENTILE)
        layers = len(self.learner.update.critics.matrices())
        self.memory.beta.copy_(steep ** (1 / layers))
        self.logger.record("train/beta", float(self.memory.beta))

    def _refresh(self) -> None:
        """Bring the actor that acts up to date, where it is a copy."""
        if self.device.type != "cpu":
            for copied, leaf in zip(self._acting.parameters(), self._actor_function().parameters(), strict=True):
                copied.data.copy_(leaf.data)

    def set_parameters(self, *arguments: Any, **others: Any) -> None:
        """As in Stable-Baselines3."""
        super().set_parameters(*arguments, **others)
        self._refresh()

    def report(self, losses: Sequence[float], updates: int) -> None:
        """Count and log updates.

        Raises:
            UserError: the critics' loss is not finite.
        """
        self._n_updates += updates
        self._refresh()
        critic_loss, actor_loss, temperature = losses
        if not np.isfinite(critic_loss):
            raise UserError(f"SAC diverged after {self._n_updates} updates: its critics' loss is {critic_loss}")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/critic_loss", critic_loss)
        self.logger.record("train/actor_loss", actor_loss)
        self.logger.record("train/ent_coef", temperature)


def check_boxes(name: str, env: Any) -> None:
    """That an agent can be trained in an environment.

    Raises:
        UserError: observations or actions in no box of one axis, or actions without limits.
    """
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UserError(f"{name} needs {what} in a box of one axis, found {space}")
    if not np.isfinite([env.action_space.low, env.action_space.high]).all():
        raise UserError(f"{name} needs actions with finite limits, found {env.action_space}")


def with_layer_norm(critic: ContinuousCritic) -> None:
    """Put a LayerNorm behind every hidden linear layer of every Q network, in place.

    Raises:
        UserError: critics that are not made of linear layers.
    """
    for k, net in enumerate(critic.q_networks):
        parts: list[nn.Module] = []
        linears = [part for part in net if isinstance(part, nn.Linear)]  # type: ignore[attr-defined]
        if len(linears) < 2:
            raise UserError("LayerNorm needs critics of linear layers")
        for part in net:  # type: ignore[attr-defined]
            parts.append(part)
            if isinstance(part, nn.Linear) and part is not linears[-1]:
                parts.append(nn.LayerNorm(part.out_features, device=part.weight.device))
        critic.q_networks[k] = nn.Sequential(*parts)
        setattr(critic, f"qf{k}", critic.q_networks[k])
