"""The product of norms: the cheapest upper bound, valid for every network (numpy).

With L_0 = 1, each layer gives L_k = lip(phi_k) sum_j |W[k][j]| L_j; for an MLP this is the product of the layers'
norms. The layers may be measured in l2 or in l_inf whatever the norms at the ends are, since |d|_inf <= |d|_2 <=
sqrt(n) |d|_inf; the better of the two is taken. Spectral norms come from an SVD and are then proved (s^2 I - W'W is
positive definite); l_inf norms are largest row sums, rounded up. Power iteration is not used anywhere: it estimates
norms from below.
"""

from collections.abc import Mapping
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Certificate
from lipctrl.certify.enclosure import FLOOR, UNIT, Enclosure, norm_at_most, norm_bound, quotient
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

Array = NDArray[np.float64]


def scaled_blocks(net: PlainNet, norm: NormPair) -> dict[str, Enclosure]:
    """The maps of the network with the scales of the norms folded in, keyed "k.j"."""
    result, last = {}, len(net.blocks)
    for k, row in enumerate(net.blocks, start=1):
        for j, block in row.items():
            scaled = Enclosure.exact(block)
            if j == 0 and norm.input_scale is not None:
                scaled = scaled * Enclosure.exact(np.array(norm.input_scale)[None, :])
            if k == last and norm.output_scale is not None:
                inverse = quotient(np.ones(len(norm.output_scale)), np.array(norm.output_scale))
                scaled = inverse[:, None] * scaled
            result[f"{k}.{j}"] = scaled
    return result


def lipschitz_constant(activation: Activation, norm: Norm) -> float:
    """Upper bound of an activation's own Lipschitz constant, rounded up (1 for sorting, in every absolute norm)."""
    if activation.is_scalar:
        return float(max(abs(s) for s in activation.slopes))
    if activation.vectors is None:
        return 1.0
    v, size = activation.vectors, activation.group_size
    if norm == "l2":  # reflections I - 2 v v' have the eigenvalues 1 and 1 - 2 |v|^2
        worst = float(np.max(np.abs(1 - 2 * (v**2).sum(1))))
    else:
        worst = float(np.abs(np.eye(size) - 2 * v[:, :, None] * v[:, None, :]).sum(-1).max())
    return max(1.0, worst * (1 + (size + 8) * 8 * UNIT) + (size + 8) * 8 * UNIT)


def _row_sum(block: Enclosure) -> float:
    return max(FLOOR, float(block.magnitude.sum(1).max(initial=0.0) * (1 + (block.shape[1] + 8) * 8 * UNIT)))


def _combined(net: PlainNet, norms: Mapping[str, float], pair: NormPair, through: Norm) -> float:
    """L_{l+1} of the recursion in the norm `through`, times the cost of changing norms at the ends; rounded up."""
    ends = net.input_size if (pair.input, through) == ("linf", "l2") else 1
    ends *= net.output_size if (pair.output, through) == ("l2", "linf") else 1
    constants = [float(np.sqrt(ends))]
    for k, row in enumerate(net.blocks, start=1):
        total = sum(norms[f"{k}.{j}"] * constants[j] for j in row)
        lip = lipschitz_constant(net.activations[k - 1], through) if k <= len(net.activations) else 1.0
        constants.append(max(FLOOR, total * lip * (1 + (len(row) + 8) * 8 * UNIT)))
    return constants[-1]


def product_certificate(net: PlainNet, norm: NormPair) -> Certificate | None:
    """The product-of-norms certificate, for any pair of norms; None only if the weights overflow."""
    blocks, options = scaled_blocks(net, norm), list[tuple[float, Norm, dict[str, float]]]()
    for through in get_args(Norm):
        bound_of = norm_bound if through == "l2" else _row_sum
        norms = {name: bound_of(block) for name, block in blocks.items()}
        options.append((_combined(net, norms, norm, through), through, norms))
    bound, through, norms = min(options, key=lambda option: option[0])
    if not np.isfinite(bound):
        return None
    return Certificate(
        bound=bound,
        method="product",
        norm=norm,
        region=None,
        weights_sha256=net.sha256(),
        proof={"kind": "norms", "through": through, "norms": norms},
        input_names=net.input_names,
        output_names=net.output_names,
    )


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "norms": each stored norm is proved, and their combination is below the bound."""
    pair, norms, through = certificate.norm, certificate.proof["norms"], certificate.proof["through"]
    blocks = scaled_blocks(net, pair)
    if through not in get_args(Norm) or set(norms) != set(blocks):
        return False
    holds = norm_at_most if through == "l2" else (lambda block, bound: _row_sum(block) <= bound)
    return all(0 <= norms[name] < np.inf and holds(blocks[name], norms[name]) for name in blocks) and (
        _combined(net, norms, pair, through) <= certificate.bound
    )
