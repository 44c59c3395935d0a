"""Recurrent torch modules as CasADi functions: one step, and unrolled over a horizon. Equal to torch in float64.

A module type is supported by one entry in `RECURRENT`, a function from the module to its `Recurrence`. The state is one
vector: for RNN and GRU the hidden states of all layers, for LSTM those and then the cell states of all layers, which is
the order of torch's h and c.
"""

from collections.abc import Callable
from dataclasses import dataclass

import casadi as ca
import numpy as np
from numpy.typing import NDArray
from torch import nn

from lipctrl.files import UserError
from lipctrl.symbolic.modules import array
from lipctrl.symbolic.network import SCALAR, check_name, nan_unless_finite

Array = NDArray[np.float64]
Pair = tuple[ca.MX, ca.MX]
Torch = nn.RNNBase | nn.RNNCellBase


@dataclass(frozen=True)
class Recurrence:
    """A recurrent map: number of inputs, number of states, and step(x, s) -> (y, s+) of columns."""

    inputs: int
    states: int
    step: Callable[[ca.MX, ca.MX], Pair]


@dataclass(frozen=True)
class _Layer:
    """W_ih (g h, n), W_hh (g h, h) and their biases, of a layer with g gates."""

    inward: Array
    recurrent: Array
    inward_bias: Array
    recurrent_bias: Array

    def gates(self, x: ca.MX, h: ca.MX) -> list[Pair]:
        """W_ih x + b_ih and W_hh h + b_hh of each gate."""
        first = ca.mtimes(ca.DM(self.inward), x) + ca.DM(self.inward_bias)
        second = ca.mtimes(ca.DM(self.recurrent), h) + ca.DM(self.recurrent_bias)
        return list(zip(ca.vertsplit(first, h.size1()), ca.vertsplit(second, h.size1()), strict=True))


def _sigmoid(z: ca.MX) -> ca.MX:
    return SCALAR["sigmoid"](z, 0.0)


def _layers(module: Torch) -> list[_Layer]:
    """The layers of a torch recurrent module, or the one of a cell."""
    suffixes = [""] if isinstance(module, nn.RNNCellBase) else [f"_l{k}" for k in range(module.num_layers)]
    if isinstance(module, nn.RNNBase) and (module.bidirectional or module.proj_size):
        raise UserError(f"{module} has no symbolic form: it must be neither bidirectional nor projected")
    found = []
    for suffix in suffixes:
        inward, recurrent = (array(getattr(module, f"weight_{kind}{suffix}")) for kind in ("ih", "hh"))
        biases = [np.zeros(len(inward))] * 2
        if module.bias:
            biases = [array(getattr(module, f"bias_{kind}{suffix}")) for kind in ("ih", "hh")]
        found.append(_Layer(inward, recurrent, *biases))
    return found


def _stack(module: Torch, cell: Callable[[_Layer, ca.MX, ca.MX], ca.MX]) -> Recurrence:
    """Layers whose state is their output: cell(layer, x, h) -> h+."""
    layers, size = _layers(module), module.hidden_size

    def step(x: ca.MX, state: ca.MX) -> Pair:
        after = []
        for layer, h in zip(layers, ca.vertsplit(state, size), strict=True):
            x = cell(layer, x, h)
            after.append(x)
        return x, ca.vertcat(*after)

    return Recurrence(module.input_size, size * len(layers), step)


def _rnn(module: nn.Module) -> Recurrence:
    assert isinstance(module, nn.RNN | nn.RNNCell)
    activation = SCALAR[module.nonlinearity]

    def cell(layer: _Layer, x: ca.MX, h: ca.MX) -> ca.MX:
        ((inward, recurrent),) = layer.gates(x, h)
        return activation(inward + recurrent, 0.0)

    return _stack(module, cell)


def _gru(module: nn.Module) -> Recurrence:
    assert isinstance(module, nn.GRU | nn.GRUCell)

    def cell(layer: _Layer, x: ca.MX, h: ca.MX) -> ca.MX:
        reset, update, new = layer.gates(x, h)
        z = _sigmoid(update[0] + update[1])
        return (1 - z) * ca.tanh(new[0] + _sigmoid(reset[0] + reset[1]) * new[1]) + z * h

    return _stack(module, cell)


def _lstm(module: nn.Module) -> Recurrence:
    assert isinstance(module, nn.LSTM | nn.LSTMCell)
    layers, size = _layers(module), module.hidden_size

    def step(x: ca.MX, state: ca.MX) -> Pair:
        parts, hidden, cells = ca.vertsplit(state, size), [], []
        for layer, h, c in zip(layers, parts[: len(layers)], parts[len(layers) :], strict=True):
            i, f, g, o = (inward + recurrent for inward, recurrent in layer.gates(x, h))
            cells.append(_sigmoid(f) * c + _sigmoid(i) * ca.tanh(g))
            x = _sigmoid(o) * ca.tanh(cells[-1])
            hidden.append(x)
        return x, ca.vertcat(*hidden, *cells)

    return Recurrence(module.input_size, 2 * size * len(layers), step)


RECURRENT: dict[type[nn.Module], Callable[[nn.Module], Recurrence]] = {
    nn.RNN: _rnn,
    nn.RNNCell: _rnn,
    nn.GRU: _gru,
    nn.GRUCell: _gru,
    nn.LSTM: _lstm,
    nn.LSTMCell: _lstm,
}


def step_to_casadi(module: nn.Module, name: str = "step") -> ca.Function:
    """One step of a recurrent module in evaluation mode as a function (x, s) -> (y, s_next) of columns.

    Numbers that are not finite give NaN in every output.

    Raises:
        UserError: a module without an entry in `RECURRENT`, bidirectional or projected, or a bad name.
    """
    check_name(name)
    if type(module) not in RECURRENT:
        known = ", ".join(kind.__name__ for kind in RECURRENT)
        raise UserError(f"{type(module).__name__} has no symbolic recurrence; supported: {known}")
    recurrence = RECURRENT[type(module)](module)
    x, s = ca.MX.sym("x", recurrence.inputs), ca.MX.sym("s", recurrence.states)
    everything = ca.vertcat(x, s)
    outputs = [nan_unless_finite(value, everything) for value in recurrence.step(x, s)]
    return ca.Function(name, [x, s], outputs, ["x", "s"], ["y", "s_next"])


def unrolled_to_casadi(module: nn.Module, steps: int, name: str = "unrolled") -> ca.Function:
    """A recurrent module over a horizon as a function (x, s) -> (y, s_next).

    Args:
        module: as for `step_to_casadi`.
        steps: length T of the horizon.
        name: of the function.

    Returns:
        The function of inputs x (n, T) and first state s (states, 1), with outputs y (m, T) and states after each step
        s_next (states, T).

    Raises:
        UserError: as for `step_to_casadi`, or less than one step.
    """
    check_name(name)
    if steps < 1:
        raise UserError(f"an unrolled module needs at least one step, found {steps}")
    step = step_to_casadi(module, f"{name}_step")
    x, s = ca.MX.sym("x", step.size1_in(0), steps), ca.MX.sym("s", step.size1_in(1))
    outputs, states = [], [s]
    # calls one after the other: the Jacobian of CasADi's mapaccum takes 1.5 to 1.9 times as long
    for k in range(steps):
        y, after = step(x[:, k], states[-1])
        outputs.append(y)
        states.append(after)
    return ca.Function(name, [x, s], [ca.horzcat(*outputs), ca.horzcat(*states[1:])], ["x", "s"], ["y", "s_next"])
