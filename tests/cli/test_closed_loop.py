"""The closed-loop table against simulation, on linear, nonlinear and linearised plants, and where it is vacuous."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipctrl.cli.closed_loop import Loop, closed_loop, level_without_saturation, loop_of
from lipctrl.cli.experts import make_env
from lipctrl.envs.base import PlantEnv
from lipctrl.files import UserError
from lipctrl.mpc.tube import mismatch_network
from lipctrl.nn.plain import PlainNet

Run = Callable[..., tuple[int, str, str]]
DI, PENDULUM = "lipctrl/DoubleIntegrator-v0", "lipctrl/Pendulum-v0"


def near_expert(loop: Loop, size: float, limit: float = 50.0) -> PlainNet:
    """-K x plus a small smooth network, with input limits."""
    n, m = loop.B.shape
    rng = np.random.default_rng(0)
    net = PlainNet.mlp(
        [rng.normal(size=(6, n)), size * rng.normal(size=(m, 6))], [rng.normal(size=6), np.zeros(m)], "tanh"
    )
    last = net.blocks[-1] | {0: -loop.expert.K}  # type: ignore[operator]  # a dict
    net = replace(net, blocks=(*net.blocks[:-1], last))
    net = replace(net, biases=(net.biases[0], -net(np.zeros(n)) + 0.002))
    return replace(net, low=np.full(m, -limit), high=np.full(m, limit))


def rows_of(loop: Loop, net: PlainNet, **settings: object) -> dict[str, float | None]:
    table = closed_loop(loop, net, **settings)  # type: ignore[arg-type]
    return {row.quantity: row.value for row in table.rows}


def test_the_error_network_is_the_error() -> None:
    loop = loop_of(make_env(DI))
    net = near_expert(loop, 0.1)
    x = np.random.default_rng(1).normal(size=(50, 2))
    assert np.allclose(
        mismatch_network(net.without_limits(), loop.expert.K)(x),
        net.without_limits()(x) + x @ loop.expert.K.T,
        atol=1e-12,
    )
    twice = mismatch_network(mismatch_network(net.without_limits(), loop.expert.K), -loop.expert.K)
    assert np.allclose(twice(x), net.without_limits()(x), atol=1e-12)


@pytest.mark.parametrize("env_id", [DI, PENDULUM])
def test_no_simulated_loop_breaks_the_table(env_id: str) -> None:
    """Measurement errors in the worst direction of the next level, at random, constant: every bound holds."""
    env = make_env(env_id)
    loop, inner = loop_of(env), env.unwrapped
    assert isinstance(inner, PlantEnv)
    net, P, K = near_expert(loop, 0.01), loop.expert.P, loop.expert.K
    probe = rows_of(loop, net, measurement=0.0)
    measurement = 0.4 * (probe["largest measurement error"] or 0.0)
    assert measurement > 0
    level = 0.9 * (probe["level sqrt(x'Px) of the set judged"] or 0.0)
    rng, root = np.random.default_rng(0), np.linalg.cholesky(P).T
    direction = rng.normal(size=2)
    start = 0.99 * level * np.linalg.solve(root, direction / np.linalg.norm(direction))
    rows = rows_of(loop, net, measurement=measurement, level=level, start=start)
    radius, extra = rows["ultimate distance from the origin"], rows["regret over 100 steps"]
    assert radius is not None and extra is not None
    for kind in range(6):
        x, regret = start, 0.0
        for t in range(400):
            error = rng.normal(size=2)
            if kind < 2:  # along the policy's gradient, with the sign that raises the next level
                error = net.jacobian(x)[0] * (1 if kind else -1)
                error = error * (1 if (loop.B.T @ P @ loop.expert.A_cl @ x)[0] >= 0 else -1)
            if kind == 5:
                error = np.array([1.0, 0.0])
            u = net(x + measurement * error / np.linalg.norm(error))
            if t < 100:
                regret += float((u + K @ x) @ loop.expert.S @ (u + K @ x))
            x = inner.plant.step(x, u)
            assert math.sqrt(x @ P @ x) <= level
            assert t < 300 or np.linalg.norm(x) <= radius
        assert env_id == PENDULUM or regret <= extra  # the identity behind regret is the linear plant's


def test_the_pendulum_counts_its_nonlinearity() -> None:
    loop = loop_of(make_env(PENDULUM))
    table = closed_loop(loop, near_expert(loop, 0.01), measurement=0.0)
    rows = {row.quantity: row for row in table.rows}
    bent = rows["of which the plant's nonlinearity"].value
    slope = rows["slope of the error against the expert there"]
    reach = table.level / math.sqrt(np.linalg.eigvalsh(loop.expert.P).min())
    assert bent == pytest.approx(9.81 * (1 - math.cos(reach))) and slope.label == "bound"
    assert slope.value is not None and bent is not None and slope.value > bent


def test_a_linearisation_is_an_estimate() -> None:
    loop = loop_of(make_env("InvertedPendulum-v5"))
    table = closed_loop(loop, near_expert(loop, 0.001, 3.0), measurement=0.0)
    labels = {row.quantity: row.label for row in table.rows}
    assert labels["contraction of W per step"] == "estimate" and labels["policy's Lipschitz constant"] == "proved"


def test_a_bad_policy_is_vacuous_and_says_why() -> None:
    loop = loop_of(make_env(DI))
    table = closed_loop(loop, near_expert(loop, 3.0), measurement=0.0, start=np.array([1.0, 0.0]))
    by_name = {row.quantity: row for row in table.rows}
    assert by_name["largest measurement error"].vacuous
    assert all(by_name["regret over 100 steps"].reason and row.value is None for row in table.rows[-3:])
    good = near_expert(loop, 0.01)
    far = closed_loop(loop, good, measurement=0.0, start=np.array([1e6, 0.0])).rows[-1]
    assert far.vacuous and "outside" in far.reason
    loud = closed_loop(loop, good, measurement=10.0, level=0.1).rows
    assert [row.vacuous for row in loud[-2:]] == [True, True]


def test_saturation_bounds_the_level() -> None:
    loop = loop_of(make_env(DI))
    tight = replace(loop, u_low=np.array([-1.0]), u_high=np.array([1.0]))
    net = near_expert(loop, 0.01, 1.0)
    level = level_without_saturation(tight, net, 1.7, 0.0)
    inverse = np.linalg.inv(loop.expert.P)
    assert level <= 1 / math.sqrt(float((loop.expert.K @ inverse @ loop.expert.K.T)[0, 0]))
    with pytest.raises(UserError, match="reaches saturation"):
        closed_loop(tight, net, measurement=0.0, level=2 * level)
    with pytest.raises(UserError, match="saturate at the origin"):
        closed_loop(tight, replace(net, biases=(net.biases[0], np.array([5.0]))), measurement=0.0)


def test_command(tmp_path: Path, run: Run) -> None:
    near_expert(loop_of(make_env(DI)), 0.01).save(tmp_path / "p.npz")
    path = str(tmp_path / "p.npz")
    status, out, _ = run("certify", path, "--closed-loop", "--measurement", "0.001", "--start", "0.1", "0")
    assert status == 0 and "H-infinity" in out and "ultimate distance" in out and "witness" in out
    status, _, err = run("certify", path, "--closed-loop", "--start", "0.1")
    assert status == 2 and "start needs 2" in err
    status, _, err = run("certify", path, "--closed-loop", "--plant", "lipctrl/Cstr-v0")
    assert status == 2
    status, _, err = run("certify", path, "--closed-loop", "--plant", "InvertedPendulum-v5")
    assert status == 2 and "maps 2 to 1" in err
