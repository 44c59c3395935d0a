"""Networks of one structure as one function of their stacked parameters: agents, twin critics, in one batched product.

`Stacked` puts the parameters of all modules along a leading axis and makes every module's own parameter a slice of that
memory. Nothing is copied: what an update writes into the stack is what the modules, their `state_dict` and
Stable-Baselines3's `save`, `load` and `predict` see, and what is loaded into a module is in the stack.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.utils._pytree import tree_map

from lipctrl.nn.graph import GraphNet, Weights


class Stacked:
    """Modules of one structure, evaluated together.

    Args:
        modules: of equal structure; the parameters of each become slices of `leaves`. Buffers are the first one's.
        reduced: multiply the matrices of ordinary layers in bfloat16, 8 bits of precision, and add up in float32;
            parameters, gradients of parameters and everything else stay float32, and so do bounded networks whole.

    Attributes:
        names: of the parameters, in the order of `leaves`.
        leaves: one tensor (modules, ...) per parameter.
    """

    def __init__(self, modules: Sequence[nn.Module], *, reduced: bool = False) -> None:
        self.count, self.leaves, self.reduced = len(modules), list[Tensor](), reduced
        self._parts = _sequence(modules[0])
        self._structure = copy.deepcopy(modules[0]).train()  # in training nothing is cached
        if isinstance(self._structure, GraphNet):
            self._maps = _Maps(self._structure)
        self.names = [name for name, leaf in modules[0].named_parameters() if leaf.requires_grad]
        for name in self.names:
            parameters = [module.get_parameter(name) for module in modules]
            stacked = torch.stack([parameter.detach() for parameter in parameters])
            for parameter, part in zip(parameters, stacked, strict=True):
                parameter.data = part
            self.leaves.append(stacked)

    def __call__(self, leaves: Sequence[Tensor], x: Tensor) -> Any:
        """What the modules return for inputs of their own, with a leading axis.

        Args:
            leaves: parameters in the place of the stored ones, of the same shapes.
            x: (modules, batch, n).
        """
        if isinstance(self._structure, GraphNet):  # takes a leading axis itself
            return self._one(leaves, x)
        if self._parts is None:
            return vmap(self._one)(tuple(leaves), x)
        h, rest = x.transpose(1, 2), iter(leaves)  # (modules, features, batch): gradients come in the weights' order
        for part in self._parts:
            if isinstance(part, nn.Linear):
                weight, bias = next(rest), next(rest)
                h = _product(weight, h, bias[..., None], reduced=self.reduced)
            elif isinstance(part, nn.LayerNorm):
                scale, shift = next(rest), next(rest)
                normal = functional.layer_norm(h.transpose(1, 2), h.shape[1:2], eps=part.eps).transpose(1, 2)
                h = normal * scale[..., None] + shift[..., None]
            else:
                h = part(h)
        return h.transpose(1, 2)

    def _one(self, parameters: Sequence[Tensor], x: Tensor) -> Any:
        return functional_call(self._structure, dict(zip(self.names, parameters, strict=True)), (x,))

    def maps(self, leaves: Sequence[Tensor]) -> Weights:
        """Of bounded networks with these parameters, each map with a leading axis."""
        named = {f"net.{name}": leaf for name, leaf in zip(self.names, leaves, strict=True)}
        return functional_call(self._maps, named, ())  # type: ignore[no-any-return]

    def matrices(self) -> list[int]:
        """Which of `leaves` are the matrices of linear layers, from the input to the output."""
        linear = {f"{name}.weight" for name, part in self._structure.named_modules() if isinstance(part, nn.Linear)}
        return [k for k, name in enumerate(self.names) if name in linear]


class _Maps(nn.Module):
    """The maps of a bounded network as the value of a module, for `functional_call`."""

    def __init__(self, net: GraphNet) -> None:
        super().__init__()
        self.net = net

    def forward(self) -> Weights:
        """In single precision."""
        return self.net.weights(torch.float32)


def _product(weight: Tensor, h: Tensor, bias: Tensor, *, reduced: bool) -> Tensor:
    """weight h + bias for stacks of matrices (modules, out, in), (modules, in, batch) and (modules, out, 1)."""
    if not reduced:
        if short := _missing(weight.shape[-1]):
            weight, h = functional.pad(weight, (0, short)), functional.pad(h, (0, 0, 0, short))
        return torch.baddbmm(bias, weight, h)
    return torch.bmm(weight.bfloat16(), h.bfloat16()).float() + bias


def _missing(inputs: int) -> int:
    """Zeros to be added to few inputs: without, the gradient of their weights takes up to four times as long.

    More inputs, and products in bfloat16, do not gain from it.
    """
    return max(16 - inputs, -inputs % 8) if inputs < 32 and torch.compiler.is_compiling() else 0


def _sequence(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a module that is one ordinary layer after the other, which spares the cost of `vmap`; else None."""
    parts = list(module) if isinstance(module, nn.Sequential) else [module]
    if any(isinstance(part, nn.Linear | nn.LayerNorm) and part.bias is None for part in parts):
        return None
    known = all(isinstance(part, nn.Linear | nn.LayerNorm | nn.ReLU | nn.Tanh) for part in parts)
    return copy.deepcopy(parts) if known else None


def gradients(function: Callable[[list[Tensor]], tuple[Tensor, Any]], leaves: list[Tensor]) -> tuple[list[Tensor], Any]:
    """Gradients of a scalar function of tensors, and what else it returns, without gradient.

    `torch.func.grad` is what the compiler takes; without it `torch.autograd.grad` is faster.
    """
    if torch.compiler.is_compiling():
        return torch.func.grad(function, has_aux=True)(leaves)  # type: ignore[no-any-return]
    with torch.enable_grad():
        points = [leaf.detach().requires_grad_() for leaf in leaves]
        value, other = function(points)
        found = list(torch.autograd.grad(value, points))
    return found, tree_map(lambda part: part.detach(), other)
