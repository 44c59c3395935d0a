"""Learning algorithms, one file each: Stable-Baselines3 algorithms whose update is ours."""

AGENTS = {
    "bc": "Lipschitz behaviour cloning: a bounded policy from demonstrations",
    "sb3": "Stable-Baselines3's PPO, SAC and TD3, with a bounded actor on request",
}
"""Name and one-line description of every agent; `lipctrl.agents.<name>` holds it."""
