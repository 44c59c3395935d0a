"""Model-based policy optimisation (Janner et al. 2019, arXiv 1906.08253) with smooth critics (Zheng et al. 2023,
arXiv 2302.01244): SAC on short rollouts of a learned model of the environment.

Every `refit_every` real steps the dynamics model is fitted to all real transitions and rolled out for a few steps from
real states under the policy of now; between, every real step is followed by updates on batches of mostly predicted
transitions. Truncation is not termination: only the task's rule, or a learned one, ends a predicted episode.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lipctrl.files import UserError
from lipctrl.models.dynamics import Dynamics, DynamicsSettings
from lipctrl.seeding import seed_of

from .diagnostics import Diagnostics
from .sac import SAC
from .termination import LearnedTermination, Termination, never, termination_of

SPREAD = 1000  # rows at which the spread of predictions is measured


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of the rollouts of the model."""

    refit_every: int = 250
    """Real steps between two fits of the model, each followed by rollouts."""
    rows: int = 10_000
    """Start states of the rollouts after a fit."""
    epoch: int = 1000
    """Real steps of an epoch, the unit of the schedule and of retention."""
    schedule: tuple[int, int, int, int] = (20, 100, 1, 1)
    """Rollout length: a ramp from the third number at the first epoch to the fourth at the second epoch, floored."""
    retain: int = 1
    """Epochs whose predicted transitions are kept."""
    real_share: float = 0.05
    """Share of real transitions in a batch."""
    termination: Literal["known", "learned", "never"] = "known"
    """Which predicted states end an episode: the task's own rule, a classifier fitted to the data, or none."""
    bias: float = 0.0
    """Constant added to every predicted next state, in standard deviations of the model, to study wrong models."""

    def __post_init__(self) -> None:
        for name in ("refit_every", "rows", "epoch", "retain"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        first, last, short, long = self.schedule
        if not (0 <= first <= last and 1 <= short and 1 <= long):
            raise ValueError(
                f"schedule needs epochs 0 <= first <= last and lengths of at least 1, found {self.schedule}"
            )
        if not math.isfinite(self.bias):
            raise ValueError(f"bias must be finite, found {self.bias}")
        if not 0 <= self.real_share < 1:
            raise ValueError(f"real_share must be in [0, 1), found {self.real_share}")

    def length(self, real_steps: int) -> int:
        """Steps of a rollout after this many real steps."""
        first, last, short, long = self.schedule
        epoch = real_steps // self.epoch
        share = 1.0 if last == first else (epoch - first) / (last - first)
        return int(short + min(max(share, 0.0), 1.0) * (long - short)) if epoch >= first else short

    def capacity(self, real_steps: int) -> int:
        """Predicted transitions that are kept."""
        return self.length(real_steps) * self.rows * max(1, self.epoch // self.refit_every) * self.retain


class ModelBuffer:
    """The latest predicted transitions, on the device: states, actions, rewards, next states, going.

    Args:
        sizes: width of each field; 0 for a number. device: of the tensors.
    """

    def __init__(self, sizes: tuple[int, ...], device: torch.device) -> None:
        self.fields = [torch.zeros(0, size, device=device) if size else torch.zeros(0, device=device) for size in sizes]
        self.position = 0
        self.filled = 0

    def resize(self, capacity: int) -> None:
        """Change the capacity, keeping the newest rows."""
        if capacity == len(self.fields[0]):
            return
        newest = (torch.arange(self.filled) + self.position - self.filled) % max(len(self.fields[0]), 1)
        kept = newest[-capacity:].to(self.fields[0].device)
        rows = [field[kept] for field in self.fields]
        self.fields = [field.new_zeros(capacity, *field.shape[1:]) for field in self.fields]
        self.position = self.filled = 0
        self.add(*rows)

    def add(self, *rows: Tensor) -> None:
        """Store rows of every field in the place of the oldest."""
        capacity, count = len(self.fields[0]), len(rows[0])
        at = (torch.arange(count, device=rows[0].device) + self.position) % capacity
        for field, part in zip(self.fields, rows, strict=True):
            field[at[-capacity:]] = part[-capacity:]
        self.position, self.filled = (self.position + count) % capacity, min(capacity, self.filled + count)

    def sample(self, count: int, size: int, draws: torch.Generator) -> list[Tensor]:
        """Random rows of every field, (count, size, ...)."""
        at = torch.randint(self.filled, (count, size), generator=draws, device=self.fields[0].device)
        return [field[at] for field in self.fields]


class MBPO(SAC):
    """Model-based policy optimisation.

    Args:
        policy, env, smoothness, compiled, others: as in `SAC`; one environment.
        dynamics: of the model. rollouts: of the rollouts.

    Attributes:
        model: the dynamics model. model_buffer: predicted transitions. history: a row of diagnostics for every fit.

    Raises:
        UserError: what `SAC` refuses, several environments, or a task whose termination rule is not known.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *,
        dynamics: DynamicsSettings | None = None,
        rollouts: RolloutSettings | None = None,
        **others: Any,
    ) -> None:
        self.dynamics = dynamics if dynamics is not None else DynamicsSettings()
        self.rollouts = rollouts if rollouts is not None else RolloutSettings()
        self.history: list[dict[str, float]] = []
        super().__init__(policy, env, **others)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.n_envs != 1:
            raise UserError(f"MBPO steps one environment, found {self.n_envs}; for several seeds train several agents")
        n, m, seed = self.observation_space.shape[0], self.action_space.shape[0], self.seed or 0  # type: ignore[index]
        self.model = Dynamics(n, m, self.dynamics, seed=seed_of(seed, "dynamics"), device=str(self.device))
        self.model_buffer = ModelBuffer((n, m, 0, n, 0), self.device)
        self.model_draws = torch.Generator(self.device).manual_seed(seed_of(seed, "rollouts"))
        self.diagnostics = Diagnostics(seed=seed_of(seed, "diagnostics"), device=self.device)
        self.termination: Termination = self._termination(seed)

    def _termination(self, seed: int) -> Termination:
        kind = self.rollouts.termination
        if kind == "known" and self.env is not None:
            return termination_of(self.env.envs[0])  # type: ignore[attr-defined]  # a DummyVecEnv
        if kind == "learned":
            n = self.observation_space.shape[0]  # type: ignore[index]
            return LearnedTermination(n, seed=seed_of(seed, "termination"), device=self.device)
        return never

    def _excluded_save_params(self) -> list[str]:
        derived = ["model", "model_buffer", "model_draws", "diagnostics", "termination"]
        return [*super()._excluded_save_params(), *derived]

    def prepare(self) -> None:
        """Before updates: fit and roll out if it is time to."""
        super().prepare()
        since = self.num_timesteps - self.learning_starts - 1
        if since % self.rollouts.refit_every == 0 or not self.model_buffer.filled:
            row = self._diagnose() if self.model_buffer.filled else {}
            self._refit(row)
            self._roll_out(row)
            self.history.append({"timesteps": float(self.num_timesteps), **row})
            for name, value in row.items():
                self.logger.record(name, value)

    def _diagnose(self) -> dict[str, float]:
        """Diagnostics on the real transitions since the last fit, which the model has not seen."""
        with self.clock("diagnostics"):
            row = self.diagnostics.measure(self, newest=self.rollouts.refit_every)
            if self.smoothness.spectral != "none" and self.memory.beta.isfinite():
                row["critic/beta"] = float(self.memory.beta)
            return row

    def _refit(self, row: dict[str, float]) -> None:
        with self.clock("model"):
            states, actions, rewards, next_states, going = self.replay(slice(0, self.stored()))
            report = self.model.fit(states, actions, rewards, next_states)
            if isinstance(self.termination, LearnedTermination):
                self.termination.fit(next_states, 1 - going)
            elites = self.model.elites.cpu().numpy()
            row["model/holdout_mse"] = float(report.holdout_mse[elites].mean())
            row["model/holdout_nll"] = float(report.holdout_nll[elites].mean())
            row["model/steps"] = float(report.steps)

    @torch.no_grad()
    def _roll_out(self, row: dict[str, float]) -> None:
        """Predicted transitions from real states under the stochastic policy of now."""
        with self.clock("rollouts"):
            settings, draws = self.rollouts, self.model_draws
            length = settings.length(self.num_timesteps)
            self.model_buffer.resize(settings.capacity(self.num_timesteps))
            at = torch.randint(self.stored(), (settings.rows,), generator=draws, device=self.device)
            states, unit, spread = self.replay(at.cpu())[0], self.deviation(), []
            for _ in range(length):
                actions = self.explore(states, draws)
                spread.append((self.model.spread(states[:SPREAD], actions[:SPREAD]) / unit).square().mean())
                next_states, rewards, ended = self.predict_step(states, actions)
                self.model_buffer.add(states, actions, rewards, next_states, 1 - ended.float())
                states = next_states[~ended]
                if not len(states):
                    break
            row["rollout/spread"] = float(torch.stack(spread).mean().sqrt())
            row["rollout/length"] = float(length)

    def predict_step(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Next states (rows, n), rewards (rows,) and whether the episode ends, (rows,), as the model has them."""
        next_states, rewards = self.model.sample(states, actions, self.model_draws)
        if self.rollouts.bias:
            next_states = next_states + self.rollouts.bias * self.model.spread(states, actions)
        ended = self.termination(next_states)
        broken = ~(next_states.isfinite().all(-1) & rewards.isfinite())
        if broken.any():  # a transition that is no number teaches nothing: it stays where it was, and ends
            next_states = torch.where(broken[:, None], states, next_states)
            rewards, ended = torch.where(broken, 0.0, rewards), ended | broken
        return next_states, rewards, ended

    def _transitions(self, count: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Real and predicted rows side by side."""
        real = int(self.rollouts.real_share * size)
        predicted = self.model_buffer.sample(count, size - real, self.draws)
        if not real:
            return tuple(predicted)  # type: ignore[return-value]
        rows = super()._transitions(count, real)
        return tuple(torch.cat(pair, 1) for pair in zip(rows, predicted, strict=True))  # type: ignore[return-value]

    def _scale(self, states: Tensor, actions: Tensor) -> Tensor:
        """The standard deviations of the data, (count, 1, n), or of the model's prediction there, (count, size, n)."""
        if self.smoothness.unit == "data":
            return super()._scale(states, actions)
        flat = self.model.spread(states.flatten(0, 1), actions.flatten(0, 1))
        return flat.view(states.shape)
