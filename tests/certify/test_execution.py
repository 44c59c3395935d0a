"""The execution term against exact rational arithmetic, extended precision and other orders of summation."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.certificate import Box
from lipctrl.certify.execution import execution_error
from lipctrl.certify.lipsdp import lipsdp
from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

LARGEST = NormPair("l2", "linf")


def executed(net: PlainNet, x: NDArray[np.float64], dtype: type[np.floating]) -> NDArray[np.floating]:
    """Outputs (..., m) with every number stored in `dtype`."""
    values, z = [x.astype(dtype)], np.zeros(1, dtype=dtype)
    for k, row in enumerate(net.blocks):
        z = sum((values[j] @ b.astype(dtype).T for j, b in row.items()), np.zeros(1, dtype=dtype))
        z = z + net.biases[k].astype(dtype)
        if k < len(net.activations):
            a = net.activations[k]
            vectors = None if a.vectors is None else a.vectors.astype(dtype)
            rounded = dtype(a.parameter)
            values.append(Activation(a.name, rounded if a.is_scalar else a.parameter, vectors)(z).astype(dtype))
    return z


@pytest.mark.parametrize(("dtype", "exact"), [(np.float32, np.float64), (np.float64, np.longdouble)])
def test_executions_are_within_the_bound_and_near_it(
    cases: Callable, dtype: type[np.floating], exact: type[np.floating]
) -> None:
    if np.finfo(exact).eps > np.finfo(dtype).eps / 100:
        pytest.skip("needs extended precision")
    ratios = []
    for case in cases(900):
        if exact is np.longdouble and any(a.name == "gelu" for a in case.net.activations):
            continue  # no erf in extended precision
        x = case.points.astype(dtype).astype(np.float64)
        box = Box(tuple(x.min(0).tolist()), tuple(x.max(0).tolist()))
        with np.errstate(all="ignore"):
            error = float(np.abs(executed(case.net, x, dtype) - executed(case.net, x, exact)).max())
        bound = execution_error(case.net, box, norm=LARGEST, dtype=dtype) / 2
        assert error <= bound
        ratios += [bound / error] if error > 0 else []
    assert np.median(ratios) < 100


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_rationals(dtype: type[np.floating]) -> None:
    rng, ratios = np.random.default_rng(0), []
    for _ in range(60):
        w = [rng.normal(size=s).astype(dtype).astype(float) for s in ((8, 3), (8, 8), (2, 8))]
        b = [rng.normal(size=len(m)).astype(dtype).astype(float) for m in w]
        net, x = PlainNet.mlp(w, b, "relu"), rng.normal(size=3).astype(dtype).astype(float)
        exact = [Fraction(v) for v in x.tolist()]
        for k, (matrix, bias) in enumerate(zip(w, b, strict=True)):
            exact = [
                sum((Fraction(a) * v for a, v in zip(row, exact, strict=True)), Fraction(c))
                for row, c in zip(matrix.tolist(), bias.tolist(), strict=True)
            ]
            exact = [max(v, Fraction(0)) for v in exact] if k < 2 else exact
        bound = execution_error(net, Box(tuple(x), tuple(x)), norm=LARGEST, dtype=dtype) / 2
        run = executed(net, x, dtype)
        error = max(abs(Fraction(float(y)) - v) for y, v in zip(run, exact, strict=True))
        assert error <= Fraction(bound)
        ratios += [bound / float(error)] if error else []
    assert np.median(ratios) < 100


def test_any_order_of_summation() -> None:
    rng = np.random.default_rng(1)
    w = [rng.normal(size=(1, 2000)).astype(np.float32).astype(float)]
    x = rng.normal(size=2000).astype(np.float32).astype(float)
    net = PlainNet.mlp(w, [np.zeros(1)], "relu")
    bound = execution_error(net, Box(tuple(x), tuple(x)), dtype=np.float32) / 2
    products = (w[0][0].astype(np.float32) * x.astype(np.float32)).astype(np.float32)
    for order in (np.argsort(products), np.argsort(-products), rng.permutation(2000)):
        running = np.cumsum(products[order], dtype=np.float32)[-1]
        assert abs(float(running) - float(w[0][0] @ x)) <= bound


def test_weights_that_the_type_does_not_hold() -> None:
    net = PlainNet.mlp([np.array([[0.1]])], [np.array([0.3])], "relu")
    box, lost = Box((4.0,), (4.0,)), 4 * abs(float(np.float32(0.1)) - 0.1) + abs(float(np.float32(0.3)) - 0.3)
    assert 2 * lost <= execution_error(net, box, dtype=np.float32)
    rounded = execution_error(net.rounded_to(np.float32), box, dtype=np.float32)
    assert rounded == pytest.approx(execution_error(net, box, dtype=np.float32) - 2 * lost, rel=1e-6)
    leaky = PlainNet.mlp([np.eye(1), np.eye(1)], [np.zeros(1)] * 2, "leaky_relu:0.1")
    run = executed(leaky, np.array([-8.0]), np.float32)
    assert abs(float(run[0]) + 0.8) <= execution_error(leaky, Box((-8.0,), (-8.0,)), dtype=np.float32) / 2


def test_close_inputs_need_the_term() -> None:
    rng = np.random.default_rng(2)
    net = PlainNet.mlp([rng.normal(size=(8, 2)), rng.normal(size=(1, 8))], [rng.normal(size=8), np.ones(1)], "tanh")
    certificate = lipsdp(net, NormPair())
    assert certificate is not None
    x = rng.uniform(0.5, 1, size=(3000, 2))
    y = np.nextafter(x, 2.0)
    steps, distance = np.abs(net(x) - net(y))[:, 0], np.linalg.norm(x - y, axis=1)
    assert (steps > certificate.bound * distance).any()  # the execution has no Lipschitz constant
    extra = execution_error(net, Box((0.5, 0.5), (1.0, 1.0)))
    assert (steps <= certificate.bound * distance + extra).all()
    assert 0 < extra < 1e-13


def test_norms_and_limits() -> None:
    net = PlainNet.mlp([np.full((4, 1), 0.1)], [np.zeros(4)], "relu")
    box = Box((1.0,), (2.0,))
    largest, euclidean = execution_error(net, box, norm=LARGEST), execution_error(net, box)
    assert euclidean == pytest.approx(2 * largest, rel=1e-12)
    halved = execution_error(net, box, norm=NormPair(output_scale=(2.0,) * 4))
    assert halved == pytest.approx(euclidean / 2, rel=1e-12)
    limited = replace(net, low=np.full(4, -1.0), high=np.full(4, 1e9 + 1))  # 1e9 + 1 is not a float32
    assert execution_error(limited, box) == euclidean
    assert execution_error(limited, box, norm=LARGEST, dtype=np.float32) >= 2


def test_overflow_is_infinite() -> None:
    net = PlainNet.mlp([np.full((2, 1), 1e30), np.array([[1e30, -1e30]])], [np.zeros(2), np.zeros(1)], "relu")
    box = Box((0.0,), (1.0,))
    assert execution_error(net, box, dtype=np.float32) == np.inf
    assert np.isfinite(execution_error(net, box, dtype=np.float64))
    too_large = PlainNet.mlp([np.full((2, 1), 1e39), np.ones((1, 2))], [np.zeros(2), np.zeros(1)], "relu")
    assert execution_error(too_large, box, dtype=np.float32) == np.inf
    steep = PlainNet.mlp([np.eye(1), np.eye(1)], [np.zeros(1)] * 2, "leaky_relu:1e39")
    assert execution_error(steep, Box((-1e-9,), (1e-9,)), dtype=np.float32) == np.inf


def test_reflections_pass_errors_on() -> None:
    rng = np.random.default_rng(4)
    v = np.array([[30.1, 40.3]])  # |v| = 50: the layer enlarges errors by 5000
    for w in (np.eye(2), np.array([[1e6, -1e6], [1e6, -1e6]])):  # its own errors; those of cancelling sums
        net = PlainNet.mlp([w, np.eye(2)], [np.zeros(2)] * 2, Activation("householder", 2.0, v))
        x = (-1 + 1e-6 * rng.normal(size=(500, 2))).astype(np.float32).astype(float)
        box = Box(tuple(x.min(0).tolist()), tuple(x.max(0).tolist()))
        error = np.abs(executed(net, x, np.float32) - executed(net, x, np.float64)).max()
        bound = execution_error(net, box, norm=LARGEST, dtype=np.float32) / 2
        assert error <= bound < 100 * error


def test_larger_boxes_and_shorter_types_err_more() -> None:
    rng = np.random.default_rng(3)
    net = PlainNet.mlp([rng.normal(size=(8, 2)), rng.normal(size=(1, 8))], [rng.normal(size=8), np.ones(1)], "relu")
    errors = [execution_error(net, Box((-r, -r), (r, r))) for r in (0.0, 0.1, 1.0, 10.0)]
    assert errors == sorted(errors) and errors[-1] > errors[0]
    ratio = execution_error(net.rounded_to(np.float32), Box((-1.0, -1.0), (1.0, 1.0)), dtype=np.float32) / errors[2]
    assert ratio == pytest.approx(2.0**29, rel=1e-3)
    with pytest.raises(UserError, match="1 dimensions.*2 inputs"):
        execution_error(net, Box((0.0,), (1.0,)))
