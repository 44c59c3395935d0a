"""A PlainNet as a CasADi function: the same map, with exact derivatives, inside an optimisation problem or as C code.

MX with the weights as constants: one matrix product per block, which deep expression graphs of scalars (SX) are
slower than at network sizes. Values are those of `PlainNet.__call__`; at a kink the derivative is the one-sided one
that the activation declares.
"""

from collections.abc import Callable

import casadi as ca
import numpy as np

from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet

SATURATED = 40.0  # log(1 + e^40) = 40 in double precision, and e^40 is far from overflow

Pointwise = Callable[[ca.MX, float], ca.MX]


def _sigmoid(z: ca.MX) -> ca.MX:
    # through tanh: 1 / (1 + e^-z) has a derivative inf / inf far below zero
    return 0.5 * (1 + ca.tanh(0.5 * z))


def _softplus(z: ca.MX) -> ca.MX:
    return ca.log1p(ca.exp(ca.fmin(z, SATURATED))) + ca.fmax(z - SATURATED, 0)


def _clip(z: ca.MX, low: float, high: float) -> ca.MX:
    return ca.if_else(z <= low, low, ca.if_else(z >= high, high, z))


SCALAR: dict[str, Pointwise] = {
    "identity": lambda z, _: z,
    "relu": lambda z, _: ca.if_else(z > 0, z, 0),
    "tanh": lambda z, _: ca.tanh(z),
    "hardtanh": lambda z, _: _clip(z, -1, 1),
    "softplus": lambda z, _: _softplus(z),
    "softsign": lambda z, _: z / (1 + ca.fabs(z)),
    # the exponential of the branch not taken must not overflow
    "elu": lambda z, a: ca.if_else(z > 0, z, a * ca.expm1(ca.if_else(z > 0, 0, z))),
    "leaky_relu": lambda z, a: ca.if_else(z > 0, z, a * z),
    "sigmoid": lambda z, _: _sigmoid(z),
    "abs": lambda z, _: ca.fabs(z),
    "silu": lambda z, _: z * _sigmoid(z),
    "gelu": lambda z, _: 0.5 * z * (1 + ca.erf(z / np.sqrt(2))),
    "mish": lambda z, _: z * ca.tanh(_softplus(z)),
    "hardswish": lambda z, _: z * _clip(z + 3, 0, 6) / 6,
}


def _sorted_descending(rows: list[ca.MX]) -> list[ca.MX]:
    """Rows sorted entry by entry by odd-even transposition, which needs as many rounds as rows."""
    rows = list(rows)
    for turn in range(len(rows)):
        for i in range(turn % 2, len(rows) - 1, 2):
            first, second = rows[i], rows[i + 1]
            ordered = first >= second  # ties stay in order, so that the derivative is a permutation
            rows[i], rows[i + 1] = ca.if_else(ordered, first, second), ca.if_else(ordered, second, first)
    return rows


def _grouped(activation: Activation, z: ca.MX) -> ca.MX:
    size, (rows, columns) = activation.group_size, z.shape
    groups = ca.reshape(z, size, rows // size * columns)  # one group per column, one input after the other
    if activation.vectors is None:
        return ca.reshape(ca.vertcat(*_sorted_descending(ca.vertsplit(groups))), rows, columns)
    vectors = ca.repmat(ca.DM(np.ascontiguousarray(activation.vectors.T)), 1, columns)
    inner = ca.sum1(groups * vectors)
    reflected = groups - 2 * ca.repmat(ca.if_else(inner < 0, inner, 0), size, 1) * vectors
    return ca.reshape(reflected, rows, columns)


def _activate(activation: Activation, z: ca.MX) -> ca.MX:
    if not activation.is_scalar:
        return _grouped(activation, z)
    if activation.name not in SCALAR:
        raise UserError(f"activation {activation.name!r} has no symbolic form; known: {', '.join(SCALAR)}")
    return SCALAR[activation.name](z, activation.parameter)


def check_name(name: str) -> None:
    """Refuse a function name that CasADi and C do not take."""
    if not ca.Function.check_name(name):
        raise UserError(f"a function name is made of letters, digits and single underscores, found {name!r}")


def nan_unless_finite(y: ca.MX, x: ca.MX) -> ca.MX:
    """Each column of y (m, columns), or NaN where that column of x (n, columns) holds a number that is not finite.

    Comparisons, fmin and fmax would turn a NaN observation into a valid action: it must stay NaN.
    """
    return ca.if_else(ca.repmat(ca.sum1(x * x) < np.inf, y.size1(), 1), y, np.nan)


def network_expression(net: PlainNet, x: ca.MX) -> ca.MX:
    """The network at the columns of x (n_0, columns), shape (m, columns)."""
    columns, values = x.size2(), [x]
    for k, row in enumerate(net.blocks):
        z = ca.MX(ca.repmat(ca.DM(net.biases[k]), 1, columns))
        for j, block in row.items():
            z = z + ca.mtimes(ca.DM(block), values[j])
        values.append(_activate(net.activations[k], z) if k < len(net.activations) else z)
    y = values[-1]
    if net.high is not None:
        y = ca.fmin(y, ca.repmat(ca.DM(net.high), 1, columns))
    if net.low is not None:
        y = ca.fmax(y, ca.repmat(ca.DM(net.low), 1, columns))
    return nan_unless_finite(y, x)


def to_casadi(net: PlainNet, name: str = "policy", *, columns: int = 1) -> ca.Function:
    """The network as a function (x,) -> (y,) of columns, in raw units, clipped to the network's limits.

    An input that is not finite gives NaN in every output of its column, in CasADi and in generated C code.

    Args:
        net: any PlainNet, with skips as well.
        name: name of the function and of its C code: letters, digits and single underscores.
        columns: inputs of one call: x of shape (n_0, columns) gives y of shape (m, columns). One matrix product per
            layer for a whole horizon is faster than a call per stage, in values and in derivatives.

    Raises:
        UserError: the name is not one that CasADi accepts, or there is no column.
    """
    check_name(name)
    if columns < 1:
        raise UserError(f"a symbolic network needs at least one column, found {columns}")
    x = ca.MX.sym("x", net.input_size, columns)
    return ca.Function(name, [x], [network_expression(net, x)], ["x"], ["y"])
