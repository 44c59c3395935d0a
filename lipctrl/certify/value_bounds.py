"""How steep a value function can be: Lipschitz constants of Q and V from those of reward, dynamics and policy (l2).

For s' = f(s, a), a = mu(s), rewards r(s, a) and a discount gamma, with Lipschitz constants `reward_lip` of r,
`dynamics_lip` of f, both over the pair (s, a), and `policy_lip` of mu. Frobenius bounds of Jacobians serve as well as
spectral ones, but are larger. What is bounded is the difference of values at two points, so nothing needs a derivative;
where there is one, its norm is bounded. The episode must not end where the bounds are used: ending is a jump of the
value. The forms are S1 to S7 of the project's note on Blonde, Strasser, Kalousis (arXiv 2006.16785), whose own
expression is no bound, see `published_expression_not_a_bound`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from lipctrl.certify.guarantees import Guarantee, nonnegative
from lipctrl.certify.stability import ENOUGH, LONGEST, UP, quadratic_lyapunov
from lipctrl.files import UserError

Array = NDArray[np.float64]
CONSTANTS = (
    "Lipschitz constants of reward, dynamics and policy on a set that is never left",
    "the episode does not end in that set",
)
IN_W1 = "constants of reward, kernel and policy in W1"
DETERMINISTIC = "the policy is deterministic and has the constant that was given"
UNIT = "reward per unit of input"
EPS = float(np.finfo(np.float64).eps)


def _discount(gamma: float) -> None:
    if not 0 <= gamma < 1:
        raise UserError(f"the discount must be at least 0 and below 1, found {gamma}")


def one_step_lip(dynamics_lip: float, policy_lip: float) -> float:
    """S1: dynamics_lip sqrt(1 + policy_lip^2) bounds the map of one step, (s, a) -> (f(s, a), mu(f(s, a)))."""
    nonnegative(dynamics_lip=dynamics_lip, policy_lip=policy_lip)
    return dynamics_lip * math.hypot(1.0, policy_lip)


def _geometric(ratio: float, terms: int) -> float:
    """1 + ratio + .. + ratio^(terms - 1), rounded up, accurate also for ratios near 1; inf where it overflows."""
    if ratio == 1 or terms <= 1:
        return float(terms)
    if ratio == 0:
        return 1.0
    exponent = terms * (math.log1p(ratio - 1) if ratio > 0.5 else math.log(ratio))
    rounding = (4 + 2 * max(exponent, 0.0)) * EPS  # of the exponent, whose error the exponential keeps, and of the rest
    return math.inf if exponent > 700 else math.expm1(exponent) / (ratio - 1) * (1 + rounding)


def horizon_bound(reward_lip: float, step_lip: float, gamma: float, steps: int) -> Guarantee:
    """S2: the sum of the next `steps` discounted rewards has constant reward_lip sum_k (gamma step_lip)^k over (s, a).

    Args:
        step_lip: of `one_step_lip`. steps: number of rewards that are summed, the first undiscounted.

    Returns:
        Finite for every loop, but for numbers that overflow.
    """
    nonnegative(reward_lip=reward_lip, step_lip=step_lip)
    _discount(gamma)
    if steps < 1:
        raise UserError(f"a horizon has at least one step, found {steps}")
    ratio = math.nextafter(gamma * step_lip, math.inf) if gamma and step_lip else 0.0
    value, quantity = reward_lip * _geometric(ratio, steps), f"slope of the {steps}-step action value"
    if not math.isfinite(value):
        return Guarantee(quantity, None, UNIT, "bound", CONSTANTS, f"{gamma * step_lip:.4g}^{steps} overflows")
    return Guarantee(quantity, value, UNIT, "bound", CONSTANTS)


def infinite_bound(reward_lip: float, step_lip: float, gamma: float) -> Guarantee:
    """S3: Q has constant reward_lip / (1 - gamma step_lip) over (s, a) if gamma step_lip < 1; else nothing follows."""
    nonnegative(reward_lip=reward_lip, step_lip=step_lip)
    _discount(gamma)
    ratio = math.nextafter(gamma * step_lip, math.inf) if gamma and step_lip else 0.0
    quantity = "slope of the action value"
    if not ratio < 1:
        reason = f"discount times one-step constant is {ratio:.4g}, not below 1"
        return Guarantee(quantity, None, UNIT, "bound", CONSTANTS, reason)
    return Guarantee(quantity, reward_lip / (1 - ratio) * (1 + 4 * EPS), UNIT, "bound", CONSTANTS)


def state_value_bound(action_value: Guarantee, policy_lip: float) -> Guarantee:
    """S4: V(s) = Q(s, mu(s)) has the constant of Q times sqrt(1 + policy_lip^2).

    Args:
        action_value: of `horizon_bound`, `infinite_bound`, `closed_loop_bounds` or `linear_loop_bounds`.

    Raises:
        UserError: a bound of `stochastic_bound`, where the factor is another one, or not of an action value.
    """
    if IN_W1 in action_value.assumptions:
        raise UserError("the policy of this bound may be random: use stochastic_state_bound, whose factor is larger")
    return _of_state(action_value, policy_lip, math.hypot(1.0, policy_lip), DETERMINISTIC)


def stochastic_state_bound(action_value: Guarantee, policy_lip: float) -> Guarantee:
    """S6 for V: the mean of Q(s, .) over a random policy has the constant of Q times 1 + policy_lip.

    |V(s) - V(s')| <= L_Q (|s - s'| + W1(pi(s), pi(s'))), see `stochastic_bound`.

    Args:
        action_value: of `stochastic_bound`. policy_lip: of s -> pi(. | s) in the Wasserstein distance W1.

    Raises:
        UserError: not a bound of an action value.
    """
    return _of_state(action_value, policy_lip, 1 + policy_lip, IN_W1)


def _of_state(action_value: Guarantee, policy_lip: float, factor: float, what: str) -> Guarantee:
    nonnegative(policy_lip=policy_lip)
    if "action value" not in action_value.quantity:
        raise UserError(f"a bound of an action value is needed, found the {action_value.quantity}")
    value = None if action_value.value is None else action_value.value * factor
    quantity = action_value.quantity.replace("action value", "state value")
    assumptions = tuple(dict.fromkeys((*action_value.assumptions, what)))
    return Guarantee(quantity, value, action_value.unit, action_value.label, assumptions, action_value.reason)


@dataclass(frozen=True)
class Contraction:
    """|g^k(s) - g^k(s')| <= overshoot rate^k |s - s'| for the closed loop g.

    Attributes:
        rate: per step. overshoot: at least 1; sqrt(cond P) of a metric s'Ps in which every step contracts by `rate`.
    """

    rate: float
    overshoot: float = 1.0

    def __post_init__(self) -> None:
        nonnegative(rate=self.rate, overshoot=self.overshoot)
        if self.overshoot < 1:
            raise UserError(f"an overshoot is at least 1, found {self.overshoot}")


def contraction(loops: ArrayLike, P: ArrayLike | None = None) -> Contraction:
    """Contraction of a closed loop in a quadratic metric s'Ps.

    rate = max |P^1/2 A P^-1/2| over the matrices A, overshoot = sqrt(cond P).

    Args:
        loops: (n, n), the matrix of a linear loop, or (k, n, n), matrices whose convex hull holds every Jacobian of a
            nonlinear one on a convex set that it never leaves: the norm is convex, so that its corners are enough.
        P: (n, n), symmetric and positive definite; by default that of the Lyapunov equation of the mean of the
            matrices divided by 1.02 times its spectral radius, so that the rate is near the best.

    Raises:
        UserError: shapes do not match, a matrix does not contract in this metric, or P is not positive definite.
    """
    matrices = np.asarray(loops, np.float64)
    if matrices.ndim not in (2, 3) or matrices.shape[-1] != matrices.shape[-2] or not np.isfinite(matrices).all():
        raise UserError(f"closed loops need finite matrices (n, n) or (k, n, n), found shape {matrices.shape}")
    matrices = matrices.reshape(-1, *matrices.shape[-2:])
    n = matrices.shape[-1]
    metric = _lyapunov_metric(matrices.mean(0)) if P is None else np.asarray(P, np.float64)
    if metric.shape != (n, n):
        raise UserError(f"P has shape {metric.shape}; expected ({n}, {n})")
    found = [quadratic_lyapunov(one, np.eye(n), metric) for one in matrices]  # its gain is |P^1/2|, its widest |P^-1/2|
    return Contraction(max(w.rho for w in found), max(1.0, found[0].gain * found[0].widest))


def _lyapunov_metric(loop: Array) -> Array:
    radius = float(np.abs(np.linalg.eigvals(loop)).max())
    if not radius < 1:
        raise UserError(f"the closed loop must be stable, found spectral radius {radius:.6g}")
    target = max(1.02 * radius, 0.01) if 1.02 * radius < 1 else (1 + radius) / 2
    return np.asarray(scipy.linalg.solve_discrete_lyapunov(loop.T / target, np.eye(len(loop))))


@dataclass(frozen=True)
class ValueSlopes:
    """Slopes of the two values of a policy.

    Attributes:
        state: of V over s. action: of Q over (s, a).
    """

    state: Guarantee
    action: Guarantee


def _slopes(
    state: float | None, reward_lip: float, dynamics_lip: float, gamma: float, why: str, what: str
) -> ValueSlopes:
    """L_Q <= reward_lip + gamma dynamics_lip L_V, since Q(s, a) = r(s, a) + gamma V(f(s, a))."""
    action = None if state is None else reward_lip + gamma * dynamics_lip * state
    assumptions = (*CONSTANTS, what)
    return ValueSlopes(
        Guarantee("slope of the state value", state, UNIT, "bound", assumptions, why),
        Guarantee("slope of the action value", action, UNIT, "bound", assumptions, why),
    )


def closed_loop_bounds(
    reward_lip: float, dynamics_lip: float, policy_lip: float, gamma: float, loop: Contraction
) -> ValueSlopes:
    """S5: L_V <= reward_lip sqrt(1 + policy_lip^2) overshoot / (1 - gamma rate), and from it L_Q.

    V(s) = sum_k gamma^k r(g^k(s), mu(g^k(s))), and each term has constant reward_lip sqrt(1 + policy_lip^2) overshoot
    (gamma rate)^k. Finite for contracting loops whose one-step constant is far above 1, where S3 is vacuous.

    Args:
        loop: of `contraction`.
    """
    nonnegative(reward_lip=reward_lip, dynamics_lip=dynamics_lip, policy_lip=policy_lip)
    _discount(gamma)
    ratio, what = gamma * loop.rate, "the contraction of the closed loop"
    if not ratio < 1:
        why = f"discount times the loop's rate is {ratio:.4g}, not below 1"
        return _slopes(None, reward_lip, dynamics_lip, gamma, why, what)
    state = reward_lip * math.hypot(1.0, policy_lip) * loop.overshoot / (1 - ratio)
    return _slopes(state, reward_lip, dynamics_lip, gamma, "", what)


def linear_loop_bounds(reward_lip: float, A: ArrayLike, B: ArrayLike, K: ArrayLike, gamma: float) -> ValueSlopes:
    """S5 without a metric, for s' = A s + B a under a = -K s: L_V <= reward_lip sum_k gamma^k |[1; -K] (A - B K)^k|.

    On the pendulum under its regulator 56 times smaller than with the default metric of `contraction`. For Q,
    L_Q <= reward_lip (1 + sum_k>0 gamma^k |[1; -K] (A - B K)^(k-1) [A B]|). The tail of both sums is bounded in the
    metric of `contraction`, so that they are upper bounds.

    Args:
        A: (n, n). B: (n, m). K: (m, n).

    Raises:
        UserError: shapes do not match, or the loop is not stable.
    """
    nonnegative(reward_lip=reward_lip)
    _discount(gamma)
    a, b, k = (np.atleast_2d(np.asarray(x, np.float64)) for x in (A, B, K))
    n, m = len(a), len(k)
    if a.shape != (n, n) or b.shape != (n, m) or k.shape != (m, n):
        raise UserError(f"a linear loop needs A (n, n), B (n, m), K (m, n); found {a.shape} {b.shape} {k.shape}")
    closed, pair, both = a - b @ k, np.vstack([np.eye(n), -k]), np.hstack([a, b])
    rate = contraction(closed)
    state = action = 0.0
    power, weight = pair, 1.0
    for _ in range(LONGEST):
        state += weight * float(np.linalg.norm(power, 2))
        action += weight * gamma * float(np.linalg.norm(power @ both, 2))
        power, weight = power @ closed, weight * gamma
        tail = weight * float(np.linalg.norm(power, 2)) * rate.overshoot / (1 - gamma * rate.rate)
        if tail <= ENOUGH * state:
            break
    assumptions = (CONSTANTS[1], "the loop is linear", "the reward's constant on a set that is never left")
    step = float(np.linalg.norm(both, 2))
    return ValueSlopes(
        Guarantee("slope of the state value", reward_lip * (state + tail) * UP, UNIT, "bound", assumptions),
        Guarantee(
            "slope of the action value",
            reward_lip * (1 + action + gamma * step * tail) * UP,
            UNIT,
            "bound",
            assumptions,
        ),
    )


def stochastic_bound(reward_lip: float, kernel_lip: float, policy_lip: float, gamma: float) -> Guarantee:
    """S6: L_Q <= reward_lip / (1 - gamma kernel_lip (1 + policy_lip)), for random transitions and a random policy.

    (Rachelson and Lagoudakis 2010; Asadi et al. 2018.) |V(s) - V(s')| <= L_Q (|s - s'| + W1(pi(s), pi(s'))), and the
    next state's distribution moves by at most kernel_lip in W1. In place of 1 + policy_lip the deterministic form S3
    has sqrt(1 + policy_lip^2), which is not valid here: a random action may move far with a small probability.

    Args:
        kernel_lip: of (s, a) -> P(. | s, a) in the Wasserstein distance W1. policy_lip: of s -> pi(. | s) in W1.
    """
    nonnegative(reward_lip=reward_lip, kernel_lip=kernel_lip, policy_lip=policy_lip)
    _discount(gamma)
    ratio = gamma * kernel_lip * (1 + policy_lip)
    assumptions = (IN_W1, "the episode does not end")
    if not ratio < 1:
        reason = f"discount times the constants of kernel and policy is {ratio:.4g}, not below 1"
        return Guarantee("slope of the action value", None, UNIT, "bound", assumptions, reason)
    return Guarantee("slope of the action value", reward_lip / (1 - ratio), UNIT, "bound", assumptions)


def preconditioned_lip(
    reward_lip: float, multiplier: float, *, multiplier_lip: float = 0.0, reward_cap: float | None = None
) -> Guarantee:
    """Constant of the reward kappa r (pessimistic reward preconditioning, PURPLE).

    A constant kappa scales it, and so every bound of this file, by kappa. One that varies with (s, a) follows the
    product rule: sup kappa reward_lip + sup |r| multiplier_lip, which needs a bounded reward.

    Args:
        multiplier: the largest kappa. multiplier_lip: constant of kappa over (s, a); 0: kappa is constant.
        reward_cap: the largest |r|, or None: unbounded.
    """
    nonnegative(reward_lip=reward_lip, multiplier=multiplier, multiplier_lip=multiplier_lip)
    quantity, assumptions = "slope of the preconditioned reward", ("constants of reward and multiplier",)
    if multiplier_lip == 0:
        return Guarantee(quantity, multiplier * reward_lip, UNIT, "bound", assumptions)
    if reward_cap is None:
        reason = "the multiplier varies and the reward has no cap; clip the logit"
        return Guarantee(quantity, None, UNIT, "bound", assumptions, reason)
    nonnegative(reward_cap=reward_cap)
    value = multiplier * reward_lip + reward_cap * multiplier_lip
    return Guarantee(quantity, value, UNIT, "bound", (*assumptions, "the reward's cap"))


Verdict = Literal["no certificate", "within the certificate", "not the value of this policy"]


@dataclass(frozen=True)
class CriticSlopes:
    """A learned critic beside the certificate of the value that it approximates.

    Attributes:
        certificate: bound of the true action value's slope (S3, S5 or S6).
        network: proved bound of the critic's own slope, or vacuous: not computed.
        median, p95, largest: of the observed gradient norms [reward per unit of input]; lower bounds of its slope.
        verdict: "not the value of this policy" if an observed gradient is above the certificate: there, the critic is
            certainly not Q^mu. The converse is no statement: a wrong critic may be flat.
    """

    certificate: Guarantee
    network: Guarantee
    median: float
    p95: float
    largest: float
    verdict: Verdict


def compare_critic(certificate: Guarantee, gradient_norms: ArrayLike, network_lip: float | None = None) -> CriticSlopes:
    """S7: set a critic's observed gradients and its network's proved bound beside the certificate.

    Args:
        certificate: of the infinite horizon; for a critic of n-step returns alone, of `horizon_bound`.
        gradient_norms: (N,), |grad Q| over (s, a) at points of the set where the certificate holds.
        network_lip: proved bound of the critic network (`bracket.certify`), in the same units.

    Raises:
        UserError: no gradients, or one that is not a norm.
    """
    norms = np.asarray(gradient_norms, np.float64).ravel()
    if not (norms.size and np.isfinite(norms).all() and (norms >= 0).all()):
        raise UserError(f"gradient norms must be finite, not negative and at least one; found {norms.size} numbers")
    if network_lip is not None:
        nonnegative(network_lip=network_lip)
    why = "not computed" if network_lip is None else ""
    network = Guarantee("slope of the critic network", network_lip, UNIT, "proved", (), why)
    median, p95, largest = (float(np.percentile(norms, q)) for q in (50, 95, 100))
    verdict: Verdict = "no certificate"
    if certificate.value is not None:
        verdict = "within the certificate" if largest <= certificate.value * UP else "not the value of this policy"
    return CriticSlopes(certificate, network, median, p95, largest, verdict)


def published_expression_not_a_bound(
    reward_lip: float, dynamics_lip: float, policy_lip: float, gamma: float, *, steps: int | None = None
) -> Guarantee:
    """The expression of arXiv 2006.16785 as we read it: reward_lip / sqrt(1 - gamma^2 C).

    C is dynamics_lip^2 max(1, policy_lip^2). It is not an upper bound: for s' = 0.9 s, a = 0, r = s and gamma = 0.99
    the value's slope is 9.17, the expression 2.20. It takes the square of a sum of gradients for the sum of squares,
    which is smaller when they align, and drops the cross term of grad_s r + grad_a r grad mu. Only for comparison with
    published curves.

    Args:
        steps: number of rewards summed; None: infinitely many.
    """
    nonnegative(reward_lip=reward_lip, dynamics_lip=dynamics_lip, policy_lip=policy_lip)
    _discount(gamma)
    ratio = (gamma * dynamics_lip * max(1.0, policy_lip)) ** 2
    quantity, assumptions = "published expression, not a bound", ("gradients of different steps are orthogonal",)
    total = 1 / (1 - ratio) if steps is None and ratio < 1 else math.inf if steps is None else _geometric(ratio, steps)
    if not math.isfinite(total):
        return Guarantee(quantity, None, UNIT, "estimate", assumptions, f"gamma^2 C is {ratio:.4g}, not below 1")
    return Guarantee(quantity, reward_lip * math.sqrt(total), UNIT, "estimate", assumptions)
