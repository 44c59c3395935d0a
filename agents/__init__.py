"""Learning algorithms, one file each: Stable-Baselines3 algorithms whose update is ours."""

AGENTS = {"bc": "Lipschitz behaviour cloning: a bounded policy from demonstrations"}
"""Name and one-line description of every agent; `lipctrl.agents.<name>` holds it."""
