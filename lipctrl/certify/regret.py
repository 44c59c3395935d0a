"""What the error of a policy costs: regret against the expert and loss under measurement error (l2, cost units).

Costs sum gamma^t c(x_t, u_t). A quadratic stage cost is Lipschitz only on a bounded set: L_cx = 2 |Q| r and
L_cu = 2 |R| r_u (see `quadratic_constants`). For an LQR expert the regret is exactly a quadratic form of the action's
errors, which gives second-order bounds without any such constant.
"""

import math

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from lipctrl.certify.guarantees import Guarantee, nonnegative
from lipctrl.certify.stability import UP, hinf_norm
from lipctrl.files import UserError

Array = NDArray[np.float64]


def quadratic_constants(Q: ArrayLike, R: ArrayLike, state_radius: float, input_radius: float) -> tuple[float, float]:
    """(L_cx, L_cu) of x'Qx + u'Ru on |x| <= state_radius, |u| <= input_radius."""
    nonnegative(state_radius=state_radius, input_radius=input_radius)
    q, r = (float(np.linalg.norm(np.atleast_2d(np.asarray(m, np.float64)), 2)) for m in (Q, R))
    return 2 * q * state_radius * UP, 2 * r * input_radius * UP


def value_constant(
    state_cost: float, input_cost: float, policy_lip: float, closed_lip: float, discount: float
) -> Guarantee:
    """Lipschitz constant of a policy's cost-to-go: (L_cx + L_cu lip) / (1 - gamma lam), if gamma lam < 1.

    Args:
        state_cost, input_cost: L_cx, L_cu. policy_lip: of the policy whose cost it is. closed_lip: lam, of its loop.
    """
    nonnegative(state_cost=state_cost, input_cost=input_cost, policy_lip=policy_lip, closed_lip=closed_lip)
    quantity, unit, assumptions = "Lipschitz constant of the cost-to-go", "cost per state", ("the loop's constant",)
    if discount * closed_lip >= 1:
        reason = f"discount times the loop's constant is {discount * closed_lip:.4g}, not below 1"
        return Guarantee(quantity, None, unit, "bound", assumptions, reason)
    value = (state_cost + input_cost * policy_lip) / (1 - discount * closed_lip)
    return Guarantee(quantity, value, unit, "bound", assumptions)


def regret(value_lip: float, input_cost: float, input_lip: float, error: float, discount: float) -> Guarantee:
    """|J(pi) - J(pi*)| <= L_Q error / (1 - gamma), L_Q = L_cu + gamma L_V L_u (performance difference).

    No stability of the learned loop is used, only that it stays where the constants hold.

    Args:
        value_lip: L_V of the expert's cost-to-go. error: largest |u_t - pi*(x_t)| along the learned loop.
    """
    nonnegative(value_lip=value_lip, input_cost=input_cost, input_lip=input_lip, error=error)
    assumptions = ("Lipschitz constants of cost and expert's cost-to-go", "the learned loop stays where they hold")
    if not 0 <= discount < 1:
        return Guarantee("regret", None, "cost", "bound", assumptions, f"needs a discount below 1, found {discount:g}")
    value = (input_cost + discount * value_lip * input_lip) * error / (1 - discount)
    return Guarantee("regret", value, "cost", "bound", assumptions)


def regret_from_gap(
    gain: float, state_cost: float, input_cost: float, expert_lip: float, error: float, discount: float
) -> Guarantee:
    """|J(pi) - J(pi*)| <= error [(L_cx + L_cu l*) G + L_cu] / (1 - gamma), G the incremental gain."""
    nonnegative(gain=gain, state_cost=state_cost, input_cost=input_cost, expert_lip=expert_lip, error=error)
    assumptions = ("the expert's incremental gain", "Lipschitz constants of the cost")
    if not 0 <= discount < 1:
        return Guarantee("regret", None, "cost", "bound", assumptions, f"needs a discount below 1, found {discount:g}")
    value = error * ((state_cost + input_cost * expert_lip) * gain + input_cost) / (1 - discount)
    return Guarantee("regret", value, "cost", "bound", assumptions)


def lqr_regret(states: Array, inputs: Array, K: Array, S: Array, discount: float = 1.0) -> float:
    """sum_t gamma^t (u_t + K x_t)' S (u_t + K x_t): exactly what a trajectory costs more than the LQR expert.

    For any inputs, sum_{t<T} gamma^t c(x_t, u_t) + gamma^T x_T'P x_T - x_0'P x_0 equals it, with P of the Riccati
    equation for (sqrt(gamma) A, sqrt(gamma) B, Q, R) and S = R + gamma B'PB (completion of squares).

    Args:
        states: (T, n) or more rows. inputs: (T, m).
    """
    difference = inputs + states[: len(inputs)] @ K.T
    weights = discount ** np.arange(len(inputs))
    return float(np.einsum("t,ti,ij,tj->", weights, difference, S, difference))


def lqr_regret_bound(
    A_cl: ArrayLike, B: ArrayLike, S: ArrayLike, x: ArrayLike, *, slope: float, extra: float = 0.0, steps: int
) -> Guarantee:
    """|S| [(slope sqrt(x'Xs x) + sqrt(T) extra) / (1 - slope g)]^2, undiscounted over T steps from x.

    With e_t = u_t + K x_t the states are the expert's plus a convolution whose l2 gain is g, so |x|_2 <= sqrt(x'Xs x) +
    g |e|_2 with Xs = sum_k (A_cl^k)' A_cl^k; insert |e_t| <= slope |x_t| + extra and solve for |e|_2.

    Args:
        A_cl, B: the LQR expert's loop. S: R + B'PB. x: start (n,).
        slope, extra: |u_t + K x_t| <= slope |x_t| + extra, for example extra = lip times the measurement error.
    """
    nonnegative(slope=slope, extra=extra)
    if steps < 1:
        raise UserError(f"steps must be at least 1, found {steps}")
    closed, start = np.atleast_2d(np.asarray(A_cl, np.float64)), np.asarray(x, np.float64)
    g = hinf_norm(closed, B)
    assumptions = ("linear plant, quadratic cost, LQR expert", "the error's slope along the learned loop")
    quantity = f"regret over {steps} steps"
    if slope * g >= 1:
        reason = f"slope {slope:.4g} is above the allowed {1 / g:.4g}"
        return Guarantee(quantity, None, "cost", "bound", assumptions, reason)
    xs = scipy.linalg.solve_discrete_lyapunov(closed.T, np.eye(len(closed)))
    size = (slope * math.sqrt(max(start @ xs @ start, 0.0)) + math.sqrt(steps) * extra) / (1 - slope * g)
    value = float(np.linalg.norm(np.atleast_2d(np.asarray(S, np.float64)), 2)) * size**2 * UP
    return Guarantee(quantity, value, "cost", "bound", assumptions)


def lqr_average_regret(A_cl: ArrayLike, B: ArrayLike, S: ArrayLike, *, slope: float, extra: float) -> Guarantee:
    """Limit of regret / T: |S| (extra / (1 - slope g))^2: the price of a persistent measurement error."""
    nonnegative(slope=slope, extra=extra)
    g = hinf_norm(A_cl, B)
    assumptions = ("linear plant, quadratic cost, LQR expert", "the error's slope along the learned loop")
    quantity, unit = "average regret per step", "cost per step"
    if slope * g >= 1:
        reason = f"slope {slope:.4g} is above the allowed {1 / g:.4g}"
        return Guarantee(quantity, None, unit, "bound", assumptions, reason)
    value = float(np.linalg.norm(np.atleast_2d(np.asarray(S, np.float64)), 2)) * (extra / (1 - slope * g)) ** 2 * UP
    return Guarantee(quantity, value, unit, "bound", assumptions)


def degradation(
    state_cost: float,
    input_cost: float,
    lip: float,
    plant_lips: tuple[float, float],
    measurement: float,
    discount: float,
) -> Guarantee:
    """J under measurement error minus J without, for the same policy: L_Q lip measurement / (1 - gamma).

    L_Q = L_cu + gamma L_V L_u with the policy's own cost-to-go, L_V = (L_cx + L_cu lip) / (1 - gamma (L_x + L_u lip)).

    Args:
        lip: of the policy. plant_lips: (L_x, L_u) of f. measurement: largest measurement error.
    """
    nonnegative(measurement=measurement)
    closed = plant_lips[0] + plant_lips[1] * lip
    value = value_constant(state_cost, input_cost, lip, closed, discount)
    quantity, assumptions = (
        "loss under measurement error",
        ("Lipschitz constants of plant and cost", *value.assumptions),
    )
    if value.value is None:
        return Guarantee(quantity, None, "cost", "bound", assumptions, value.reason)
    found = regret(value.value, input_cost, plant_lips[1], lip * measurement, discount)
    return Guarantee(quantity, found.value, "cost", "bound", assumptions, found.reason)
