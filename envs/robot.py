"""Differential-drive robot: reach a goal, avoid an obstacle.

The kinematics of two driven wheels without slip (for example Siegwart and Nourbakhsh, "Introduction to Autonomous
Mobile Robots", section 3.2): v = r (right + left) / 2, heading' = r (right - left) / b, position' = v (cos heading,
sin heading).
"""

from typing import Any

import casadi as ca
import numpy as np

from lipctrl.plant import Plant, Signal, continuous, rk4

from .base import Array, PlantEnv, Quadratic, uniform_start
from .drawing import BLUE, GREEN, RED, Scene, Shape

WHEEL_RADIUS = 0.05  # r, m
TRACK = 0.3  # b, distance of the wheels, m
WHEEL_SPEED = 20.0  # limit, rad/s: 1 m/s straight ahead
OBSTACLE = (-1.0, 0.0)  # centre, m
OBSTACLE_RADIUS = 0.4  # m, enlarged by the robot's own radius
ARENA = 4.0  # half side of the square arena, m
SAMPLING = 0.1  # s


CONSTANTS = {"wheel radius [m]": WHEEL_RADIUS, "track [m]": TRACK}


def _ode(wheel_radius: float, track: float) -> ca.Function:
    def motion(x: ca.SX, u: ca.SX, w: ca.SX) -> ca.SX:
        speed = wheel_radius * (u[1] + u[0]) / 2
        turn = wheel_radius * (u[1] - u[0]) / track
        return ca.vertcat(speed * ca.cos(x[2]) + w[0], speed * ca.sin(x[2]) + w[1], turn)

    return continuous(motion, n=3, m=2, d=2)


def _update(*constants: float) -> ca.Function:
    return rk4(_ode(*constants), SAMPLING, substeps=1)


def robot_plant() -> Plant:
    """The robot: state (x, y, heading), input (left, right) wheel speed, disturbance drift velocity. Goal: origin."""
    return Plant(
        name="robot",
        state=Signal(("x [m]", "y [m]", "heading [rad]"), (-ARENA, -ARENA, -np.inf), (ARENA, ARENA, np.inf)),
        input=Signal(("left wheel [rad/s]", "right wheel [rad/s]"), (-WHEEL_SPEED,) * 2, (WHEEL_SPEED,) * 2),
        disturbance=Signal(("drift x [m/s]", "drift y [m/s]"), (-0.1, -0.1), (0.1, 0.1)),
        dt=SAMPLING,
        update=_update(*CONSTANTS.values()),
        ode=_ode(*CONSTANTS.values()),
        equilibrium=(np.zeros(3), np.zeros(2)),
        constants=CONSTANTS,
        family=_update,
    )


def obstacle_margin(x: Any) -> Any:
    """Squared distance to the obstacle's centre minus its squared radius [m2]; negative inside.

    Works on numbers and on CasADi expressions, so that environment and MPC constrain the same function.
    """
    return (x[0] - OBSTACLE[0]) ** 2 + (x[1] - OBSTACLE[1]) ** 2 - OBSTACLE_RADIUS**2


def observe(x: Array) -> Array:
    """Observation (x, y, cos heading, sin heading) of a state (3,)."""
    return np.array([x[0], x[1], np.cos(x[2]), np.sin(x[2])])


def state_of(observation: Array) -> Array:
    """State (x, y, heading in [-pi, pi]) of an observation (4,): what a state-feedback controller needs."""
    return np.array([observation[0], observation[1], np.arctan2(observation[3], observation[2])])


def _scene(x: Array) -> Scene:
    nose, left, right = ((x[0] + r * np.cos(x[2] + a), x[1] + r * np.sin(x[2] + a)) for r, a in _TRIANGLE)
    obstacle = Shape([OBSTACLE], 2 * OBSTACLE_RADIUS, RED)
    goal = Shape([(0.0, 0.0)], 0.15, GREEN)
    return Scene((-4.0, 4.0, -3.0, 3.0), [obstacle, goal, Shape([nose, left, right], 0.0, BLUE)])


_TRIANGLE = ((0.2, 0.0), (0.15, 2.4), (0.15, -2.4))  # corners of the drawn robot: distance [m], bearing [rad]


class RobotEnv(PlantEnv):
    """Drive a differential-drive robot to the origin around an obstacle.

    ## Description
    Two driven wheels (radius 0.05 m, distance 0.3 m), sampled every 0.1 s. The straight way from the start states to
    the goal leads through a disc of radius 0.4 m around (-1, 0).

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | left wheel | -20 | 20 | rad/s |
    | 1 | right wheel | -20 | 20 | rad/s |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | x | -4 | 4 | m |
    | 1 | y | -4 | 4 | m |
    | 2 | cosine of the heading | -1 | 1 | - |
    | 3 | sine of the heading | -1 | 1 | - |

    ## Reward
    -(x^2 + y^2 + 0.0005 left^2 + 0.0005 right^2) at the state before the step, and -1000 once on failure.

    ## Start state
    x uniform in [-2.5, -1.5], y uniform in [-1, 1], heading uniform in [-pi, pi].

    ## Termination and truncation
    Terminates when the robot touches the obstacle or leaves the arena (failure; contact is checked at sampling
    instants); truncated after 200 steps (20 s). Reaching the goal does not end an episode.

    ## Disturbance
    Drift velocity in x and y, at most 0.1 m/s.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        plant = robot_plant()
        names = ("x [m]", "y [m]", "cos heading [-]", "sin heading [-]")
        super().__init__(
            plant,
            stage_cost=Quadratic(np.diag([1.0, 1.0, 0.0]), 0.0005 * np.eye(2), *plant.equilibrium),
            start=uniform_start((-2.5, -1.0, -np.pi), (-1.5, 1.0, np.pi)),
            failure_cost=1000.0,
            margin=obstacle_margin,
            margin_scale=OBSTACLE_RADIUS**2,
            observed=Signal(names, (-ARENA, -ARENA, -1.0, -1.0), (ARENA, ARENA, 1.0, 1.0)),
            observe=observe,
            state_of=state_of,
            scene=_scene,
            render_mode=render_mode,
        )
