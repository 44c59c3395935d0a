"""Feed-forward torch modules against torch itself: values and Jacobians to 1e-10, many columns, refusals."""

import casadi as ca
import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian

from lipctrl.files import UserError
from lipctrl.nn.network import FAMILIES, lipschitz_mlp
from lipctrl.symbolic.modules import ACTIVATIONS, EXPRESSIONS, module_to_casadi


def stack(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 8, bias=False), activation)
    return nn.Sequential(nn.Linear(3, 8), activation, inner, nn.Linear(8, 8), nn.Linear(8, 2)).double()


def assert_equals_torch(module: nn.Module, inputs: int, scale: float = 3.0) -> None:
    points = scale * np.random.default_rng(0).normal(size=(12, inputs))
    function = module_to_casadi(module, inputs=inputs)
    derivative = function.factory("derivative", ["x"], ["jac:y:x"])
    batched = np.asarray(module_to_casadi(module, inputs=inputs, columns=12)(points.T)).T
    with torch.no_grad():
        expected = module(torch.from_numpy(points)).numpy()
    values = np.array([np.asarray(function(x)).ravel() for x in points])
    np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(batched, expected, rtol=1e-10, atol=1e-10)
    for x in points:
        slope = jacobian(lambda z: module(z[None])[0], torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(np.asarray(derivative(x)), slope, rtol=1e-10, atol=1e-10)


DEFAULTS = [kind() for kind in ACTIVATIONS]
OTHERS = [nn.Softplus(), nn.Softplus(beta=2.0, threshold=5.0), nn.ELU(), nn.ELU(0.7), nn.LeakyReLU(), nn.LeakyReLU(0.3)]


@pytest.mark.parametrize("activation", [*DEFAULTS, *OTHERS], ids=repr)
def test_stacks_of_every_activation(activation: nn.Module) -> None:
    assert_equals_torch(stack(activation), 3)
    assert_equals_torch(stack(activation), 3, scale=30.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_lipschitz_family(family: str) -> None:
    lip = None if family == "unconstrained" else 2.0
    module = lipschitz_mlp(family, (3, 8, 8, 2), lip, seed=0).double().eval()
    assert_equals_torch(module, 3)
    assert_equals_torch(nn.Sequential(module, nn.Tanh()), 3)


def test_what_was_tested_is_what_is_supported() -> None:
    tested = {type(module) for module in [*DEFAULTS, *OTHERS]} | {nn.Linear, nn.Sequential}
    assert tested == set(EXPRESSIONS)


def test_other_modules_are_refused_by_name() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    for module, name in (
        (nn.LayerNorm(3), "LayerNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.1)), "Dropout"),
        (Doubled(3, 3), "Doubled"),
        (nn.LSTM(3, 3), "LSTM"),
    ):
        with pytest.raises(UserError, match=f"{name} has no symbolic form; supported: lipctrl's networks, Linear"):
            module_to_casadi(module, inputs=3)


def test_settings_without_symbolic_form_are_refused() -> None:
    for module in (nn.GELU("tanh"), nn.Hardtanh(-2.0, 2.0)):
        with pytest.raises(UserError, match="default settings"):
            module_to_casadi(module, inputs=3)
    with pytest.raises(UserError, match="does not take 4 inputs"):
        module_to_casadi(nn.Linear(3, 2), inputs=4)
    with pytest.raises(UserError, match="letters"):
        module_to_casadi(nn.Linear(3, 2), "a b", inputs=3)
    with pytest.raises(UserError, match="at least one column"):
        module_to_casadi(nn.Linear(3, 2), inputs=3, columns=0)


def test_what_is_not_finite_stays_visible_in_its_column() -> None:
    points = np.ones((3, 4))
    points[1, 2] = np.nan
    values = np.asarray(module_to_casadi(stack(nn.ReLU()), inputs=3, columns=4)(points))
    assert np.isnan(values[:, 2]).all() and np.isfinite(values[:, [0, 1, 3]]).all()


def test_later_training_does_not_change_the_function() -> None:
    module = nn.Linear(2, 1).double()
    function = module_to_casadi(module, inputs=2)
    before = float(function(ca.DM([1.0, 2.0])))
    nn.init.zeros_(module.weight)
    assert float(function(ca.DM([1.0, 2.0]))) == before != module.bias.item()
