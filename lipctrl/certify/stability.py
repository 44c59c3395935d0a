"""Stability of the loop under a learned policy: five forms, from the expert's loop and the size of the error (l2).

The plant is x+ = f(x, u); the expert's loop is stable; the policy's action differs from the expert's by at most
d(x) = offset + slope |x| + lip |measurement error|. What differs between the forms is what must be known of the plant,
and how much error they allow: `allowed_slopes` puts them side by side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from lipctrl.certify.guarantees import Guarantee, nonnegative
from lipctrl.files import UserError

Array = NDArray[np.float64]
UP = 1 + 1e-9  # covers the rounding of norms, sums and eigenvalues in the constants below
ENOUGH = 1e-13  # relative tail at which the sum of a gain stops
LONGEST = 100_000


def _loop(A_cl: ArrayLike, B: ArrayLike) -> tuple[Array, Array]:
    closed, b = np.atleast_2d(np.asarray(A_cl, np.float64)), np.atleast_2d(np.asarray(B, np.float64))
    if closed.shape[0] != closed.shape[1] or b.shape[0] != len(closed):
        raise UserError(f"a loop needs A_cl (n, n) and B (n, m), found {closed.shape} and {b.shape}")
    radius = float(np.abs(np.linalg.eigvals(closed)).max())
    if not radius < 1:
        raise UserError(f"the expert's loop must be stable, found spectral radius {radius:.6g}")
    return closed, b


@dataclass(frozen=True)
class Lyapunov:
    """W(f(x, pi*(x))) <= rho W(x), |x| <= widest W(x), W(f(x, u)) <= W(f(x, pi*(x))) + gain |u - pi*(x)|.

    Attributes:
        rho: contraction per step, below 1. gain: b [W per action]. widest: c_W [state per W].
        where: the set on which it holds, in words.
    """

    rho: float
    gain: float
    widest: float
    where: str = "everywhere"

    def __post_init__(self) -> None:
        nonnegative(rho=self.rho, gain=self.gain, widest=self.widest)
        if not self.rho < 1:
            raise UserError(f"a Lyapunov function needs rho below 1, found {self.rho}")

    @property
    def allowed_slope(self) -> float:
        """Slopes eta of an error |e(x)| <= eta |x| below this leave the loop exponentially stable."""
        return (1 - self.rho) / (self.gain * self.widest)


def quadratic_lyapunov(A_cl: ArrayLike, B: ArrayLike, P: ArrayLike) -> Lyapunov:
    """W(x) = sqrt(x'Px) of x+ = A_cl x + B (u - pi*(x)).

    rho = |P^1/2 A_cl P^-1/2|, gain = |P^1/2 B|, widest = |P^-1/2|.

    Raises:
        UserError: P is not positive definite, or does not decrease along the loop.
    """
    closed, b = _loop(A_cl, B)
    p = np.asarray(P, np.float64)
    try:
        root = np.linalg.cholesky((p + p.T) / 2).T
    except np.linalg.LinAlgError as error:
        raise UserError("P must be positive definite") from error
    inverse = np.linalg.inv(root)
    rho, gain, widest = (float(np.linalg.norm(m, 2)) * UP for m in (root @ closed @ inverse, root @ b, inverse))
    if not rho < 1:
        raise UserError(f"x'Px does not decrease along the expert's loop: rho = {rho:.6g}")
    return Lyapunov(rho, gain, widest)


def converse_lyapunov(overshoot: float, rate: float, closed_lip: float, input_lip: float) -> Lyapunov:
    """A Lyapunov function from |x_t| <= M rate^t |x_0| alone: W(x) = max_{k <= K} rho^-k |phi_k(x)|, best rho.

    With K = max(0, ceil(ln M / ln(rho / rate)) - 1) the maximum over all k is attained at k <= K, because later terms
    are at most M (rate / rho)^k |x| <= |x|. So |x| <= W <= M |x|, W falls by rho, and W has Lipschitz constant
    max_{k <= K} (closed_lip / rho)^k.

    Args:
        overshoot: M >= 1. rate: in (0, 1). closed_lip: of x -> f(x, pi*(x)). input_lip: of f in u.
    """
    nonnegative(overshoot=overshoot, rate=rate, closed_lip=closed_lip, input_lip=input_lip)
    if not (overshoot >= 1 and 0 < rate < 1):
        raise UserError(f"needs overshoot >= 1 and a rate in (0, 1), found {overshoot} and {rate}")
    best: Lyapunov | None = None
    for rho in rate + (1 - rate) * np.linspace(0, 1, 20_001)[1:-1]:
        last = max(0, math.ceil(math.log(overshoot) / math.log(rho / rate) * UP) - 1)
        exponent = last * math.log(max(1.0, closed_lip / rho))
        if exponent < 600:  # beyond it the constant overflows, and so does what it is good for
            found = Lyapunov(float(rho), math.exp(exponent) * input_lip * UP, 1.0)
            if best is None or found.allowed_slope > best.allowed_slope:
                best = found
    assert best is not None  # rho near 1 always gives a finite constant
    return best


@dataclass(frozen=True)
class Iss:
    """What a Lyapunov function says of the learned loop.

    Attributes:
        rate: contraction of W outside the ultimate set. radius: ultimate |x|.
        disturbance: largest measurement error for which the level set is never left.
    """

    rate: Guarantee
    radius: Guarantee
    disturbance: Guarantee


def iss(w: Lyapunov, *, offset: float, slope: float, lip: float, measurement: float, level: float = math.inf) -> Iss:
    """Input-to-state stability: W(x+) <= rho W(x) + gain (offset + slope |x| + lip measurement), |x| <= widest W.

    Args:
        offset, slope: |pi(x) - pi*(x)| <= offset + slope |x| on {W <= level}.
        lip: of the policy, also within `measurement` of that set. measurement: largest measurement error.
        level: of the set where all of this holds; the loop must not leave it.
    """
    nonnegative(offset=offset, slope=slope, lip=lip, measurement=measurement)
    rate = w.rho + w.gain * w.widest * slope
    assumptions = (f"the Lyapunov function {w.where}", "the error's offset and slope", "the policy's constant")
    units = (
        ("contraction of W per step", ""),
        ("ultimate radius", "state"),
        ("largest measurement error", "observation"),
    )
    if rate >= 1:
        reason = f"slope {slope:.4g} is above the allowed {w.allowed_slope:.4g}"
        return Iss(*(Guarantee(name, None, unit, "bound", assumptions, reason) for name, unit in units))
    tolerated = math.inf if math.isinf(level) else (1 - rate) * level / w.gain - offset
    if tolerated < 0:
        reason = f"the offset {offset:.4g} alone leaves the level set"
        return Iss(*(Guarantee(name, None, unit, "bound", assumptions, reason) for name, unit in units))
    largest = math.inf if lip == 0 else tolerated / lip
    fits = measurement <= largest
    radius = w.widest * w.gain * (offset + lip * measurement) / (1 - rate)
    left = f"a measurement error of {measurement:.4g} may leave the level set"
    return Iss(
        Guarantee("contraction of W per step", rate, "", "bound", assumptions),
        Guarantee("ultimate radius", radius if fits else None, "state", "bound", assumptions, "" if fits else left),
        Guarantee("largest measurement error", largest, "observation", "bound", assumptions),
    )


def invariance_margin(w: Lyapunov, level: float) -> float:
    """Largest error of the action that never leaves {W <= level}: (1 - rho) level / gain."""
    nonnegative(level=level)
    return (1 - w.rho) * level / w.gain


def incremental_gain(A_cl: ArrayLike, B: ArrayLike) -> float:
    """G = sum_k |A_cl^k B|_2: from the largest deviation of the input to the largest of the state, for a linear loop.

    The tail is bounded by a quadratic Lyapunov function of the loop, so that the value is an upper bound.
    """
    closed, b = _loop(A_cl, B)
    p = scipy.linalg.solve_discrete_lyapunov(closed.T, np.eye(len(closed)))
    w = quadratic_lyapunov(closed, b, p)
    total, power = 0.0, b
    root = np.linalg.cholesky((p + p.T) / 2).T
    for _ in range(LONGEST):
        total += float(np.linalg.norm(power, 2))
        power = closed @ power
        tail = w.widest * float(np.linalg.norm(root @ power, 2)) / (1 - w.rho)
        if tail <= ENOUGH * total:
            break
    return (total + tail) * UP


def tube(
    gain: float, *, slope: float, along: float, lip: float, measurement: float, radius: float = math.inf
) -> Guarantee:
    """max_t |x_t - x_t*| <= gain (along + lip measurement) / (1 - gain slope): small gain around the expert's path.

    Args:
        gain: incremental gain from input deviation to state deviation of the expert's loop.
        slope: Lipschitz constant of pi - pi* within `radius` of the expert's trajectory.
        along: largest error on the expert's own trajectory. lip, measurement: as in `iss`.
        radius: of the tube in which `slope` holds.
    """
    nonnegative(gain=gain, slope=slope, along=along, lip=lip, measurement=measurement)
    quantity, unit = "largest distance from the expert's trajectory", "state"
    assumptions = ("the expert's incremental gain", "the error's slope in a tube", "the error along the expert's path")
    if gain * slope >= 1:
        reason = f"gain times slope is {gain * slope:.4g}, not below 1"
        return Guarantee(quantity, None, unit, "bound", assumptions, reason)
    value = gain * (along + lip * measurement) / (1 - gain * slope)
    if value > radius:
        reason = f"{value:.4g} is beyond the tube of radius {radius:.4g} in which the slope is known"
        return Guarantee(quantity, None, unit, "bound", assumptions, reason)
    return Guarantee(quantity, value, unit, "bound", assumptions)


def gap_from_error(gain: float, error: float) -> Guarantee:
    """max_t |x_t - x_t*| <= gain error, where the error is below `error` all along the learned trajectory."""
    nonnegative(gain=gain, error=error)
    assumptions = ("the expert's incremental gain", "the learned loop stays where the error is bounded")
    return Guarantee("largest distance from the expert's trajectory", gain * error, "state", "bound", assumptions)


def hinf_norm(A_cl: ArrayLike, B: ArrayLike, C: ArrayLike | None = None) -> float:
    """g = sup over frequencies of |C (e^jw I - A_cl)^-1 B|_2, an upper bound within 1e-9; C by default I.

    A level is above g exactly if a symplectic pencil has no eigenvalue on the unit circle (the discrete form of Boyd
    and Balakrishnan, Systems & Control Letters 15, 1990); bisection from the largest value on a grid of frequencies.
    """
    closed, b = _loop(A_cl, B)
    n = len(closed)
    c = np.eye(n) if C is None else np.asarray(C, np.float64)

    def at(frequencies: Array) -> float:
        z = np.exp(1j * frequencies)[:, None, None] * np.eye(n)
        return float(
            np.linalg.norm(c @ np.linalg.solve(z - closed, np.broadcast_to(b, (len(z), *b.shape))), 2, (1, 2)).max()
        )

    def crosses(level: float) -> bool:
        left = np.block([[closed, b @ b.T / level**2], [np.zeros((n, n)), np.eye(n)]])
        right = np.block([[np.eye(n), np.zeros((n, n))], [c.T @ c, closed.T]])
        moduli = np.abs(scipy.linalg.eigvals(left, right))
        return bool((np.abs(moduli - 1) < 1e-8).any())

    low = at(np.linspace(0, np.pi, 2001))
    high = min(incremental_gain(closed, b) * float(np.linalg.norm(c, 2)), 2 * low)
    while crosses(high):
        high *= 2
    for _ in range(100):
        if high <= low * (1 + 1e-10):
            break
        middle = (low + high) / 2
        low, high = (middle, high) if crosses(middle) else (low, middle)
    return high * UP


def open_loop_gap(closed_lip: float, input_lip: float, error: float, steps: int) -> Guarantee:
    """|x_T - x_T*| <= input_lip error (lam^T - 1) / (lam - 1), lam = closed_lip: no stability used, grows with T."""
    nonnegative(closed_lip=closed_lip, input_lip=input_lip, error=error)
    total = float(steps) if closed_lip == 1 else (closed_lip**steps - 1) / (closed_lip - 1)
    assumptions = ("Lipschitz constants of the expert's loop and of the plant in its input",)
    return Guarantee(f"distance after {steps} steps", input_lip * error * total, "state", "bound", assumptions)


def allowed_slopes(A_cl: ArrayLike, B: ArrayLike, P: ArrayLike, *, overshoot: float, rate: float) -> dict[str, float]:
    """Largest slope eta of an error |e(x)| <= eta |x| that each form allows on a linear loop; use the largest.

    Args:
        A_cl, B: the expert's loop. P: of `quadratic_lyapunov`. overshoot, rate: of `converse_lyapunov`.
    """
    closed, b = _loop(A_cl, B)
    lam, lu = float(np.linalg.norm(closed, 2)), float(np.linalg.norm(b, 2))
    return {
        "quadratic Lyapunov": quadratic_lyapunov(closed, b, P).allowed_slope,
        "converse Lyapunov": converse_lyapunov(overshoot, rate, lam, lu).allowed_slope,
        "incremental gain": 1 / incremental_gain(closed, b),
        "H-infinity": 1 / hinf_norm(closed, b),
    }


def decay(A_cl: ArrayLike, margin: float = 0.05) -> tuple[float, float]:
    """(M, rate) with |A_cl^t| <= M rate^t for every t, for rate = spectral radius + margin.

    M is the largest ratio found until powers of the loop divided by the rate have fallen below 1 for good, which a
    submultiplicative argument proves: if |A^k| <= rate^k for one k, then all later ratios repeat those before.
    """
    closed, _ = _loop(A_cl, np.eye(len(np.atleast_2d(A_cl))))
    rate = float(np.abs(np.linalg.eigvals(closed)).max()) + margin
    if not rate < 1:
        raise UserError(f"the rate {rate:.4g} is not below 1; choose a smaller margin")
    ratios, power = [1.0], np.eye(len(closed))
    for _ in range(LONGEST):
        power = power @ closed / rate
        ratios.append(float(np.linalg.norm(power, 2)))
        if ratios[-1] <= 1:
            return max(ratios) * UP, rate
    raise UserError("the loop decays too slowly to bound its overshoot; choose a larger margin")


def least_conservative(forms: Sequence[Guarantee]) -> Guarantee:
    """The smallest of several bounds of the same quantity; vacuous ones lose, and if all are, the first is returned."""
    known = [form for form in forms if form.value is not None]
    return min(known, key=lambda form: form.value or 0.0) if known else forms[0]
