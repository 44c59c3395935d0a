"""Quadruple tank: two pumps, four tanks, two cross-coupled level loops.

K. H. Johansson, "The quadruple-tank process: a multivariable laboratory process with an adjustable zero", IEEE
Transactions on Control Systems Technology 8(3), 2000, with the constants of its minimum-phase setting. With outflow
q_i = a_i sqrt(2 g h_i),

    A1 h1' = -q1 + q3 + gamma1 k1 v1          A3 h3' = -q3 + (1 - gamma2) k2 v2 + w1
    A2 h2' = -q2 + q4 + gamma2 k2 v2          A4 h4' = -q4 + (1 - gamma1) k1 v1 + w2

Ours differs in one point: the square root has an infinite slope at an empty tank, so the outflow is
a sqrt(2 g) h / (h^2 + e^2)^(1/4) with e = 0.01 cm, which differs relatively by less than 3e-5 above 1 cm.
"""

import casadi as ca
import numpy as np

from lipctrl.plant import Plant, Signal, continuous, rk4

from .base import Array, PlantEnv, Quadratic, uniform_start
from .drawing import BLUE, GREY, Scene, Shape

AREAS = np.array([28.0, 32.0, 28.0, 32.0])  # A, cm2
ORIFICES = np.array([0.071, 0.057, 0.071, 0.057])  # a, cm2
GRAVITY = 981.0  # cm/s2
PUMPS = np.array([3.33, 3.35])  # k, cm3/(s V)
SPLITS = np.array([0.70, 0.60])  # gamma, share of the pump flow that enters the lower tank
VOLTAGES = np.array([3.0, 3.0])  # operating point, V
SMOOTHING = 0.01  # e, cm
SAMPLING = 5.0  # s


def _inflows(v: Array) -> Array:
    """Pump flow into each tank [cm3/s]."""
    pumped = PUMPS * v
    lower, upper = SPLITS * pumped, (1 - SPLITS) * pumped
    return np.array([lower[0], lower[1], upper[1], upper[0]])


def equilibrium_levels(v: Array) -> Array:
    """Levels (4,) [cm] at rest for pump voltages (2,) [V], in closed form.

    The outflow of each tank equals all that enters it; with c = outflow / (a sqrt(2 g)) and y = h^2,
    y^2 = c^4 (y + e^2).
    """
    through = _inflows(v)
    through[:2] += through[2:]
    fourth = (through / (ORIFICES * np.sqrt(2 * GRAVITY))) ** 4
    return np.asarray(np.sqrt((fourth + np.sqrt(fourth**2 + 4 * fourth * SMOOTHING**2)) / 2))


CONSTANTS = {
    **{f"area {i + 1} [cm2]": float(value) for i, value in enumerate(AREAS)},
    **{f"orifice {i + 1} [cm2]": float(value) for i, value in enumerate(ORIFICES)},
    **{f"pump constant {i + 1} [cm3/(s V)]": float(value) for i, value in enumerate(PUMPS)},
}


def _ode(*constants: float) -> ca.Function:
    areas, orifices, pumps = (ca.DM(part) for part in np.split(np.array(constants), (4, 8)))

    def motion(h: ca.SX, v: ca.SX, w: ca.SX) -> ca.SX:
        out = orifices * np.sqrt(2 * GRAVITY) * h / ca.sqrt(ca.sqrt(h**2 + SMOOTHING**2))
        pumped = pumps * v
        lower, upper = ca.DM(SPLITS) * pumped, ca.DM(1 - SPLITS) * pumped
        inflow = ca.vertcat(lower[0] + out[2], lower[1] + out[3], upper[1] + w[0], upper[0] + w[1])
        change: ca.SX = (inflow - out) / areas
        return change

    return continuous(motion, n=4, m=2, d=2)


def _update(*constants: float) -> ca.Function:
    step = rk4(_ode(*constants), SAMPLING, substeps=10)
    x, u, w = step.sx_in()
    # a tank cannot hold less than nothing, whatever the disturbance draws
    return ca.Function("update", [x, u, w], [ca.fmax(step(x, u, w), 0)], ["x", "u", "w"], ["x_next"])


def quad_tank_plant() -> Plant:
    """The four tanks: state levels 1 to 4, input pump voltages, disturbance extra inflow to tanks 3 and 4."""
    return Plant(
        name="quad tank",
        state=Signal(tuple(f"level {i} [cm]" for i in (1, 2, 3, 4)), (0.0,) * 4, (20.0,) * 4),
        input=Signal(("pump 1 [V]", "pump 2 [V]"), (0.0, 0.0), (10.0, 10.0)),
        disturbance=Signal(("inflow 3 [cm3/s]", "inflow 4 [cm3/s]"), (-1.0, -1.0), (1.0, 1.0)),
        dt=SAMPLING,
        update=_update(*CONSTANTS.values()),
        ode=_ode(*CONSTANTS.values()),
        equilibrium=(equilibrium_levels(VOLTAGES), VOLTAGES.copy()),
        constants=CONSTANTS,
        family=_update,
    )


def _scene(h: Array) -> Scene:
    """The upper tanks above those that they drain into; the scale is in centimetres of level."""
    shapes = []
    for level, (left, bottom) in zip(h, ((6.0, 2.0), (36.0, 2.0), (6.0, 26.0), (36.0, 26.0)), strict=True):
        right, top, surface = left + 18.0, bottom + 20.0, bottom + float(level)
        shapes.append(Shape([(left, bottom), (right, bottom), (right, surface), (left, surface)], 0.0, BLUE))
        shapes.append(Shape([(left, top), (left, bottom), (right, bottom), (right, top)], 0.6, GREY))
    return Scene((0.0, 60.0, 0.0, 48.0), shapes)


class QuadTankEnv(PlantEnv):
    """Hold the levels of two lower tanks, fed by two pumps and two upper tanks.

    ## Description
    The minimum-phase quadruple tank, sampled every 5 s. Each pump feeds one lower tank and, diagonally, one upper tank
    that drains into the other lower tank. Operating point: 3 V on both pumps, levels (12.26, 12.78, 1.63, 1.41) cm.

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | pump 1 | 0 | 10 | V |
    | 1 | pump 2 | 0 | 10 | V |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0-1 | levels of the lower tanks 1 and 2 | 0 | 20 | cm |
    | 2-3 | levels of the upper tanks 3 and 4 | 0 | 20 | cm |

    ## Reward
    With deviations from the operating point, -(dh1^2 + dh2^2 + 0.1 dh3^2 + 0.1 dh4^2 + 0.1 dv1^2 + 0.1 dv2^2) at the
    state before the step, and -5000 once on failure.

    ## Start state
    Lower levels uniform in [6, 18] cm, upper levels uniform in [0.5, 4] cm.

    ## Termination and truncation
    Terminates when a tank overflows (failure); truncated after 200 steps (1000 s).

    ## Disturbance
    Extra inflow into tanks 3 and 4, at most 1 cm3/s, negative for a leak.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        plant = quad_tank_plant()
        cost = Quadratic(np.diag([1.0, 1.0, 0.1, 0.1]), 0.1 * np.eye(2), *plant.equilibrium)
        start = uniform_start((6.0, 6.0, 0.5, 0.5), (18.0, 18.0, 4.0, 4.0))
        super().__init__(
            plant, stage_cost=cost, start=start, failure_cost=5000.0, scene=_scene, render_mode=render_mode
        )
