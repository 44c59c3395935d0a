"""Convex MPC: closed form without a network, multi-start IPOPT on networks, the gap as a proof, refusals."""

from dataclasses import replace

import casadi as ca
import numpy as np
import pytest
import torch

from lipctrl.files import UserError
from lipctrl.models.model import ProcessModel, Scaling, build
from lipctrl.mpc.convex import ConvexCost, ConvexMPC
from lipctrl.nn.plain import PlainNet
from lipctrl.symbolic.network import to_casadi

N, M, T = 2, 1, 5
COST = ConvexCost(
    price=np.zeros(N),
    weight=np.array([5.0, 20.0]),
    limit=np.array([0.4, 0.5]),
    R=np.array([[0.5]]),
    u_ref=np.array([0.8]),
    u_low=np.array([-1.0]),
    u_high=np.array([1.0]),
)


def network(seed: int, activation: str = "softplus") -> PlainNet:
    torch.manual_seed(seed)
    cell = build("iclrnn", N, M, width=8, horizon=T, activation=activation).double()
    with torch.no_grad():
        for weight in (cell.get_parameter("from_start"), cell.get_parameter("from_inputs")):
            weight.copy_(0.4 * torch.randn_like(weight))
        cell.get_parameter("out").copy_(torch.full((N, 8), -2.0) + torch.randn(N, 8))
    scaling = Scaling(np.zeros(N), np.ones(N), -np.ones(M), 2 * np.ones(M))
    return ProcessModel("iclrnn", cell, scaling, ("a [-]", "b [-]"), ("u [-]",), 1.0, "s").to_plain()


def ipopt_best(net: PlainNet, cost: ConvexCost, x: np.ndarray, starts: int = 5) -> float:
    u = ca.MX.sym("u", T * M)
    y = to_casadi(net)(ca.vertcat(ca.DM(x), u))
    over = ca.fmax(y - np.tile(cost.limit, T), 0)
    V = ca.dot(np.tile(cost.price, T), y) + ca.dot(np.tile(cost.weight, T), over**2)
    V += float(cost.R[0, 0]) * ca.sumsqr(u - cost.u_ref[0])
    options = {"print_time": False, "ipopt": {"print_level": 0, "sb": "yes", "tol": 1e-10}}
    solver, rng = ca.nlpsol("s", "ipopt", {"x": u, "f": V}, options), np.random.default_rng(0)
    found = [solver(x0=rng.uniform(-1, 1, T), lbx=-1, ubx=1)["f"] for _ in range(starts)]
    return min(float(f) for f in found)


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("activation", ["softplus", "relu"])
@pytest.mark.parametrize("seed", range(4))
def test_no_start_of_ipopt_finds_anything_below_the_proved_bound(seed: int, activation: str, priced: bool) -> None:
    net = network(seed, activation)
    cost = replace(COST, price=np.array([0.3, 0.1])) if priced else COST
    x = np.random.default_rng(seed).uniform(0.2, 0.9, N)
    plan = ConvexMPC(net, cost).solve(x)
    assert plan.gap <= 1e-4 * max(1, abs(plan.cost)) or activation == "relu"
    best = ipopt_best(net, cost, x)
    assert plan.cost - plan.gap <= best + 1e-7 and plan.cost <= best + plan.gap + 1e-7
    np.testing.assert_allclose(plan.states.ravel(), net(np.concatenate([x, plan.inputs.ravel()])))
    assert (np.abs(plan.inputs) <= 1).all()


def epigraph(net: PlainNet, cost: ConvexCost, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Another formulation: every relu unit and every excess is a variable above its line, one quadratic programme.

    Tight because the cost never falls when a unit rises (Amos, Xu and Kolter, arXiv 1609.07152, section 3).
    """
    u = ca.MX.sym("u", T * M)
    values, rows = [ca.vertcat(ca.DM(x), u)], []
    lines = [
        lambda row=row, bias=bias: sum(ca.DM(block) @ values[j] for j, block in row.items()) + ca.DM(bias)
        for row, bias in zip(net.blocks, net.biases, strict=True)
    ]
    for line in lines[:-1]:
        above = line()
        values.append(ca.MX.sym("z", above.numel()))
        rows.append(values[-1] - above)
    excess = ca.MX.sym("s", T * N)
    rows.append(excess - (lines[-1]() - np.tile(cost.limit, T)))
    du = u - np.tile(cost.u_ref, T)
    f = ca.dot(np.tile(cost.weight, T), excess**2) + float(cost.R[0, 0]) * ca.sumsqr(du)
    z = ca.vertcat(u, *values[1:], excess)
    options = {"print_time": False, "error_on_fail": False, "piqp": {"eps_abs": 1e-10, "eps_rel": 1e-11}}
    solver = ca.qpsol("epigraph", "piqp", {"x": z, "f": f, "g": ca.vertcat(*rows)}, options)
    free = z.numel() - T * M
    low, high = (np.append(end * np.ones(T * M), np.full(free, other)) for end, other in ((-1, 0), (1, np.inf)))
    found = solver(lbx=low, ubx=high, lbg=0, ubg=np.inf)
    return float(found["f"]), np.array(found["x"]).ravel()[: T * M]


@pytest.mark.parametrize("seed", range(4))
def test_tangents_come_to_the_optimum_of_the_epigraph_programme(seed: int) -> None:
    net, x = network(seed, "relu"), np.random.default_rng(seed).uniform(0.2, 0.9, N)
    plan = ConvexMPC(net, COST).solve(x)
    optimum, inputs = epigraph(net, COST, x)
    u = inputs.reshape(T, M)
    simulated = ConvexMPC(net, COST).value(u, net(np.concatenate([x, inputs])).reshape(T, N))
    assert simulated == pytest.approx(optimum, rel=1e-6, abs=1e-7)  # the relaxation is tight
    assert optimum - 1e-6 <= plan.cost <= optimum + 1e-3 * max(1, optimum) and plan.cost - plan.gap <= optimum + 1e-7


def test_an_affine_model_is_solved_by_one_programme_as_in_closed_form() -> None:
    """x_1 = x + u, weight on x above 0: minimise w max(0, x + u)^2 + (u - r)^2 gives u = (r - w x) / (1 + w)."""
    net = PlainNet(({0: np.array([[1.0, 1.0]])},), (np.zeros(1),), ())
    one = np.ones(1)
    cost = ConvexCost(np.zeros(1), 3 * one, np.zeros(1), np.eye(1), 0.5 * one, -2 * one, 2 * one)
    plan = ConvexMPC(net, cost).solve([1.0])
    assert plan.inputs[0, 0] == pytest.approx((0.5 - 3 * 1.0) / 4, abs=1e-8) and plan.iterations == 1
    assert ConvexMPC(net, cost).solve([-3.0]).inputs[0, 0] == pytest.approx(0.5)
    far = ConvexMPC(net, cost).solve([50.0])
    assert far.inputs[0, 0] == pytest.approx(-2.0, abs=1e-9) and far.gap == pytest.approx(0, abs=1e-6)


def test_the_gap_of_any_plan_is_a_bound_of_what_is_lost() -> None:
    mpc, x = ConvexMPC(network(1), COST), np.array([0.6, 0.7])
    best, rng = mpc.solve(x), np.random.default_rng(0)
    for _ in range(50):
        inputs = rng.uniform(-1, 1, (T, M))
        states, J = mpc._evaluate(x, inputs)
        assert mpc.value(inputs, states) - mpc._gap(inputs, states, J) <= best.cost + 1e-9


def test_a_good_start_saves_programmes() -> None:
    mpc, x = ConvexMPC(network(2), COST), np.array([0.9, 0.9])
    cold = mpc.solve(x)
    assert mpc.solve(x, cold.inputs).iterations < cold.iterations


def test_refusals() -> None:
    net = network(0)
    tanh = PlainNet.mlp([np.ones((3, N + T)), np.ones((T * N, 3))], [np.zeros(3), np.zeros(T * N)], "tanh")
    for call, words in (
        (lambda: ConvexMPC(tanh, COST), "not convex in its inputs"),
        (lambda: ConvexMPC(net, replace(COST, limit=np.zeros(3), price=np.zeros(3), weight=np.ones(3))), "maps"),
        (lambda: replace(COST, price=np.array([-1.0, 0.0])), "not convex"),
        (lambda: replace(COST, R=np.zeros((1, 1))), "positive definite"),
        (lambda: replace(COST, u_high=np.array([np.inf])), "finite input limits"),
        (lambda: replace(COST, u_high=np.array([-1.0])), "low below high"),
        (lambda: ConvexMPC(net, COST).solve([1.0]), "state needs"),
        (lambda: ConvexMPC(net, COST).solve([1.0, 1.0], np.zeros((2, 1))), "guess needs"),
    ):
        with pytest.raises(UserError, match=words):
            call()
