"""Balance a pole after a few thousand real steps, with a bounded policy: model-based training, then a certificate.

The agent learns a model of the environment and trains on its predictions. The actor is a network whose Lipschitz
constant cannot exceed 20 whatever the training does; the certificate then says how large it is.
"""

import gymnasium
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.mbpo import MBPO, RolloutSettings
from lipctrl.agents.regularisation import Smoothness
from lipctrl.certify.bracket import certify
from lipctrl.models.dynamics import DynamicsSettings
from lipctrl.nn.sb3 import actor_to_plain

agent = MBPO(
    "LipschitzMlpPolicy",
    "InvertedPendulum-v5",
    policy_kwargs={"lip": 20.0, "hidden": (32, 32), "net_arch": [32, 32]},
    seed=0,
    device="cpu",
    learning_starts=500,
    gradient_steps=5,
    batch_size=128,
    target_entropy=-0.05,
    smoothness=Smoothness(perturbation="fgsm"),
    dynamics=DynamicsSettings(width=64, depth=3, cap=300),
    rollouts=RolloutSettings(rows=5000, epoch=250),
)
agent.learn(5000)

mean, _ = evaluate_policy(agent, Monitor(gymnasium.make("InvertedPendulum-v5")), 5)
bracket = certify(actor_to_plain(agent.policy))
print(f"mean return after 5,000 real steps: {mean:.0f} of 1,000")
print(f"Lipschitz constant of the policy: at most {bracket.upper.bound:.4g}, at least {bracket.lower.bound:.4g}")
print("wall time: " + ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in agent.seconds.items()))
