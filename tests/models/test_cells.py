"""A battery over every family: torch against the unrolled network, causality, convexity claims, bounds, files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lipctrl.certify.all_active import gain_bounds
from lipctrl.certify.bracket import certify
from lipctrl.certify.lower import lower_bound
from lipctrl.files import UserError
from lipctrl.models.cells import CELLS
from lipctrl.models.convexity import is_convex, midpoint_violation
from lipctrl.models.iclrnn import Iclrnn
from lipctrl.models.model import ProcessModel, Scaling, build
from lipctrl.models.published import Published
from lipctrl.norms import NormPair

N, M, T = 2, 2, 4
SCALING = Scaling(np.array([1.0, 300.0]), np.array([2.0, 50.0]), np.array([0.5, -5e5]), np.array([7.0, 1e6]))
NAMES = ("c [mol]", "T [K]"), ("feed [mol]", "Q [kJ]")
PLAIN = [name for name in CELLS if name != "lstm"]
CONVEX = [name for name, cell in CELLS.items() if cell.convex]


def model(family: str, *, seed: int = 0, activation: str = "softplus", width: int = 6) -> ProcessModel:
    torch.manual_seed(seed)
    cell = build(family, N, M, width=width, horizon=T, activation=activation).double()
    with torch.no_grad():
        for name, weight in cell.named_parameters():
            if name.startswith("from_") or name in ("offset", "b1", "b2", "b3", "bo"):
                weight.copy_(0.3 * torch.randn_like(weight))
    cell.project_(dict(cell.named_parameters()))
    return ProcessModel(family, cell, SCALING, *NAMES, 0.1, "h")  # type: ignore[arg-type]


def points(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = SCALING.state_low + rng.random((count, N)) * SCALING.state_width
    return x, SCALING.input_low + rng.random((count, T, M)) * SCALING.input_width


def flat(x: np.ndarray, u: np.ndarray) -> np.ndarray:
    return np.hstack([x, u.reshape(len(x), -1)])


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("family", PLAIN)
def test_the_unrolled_network_is_the_model(family: str, activation: str) -> None:
    made, (x, u) = model(family, activation=activation), points(40)
    expected = made.predict(x, u)
    found = made.to_plain()(flat(x, u)).reshape(40, T, N)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    short = made.to_plain(steps=2)(flat(x, u[:, :2])).reshape(40, 2, N)
    np.testing.assert_allclose(short, expected[:, :2], rtol=1e-10)
    held = np.repeat(u[:, ::2], 2, axis=1)
    periods = made.to_plain(hold=2)(flat(x, u[:, ::2])).reshape(40, T // 2, N)
    np.testing.assert_allclose(periods, made.predict(x, held)[:, 1::2], rtol=1e-10)
    np.testing.assert_allclose(made.predict(x[0], u[0]), expected[0], rtol=1e-12)


@pytest.mark.parametrize("family", CELLS)
def test_later_inputs_do_not_change_earlier_states(family: str) -> None:
    made, (x, u) = model(family), points(10)
    other = u.copy()
    other[:, 2:] = points(10, seed=1)[1][:, 2:]
    before, after = made.predict(x, u), made.predict(x, other)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert np.abs(before[:, 2:] - after[:, 2:]).max() > 0
    np.testing.assert_allclose(made.predict(x, u[:, :3]), before[:, :3], rtol=1e-12)


def box() -> tuple[np.ndarray, np.ndarray]:
    low = np.concatenate([SCALING.state_low, np.tile(SCALING.input_low, T)])
    return low, low + np.concatenate([SCALING.state_width, np.tile(SCALING.input_width, T)])


@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("family", CONVEX)
def test_convex_families_are_convex_by_structure_and_at_random_midpoints(family: str, activation: str) -> None:
    scaled = np.tile(SCALING.state_width, T)
    for seed in range(5):
        net = model(family, seed=seed, activation=activation).to_plain()
        violation = midpoint_violation(lambda z, net=net: net(z) / scaled, *box(), seed=seed)  # type: ignore[misc]
        assert is_convex(net) and violation <= 1e-12


@pytest.mark.parametrize("family", [name for name in PLAIN if name not in CONVEX])
def test_the_others_are_not(family: str) -> None:
    net = model(family).to_plain()
    scaled = np.tile(SCALING.state_width, T)
    assert not is_convex(net) and midpoint_violation(lambda z: net(z) / scaled, *box(), seed=0) > 1e-6


def test_feeding_predictions_back_is_not_convex_and_unrolling_is() -> None:
    """The published model over two intervals, each started at the prediction of the last: convexity is lost."""
    torch.manual_seed(0)
    cell = Published(N, M, 16, T).double()
    with torch.no_grad():
        cell.b1.copy_(-torch.rand(16))
    cell.project_(dict(cell.named_parameters()))
    made = ProcessModel("iclrnn-published", cell, SCALING, *NAMES, 0.1, "h")

    def two_intervals(z: np.ndarray) -> np.ndarray:
        x, u, v = z[:, :N], z[:, N : N + M], z[:, N + M :]
        middle = made.predict(x, np.repeat(u[:, None], T, axis=1))[:, -1]
        return np.asarray(made.predict(middle, np.repeat(v[:, None], T, axis=1))[:, -1] / SCALING.state_width)

    low = np.concatenate([SCALING.state_low, np.tile(SCALING.input_low, 2)])
    high = low + np.concatenate([SCALING.state_width, np.tile(SCALING.input_width, 2)])
    assert midpoint_violation(two_intervals, low, high, seed=0) > 1e-5
    once = made.to_plain()
    assert midpoint_violation(lambda z: once(z), *box(), seed=0) <= 1e-10


def test_weights_that_break_the_claim_are_not_exported() -> None:
    made = model("iclrnn-published")
    with torch.no_grad():
        made.cell.get_parameter("u1")[0, 0] = -0.1
    with pytest.raises(UserError, match="break its claim"):
        made.to_plain()


@pytest.mark.parametrize("family", ["iclrnn", "iclrnn-published"])
def test_the_bound_over_the_horizon_is_proved_and_above_every_witness(family: str) -> None:
    for seed in range(3):
        net = model(family, seed=seed).to_plain()
        scales = tuple(np.concatenate([SCALING.state_width, np.tile(SCALING.input_width, T)]))
        norm = NormPair(input_scale=scales, output_scale=tuple(np.tile(SCALING.state_width, T)))
        bound = certify(net, norm, method="all-active").upper
        found = lower_bound(net, norm, seed=seed).bound
        assert bound.verify(net) and 0 < found <= bound.bound < 6 * found


def test_published_weights_are_normalised_not_projected() -> None:
    made = model("iclrnn-published", width=12)
    for name in ("w1", "u1", "w2", "u2", "out"):
        weight = made.cell.get_parameter(name)
        assert (weight >= 0).all() and 0.98 < torch.linalg.matrix_norm(weight, 2) <= 1
    tiny = {name: 1e-2 * weight.detach() for name, weight in made.cell.named_parameters()}
    Published.project_(tiny)
    assert torch.linalg.matrix_norm(tiny["u1"], 2) > 0.8  # a small matrix is made large again


def bjorck(w: np.ndarray) -> np.ndarray:
    """15 steps towards the nearest orthogonal matrix, as in the early versions of the published code."""
    for _ in range(15):
        w = 1.5 * w - 0.5 * w @ w.T @ w
    return w


@pytest.mark.parametrize("size", [64, 128])
def test_orthogonalising_and_clipping_undo_each_other(size: int) -> None:
    """Why the published constructions before December 2024 are not here: each order breaks one of the two claims."""
    w = np.random.default_rng(0).normal(size=(size, size))
    clipped = np.maximum(w, 0)
    first = bjorck(clipped / np.linalg.norm(clipped, 2))
    assert (first < 0).mean() > 0.3 and np.linalg.norm(first, 2) < 1.01
    second = np.maximum(bjorck(w / np.linalg.norm(w, 2)), 0)
    assert np.linalg.norm(second, 2) > 1.5 and (second >= 0).all()


def test_states_of_the_convex_cell_contract() -> None:
    cell = model("iclrnn").cell
    assert isinstance(cell, Iclrnn)
    for weight in cell.hidden()[:2]:
        assert (weight >= 0).all() and torch.allclose(weight.sum(1), torch.full((6,), 0.95, dtype=weight.dtype))


def test_files(tmp_path: Path) -> None:
    for family in CELLS:
        made, (x, u) = model(family, activation="relu"), points(5)
        made.save(tmp_path / "m.npz")
        again = ProcessModel.load(tmp_path / "m.npz")
        np.testing.assert_array_equal(again.predict(x, u), made.predict(x, u))
        assert again.state_names == made.state_names and again.dt == 0.1
    (tmp_path / "cut.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:-60])
    for path, words in ((tmp_path / "cut.npz", "whole process model"), (tmp_path / "none.npz", "no process model")):
        with pytest.raises(UserError, match=words):
            ProcessModel.load(path)


def test_bad_input() -> None:
    made, (x, u) = model("iclrnn"), points(3)
    with pytest.warns(UserWarning, match="extrapolated"):
        twice = made.predict(x, np.concatenate([u, u[:, :2]], axis=1))
    np.testing.assert_array_equal(twice[:, :T], made.predict(x, u))
    np.testing.assert_array_equal(twice[:, T:], made.predict(twice[:, T - 1], u[:, :2]))
    with pytest.raises(UserError, match="needs a start"):
        made.predict(x[:, :1], u)
    with pytest.raises(UserError, match="1 to 4 steps"):
        made.to_plain(steps=5)
    with pytest.raises(UserError, match="multiplies its gates"):
        model("lstm").to_plain()
    with pytest.raises(UserError, match="iclrnn"):
        build("iclrn", N, M, width=4, horizon=2)
    assert replace(made, dt=0.2).horizon == T


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_the_gain_is_projected_not_normalised(limit: float) -> None:
    """The bound of training is that of the certificate; a smaller gain stays as it is."""
    cells = [model("iclrnn", seed=seed) for seed in range(3)]
    weights = {
        name: torch.stack([dict(made.cell.named_parameters())[name].detach() for made in cells])
        for name in dict(cells[0].cell.named_parameters())
    }
    scales = tuple(np.concatenate([SCALING.state_width, np.tile(SCALING.input_width, T)]))
    norm = NormPair(input_scale=scales, output_scale=tuple(np.tile(SCALING.state_width, T)))
    before = Iclrnn.gain(weights).numpy()
    for made, found in zip(cells, before, strict=True):
        largest = np.max(np.abs(gain_bounds(made.to_plain())), axis=0)
        scaled = largest * np.array(scales) / np.tile(SCALING.state_width, T)[:, None]
        assert np.linalg.norm(scaled, 2) == pytest.approx(found, rel=1e-12)
    Iclrnn.limit_gain_(weights, limit)
    for k, made in enumerate(cells):
        with torch.no_grad():
            for name, weight in made.cell.named_parameters():
                weight.copy_(weights[name][k])
        found = certify(made.to_plain(), norm, method="all-active").upper.bound
        assert found <= min(limit, before[k]) * (1 + 1e-9) and found >= 0.5 * min(limit, before[k])
