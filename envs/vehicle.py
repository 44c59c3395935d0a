"""Kinematic bicycle: keep the lane on a curve.

Rear-axle kinematic bicycle in coordinates of the road (for example Rajamani, "Vehicle Dynamics and Control", chapter
2): with lateral offset e (left positive), heading error psi, speed v, steering angle delta, road curvature kappa,

    e' = v sin(psi) + drift,   psi' = v tan(delta) / L - kappa v cos(psi) / (1 - kappa e),   v' = a.

Position along the road does not enter, so constant speed in the middle of the lane is an equilibrium on a curve too.
"""

import casadi as ca
import numpy as np

from lipctrl.files import UserError
from lipctrl.plant import Plant, Signal, continuous, rk4

from .base import Array, PlantEnv, Quadratic, uniform_start
from .drawing import BLUE, GREY, Scene, Shape

WHEELBASE = 2.7  # L, m
SPEED = 10.0  # reference, m/s
CURVATURE = 1 / 40  # of the road, 1/m, to the left: 2.5 m/s2 of lateral acceleration at the reference speed
LANE_HALF_WIDTH = 1.75  # m
STEERING_LIMIT = 0.5  # rad
ACCELERATION_LIMIT = 3.0  # m/s2
SAMPLING = 0.05  # s


def vehicle_plant(*, curvature: float = CURVATURE) -> Plant:
    """State (offset, heading error, speed), input (steering, acceleration), disturbance (drift, curvature).

    Args:
        curvature: of the road [1/m], left positive; the disturbance adds to it. At most 0.2 in size: the middle of the
            lane must be drivable within the steering limit.
    """
    if not abs(curvature) <= 0.2:
        raise UserError(f"the curvature of the road must be within 0.2 1/m, found {curvature}")

    def bicycle(wheelbase: float) -> ca.Function:
        def motion(x: ca.SX, u: ca.SX, w: ca.SX) -> ca.SX:
            kappa = curvature + w[1]
            along = x[2] * ca.cos(x[1]) / (1 - kappa * x[0])
            return ca.vertcat(
                x[2] * ca.sin(x[1]) + w[0],
                x[2] * ca.tan(u[0]) / wheelbase - kappa * along,
                u[1],
            )

        return continuous(motion, n=3, m=2, d=2)

    def update(wheelbase: float) -> ca.Function:
        return rk4(bicycle(wheelbase), SAMPLING, substeps=2)

    return Plant(
        name="vehicle",
        state=Signal(
            ("lateral offset [m]", "heading error [rad]", "speed [m/s]"),
            (-LANE_HALF_WIDTH, -1.0, 1.0),
            (LANE_HALF_WIDTH, 1.0, 20.0),
        ),
        input=Signal(
            ("steering [rad]", "acceleration [m/s2]"),
            (-STEERING_LIMIT, -ACCELERATION_LIMIT),
            (STEERING_LIMIT, ACCELERATION_LIMIT),
        ),
        disturbance=Signal(("lateral drift [m/s]", "curvature [1/m]"), (-0.5, -0.01), (0.5, 0.01)),
        dt=SAMPLING,
        update=update(WHEELBASE),
        ode=bicycle(WHEELBASE),
        equilibrium=(np.array([0.0, 0.0, SPEED]), np.array([np.arctan(WHEELBASE * curvature), 0.0])),
        constants={"wheelbase [m]": WHEELBASE},
        family=update,
    )


def _scene(x: Array, curvature: float) -> Scene:
    """From above, driving upwards; the road bends as it does from the rear axle on."""
    ahead = np.linspace(-3.0, 9.0, 25)
    shapes = [
        Shape([(side - curvature * s**2 / 2, s) for s in ahead], 0.1, GREY)
        for side in (-LANE_HALF_WIDTH, LANE_HALF_WIDTH)
    ]
    forward = np.array([-np.sin(x[1]), np.cos(x[1])])
    left = np.array([-forward[1], forward[0]])
    rear = np.array([-x[0], 0.0])
    corners = [rear + a * forward + b * left for a, b in ((-0.8, 0.8), (-0.8, -0.8), (3.5, -0.8), (3.5, 0.8))]
    return Scene((-8.0, 8.0, -3.0, 9.0), [*shapes, Shape([(c[0], c[1]) for c in corners], 0.0, BLUE)])


class VehicleEnv(PlantEnv):
    """Keep a vehicle in the middle of its lane on a curve, at constant speed.

    ## Description
    Kinematic bicycle of 2.7 m wheelbase on a road of constant curvature (radius 40 m by default), sampled every 0.05
    s, in road coordinates. At rest in the sense of control: middle of the lane, 10 m/s, steering atan(L curvature).

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | steering | -0.5 | 0.5 | rad |
    | 1 | acceleration | -3 | 3 | m/s2 |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | lateral offset, left positive | -1.75 | 1.75 | m |
    | 1 | heading error | -1 | 1 | rad |
    | 2 | speed | 1 | 20 | m/s |

    ## Reward
    With deviations from the equilibrium, -(offset^2 + heading^2 + 0.1 dv^2 + steering^2 + 0.1 acceleration^2) at the
    state before the step, and -1000 once on failure.

    ## Start state
    Offset uniform in [-1, 1] m, heading error in [-0.2, 0.2] rad, speed in [8, 12] m/s.

    ## Termination and truncation
    Terminates when the vehicle leaves its lane, or heading error or speed leave their limits (failure); truncated after
    200 steps (10 s).

    ## Disturbance
    Lateral drift (at most 0.5 m/s) and deviation of the curvature (at most 0.01 1/m).

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | curvature | 0.025 | curvature of the road [1/m], left positive |
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, curvature: float = CURVATURE, render_mode: str | None = None) -> None:
        plant = vehicle_plant(curvature=curvature)
        cost = Quadratic(np.diag([1.0, 1.0, 0.1]), np.diag([1.0, 0.1]), *plant.equilibrium)
        start = uniform_start((-1.0, -0.2, 8.0), (1.0, 0.2, 12.0))
        super().__init__(
            plant,
            stage_cost=cost,
            start=start,
            failure_cost=1000.0,
            scene=lambda x: _scene(x, curvature),
            render_mode=render_mode,
        )
