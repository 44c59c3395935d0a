"""Projections against singular value decompositions, published constants, and the refusal of what does not hold."""

import numpy as np
import pytest
import torch

from lipctrl.files import UserError
from lipctrl.nn.projection import (
    HARD_CAP,
    HARD_RANGE,
    HARD_SUPREMUM,
    capped,
    matrices_of,
    muon,
    muon_step,
    project_,
    project_after_steps,
    soft_cap_strength,
)


def norm(w: torch.Tensor) -> float:
    return torch.linalg.matrix_norm(w.detach().double(), 2).item()


@pytest.mark.parametrize(("bound", "step", "expected"), [(1, 0.1, 0.1589), (1, 0.01, 0.0580), (2, 0.1, 0.0306)])
def test_soft_cap_strengths(bound: float, step: float, expected: float) -> None:
    assert soft_cap_strength(bound, step) == pytest.approx(expected, abs=5e-5)


def test_soft_cap_maps_the_reachable_norm_to_the_bound_and_holds_below() -> None:
    for bound, step, decay in ((1.0, 0.1, 0.0), (2.0, 0.1, 0.0), (1.0, 0.05, 0.02)):
        a = soft_cap_strength(bound, step, decay)
        k = bound * (1 - decay) + step
        w = torch.diag(torch.linspace(0, k, 200, dtype=torch.float64))
        values = torch.diagonal(capped(w, bound, "soft", strength=a))
        assert values.max() <= bound * (1 + 1e-6) and values[-1] == pytest.approx(bound, rel=1e-6)
        assert (values >= 0).all()


def test_soft_cap_refuses_steps_for_which_the_coupling_is_not_a_bound() -> None:
    with pytest.raises(UserError, match="cannot hold updates of norm 0.5"):
        soft_cap_strength(1.0, 0.5)
    assert soft_cap_strength(1.0, 0.0) == 0.0


def test_supremum_of_the_hard_cap() -> None:
    s = np.linspace(0, HARD_RANGE, 400_001)
    for c1, c3, c5 in HARD_CAP:
        s = c1 * s + c3 * s**3 + c5 * s**5
    assert s.max() == pytest.approx(1.0109, abs=1e-4) and s.max() <= HARD_SUPREMUM + 1e-5


@pytest.mark.parametrize("method", ["svd", "hard"])
@pytest.mark.parametrize("shape", [(8, 8), (30, 5), (4, 19), (1, 7)])
def test_norms_are_at_most_the_bound(method: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 30.0):
        w = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        assert norm(capped(w, 1.7, method)) <= 1.7 * (1 + 1e-5)  # type: ignore[arg-type]


def test_hard_cap_leaves_wide_matrices_at_the_bound_there() -> None:
    for size in (8, 64, 200):
        q = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0]
        for scale in (1.0, 3.0):
            s = torch.linalg.svdvals(capped(scale * q, 1.0, "hard"))
            assert s.min() > 0.9 and s.max() <= 1 + 1e-5


def test_svd_clip_is_the_nearest_matrix_and_leaves_small_ones_alone() -> None:
    w = torch.randn(6, 4, dtype=torch.float64)
    s = torch.linalg.svdvals(w)
    assert torch.allclose(torch.linalg.svdvals(capped(w, 1.0)), s.clamp(max=1.0))
    assert torch.allclose(capped(0.1 * w / s[0], 1.0), 0.1 * w / s[0])


def test_hook_holds_for_any_optimiser() -> None:
    for build in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop):
        net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
        project_(matrices_of(net), 1.0)
        optimiser = build(net.parameters(), lr=0.1)
        project_after_steps(optimiser, matrices_of(net), 1.0)
        x, y = torch.randn(64, 3), 9 * torch.randn(64, 2)
        for _ in range(20):
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()
            optimiser.step()
            assert max(norm(w) for w in matrices_of(net)) <= 1.0 + 1e-5


def test_muon_updates_are_no_larger_than_assumed() -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in ((12, 12), (24, 6), (6, 24)):
        for rank in (1, 3, min(shape)):
            w = torch.nn.Parameter(torch.zeros(shape))
            optimiser = torch.optim.Muon([w], lr=0.02, weight_decay=0.0)
            left = torch.randn(shape[0], rank, generator=generator)
            w.grad = left @ torch.randn(rank, shape[1], generator=generator)
            optimiser.step()
            assert 0 < norm(w.detach()) <= muon_step(0.02, shape)


def test_muon_with_soft_cap_keeps_every_matrix_inside() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    optimisers = muon(net, 0.02, bound=1.0)
    x, y = torch.randn(64, 4), 9 * torch.randn(64, 2)
    for _ in range(60):
        for optimiser in optimisers:
            optimiser.zero_grad()
        (net(x) - y).square().mean().backward()
        for optimiser in optimisers:
            optimiser.step()
    norms = [norm(w.detach()) for w in matrices_of(net)]
    assert max(norms) <= 1.0 + 1e-4 and max(norms) > 0.9
    with pytest.raises(UserError, match="cannot hold"):
        muon(net, 0.5, bound=1.0)


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="positive"):
        project_([torch.eye(2)], -1.0)
    with pytest.raises(UserError, match="matrices"):
        project_([torch.ones(2)], 1.0)


def test_a_method_that_would_not_hold_the_bound_is_refused() -> None:
    with pytest.raises(UserError, match="with a strength"):
        project_([2 * torch.eye(2)], 1.0, "soft")
    with pytest.raises(UserError, match="svd_clip"):
        project_([2 * torch.eye(2)], 1.0, "svd_clip")  # type: ignore[arg-type]
