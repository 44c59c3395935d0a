"""Learning algorithms, one file each: Stable-Baselines3 algorithms whose update is ours."""

AGENTS = {
    "bc": "Lipschitz behaviour cloning: a bounded policy from demonstrations",
    "bc_graph": "the same solved exactly on the data points, with McShane's interpolation: a baseline",
    "sb3": "Stable-Baselines3's PPO, SAC and TD3, with a bounded actor on request",
    "gail": "imitation of a few demonstrations: TD3 or SAC on a learned reward that is penalised or certified",
    "mbpo": "model-based policy optimisation: SAC on short rollouts of one dynamics model or several",
    "sac": "soft actor-critic with a fast update and, on request, smooth critics and a bounded actor",
}
"""Name and one-line description of every agent; `lipctrl.agents.<name>` holds it."""
