"""SPSA: closed forms of linear policies, exact LQR worst case, policies without gradients, queries counted."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.attacks import Context, MaximalActionDeviation
from lipctrl.attacks.blackbox import Spsa
from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.cli.oracle import X0, A, B, K, P, Q, R, S
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm
from lipctrl.policy import FunctionPolicy, PlainPolicy, Policy

Array = NDArray[np.float64]


def context(policy: Policy, norm: Norm, radius: float, n: int, *, seed: int = 0) -> Context:
    r = np.random.default_rng(seed)
    ball = Ball(norm, np.repeat([0.0, radius / 2, radius], 5), r.uniform(0.5, 2, n))
    return Context(r.normal(size=(15, n)), policy, ball, 5, np.random.default_rng(seed))


def deviation(c: Context, d: Array) -> Array:
    return np.asarray(np.linalg.norm(c.act(c.observation + d) - c.act(c.observation), axis=1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_linear_functions_one_output(norm: Norm) -> None:
    gain = np.array([[2.5857, -3.4434, 0.7]])
    c = context(FunctionPolicy(lambda x: x @ gain.T), norm, 0.3, 3)
    found = deviation(c, Spsa(directions=32, restarts=4).perturb(c))
    exact = c.ball.radius * np.linalg.norm(gain * c.ball.scale, ord=2 if norm == "l2" else 1, axis=1)[0]
    assert np.all(found <= exact * (1 + 1e-12)) and np.all(found >= (1 - 1e-2) * exact)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_lqr_loop_as_a_function_comes_near_its_exact_worst_case_and_never_above(norm: Norm) -> None:
    rows, steps, rng = 4, 8, np.random.default_rng(0)
    policy, ball = FunctionPolicy(lambda x: -x @ K.T), Ball(norm, np.full(4, 0.1), np.ones(2))
    x, total = np.tile(X0, (rows, 1)), np.zeros(rows)
    for _ in range(steps):
        d = Spsa(directions=16).perturb(Context(x, policy, ball, rows, rng))
        assert ball.contains(d)
        u = policy.predict(x + d)[0]
        total += (x @ Q * x).sum(1) + (u @ R * u).sum(1)
        x = x @ A.T + u @ B.T
    total += (x @ P * x).sum(1)
    nominal = X0 @ P @ X0
    extra = lqr_extra_cost(K, S, norm=norm, radius=0.1, scale=np.ones(2), steps=steps)
    assert np.all(total <= nominal + extra + 1e-9) and np.all(total >= nominal + 0.98 * extra)


def test_every_query_is_counted_and_nothing_else_is_asked() -> None:
    asked = []

    def policy(x: Array) -> Array:
        asked.append(len(x))
        return np.asarray(x.sum(1, keepdims=True))

    c = context(FunctionPolicy(policy), "l2", 0.3, 3)
    Spsa(steps=4, jumps=2, restarts=3, directions=5).perturb(c)
    assert c.cost.evaluations == sum(asked) == 15 * (1 + 3 * 7 * (2 * 5 + 1)) and c.cost.jacobians == 0


def test_steps_that_differences_do_not_see_are_found() -> None:
    """A quantised policy: its derivative is zero almost everywhere."""
    policy = FunctionPolicy(lambda x: np.round(4 * x[:, :1]) / 4)
    r = np.random.default_rng(2)
    ball = Ball("linf", np.full(20, 0.3), np.ones(3))
    x = r.normal(size=(20, 3))
    c = Context(x, policy, ball, 20, np.random.default_rng(0))
    assert not c.jacobian(x).any()
    seen = deviation(c, Spsa(probe=0.5).perturb(c))
    levels = np.round(4 * (x[:, 0] + np.array([[0.3], [-0.3]]))) / 4
    exact = np.abs(levels - np.round(4 * x[:, 0]) / 4).max(0)
    assert np.all(seen <= exact) and np.mean(seen == exact) > 0.9


def test_an_onnx_file_is_attacked_like_its_network(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    from lipctrl.nn.onnx import write_onnx

    r = np.random.default_rng(4)
    net = PlainNet.mlp([r.normal(size=(8, 3)), r.normal(size=(2, 8))], [r.normal(size=8), np.zeros(2)], "tanh")
    write_onnx(net, tmp_path / "p.onnx")
    session = runtime.InferenceSession(str(tmp_path / "p.onnx"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    kind = np.float64 if "double" in entry.type else np.float32
    function = FunctionPolicy(lambda x: session.run(None, {entry.name: x.astype(kind)})[0])
    c, white = context(function, "l2", 0.3, 3), context(PlainPolicy(net), "l2", 0.3, 3)
    found = deviation(c, Spsa(directions=16).perturb(c))
    best = deviation(white, MaximalActionDeviation(restarts=4).perturb(white))
    assert np.all(found[5:] >= 0.9 * best[5:])


def test_settings_that_cannot_be() -> None:
    for settings in ({"directions": 0}, {"probe": 0.0}, {"probe": 2.0}):
        with pytest.raises(UserError, match="SPSA needs"):
            Spsa(**settings)  # type: ignore[arg-type]
