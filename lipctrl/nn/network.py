"""Networks by family: sizes, a bound and an activation in; a torch module with `to_plain()` out."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.nn.sandwich import Sandwich


class LipschitzNet(Protocol):
    """What every family builds: a torch module that exports its deployed weights."""

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (batch, m) for inputs (batch, n)."""
        ...

    def to_plain(self) -> PlainNet:
        """The plain network, in float64."""
        ...


class Unconstrained(nn.Module):
    """Ordinary multilayer perceptron; no bound."""

    def __init__(self, sizes: Sequence[int], activation: nn.Module, name: str, generator: torch.Generator) -> None:
        super().__init__()
        self.phi, self.name = activation, name
        self.layers = nn.ModuleList([nn.Linear(n, m) for n, m in zip(sizes[:-1], sizes[1:], strict=True)])
        for layer in self.layers:
            nn.init.xavier_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (batch, m) for inputs (batch, n)."""
        for layer in self.layers[:-1]:
            x = self.phi(layer(x))
        return self.layers[-1](x)

    @torch.no_grad()
    def to_plain(self) -> PlainNet:
        """The plain network, in float64."""
        weights = [layer.weight.double().cpu().numpy() for layer in self.layers]
        return PlainNet.mlp(weights, [layer.bias.double().cpu().numpy() for layer in self.layers], self.name)


FAMILIES = {"sandwich": Sandwich, "unconstrained": Unconstrained}
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def lipschitz_mlp(
    family: str, sizes: Sequence[int], lip: float | None, *, activation: str = "tanh", seed: int = 0
) -> nn.Module:
    """A network of a family.

    Args:
        family: key of `FAMILIES`. sizes: (n, hidden widths..., m).
        lip: end-to-end l2 bound; None exactly for "unconstrained".
        activation: key of `ACTIVATIONS`. seed: of the initial weights.

    Raises:
        UserError: unknown family or activation, or a bound that is not positive.
    """
    if family not in FAMILIES or activation not in ACTIVATIONS:
        raise UserError(f"unknown family or activation: {family!r}, {activation!r}")
    generator = torch.Generator().manual_seed(seed)
    phi = ACTIVATIONS[activation]()
    if family == "unconstrained":
        return Unconstrained(sizes, phi, activation, generator)
    if lip is None or not lip > 0:
        raise UserError(f"lip must be positive, found {lip}")
    return Sandwich(sizes, lip, phi, activation, generator)
