"""A battery over every layer family, size and activation: the bound is proved, and the export is the module."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.func import functional_call

from lipctrl.certify.bracket import upper_bounds
from lipctrl.certify.lower import lower_bound
from lipctrl.files import UserError
from lipctrl.nn.cayley import orthonormal
from lipctrl.nn.graph import FUNCTIONS, GraphNet
from lipctrl.nn.network import FAMILIES, lipschitz_mlp
from lipctrl.nn.normalise import deployed
from lipctrl.nn.plain import PlainNet

SIZES = [(3, 16, 12, 2), (5, 8, 1), (2, 6, 6, 6, 4), (3, 2), (1, 4, 5), (7, 4, 2, 1)]
LAYERWISE = ("orthogonal", "aol", "spectral")
BOUNDED = [name for name in FAMILIES if name != "unconstrained"]


def cases() -> Iterator[tuple[str, tuple[int, ...], str]]:
    for family in BOUNDED:
        for sizes in SIZES:
            for activation in ("tanh", "relu", *(("maxmin", "householder:2", "abs") if family in LAYERWISE else ())):
                hidden = sizes[1:-1]
                if activation in ("maxmin", "householder:2") and any(width % 2 for width in hidden):
                    continue
                yield family, sizes, activation


def shaken(family: str, sizes: tuple[int, ...], activation: str, lip: float | None, seed: int = 0) -> GraphNet:
    """A network far from its initial weights."""
    net = lipschitz_mlp(family, sizes, lip, activation=activation, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return net


@pytest.mark.parametrize(("family", "sizes", "activation"), list(cases()))
@pytest.mark.parametrize("lip", [0.1, 7.0])
def test_the_bound_is_proved_and_the_export_is_the_module(
    family: str, sizes: tuple[int, ...], activation: str, lip: float
) -> None:
    net = shaken(family, sizes, activation, lip)
    plain = net.to_plain()
    proved = {c.method: c for c in upper_bounds(plain) if c.method in ("own", "product", "lipsdp-neuron")}
    best = min(proved.values(), key=lambda c: c.bound)
    # slopes in [0, 1]: the exported multipliers alone must do; others: the product of unit norms
    claimed = proved["own"] if plain.multipliers is not None else proved["product"]
    assert claimed.verify(plain) and claimed.bound <= lip * (1 + 1e-6)
    assert lower_bound(plain).bound <= best.bound
    x = torch.randn(9, sizes[0], dtype=torch.float64)
    assert np.allclose(net.double()(x).detach().numpy(), plain(x.numpy()), atol=1e-10, rtol=1e-10)
    fresh = lipschitz_mlp(family, sizes, lip, activation=activation)
    assert np.allclose(fresh(x.float()).detach().numpy(), fresh.to_plain()(x.numpy()), atol=1e-5 * lip)


def lipsdp_matrix(net: PlainNet, lip: float) -> np.ndarray:
    """lip^2 |x|^2 - |y|^2 - sum_i 2 lambda_i a_i (z_i - a_i) as a matrix in (x, a_1..a_l).

    Slopes in [0, 1] make every product nonnegative, so a nonnegative matrix proves the bound (Fazlyab et al. 2019,
    arXiv 1906.04893).
    """
    widths = [net.input_size, *net.widths]
    parts = np.split(np.eye(sum(widths)), np.cumsum(widths)[:-1])  # selects x, a_1, ..., a_l
    z = [sum(block @ parts[j] for j, block in row.items()) for row in net.blocks]
    matrix = lip**2 * parts[0].T @ parts[0] - z[-1].T @ z[-1]
    assert net.multipliers is not None
    for a, v, multiplier in zip(parts[1:], z, net.multipliers, strict=False):
        product = a.T @ np.diag(multiplier) @ (v - a)
        matrix -= product + product.T
    return matrix


@pytest.mark.parametrize("family", BOUNDED)
@pytest.mark.parametrize("lip", [0.1, 1.0, 7.0])
def test_exported_multipliers_satisfy_the_matrix_inequality(family: str, lip: float) -> None:
    for seed, sizes in enumerate(s for s in SIZES if len(s) > 2):
        matrix = lipsdp_matrix(shaken(family, sizes, "tanh", lip, seed).to_plain(), lip)
        assert np.linalg.eigvalsh(matrix)[0] >= -1e-12 * max(1.0, np.abs(matrix).max())
        # with a little less than the bound an orthogonal network fails: the inequality is not slack by mistake
        if family == "orthogonal" and sizes[0] <= min(sizes[1:]):
            tight = lipsdp_matrix(lipschitz_mlp(family, sizes, lip, seed=seed).to_plain(), 0.99 * lip)
            assert np.linalg.eigvalsh(tight)[0] < 0


@pytest.mark.parametrize("family", BOUNDED)
def test_the_bound_can_be_learnt(family: str) -> None:
    net = lipschitz_mlp(family, (2, 6, 1), 2.0, learnable_lip=True)
    net(torch.randn(4, 2)).sum().backward()
    assert net.log_lip.grad is not None and float(net.lip.detach()) == pytest.approx(2.0)
    with torch.no_grad():
        net.log_lip.add_(1.0)
    assert upper_bounds(net.to_plain())[0].bound <= 2.0 * np.e * (1 + 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_agree_with_finite_differences(family: str) -> None:
    net = shaken(family, (2, 4, 4, 2), "tanh", None if family == "unconstrained" else 3.0).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(net(x).square().sum(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        values = []
        for h in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(h * direction)
                values.append(net(x).square().sum().item())
                parameter.sub_(h * direction)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-6)


def test_maps_are_kept_in_evaluation_until_a_parameter_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = (lipschitz_mlp("sandwich", (2, 4, 1), 1.0, seed=seed) for seed in (0, 1))
    x, calls = torch.randn(3, 2), []
    build = net.weights
    monkeypatch.setattr(net, "weights", lambda dtype: calls.append(dtype) or build(dtype))
    net.eval()
    with torch.no_grad():
        first = net(x)
        net.eval()  # Stable-Baselines3 does this at every prediction
        assert torch.equal(net(x), first) and len(calls) == 1
        net.free[0].add_(0.1)
        assert not torch.equal(net(x), first) and len(calls) == 2
        net.load_state_dict(other.state_dict())
        assert torch.equal(net(x), other(x)) and len(calls) == 3
        net.free[0].data.mul_(0.5)  # how Stable-Baselines3 moves target networks: torch's version counter stays
        moved = net(x)
        assert not torch.equal(moved, other(x)) and len(calls) == 4
        net.load_state_dict(other.state_dict())
        net.train()
        net(x)
        net(x)
        assert len(calls) == 6
        net.eval().double()
        assert torch.allclose(net(x.double()).float(), other(x), atol=1e-6)


@pytest.mark.parametrize(("family", "activation"), [("orthogonal", "householder:2"), ("sandwich", "tanh")])
def test_maps_of_another_network_make_that_network(family: str, activation: str) -> None:
    """Also in memory of their own, which changes of its parameters do not reach."""
    own, other = (lipschitz_mlp(family, (3, 4, 6, 2), 2.0, activation=activation, seed=seed) for seed in (0, 1))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, maps = other(x), other.weights(torch.float32).copy()
        assert not torch.allclose(own(x), expected, atol=1e-2)
        for parameter in other.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
        torch.testing.assert_close(own.evaluate(maps, x), expected)


def test_cayley_has_orthonormal_columns() -> None:
    for shape in ((4, 4), (9, 3), (5, 1)):
        q = orthonormal(torch.randn(*shape, dtype=torch.float64) * 3)
        assert torch.allclose(q.T @ q, torch.eye(shape[1], dtype=torch.float64), atol=1e-12)


def test_torch_activations_are_the_numpy_ones() -> None:
    z = np.linspace(-9, 9, 2001)
    for name, function in FUNCTIONS.items():
        net = PlainNet.mlp([[[1.0]], [[1.0]]], [[0.0], [0.0]], name)
        parameter = net.activations[0].parameter
        torch_values = function(torch.from_numpy(z), parameter).numpy()
        assert np.allclose(torch_values, net.activations[0](z), atol=1e-12), name


@pytest.mark.parametrize("family", ["sandwich", "ldlt", "ldlt-residual", "sll", "cpl"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "mish", "hardswish", "abs", "maxmin"])
def test_activations_outside_the_proof_are_refused(family: str, activation: str) -> None:
    with pytest.raises(UserError, match=r"slopes in \[0, 1\]"):
        lipschitz_mlp(family, (2, 4, 1), 1.0, activation=activation)


@pytest.mark.parametrize("family", LAYERWISE)
def test_layerwise_families_refuse_expanding_activations(family: str) -> None:
    with pytest.raises(UserError, match="1-Lipschitz"):
        lipschitz_mlp(family, (2, 4, 1), 1.0, activation="gelu")


def test_bad_arguments() -> None:
    for arguments, words in (
        (("sandwhich", (2, 4, 1), 1.0), "sandwich"),
        (("sandwich", (2, 4, 1), -1.0), "positive"),
        (("sandwich", (2, 4, 1), float("nan")), "positive"),
        (("sandwich", (2, 4, 1), None), "bound"),
        (("unconstrained", (2, 4, 1), 1.0), "bound"),
        (("sandwich", (2,), 1.0), "at least two positive integers"),
        (("sandwich", (2, 0, 1), 1.0), "at least two positive integers"),
    ):
        with pytest.raises(UserError, match=words):
            lipschitz_mlp(*arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="divisible by 2"):
        lipschitz_mlp("orthogonal", (2, 5, 1), 1.0, activation="maxmin")
    for text in ("groupsort:0", "groupsort:2.5", "groupsort:x", "householder:-2", "householder:1", "elu:-1"):
        with pytest.raises(UserError, match=f"activation '{text}'"):
            lipschitz_mlp("orthogonal", (2, 4, 1), 1.0, activation=text)


def test_unconstrained_networks_claim_no_bound() -> None:
    assert lipschitz_mlp("unconstrained", (2, 4, 1), None).lip.item() == np.inf


def test_normalisation_enters_the_constant() -> None:
    """A gamma-Lipschitz map of (x - mean) / sigma is gamma max(1 / sigma)-Lipschitz in raw units; exactly if linear."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    linear = PlainNet(({0: 2.0 * q},), (np.zeros(3),), ())
    sigma = np.array([0.5, 0.1, 4.0])
    limits = np.full(3, 1e9)
    net = deployed(
        linear,
        mean=np.ones(3),
        scale=sigma,
        output_offset=np.zeros(3),
        output_scale=np.full(3, 3.0),
        low=-limits,
        high=limits,
    )
    assert upper_bounds(net)[0].bound == pytest.approx(2.0 * 3.0 / 0.1, rel=1e-9)
    x = rng.normal(size=(5, 3))
    assert np.allclose(net(x), 3.0 * linear((x - 1) / sigma))


def test_what_cannot_be_folded_in_is_refused() -> None:
    net, one = PlainNet(({0: np.eye(1)},), (np.zeros(1),), ()), np.ones(1)
    good = dict(mean=0 * one, scale=one, output_offset=0 * one, output_scale=one, low=-one, high=one)
    assert deployed(net, **good)(np.array([3.0])) == 1.0
    for changed in ({"scale": 0 * one}, {"scale": -one}, {"output_scale": np.nan * one}):
        with pytest.raises(UserError, match="scales must be positive"):
            deployed(net, **(good | changed))
    with pytest.raises(UserError, match="already has output limits"):
        deployed(deployed(net, **good), **good)


def test_deployed_multipliers_still_prove_the_bound() -> None:
    net = shaken("sandwich", (3, 8, 8, 2), "tanh", 2.0).to_plain()
    wide = deployed(
        net,
        mean=np.zeros(3),
        scale=np.full(3, 0.25),
        output_offset=np.ones(2),
        output_scale=np.full(2, 5.0),
        low=-np.ones(2),
        high=np.ones(2),
    )
    own = next(c for c in upper_bounds(wide) if c.method == "own")
    assert own.bound <= 2.0 * 4 * 5 * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lip", [1.0, 5.0])
def test_square_wave_fit_reaches_the_analytic_optimum(lip: float) -> None:
    """The best mean squared error of a lip-Lipschitz fit of a unit square wave on [-2, 2] is 1 / (16 lip)."""
    x = (torch.arange(400) + 0.5)[:, None] / 100 - 2  # midpoints: no sample on a jump
    target = torch.sign(torch.sin(np.pi * x)) / 2
    errors = {}
    for family, activation in (("sandwich", "relu"), ("spectral", "relu")):
        net = lipschitz_mlp(family, (1, 64, 64, 64, 1), lip, activation=activation)
        optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, 800)
        for _ in range(800):
            loss = (net(x) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        errors[family] = float(loss.detach())
    best = square_wave_optimum(lip)
    assert errors["sandwich"] <= 1.1 * best and errors["spectral"] > 1.3 * best, errors


def square_wave_optimum(lip: float) -> float:
    """Each of three jumps of height 1 costs 2 int_0^(1/2L) (1/2 - L t)^2 dt = 1/(12 L), spread over a length of 4."""
    return 3 / (12 * lip) / 4


@pytest.mark.parametrize("family", BOUNDED)
@pytest.mark.parametrize("sizes", [(3, 4, 6, 2), (5, 4, 1)])
def test_parameters_with_a_leading_axis_are_several_networks(family: str, sizes: tuple[int, ...]) -> None:
    for activation in ("tanh", *(("maxmin", "householder:2") if family in LAYERWISE else ())):
        nets = [
            lipschitz_mlp(family, sizes, 2.0 + seed, activation=activation, learnable_lip=True, seed=seed)
            for seed in range(3)
        ]
        generator = torch.Generator().manual_seed(0)
        for net in nets:
            for parameter in net.parameters():
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        x = torch.randn(3, 5, sizes[0], generator=generator)
        expected = torch.stack([net(rows) for net, rows in zip(nets, x, strict=True)])
        named = [dict(net.named_parameters()) for net in nets]
        stacked = {name: torch.stack([each[name] for each in named]) for name in named[0]}
        torch.testing.assert_close(functional_call(nets[0], stacked, (x,)), expected, rtol=1e-5, atol=1e-5)
