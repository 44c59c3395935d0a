"""Twin critics evaluated as one batched product per layer, on parameters that the SB3 modules share.

Stable-Baselines3 keeps each Q network as a module of its own. `StackedCritics` puts the matrices of all of them along a
leading axis and makes every module's parameter a slice of that memory: nothing is copied, so that `save`, `load` and
`predict` see what the update writes. `None` weights mean the stored ones; passing others evaluates those instead.
"""

from collections.abc import Sequence

import torch
from stable_baselines3.common.policies import ContinuousCritic
from torch import Tensor, nn
from torch.nn import functional

from lipctrl.files import UserError

Layers = Sequence[tuple[Tensor, Tensor]]


class StackedCritics:
    """All Q networks of an SB3 critic at once: linear layers with ReLU or LayerNorm and ReLU between them.

    Args:
        critic: whose parameters become slices of the stacked ones.

    Attributes:
        layers: weight (critics, out, in) and bias (critics, 1, out) of each linear layer.
        norms: scale and shift (critics, 1, width) of the LayerNorm behind each hidden layer; empty without LayerNorm.

    Raises:
        UserError: networks of another form.
    """

    def __init__(self, critic: ContinuousCritic) -> None:
        nets = [list(net) for net in critic.q_networks]  # type: ignore[call-overload]  # each is a Sequential
        kinds = {tuple(type(part) for part in net) for net in nets}
        allowed = {nn.Linear, nn.ReLU, nn.LayerNorm}
        if len(kinds) != 1 or not set(next(iter(kinds))) <= allowed:
            raise UserError("the fast update needs critics of linear layers, ReLU and LayerNorm; use relu critics")
        self.count = len(nets)
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.norms: list[tuple[Tensor, Tensor]] = []
        for parts in zip(*nets, strict=True):
            if isinstance(parts[0], nn.Linear):
                self.layers.append((_shared(parts, "weight"), _shared(parts, "bias")))
            elif isinstance(parts[0], nn.LayerNorm):
                self.norms.append((_shared(parts, "weight"), _shared(parts, "bias")))

    def leaves(self) -> list[Tensor]:
        """Every stacked parameter, in a fixed order."""
        return [tensor for pair in (*self.layers, *self.norms) for tensor in pair]

    def __call__(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Values (critics, batch) of inputs (batch, n + m), or of each critic's own (critics, batch, n + m).

        Args:
            x: observations and scaled actions side by side.
            frozen: the parameters are constants, so that a backward pass spares their gradients.
        """
        h = x if x.ndim == 3 else x.expand(self.count, *x.shape)
        last = len(self.layers) - 1
        for k, pair in enumerate(self.layers):
            weight, bias = (part.detach() for part in pair) if frozen else pair
            h = torch.baddbmm(bias[:, None], h, weight.transpose(1, 2))
            if k < last:
                if self.norms:
                    scale, shift = (part.detach() for part in self.norms[k]) if frozen else self.norms[k]
                    h = functional.layer_norm(h, h.shape[-1:]) * scale[:, None] + shift[:, None]
                h = functional.relu(h)
        return h.squeeze(-1)


def _shared(modules: Sequence[nn.Module], name: str) -> Tensor:
    """One tensor (modules, ...) whose slices are the parameters of that name."""
    parameters = [module.get_parameter(name) for module in modules]
    stacked = torch.stack([parameter.detach() for parameter in parameters]).requires_grad_(parameters[0].requires_grad)
    for parameter, part in zip(parameters, stacked.detach(), strict=True):
        parameter.data = part
    return stacked


def with_layer_norm(critic: ContinuousCritic) -> None:
    """Put a LayerNorm behind every hidden linear layer of every Q network, in place."""
    for k, net in enumerate(critic.q_networks):
        parts: list[nn.Module] = []
        linears = [part for part in net if isinstance(part, nn.Linear)]  # type: ignore[attr-defined]
        for linear in linears[:-1]:
            parts += [linear, nn.LayerNorm(linear.out_features, device=linear.weight.device), nn.ReLU()]
        critic.q_networks[k] = nn.Sequential(*parts, linears[-1])
        setattr(critic, f"qf{k}", critic.q_networks[k])
