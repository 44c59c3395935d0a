"""Off-policy adversarial imitation with a Lipschitz reward (Blonde et al. 2022, arXiv 2006.16785; discriminator
actor-critic, Kostrikov et al. 2019, arXiv 1809.02925): TD3 or SAC on a reward that is learned from demonstrations.

The reward of a transition is computed when it is sampled, by the discriminator of now; the environment's own is never
read. Targets are returns over several steps that stop where an episode ends: a time limit is followed by the value of
the next state, a failure or success by that of the absorbing state, r_absorbing / (1 - discount), in closed form.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError
from lipctrl.nn.normalise import deployed
from lipctrl.nn.reward import LearnedReward
from lipctrl.nn.sb3 import LipschitzSacPolicy, LipschitzTd3Policy
from lipctrl.seeding import generator, seed_of

from .discriminator import Discriminators, RewardSettings
from .expert import check_spaces, subsampled
from .gail_batches import Expert, GailBatch, sampled
from .gail_learner import GailLearner
from .monitor import CollapseWarning, Monitor
from .pessimism import PessimismSettings
from .regularisation import Smoothness
from .sac import SAC, Actions
from .td3 import Td3Settings, expectation, outputs, predict_distributions

POLICIES: dict[str, dict[str, type[BasePolicy]]] = {
    "td3": {"MlpPolicy": TD3Policy, "LipschitzMlpPolicy": LipschitzTd3Policy},
    "sac": {"MlpPolicy": SACPolicy, "LipschitzMlpPolicy": LipschitzSacPolicy},
}
# The absorbing bit, in the units of the slope. With 1 a logit of slope 1 could not tell the absorbing state, where all
# else is the mean of the expert, from the expert: to fail would pay almost as well as to imitate.
ABSORBED = 10.0
SMALLEST_SCALES = (1e-6, 1e-8)  # of a state's standard deviation, relative to its mean and absolute; else constant


@dataclass(frozen=True)
class GailSettings:
    """What imitation adds to an off-policy agent."""

    stem: Literal["td3", "sac"] = "td3"
    """The algorithm that maximises the reward."""
    n_step: int = 1
    """Steps whose rewards a target sums before it trusts the critics."""
    layer_norm: bool = True
    """LayerNorm behind each hidden layer of the critics."""
    subsample: int = 1
    """Keep every so many-th pair of the demonstrations, from a random start in each episode."""
    holdout: float = 0.1
    """Share of the expert's pairs, at random, that the discriminator does not see, to measure its accuracy. Without
    subsampling their neighbours in time are seen, so that the accuracy says little about other demonstrations."""
    units: Literal["expert", "both"] = "expert"
    """Whose states have mean 0 and standard deviation 1: the expert's, or in equal parts the expert's and the agent's
    first random ones. Where an expert hardly moves and an agent falls, the agent is tens of the expert's deviations
    away, and to go on is worth less than to end: take both where episodes end early."""
    monitor_every: int = 1000
    """Environment steps between two rows of diagnostics."""
    pessimism: PessimismSettings = field(default_factory=PessimismSettings)
    """Multiplier of the learned reward."""

    def __post_init__(self) -> None:
        if min(self.n_step, self.subsample, self.monitor_every) < 1 or not 0 <= self.holdout < 1:
            raise ValueError(
                "n_step, subsample and monitor_every must be at least 1 and holdout in [0, 1), found "
                f"{self.n_step}, {self.subsample}, {self.monitor_every}, {self.holdout}"
            )
        if self.stem == "sac" and self.n_step > 1:
            raise ValueError("n_step above 1 needs the stem td3: a soft target has an entropy for every step")


class GAIL(SAC):
    """Off-policy adversarial imitation.

    Args:
        policy: "MlpPolicy", "LipschitzMlpPolicy" or a policy class of the stem. env, compiled, others: as in `SAC`.
        demonstrations: what to imitate; needed to train, not to load and predict.
        reward: of the discriminator. imitation: see there. td3: of the stem TD3.

    Attributes:
        demonstrations: what is imitated. expert: the same as the discriminator sees it. history: a row of diagnostics
            per measurement.

    Raises:
        UserError: what `SAC` refuses; several environments; demonstrations of other spaces.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = POLICIES["td3"]

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: Any,
        *,
        demonstrations: Demonstrations | None = None,
        reward: RewardSettings | None = None,
        imitation: GailSettings | None = None,
        td3: Td3Settings | None = None,
        _init_setup_model: bool = True,
        **others: Any,
    ) -> None:
        self.reward = reward if reward is not None else RewardSettings()
        self.imitation = imitation if imitation is not None else GailSettings()
        self.td3 = td3 if td3 is not None else Td3Settings()
        self.history: list[dict[str, float]] = []
        self.expert: Expert | None = None
        self.demonstrations: Demonstrations | None = None
        self._warned = False
        if "smoothness" in others:
            raise UserError("GAIL takes no smoothness of its critics; LayerNorm is a setting of imitation")
        known = POLICIES[self.imitation.stem]
        kind = known.get(policy, policy) if isinstance(policy, str) else policy
        smoothness = Smoothness(layer_norm=self.imitation.layer_norm)
        super().__init__(kind, env, smoothness=smoothness, _init_setup_model=False, **others)
        self.policy_kwargs.pop("use_sde", None)  # TD3's policies do not know it
        if _init_setup_model:
            self._setup_model()
            if demonstrations is not None:
                self.set_demonstrations(demonstrations)

    @property
    def deterministic(self) -> bool:
        """Whether the stem is TD3."""
        return self.imitation.stem == "td3"

    def _setup_model(self) -> None:
        n, m = self.observation_space.shape or (0,), self.action_space.shape or (0,)
        bit = int(self.reward.absorbing)
        self.sizes = (n[0], bit, {"state-action": m[0], "state": 0, "state-next": n[0]}[self.reward.inputs])
        if self.imitation.pessimism.learned and self.reward.inputs != "state-action":
            raise UserError("pessimism with learned dynamics needs a reward of state and action: reward.inputs")
        self.monitor = Monitor(seed=seed_of(self.seed or 0, "monitor"), device=self.device)
        if not 0 <= self.gamma < 1:
            raise UserError(f"GAIL needs a discount in [0, 1), found gamma = {self.gamma}")
        if self.optimize_memory_usage or self._vec_normalize_env is not None:
            raise UserError(
                "GAIL needs SB3's plain ReplayBuffer and an environment without VecNormalize: it standardises itself"
            )
        super()._setup_model()
        if self.n_envs != 1:
            raise UserError(f"GAIL steps one environment, found {self.n_envs}; for several seeds train several agents")

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """As in Stable-Baselines3. Where the environment begins anew, no window may run from the old episode on."""
        memory = self.replay_buffer
        if reset_num_timesteps or self._last_obs is None:
            self.history, self._warned = [], False
            if memory is not None and memory.size() and not memory.dones[memory.pos - 1, 0]:
                memory.dones[memory.pos - 1] = memory.timeouts[memory.pos - 1] = 1
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _store_transition(
        self, replay_buffer: Any, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        """As in `SAC`, without the environment's reward, which nothing reads."""
        super()._store_transition(replay_buffer, buffer_action, new_obs, np.zeros_like(reward), dones, infos)

    def _create_aliases(self) -> None:
        if self.deterministic and self.td3.critic != "scalar":
            for critic in (self.policy.critic, self.policy.critic_target):
                predict_distributions(critic, outputs(self.td3))
            self.policy.critic_target.load_state_dict(self.policy.critic.state_dict())
        super()._create_aliases()

    def _actor_function(self) -> nn.Module:
        if not self.deterministic:
            return super()._actor_function()
        if not isinstance(self.policy, TD3Policy) or not isinstance(self.actor.features_extractor, FlattenExtractor):
            raise UserError("the stem td3 needs the actor of MlpPolicy or LipschitzMlpPolicy")
        return self.actor.mu

    def _make_learner(self) -> None:
        GailLearner([self])

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "expert", "monitor", "demonstrations"]

    def set_demonstrations(self, demonstrations: Demonstrations) -> None:
        """Imitate these from now on; a new agent also takes its reward's units from them.

        Raises:
            UserError: demonstrations of other spaces or too few of them.
        """
        check_spaces(demonstrations, self.observation_space, self.action_space)
        self.demonstrations = demonstrations
        kept = subsampled(demonstrations, self.imitation.subsample, seed=self.seed or 0)
        states, actions = kept.states, kept.labels
        if self._n_updates == 0:
            self._set_units(states)
        scaled = torch.as_tensor(self.policy.scale_action(actions), dtype=torch.float32, device=self.device)
        before, after = (
            torch.as_tensor(part, dtype=torch.float32, device=self.device) for part in (states, kept.next_states)
        )
        rows = self.inputs(before, scaled, after)
        order = torch.as_tensor(generator(self.seed or 0, "holdout").permutation(len(rows)))
        held = min(round(self.imitation.holdout * len(rows)), len(rows) - 1)
        ends = float(demonstrations.terminations.sum()) / self.imitation.subsample * (1 - held / len(rows))
        self.expert = Expert(rows[order[held:]], rows[order[:held]], ends if self.reward.absorbing else 0.0)

    def _set_units(self, of_expert: np.ndarray) -> None:
        """Mean and standard deviation of the expert's states (rows, n), or of these and the agent's in equal parts."""
        means, variances = [of_expert.mean(0)], [of_expert.var(0)]
        if self.imitation.units == "both" and self.stored():
            own = self.replay(slice(0, self.stored()))[0].double().cpu().numpy()
            means, variances = [means[0], own.mean(0)], [variances[0], own.var(0)]
        mean = np.mean(means, 0)
        spread = np.sqrt(np.mean(variances, 0) + np.var(means, 0))
        floor = np.maximum(SMALLEST_SCALES[0] * np.abs(mean), SMALLEST_SCALES[1])
        self.memory.get_buffer("reward_mean").copy_(torch.as_tensor(mean))
        self.memory.get_buffer("reward_scale").copy_(torch.as_tensor(np.where(spread < floor, 1.0, spread)))

    def inputs(self, states: Tensor, actions: Tensor, next_states: Tensor | None = None) -> Tensor:
        """Inputs (..., d) of the discriminator at raw states (..., n), scaled actions (..., m), raw next states."""
        parts = [self.standardised(states), states.new_zeros(*states.shape[:-1], self.sizes[1])]
        if self.reward.inputs == "state-action":
            parts.append(actions)
        elif self.reward.inputs == "state-next":
            assert next_states is not None
            parts.append(self.standardised(next_states))
        return torch.cat(parts, -1)

    def standardised(self, states: Tensor) -> Tensor:
        """Raw states (..., n) in the units of the reward."""
        standard: Tensor = (states - self.memory.get_buffer("reward_mean")) / self.memory.get_buffer("reward_scale")
        return standard

    def absorbing(self) -> Tensor:
        """Input (d,) of the discriminator at the absorbing state: its bit, and nothing else."""
        n, bit, rest = self.sizes
        return torch.cat([torch.zeros(n), torch.full((bit,), ABSORBED), torch.zeros(rest)]).to(self.device)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[Actions, Actions]:
        """As in Stable-Baselines3; with TD3 the deterministic action and noise, inside the limits."""
        if not self.deterministic or self.num_timesteps < learning_starts or action_noise is not None:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        with torch.no_grad():
            scaled = self._acting(torch.as_tensor(np.asarray(self._last_obs), dtype=torch.float32))
            noise = self.td3.noise * torch.randn(scaled.shape, generator=self.steps)
            found = (scaled + noise).clamp(-1, 1).numpy()
        return self.policy.unscale_action(found), found

    def discriminator(self) -> Discriminators:
        """This agent's."""
        learner = self.learner
        assert isinstance(learner, GailLearner)
        return learner.discriminators.alone(learner.agents.index(self))

    def dynamics_slopes(self, inputs: Tensor) -> dict[str, float]:
        """Of the learned dynamics of pessimism at inputs (rows, d) of the discriminator; nothing without them."""
        learner = self.learner
        assert isinstance(learner, GailLearner)
        return learner.pessimism.measure(learner.agents.index(self), inputs)

    def learned_reward(self) -> LearnedReward:
        """The reward of now, in raw units, to be saved, certified, or used to train another agent."""
        n, bit, _ = self.sizes
        low, high = (np.asarray(end, np.float64) for end in (self.action_space.low, self.action_space.high))  # type: ignore[attr-defined]
        mean, scale = (self.memory.get_buffer(f"reward_{name}")[0].double().cpu().numpy() for name in ("mean", "scale"))
        actions, nothing = ((low + high) / 2, (high - low) / 2), (np.zeros(0), np.zeros(0))
        rest = {"state-action": actions, "state": nothing, "state-next": (mean, scale)}[self.reward.inputs]
        absorbing = np.concatenate([mean, np.ones(1), rest[0]]) if bit else None
        mean, scale = (
            np.concatenate([mean, np.zeros(bit), rest[0]]),
            np.concatenate([scale, np.full(bit, 1 / ABSORBED), rest[1]]),
        )
        logit = deployed(
            self.discriminator().plain(), mean=mean, scale=scale, output_offset=np.zeros(1), output_scale=np.ones(1)
        )
        clip = np.inf if self.reward.clip is None else self.reward.clip
        facts = {"regulariser": self.reward.regulariser, "seed": self.seed, "timesteps": self.num_timesteps}
        return LearnedReward(logit, self.reward.form, self.reward.inputs, n, clip, absorbing, facts)

    def value_slopes(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the first critic's value in states (rows, n) and scaled actions (rows, m)."""
        points = states.clone().requires_grad_(), actions.clone().requires_grad_()
        predicted = self.critic.q_networks[0](torch.cat(points, -1))
        value = expectation(self.td3, predicted) if self.deterministic else predicted
        of_states, of_actions = torch.autograd.grad(value.sum(), points)
        return of_states, of_actions

    def scaled_actions(self, states: Tensor) -> Tensor:
        """The deterministic policy in [-1, 1], (rows, m), at states (rows, n)."""
        found: Any = self._actor_function()(states)
        scaled: Tensor = found if self.deterministic else found[0].tanh()
        return scaled

    def prepare(self) -> None:
        """Before updates: a row of diagnostics if it is time to.

        Raises:
            UserError: no demonstrations.
        """
        if self.demonstrations is None:
            raise UserError("GAIL needs demonstrations to train: set_demonstrations(...)")
        if self.imitation.units == "both" and self._n_updates == 0:
            self.set_demonstrations(self.demonstrations)  # now that there are states of the agent
        every = self.imitation.monitor_every
        if not self.history or self.num_timesteps // every > self.history[-1]["timesteps"] // every:
            with self.clock("diagnostics"):
                row = self.monitor.measure(self)
            self.history.append({"timesteps": float(self.num_timesteps), **row})
            for name, value in row.items():
                self.logger.record(name, value)
            advice = self.monitor.diagnosis(self.history)
            if advice is not None and not self._warned:
                self._warned = True
                warnings.warn(advice, CollapseWarning, stacklevel=2)

    def report(self, losses: Sequence[float], updates: int) -> None:
        """Count and log updates.

        Raises:
            UserError: a loss is not finite.
        """
        critic_loss, actor_loss, temperature, loss, penalty = losses
        self._n_updates += updates
        self._refresh()
        if not np.isfinite([critic_loss, loss]).all():
            raise UserError(
                f"GAIL diverged after {self._n_updates} updates: its losses are {critic_loss} (critics) and {loss} "
                "(discriminator)"
            )
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        rows = {"train/critic_loss": critic_loss, "reward/loss": loss, "reward/penalty": penalty}
        if np.isfinite(actor_loss):  # an actor that waited has none
            rows["train/actor_loss"] = actor_loss
        if not self.deterministic:
            rows["train/ent_coef"] = temperature
        for name, value in rows.items():
            self.logger.record(name, value)

    def batches(self, count: int, size: int) -> GailBatch:  # type: ignore[override]
        """What `count` updates need, without the agents' axis."""
        return sampled(self, count, size)
