"""A PlainNet as one C99 file: float64, weights inside, no dependency but the standard library's <math.h>.

The numbers are written so that they read back exactly: what is compiled is the network that was certified. Weights are
stored one row per source, so that the inner loop runs over independent sums and compilers vectorise it without
reordering any. Not for -ffast-math, which removes the check of the observation.
"""

import re

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]

# of the variable z and the parameter {a}; comparisons are such that NaN stays NaN
_SIGMOID = "(1.0 / (1.0 + exp(-z)))"
_SOFTPLUS = "((z < 0.0 ? 0.0 : z) + log1p(exp(-fabs(z))))"
SCALAR: dict[str, str] = {
    "identity": "z",
    "relu": "z < 0.0 ? 0.0 : z",
    "tanh": "tanh(z)",
    "hardtanh": "z < -1.0 ? -1.0 : (z > 1.0 ? 1.0 : z)",
    "softplus": _SOFTPLUS,
    "softsign": "z / (1.0 + fabs(z))",
    "elu": "z > 0.0 ? z : {a} * expm1(z)",
    "leaky_relu": "z > 0.0 ? z : {a} * z",
    "sigmoid": _SIGMOID,
    "abs": "fabs(z)",
    "silu": f"z * {_SIGMOID}",
    "gelu": "0.5 * z * (1.0 + erf(z / 1.4142135623730951))",
    "mish": f"z * tanh{_SOFTPLUS}",
    "hardswish": "z * (z < -3.0 ? 0.0 : (z > 3.0 ? 6.0 : z + 3.0)) / 6.0",
}

_SORTED = """\
    for (int g = 0; g < {width}; g += {size})
        for (int i = g + 1; i < g + {size}; i++) {{
            const double z = {a}[i];
            int j = i;
            for (; j > g && {a}[j - 1] < z; j--) {a}[j] = {a}[j - 1];
            {a}[j] = z;
        }}
"""
_REFLECTED = """\
    for (int g = 0; g < {width}; g += {size}) {{
        double inner = 0.0;
        for (int i = g; i < g + {size}; i++) inner += {v}[i] * {a}[i];
        if (inner < 0.0)
            for (int i = g; i < g + {size}; i++) {a}[i] -= 2.0 * inner * {v}[i];
    }}
"""


def _number(value: float) -> str:
    """A literal that reads back as exactly this number."""
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return repr(float(value))


def _constant(name: str, value: Array) -> str:
    rows = ["{" + ", ".join(_number(v) for v in row) + "}" for row in np.atleast_2d(value)]
    if value.ndim == 1:
        return f"static const double {name}[{len(value)}] = {rows[0]};\n"
    body = ",\n    ".join(rows)
    return f"static const double {name}[{value.shape[0]}][{value.shape[1]}] = {{\n    {body}}};\n"


def _activate(activation: Activation, a: str, width: int, vectors: str) -> str:
    if activation.is_scalar:
        if activation.name not in SCALAR:
            raise UserError(f"activation {activation.name!r} has no C form; known: {', '.join(SCALAR)}")
        value = SCALAR[activation.name].replace("{a}", _number(activation.parameter))
        return f"    for (int i = 0; i < {width}; i++) {{ const double z = {a}[i]; {a}[i] = {value}; }}\n"
    form = _SORTED if activation.vectors is None else _REFLECTED
    return form.format(a=a, v=vectors, width=width, size=activation.group_size)


def _layers(net: PlainNet) -> tuple[str, str]:
    """The constants, and the statements that fill a1, a2, ... from the observation a0."""
    constants, body = "", ""
    for k, (row, bias) in enumerate(zip(net.blocks, net.biases, strict=True), start=1):
        width = len(bias)
        constants += _constant(f"b{k}", bias)
        body += f"    double a{k}[{width}];\n    for (int i = 0; i < {width}; i++) a{k}[i] = b{k}[i];\n"
        for j, block in row.items():
            constants += _constant(f"w{k}_{j}", block.T)
            body += f"    for (int j = 0; j < {block.shape[1]}; j++)\n"
            body += f"        for (int i = 0; i < {width}; i++) a{k}[i] += w{k}_{j}[j][i] * a{j}[j];\n"
        if k <= len(net.activations):
            activation = net.activations[k - 1]
            if activation.vectors is not None:
                constants += _constant(f"v{k}", activation.vectors.ravel())
            body += _activate(activation, f"a{k}", width, f"v{k}")
    return constants, body


def c_code(net: PlainNet, name: str = "policy") -> str:
    """C99 source of `void NAME(const double *observation, double *action)` and `const char NAME_sha256[]`.

    The function has no state and allocates nothing. An observation that is not finite gives NaN in every action.

    Args:
        net: any PlainNet. name: of the function, a C identifier.

    Raises:
        UserError: the name is not an identifier, or an activation has no C form.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UserError(f"the name of a C function is made of letters, digits and underscores, found {name!r}")
    (constants, body), n, m = _layers(net), net.input_size, net.output_size
    output, limits = f"a{len(net.blocks)}", ""
    for limit, sign in (("low", "<"), ("high", ">")):
        value = getattr(net, limit)
        if value is not None:
            constants += _constant(limit, np.broadcast_to(value, m))
            limits += (
                f"    for (int i = 0; i < {m}; i++) if ({output}[i] {sign} {limit}[i]) {output}[i] = {limit}[i];\n"
            )
    signals = "".join(
        f" *   {kind}[{i}]: {re.sub('[^ -~]|[*]/', '?', text)}\n"
        for kind, names in (("observation", net.input_names), ("action", net.output_names))
        for i, text in enumerate(names)
    )
    return (
        f"/* A policy with {n} inputs and {m} outputs in raw units, written by lipctrl. C99, float64, no state.\n"
        f" * Compile with -O3, not with -ffast-math. The certificate beside this file holds for these numbers.\n"
        f"{signals} */\n#include <math.h>\n\nvoid {name}(const double *observation, double *action);\n"
        f'extern const char {name}_sha256[];\nconst char {name}_sha256[] = "{net.sha256()}";\n\n{constants}\n'
        f"void {name}(const double *observation, double *action)\n{{\n"
        f"    double a0[{n}];\n    for (int i = 0; i < {n}; i++) {{\n"
        f"        a0[i] = observation[i];\n        if (!isfinite(a0[i])) {{\n"
        f"            for (int k = 0; k < {m}; k++) action[k] = NAN;\n            return;\n        }}\n    }}\n"
        f"{body}{limits}    for (int i = 0; i < {m}; i++) action[i] = {output}[i];\n}}\n"
    )
