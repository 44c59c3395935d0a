"""The exact fit against worked solutions and a conic solver; the midpoint policy against its worked values."""

import numpy as np
import pytest

from lipctrl.agents import bc_graph
from lipctrl.agents.bc_graph import MidpointPolicy, fit
from lipctrl.certify.guarantees import least_residual
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.policy import Policy

A, B = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [1.0]])
EXPERT = lqr(A, B, np.eye(2), [[0.1]])
K, P = EXPERT.K, EXPERT.P
LIP = float(np.linalg.norm(K, 2))


def grid(k: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.linspace(-1, 1, k)] * 2, indexing="ij"), -1).reshape(-1, 2)


def test_two_points() -> None:
    """x = u = {0, 1} under 1/2: (1/4, 3/4) with multiplier 1/4."""
    found = fit(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]), 0.5)
    assert found.values.ravel() == pytest.approx([0.25, 0.75], abs=1e-6)
    assert found.multipliers == pytest.approx([0.25], abs=1e-4) and found.loss == pytest.approx(1 / 32, abs=1e-6)


def test_a_chain() -> None:
    """Eleven points of u = 2 x under 1: F = x, mean squared error 0.4, and the multipliers of the ten neighbours."""
    x = np.linspace(-1, 1, 11)[:, None]
    found = fit(x, 2 * x, 1.0)
    assert found.values == pytest.approx(x, abs=1e-6) and 2 * found.loss == pytest.approx(0.4, abs=1e-6)
    half = [0.45454545, 0.81818182, 1.09090909, 1.27272727, 1.36363636]
    # only sums over the pairs that span a gap are unique: pairs of non-neighbours are active as well
    spanning = [
        sum(w * (b - a) for (a, b), w in zip(found.edges, found.multipliers, strict=True) if a <= k < b)
        for k in range(10)
    ]
    assert spanning == pytest.approx([*half, *half[::-1]], abs=1e-4)


@pytest.mark.parametrize(("m", "lip"), [(1, 0.7), (2, 0.7), (3, 2.0), (2, 50.0)])
def test_against_a_conic_solver(m: int, lip: float) -> None:
    cvxpy = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(m)
    x, u = rng.normal(size=(25, 2)), rng.normal(size=(25, m))
    found = fit(x, u, lip)
    f = cvxpy.Variable((25, m))
    pairs = [(i, j) for i in range(25) for j in range(i)]
    limits = [cvxpy.norm(f[i] - f[j]) <= lip * np.linalg.norm(x[i] - x[j]) for i, j in pairs]
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(f - u) / 50), limits)
    problem.solve(solver="CLARABEL")
    assert found.loss == pytest.approx(problem.value, rel=1e-5, abs=1e-9)
    order = np.lexsort(x.T[::-1])
    assert found.values == pytest.approx(f.value[order], abs=1e-4)
    assert found.largest_slope <= lip * (1 + 1e-7) and found.gap < 1e-8


def test_neighbours_alone_are_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 uniform points with five neighbours each: the fit on those edges breaks other pairs, the whole one none."""
    points = np.random.default_rng(0).uniform(-1, 1, (400, 2))
    labels = np.sign(points[:, :1])
    whole = fit(points, labels, 1.0)
    assert whole.largest_slope <= 1 + 1e-7
    monkeypatch.setattr(bc_graph, "_violated", lambda *a: (slope_of(*a), np.zeros((0, 2), np.int64)))
    assert fit(points, labels, 1.0).largest_slope > 1.2


def slope_of(points: np.ndarray, values: np.ndarray, limit: float) -> float:
    distance = np.linalg.norm(points[:, None] - points, axis=-1) + np.eye(len(points))
    return float((np.linalg.norm(values[:, None] - values, axis=-1) / distance).max())


def test_equal_observations_share_a_vertex() -> None:
    x = np.array([[0.0], [0.0], [1.0]])
    found = fit(x, np.array([[0.0], [1.0], [0.5]]), 1.0)
    assert found.points.ravel() == pytest.approx([0.0, 1.0]) and found.values.ravel() == pytest.approx([0.5, 0.5])
    assert found.worst_residual == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("lip", "value"), [(1.0, -0.01576957), (1.3, 0.05309065), (2.0, 0.14193131), (3.0, 0.13537413)]
)
def test_midpoint_values(lip: float, value: float) -> None:
    x = grid(21)
    policy = MidpointPolicy(x, -x @ K.T, lip)
    assert isinstance(policy, Policy)
    assert policy.predict(np.array([0.33, -0.21]))[0] == pytest.approx([value], abs=1e-7)
    if lip == 2.0:
        lower, upper = policy.envelopes(np.array([[0.33, -0.21]]))
        assert (lower[0, 0], upper[0, 0]) == pytest.approx((0.10020017, 0.18366245), abs=1e-7)


def test_midpoint_is_lipschitz_and_its_band_holds_the_expert() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (100, 2))
    policy = MidpointPolicy(x, -x @ K.T + 0.01 * rng.uniform(-1, 1, (100, 1)), LIP, noise=0.01)
    y = rng.uniform(-1, 1, (500, 2))
    lower, upper = policy.envelopes(y)
    assert (lower <= -y @ K.T).all() and (-y @ K.T <= upper).all()
    u = policy.predict(y)[0]
    slopes = np.abs(u - u.T) / (np.linalg.norm(y[:, None] - y, axis=-1) + np.eye(500))
    assert slopes.max() <= policy.lip * (1 + 1e-9)


def costs(policy: Policy, kind: str, size: float) -> float:
    """Cost of 100 steps from (1, 0) under a disturbance of the measured state along the gain's direction."""
    v, x, total = K[0] / np.linalg.norm(K), np.array([1.0, 0.0]), 0.0
    for t in range(100):
        sign = {"none": 0.0, "constant": 1.0, "alternating": (-1.0) ** t}.get(kind)
        if sign is None:  # greedy: the sign that raises the next x'Px
            after = [A @ x + B @ policy.predict(x + s * size * v)[0] for s in (1.0, -1.0)]
            sign = 1.0 if after[0] @ P @ after[0] >= after[1] @ P @ after[1] else -1.0
        u = policy.predict(x + sign * size * v)[0]
        total += float(x @ x + 0.1 * u @ u)
        x = A @ x + B @ u
    return total


TABLE = {
    0.8: (0.993427, 1.001180, 9.819254, 10.6564, 9.7981, 35.942157, 63.330145),
    1.0: (0.730391, 0.746201, 3.769082, 4.8122, 3.9204, 13.507602, 33.209098),
    1.3: (0.381768, 0.405158, 2.795199, 4.1370, 3.3061, 5.894482, 14.735779),
    1.5: (0.161746, 0.190726, 2.687783, 4.3572, 3.7788, 4.422948, 9.363893),
    LIP: (0.0, 0.033481, 2.668730, 4.6349, 4.6727, 4.640282, 10.573917),
    2.0: (0.0, 0.025742, 2.690716, 5.0657, 4.9107, 4.915182, 10.489355),
    3.0: (0.0, 0.041391, 2.808333, 5.1182, 5.1154, 5.210920, 11.946079),
}


@pytest.mark.parametrize("lip", TABLE)
def test_bound_sweep_of_the_midpoint_policy(lip: float) -> None:
    """Residual, error and costs on the 21 x 21 grid; rounding breaks ties of the greedy sign, 5e-3 on its costs."""
    x = grid(21)
    policy = MidpointPolicy(x, -x @ K.T, lip)
    y = grid(161)
    residual, error, *expected = TABLE[lip]
    assert least_residual(x, -x @ K.T, lip).value == pytest.approx(residual, abs=1e-6)
    assert np.abs(policy.predict(y)[0] + y @ K.T).max() == pytest.approx(error, abs=1e-6)
    found = [
        costs(policy, *case)
        for case in (("none", 0.0), ("constant", 0.05), ("alternating", 0.05), ("greedy", 0.05), ("greedy", 0.1))
    ]
    assert found[:3] == pytest.approx(expected[:3], rel=1e-3) and found[3:] == pytest.approx(expected[3:], rel=5e-3)


def test_pendulum_bounds_hold_and_how_loose_they_are() -> None:
    """Midpoint policy of the linearising expert from a 41 x 121 grid: observed against G1 and the gap bound."""
    gravity, dt, lip, bounds = 9.81, 0.05, 20.69869803, {"error": 1.463619, 0.0: 0.4330, 0.02: 0.5554}

    def expert(x: np.ndarray) -> np.ndarray:
        return (-gravity * np.sin(x[:, 0]) - 10 * x[:, 0] - 6 * x[:, 1])[:, None]

    def step(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return x + dt * np.stack([x[:, 1], gravity * np.sin(x[:, 0]) + u[:, 0]], 1)

    def mesh(a: int, b: int) -> np.ndarray:
        return np.stack(np.meshgrid(np.linspace(-1, 1, a), np.linspace(-3, 3, b)), -1).reshape(-1, 2)

    policy = MidpointPolicy(mesh(41, 121), expert(mesh(41, 121)), lip)
    error = max(float(np.abs(policy.predict(x)[0] - expert(x)).max()) for x in np.array_split(mesh(113, 331), 40))
    assert 10 < bounds["error"] / error < 20  # 0.099 on four times the grid
    rng = np.random.default_rng(0)
    for size, loosest in ((0.0, 120), (0.02, 12)):
        x = z = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 2))
        gap, direction = 0.0, size * np.array([10 + gravity, 6.0]) / np.hypot(10 + gravity, 6.0)
        for _ in range(100):
            x, z = step(x, policy.predict(x + direction * rng.choice([-1, 1], (60, 1)))[0]), step(z, expert(z))
            gap = max(gap, float(np.linalg.norm(x - z, axis=1).max()))
        assert loosest / 3 < bounds[size] / gap < loosest


def test_bad_input() -> None:
    with pytest.raises(UserError, match="lip must be"):
        fit(np.zeros((2, 1)), np.zeros((2, 1)), 0.0)
    with pytest.raises(UserError, match="observations"):
        fit(np.zeros((2, 1)), np.zeros((3, 1)), 1.0)
    with pytest.raises(UserError, match="at most 5000"):
        fit(np.arange(6000.0)[:, None], np.zeros((6000, 1)), 1.0)
    with pytest.raises(UserError, match="noise"):
        MidpointPolicy(np.zeros((2, 1)), np.zeros((2, 1)), 1.0, noise=-1.0)
