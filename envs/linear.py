"""Linear systems with quadratic cost: the tasks whose optimum, worst case and stability limits are known exactly.

x+ = A x + B u + w with cost x'Qx + u'Ru. The double integrator is the benchmark system of Schwan, Jones and Kuhn,
"Stability verification of neural network controllers using mixed-integer programming" (arXiv 2206.13374); the sampled
double integrator (0.1 s) is the default of `Linear-v0`, on which the worst observation attack is known in closed form.
"""

from collections.abc import Sequence

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike

from lipctrl.files import UserError
from lipctrl.plant import Plant, Signal, discrete

from .base import Array, PlantEnv, Quadratic, uniform_start
from .drawing import BLUE, GREY, Scene, Shape

STATE_LIMIT = 1e6  # beyond this a linear loop counts as diverged
INPUT_LIMIT = 1e3  # wide enough that an LQR gain is never clipped near the origin


def linear_plant(
    a: ArrayLike,
    b: ArrayLike,
    *,
    dt: float = 1.0,
    name: str = "linear",
    state_names: Sequence[str] | None = None,
    input_names: Sequence[str] | None = None,
    state_limit: float = STATE_LIMIT,
    input_limit: float = INPUT_LIMIT,
) -> Plant:
    """The plant x+ = A x + B u + w with equilibrium at the origin; its constants are the entries that are not zero.

    Args:
        a: A, shape (n, n).
        b: B, shape (n, m), or (n,) for one input.
        dt: sampling time [s].
        name: name of the plant.
        state_names, input_names: with units; by default x1 [-], x2 [-], ... and u1 [-], ...
        state_limit, input_limit: limits of every |x_i| and |u_i|.

    Raises:
        UserError: shapes do not match or entries are not finite.
    """
    A, B = np.array(a, dtype=np.float64), np.array(b, dtype=np.float64)
    B = B[:, None] if B.ndim == 1 else B
    n = len(A) if A.ndim else 0
    if A.shape != (n, n) or B.ndim != 2 or len(B) != n or not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise UserError(f"A needs shape (n, n) and B (n, m), all finite, found {A.shape} and {B.shape}")
    m = B.shape[1]
    constants = {f"A[{i + 1},{j + 1}] [-]": float(A[i, j]) for i, j in np.argwhere(A)}
    constants |= {f"B[{i + 1},{j + 1}] [-]": float(B[i, j]) for i, j in np.argwhere(B)}

    def update(*values: float) -> ca.Function:
        a_now, b_now = np.zeros_like(A), np.zeros_like(B)
        a_now[A != 0], b_now[B != 0] = values[: np.count_nonzero(A)], values[np.count_nonzero(A) :]
        return discrete(lambda x, u, w: ca.DM(a_now) @ x + ca.DM(b_now) @ u + w, n, m, n)

    states = tuple(state_names) if state_names is not None else tuple(f"x{i + 1} [-]" for i in range(n))
    inputs = tuple(input_names) if input_names is not None else tuple(f"u{i + 1} [-]" for i in range(m))
    pushes = tuple(f"push on x{i + 1} [-]" for i in range(n))
    return Plant(
        name=name,
        state=Signal(states, (-state_limit,) * n, (state_limit,) * n),
        input=Signal(inputs, (-input_limit,) * m, (input_limit,) * m),
        disturbance=Signal(pushes, (-state_limit,) * n, (state_limit,) * n),
        dt=dt,
        update=update(*constants.values()),
        ode=None,
        equilibrium=(np.zeros(n), np.zeros(m)),
        constants=constants,
        family=update,
    )


def double_integrator() -> tuple[Plant, Array, Array]:
    """(plant, Q, R) of the double integrator: A = [[1, 1], [0, 1]], B = (0, 1), Q = I, R = 0.1, one second per step."""
    plant = linear_plant(
        [[1.0, 1.0], [0.0, 1.0]],
        [0.0, 1.0],
        name="double integrator",
        state_names=("position [m]", "velocity [m/s]"),
        input_names=("acceleration [m/s2]",),
    )
    return plant, np.eye(2), np.array([[0.1]])


def sampled_double_integrator() -> tuple[Plant, Array, Array]:
    """(plant, Q, R) of the double integrator sampled every 0.1 s: A = [[1, 0.1], [0, 1]], B = (0.005, 0.1), R = 0.1."""
    plant = linear_plant(
        [[1.0, 0.1], [0.0, 1.0]],
        [0.005, 0.1],
        dt=0.1,
        name="sampled double integrator",
        state_names=("position [m]", "velocity [m/s]"),
        input_names=("acceleration [m/s2]",),
    )
    return plant, np.eye(2), np.array([[0.1]])


def _regulation(plant: Plant, Q: ArrayLike, R: ArrayLike) -> Quadratic:
    return Quadratic(np.array(Q, dtype=np.float64), np.atleast_2d(np.array(R, dtype=np.float64)), *plant.equilibrium)


def _scene(x: Array) -> Scene:
    """The first two states in their plane."""
    axes = [Shape([(-4.0, 0.0), (4.0, 0.0)], 0.02, GREY), Shape([(0.0, -3.0), (0.0, 3.0)], 0.02, GREY)]
    return Scene((-4.0, 4.0, -3.0, 3.0), [*axes, Shape([(x[0], x[1] if len(x) > 1 else 0.0)], 0.25, BLUE)])


class DoubleIntegratorEnv(PlantEnv):
    """Double integrator with quadratic cost, the smallest task with a known optimum.

    ## Description
    A unit mass on a line by forward Euler with one second per step, x+ = A x + B u with A = [[1, 1], [0, 1]],
    B = (0, 1). The optimal policy is u = -K x with K = (0.57917087, 1.54562698) and the optimal cost is x0' P x0.

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | 0 | acceleration | -1000 | 1000 | m/s2 |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | 0 | position | -1e6 | 1e6 | m |
    | 1 | velocity | -1e6 | 1e6 | m/s |

    ## Reward
    -(position^2 + velocity^2 + 0.1 acceleration^2), at the state before the step.

    ## Start state
    Uniform in [-1, 1] x [-1, 1], or (1, 0) with `fixed_start=True`.

    ## Termination and truncation
    Terminates when a state leaves its limits (the loop has diverged); truncated after 100 steps.

    ## Disturbance
    Additive push on each state, in its unit per step.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | fixed_start | False | start every episode at (1, 0) |
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(self, *, fixed_start: bool = False, render_mode: str | None = None) -> None:
        plant, Q, R = double_integrator()
        low, high = ((1.0, 0.0), (1.0, 0.0)) if fixed_start else ((-1.0, -1.0), (1.0, 1.0))
        super().__init__(
            plant,
            stage_cost=_regulation(plant, Q, R),
            start=uniform_start(low, high),
            scene=_scene,
            render_mode=render_mode,
        )


class LinearEnv(PlantEnv):
    """Any linear system with quadratic cost.

    ## Description
    x+ = A x + B u + w. Without arguments: the double integrator sampled every 0.1 s, A = [[1, 0.1], [0, 1]],
    B = (0.005, 0.1), Q = I, R = 0.1, whose optimal gain is K = (2.5857, 3.4434).

    ## Action space
    | index | action | low | high | unit |
    |---|---|---|---|---|
    | i | input u_i | -input_limit | input_limit | as named |

    ## Observation space
    | index | observation | low | high | unit |
    |---|---|---|---|---|
    | i | state x_i | -state_limit | state_limit | as named |

    ## Reward
    -(x'Qx + u'Ru), at the state before the step.

    ## Start state
    Every component uniform in [-1, 1].

    ## Termination and truncation
    Terminates when a state leaves its limits; truncated after 100 steps.

    ## Disturbance
    Additive push on each state, in its unit per step.

    ## Arguments
    | name | default | meaning |
    |---|---|---|
    | A, B | sampled double integrator | matrices (n, n) and (n, m) |
    | Q, R | I, 0.1 | weights (n, n) and (m, m) |
    | dt | 0.1 | sampling time [s] |
    | state_names, input_names | None | names with units; None: x1 [-], ... and u1 [-], ... |
    | state_limit, input_limit | 1e6, 1000 | limits of every component |
    | render_mode | None | "rgb_array": `render()` returns a picture |
    """

    def __init__(
        self,
        *,
        A: ArrayLike = ((1.0, 0.1), (0.0, 1.0)),
        B: ArrayLike = (0.005, 0.1),
        Q: ArrayLike = ((1.0, 0.0), (0.0, 1.0)),
        R: ArrayLike = 0.1,
        dt: float = 0.1,
        state_names: Sequence[str] | None = None,
        input_names: Sequence[str] | None = None,
        state_limit: float = STATE_LIMIT,
        input_limit: float = INPUT_LIMIT,
        render_mode: str | None = None,
    ) -> None:
        plant = linear_plant(
            A,
            B,
            dt=dt,
            state_names=state_names,
            input_names=input_names,
            state_limit=state_limit,
            input_limit=input_limit,
        )
        n = len(plant.state)
        super().__init__(
            plant,
            stage_cost=_regulation(plant, Q, R),
            start=uniform_start((-1.0,) * n, (1.0,) * n),
            scene=_scene,
            render_mode=render_mode,
        )
