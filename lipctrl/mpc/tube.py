"""Tube MPC around a policy: its proved constant says how much tighter the limits of the MPC must be.

The plant is linear, x+ = A x + B u, and only a measurement y = x + d is known, |d| <= radius at every step. An MPC
plans for a nominal state z that it moves itself, z+ = A z + B v; the policy pi, certified with constant alpha, adds

    u = v + pi(y) - pi(z),        z_0 = y_0.

Let K be the LQR gain, A_K = A - B K, e = x - z, and let L be a constant of the policy's mismatch m(x) = pi(x) + K x.
Then pi(y) - pi(z) = -K e + w with w = [pi(y) - pi(x)] + [m(x) - m(z)], so that

    e+ = A_K e + B w,    |w| <= alpha radius + L |e|,    e_0 = -d_0.

Claim. With p(a) = sup_k max {a' A_K^k d : |d| <= 1}, q(a) = sum_i max {a' A_K^i B w : |w| <= 1} (every component of w
apart), p = |(p(e_1), ..., p(e_n))|, q = |(q(e_1), ..., q(e_n))|, L q < 1 and

    eta = radius (alpha + L p) / (1 - L q),

for every direction a and all times |a'e| <= radius p(a) + eta q(a), and |w| <= eta.

Proof, by induction. If |w_i| <= eta for i < k, then a'e_k = -a' A_K^k d_0 + sum_{i<k} a' A_K^(k-1-i) B w_i is at most
radius p(a) + eta q(a) in modulus; with a = e_1..e_n, |e_k| <= radius p + eta q, as these norms are monotone and obey
the triangle inequality; so |w_k| <= alpha radius + L (radius p + eta q) = eta.

If instead |m| <= error where the loop runs, the same proof with |m(x) - m(z)| <= 2 error gives
eta = alpha radius + 2 error.

Hence if z and v keep limits tightened by radius p(a) + eta q(a) along the limited states and, for input j, by that
along K_j plus eta, then x and u keep the limits themselves, whoever chooses d within its ball. The nominal problem
knows no disturbance and has a terminal set: feasible at the start, it stays so. These are the tubes of Mayne, Seron and
Rakovic (Automatica 41, 2005) and the tightened limits of Chisci, Rossiter and Zappa (Automatica 37, 2001); that the
constant of a policy bounds what a measurement error does is the use of Al Makdah, Krishnan and Pasqualetti
(arXiv 2103.16629); the fixed point over L is a small-gain argument.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from lipctrl.certify.certificate import Certificate
from lipctrl.files import UserError
from lipctrl.mpc.controller import FEASIBLE, Solution
from lipctrl.mpc.linear import LinearMPC, at_rest, is_linear, terminal_set
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.problem import OCP
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair
from lipctrl.plant import Plant

Array = NDArray[np.float64]
ROUNDING = 1e-9  # relative inflation of every tightening, far above what float64 sums lose
TAIL = 1e-10  # the sums stop when what is left is below this share; the rest is added as a bound


def mismatch_network(net: PlainNet, gain: Array) -> PlainNet:
    """The network of m(x) = pi(x) + K x, whose certificate says how far the policy's slope is from the gain's."""
    last = dict(net.blocks[-1])
    last[0] = last.get(0, np.zeros_like(gain)) + gain
    return replace(net, blocks=(*net.blocks[:-1], last), multipliers=None)


def mismatch_error(
    net: PlainNet, gain: Array, low: Array, high: Array, mismatch: Certificate, *, cells: int = 500_000
) -> float:
    """A bound of |pi(x) + K x - constant| on a box: the worst centre of a grid of cells, and the slope to its edge.

    The constant is the value at the middle of the box; a tube needs the bound for some constant only.

    Args:
        net, gain: as for `mismatch_network`. low, high: the box, (n,).
        mismatch: certificate of the mismatch network on the box.
        cells: of the grid, at most; few dimensions only.

    Raises:
        UserError: the box is not finite, or the certificate is of another network or a smaller region.
    """
    network = mismatch_network(net, gain)
    if not mismatch.verify(network):
        raise UserError("the certificate of the mismatch does not verify for its network")
    if not np.isfinite([low, high]).all():
        raise UserError("an error bound of the mismatch needs finite state limits")
    if mismatch.region is not None and not (mismatch.region.contains(low) and mismatch.region.contains(high)):
        raise UserError("the certificate of the mismatch holds on a smaller region than the limits")
    widths = (high - low) / np.array(mismatch.norm.input_scale or np.ones(len(low)))
    side = (np.prod(widths) / cells) ** (1 / len(low))
    counts = np.maximum(1, np.ceil(widths / side)).astype(int)
    half = (high - low) / (2 * counts)
    axes = [a + h * (2 * np.arange(count) + 1) for a, h, count in zip(low, half, counts, strict=True)]
    centers = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(low))
    middle = network(((low + high) / 2)[None])[0]
    worst = max(
        float(mismatch.norm.of_output(network(part) - middle).max())
        for part in np.array_split(centers, max(1, len(centers) // 20_000))
    )
    return (worst + mismatch.bound * float(mismatch.norm.of_input(half))) * (1 + ROUNDING)


def reach(A_K: Array, B: Array, rows: Array, norm: NormPair) -> tuple[Array, Array]:
    """(p, q) of directions `rows` (r, n), each (r,): see the head of this file.

    Both are upper bounds: what the finite sums leave out is bounded by the contraction of a Lyapunov norm.

    Args:
        A_K: stable closed loop (n, n). B: (n, m). norm: of d (input) and w (output).

    Raises:
        UserError: the loop is not stable.
    """
    if not np.abs(np.linalg.eigvals(A_K)).max() < 1:
        raise UserError("a tube needs a stable closed loop")
    n, m = B.shape
    s_in, s_out = np.array(norm.input_scale or np.ones(n)), np.array(norm.output_scale or np.ones(m))
    root = np.linalg.cholesky(scipy.linalg.solve_discrete_lyapunov(A_K.T, np.eye(n))).T  # |x|_P = |root x|
    rho = float(np.linalg.norm(root @ A_K @ np.linalg.inv(root), 2)) * (1 + ROUNDING)
    if not rho < 1:
        raise UserError("the closed loop is too close to instability for a tube")
    dual = np.linalg.norm(rows @ np.linalg.inv(root), axis=1)
    p, q, power = np.zeros(len(rows)), np.zeros(len(rows)), np.eye(n)
    while True:
        moved = rows @ power
        p = np.maximum(p, np.linalg.norm(moved * s_in, ord=2 if norm.input == "l2" else 1, axis=1))
        q = q + np.abs(moved @ B) @ s_out
        power = power @ A_K
        # |a' A_K^i b| <= |a|_{P^-1} rho^(i-k) |A_K^k b|_P for i >= k; of the ball, |d|_2 <= |s|_2 bounds both norms
        tail_p = dual * np.linalg.norm(root @ power, 2) * np.linalg.norm(s_in)
        tail_q = dual * (np.linalg.norm(root @ power @ B, axis=0) @ s_out) / (1 - rho)
        if (tail_p <= p).all() and (tail_q <= TAIL * q + 1e-300).all():
            return p * (1 + ROUNDING), (q + tail_q) * (1 + ROUNDING)


@dataclass(frozen=True)
class Tightening:
    """What a measurement disturbance of a radius costs.

    Attributes:
        states, inputs: by how much their limits are tightened, (n,) and (m,).
        eta: bound of w, in the certificate's output norm.
        largest_radius: above it no limits are left.
    """

    states: Array
    inputs: Array
    eta: float
    largest_radius: float


def tighten(
    plant: Plant, ocp: OCP, *, alpha: float, mismatch: float, error: float, norm: NormPair, radius: float
) -> Tightening:
    """The tightening of the claim above; it is affine in the radius.

    Args:
        plant, ocp: linear plant; weights give K; limits and reference.
        alpha, mismatch: constants of pi and m in `norm`. error: bound of |m| (then the mismatch must be 0), or 0.
        radius: of the measurement disturbance, in the input norm.

    Raises:
        UserError: L q >= 1, or the radius is more than the limits tolerate; the sentence says how much they do.
    """
    A, B, _ = plant.linearise(ocp.x_ref, ocp.u_ref)
    K = lqr(A, B, ocp.Q, ocp.R).K
    n, m = B.shape
    p, q = reach(A - B @ K, B, np.vstack([np.eye(n), K]), norm)
    size_p, size_q = float(norm.of_input(p[:n])), float(norm.of_input(q[:n]))
    if mismatch * size_q >= 1:
        raise UserError(
            f"the policy's slope is too far from the LQR gain for a tube: mismatch {mismatch:.4g} times "
            f"tube gain {size_q:.4g} must be below 1"
        )
    slope, offset = (alpha + mismatch * size_p) / (1 - mismatch * size_q), 2 * error  # eta = slope radius + offset
    own = np.concatenate([np.zeros(n), norm.output_scale or np.ones(m)])
    per_radius, fixed = p + slope * (q + own), offset * (q + own)  # eta = slope radius + offset
    # what a feasible plan may violate: its dynamics, and its start, which the scaled A moves on
    growth = float(np.abs(A * ocp.x_scale / ocp.x_scale[:, None]).sum(1).max())
    fixed[:n] += 2 * FEASIBLE * max(1.0, growth) * ocp.x_scale
    low = np.concatenate([ocp.x_ref - ocp.x_low, ocp.u_ref - ocp.u_low])
    room = np.minimum(low, np.concatenate([ocp.x_high - ocp.x_ref, ocp.u_high - ocp.u_ref]))
    most = np.where(room > fixed, np.inf, -np.inf)
    largest = float(np.divide(room - fixed, per_radius, out=most, where=per_radius > 0).min())
    if not radius < largest:
        raise UserError(
            f"the limits tolerate a measurement disturbance of at most {max(largest, 0.0):.6g} "
            f"({norm.input} norm) with this policy, found {radius:g}"
        )
    total = per_radius * radius + fixed
    return Tightening(total[:n], total[n:], slope * radius + offset, largest)


@dataclass(frozen=True)
class TubeStep:
    """What happened at one step.

    Attributes:
        nominal, input: z (n,) and v (m,) of the MPC. after: the next z.
        plan: inputs (N, m) that exist from z on. solution: of the nominal problem.
        inside: whether |y - z| is what the proof allows; if not, plant or measurement are not as assumed.
    """

    nominal: Array
    input: Array
    after: Array
    plan: Array
    solution: Solution
    inside: bool


def _same(observation: Array) -> Array:
    return observation


@dataclass(frozen=True, kw_only=True)
class TubePolicy:
    """u = v + pi(y) - pi(z): see the head of this file. Pure: the nominal state travels in `predict`'s hidden state.

    Attributes:
        plant: linear; its limits are those of the OCP. ocp: horizon, weights and the limits that must hold.
        net: pi, without output limits (`PlainNet.without_limits`), from the plant's state to its input.
        certificate: of `net`; its input norm is that of the disturbance.
        mismatch: certificate, in the same norms, of `mismatch_network(net, K)` with K the LQR gain of the OCP's
            weights; or a bound of |pi(x) + K x - constant| in the output norm on the limits, proved elsewhere.
        radius: of the measurement disturbance, in the certificate's input norm.
        state_of: measured state (n,) from one observation.

    Raises:
        UserError: the plant is not linear or the reference not at rest, a certificate does not verify, holds on a
            smaller region than the limits or in other norms, or the radius is too large.
    """

    plant: Plant
    ocp: OCP
    net: PlainNet
    certificate: Certificate
    mismatch: Certificate | float
    radius: float
    state_of: Callable[[Array], Array] = _same
    tightening: Tightening = field(init=False)
    nominal: LinearMPC = field(init=False, repr=False)
    _gain: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ocp, norm = self.ocp, self.certificate.norm
        if not self.radius >= 0 or not np.isfinite(self.radius):
            raise UserError(f"the radius must be finite and not negative, found {self.radius}")
        _check_plant(self.plant, ocp)
        if self.net.low is not None or self.net.high is not None:
            raise UserError("the policy of a tube must have no output limits: use net.without_limits()")
        if (self.net.input_size, self.net.output_size) != (len(ocp.x_ref), len(ocp.u_ref)):
            raise UserError(
                f"the policy of a tube needs {len(ocp.x_ref)} inputs and {len(ocp.u_ref)} outputs, "
                f"found {self.net.input_size} and {self.net.output_size}"
            )
        gain = lqr(*self.plant.linearise(ocp.x_ref, ocp.u_ref)[:2], ocp.Q, ocp.R).K
        self._check("policy", self.certificate, self.net)
        slope, error = 0.0, 0.0
        if isinstance(self.mismatch, Certificate):
            if self.mismatch.norm != norm:
                raise UserError(f"the certificates must hold in the same norms, found {norm} and {self.mismatch.norm}")
            self._check("mismatch", self.mismatch, mismatch_network(self.net, gain))
            slope = self.mismatch.bound
        else:
            error = self.mismatch
            if not 0 <= error < np.inf:
                raise UserError(f"the bound of the mismatch must be finite and not negative, found {error}")
        tightening = tighten(
            self.plant, ocp, alpha=self.certificate.bound, mismatch=slope, error=error, norm=norm, radius=self.radius
        )
        tight = replace(
            ocp,
            x_low=ocp.x_low + tightening.states,
            x_high=ocp.x_high - tightening.states,
            u_low=ocp.u_low + tightening.inputs,
            u_high=ocp.u_high - tightening.inputs,
        )
        tight = replace(tight, terminal_set=terminal_set(self.plant, tight))
        # the record is frozen for its users; these are made here once
        object.__setattr__(self, "tightening", tightening)
        object.__setattr__(self, "nominal", LinearMPC(self.plant, tight))
        object.__setattr__(self, "_gain", gain)

    def _check(self, name: str, certificate: Certificate, net: PlainNet) -> None:
        if not certificate.verify(net):
            raise UserError(f"the certificate of the {name} does not verify for its network")
        if certificate.region is not None:
            reach = self.radius * np.array(certificate.norm.input_scale or np.ones(net.input_size))
            ends = self.ocp.x_low - reach, self.ocp.x_high + reach
            if not all(certificate.region.contains(end) for end in ends):
                raise UserError(
                    f"the certificate of the {name} holds on a smaller region than the limits and the radius"
                )

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, tuple[TubeStep, ...]]:
        """Action and hidden state; see `Policy.predict`.

        Args:
            observation: one (n,) or a batch (batch, n), as measured.
            state: what the last call returned, or None.
            episode_start: where true, the nominal state starts at the measurement; shape () or (batch,), or None.
            deterministic: no effect.

        Raises:
            UserError: the start is outside what the tightened limits can hold, or numbers of rows differ.
        """
        observations = np.asarray(observation, dtype=np.float64)
        rows = np.atleast_2d(observations)
        before: list[TubeStep | None] = [None] * len(rows) if state is None else list(state)
        fresh = np.zeros(len(rows), bool) if episode_start is None else np.atleast_1d(episode_start).astype(bool)
        if len(before) != len(rows) or len(fresh) != len(rows):
            raise UserError(f"{len(rows)} observations came with {len(before)} hidden states and {len(fresh)} starts")
        answers = [self._step(row, None if new else last) for row, last, new in zip(rows, before, fresh, strict=True)]
        actions = np.array([action for action, _ in answers])
        return actions.reshape(*observations.shape[:-1], -1), tuple(step for _, step in answers)

    def _step(self, observation: Array, last: TubeStep | None) -> tuple[Array, TubeStep]:
        y, tight = np.asarray(self.state_of(observation), np.float64), self.nominal.ocp
        z = y if last is None else last.after
        solution = self.nominal.solve(z, None if last is None else last.solution.shifted())
        if last is None and not (solution.feasible and (z >= tight.x_low).all() and (z <= tight.x_high).all()):
            raise UserError(f"the start {z} is outside what the limits tightened for radius {self.radius:g} can hold")
        plan = solution.inputs
        if not solution.feasible and last is not None:
            # never so in exact arithmetic: the last plan, continued by LQR in the terminal set, is one for this step
            plan = np.vstack([last.plan[1:], self._last_input(z, last.plan[1:])])
        v = np.clip(plan[0], tight.u_low, tight.u_high)
        room = self.tightening.states + self.radius * np.array(self.certificate.norm.input_scale or np.ones(len(y)))
        step = TubeStep(z, v, self.plant.step(z, v), plan, solution, bool((np.abs(y - z) <= room).all()))
        return v + self.net(y) - self.net(z), step

    def _last_input(self, z: Array, inputs: Array) -> Array:
        for u in inputs:
            z = self.plant.step(z, u)
        return np.asarray(self.ocp.u_ref - self._gain @ (z - self.ocp.x_ref))


def _check_plant(plant: Plant, ocp: OCP) -> None:
    """The plant must be x+ = A x + B u + E w + c with the reference at rest."""
    if not is_linear(plant):
        raise UserError(f"a tube needs a linear plant; {plant.name} is not")
    if not at_rest(plant, ocp):
        raise UserError("a tube needs a reference at which the plant rests")
    if ocp.soft is not None:
        raise UserError("a tube needs hard state limits, found soft ones")
    ocp.plain_limits("a tube")
