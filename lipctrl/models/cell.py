"""What all families of process models share: from a scaled start state and inputs to scaled states."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipctrl.models.graph import Affine, Graph

Array = NDArray[np.float64]


def steps(p: Tensor, u: Tensor) -> Tensor:
    """[p, u_k] for every step, (batch, T, n+m)."""
    return torch.cat([p[:, None].expand(-1, u.shape[1], -1), u], dim=-1)


def numbers(tensor: Tensor) -> Array:
    """A weight in float64."""
    return np.asarray(tensor.detach().double().cpu().numpy())


class Cell(nn.Module):
    """What all families share.

    Attributes:
        n, m, width, horizon: states, inputs, hidden units per layer, T.
        convex: the family claims that every output is convex in (p, u).
    """

    convex = False

    def __init__(self, n: int, m: int, width: int, horizon: int) -> None:
        super().__init__()
        self.n, self.m, self.width, self.horizon = n, m, width, horizon

    @staticmethod
    def project_(weights: Mapping[str, Tensor]) -> None:
        """Restore what the family promises of its weights (by name, any leading axes), after an optimiser's step."""

    def loss(self, p: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """What training minimises on windows: by default the mean square of all predictions."""
        error: Tensor = self(p, u) - y
        return (error**2).mean()

    def matrices(self) -> list[Tensor]:
        """The weights that multiply at every step."""
        raise NotImplementedError

    def flops(self) -> int:
        """Multiplications and additions of one window: 2 per weight and step, without activations."""
        return 2 * self.horizon * sum(w.numel() for w in self.matrices())

    def unroll(self, graph: Graph, p: Affine, u: list[Affine]) -> list[Affine] | None:
        """The outputs of all steps in a network under construction; None if the family is not one."""
        raise NotImplementedError
