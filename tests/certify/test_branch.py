"""Branch and bound against enumeration of activation patterns, and proofs that break when they are touched."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog

from lipctrl.certify import branch
from lipctrl.certify.branch import branch_and_bound
from lipctrl.certify.certificate import Box, Certificate
from lipctrl.certify.jacobian import jacobian_certificate
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair

Array = NDArray[np.float64]
L2, LINF = NormPair(), NormPair("linf", "linf")
BOX = Box((-1.0, -1.0), (1.5, 1.5))


def size_of(jacobian: Array, norm: NormPair) -> float:
    return float(np.linalg.norm(jacobian, 2 if norm.input == "l2" else np.inf))


def enumerated(net: PlainNet, box: Box, norm: NormPair) -> float:
    """Largest |J| over the activation patterns of a ReLU network whose cells have inner points in the box."""
    weights, best = [row[k] for k, row in enumerate(net.blocks)], 0.0

    def descend(k: int, a: Array, c: Array, rows: Array, offsets: Array) -> None:
        nonlocal best
        if k == len(net.activations):
            best = max(best, size_of(weights[k] @ a, norm))
            return
        z, z0 = weights[k] @ a, weights[k] @ c + net.biases[k]
        for signs in itertools.product((1.0, -1.0), repeat=len(z0)):
            s = np.array(signs)
            g, h = np.vstack([rows, s[:, None] * z]), np.append(offsets, s * z0)
            length = np.linalg.norm(g, axis=1)
            moving = length > 0
            if (h[~moving] < 0).any():
                continue
            a_ub = np.hstack([-g[moving], length[moving, None]])
            cost = np.append(np.zeros(a.shape[1]), -1.0)
            limits = [*zip(box.low, box.high, strict=True), (None, 1)]
            solved = linprog(cost, A_ub=a_ub, b_ub=h[moving], bounds=limits)
            if -solved.fun > 1e-9:
                active = (s > 0).astype(np.float64)
                descend(k + 1, active[:, None] * z, active * z0, g, h)

    n = net.input_size
    descend(0, np.eye(n), np.zeros(n), np.zeros((0, n)), np.zeros(0))
    return best


def random_net(seed: int, widths: tuple[int, ...], activation: str = "relu") -> PlainNet:
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(widths)]
    return PlainNet.mlp(weights, [rng.normal(size=n) for n in widths[1:]], activation)


def certified(net: PlainNet, norm: NormPair, box: Box = BOX, parts: int = 500) -> Certificate:
    certificate = branch_and_bound(net, norm, box, parts=parts)
    assert certificate is not None and certificate.verify(net)
    return certificate


@pytest.mark.parametrize("norm", [L2, LINF], ids=str)
@pytest.mark.parametrize("widths", [(2, 6, 2), (2, 4, 3, 2), (1, 3, 3, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_small_relu_networks_are_exact(seed: int, widths: tuple[int, ...], norm: NormPair) -> None:
    net, box = random_net(seed, widths), Box((-1.0,) * widths[0], (1.5,) * widths[0])
    exact = enumerated(net, box, norm)
    assert exact <= certified(net, norm, box).bound <= exact * (1 + 1e-10) + 1e-100


@pytest.mark.parametrize("norm", [L2, LINF], ids=str)
@pytest.mark.parametrize("activation", ["abs", "leaky_relu:-0.3", "leaky_relu:1.5", "maxmin"])
@pytest.mark.parametrize("seed", range(3))
def test_other_kinks_are_exact_where_samples_reach_every_cell(seed: int, activation: str, norm: NormPair) -> None:
    net = random_net(seed, (2, 4, 4, 2), activation)
    x = np.random.default_rng(seed).uniform(-1, 1.5, size=(40_000, 2))
    sampled = max(size_of(j, norm) for j in np.unique(net.jacobian(x).round(12), axis=0))
    bound = certified(net, norm).bound
    assert sampled * (1 - 1e-10) <= bound <= sampled * (1 + 1e-9)


def test_smooth_activations_are_left_whole() -> None:
    net = random_net(0, (2, 4, 4, 2), "tanh")
    jacobian = jacobian_certificate(net, LINF, BOX)
    assert jacobian is not None and certified(net, LINF).bound == jacobian.bound


def test_any_budget_is_valid_and_more_is_better() -> None:
    net = random_net(1, (2, 8, 8, 2))
    jacobian = jacobian_certificate(net, L2, BOX)
    bounds = [certified(net, L2, parts=parts).bound for parts in (1, 3, 10, 30, 100, 300)]
    assert jacobian is not None and bounds[0] == jacobian.bound
    assert all(b <= a for a, b in itertools.pairwise(bounds)) and bounds[-1] < 0.9 * bounds[0]
    points = np.random.default_rng(0).uniform(-1, 1.5, size=(4000, 2))
    assert max(size_of(j, L2) for j in net.jacobian(points)) <= bounds[-1]


def leaves(tree: branch.Tree) -> list[branch.Tree]:
    return [tree] if "step" not in tree else leaves(tree["+"]) + leaves(tree["-"])


@pytest.mark.parametrize("seed", [3, 5, 7, 9])
def test_touched_proofs_fail(seed: int, tmp_path: Path) -> None:
    net = random_net(seed, (2, 4, 3, 2))
    certificate = certified(net, L2)
    certificate.save(tmp_path / "c.json")
    loaded = Certificate.load(tmp_path / "c.json")
    assert loaded.verify(net) and loaded.bound == certificate.bound
    assert not replace(certificate, bound=certificate.bound * (1 - 1e-9)).verify(net)
    assert not replace(certificate, proof={"kind": "branches", "tree": {"bounded": True}}).verify(net)
    larger = Box((-9.0, -9.0), (9.0, 9.0))
    if enumerated(net, larger, L2) > certificate.bound:
        assert not replace(certificate, region=larger).verify(net)
    count, closed_by_program = len(leaves(certificate.proof["tree"])), 0
    for i in range(count):
        tree = copy.deepcopy(certificate.proof["tree"])
        leaf = leaves(tree)[i]
        if "bounded" in leaf:  # a part that holds inputs must not be called empty
            del leaf["bounded"]
            leaf["empty"] = []
        elif leaf["empty"]:  # an empty part needs its multipliers, with their sign
            closed_by_program += 1
            leaf["empty"] = [[k, j, -pi] for k, j, pi in leaf["empty"]]
        else:
            continue
        assert not replace(certificate, proof={"kind": "branches", "tree": tree}).verify(net)
    assert closed_by_program > 0
    tree = copy.deepcopy(certificate.proof["tree"])
    del tree["-"]
    assert not replace(certificate, proof={"kind": "branches", "tree": tree}).verify(net)


def test_a_part_that_bounds_exclude_counts_as_bounded() -> None:
    net = PlainNet.mlp([np.ones((1, 1)), np.ones((1, 1))], [np.array([5.0]), np.zeros(1)], "relu")
    tree = {"step": 0, "neuron": 0, "+": {"bounded": True}, "-": {"bounded": True}}
    honest = certified(net, L2, Box((-1.0,), (1.0,)))
    assert replace(honest, proof={"kind": "branches", "tree": tree}).verify(net)


def test_multipliers_must_not_be_negative() -> None:
    net = PlainNet.mlp([np.ones((2, 1)), np.ones((1, 2))], [np.array([0.0, 0.5]), np.zeros(1)], "relu")
    bounded, box = {"bounded": True}, Box((-1.0,), (1.0,))
    forged = {"empty": [[0, 0, 1.0], [0, 1, -1.0]]}  # z_1 - z_2 = -1/2 is negative, but x = 1 is in the part
    second = {"step": 0, "neuron": 1, "+": forged, "-": bounded}
    tree = {"step": 0, "neuron": 0, "+": second, "-": bounded}
    honest = certified(net, L2, box)
    assert honest.bound == pytest.approx(2)
    assert not replace(honest, bound=1.01, proof={"kind": "branches", "tree": tree}).verify(net)


def test_checking_needs_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_net(5, (2, 4, 3, 2))
    certificate = certified(net, L2)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a solver was called")

    monkeypatch.setattr(branch, "linprog", refuse)
    assert certificate.verify(net)
