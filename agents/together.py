"""Several agents of one shape trained side by side: each steps its own environment, all update as one batch.

What an agent learns is what it would learn alone: its environment, replay buffer, model and random numbers are its own,
and rows of a batched product do not see each other (`tests/agents/test_sac.py`, up to rounding).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback, TrainFrequencyUnit

from lipctrl.files import UserError

from .sac import SAC
from .sac_learner import train_together


def learn_together(
    agents: Sequence[SAC],
    total_timesteps: int,
    *,
    callbacks: Sequence[MaybeCallback] | None = None,
    reset_num_timesteps: bool = True,
    after_step: Callable[[], bool] | None = None,
    threads: int = 1,
) -> None:
    """Train to so many environment steps of each agent.

    Args:
        agents: of one shape and with equal settings, one environment each; a round is `train_freq` steps and updates.
        total_timesteps: of each agent; with `reset_num_timesteps` false, further ones, as in Stable-Baselines3.
        callbacks: one of Stable-Baselines3's per agent.
        threads: that step the environments, each agent's by one of them; MuJoCo lets them run at the same time. The
            result does not depend on their number.
        after_step: called after every round of steps and updates of all agents; training stops where it returns False.

    Raises:
        UserError: agents that cannot share their updates.
    """
    first = agents[0]
    if (
        len({(agent.gradient_steps, agent.batch_size, agent.learning_starts, agent.train_freq) for agent in agents})
        != 1
    ):
        raise UserError(
            "agents that are trained together need equal gradient_steps, batch_size, learning_starts and train_freq"
        )
    in_steps = first.train_freq.unit is TrainFrequencyUnit.STEP  # type: ignore[union-attr]
    if any(agent.n_envs != 1 for agent in agents) or not in_steps:
        raise UserError("agents that are trained together have one environment each and a train_freq in steps")
    if first.learner.agents != list(agents):
        type(first.learner)(agents)
    # as in Stable-Baselines3, -1 stands for as many updates as steps
    updates = first.gradient_steps if first.gradient_steps >= 0 else first.train_freq.frequency  # type: ignore[union-attr]
    hooks, ends = [], []
    for agent, callback in zip(agents, callbacks or [None] * len(agents), strict=True):
        total, hook = agent._setup_learn(total_timesteps, callback, reset_num_timesteps)
        hook.on_training_start({}, {})
        hooks.append(hook)
        ends.append(total)
    going = True
    with ThreadPoolExecutor(threads) as pool:
        while going and first.num_timesteps < ends[0]:
            stepped = pool.map(_step, agents, hooks) if threads > 1 else map(_step, agents, hooks)
            going = all(list(stepped))
            if first.num_timesteps > first.learning_starts and updates > 0:
                train_together(agents, updates, first.batch_size)
            going = going and (after_step is None or after_step())
    for hook in hooks:
        hook.on_training_end()


def _step(agent: SAC, hook: BaseCallback) -> bool:
    """A round of steps of an agent's environment; whether its callback wants to go on."""
    assert agent.env is not None and agent.replay_buffer is not None
    rollout = agent.collect_rollouts(
        agent.env,
        train_freq=agent.train_freq,
        callback=hook,
        replay_buffer=agent.replay_buffer,
        learning_starts=agent.learning_starts,
    )
    agent._update_current_progress_remaining(agent.num_timesteps, agent._total_timesteps)
    return rollout.continue_training
