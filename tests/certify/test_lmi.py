"""The matrix inequality against its published form, and what its proofs refuse."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.lmi import certify_with, own_multipliers, proves, smallest_proved, smallest_rho
from lipctrl.certify.loop_form import loop_form
from lipctrl.nn.activations import Activation
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
RAW = NormPair()


def network(rng: np.random.Generator, sizes: tuple[int, ...], activation: str = "relu") -> PlainNet:
    weights = [rng.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(sizes, sizes[1:], strict=False)]
    return PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], activation)


def published(net: PlainNet, rho: float, multipliers: Array) -> Array:
    """The block tridiagonal inequality of LipSDP-Neuron for slopes [0, 1]."""
    weights = [net.blocks[k][k] for k in range(len(net.blocks))]
    sizes = [net.input_size, *net.widths]
    ends = np.cumsum(sizes)
    m = np.zeros((ends[-1], ends[-1]))
    m[: ends[0], : ends[0]] = rho * np.eye(sizes[0])
    for k, w in enumerate(weights[:-1]):
        before, own = slice(ends[k] - sizes[k], ends[k]), slice(ends[k], ends[k + 1])
        lam = np.diag(multipliers[ends[k] - ends[0] : ends[k + 1] - ends[0]])
        m[own, own] += 2 * lam
        m[own, before] -= lam @ w
        m[before, own] -= (lam @ w).T
    m[own, own] -= weights[-1].T @ weights[-1]
    return m


def test_the_loop_form_is_congruent_to_the_published_form() -> None:
    rng = np.random.default_rng(0)
    for sizes in ((2, 3, 1), (3, 5, 4, 2), (2, 3, 4, 3, 2)):
        net = network(rng, sizes)
        form = loop_form(net, RAW)
        lam, rho = rng.uniform(size=form.multipliers), 2.0
        ours = form.matrix(lam / 2).mid
        ours[: sizes[0], : sizes[0]] += rho * np.eye(sizes[0])
        identity = np.eye(len(ours))
        change = np.vstack([identity[: sizes[0]], (form.T.mid + identity[sizes[0] :]) / 2])  # dphi = (dz + w) / 2
        np.testing.assert_allclose(change.T @ published(net, rho, lam) @ change, ours, atol=1e-12)


def cayley(rng: np.random.Generator, rows: int, columns: int) -> Array:
    return np.asarray(np.linalg.qr(rng.normal(size=(rows, columns)))[0])


def sandwich(rng: np.random.Generator, sizes: tuple[int, ...], gamma: float) -> PlainNet:
    """A merged sandwich network (arXiv 2301.11526) with the multipliers that prove gamma."""
    weights, multipliers = list[Array](), list[Array]()
    left, psi = np.sqrt(gamma / 2) * np.eye(sizes[0]), np.ones(sizes[0])
    for n, m in zip(sizes[:-2], sizes[1:-1], strict=True):
        q = cayley(rng, m + n, m)  # Q'Q = I: with A' = Q[:m], B = Q[m:]', A A' + B B' = I
        following = np.exp(0.3 * rng.normal(size=m))
        weights.append(2 * (q[m:].T / following[:, None]) @ left * psi)
        left, psi = q[:m], following
        multipliers.append(gamma * psi**2)
    q = cayley(rng, sizes[-1] + sizes[-2], sizes[-1])
    weights.append(np.sqrt(2 * gamma) * q[sizes[-1] :].T @ left * psi)
    net = PlainNet.mlp(weights, [rng.normal(size=len(w)) for w in weights], "relu")
    return PlainNet(net.blocks, net.biases, net.activations, multipliers=tuple(multipliers))


@pytest.mark.parametrize("gamma", [0.1, 1.0, 7.0])
def test_the_multipliers_of_a_sandwich_network_prove_its_constant(gamma: float) -> None:
    rng = np.random.default_rng(1)
    for sizes in ((3, 8, 2), (4, 16, 16, 2), (2, 8, 6, 8, 1)):
        net = sandwich(rng, sizes, gamma)
        form = loop_form(net, RAW)
        multipliers = own_multipliers(net, form)
        assert multipliers is not None
        certificate = certify_with(net, form, multipliers, method="own", norm=RAW)
        assert certificate is not None and certificate.verify(net)
        assert certificate.bound <= gamma * (1 + 1e-6)
        rounded = net.rounded_to(np.float32)
        again = certify_with(rounded, loop_form(rounded, RAW), multipliers, method="own", norm=RAW)
        assert again is not None and again.verify(rounded) and again.bound <= gamma * (1 + 1e-5)
        assert not certificate.verify(rounded)  # other weights


@pytest.mark.parametrize("activation", ["leaky_relu:0.1", "leaky_relu:0.5", "sigmoid"])
def test_multipliers_prove_the_constant_for_slopes_inside_the_unit_interval(activation: str) -> None:
    """Their own proof is for slopes in [0, 1]; with those of the activation alone it may miss the constant."""
    for seed in range(6):
        net = sandwich(np.random.default_rng(seed), (5, 24, 16, 1), 1.0)
        net = replace(net, activations=(Activation.parse(activation),) * 2)
        (certificate,) = upper_bounds(net, method="own")
        assert certificate.bound <= 1 + 1e-6 and certificate.verify(net)
        assert not replace(certificate, bound=certificate.bound * 0.99).verify(net)


def test_multipliers_that_came_with_a_file_are_not_trusted() -> None:
    """Wrong, negative or missing hints give no bound or a proved one, and never an error."""
    net = sandwich(np.random.default_rng(5), (3, 8, 6, 2), 1.0)
    assert net.multipliers is not None
    first, second = net.multipliers
    for hints in ((first,), (first, second[:-1]), (first[:0], second)):
        wrong = replace(net, multipliers=hints)
        assert own_multipliers(wrong, loop_form(wrong, RAW)) is None
        assert [c.method for c in upper_bounds(wrong, method="own")] == []
    for hints in (
        (first * np.nan, second),
        (-first, second),
        (first * 0, second),
        (first, second * np.inf),
    ):
        assert upper_bounds(replace(net, multipliers=hints), method="own") == []
    (doubled,) = upper_bounds(replace(net, multipliers=(2 * first, 2 * second)), method="own")
    assert doubled.verify(net) and 1.0 < doubled.bound < 2.0
    assert upper_bounds(replace(net, multipliers=(first * np.nan, second)), method="lipsdp-neuron")[0].verify(net)


def test_the_smallest_rho_is_where_the_matrix_becomes_singular() -> None:
    rng = np.random.default_rng(2)
    net = network(rng, (3, 5, 4, 2))
    form = loop_form(net, RAW)
    mu = np.array([10.0] * 5 + [3.0] * 4)
    for weights in (None, np.array([0.2, 0.3, 0.5])):
        rho = smallest_rho(form, mu, weights)
        corner = np.zeros(12)
        corner[:3] = 1.0 if weights is None else weights
        matrix = form.matrix(mu).mid + rho * np.diag(corner)
        assert abs(np.linalg.eigvalsh(matrix)[0]) < 1e-9
        bound = smallest_proved(form, mu, weights)
        assert bound is not None and 0 <= bound - np.sqrt(rho) < 1e-9
        assert proves(form, mu, bound, weights)
        assert not proves(form, mu, np.sqrt(rho) * (1 - 1e-9), weights)


def test_what_is_never_a_proof() -> None:
    rng = np.random.default_rng(3)
    net = network(rng, (3, 5, 4, 2))
    form = loop_form(net, RAW)
    mu = np.array([10.0] * 5 + [3.0] * 4)
    good = smallest_proved(form, mu)
    assert good is not None and proves(form, mu, 2 * good)
    assert not proves(form, -mu, 1e9)
    assert not proves(form, mu[:-1], 1e9)
    assert not proves(form, mu * np.nan, 1e9)
    assert not proves(form, mu, np.nan)
    assert not proves(form, mu * 1e307, 1e9)
    assert smallest_rho(form, mu * 1e307) == np.inf
    assert not proves(form, mu, np.inf)
    assert not proves(form, mu, 1e9, -np.ones(3))
    assert not proves(form, mu, 1e9, np.ones(4))
    assert smallest_rho(form, 1e-9 * mu) == np.inf and smallest_proved(form, 1e-9 * mu) is None
    for k in range(9):  # a negative multiplier, even where the matrix would stay positive
        wrong = mu.copy()
        wrong[k] = -1e-12
        assert not proves(form, wrong, 1e9)


def test_a_linear_network_needs_no_multiplier() -> None:
    rng = np.random.default_rng(4)
    net = network(rng, (4, 6, 6, 3), "identity")
    form = loop_form(net, RAW)
    bound = smallest_proved(form, np.zeros(0))
    exact = np.linalg.norm(net.blocks[2][2] @ net.blocks[1][1] @ net.blocks[0][0], 2)
    assert bound is not None and exact <= bound <= exact * (1 + 1e-11)
    assert own_multipliers(net, form) is None
