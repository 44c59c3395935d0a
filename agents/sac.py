"""Soft actor-critic with smooth critics (Haarnoja et al. 2018, arXiv 1812.05905): Stable-Baselines3's, with our update.

The mathematics, its order and its random numbers are those of `stable_baselines3.SAC.train`, which is the reference
that 200 updates are compared with. What differs: the critics are one batched product per layer (`critics.py`), their
weights take no gradient in the actor's step, Adam is fused, averaging is one foreach operation, batches are gathered
from tensors that share the replay buffer's memory, and nothing is read back from the device before the last update of
a call. On request the critics are regularised (`regularisation.py`); the actor is SB3's, or bounded with
"LipschitzMlpPolicy" (`lipctrl.nn.sb3`).
"""

from typing import Any

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from torch import Tensor

import lipctrl.nn.sb3  # noqa: F401  # registers LipschitzMlpPolicy
from lipctrl.files import UserError

from .critics import StackedCritics, with_layer_norm
from .regularisation import Smoothness, SpectralNorms, robust_penalty

NORMALISER_INTERVAL = 1000  # environment steps between two measurements of the observations' deviations
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class SAC(stable_baselines3.SAC):
    """Soft actor-critic.

    Args:
        policy, env, others: as in Stable-Baselines3.
        smoothness: regularisation of the critics.

    Raises:
        UserError: image observations, use_sde, several steps per target, or critics that are not ReLU networks.
    """

    def __init__(self, policy: Any, env: Any, *, smoothness: Smoothness | None = None, **others: Any) -> None:
        self.smoothness = smoothness if smoothness is not None else Smoothness()
        self._scale: np.ndarray[Any, np.dtype[np.float32]] | None = None
        self._scaled_at = 0
        super().__init__(policy, env, **others)

    def _setup_model(self) -> None:
        if self.use_sde or self.n_steps != 1:
            raise UserError("SAC with smooth critics supports neither use_sde nor targets over several steps")
        super()._setup_model()
        shape = self.observation_space.shape
        if shape is None or len(shape) != 1:
            raise UserError(f"SAC with smooth critics needs a box of one axis, found observations {shape}")
        if self.smoothness.layer_norm:
            with_layer_norm(self.critic)
            with_layer_norm(self.critic_target)
            self.critic_target.load_state_dict(self.critic.state_dict())
        self._critics, self._targets = StackedCritics(self.critic), StackedCritics(self.critic_target)
        self._spectral = SpectralNorms(self._critics, self.smoothness)
        rate: dict[str, Any] = {"lr": self.lr_schedule(1), "fused": True}
        self.critic.optimizer = torch.optim.Adam(self._critics.leaves(), **rate)
        self.actor.optimizer = torch.optim.Adam(self.actor.parameters(), **rate)
        self._actor_leaves = [leaf for leaf in self.actor.parameters() if leaf.requires_grad]

    def _excluded_save_params(self) -> list[str]:
        derived = ["_critics", "_targets", "_spectral", "_actor_leaves"]
        return [*super()._excluded_save_params(), *derived]

    def set_parameters(self, *arguments: Any, **others: Any) -> None:
        """As in Stable-Baselines3; the singular vectors are those of the new matrices."""
        super().set_parameters(*arguments, **others)
        self._spectral = SpectralNorms(self._critics, self.smoothness)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Updates of temperature, critics, actor and target critics, in this order, `gradient_steps` times.

        Raises:
            UserError: the critics' loss is not finite.
        """
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        scale = self._observation_scale()
        totals = torch.zeros(3, device=self.device)
        for _ in range(gradient_steps):
            totals += self._update(self._sample(batch_size), scale)
        self._n_updates += gradient_steps
        critic_loss, actor_loss, temperature = (totals / gradient_steps).tolist()
        if not np.isfinite(critic_loss):
            raise UserError(f"SAC diverged after {self._n_updates} updates: its critics' loss is {critic_loss}")
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/critic_loss", critic_loss)
        self.logger.record("train/actor_loss", actor_loss)
        self.logger.record("train/ent_coef", temperature)

    def _update(self, batch: Batch, scale: Tensor) -> Tensor:
        """One update; critics' loss, actor's loss and temperature, still on the device."""
        states, actions, rewards, next_states, going = batch
        smooth, critics = self.smoothness, self._critics
        chosen, log_prob = self._act(states)
        temperature = self._temperature(log_prob)
        with torch.no_grad():
            next_actions, next_log_prob = self._act(next_states)
            value = self._targets(torch.cat([next_states, next_actions], -1)).amin(0) - temperature * next_log_prob
            target = rewards + going * self.gamma * value
        critic_loss = 0.5 * (critics(torch.cat([states, actions], -1)) - target).square().mean(1).sum()
        objective = critic_loss
        if smooth.perturbation != "none":
            at = (states, actions) if smooth.on == "state" else (next_states, next_actions)
            objective = objective + robust_penalty(critics, *at, scale, smooth)
        if smooth.spectral == "soft":
            objective = objective + smooth.spectral_weight * self._spectral.excess()
        _step(self.critic.optimizer, objective, critics.leaves())
        if smooth.spectral == "hard":
            self._spectral.project_()
        best = critics(torch.cat([states, chosen], -1), frozen=True).amin(0)
        actor_loss = (temperature * log_prob - best).mean()
        _step(self.actor.optimizer, actor_loss, self._actor_leaves)
        with torch.no_grad():
            torch._foreach_lerp_(self._targets.leaves(), critics.leaves(), self.tau)
        return torch.stack([critic_loss.detach(), actor_loss.detach(), temperature])

    def _temperature(self, log_prob: Tensor) -> Tensor:
        """The temperature of this update, before its own step towards the target entropy."""
        if self.ent_coef_optimizer is None:
            return self.ent_coef_tensor
        assert self.log_ent_coef is not None
        temperature = self.log_ent_coef.detach().exp().squeeze()
        loss = -(self.log_ent_coef * (log_prob.detach() + float(self.target_entropy))).mean()
        _step(self.ent_coef_optimizer, loss, [self.log_ent_coef])
        return temperature

    def _act(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled scaled actions (batch, m) and their log-probabilities (batch,), as SB3's squashed Gaussian."""
        mean, log_std, _ = self.actor.get_action_dist_params(states)
        noise = torch.randn_like(mean)
        raw = mean + log_std.exp() * noise
        actions = raw.tanh()
        density = -0.5 * noise.square() - log_std - 0.5 * float(np.log(2 * np.pi))
        return actions, (density - (1 - actions.square() + 1e-6).log()).sum(-1)

    def _sample(self, batch_size: int) -> Batch:
        """States, actions, rewards, next states, and one where the episode goes on: truncation is not termination."""
        memory = self.replay_buffer
        if not isinstance(memory, ReplayBuffer) or memory.optimize_memory_usage or self._vec_normalize_env is not None:
            raise UserError(
                "SAC with smooth critics needs SB3's plain ReplayBuffer and an environment without VecNormalize"
            )
        filled = memory.buffer_size if memory.full else memory.pos
        rows = np.random.randint(0, filled, size=batch_size)
        envs = np.random.randint(0, high=memory.n_envs, size=(batch_size,))
        at = torch.from_numpy(rows * memory.n_envs + envs)

        def gather(array: Any) -> Tensor:
            flat = torch.from_numpy(array).reshape(-1, *array.shape[2:])  # shares the buffer's memory
            return flat.index_select(0, at).to(self.device, torch.float32, non_blocking=True)

        ended = gather(memory.dones) * (1 - gather(memory.timeouts))
        states, next_states = gather(memory.observations), gather(memory.next_observations)
        return states, gather(memory.actions), gather(memory.rewards), next_states, 1 - ended

    def _observation_scale(self) -> Tensor:
        """Standard deviation of each observation in the replay buffer, measured now and then."""
        memory = self.replay_buffer
        assert memory is not None
        if self._scale is None or self.num_timesteps - self._scaled_at >= NORMALISER_INTERVAL:
            filled = memory.buffer_size if memory.full else memory.pos
            seen = memory.observations[:filled].reshape(-1, memory.observations.shape[-1])
            deviation = seen.astype(np.float64).std(0)
            self._scale = np.where(deviation < 1e-12, 1.0, deviation).astype(np.float32)
            self._scaled_at = self.num_timesteps
        return torch.from_numpy(self._scale).to(self.device)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, leaves: list[Any]) -> None:
    """One optimiser step on exactly these leaves.

    A transposed gradient must be copied: fused Adam pairs entries by their place in memory, whatever the strides.
    """
    for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
        leaf.grad = gradient.contiguous()
    optimizer.step()
