"""Balance a pole after a few thousand real steps: model-based training, then what is proved of the policy.

The agent learns a model of the environment and trains on its predictions, ten updates per real step, in a compiled
update (20 seconds once). `smoothness=Smoothness(perturbation="fgsm")` keeps the slope of its critics low, at 1.4 times
the price; `lipctrl train mbpo --config inverted-pendulum --lip 20` bounds the policy by construction.
"""

import gymnasium
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.mbpo import MBPO, RolloutSettings
from lipctrl.certify.bracket import certify
from lipctrl.models.dynamics import DynamicsSettings
from lipctrl.nn.sb3 import actor_to_plain

agent = MBPO(
    "MlpPolicy",
    "InvertedPendulum-v5",
    policy_kwargs={"net_arch": [64, 64]},
    seed=0,
    device="cpu",
    learning_starts=500,
    gradient_steps=10,
    batch_size=256,
    target_entropy=-0.05,
    dynamics=DynamicsSettings(width=100, depth=3, cap=500),
    rollouts=RolloutSettings(epoch=250),
    compiled=True,
)
agent.learn(3000)

mean, _ = evaluate_policy(agent, Monitor(gymnasium.make("InvertedPendulum-v5")), 5)
bracket = certify(actor_to_plain(agent.policy))
print(f"mean return after 3,000 real steps: {mean:.0f} of 1,000")
print(f"Lipschitz constant of the policy: in [{bracket.lower.bound:.4g}, {bracket.upper.bound:.4g}]")
print(f"slope of the critics at real states: {agent.history[-1]['critic/slope_mean']:.3g} per deviation")
print("wall time: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in agent.seconds.items()))
