"""Is a model convex in its start state and inputs? By structure, which proves it, and by random midpoints.

An output is convex in everything that enters a network if every activation is convex and nondecreasing and no weight
from a hidden unit is negative; weights that act on the inputs themselves may have any sign (Amos, Xu and Kolter, arXiv
1609.07152). For a model unrolled over T steps this says: every predicted state x_k is convex in (x_0, u_0, .., u_{k-1})
jointly. It says nothing of a loop in which predictions are fed back as the next start: an input enters with both signs,
so that a convex prediction is composed with a function that is not nondecreasing in it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]
CONVEX = ("relu", "softplus", "identity", "leaky_relu")  # nondecreasing too; leaky_relu for slopes in [0, 1]


def is_convex(net: PlainNet) -> bool:
    """Whether the structure proves that every output is convex in the inputs."""
    kinds = all(a.name in CONVEX and a.slopes[0] >= 0 and a.slopes[1] <= 1 for a in net.activations)
    weights = all((block >= 0).all() for row in net.blocks for source, block in row.items() if source > 0)
    return kinds and weights and net.low is None and net.high is None


def midpoint_violation(
    function: Callable[[Array], Array], low: Array, high: Array, *, seed: int, pairs: int = 2000
) -> float:
    """The largest f((a + b)/2) - (f(a) + f(b))/2 over random pairs of a box, in the outputs' units; 0 if none.

    Args:
        function: from inputs (batch, k) to outputs (batch, ...).
        low, high: the box, (k,).
    """
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(low, high, (pairs, len(low))) for _ in range(2))
    return max(0.0, float((function((a + b) / 2) - (function(a) + function(b)) / 2).max()))
