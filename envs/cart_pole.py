"""Cart-pole with continuous force: the same machine as a symbolic plant and as a MuJoCo model of our own.

A cart of mass M on a rail carries a uniform rod of mass m and half length l on a frictionless hinge. With position p,
angle q from upright (positive towards positive p), force F on the cart and horizontal force f at the middle of the rod,
Lagrange's equations are

    (M + m) p'' + m l (q'' cos q - q'^2 sin q) = F + f,   (4/3) m l^2 q'' + m l p'' cos q - m g l sin q = f l cos q.
"""

from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING

import casadi as ca
import numpy as np

from lipctrl.plant import Plant, Signal, continuous, rk4

from .base import Array, PlantEnv, Quadratic, uniform_start
from .drawing import BLUE, GREY, ORANGE, Scene, Shape

if TYPE_CHECKING:
    import mujoco

CART = 1.0  # M, kg
POLE = 0.1  # m, kg
HALF_LENGTH = 0.5  # l, m
GRAVITY = 9.81  # g, m/s2
FORCE_LIMIT = 10.0  # N
SAMPLING = 0.02  # s
SUBSTEPS = 4  # Runge-Kutta steps per sampling period, in both forms
CONSTANTS = {
    "cart mass [kg]": CART,
    "pole mass [kg]": POLE,
    "half length [m]": HALF_LENGTH,
    "gravity [m/s2]": GRAVITY,
}


def _ode(cart: float, pole: float, half_length: float, gravity: float) -> ca.Function:
    def motion(x: ca.SX, u: ca.SX, w: ca.SX) -> ca.SX:
        sin, cos, rate = ca.sin(x[1]), ca.cos(x[1]), x[3]
        coupling = pole * half_length * cos
        push_cart = u[0] + w[0] + pole * half_length * rate**2 * sin
        push_pole = pole * gravity * half_length * sin + w[0] * half_length * cos
        inertia = 4 / 3 * pole * half_length**2
        determinant = (cart + pole) * inertia - coupling**2
        acceleration = (inertia * push_cart - coupling * push_pole) / determinant
        angular = ((cart + pole) * push_pole - coupling * push_cart) / determinant
        return ca.vertcat(x[2], rate, acceleration, angular)

    return continuous(motion, n=4, m=1, d=1)


def _update(*constants: float) -> ca.Function:
    return rk4(_ode(*constants), SAMPLING, SUBSTEPS)


def cart_pole_plant() -> Plant:
    """The cart-pole: state (position, angle, velocity, rate), input force on the cart, disturbance force on the rod."""
    return Plant(
        name="cart-pole",
        state=Signal(
            ("position [m]", "angle [rad]", "velocity [m/s]", "rate [rad/s]"),
            (-2.4, -0.8, -20.0, -20.0),
            (2.4, 0.8, 20.0, 20.0),
        ),
        input=Signal(("force [N]",), (-FORCE_LIMIT,), (FORCE_LIMIT,)),
        disturbance=Signal(("wind on the pole [N]",), (-0.5,), (0.5,)),
        dt=SAMPLING,
        update=_update(*CONSTANTS.values()),
        ode=_ode(*CONSTANTS.values()),
        equilibrium=(np.zeros(4), np.zeros(1)),
        constants=CONSTANTS,
        family=_update,
    )


def energy(x: Array) -> float:
    """Kinetic and potential energy [J] of a state (4,); zero height at the rail."""
    _, angle, velocity, rate = x
    kinetic = (CART + POLE) * velocity**2 / 2 + POLE * HALF_LENGTH * velocity * rate * np.cos(angle)
    kinetic += 2 / 3 * POLE * HALF_LENGTH**2 * rate**2
    return float(kinetic + POLE * GRAVITY * HALF_LENGTH * np.cos(angle))


def mujoco_model() -> "mujoco.MjModel":
    """The MuJoCo model in `assets/cart_pole.xml`."""
    import mujoco  # only this form of the cart-pole needs it

    return mujoco.MjModel.from_xml_string(files("lipctrl.envs").joinpath("assets/cart_pole.xml").read_text("utf-8"))


def mujoco_advance(model: "mujoco.MjModel") -> Callable[[Array, Array, Array], Array]:
    """The function (x, u, w) -> x_next that steps the MuJoCo model over one sampling period."""
    import mujoco

    data = mujoco.MjData(model)
    pole = model.body("pole").id

    def advance(x: Array, u: Array, w: Array) -> Array:
        data.qpos[:], data.qvel[:] = x[:2], x[2:]
        data.ctrl[:] = u
        data.xfrc_applied[pole, 0] = w[0]
        mujoco.mj_step(model, data, nstep=SUBSTEPS)
        return np.concatenate([data.qpos, data.qvel])

    return advance


def _scene(x: Array) -> Scene:
    p, tip = float(x[0]), (x[0] + 2 * HALF_LENGTH * np.sin(x[1]), 2 * HALF_LENGTH * np.cos(x[1]))
    cart = [(p - 0.15, -0.06), (p + 0.15, -0.06), (p + 0.15, 0.06), (p - 0.15, 0.06)]
    rail = Shape([(-2.4, 0.0), (2.4, 0.0)], 0.03, GREY)
    return Scene((-2.6, 2.6, -1.5, 2.4), [rail, Shape(cart, 0.0, BLUE), Shape([(p, 0.0), tip], 0.06, ORANGE)])


class CartPoleEnv(PlantEnv):
    """Balance a pole on a cart with a continuous force.

    ## Description
    A cart of 1 kg on a frictionless rail with a uniform rod of 0.1 kg and 1 m, integrated from Lagrange's equations and
    sampled every 0.02 s.

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | force on the cart | -10 | 10 | N |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | position | -2.4 | 2.4 | m |
    | 1 | angle from upright | -0.8 | 0.8 | rad |
    | 2 | velocity | -20 | 20 | m/s |
    | 3 | rate | -20 | 20 | rad/s |

    ## Reward
    -(position^2 + 10 angle^2 + 0.1 velocity^2 + 0.1 rate^2 + 0.01 force^2) at the state before the step, and -1000
    once on failure.

    ## Start state
    Position uniform in [-0.5, 0.5] m, angle in [-0.2, 0.2] rad, velocity in [-0.2, 0.2] m/s, rate in [-0.2, 0.2] rad/s.

    ## Termination and truncation
    Terminates when a state leaves its limits (failure); truncated after 250 steps (5 s).

    ## Disturbance
    Horizontal force at the middle of the rod, at most 0.5 N.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(
            cart_pole_plant(),
            stage_cost=_COST,
            start=_START,
            failure_cost=1000.0,
            scene=_scene,
            render_mode=render_mode,
        )


class CartPoleMujocoEnv(PlantEnv):
    """The task of `CartPole-v0`, stepped by MuJoCo.

    ## Description
    The same cart and rod as an MJCF model (`assets/cart_pole.xml`), integrated by MuJoCo and sampled every 0.02 s.
    `plant` is the symbolic form, which agrees with the MuJoCo model up to rounding; `model` is the MuJoCo model.

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | force on the cart | -10 | 10 | N |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | position | -2.4 | 2.4 | m |
    | 1 | angle from upright | -0.8 | 0.8 | rad |
    | 2 | velocity | -20 | 20 | m/s |
    | 3 | rate | -20 | 20 | rad/s |

    ## Reward
    -(position^2 + 10 angle^2 + 0.1 velocity^2 + 0.1 rate^2 + 0.01 force^2) at the state before the step, and -1000
    once on failure.

    ## Start state
    Position uniform in [-0.5, 0.5] m, angle in [-0.2, 0.2] rad, velocity in [-0.2, 0.2] m/s, rate in [-0.2, 0.2] rad/s.

    ## Termination and truncation
    Terminates when a state leaves its limits (failure); truncated after 250 steps (5 s).

    ## Disturbance
    Horizontal force at the middle of the rod, at most 0.5 N.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        self.model = mujoco_model()
        super().__init__(
            cart_pole_plant(),
            stage_cost=_COST,
            start=_START,
            failure_cost=1000.0,
            advance=mujoco_advance(self.model),
            scene=_scene,
            render_mode=render_mode,
        )


_COST = Quadratic(np.diag([1.0, 10.0, 0.1, 0.1]), np.array([[0.01]]), np.zeros(4), np.zeros(1))
_START = uniform_start((-0.5, -0.2, -0.2, -0.2), (0.5, 0.2, 0.2, 0.2))
