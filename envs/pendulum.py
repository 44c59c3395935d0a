"""Pendulums: balancing with an exactly linearising expert, and swing-up with limited torque.

The balancing plant is a forward-Euler discretisation of a unit pendulum with the angle measured from upright, x+ = x
+ h (x2, g sin x1 + u). The policy u = -g sin x1 - 10 x1 - 6 x2 makes its loop exactly linear, so every constant of a
closed-loop statement is known. The swing-up plant is the rod of gymnasium's Pendulum-v1 (unit mass and length, torque
at most 2 N m), integrated by Runge-Kutta and with g = 9.81 m/s2.
"""

import casadi as ca
import numpy as np

from lipctrl.plant import Plant, Signal, continuous, discrete, rk4

from .base import Array, PlantEnv, Quadratic, uniform_start
from .drawing import BLUE, GREY, Scene, Shape

GRAVITY = 9.81  # m/s2
SAMPLING = 0.05  # s, both pendulums
GAIN = (10.0, 6.0)  # of the expert: 1/s2 on the angle, 1/s on the rate

MASS = 1.0  # kg, of the rod
LENGTH = 1.0  # m, of the rod
INERTIA = MASS * LENGTH**2 / 3  # kg m2, of the rod about its end
TORQUE_LIMIT = 2.0  # N m


def _balanced(gravity: float) -> ca.Function:
    return discrete(
        lambda x, u, w: x + SAMPLING * ca.vertcat(x[1], gravity * ca.sin(x[0]) + u[0] + w[0]), n=2, m=1, d=1
    )


def pendulum_plant() -> Plant:
    """The balancing plant: state (angle from upright, rate), input and disturbance are angular accelerations."""
    return Plant(
        name="pendulum",
        state=Signal(("angle [rad]", "rate [rad/s]"), (-np.pi, -20.0), (np.pi, 20.0)),
        input=Signal(("acceleration [rad/s2]",), (-100.0,), (100.0,)),
        disturbance=Signal(("push [rad/s2]",), (-5.0,), (5.0,)),
        dt=SAMPLING,
        update=_balanced(GRAVITY),
        ode=None,
        equilibrium=(np.zeros(2), np.zeros(1)),
        constants={"gravity [m/s2]": GRAVITY},
        family=_balanced,
    )


def linearising_expert(x: Array) -> Array:
    """u = -g sin x1 - 10 x1 - 6 x2 for states (..., 2), shape (..., 1). The loop becomes [[1, 0.05], [-0.5, 0.7]] x.

    Its smallest Lipschitz constant in the Euclidean norm is norm((g + 10, 6)) = 20.69869803, attained at x1 = 0.
    """
    angle, rate = x[..., :1], x[..., 1:]
    return np.asarray(-GRAVITY * np.sin(angle) - GAIN[0] * angle - GAIN[1] * rate)


def _scene(x: Array) -> Scene:
    tip = (float(np.sin(x[0])), float(np.cos(x[0])))
    return Scene((-1.6, 1.6, -1.2, 1.2), [Shape([(0.0, 0.0), tip], 0.1, BLUE), Shape([(0.0, 0.0)], 0.15, GREY)])


class PendulumEnv(PlantEnv):
    """Balance a pendulum upright; an expert exists that makes the loop exactly linear.

    ## Description
    x+ = x + 0.05 (x2, 9.81 sin x1 + u), x1 the angle from upright and x2 its rate. `linearising_expert` keeps every
    start state of this task within the limits.

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | angular acceleration | -100 | 100 | rad/s2 |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | angle from upright | -pi | pi | rad |
    | 1 | rate | -20 | 20 | rad/s |

    ## Reward
    -(angle^2 + 0.1 rate^2 + 0.001 acceleration^2) at the state before the step, and -1000 once on failure.

    ## Start state
    Uniform in [-1, 1] x [-3, 3].

    ## Termination and truncation
    Terminates when the angle or the rate leaves its limits (failure); truncated after 200 steps (10 s).

    ## Disturbance
    Angular acceleration added to the action, at most 5 rad/s2.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        plant = pendulum_plant()
        cost = Quadratic(np.diag([1.0, 0.1]), np.array([[0.001]]), *plant.equilibrium)
        start = uniform_start((-1.0, -3.0), (1.0, 3.0))
        super().__init__(
            plant, stage_cost=cost, start=start, failure_cost=1000.0, scene=_scene, render_mode=render_mode
        )


def swing_up_plant(*, damping: float = 0.0) -> Plant:
    """The swing-up plant: state (angle from upright, rate), input and disturbance are torques.

    Args:
        damping: viscous damping at the hinge [N m s].
    """
    constants = {"mass [kg]": MASS, "length [m]": LENGTH, "gravity [m/s2]": GRAVITY}
    if damping:
        constants["damping [N m s]"] = damping

    def rod(mass: float, length: float, gravity: float, damping: float = 0.0) -> ca.Function:
        def motion(x: ca.SX, u: ca.SX, w: ca.SX) -> ca.SX:
            weight = mass * gravity * length / 2 * ca.sin(x[0])
            return ca.vertcat(x[1], (weight - damping * x[1] + u[0] + w[0]) / (mass * length**2 / 3))

        return continuous(motion, n=2, m=1, d=1)

    def update(*values: float) -> ca.Function:
        return rk4(rod(*values), SAMPLING, substeps=5)

    return Plant(
        name="pendulum swing-up",
        # torque limit and gravity cannot reach the rate limit within an episode
        state=Signal(("angle [rad]", "rate [rad/s]"), (-np.inf, -100.0), (np.inf, 100.0)),
        input=Signal(("torque [N m]",), (-TORQUE_LIMIT,), (TORQUE_LIMIT,)),
        disturbance=Signal(("torque push [N m]",), (-0.5,), (0.5,)),
        dt=SAMPLING,
        update=update(*constants.values()),
        ode=rod(*constants.values()),
        equilibrium=(np.zeros(2), np.zeros(1)),
        constants=constants,
        family=update,
    )


def energy(x: Array) -> float:
    """Kinetic and potential energy [J] of the swing-up rod in state (2,); zero height at the hinge."""
    return float(INERTIA * x[1] ** 2 / 2 + MASS * GRAVITY * LENGTH / 2 * np.cos(x[0]))


def observe(x: Array) -> Array:
    """Observation (cos angle, sin angle, rate) of a state (2,)."""
    return np.array([np.cos(x[0]), np.sin(x[0]), x[1]])


def state_of(observation: Array) -> Array:
    """State (angle in [-pi, pi], rate) of an observation (3,): what a state-feedback controller needs."""
    return np.array([np.arctan2(observation[1], observation[0]), observation[2]])


def _swing_up_cost(x: Array, u: Array) -> float:
    angle = np.arctan2(np.sin(x[0]), np.cos(x[0]))
    return float(angle**2 + 0.1 * x[1] ** 2 + 0.001 * u[0] ** 2)


class PendulumSwingUpEnv(PlantEnv):
    """Swing a rod up with a torque that cannot lift it directly, and hold it upright.

    ## Description
    A rod of 1 kg and 1 m on a hinge, (m l^2 / 3) angle'' = (m g l / 2) sin(angle) - damping angle' + torque, angle from
    upright. Holding the rod horizontal would need 4.9 N m; 2 N m are available. Sampled every 0.05 s.

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | torque | -2 | 2 | N m |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | cosine of the angle | -1 | 1 | - |
    | 1 | sine of the angle | -1 | 1 | - |
    | 2 | rate | -100 | 100 | rad/s |

    ## Reward
    -(angle^2 + 0.1 rate^2 + 0.001 torque^2) at the state before the step, angle wrapped to [-pi, pi].

    ## Start state
    Angle uniform in [-pi, pi], rate uniform in [-1, 1].

    ## Termination and truncation
    Terminates when the rate leaves its limits, which no admissible torque can bring about within an episode; truncated
    after 200 steps (10 s).

    ## Disturbance
    Torque added to the action, at most 0.5 N m.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | damping | 0.0 | viscous damping at the hinge [N m s] |
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, damping: float = 0.0, render_mode: str | None = None) -> None:
        names = ("cos angle [-]", "sin angle [-]", "rate [rad/s]")
        super().__init__(
            swing_up_plant(damping=damping),
            stage_cost=_swing_up_cost,
            start=uniform_start((-np.pi, -1.0), (np.pi, 1.0)),
            observed=Signal(names, (-1.0, -1.0, -100.0), (1.0, 1.0, 100.0)),
            observe=observe,
            state_of=state_of,
            scene=_scene,
            render_mode=render_mode,
        )
