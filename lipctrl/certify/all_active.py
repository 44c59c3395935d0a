"""Bound of networks whose hidden units feed each other with nonnegative weights: the network with all units active.

Input-convex and monotone networks are of this kind, recurrent ones unrolled over a horizon too. With slopes in [0, 1],
J_k the Jacobian of a_k, and the input weights split into W+ - W-,

    J_k(x) = P_k(x) - M_k(x),   0 <= P_k(x) <= P_k,   0 <= M_k(x) <= M_k   entrywise,

where P_k = W+_{k,0} + sum_{0<j<k} W_{k,j} P_j and M_k alike from W-: every slope at most 1, and nothing is subtracted
in the sums. Let F be the weights from the input to the output, and P, M what reaches the output with its weights split
in the same way. Then J(x) lies in F + [-M, P], so that in every induced norm that is monotone in the entries' moduli

    |J(x)| <= | max(|F + P|, |F - M|) |,      and in l2      |J(x)| <= |F + (P - M)/2| + |(P + M)/2|.

If all weights are nonnegative the first is |F + P|, attained wherever all units are active. All matrices are enclosed.
"""

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Certificate
from lipctrl.certify.enclosure import FLOOR, UNIT, Enclosure, norm_bound
from lipctrl.certify.product import scaled_blocks
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]


def applies(net: PlainNet) -> bool:
    """Whether slopes are in [0, 1] and no hidden unit feeds a hidden unit with a negative weight."""
    if not all(a.is_scalar and a.slopes[0] >= 0 and a.slopes[1] <= 1 for a in net.activations):
        return False
    hidden = net.blocks[:-1]
    return all((block >= 0).all() for row in hidden for source, block in row.items() if source > 0)


def parts(net: PlainNet, norm: NormPair) -> tuple[Enclosure, Enclosure, Enclosure]:
    """(F, P, M) of the head of this file, each (m, n), with the scales of the norms folded in."""
    blocks, last, n = scaled_blocks(net, norm), len(net.blocks), net.input_size
    plus: list[Enclosure] = [Enclosure.zeros(0, n)]
    minus: list[Enclosure] = [Enclosure.zeros(0, n)]
    for k, row in enumerate(net.blocks[:-1], start=1):
        first = blocks[f"{k}.0"] if 0 in row else Enclosure.zeros(len(net.biases[k - 1]), n)
        plus.append(_reached(_part(first, 1), {j: blocks[f"{k}.{j}"] for j in row if j}, plus))
        minus.append(_reached(_part(first, -1), {j: blocks[f"{k}.{j}"] for j in row if j}, minus))
    ends = {j: blocks[f"{last}.{j}"] for j in net.blocks[-1] if j}
    up, down = ({j: _part(block, sign) for j, block in ends.items()} for sign in (1, -1))
    zero = Enclosure.zeros(net.output_size, n)
    P = _reached(_reached(zero, up, plus), down, minus)
    M = _reached(_reached(zero, up, minus), down, plus)
    return blocks.get(f"{last}.0", zero), P, M


def _part(block: Enclosure, sign: int) -> Enclosure:
    """The positive (or negative) part of an enclosure, which keeps its radius where the sign is not certain."""
    mid = np.maximum(sign * block.mid, 0)
    return Enclosure(mid, np.where(sign * block.mid > -block.rad, block.rad, 0.0))


def _reached(start: Enclosure, blocks: dict[int, Enclosure], values: list[Enclosure]) -> Enclosure:
    for j, block in blocks.items():
        start = start + block @ values[j]
    return start


def bound_of(net: PlainNet, norm: NormPair) -> float:
    """The smaller of the two bounds, rounded up; infinite if the weights overflow."""
    F, P, M = parts(net, norm)
    largest = np.maximum((F + P).magnitude, (F - M).magnitude)
    if not np.isfinite(largest).all():
        return float("inf")
    up = 1 + (largest.size + 8) * 8 * UNIT
    if (norm.input, norm.output) == ("l2", "l2"):
        half = Enclosure.exact(np.full((1, 1), 0.5))
        split = norm_bound(F + (P - M) * half) + norm_bound((P + M) * half)
        return max(FLOOR, min(norm_bound(Enclosure.exact(largest)), split * up))
    if norm.input == "linf":  # attained at a corner for a nonnegative matrix
        reach = largest.sum(1)
        return max(FLOOR, float((reach.max() if norm.output == "linf" else np.linalg.norm(reach)) * up))
    return max(FLOOR, float(np.linalg.norm(largest, axis=1).max() * up))


def gain_bounds(net: PlainNet) -> tuple[Array, Array]:
    """low <= J(x) <= high entrywise for every x, each (m, n), in raw units of output per input, rounded outward.

    Raises:
        UserError: a network of another kind.
    """
    if not applies(net):
        raise UserError("gains are bounded everywhere only where hidden units feed each other with nonnegative weights")
    F, P, M = parts(net, NormPair())
    lowest, highest = F - M, F + P
    return np.nextafter(lowest.mid - lowest.rad, -np.inf), np.nextafter(highest.mid + highest.rad, np.inf)


def all_active_certificate(net: PlainNet, norm: NormPair) -> Certificate | None:
    """The certificate, for any pair of norms; None for networks of another kind."""
    if not applies(net):
        return None
    bound = bound_of(net, norm)
    if not np.isfinite(bound):
        return None
    return Certificate(
        bound=bound,
        method="all-active",
        norm=norm,
        region=None,
        weights_sha256=net.sha256(),
        proof={"kind": "all-active"},
        input_names=net.input_names,
        output_names=net.output_names,
    )


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "all-active": the structure, and the bound computed again."""
    return applies(net) and bound_of(net, certificate.norm) <= certificate.bound
