"""The published data set of the reactor: a grid of states in the stability region, four by four inputs, one period.

Wang and Wu (arXiv 2401.07494) and their code: 100 x 100 states over temperature and concentration, those with V < 372
(772 of them), 16 constant inputs each, 50 explicit Euler steps of 1e-4 h, every fifth stored: 12,352 windows.
"""

import numpy as np
from numpy.typing import NDArray

from lipctrl.models.windows import Windows
from lipctrl.plant import Plant

Array = NDArray[np.float64]
EULER, STORED, STEPS = 1e-4, 5, 10  # h, Euler steps between two stored states, stored states


def reactor_grid(plant: Plant, P: Array, level: float) -> Windows:
    """The windows of the study, states and inputs absolute.

    Args:
        plant: the reactor, with its equations in continuous time. P, level: of the stability region.
    """
    assert plant.ode is not None
    x_e, u_e = plant.equilibrium
    temperature, concentration = np.meshgrid(np.linspace(300, 600, 100), np.linspace(0, 6, 100))
    grid = np.stack([concentration.ravel(), temperature.ravel()], axis=1)
    deviation = grid - x_e
    states = grid[np.einsum("wi,ij,wj->w", deviation, P, deviation) < level]
    half = np.array(plant.input.high) - u_e
    heat, feed = np.meshgrid(np.linspace(-1, 1, 4) * half[1], np.linspace(-1, 1, 4) * half[0])
    inputs = u_e + np.stack([feed.ravel(), heat.ravel()], axis=1)
    x, u = np.repeat(states, len(inputs), axis=0), np.tile(inputs, (len(states), 1))
    path, still = [x], np.zeros((2, len(x)))
    for _ in range(STEPS * STORED):
        path.append(path[-1] + EULER * np.asarray(plant.ode(path[-1].T, u.T, still)).T)
    return Windows(
        x,
        np.repeat(u[:, None], STEPS, axis=1),
        np.stack(path[STORED::STORED], axis=1),
        plant.state.names,
        plant.input.names,
        EULER * STORED,
        plant.time_unit,
        {"plant": plant.name, "grid": "published"},
    )
