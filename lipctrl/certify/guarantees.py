"""What follows from a proved Lipschitz constant before the loop is closed: error of the policy, samples, validation.

Each function is a pure formula with named assumptions. None of it is a theorem of "Learning Lipschitz Feedback Policies
from Expert Demonstrations" (Al Makdah, Krishnan, Pasqualetti 2022, arXiv 2103.16629), whose results these replace; each
docstring has the proof, where it is short. Norms are l2 throughout, constants are in raw units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError

Array = NDArray[np.float64]
Label = Literal["proved", "bound", "witness", "estimate"]
BLOCK = 1000  # rows of pairs compared at once


@dataclass(frozen=True)
class Guarantee:
    """A number that follows from assumptions, or the reason why none does.

    Attributes:
        quantity: what it is.
        value: the number, or None: vacuous.
        unit: of the value.
        label: "proved" (checked by a certificate), "bound" (follows in float64 from the assumptions), "witness"
            (attained), "estimate" (statistical or indicative).
        assumptions: what must be true.
        reason: why it is vacuous.
    """

    quantity: str
    value: float | None
    unit: str
    label: Label = "bound"
    assumptions: tuple[str, ...] = ()
    reason: str = ""

    @property
    def vacuous(self) -> bool:
        """Whether a hypothesis failed, so that nothing is claimed."""
        return self.value is None

    def __str__(self) -> str:
        shown = f"vacuous ({self.reason})" if self.value is None else f"{self.value:.6g} {self.unit}".rstrip()
        return f"{self.quantity}: {shown}"


def nonnegative(**values: float) -> None:
    """Check that numbers are finite and not negative.

    Raises:
        UserError: names the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} must be finite and not negative, found {value}")


def policy_error_bound(lip: float, expert_lip: float, cover: float, residual: float, noise: float = 0.0) -> Guarantee:
    """sup |pi - pi*| <= residual + noise + (lip + expert_lip) cover.

    With x_i the nearest datum: |pi(x) - pi(x_i)| + |pi(x_i) - u_i| + |u_i - pi*(x_i)| + |pi*(x_i) - pi*(x)|.

    Args:
        lip: of the policy. expert_lip: of the expert, an upper bound (data alone only give a lower one).
        cover: largest distance of a state from the data [observation]. residual: largest |pi(x_i) - u_i| [action].
        noise: largest |u_i - pi*(x_i)| [action].
    """
    nonnegative(lip=lip, expert_lip=expert_lip, cover=cover, residual=residual, noise=noise)
    value = residual + noise + (lip + expert_lip) * cover
    assumptions = ("the expert's Lipschitz constant", "the data cover the whole set", "the labels' noise")
    return Guarantee("largest error of the policy", value, "action", "bound", assumptions)


def midpoint_error_bound(lip: float, expert_lip: float, cover: float, noise: float = 0.0) -> Guarantee:
    """sup |pi - pi*| <= lip cover + noise for the midpoint policy of scalar data, if lip >= expert_lip.

    The expert lies between the envelopes min_i u_i + noise + lip |x - x_i| and max_i u_i - noise - lip |x - x_i|, whose
    distance is at most 2 (noise + lip cover).
    """
    nonnegative(lip=lip, expert_lip=expert_lip, cover=cover, noise=noise)
    quantity, assumptions = "largest error of the midpoint policy", ("one output", "the expert's Lipschitz constant")
    if lip < expert_lip:
        return Guarantee(
            quantity, None, "action", "bound", assumptions, f"{lip:g} is below the expert's {expert_lip:g}"
        )
    return Guarantee(quantity, lip * cover + noise, "action", "bound", assumptions)


def cells_of_box(sides: Sequence[float], diameter: float) -> int:
    """Number of equal cells of at most a diameter that a box of these sides splits into.

    Raises:
        UserError: a side or the diameter is not positive.
    """
    if not diameter > 0 or not all(side > 0 for side in sides):
        raise UserError(f"sides and diameter must be positive, found {tuple(sides)} and {diameter}")
    side = diameter / math.sqrt(len(sides))
    return math.prod(math.ceil(width / side * (1 - 1e-12)) for width in sides)


def cover_failure(samples: int, cells: int) -> float:
    """Probability bound M (1 - 1/M)^N that one of M equally likely cells gets none of N independent samples."""
    if samples < 0 or cells < 1:
        raise UserError(f"samples must not be negative and cells be positive, found {samples} and {cells}")
    return min(1.0, cells * math.exp(samples * math.log1p(-1 / cells))) if cells > 1 else float(samples == 0)


def samples_for_cover(sides: Sequence[float], cover: float, risk: float) -> Guarantee:
    """N = ceil(M ln(M / risk)) uniform samples of a box have covering radius <= cover with probability >= 1 - risk.

    Cells have diameter `cover`, so that a sample in the cell of x is within `cover` of x; exp(-N/M) >= (1 - 1/M)^N.

    Args:
        sides: of the box [observation]. cover: wanted covering radius. risk: probability of failing, in (0, 1).
    """
    if not 0 < risk < 1:
        raise UserError(f"risk must be between 0 and 1, found {risk}")
    cells = cells_of_box(sides, cover)
    value = float(math.ceil(cells * math.log(cells / risk)))
    assumptions = ("independent samples, uniform on the box", f"may fail with probability {risk:g}")
    return Guarantee("independent samples for the cover", value, "samples", "bound", assumptions)


def grid_for_cover(sides: Sequence[float], cover: float) -> Guarantee:
    """Points of a regular grid (cell centres) with covering radius <= cover: no randomness, no risk."""
    value = float(cells_of_box(sides, 2 * cover))
    return Guarantee("grid points for the cover", value, "samples", "bound", ("data at the centres of equal cells",))


def tube_cover(overshoot: float, rate: float, start_cover: float, step: int = 0) -> Guarantee:
    """Covering radius C rho^t h of the states at step t by trajectories whose starts have covering radius h.

    The expert's loop must contract: |phi_t(x) - phi_t(y)| <= C rho^t |x - y|. Samples along trajectories are not
    independent: count initial states, never pooled samples, in `samples_for_cover`.
    """
    nonnegative(overshoot=overshoot, rate=rate, start_cover=start_cover)
    quantity, assumptions = (
        "covering radius of the reachable tube",
        ("incremental exponential stability of the expert",),
    )
    if rate >= 1:
        return Guarantee(quantity, None, "observation", "bound", assumptions, f"the rate {rate:g} is not below 1")
    return Guarantee(quantity, overshoot * rate**step * start_cover, "observation", "bound", assumptions)


def least_residual(observations: Array, labels: Array, lip: float) -> Guarantee:
    """max_ij (|u_i - u_j| - lip |x_i - x_j|)_+ / 2: no lip-Lipschitz map has a smaller largest residual on these data.

    For scalar labels the midpoint policy attains it.

    Args:
        observations: (N, n). labels: (N, m).
    """
    nonnegative(lip=lip)
    largest = 0.0
    for start in range(0, len(observations), BLOCK):
        x, u = observations[start : start + BLOCK, None], labels[start : start + BLOCK, None]
        gaps = np.linalg.norm(u - labels[start:], axis=-1) - lip * np.linalg.norm(x - observations[start:], axis=-1)
        largest = max(largest, float(gaps.max()))
    return Guarantee(
        "least residual that any policy of this bound has", largest / 2, "action", "bound", ("the data as recorded",)
    )


def input_error_bound(
    error: float, lip: float, disturbance: float, expert_lip: float, nearby_error: float | None = None
) -> Guarantee:
    """|pi(x + d) - pi*(x)| <= min(error + lip |d|, nearby_error + expert_lip |d|).

    Args:
        error: |pi - pi*| at x (or on the set). disturbance: largest |d| [observation].
        nearby_error: the largest error within `disturbance` of the set, or None.
    """
    nonnegative(error=error, lip=lip, disturbance=disturbance, expert_lip=expert_lip)
    value, assumptions = error + lip * disturbance, ["the policy's constant on the set widened by the disturbance"]
    if nearby_error is not None:
        nonnegative(nearby_error=nearby_error)
        value = min(value, nearby_error + expert_lip * disturbance)
        assumptions.append("the data cover the widened set")
    return Guarantee("largest error of the action under disturbance", value, "action", "bound", tuple(assumptions))


def samples_for_stability(
    tolerated: float,
    lip: float,
    expert_lip: float,
    residual: float,
    disturbance: float,
    sides: Sequence[float],
    risk: float,
) -> tuple[Guarantee, Guarantee, Guarantee]:
    """Covering radius, independent samples and grid points that a closed-loop certificate needs.

    Solves residual + (lip + expert_lip) r + lip disturbance <= tolerated for r. What follows is practical stability:
    the error bound does not vanish at the origin.

    Args:
        tolerated: largest error of the action that the loop tolerates, see `stability.invariance_margin`.
        sides: of a box around the level set.
    """
    nonnegative(tolerated=tolerated, residual=residual, disturbance=disturbance)
    radius = (tolerated - residual - lip * disturbance) / (lip + expert_lip)
    assumptions = ("the expert's Lipschitz constant", "the tolerated error holds on the level set inside the box")
    if radius <= 0:
        reason = f"residual and disturbance use up {residual + lip * disturbance:.4g} of {tolerated:.4g}"
        names = ("covering radius needed", "independent samples needed", "grid points needed")
        units = ("observation", "samples", "samples")
        first, second, third = (
            Guarantee(name, None, unit, "bound", assumptions, reason) for name, unit in zip(names, units, strict=True)
        )
        return first, second, third
    cover = Guarantee("covering radius needed", radius, "observation", "bound", assumptions)
    return cover, samples_for_cover(sides, radius, risk), grid_for_cover(sides, radius)


def hoeffding_trials(margin: float, risk: float) -> int:
    """Independent trials after which the true success rate is above the observed one minus `margin`, but for `risk`.

    N >= ln(1 / risk) / (2 margin^2) (Hoeffding 1963; for controllers Hertneck et al. 2018, arXiv 1806.04167). A trial
    is a whole trajectory from an independent start, not a time step.
    """
    if not 0 < margin < 1 or not 0 < risk < 1:
        raise UserError(f"margin and risk must be between 0 and 1, found {margin} and {risk}")
    return math.ceil(math.log(1 / risk) / (2 * margin**2))


def trials_without_failure(failure_rate: float, risk: float) -> int:
    """Independent trials that, if none fails, show a failure rate below this one, but for `risk` (exact binomial)."""
    if not 0 < failure_rate < 1 or not 0 < risk < 1:
        raise UserError(f"failure_rate and risk must be between 0 and 1, found {failure_rate} and {risk}")
    return math.ceil(math.log(1 / risk) / -math.log1p(-failure_rate))


def success_rate(successes: int, trials: int, risk: float) -> Guarantee:
    """Lower bound of the success probability from independent trials (Hoeffding): observed - sqrt(ln(1/risk) / 2N)."""
    if not 0 <= successes <= trials or trials < 1 or not 0 < risk < 1:
        raise UserError(f"success_rate needs 0 <= successes <= trials, found {successes} of {trials}, risk {risk}")
    value = max(0.0, successes / trials - math.sqrt(math.log(1 / risk) / (2 * trials)))
    assumptions = ("independent trials, whole trajectories", f"may fail with probability {risk:g}")
    return Guarantee("success probability, at least", value, "", "estimate", assumptions)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for a network that stands in for an MPC; indicative, see `mpc_thresholds`.

    Attributes:
        error: largest error |pi - pi*| on the level set. slope: largest gain of the error near the origin.
    """

    error: Guarantee
    slope: Guarantee


def mpc_thresholds(A_cl: ArrayLike, B: ArrayLike, c1: float, c2: float, level: float) -> Thresholds:
    """Error and slope thresholds for a network in place of MPC (attributed to Fabiani and Goulart, arXiv 2111.07183).

    error: (1 - g) level / (s c2) with g = 1 - c1/c2, s = sqrt(2) |B|; slope: -lambda ln(lambda) / (s sigma) with
    |A_cl^k|_F fitted by sigma lambda^k over k = 5..199. As in the notebook of evanqp; an estimate here, since the fit
    is not a bound.

    Args:
        A_cl, B: closed loop near the origin. c1, c2: c1 |x|^2 <= stage cost and V(x) <= c2 |x|^2. level: of V.
    """
    closed, b = np.atleast_2d(np.asarray(A_cl, np.float64)), np.atleast_2d(np.asarray(B, np.float64))
    nonnegative(c1=c1, c2=c2, level=level)
    steps = np.arange(5, 200)
    power, norms = np.linalg.matrix_power(closed, 5), []
    for _ in steps:
        norms.append(np.linalg.norm(power))
        power = power @ closed
    rate, offset = np.polyfit(steps, np.log(norms), 1)
    decay, scale = float(np.exp(rate)), float(np.exp(offset))
    s = math.sqrt(2) * float(np.linalg.norm(b, 2))
    fitted = ("the fit of the decay", "the theorem as reported in its authors' code")
    slope = -decay * math.log(decay) / (s * scale) if decay < 1 else None
    return Thresholds(
        Guarantee("error threshold", c1 / c2 * level / (s * c2), "action", "estimate", fitted),
        Guarantee("slope threshold", slope, "action per state", "estimate", fitted, "" if slope else "no decay"),
    )
