"""LipSDP against networks whose constant is known, and against other solvers."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog

from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.certificate import Certificate
from lipctrl.certify.lipsdp import best_multipliers, grouping, lipsdp
from lipctrl.certify.loop_form import global_slopes, loop_form
from lipctrl.files import UserError
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
RAW = NormPair()


def network(
    rng: np.random.Generator, sizes: tuple[int, ...], activation: str = "relu", *, nonnegative: bool = False
) -> PlainNet:
    def draw(rows: int, columns: int) -> Array:
        return np.asarray(rng.uniform(size=(rows, columns)) if nonnegative else rng.normal(size=(rows, columns)))

    weights = [draw(b, a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def product(net: PlainNet) -> Array:
    total = np.eye(net.input_size)
    for k, row in enumerate(net.blocks):
        total = row[k] @ total
    return total


def proved(net: PlainNet, norm: NormPair = RAW, tolerance: float = 1e-7) -> Certificate:
    certificate = lipsdp(net, norm, tolerance=tolerance)
    assert certificate is not None and certificate.verify(net)
    return certificate


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_nonnegative_relu_networks_are_exact(count: int) -> None:
    """All neurons are active far out, and nonnegative matrices have monotone norms: the constant is |W_l..W_1|."""
    rng = np.random.default_rng(count)
    ratios = []
    for _ in range(count):
        depth = int(rng.integers(1, 4))
        sizes = (int(rng.integers(1, 5)), *rng.integers(1, 7, size=depth).tolist(), int(rng.integers(1, 4)))
        net = network(rng, sizes, nonnegative=True)
        certificate = lipsdp(net, RAW, tolerance=1e-10)
        assert certificate is not None
        ratios.append(certificate.bound / float(np.linalg.norm(product(net), 2)))
    assert min(ratios) >= 1 - 1e-15  # the reference itself is rounded
    assert max(ratios) <= 1 + 1e-9


def test_a_network_of_the_kind_of_the_lipsdp_example() -> None:
    net = network(np.random.default_rng(1), (2, 10, 30, 20, 2), nonnegative=True)
    exact = float(np.linalg.norm(product(net), 2))
    neuron, layer = proved(net, tolerance=1e-10).bound, lipsdp(net, RAW, mode="layer")
    assert neuron == pytest.approx(exact, rel=1e-9) and neuron >= exact * (1 - 1e-15)
    assert layer is not None and layer.verify(net) and layer.bound > exact * 1.01


def test_linear_networks() -> None:
    net = network(np.random.default_rng(2), (3, 5, 5, 2), "identity")
    assert proved(net).bound == pytest.approx(float(np.linalg.norm(product(net), 2)), rel=1e-11)


def test_orthogonal_weights_keep_norms() -> None:
    rng = np.random.default_rng(3)
    weights = [np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(3)]
    v = rng.normal(size=(2, 2))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    for activation in (
        Activation.parse("maxmin"),
        Activation.parse("groupsort:4"),
        Activation.parse("abs"),
        Activation("householder", 2.0, v),
    ):
        net = PlainNet.mlp(weights, [np.zeros(4)] * 3, activation)
        assert 1 - 1e-12 <= proved(net).bound <= 1 + 1e-7


def test_the_absolute_value_from_two_relus() -> None:
    net = PlainNet.mlp([[[1.0], [-1.0]], [[1.0, 1.0]]], [[0.0, 0.0], [0.0]], "relu")
    assert 1 <= proved(net).bound <= 1 + 1e-8  # the product of norms is 2


def pattern_norms(net: PlainNet) -> float:
    """Exact constant of a one-hidden-layer ReLU network: the largest Jacobian over non-empty activation regions."""
    w, b, last = net.blocks[0][0], net.biases[0], net.blocks[1][1]
    best = 0.0
    for pattern in itertools.product((0.0, 1.0), repeat=len(w)):
        signs = 2 * np.array(pattern) - 1
        norms = np.linalg.norm(w, axis=1)
        # largest margin t with s_i (w_i x + b_i) >= t |w_i|
        result = linprog(
            [0.0] * w.shape[1] + [-1.0],
            A_ub=np.hstack([-signs[:, None] * w, norms[:, None]]),
            b_ub=signs * b,
            bounds=[(None, None)] * w.shape[1] + [(None, 1.0)],
        )
        if result.status == 0 and -result.fun > 1e-9:
            best = max(best, float(np.linalg.norm(last * np.array(pattern) @ w, 2)))
    return best


def test_one_hidden_layer_by_enumeration() -> None:
    rng = np.random.default_rng(4)
    ratios = []
    for _ in range(6):
        net = network(rng, (2, 6, 1))
        exact = pattern_norms(net)
        assert proved(net).bound >= exact
        ratios.append(proved(net).bound / exact)
    assert min(ratios) < 1.05


def coupled(net: PlainNet) -> float:
    """LipSDP-Network, the variant with multipliers between neurons, for one hidden layer: not a bound."""
    cp = pytest.importorskip("cvxpy")
    w1, w2, n = net.blocks[0][0], net.blocks[1][1], net.widths[0]
    pairs = [np.eye(n)[i] - np.eye(n)[j] for i in range(n) for j in range(i)] + list(np.eye(n))
    rho, lam = cp.Variable(), cp.Variable(len(pairs), nonneg=True)
    stack = np.array(pairs)
    t = stack.T @ cp.diag(lam) @ stack
    matrix = cp.bmat([[rho * np.eye(w1.shape[1]), -w1.T @ t], [-t @ w1, 2 * t - w2.T @ w2]])
    problem = cp.Problem(cp.Minimize(rho), [(matrix + matrix.T) / 2 >> 0])
    return float(np.sqrt(problem.solve(solver="CLARABEL")))


def test_the_coupled_variant_is_unsound_and_absent() -> None:
    """On 2-6-1 networks LipSDP-Network falls below slopes that are attained; ours never does."""
    rng = np.random.default_rng(5)
    broken = 0
    for k in range(50):
        net = network(rng, (2, 6, 1))
        net = replace(net, biases=(3 * rng.normal(size=6), net.biases[1]))
        x = rng.normal(size=(500, 2)) * 10.0 ** rng.uniform(-1, 3, size=(500, 1))
        attained = np.linalg.norm(net.jacobian(x), axis=(1, 2)).max()
        certificate = lipsdp(net, RAW)
        assert certificate is not None and certificate.bound >= attained
        broken += k < 5 and coupled(net) < 0.99 * attained
    assert broken > 0
    with pytest.raises(UserError, match="neuron, layer"):
        grouping(loop_form(net, RAW), "network")  # type: ignore[arg-type]


def test_scaling_laws_and_duplicated_neurons() -> None:
    rng = np.random.default_rng(6)
    net = network(rng, (3, 6, 5, 2), "tanh")
    base = proved(net).bound
    first, *rest = (dict(row) for row in net.blocks)
    scaled = replace(net, blocks=({0: 7.0 * first[0]}, *rest))
    wider = NormPair(input_scale=(7.0,) * 3)
    assert proved(scaled).bound == pytest.approx(proved(net, wider).bound, rel=1e-7)
    assert proved(net, wider).bound == pytest.approx(7 * base, rel=1e-7)
    assert proved(net, NormPair(output_scale=(0.2, 0.2))).bound == pytest.approx(5 * base, rel=1e-7)
    double = np.repeat(np.arange(6), [2, 1, 1, 1, 1, 1])
    halves = np.where(double == 0, 0.5, 1.0)
    twice = PlainNet.mlp(
        [net.blocks[0][0][double], net.blocks[1][1][:, double] * halves, net.blocks[2][2]],
        [net.biases[0][double], *net.biases[1:]],
        "tanh",
    )
    assert proved(twice).bound == pytest.approx(base, rel=1e-6)


def test_inputs_that_do_nothing_cost_nothing() -> None:
    rng = np.random.default_rng(7)
    net = network(rng, (3, 6, 2))
    q = np.linalg.qr(rng.normal(size=(40, 3)))[0]
    wide = replace(net, blocks=({0: net.blocks[0][0] @ q.T}, net.blocks[1]))
    assert proved(wide).bound == pytest.approx(proved(net).bound, rel=1e-7)


@pytest.mark.parametrize("name", ["relu", "gelu", "hardswish", "sigmoid", "abs", "maxmin", "groupsort:3", "skip"])
def test_no_jacobian_exceeds_a_bound_and_more_multipliers_help(name: str) -> None:
    rng = np.random.default_rng(8)
    for _ in range(10):
        net = network(rng, (2, 6, 6, 2), name if name != "skip" else "silu")
        if name == "skip":
            blocks = (
                net.blocks[0],
                net.blocks[1] | {0: rng.normal(size=(6, 2))},
                net.blocks[2] | {0: rng.normal(size=(2, 2))},
            )
            net = replace(net, blocks=blocks)
        x = rng.normal(size=(500, 2)) * 10.0 ** rng.uniform(-1, 2, size=(500, 1))
        attained = np.linalg.norm(net.jacobian(x), 2, axis=(1, 2)).max()
        neuron, layer = proved(net), lipsdp(net, RAW, mode="layer")
        assert layer is not None and layer.verify(net)
        assert attained <= neuron.bound <= layer.bound * (1 + 1e-6)


def test_narrower_slopes_give_smaller_bounds() -> None:
    net = network(np.random.default_rng(9), (3, 8, 8, 2), "tanh")
    bounds = []
    for least in (0.0, 0.3, 0.6, 0.9, 1.0):
        slopes = [(np.full_like(a, least), b) for a, b in global_slopes(net)]
        form = loop_form(net, RAW, slopes)
        p, _ = best_multipliers(form, RAW)
        bounds.append(float(np.sqrt(p[0])))
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(float(np.linalg.norm(product(net), 2)), rel=1e-6)


def solved_by(net: PlainNet, solver: str) -> float:
    """LipSDP-Neuron in its published form, by an independent modelling tool and solver."""
    cp = pytest.importorskip("cvxpy")
    weights = [net.blocks[k][k] for k in range(len(net.blocks))]
    sizes = [net.input_size, *net.widths]
    rho, lam = cp.Variable(), [cp.Variable(n) for n in net.widths]
    rows = [[np.zeros((a, b)) for b in sizes] for a in sizes]
    rows[0][0] = rho * np.eye(sizes[0])
    for k, w in enumerate(weights[:-1]):
        rows[k + 1][k + 1] = 2 * cp.diag(lam[k])
        rows[k + 1][k] = -cp.diag(lam[k]) @ w
        rows[k][k + 1] = rows[k + 1][k].T
    rows[-1][-1] = rows[-1][-1] - weights[-1].T @ weights[-1]
    problem = cp.Problem(cp.Minimize(rho), [cp.bmat(rows) >> 0, *(v >= 0 for v in lam)])
    return float(np.sqrt(problem.solve(solver=solver)))


def test_against_an_independent_solver() -> None:
    rng = np.random.default_rng(10)
    for sizes in ((2, 5, 1), (3, 6, 5, 2)):
        net = network(rng, sizes)
        assert proved(net).bound == pytest.approx(solved_by(net, "CLARABEL"), rel=1e-5)


def maxmin_by_its_published_form(net: PlainNet) -> float:
    """One hidden layer of MaxMin in the form of arXiv 2401.14033, theorem for GroupSort, group size 2."""
    cp = pytest.importorskip("cvxpy")
    w1, w2, width = net.blocks[0][0], net.blocks[1][1], net.widths[0]
    rho = cp.Variable()
    lam, gam, nu, tau = (cp.Variable(width // 2) for _ in range(4))
    ones = np.kron(np.eye(width // 2), np.ones((2, 1)))  # one row of ones per pair

    def blocks(v: Any) -> Any:
        return ones @ cp.diag(v) @ ones.T

    t, s, p = cp.diag(ones @ lam) + blocks(gam), blocks(nu), blocks(tau)
    matrix = cp.bmat(
        [[w1.T @ (t - 2 * s) @ w1 - rho * np.eye(w1.shape[1]), w1.T @ (p + s)], [(p + s) @ w1, -t - 2 * p + w2.T @ w2]]
    )
    problem = cp.Problem(cp.Minimize(rho), [(matrix + matrix.T) / 2 << 0, lam >= 0])
    return float(np.sqrt(problem.solve(solver="CLARABEL")))


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_maxmin_without_its_equalities_equals_the_published_form() -> None:
    net = network(np.random.default_rng(11), (3, 6, 2), "maxmin")
    assert proved(net).bound == pytest.approx(maxmin_by_its_published_form(net), rel=1e-4)


@pytest.mark.parametrize("name", ["relu", "gelu", "maxmin", "sigmoid"])
def test_badly_scaled_and_sparse_networks(name: str) -> None:
    """Neurons whose sizes differ by six decades, dead neurons and missing weights: never above the cruder bounds."""
    rng = np.random.default_rng(13)
    for _ in range(10):
        sizes = (int(rng.integers(1, 6)), 12, 12, 2)
        weights = [
            rng.normal(size=(b, a)) * 10.0 ** rng.uniform(-3, 3, size=(b, 1)) * (rng.random((b, a)) < 0.4)
            for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        net = PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], name)
        cruder = min(c.bound for method in ("product", "lipsdp-layer") for c in upper_bounds(net, method=method))
        assert proved(net).bound <= cruder * (1 + 1e-5)


def test_degenerate_networks() -> None:
    rng = np.random.default_rng(12)
    net = network(rng, (3, 5, 4, 2))
    dead = replace(net, blocks=(net.blocks[0], {1: net.blocks[1][1] * np.array([1, 0, 1, 0, 1.0])}, net.blocks[2]))
    assert proved(dead).bound < proved(net).bound * 1.5
    zero = replace(net, blocks=(*net.blocks[:2], {2: np.zeros((2, 4))}))
    assert proved(zero).bound < 1e-60
    no_input = replace(net, blocks=({0: np.zeros((5, 3))}, *net.blocks[1:]))
    assert proved(no_input).bound < 1e-3
    for scale in (1e-8, 1e8):
        scaled = replace(net, blocks=({0: net.blocks[0][0] * scale}, *net.blocks[1:]))
        assert proved(scaled).bound == pytest.approx(scale * proved(net).bound, rel=1e-6)
