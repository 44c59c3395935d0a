"""Feed-forward torch modules as CasADi functions, equal to torch in float64.

A module type is supported by one entry in `EXPRESSIONS`, a function from the module and a symbolic input to the output;
everything else is refused. Recurrent modules are in `symbolic.recurrent`.
"""

from collections.abc import Callable

import casadi as ca
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lipctrl.files import UserError
from lipctrl.nn.graph import GraphNet
from lipctrl.symbolic.network import SCALAR, check_name, nan_unless_finite, network_expression

Array = NDArray[np.float64]
Expression = Callable[[nn.Module, ca.MX], ca.MX]
ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.GELU: "gelu", nn.Hardswish: "hardswish", nn.Hardtanh: "hardtanh", nn.Identity: "identity", nn.Mish: "mish",
    nn.ReLU: "relu", nn.SiLU: "silu", nn.Sigmoid: "sigmoid", nn.Softsign: "softsign", nn.Tanh: "tanh",
}  # fmt: skip


def array(tensor: Tensor) -> Array:
    """A weight in float64."""
    return np.asarray(tensor.detach().cpu().double().numpy())


def _graph_net(module: nn.Module, x: ca.MX) -> ca.MX:
    assert isinstance(module, GraphNet)
    return network_expression(module.to_plain(), x)


def _linear(module: nn.Module, x: ca.MX) -> ca.MX:
    assert isinstance(module, nn.Linear)
    if module.in_features != x.size1():
        raise UserError(f"{module} does not take {x.size1()} inputs")
    y = ca.mtimes(ca.DM(array(module.weight)), x)
    # torch's annotation does not say that the bias may be missing
    return y if module.bias is None else y + ca.repmat(ca.DM(array(module.bias)), 1, x.size2())


def _sequential(module: nn.Module, x: ca.MX) -> ca.MX:
    for part in module.children():
        x = expression(part, x)
    return x


def _activation(module: nn.Module, x: ca.MX) -> ca.MX:
    if module.extra_repr() not in ("inplace=True", type(module)().extra_repr()):
        raise UserError(f"{module} has no symbolic form; {type(module).__name__} is supported with default settings")
    return SCALAR[ACTIVATIONS[type(module)]](x, 0.0)


def _softplus(module: nn.Module, x: ca.MX) -> ca.MX:
    """Beyond the threshold torch returns z itself, which differs by up to 2e-9 with the default one."""
    assert isinstance(module, nn.Softplus)
    scaled = module.beta * x
    return ca.if_else(scaled > module.threshold, x, SCALAR["softplus"](scaled, 0.0) / module.beta)


def _sloped(module: nn.Module, x: ca.MX) -> ca.MX:
    if isinstance(module, nn.ELU):
        return SCALAR["elu"](x, module.alpha)
    assert isinstance(module, nn.LeakyReLU)
    return SCALAR["leaky_relu"](x, module.negative_slope)


EXPRESSIONS: dict[type[nn.Module], Expression] = {
    nn.Linear: _linear,
    nn.Sequential: _sequential,
    nn.Softplus: _softplus,
    nn.ELU: _sloped,
    nn.LeakyReLU: _sloped,
    **dict.fromkeys(ACTIVATIONS, _activation),
}


def expression(module: nn.Module, x: ca.MX) -> ca.MX:
    """A module at the columns of x (n, columns), shape (m, columns).

    Raises:
        UserError: no entry in `EXPRESSIONS` for exactly this type, or settings or sizes that the entry does not take.
    """
    if isinstance(module, GraphNet):
        return _graph_net(module, x)
    # a subclass of a torch layer may compute something else
    if type(module) not in EXPRESSIONS:
        known = ", ".join(kind.__name__ for kind in EXPRESSIONS)
        raise UserError(
            f"{type(module).__name__} has no symbolic form; supported: lipctrl's networks, {known}, and the recurrent "
            "modules of lipctrl.symbolic.recurrent"
        )
    return EXPRESSIONS[type(module)](module, x)


def module_to_casadi(module: nn.Module, name: str = "network", *, inputs: int, columns: int = 1) -> ca.Function:
    """A feed-forward module as a function (x,) -> (y,), with its weights as they are now, in float64.

    An input that is not finite gives NaN in every output of its column.

    Args:
        module: see `EXPRESSIONS`, and every network of lipctrl.
        name: name of the function and of its C code: letters, digits and single underscores.
        inputs: number of inputs n.
        columns: inputs of one call, as for `to_casadi`: x (n, columns) gives y (m, columns).

    Raises:
        UserError: a part without symbolic form, another number of inputs, or a bad name or number of columns.
    """
    check_name(name)
    if columns < 1:
        raise UserError(f"a symbolic network needs at least one column, found {columns}")
    x = ca.MX.sym("x", inputs, columns)
    return ca.Function(name, [x], [nan_unless_finite(expression(module, x), x)], ["x"], ["y"])
