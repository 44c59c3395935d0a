"""Networks by family: sizes, a bound and an activation in; a torch module with `to_plain()` out."""

from collections.abc import Sequence

import torch

from lipctrl.files import UserError, nearest
from lipctrl.nn.graph import GraphNet
from lipctrl.nn.layerwise import Aol, Orthogonal, Spectral, Unconstrained
from lipctrl.nn.ldlt import Ldlt, LdltResidual
from lipctrl.nn.residual import Cpl, Sll
from lipctrl.nn.sandwich import Sandwich

FAMILIES: dict[str, type[GraphNet]] = {
    "sandwich": Sandwich,
    "ldlt": Ldlt,
    "ldlt-residual": LdltResidual,
    "orthogonal": Orthogonal,
    "aol": Aol,
    "spectral": Spectral,
    "sll": Sll,
    "cpl": Cpl,
    "unconstrained": Unconstrained,
}
"""Layer families by name; the first line of each docstring says what it is."""


def lipschitz_mlp(
    family: str,
    sizes: Sequence[int],
    lip: float | None,
    *,
    activation: str = "tanh",
    learnable_lip: bool = False,
    seed: int = 0,
) -> GraphNet:
    """A network of a family.

    Args:
        family: key of `FAMILIES`. sizes: (n, hidden widths..., m), any n and m.
        lip: end-to-end l2 bound; None exactly for "unconstrained".
        activation: for example "tanh", "relu", "leaky_relu:0.1", "maxmin", "groupsort:4", "householder:2".
        learnable_lip: train the bound too, through its logarithm.
        seed: of the initial weights.

    Raises:
        UserError: unknown family, a bound that is not positive, or an activation that the family's proof excludes.
    """
    if family not in FAMILIES:
        raise nearest(family, FAMILIES, "layer family")
    if (lip is None) != (family == "unconstrained"):
        raise UserError(f"a bound is needed by every family except 'unconstrained'; found family {family!r}, lip {lip}")
    generator = torch.Generator().manual_seed(seed)
    if lip is None:
        return Unconstrained(sizes, activation=activation, generator=generator)
    build = FAMILIES[family]
    return build(sizes, lip, activation=activation, learnable_lip=learnable_lip, generator=generator)
