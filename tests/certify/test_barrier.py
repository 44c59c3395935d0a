"""The barrier method: derivatives by finite differences, equivalence of units, feasibility, optimality."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.barrier import backward_start, balanced, program_of, solve, spread_out
from lipctrl.certify.lmi import smallest_rho
from lipctrl.certify.loop_form import LoopForm, loop_form
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

Array = NDArray[np.float64]


def form_of(seed: int, name: str, sizes: tuple[int, ...] = (3, 6, 6, 2), spread: float = 0.0) -> LoopForm:
    rng = np.random.default_rng(seed)
    weights = [
        rng.normal(size=(b, a)) * 10.0 ** rng.uniform(-spread, spread, size=(b, 1))
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]
    return loop_form(PlainNet.mlp(weights, [np.zeros(len(w)) for w in weights], name), NormPair())


@pytest.mark.parametrize("name", ["relu", "gelu", "maxmin", "groupsort:3"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("mode", ["neuron", "layer"])
def test_gradient_and_hessian_of_the_barrier(name: str, norm: Norm, mode: str) -> None:
    form = form_of(0, name)
    group = form.group if mode == "neuron" else form.layer - 1
    program = program_of(form, group, norm)
    mu = backward_start(form, group)
    inputs = program.spread.shape[1]
    x = np.concatenate([np.full(inputs, 2 * smallest_rho(form, spread_out(form, group, mu))), mu])

    def value(y: Array) -> float:
        return -float(np.linalg.slogdet(program.affine(y) - program.gram)[1])

    slope, hessian = program.derivatives(np.linalg.inv(program.affine(x) - program.gram))
    for i in range(len(x)):
        step = np.zeros(len(x))
        step[i] = 1e-4 * x[i]
        assert slope[i] * step[i] == pytest.approx((value(x + step) - value(x - step)) / 2, rel=1e-4, abs=1e-9)
        up, _ = program.derivatives(np.linalg.inv(program.affine(x + step) - program.gram))
        down, _ = program.derivatives(np.linalg.inv(program.affine(x - step) - program.gram))
        np.testing.assert_allclose(hessian[:, i] * step[i] * x, (up - down) / 2 * x, rtol=1e-4, atol=1e-9)


def test_m_is_the_matrix_of_the_loop_form() -> None:
    form = form_of(1, "gelu")
    program = program_of(form, form.group, "linf")
    x = np.random.default_rng(1).uniform(size=3 + form.multipliers)
    expected = form.matrix(x[3:]).mid + np.diag(np.concatenate([x[:3], np.zeros(len(form.group))]))
    np.testing.assert_allclose(program.affine(x) - program.gram, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["relu", "groupsort:3"])
def test_balanced_units_state_the_same_inequality(name: str) -> None:
    form = form_of(2, name, spread=2.0)
    even = balanced(form)
    np.testing.assert_allclose(np.linalg.norm(even.T.mid, axis=1), 1.0)
    mu = np.random.default_rng(2).uniform(size=form.multipliers)
    size = np.sqrt(even.weight.mid / form.weight.mid)
    change = np.concatenate([np.ones(3), size])  # w = s w~
    np.testing.assert_allclose(even.matrix(mu).mid, form.matrix(mu).mid * change * change[:, None], rtol=1e-9)


@pytest.mark.parametrize("name", ["relu", "abs", "maxmin", "groupsort:3"])
def test_the_start_is_feasible_whatever_the_sizes(name: str) -> None:
    for seed in range(20):
        form = balanced(form_of(seed, name, (2, 6, 6, 6, 2), spread=3.0))
        for group in (form.group, form.layer - 1):
            assert np.isfinite(smallest_rho(form, spread_out(form, group, backward_start(form, group))))


def test_the_gap_is_what_was_asked_for() -> None:
    """With a smaller tolerance the value falls by no more than the gap that was promised."""
    form = form_of(3, "relu", (4, 16, 16, 3))
    values = [float(solve(form, form.group, "l2", tolerance=10.0**-k)[0][0]) for k in (2, 4, 6, 8)]
    for value, tolerance in zip(values, (1e-2, 1e-4, 1e-6, 1e-8), strict=True):
        assert values[-1] * (1 - 1e-8) <= value <= values[-1] * (1 + 1.5 * tolerance + 1e-8)


def test_one_neuron_by_hand() -> None:
    """y = b |a x|: rho = a^2 b^2 and mu = b^2; for w over two inputs in l_inf, p_j = |w_j| sum |w|."""
    form = loop_form(PlainNet.mlp([[[3.0]], [[2.0]]], [[0.0], [0.0]], "abs"), NormPair())
    p, mu = solve(form, form.group, "l2", tolerance=1e-9)
    assert p[0] == pytest.approx(36.0, rel=1e-6) and mu[0] == pytest.approx(4.0, rel=1e-6)
    form = loop_form(PlainNet.mlp([[[1.0, -2.0]], [[1.0]]], [[0.0], [0.0]], "abs"), NormPair())
    p, _ = solve(form, form.group, "linf", tolerance=1e-9)
    np.testing.assert_allclose(p, [3.0, 6.0], rtol=1e-4)


def test_an_output_that_is_always_zero() -> None:
    form = form_of(4, "relu", (3, 8, 8, 2))
    silent = replace(form, Y=form.Y[:0])
    assert solve(silent, form.group, "l2", tolerance=1e-8)[0][0] < 1e-60
