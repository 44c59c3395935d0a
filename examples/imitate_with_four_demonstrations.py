"""Swing a pendulum up like an expert who was watched four times, without a reward, in a few minutes of experience.

A discriminator tells the expert's pairs of state and action from the agent's; its logit is 1-Lipschitz by construction
and is the reward of TD3. `lipctrl train gail --config pendulum` does the same with checkpoints and a run folder.
"""

import gymnasium
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.discriminator import RewardSettings
from lipctrl.agents.gail import GAIL
from lipctrl.certify.reward import proved_slopes
from lipctrl.cli.demos_collect import CollectSettings, collect_demonstrations

STEPS = 3000

demos = collect_demonstrations(CollectSettings(env="Pendulum-v1", expert="swing-up", episodes=4, dither=0.0))
agent = GAIL(
    "MlpPolicy",
    "Pendulum-v1",
    demonstrations=demos,
    reward=RewardSettings(regulariser="certified", k=1.0),
    policy_kwargs={"net_arch": [64, 64]},
    seed=0,
    device="cpu",
    learning_starts=1000,
    learning_rate=1e-3,
    batch_size=128,
    train_freq=20,
    gradient_steps=20,
)
agent.learn(STEPS)

mean, _ = evaluate_policy(agent, Monitor(gymnasium.make("Pendulum-v1")), 10)
proved, last = proved_slopes(agent.learned_reward()), agent.history[-1]
print(f"mean return after {STEPS:,} steps: {mean:.0f}; of the four demonstrations: {demos.returns.mean():.0f}")
print(f"slope of the reward per deviation of state and action: at most {proved['all', 'normalised']:.4g}, proved")
print(f"largest slope at the agent's pairs: {last['reward/slope_max']:.3g}")
print(f"share of held-out pairs that the discriminator tells apart: {last['reward/accuracy_held']:.0%}")
print("wall time: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in agent.seconds.items() if seconds))
