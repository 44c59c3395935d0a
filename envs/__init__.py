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
    "lipctrl/Pendulum-v0": _Task(
        "pendulum:PendulumEnv", 200, "balance a pendulum; an expert exists that makes the loop exactly linear"
    ),
    "lipctrl/PendulumSwingUp-v0": _Task(
        "pendulum:PendulumSwingUpEnv", 200, "swing a rod up with a torque that cannot lift it directly"
    ),
    "lipctrl/Cstr-v0": _Task("cstr:CstrEnv", 200, "hold an exothermic reactor at its unstable steady state"),
    "lipctrl/QuadTank-v0": _Task("quad_tank:QuadTankEnv", 200, "hold the levels of four coupled tanks with two pumps"),
    "lipctrl/Robot-v0": _Task("robot:RobotEnv", 200, "drive a differential-drive robot to a goal around an obstacle"),
    "lipctrl/Vehicle-v0": _Task("vehicle:VehicleEnv", 200, "keep a vehicle in its lane on a curve"),
    "lipctrl/CartPole-v0": _Task(
        "cart_pole:CartPoleEnv", 250, "balance a pole on a cart with a continuous force, equations of motion"
    ),
    "lipctrl/CartPoleMujoco-v0": _Task(
        "cart_pole:CartPoleMujocoEnv", 250, "balance a pole on a cart with a continuous force, MuJoCo"
    ),
}

ENVIRONMENTS: dict[str, str] = {name: task.description for name, task in _TASKS.items()}
"""Id and one-line description of every environment of this package."""


def register_all() -> None:
    """Register every environment with gymnasium. Doing so again changes nothing."""
    for name, task in _TASKS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, f"lipctrl.envs.{task.entry_point}", max_episode_steps=task.steps)


register_all()
