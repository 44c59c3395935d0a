"""Environments, registered with gymnasium by string: importing this imports no physics (neither CasADi nor MuJoCo).

`gymnasium.make("lipctrl/Cstr-v0")` works after `import lipctrl.envs`.
"""

from dataclasses import dataclass

import gymnasium


@dataclass(frozen=True)
class _Task:
    entry_point: str
    steps: int
    description: str


_TASKS = {
    "lipctrl/DoubleIntegrator-v0": _Task(
        "linear:DoubleIntegratorEnv", 100, "double integrator with quadratic cost; the optimum is known exactly"
    ),
    "lipctrl/Linear-v0": _Task("linear:LinearEnv", 100, "any linear system (A, B, Q, R) with quadratic cost"),
}

ENVIRONMENTS: dict[str, str] = {name: task.description for name, task in _TASKS.items()}
"""Id and one-line description of every environment of this package."""


def register_all() -> None:
    """Register every environment with gymnasium. Doing so again changes nothing."""
    for name, task in _TASKS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, f"lipctrl.envs.{task.entry_point}", max_episode_steps=task.steps)


register_all()
