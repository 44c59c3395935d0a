"""From a threat to a report, how bad it gets and how hard we looked: run `python examples/attack_and_report.py`."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lipctrl.attacks.threat import Threat
from lipctrl.cli.contenders import contender
from lipctrl.cli.evaluate import provenance
from lipctrl.cli.experts import lqr_expert, make_env, signal_names
from lipctrl.cli.plan import Plan
from lipctrl.cli.replay import replay
from lipctrl.cli.sections import evaluate
from lipctrl.evaluation.report import write
from lipctrl.nn.plain import PlainNet

ENV = "lipctrl/DoubleIntegrator-v0"
env = make_env(ENV)
names, expert = signal_names(env), lqr_expert(env)

# Two controllers of the same plant: its LQR, and a gain that was softened by hand.
folder = Path("attack-and-report")
folder.mkdir(exist_ok=True)
soft = PlainNet(({0: -np.array([[0.25, 1.0]])},), (np.zeros(1),), ())
soft.save(folder / "soft.npz")
contenders = [
    replace(contender("soft", soft, env_names=names), source=folder / "soft.npz"),
    contender("expert", expert.policy.net, env_names=names),
]

# What the adversary may do: move the measured state by up to the radius, at every step.
threat = Threat.parse("observation:l2:raw", np.ones(2), names[0], env)
print(threat.sentence())

# Every attack at every radius from the same start states, its effort varied, the worst one again on new start states.
attacks = ("none", "vertex", "mad", "constant-search")
plan = Plan(ENV, threat, (0.0, 0.2), attacks, episodes=10, seed=0, fresh=10, search=16, ladder=(0.3,), parts=2)
section = evaluate(plan, contenders, expert=expert, animate=False, facts={})
for sentence in section.verdicts:
    print(sentence)

# The worst numbers are only as good as the search: the signs that it was too weak, computed from what ran.
for policy, signs in section.health.items():
    for sign in signs:
        if sign.status == "bad":
            print(f"{policy}: {sign.name}? {sign.text}")

# On this plant the exact worst case of the optimal gain is known: no attack may exceed it, the best must reach it.
assert all(0.999999 < line["ratio"] < 1.000001 for line in section.exact)

# One page that opens without a network, the same as JSON, and the worst episodes, which replay to the last bit.
print(f"report: {write(folder, 'Two controllers under attack', [section], provenance(0))}")
replay(folder / "episode-0-0.npz", None)
