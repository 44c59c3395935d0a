"""The rewritten network is the network."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.scalar_form import Affine, scalar_form
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet


def evaluate(affine: Affine, values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return sum((values[j] @ block.mid.T for j, block in affine.blocks.items()), affine.bias.mid[:, 0])


def test_values_are_those_of_the_network(cases: Callable) -> None:
    for case in cases(300):
        form, values = scalar_form(case.net), [case.points]
        for step in form.steps:
            values.append(step.activation(evaluate(step.argument, values)))
        for z, affine in zip(case.net.preactivations(case.points), form.preactivations, strict=True):
            np.testing.assert_allclose(evaluate(affine, values), z, rtol=1e-9, atol=1e-9 * np.abs(z).max())


def test_scalar_layers_stay_as_stored() -> None:
    w = [np.random.default_rng(0).normal(size=s) for s in ((3, 2), (3, 3), (1, 3))]
    form = scalar_form(PlainNet.mlp(w, [np.ones(len(m)) for m in w], [Activation("tanh"), Activation("identity")]))
    assert len(form.steps) == 1 and form.steps[0].layer == 1
    assert (form.steps[0].argument.blocks[0].mid == w[0]).all() and not form.steps[0].argument.blocks[0].rad.any()
    np.testing.assert_allclose(form.preactivations[-1].blocks[1].mid, w[2] @ w[1])
