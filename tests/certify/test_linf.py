"""l_inf certificates against exact constants, enumeration and the published inequality with a corner."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.certificate import Certificate
from lipctrl.certify.linf import linf_certificate
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm, NormPair

Array = NDArray[np.float64]
PAIRS: list[tuple[Norm, Norm]] = [("l2", "linf"), ("linf", "l2"), ("linf", "linf")]


def network(rng: np.random.Generator, sizes: tuple[int, ...], activation: str = "relu") -> PlainNet:
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def proved(net: PlainNet, norm: NormPair) -> Certificate:
    certificate = linf_certificate(net, norm, tolerance=1e-9)
    assert certificate is not None and certificate.verify(net)
    return certificate


def matrix_norm(a: Array, pair: tuple[Norm, Norm]) -> float:
    """Exact operator norm of a small matrix."""
    if pair == ("l2", "linf"):
        return float(np.linalg.norm(a, axis=1).max())
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=a.shape[1])))
    return float(np.linalg.norm(signs @ a.T, ord=2 if pair[1] == "l2" else np.inf, axis=1).max())


@pytest.mark.parametrize("pair", PAIRS)
def test_nonnegative_relu_networks_are_exact(pair: tuple[Norm, Norm]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = (3, *rng.integers(1, 6, size=2).tolist(), 2)
        weights = [rng.uniform(size=(b, a)) for a, b in zip(sizes, sizes[1:], strict=False)]
        net = PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], "relu")
        exact = matrix_norm(weights[2] @ weights[1] @ weights[0], pair)
        assert exact * (1 - 1e-15) <= proved(net, NormPair(*pair)).bound <= exact * (1 + 1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_linear_networks(pair: tuple[Norm, Norm]) -> None:
    net = network(np.random.default_rng(1), (4, 5, 3), "identity")
    exact = matrix_norm(net.blocks[1][1] @ net.blocks[0][0], pair)
    bound = proved(net, NormPair(*pair)).bound
    if pair == ("linf", "l2"):  # the relaxation of max |A s| over signs is not exact
        assert exact <= bound <= exact * np.sqrt(np.pi / 2)
    else:
        assert exact <= bound <= exact * (1 + 1e-6)


@pytest.mark.parametrize("pair", PAIRS)
def test_no_pair_of_points_exceeds_the_bound(pair: tuple[Norm, Norm]) -> None:
    rng = np.random.default_rng(2)
    norm = NormPair(*pair, (0.5, 2.0, 10.0), (0.1, 3.0))
    for name in ("relu", "gelu", "abs", "maxmin", "groupsort:3"):
        net = network(rng, (3, 6, 6, 2), name)
        for mode in ("neuron", "layer"):
            certificate = linf_certificate(net, norm, mode=mode)  # type: ignore[arg-type]
            assert certificate is not None and certificate.verify(net)
            jacobians = (
                net.jacobian(rng.normal(size=(300, 3)) * 3) * norm.input_scale / np.array(norm.output_scale)[:, None]
            )
            assert max(matrix_norm(j, pair) for j in jacobians) <= certificate.bound


def test_a_row_at_a_time_is_the_largest_row() -> None:
    net = network(np.random.default_rng(3), (3, 6, 6, 2))
    norm = NormPair("linf", "linf")
    rows = [
        PlainNet(
            (*net.blocks[:2], {2: net.blocks[2][2][i : i + 1]}),
            (*net.biases[:2], net.biases[2][i : i + 1]),
            net.activations,
        )
        for i in range(2)
    ]
    assert proved(net, norm).bound == pytest.approx(max(proved(row, norm).bound for row in rows), rel=1e-6)


def test_the_absolute_value_of_two_inputs() -> None:
    """f(x) = |x_1| + |x_2| has the constants 2 from l_inf and sqrt(2) from l2."""
    w = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    net = PlainNet.mlp([w, np.ones((1, 4))], [np.zeros(4), np.zeros(1)], "relu")
    assert proved(net, NormPair("linf", "linf")).bound == pytest.approx(2.0, rel=1e-6)
    assert proved(net, NormPair("l2", "linf")).bound == pytest.approx(np.sqrt(2), rel=1e-6)


def with_corner(net: PlainNet) -> float:
    """The published l_inf inequality of a scalar two-layer ReLU network, by an independent solver."""
    cp = pytest.importorskip("cvxpy")
    w1, w2, w3 = (net.blocks[k][k] for k in range(3))
    n0, n1, n2 = w1.shape[1], len(w1), len(w2)
    rho, mu, l1, l2 = cp.Variable(), cp.Variable(n0), cp.Variable(n1), cp.Variable(n2)
    zero = np.zeros
    matrix = cp.bmat(
        [
            [cp.reshape(2 * rho - cp.sum(mu), (1, 1), order="C"), zero((1, n0)), zero((1, n1)), -w3],
            [zero((n0, 1)), cp.diag(mu), -w1.T @ cp.diag(l1), zero((n0, n2))],
            [zero((n1, 1)), -cp.diag(l1) @ w1, 2 * cp.diag(l1), -w2.T @ cp.diag(l2)],
            [-w3.T, zero((n2, n0)), -cp.diag(l2) @ w2, 2 * cp.diag(l2)],
        ]
    )
    problem = cp.Problem(cp.Minimize(rho), [(matrix + matrix.T) / 2 >> 0, mu >= 0, l1 >= 0, l2 >= 0])
    return float(problem.solve(solver="CLARABEL"))


def test_equal_to_the_published_inequality_with_a_corner() -> None:
    rng = np.random.default_rng(4)
    for _ in range(3):
        net = network(rng, (3, 5, 4, 1))
        assert proved(net, NormPair("linf", "linf")).bound == pytest.approx(with_corner(net), rel=1e-5)


def test_not_for_l2() -> None:
    assert linf_certificate(network(np.random.default_rng(5), (2, 3, 1)), NormPair()) is None
