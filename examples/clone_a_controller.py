"""Clone a controller under a Lipschitz bound, then prove what its loop tolerates, monitor it at run time.

The expert is an LQR here because its closed loop is known exactly; any policy that answers `predict` takes its place.
"""

import numpy as np

from lipctrl.agents.bc import BCSettings, build
from lipctrl.certify.bracket import certify
from lipctrl.cli.closed_loop import closed_loop, loop_of
from lipctrl.cli.experts import lqr_expert, make_env
from lipctrl.demos.collect import record
from lipctrl.demos.cover import expert_slope
from lipctrl.mpc.monitor import Level, MonitoredPolicy, summarise
from lipctrl.policy import PlainPolicy

env = make_env("lipctrl/DoubleIntegrator-v0")
expert = lqr_expert(env)
demos = record(
    env, expert.policy, expert=expert.description, episodes=40, dither=0.3, seed=0, versions={}, max_steps=50
)

# The data say how steep the expert is at least; a policy below that cannot follow it.
slope = expert_slope(*demos.pairs())
print(f"steepest pair of demonstrations: {slope.value:.4f}")

settings = BCSettings(lip=1.02 * slope.value, updates=1500)
agent = build(settings, env, demos).learn(settings.updates)
policy = agent.policy.to_plain()
bracket = certify(policy)
print(f"policy's constant: [{bracket.lower.bound:.4f} witness, {bracket.upper.bound:.4f} proved]")

# In the loop: the largest set and measurement error for which stability follows.
loop = loop_of(env)
table = closed_loop(loop, policy, measurement=0.005)
for row in table.rows:
    print(f"  {row}")

# At run time: the policy acts inside the level set of the proof, the expert outside.
P = loop.expert.P
monitor = MonitoredPolicy(
    PlainPolicy(policy), expert.policy, {"level": Level(lambda x: float(np.sqrt(x @ P @ x)), table.level)}
)
x, hidden, verdicts = np.array([1.0, 0.0]), None, []
for _ in range(30):
    u, hidden = monitor.predict(x, hidden)
    verdicts += hidden
    x = loop.expert.A_cl @ x + loop.B @ (u + loop.expert.K @ x)
log = summarise(verdicts)
print(
    f"the expert acted in {log.share:.0%} of the steps, until the state was in the set; then |x| = {abs(x).max():.1e}"
)
