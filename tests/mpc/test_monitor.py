"""The monitor on the double integrator: silent where the proof's assumptions hold, the backup where they do not."""

import numpy as np
import pytest

from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.monitor import (
    ErrorNearData,
    Level,
    ModelMismatch,
    MonitoredPolicy,
    PredictedLevel,
    Saturation,
    Step,
    Verdict,
    summarise,
)
from lipctrl.policy import FunctionPolicy, linear_policy

A, B = np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[0.0], [1.0]])
SOLUTION = lqr(A, B, np.eye(2), [[0.1]])
K, P = SOLUTION.K, SOLUTION.P
EXPERT = linear_policy(K, np.array([-1e3]), np.array([1e3]))
LEARNED = FunctionPolicy(lambda x: -x @ (K * 1.02).T)


def level(x: np.ndarray) -> float:
    return float(np.sqrt(x @ P @ x))


def run(policy: MonitoredPolicy, start: np.ndarray, steps: int, jump: int | None = None) -> list[Verdict]:
    x, hidden, verdicts = start, None, []
    for k in range(steps):
        u, hidden = policy.predict(x, hidden)
        verdicts += hidden
        x = A @ x + B @ u + (np.array([0.5, 0.0]) if k == jump else 0.0)
    return verdicts


def test_nothing_happens_where_every_assumption_holds() -> None:
    rho, b = 0.85398918, 1.69740062  # note values of the double integrator: contraction and gain of sqrt(x'Px)
    checks = {
        "error": ErrorNearData(lambda x: 0.02 * np.abs(x @ K.T)[:, 0], 0.1),
        "level": Level(level, 3.0),
        "next level": PredictedLevel(level, rho, b, lambda x: 0.02 * np.abs(x @ K.T)[:, 0], 0.0, 3.0),
        "saturation": Saturation(np.array([-2.0]), np.array([2.0])),
        "model": ModelMismatch(lambda x, u: A @ x + B @ u, 1e-12),
    }
    policy = MonitoredPolicy(LEARNED, EXPERT, checks)
    verdicts = run(policy, np.array([1.0, -0.5]), 20)
    log = summarise(verdicts)
    assert log.share == 0 and log.switches == () and set(log.violations) == set(checks)
    for now, after in zip(verdicts, verdicts[1:], strict=False):  # the prediction is a bound
        assert level(after.observation) <= now.values["next level"] * (1 + 1e-12)
    assert log.largest["level"] == pytest.approx(level(np.array([1.0, -0.5])))


def test_the_backup_acts_exactly_while_a_check_fails() -> None:
    policy = MonitoredPolicy(LEARNED, EXPERT, {"level": Level(level, 1.0)})
    verdicts = run(policy, np.array([1.0, 0.0]), 12)
    for verdict in verdicts:
        backup = level(verdict.observation) > 1.0
        gain = K if backup else K * 1.02
        assert verdict.violated == (("level",) if backup else ()) and np.allclose(
            verdict.action, -gain @ verdict.observation
        )
    log = summarise(verdicts)
    acted = [bool(v.violated) for v in verdicts]
    assert acted[0] and not acted[-1]
    assert log.switches == (0, acted.index(False)) and log.share == np.mean(acted)


def test_a_push_that_the_model_does_not_know_is_seen_one_step_later() -> None:
    checks = {"model": ModelMismatch(lambda x, u: A @ x + B @ u, 0.1)}
    verdicts = run(MonitoredPolicy(LEARNED, EXPERT, checks), np.array([1.0, 0.0]), 8, jump=3)
    assert [bool(v.violated) for v in verdicts] == [k == 4 for k in range(8)]
    assert verdicts[4].values["model"] == pytest.approx(0.5)
    one = Step(np.zeros(2), np.zeros(1), None)
    assert ModelMismatch(lambda x, u: np.ones(2), 0.0)(one) == 0.0


def test_an_answer_or_a_number_that_is_not_finite_is_a_violation() -> None:
    broken = FunctionPolicy(lambda x: np.full((len(x), 1), np.nan))
    policy = MonitoredPolicy(broken, EXPERT, {"level": Level(level, 1e9)})
    action, (verdict,) = policy.predict(np.array([1.0, 0.0]))
    assert verdict.violated == ("finite action",) and np.allclose(action, -K[:, 0])
    policy = MonitoredPolicy(LEARNED, EXPERT, {"level": Level(lambda x: float("nan"), 1e9)})
    assert policy.predict(np.array([1.0, 0.0]))[1][0].violated == ("level",)


def test_batches_and_episode_starts() -> None:
    checks = {"model": ModelMismatch(lambda x, u: A @ x + B @ u, 0.1)}
    policy = MonitoredPolicy(LEARNED, EXPERT, checks)
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    actions, hidden = policy.predict(x)
    assert actions.shape == (2, 1)
    _, hidden = policy.predict(x, hidden, episode_start=np.array([True, False]))  # nothing moved: a mismatch
    assert [bool(v.violated) for v in hidden] == [False, True]
    with pytest.raises(UserError, match="2 observations"):
        policy.predict(x, hidden[:1])


def test_bad_input() -> None:
    with pytest.raises(UserError, match="at least one check"):
        MonitoredPolicy(LEARNED, EXPERT, {})
    with pytest.raises(UserError, match="at least one step"):
        summarise([])
