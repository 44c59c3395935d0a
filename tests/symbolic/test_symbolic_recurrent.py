"""Recurrent torch modules against torch itself: one step and a horizon, values and Jacobians to 1e-10, refusals."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from lipctrl.files import UserError
from lipctrl.symbolic.recurrent import RECURRENT, Recurrence, step_to_casadi, unrolled_to_casadi

INPUTS, HIDDEN, STEPS = 3, 5, 7
STACKS = {
    "RNN tanh": lambda layers, bias: nn.RNN(INPUTS, HIDDEN, layers, bias=bias),
    "RNN relu": lambda layers, bias: nn.RNN(INPUTS, HIDDEN, layers, bias=bias, nonlinearity="relu"),
    "GRU": lambda layers, bias: nn.GRU(INPUTS, HIDDEN, layers, bias=bias),
    "LSTM": lambda layers, bias: nn.LSTM(INPUTS, HIDDEN, layers, bias=bias, batch_first=True),
}
CELLS = {
    "RNNCell": lambda: nn.RNNCell(INPUTS, HIDDEN, nonlinearity="relu"),
    "GRUCell": lambda: nn.GRUCell(INPUTS, HIDDEN),
    "LSTMCell": lambda: nn.LSTMCell(INPUTS, HIDDEN, bias=False),
}


def torch_map(module: nn.Module, layers: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x (T, n), s (states,)) -> (y (T, m), last s): torch's own forward pass."""

    def run(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(module, nn.LSTM):
            h, c = s.reshape(2, layers, HIDDEN)
            y, (h, c) = module(x, (h.clone(), c.clone()))
            return y, torch.cat([h.flatten(), c.flatten()])
        y, h = module(x, s.reshape(layers, HIDDEN))
        return y, h.flatten()

    return run


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", STACKS)
def test_horizon_equals_torch(name: str, layers: int, bias: bool) -> None:
    torch.manual_seed(layers)
    module = STACKS[name](layers, bias).double()
    states = layers * HIDDEN * (2 if name == "LSTM" else 1)
    rng = np.random.default_rng(0)
    function = unrolled_to_casadi(module, STEPS)
    # one factory each: CasADi's factory fails for several Jacobians of matrices at once
    names = ("jac:y:x", "jac:y:s", "jac:s_next:x", "jac:s_next:s")
    derivatives = [function.factory("derivative", ["x", "s"], [name]) for name in names]
    for scale in (1.0, 10.0):
        x, s = scale * rng.normal(size=(STEPS, INPUTS)), scale * rng.normal(size=states)
        run = torch_map(module, layers)
        with torch.no_grad():
            expected_y, expected_s = run(torch.from_numpy(x), torch.from_numpy(s))
        y, s_next = (np.asarray(value) for value in function(x.T, s))
        np.testing.assert_allclose(y.T, expected_y.numpy(), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(s_next[:, -1], expected_s.numpy(), rtol=1e-10, atol=1e-10)
        expected = jacobian(run, (torch.from_numpy(x), torch.from_numpy(s)))
        found = [np.asarray(derivative(x.T, s)) for derivative in derivatives]
        # CasADi orders a matrix column by column: entries of one time step together, as torch's rows
        np.testing.assert_allclose(found[0], expected[0][0].reshape(STEPS * HIDDEN, -1), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found[1], expected[0][1].reshape(STEPS * HIDDEN, -1), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found[2][-states:], expected[1][0].reshape(states, -1), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found[3][-states:], expected[1][1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_cells_equal_torch(name: str) -> None:
    torch.manual_seed(0)
    module = CELLS[name]().double()
    lstm = name == "LSTMCell"

    def run(x: Tensor, s: Tensor) -> Tensor:
        return torch.cat(module(x, (s[:HIDDEN], s[HIDDEN:]))) if lstm else module(x, s)

    function = step_to_casadi(module)
    derivatives = function.factory("derivatives", ["x", "s"], ["jac:s_next:x", "jac:s_next:s"])
    rng = np.random.default_rng(0)
    for _ in range(5):
        x, s = rng.normal(size=INPUTS), rng.normal(size=HIDDEN * (1 + lstm))
        y, s_next = (np.asarray(value).ravel() for value in function(x, s))
        expected = run(torch.from_numpy(x), torch.from_numpy(s)).detach().numpy()
        np.testing.assert_allclose(s_next, expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(y, s_next[:HIDDEN])
        slopes = jacobian(run, (torch.from_numpy(x), torch.from_numpy(s)))
        for found, slope in zip(derivatives(x, s), slopes, strict=True):
            np.testing.assert_allclose(np.asarray(found), slope.numpy(), rtol=1e-10, atol=1e-10)


def test_horizon_is_the_step_repeated_and_states_are_all_returned() -> None:
    module = nn.GRU(INPUTS, HIDDEN, 2).double()
    step, unrolled = step_to_casadi(module), unrolled_to_casadi(module, STEPS)
    x, s = np.random.default_rng(0).normal(size=(INPUTS, STEPS)), np.zeros(2 * HIDDEN)
    outputs, states = (np.asarray(value) for value in unrolled(x, s))
    for k in range(STEPS):
        y, s = (np.asarray(value).ravel() for value in step(x[:, k], s))
        np.testing.assert_allclose(outputs[:, k], y, rtol=1e-14)
        np.testing.assert_allclose(states[:, k], s, rtol=1e-14)


def test_a_module_of_ones_own_needs_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaky(nn.Module):
        """h+ = h / 2 + x, y = h+."""

    def leaky(_: nn.Module) -> Recurrence:
        return Recurrence(1, 1, lambda x, s: (s / 2 + x, s / 2 + x))

    with pytest.raises(UserError, match="Leaky has no symbolic recurrence; supported: RNN, RNNCell, GRU"):
        unrolled_to_casadi(Leaky(), 3)
    monkeypatch.setitem(RECURRENT, Leaky, leaky)
    y, _ = unrolled_to_casadi(Leaky(), 3)(np.ones((1, 3)), 0.0)
    np.testing.assert_allclose(np.asarray(y).ravel(), [1.0, 1.5, 1.75])


def test_what_is_not_finite_stays_visible() -> None:
    step = step_to_casadi(nn.RNN(INPUTS, HIDDEN, nonlinearity="relu"))
    for x, s in (([np.nan, 0, 0], np.zeros(HIDDEN)), (np.zeros(INPUTS), np.full(HIDDEN, np.inf))):
        assert all(np.isnan(np.asarray(value)).all() for value in step(x, s))


def test_refusals() -> None:
    for module in (nn.GRU(3, 4, bidirectional=True), nn.LSTM(3, 4, proj_size=2)):
        with pytest.raises(UserError, match="neither bidirectional nor projected"):
            step_to_casadi(module)
    with pytest.raises(UserError, match="at least one step"):
        unrolled_to_casadi(nn.GRU(3, 4), 0)
    with pytest.raises(UserError, match="letters"):
        step_to_casadi(nn.GRU(3, 4), "a b")
