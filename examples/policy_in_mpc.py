"""A policy beside MPC in five ways, in one closed loop: it starts the solver, ends the plan, is filtered, is the
fallback, and its proved constant sizes a tube.

The plant is a mass on a rail, position and speed limited. The policy is a network cloned from an LQR that knows no
limits: fast, proved to be 2-Lipschitz, and too bold near the speed limit.
"""

from dataclasses import replace

import numpy as np

from lipctrl.agents.bc import BCSettings, build
from lipctrl.certify.bracket import certify
from lipctrl.cli.experts import make_env
from lipctrl.cli.mpc_modes import attacked, plant_of, tube_of
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.mpc import fallback, safety_filter
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.fallback import CertifiedFallback
from lipctrl.mpc.linear import terminal_set
from lipctrl.mpc.loop import simulate
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.policy_mpc import PolicyWarmStart
from lipctrl.mpc.problem import regulation
from lipctrl.mpc.safety_filter import SafetyFilter
from lipctrl.mpc.terminal import PolicyTerminalMPC
from lipctrl.plant import Signal
from lipctrl.policy import PlainPolicy, linear_policy

env = make_env("lipctrl/DoubleIntegrator-v0")
inner = plant_of(env)
plant = inner.plant = replace(inner.plant, state=Signal(inner.plant.state.names, (-5.0, -1.0), (5.0, 1.0)))
Q, R, start = inner.Q, inner.R, np.array([3.0, 0.0])
gain = lqr(*plant.linearise(*plant.equilibrium)[:2], Q, R).K
expert = linear_policy(gain, np.array([-np.inf]), np.array([np.inf]))

x = np.random.default_rng(0).uniform(plant.state.low, plant.state.high, (5000, 2))
demos = Demonstrations.from_pairs(x, expert.predict(x)[0], {})
net = build(BCSettings(lip=2.0, activation="tanh", updates=2000), env, demos).learn(2000).policy.to_plain()
bracket = certify(net)
print(f"the policy's constant: [{bracket.lower.bound:.4f} witness, {bracket.upper.bound:.4f} proved]")
policy, problem = PlainPolicy(net), regulation(plant, Q, R, horizon=10)


def loop(controller, observe=inner.observe):
    return simulate(plant, controller, start, 40, stage_cost=inner.stage_cost, observe=observe)


bare, plain = loop(policy), loop(MPCPolicy(NMPC(plant, problem)))
print(f"alone: policy costs {bare.cost:.3f} and is {bare.state_excess.max():.2f} beyond a limit; MPC {plain.cost:.3f}")

# 1. It starts the solver: same optimum. (In a loop the shifted plan is a good start as well.)
warm = loop(MPCPolicy(PolicyWarmStart(NMPC(plant, problem), policy)))
print(f"1 warm start: cost {warm.cost:.3f}")

# 2. It acts behind the horizon: three free steps cost what ten do.
short = replace(problem, horizon=3)
ended = loop(MPCPolicy(PolicyTerminalMPC(plant=plant, ocp=short, net=net, rollout=20)))
print(f"2 terminal controller: horizon 3 costs {ended.cost:.3f}")

# 3. MPC changes its action only as far as a backup plan to a safe set needs it.
safe = replace(problem, terminal_set=terminal_set(plant, problem))
filtered = loop(SafetyFilter(policy=policy, plant=plant, ocp=safe, backup=expert))
log = safety_filter.summarise(filtered.records)
print(f"3 safety filter: {log.share:.0%} of the actions changed, excess {filtered.state_excess.max():.2g}")

# 4. It acts when MPC is late: here one solve in ten takes longer than a millisecond, by a deadline that is too tight.
both = CertifiedFallback(controller=NMPC(plant, problem), net=net, certificate=bracket.upper, deadline=1e-3)
late = loop(both)
switches = fallback.summarise(late.decisions, late.states[:-1], bracket.upper, dt=plant.dt)
print(f"4 fallback: cost {late.cost:.3f}; the policy acted at {switches.share:.0%} of the steps")

# 5. Its proved constant tightens the limits for a measurement error of at most 0.02, whoever chooses it.
tube = tube_of(plant, problem, net, radius=0.02)
print(f"5 tube: speed limit tightened by {tube.tightening.states[1]:.3f}")
for attack in ("none", "uniform", "vertex", "mad"):
    run = loop(tube, attacked(inner, PlainPolicy(net.without_limits()), attack, 0.02, seed=0))
    print(f"  under {attack}: cost {run.cost:.3f}, excess {run.state_excess.max():.2g}")
    assert run.state_excess.max() == 0
