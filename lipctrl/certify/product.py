"""The product of norms: the cheapest upper bound, valid for every network (numpy).

With L_0 = 1, each layer gives L_k = lip(phi_k) sum_j |W[k][j]| L_j; for an MLP this is the product of the layers'
norms. Spectral norms come from an SVD and are then proved (s^2 I - W'W is positive definite); l_inf norms are largest
row sums, rounded up. Power iteration is not used anywhere: it estimates norms from below.
"""

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.enclosure import UNIT, Enclosure, norm_at_most, norm_bound
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

Array = NDArray[np.float64]


def _blocks(net: PlainNet, norm: NormPair) -> dict[str, Enclosure]:
    """The maps of the network with the scales of the norms folded in, keyed "k.j"."""
    result, last = {}, len(net.blocks)
    for k, row in enumerate(net.blocks, start=1):
        for j, block in row.items():
            scaled = Enclosure.exact(block)
            if j == 0 and norm.input_scale is not None:
                scaled = scaled * Enclosure.exact(np.array(norm.input_scale)[None, :])
            if k == last and norm.output_scale is not None:
                inverse = 1 / np.array(norm.output_scale)
                scaled = scaled * Enclosure(inverse[:, None], 2 * UNIT * inverse[:, None])
            result[f"{k}.{j}"] = scaled
    return result


def lipschitz_constant(activation: Activation, norm: Norm) -> float:
    """Upper bound of an activation's own Lipschitz constant, rounded up (1 for sorting, in every absolute norm)."""
    if activation.is_scalar:
        return max(abs(s) for s in activation.slopes)
    if activation.vectors is None:
        return 1.0
    v = activation.vectors
    if norm == "l2":  # reflections I - 2 v v' have the eigenvalues 1 and 1 - 2 |v|^2
        worst = float(np.max(np.abs(1 - 2 * (v**2).sum(1))))
    else:
        worst = float(np.abs(np.eye(v.shape[1]) - 2 * v[:, :, None] * v[:, None, :]).sum(-1).max())
    return max(1.0, worst * (1 + (v.shape[1] + 8) * 8 * UNIT) + (v.shape[1] + 8) * 8 * UNIT)


def _row_sum(block: Enclosure) -> float:
    return float(block.magnitude.sum(1).max() * (1 + (block.shape[1] + 8) * 8 * UNIT))


def _combined(net: PlainNet, norms: dict[str, float], norm: Norm) -> float:
    """L_{l+1} of the recursion, rounded up."""
    constants = [1.0]
    for k, row in enumerate(net.blocks, start=1):
        total = sum(norms[f"{k}.{j}"] * constants[j] for j in row)
        lip = lipschitz_constant(net.activations[k - 1], norm) if k <= len(net.activations) else 1.0
        constants.append(total * lip * (1 + (len(row) + 4) * 8 * UNIT))
    return constants[-1]


def product_certificate(net: PlainNet, norm: NormPair, region: Box | None = None) -> Certificate | None:
    """The product-of-norms certificate; None for a pair of different norms."""
    if norm.input != norm.output:
        return None
    bound_of = norm_bound if norm.input == "l2" else _row_sum
    norms = {name: bound_of(block) for name, block in _blocks(net, norm).items()}
    return Certificate(
        bound=_combined(net, norms, norm.input),
        method="product",
        norm=norm,
        region=region,
        weights_sha256=net.sha256(),
        proof={"kind": "norms", "norms": norms},
        input_names=net.input_names,
        output_names=net.output_names,
    )


def check(net: PlainNet, certificate: Certificate) -> bool:
    """Check a certificate of kind "norms": each stored norm is proved, and their combination is below the bound."""
    norm, norms = certificate.norm, certificate.proof["norms"]
    blocks = _blocks(net, norm)
    if norm.input != norm.output or set(norms) != set(blocks):
        return False
    holds = norm_at_most if norm.input == "l2" else (lambda block, bound: _row_sum(block) <= bound)
    return all(holds(blocks[name], norms[name]) for name in blocks) and (
        _combined(net, norms, norm.input) <= certificate.bound
    )
