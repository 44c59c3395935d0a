"""A NaN observation must not come out as a valid action."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.nn.activations import SCALAR
from lipctrl.nn.plain import PlainNet
from lipctrl.symbolic.network import to_casadi


@pytest.mark.parametrize("activation", [*SCALAR, "maxmin", "groupsort:4"])
@pytest.mark.parametrize("limited", [False, True])
def test_what_is_not_finite_stays_visible(activation: str, limited: bool) -> None:
    r = np.random.default_rng(0)
    net = PlainNet.mlp([r.normal(size=(4, 3)), r.normal(size=(2, 4))], [np.ones(4), np.ones(2)], activation)
    if limited:
        net = replace(net, low=-np.ones(2), high=np.ones(2))
    function = to_casadi(net)
    for bad in (np.nan, np.inf, -np.inf):
        for position in range(3):
            x = np.ones(3)
            x[position] = bad
            assert np.isnan(np.asarray(function(x))).all()
    assert np.isfinite(np.asarray(function(np.ones(3)))).all()
