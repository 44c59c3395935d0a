"""Ten thousand random plants, policies and disturbances: no guarantee is ever violated."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.guarantees import input_error_bound, policy_error_bound
from lipctrl.certify.regret import lqr_regret_bound
from lipctrl.certify.stability import incremental_gain, invariance_margin, iss, quadratic_lyapunov, tube
from lipctrl.mpc.lqr import lqr

Array = NDArray[np.float64]
STEPS = 80


class Loops:
    """Many linear plants of one size with LQR experts, simulated at once under errors of given offset and slope."""

    def __init__(self, count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.count, n = count, 2 + seed % 2
        self.A, self.B = rng.normal(size=(count, n, n)), rng.normal(size=(count, n, 1))
        self.A *= rng.uniform(0.3, 1.4, (count, 1, 1)) / np.abs(np.linalg.eigvals(self.A)).max(1)[:, None, None]
        weights = 10 ** rng.uniform(-1, 1, (count, 1, 1))
        solved = [lqr(a, b, np.eye(n), r) for a, b, r in zip(self.A, self.B, weights, strict=True)]
        self.K, self.P, self.closed, self.S = (
            np.array([getattr(s, name) for s in solved]) for name in ("K", "P", "A_cl", "S")
        )
        self.lyapunov = [quadratic_lyapunov(c, b, p) for c, b, p in zip(self.closed, self.B, self.P, strict=True)]
        share = rng.uniform(0, 0.95, count)
        self.slope = share * np.array([w.allowed_slope for w in self.lyapunov])
        self.extra = rng.uniform(0, 0.1, count)
        self.start = rng.normal(size=(count, n))
        self.rng = rng

    def level(self, x: Array) -> Array:
        return np.sqrt(np.einsum("ti,tij,tj->t", x, self.P, x))

    def run(self, kind: str) -> tuple[Array, Array]:
        """States (steps+1, count, n) and errors of the action (steps, count)."""
        x, states, errors = self.start, [self.start], []
        direction = np.einsum("tij,tjk,tkl->til", self.B.transpose(0, 2, 1), self.P, self.closed)[:, 0]
        for t in range(STEPS):
            size = self.slope * np.linalg.norm(x, axis=1) + self.extra
            sign = {
                "greedy": np.where((direction * x).sum(1) >= 0, 1.0, -1.0),
                "random": self.rng.choice([-1.0, 1.0], self.count),
                "smooth": np.sin(3 * x.sum(1) + t),
                "constant": np.ones(self.count),
            }[kind]
            errors.append(sign * size)
            x = np.einsum("tij,tj->ti", self.closed, x) + self.B[:, :, 0] * errors[-1][:, None]
            states.append(x)
        return np.array(states), np.array(errors)


KINDS = ("greedy", "random", "smooth", "constant")


def check_stability(count: int, seed: int) -> float:
    """One step, the level set and the tube of every loop; returns the tightest ratio of found to bound."""
    loops, tightest = Loops(count, seed), 0.0
    found = [
        iss(w, offset=e, slope=s, lip=0.0, measurement=0.0)
        for w, e, s in zip(loops.lyapunov, loops.extra, loops.slope, strict=True)
    ]
    rate = np.array([f.rate.value for f in found], dtype=np.float64)
    gain = np.array([w.gain for w in loops.lyapunov])
    radius = np.array([f.radius.value for f in found], dtype=np.float64)
    widest = np.array([w.widest for w in loops.lyapunov])
    for kind in KINDS:
        states, _ = loops.run(kind)
        levels = np.array([loops.level(x) for x in states])
        bound = rate * levels[:-1] + gain * loops.extra
        assert (levels[1:] <= bound * (1 + 1e-12)).all()
        tightest = max(tightest, float((levels[1:] / bound).max()))
        # what is left of the start after STEPS steps, plus the ultimate radius
        assert (np.linalg.norm(states[-1], axis=1) <= radius + widest * rate**STEPS * levels[0] * (1 + 1e-9)).all()
    levels = np.full(count, 1.0)
    for k in range(0, count, 10):  # exactly at the margin the level set is not left
        w, margin = loops.lyapunov[k], invariance_margin(loops.lyapunov[k], 1.0)
        x = loops.start[k] / loops.level(loops.start)[k] * levels[k]
        for _ in range(20):
            push = loops.B[k, :, 0] * margin
            x = max((loops.closed[k] @ x + s * push for s in (1, -1)), key=lambda y: float(y @ loops.P[k] @ y))
            assert np.sqrt(x @ loops.P[k] @ x) <= 1 + 1e-9 and w.rho < 1
    return tightest


def check_tubes_and_regret(count: int, seed: int) -> tuple[float, float]:
    """Distance from the expert's path and regret of every loop; returns the tightest ratios."""
    loops, tight_tube, tight_regret = Loops(count, seed), 0.0, 0.0
    expert = [loops.start]
    for _ in range(STEPS):
        expert.append(np.einsum("tij,tj->ti", loops.closed, expert[-1]))
    along = loops.slope * np.linalg.norm(expert, axis=2).max(0) + loops.extra
    runs = [loops.run(kind) for kind in KINDS]
    gaps = np.array([np.linalg.norm(states - expert, axis=2).max(0) for states, _ in runs]).max(0)
    costs = np.array([(loops.S[:, 0, 0] * errors**2).sum(0) for _, errors in runs]).max(0)
    for k in range(count):
        gain = incremental_gain(loops.closed[k], loops.B[k])
        found = tube(gain, slope=loops.slope[k], along=along[k], lip=0.0, measurement=0.0).value
        if found is not None:
            assert gaps[k] <= found * (1 + 1e-12)
            tight_tube = max(tight_tube, gaps[k] / found)
        regret = lqr_regret_bound(
            loops.closed[k],
            loops.B[k],
            loops.S[k],
            loops.start[k],
            slope=loops.slope[k],
            extra=loops.extra[k],
            steps=STEPS,
        ).value
        assert regret is None or costs[k] <= regret
        tight_regret = max(tight_regret, 0.0 if regret is None else costs[k] / regret)
    return tight_tube, tight_regret


def check_errors(count: int, seed: int) -> float:
    """Random networks as expert and policy, with label noise: error on a cover, and under measurement error."""
    rng, tightest = np.random.default_rng(seed), 0.0
    for _ in range(count):
        w, v = rng.normal(size=(2, 5, 2))
        c = rng.normal(size=(2, 5)) / 3
        lips = [float(np.linalg.norm(a) * np.linalg.norm(m, 2)) for a, m in ((c[0], w), (c[1], v))]
        data, x = rng.uniform(-1, 1, (20, 2)), rng.uniform(-1, 1, (40, 2))
        noise = rng.uniform(0, 0.1)
        labels = np.tanh(data @ w.T) @ c[0] + rng.uniform(-noise, noise, 20)
        residual = float(np.abs(np.tanh(data @ v.T) @ c[1] - labels).max())
        cover = float(np.linalg.norm(x[:, None] - data, axis=-1).min(1).max())
        bound = policy_error_bound(lips[1], lips[0], cover, residual, noise).value
        error = np.abs(np.tanh(x @ v.T) @ c[1] - np.tanh(x @ w.T) @ c[0])
        assert bound is not None and (error <= bound).all()
        size = rng.uniform(0, 0.5)
        push = rng.normal(size=x.shape)
        moved = x + size * push / np.linalg.norm(push, axis=1, keepdims=True)
        nearby = float(np.abs(np.tanh(moved @ v.T) @ c[1] - np.tanh(moved @ w.T) @ c[0]).max())
        total = np.abs(np.tanh(moved @ v.T) @ c[1] - np.tanh(x @ w.T) @ c[0])
        limit = input_error_bound(float(error.max()), lips[1], size, lips[0], nearby).value
        assert limit is not None and (total <= limit * (1 + 1e-12)).all()
        tightest = max(tightest, float(total.max() / limit))
    return tightest


def test_a_few_hundred() -> None:
    assert 0.9 < check_stability(400, 0) <= 1 + 1e-12
    tube_ratio, regret_ratio = check_tubes_and_regret(40, 1)
    assert 0.05 < tube_ratio <= 1 and 0.05 < regret_ratio <= 1
    assert 0.3 < check_errors(200, 2) <= 1


@pytest.mark.slow
def test_ten_thousand() -> None:
    for seed in range(4):
        assert check_stability(1500, 10 + seed) <= 1 + 1e-12
    for seed in range(2):
        check_tubes_and_regret(300, 20 + seed)
    check_errors(4000, 30)
