"""Continuous stirred-tank reactor, stabilised at its unstable steady state.

A second-order exothermic reaction A -> B in a jacketed, well-mixed tank, with the constants that the Lyapunov-based MPC
literature uses (Wu et al., "Machine learning-based predictive control of nonlinear processes", AIChE Journal 65, 2019;
Wang and Wu, arXiv 2401.07494):

    dC_A/dt = F/V (C_A0 - C_A) - k0 exp(-E / (R T)) C_A^2
    dT/dt   = F/V (T0 - T) + (-dH) / (rho Cp) k0 exp(-E / (R T)) C_A^2 + Q / (rho Cp V)

State and input are absolute (concentration, temperature; feed concentration, heat), time is in hours.
"""

import casadi as ca
import numpy as np
from scipy.optimize import brentq

from lipctrl.files import UserError
from lipctrl.plant import Plant, Signal, continuous, rk4

from .base import Array, PlantEnv, Quadratic
from .drawing import BLUE, GREEN, GREY, Scene, Shape

FLOW = 5.0  # F, m3/h
VOLUME = 1.0  # V, m3
RATE = 8.46e6  # k0, m3/(kmol h)
ACTIVATION = 5e4  # E, kJ/kmol
GAS = 8.314  # R, kJ/(kmol K)
HEAT_OF_REACTION = -1.15e4  # dH, kJ/kmol
FEED_TEMPERATURE = 300.0  # T0, K
DENSITY = 1000.0  # rho, kg/m3
HEAT_CAPACITY = 0.231  # Cp, kJ/(kg K)
FEED = 4.0  # C_A0 at the operating point, kmol/m3
FEED_RANGE = 3.5  # kmol/m3, around FEED
HEAT_RANGE = 5e5  # Q, kJ/h
SAMPLING = 0.005  # h

# Lyapunov-based MPC: V = x'Px in the deviations (C_A - C_As, T - T_s), stability region and terminal region
P = np.array([[1060.0, 22.0], [22.0, 0.52]])
LEVEL = 372.0
TERMINAL_LEVEL = 2.0


CONSTANTS = {
    "flow [m3/h]": FLOW,
    "volume [m3]": VOLUME,
    "rate constant [m3/(kmol h)]": RATE,
    "activation energy [kJ/kmol]": ACTIVATION,
    "heat of reaction [kJ/kmol]": HEAT_OF_REACTION,
    "feed temperature [K]": FEED_TEMPERATURE,
    "density [kg/m3]": DENSITY,
    "heat capacity [kJ/(kg K)]": HEAT_CAPACITY,
}


def _ode(
    nominal_flow: float,
    volume: float,
    rate: float,
    activation: float,
    heat_of_reaction: float,
    nominal_feed_temperature: float,
    density: float,
    heat_capacity: float,
) -> ca.Function:
    def motion(x: ca.SX, u: ca.SX, w: ca.SX) -> ca.SX:
        flow, feed_temperature = nominal_flow + w[1], nominal_feed_temperature + w[0]
        reaction = rate * ca.exp(-activation / (GAS * x[1])) * x[0] ** 2
        released = -heat_of_reaction / (density * heat_capacity) * reaction
        heating = u[1] / (density * heat_capacity * volume)
        return ca.vertcat(
            flow / volume * (u[0] - x[0]) - reaction,
            flow / volume * (feed_temperature - x[1]) + released + heating,
        )

    return continuous(motion, n=2, m=2, d=2)


def _update(*constants: float) -> ca.Function:
    return rk4(_ode(*constants), SAMPLING, substeps=10)


def steady_states(feed: float = FEED, heat: float = 0.0) -> list[Array]:
    """Every steady state (C_A [kmol/m3], T [K]) for constant inputs, by falling concentration.

    Subtracting the two balances leaves T affine in C_A, so that one equation in C_A in (0, feed) remains.

    Args:
        feed: C_A0 [kmol/m3], positive.
        heat: Q [kJ/h].
    """
    if not feed > 0:
        raise UserError(f"the feed concentration must be positive, found {feed}")
    ode = _ode(*CONSTANTS.values())
    rise = -HEAT_OF_REACTION / (DENSITY * HEAT_CAPACITY)

    def state(c: float) -> Array:
        shift = heat / (DENSITY * HEAT_CAPACITY * FLOW)
        return np.array([c, FEED_TEMPERATURE + rise * (feed - c) + shift])

    def balance(c: float) -> float:
        return float(ode(state(c), [feed, heat], [0.0, 0.0])[0])

    grid = np.linspace(feed, 1e-6, 2000)
    values = [balance(c) for c in grid]
    roots = [
        brentq(balance, grid[i + 1], grid[i], xtol=1e-14, rtol=1e-14)
        for i in range(len(grid) - 1)
        if values[i] * values[i + 1] < 0
    ]
    return [state(c) for c in roots]


def cstr_plant() -> Plant:
    """The reactor: state (C_A, T), input (C_A0, Q), disturbance (feed temperature, flow); equilibrium unstable."""
    middle = steady_states()[1]
    return Plant(
        name="cstr",
        state=Signal(("concentration [kmol/m3]", "temperature [K]"), (0.0, 300.0), (6.0, 500.0)),
        input=Signal(
            ("feed concentration [kmol/m3]", "heat [kJ/h]"),
            (FEED - FEED_RANGE, -HEAT_RANGE),
            (FEED + FEED_RANGE, HEAT_RANGE),
        ),
        disturbance=Signal(("feed temperature [K]", "flow [m3/h]"), (-10.0, -0.5), (10.0, 0.5)),
        dt=SAMPLING,
        update=_update(*CONSTANTS.values()),
        ode=_ode(*CONSTANTS.values()),
        equilibrium=(middle, np.array([FEED, 0.0])),
        time_unit="h",
        constants=CONSTANTS,
        family=_update,
    )


def lyapunov(x: Array, steady_state: Array) -> Array:
    """V = (x - x_s)' P (x - x_s) of states (..., 2); the stability region is V <= LEVEL."""
    deviation = np.asarray(x) - steady_state
    return np.asarray(np.einsum("...i,ij,...j->...", deviation, P, deviation))


class CstrEnv(PlantEnv):
    """Hold an exothermic reactor at its unstable steady state.

    ## Description
    A -> B in a jacketed tank, two states, sampled every 0.005 h (18 s). At the operating point (1.9537 kmol/m3,
    401.87 K) the linearisation has eigenvalues -5.0 and +3.4934 1/h: without control the reactor ignites or goes out.
    The start states fill the region V <= 372 of the Lyapunov function in `lipctrl.envs.cstr`.

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | feed concentration | 0.5 | 7.5 | kmol/m3 |
    | 1 | heat | -5e5 | 5e5 | kJ/h |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | concentration | 0 | 6 | kmol/m3 |
    | 1 | temperature | 300 | 500 | K |

    ## Reward
    With deviations from the operating point, -(10 dC_A^2 + 0.01 dT^2 + 0.01 dC_A0^2 + 3e-12 Q^2) at the state before
    the step, and -5000 once on failure.

    ## Start state
    Uniform in the region V <= 372.

    ## Termination and truncation
    Terminates when a state leaves its limits (failure); truncated after 200 steps (1 h).

    ## Disturbance
    Feed temperature (at most 10 K) and flow (at most 0.5 m3/h), as deviations.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, render_mode: str | None = None) -> None:
        plant = cstr_plant()
        cost = Quadratic(np.diag([10.0, 0.01]), np.diag([0.01, 3e-12]), *plant.equilibrium)
        # V = norm(L' dx)^2 with P = LL': map the unit disc onto the region
        to_region = np.sqrt(LEVEL) * np.linalg.inv(np.linalg.cholesky(P).T)

        def start(rng: np.random.Generator) -> Array:
            radius, angle = np.sqrt(rng.uniform()), rng.uniform(0.0, 2 * np.pi)
            point = radius * np.array([np.cos(angle), np.sin(angle)])
            return np.asarray(plant.equilibrium[0] + to_region @ point)

        def scene(x: Array) -> Scene:
            """The phase plane with the region V <= LEVEL and the operating point."""
            angles = np.linspace(0.0, 2 * np.pi, 49)
            border = plant.equilibrium[0] + (to_region @ [np.cos(angles), np.sin(angles)]).T
            goal = Shape([tuple(plant.equilibrium[0])], 0.08, GREEN)
            region = Shape([(c, t) for c, t in border], 0.02, GREY)
            return Scene((0.0, 4.0, 310.0, 490.0), [region, goal, Shape([(x[0], x[1])], 0.1, BLUE)])

        super().__init__(plant, stage_cost=cost, start=start, failure_cost=5000.0, scene=scene, render_mode=render_mode)
