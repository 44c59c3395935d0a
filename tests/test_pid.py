"""PID: a sequence by hand, the transfer function, what the integral is for, and files that are none."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from scipy.signal import lfilter

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import ATTACKS, NoAttack
from lipctrl.attacks.threat import Threat
from lipctrl.evaluation.rollout import Loops, surrounded
from lipctrl.files import UserError
from lipctrl.pid import PidPolicy, load_pid
from lipctrl.policy import Policy


def pid(
    kp: Any = 0.0, ki: Any = 0.0, kd: Any = 0.0, *, limit: float = 1e3, dt: float = 0.5, setpoint: Any = 1.0
) -> PidPolicy:
    gains = [np.array(gain, dtype=np.float64, ndmin=2) for gain in (kp, ki, kd)]
    return PidPolicy(*gains, np.atleast_1d(setpoint), np.full(len(gains[0]), -limit), np.full(len(gains[0]), limit), dt)


def outputs(policy: PidPolicy, observations: Any) -> list[float]:
    memory, found = None, []
    for seen in observations:
        action, memory = policy.predict(np.atleast_1d(seen), memory)
        found.append(float(action[0]))
    return found


def test_a_sequence_by_hand() -> None:
    """Kp 2, Ki 1, Kd 0.5, T 0.5, setpoint 1, limits 3. Errors 1, 0.5, 2, -0.2, -2, 0; the integral waits at the third
    (wanted 4 + 1.75 + 1.5) and at the fifth (-4 - 0.35 - 1.8)."""
    policy = pid(2.0, 1.0, 0.5, limit=3.0)
    assert isinstance(policy, Policy)
    expected = [2 + 0.5, 1 + 0.75 - 0.5, 3.0, -0.4 + 0.65 - 2.2, -3.0, 0.65 + 2]
    assert outputs(policy, [0.0, 0.5, -1.0, 1.2, 3.0, 1.0]) == pytest.approx(expected)


def test_without_limits_it_is_the_transfer_function() -> None:
    """u = (Kp + Ki T / (1 - z^-1) + Kd (1 - z^-1) / T) e, from an error that begins at zero."""
    errors = np.concatenate([[0.0], np.random.default_rng(0).normal(size=40)])
    kp, ki, kd, dt = 1.3, 0.4, 0.7, 0.2
    wanted = kp * errors + lfilter([ki * dt], [1, -1], errors) + lfilter([kd / dt, -kd / dt], [1], errors)
    assert outputs(pid(kp, ki, kd, dt=dt, setpoint=0.0), -errors) == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_a_batch_is_its_rows_and_a_start_forgets() -> None:
    rng = np.random.default_rng(1)
    gains = [rng.normal(size=(2, 3)) for _ in range(3)]
    policy = pid(*gains, limit=2.0, setpoint=rng.normal(size=3))
    seen = rng.normal(size=(6, 4, 3))
    memory, batch = None, []
    for step, rows in enumerate(seen):
        start = np.array([False, step == 3, False, False])
        action, memory = policy.predict(rows, memory, start)
        batch.append(action)
    for row in range(4):
        alone, found = None, []
        for step in range(6):
            alone = None if (row, step) == (1, 3) else alone
            action, alone = policy.predict(seen[step, row], alone)
            assert action.shape == (2,)
            found.append(action)
        assert np.array(found) == pytest.approx(np.array(batch)[:, row], rel=1e-12)
    assert np.abs(batch).max() == 2.0
    with pytest.raises(UserError, match="memories"):
        policy.predict(seen[0, :2], memory)
    with pytest.raises(UserError, match="needs 3 observations"):
        policy.predict(np.zeros(2))


def test_the_integral_does_not_wind_up() -> None:
    """A step that the limits keep from being followed for long: an integral that goes on growing overshoots."""

    def overshoot(waits: bool) -> float:
        policy, x, memory, wound, top = pid(0.5, 1.0, limit=0.2, dt=0.1, setpoint=5.0), 0.0, None, 0.0, 0.0
        for _ in range(1000):
            u, memory = policy.predict(np.array([x]), memory)
            wound += 0.1 * (5 - x)
            force = float(u[0]) if waits else float(np.clip(0.5 * (5 - x) + wound, -0.2, 0.2))
            x += 0.1 * force
            top = max(top, x - 5)
        return top

    assert overshoot(True) < 0.3 and overshoot(False) > 3


def integrator() -> gymnasium.Env[Any, Any]:
    arguments: dict[str, Any] = {"A": [[1.0]], "B": [[0.1]], "Q": [[1.0]], "R": [[0.1]]}
    return gymnasium.make("lipctrl/Linear-v0", **arguments)


def test_in_the_loop_only_the_integral_removes_a_constant_disturbance() -> None:
    """x+ = x + 0.1 u + w comes to rest at w / (0.1 Kp) under a proportional controller, at 0 with an integral."""
    threat = Threat.parse("disturbance:linf:raw", np.ones(1), ("a",), integrator())
    loops = Loops(lambda: surrounded(integrator(), threat))
    constant = ATTACKS["constant"][0]()
    for policy, share in ((pid(2.0, dt=0.1, setpoint=0.0), 1 / 0.2), (pid(2.0, 2.0, dt=0.1, setpoint=0.0), 0.0)):
        found = loops.run(policy, constant, threat, (0.0, 0.05), episodes=3, seed=0)
        calm = loops.run(policy, NoAttack(), threat, (0.0,), episodes=3, seed=0)
        assert np.array_equal(found.returns[0], calm.returns[0]) and np.abs(found.final[0]).max() < 1e-3
        w = found.traces[1].disturbances[0, 0]
        assert abs(w) == 0.05 and found.final[1, 0, 0] == pytest.approx(share * w, abs=1e-3)


def test_the_deviation_of_a_controller_with_memory_is_that_of_its_next_action() -> None:
    """A derivative on raw sensors multiplies their error by Kd / T: the largest change of a random vertex is that."""
    loops = Loops(integrator)
    threat = Threat.parse("observation:linf:raw", np.ones(1), ("a",))
    found = loops.run(
        pid(0.5, 0.0, 0.1, dt=0.1, setpoint=0.0), ATTACKS["mad"][0](), threat, (0.01,), episodes=2, seed=0
    )
    assert found.deviation == pytest.approx((0.5 + 0.1 / 0.1) * 0.01)


LIMITS: dict[str, Any] = {"low": np.array([-2.0]), "high": np.array([2.0]), "observations": 2, "dt": 0.1}


def test_a_file_with_all_and_with_less(tmp_path: Path) -> None:
    path = tmp_path / "pid.yaml"
    path.write_text("kp: [[1, 2]]\nki: [[0.5, 0]]\nkd: [[0, 3]]\nsetpoint: [1, 0]\nlow: [-1]\nhigh: [1.5]\n")
    full = load_pid(path, **LIMITS)
    assert (full.kp.tolist(), full.ki.tolist(), full.kd.tolist()) == ([[1, 2]], [[0.5, 0]], [[0, 3]])
    assert (full.low.tolist(), full.high.tolist(), full.dt) == ([-1], [1.5], 0.1)
    path.write_text("kp: [1, 2]\nsetpoint: [1, 0]\n")  # one action: the row alone
    short = load_pid(path, **LIMITS)
    assert not short.ki.any() and not short.kd.any() and (short.low, short.high) == (-2, 2)
    assert full.sha256() != short.sha256() == load_pid(path, **LIMITS).sha256()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("kp: [[1, 2]]", "needs setpoint"),
        ("setpoint: [0, 0]", "some of kp, ki, kd"),
        ("kq: [[1, 2]]\nsetpoint: [0, 0]", "did you mean 'kp'"),
        ("kp: [[1, 2, 3]]\nsetpoint: [0, 0]", "1 rows .* of 2 finite numbers"),
        ("kp: [[1, .nan]]\nsetpoint: [0, 0]", "finite"),
        ("kp: [[1, two]]\nsetpoint: [0, 0]", "kp needs numbers"),
        ("kp: [[1, 2]]\nsetpoint: [0]", "setpoint needs 2 numbers"),
        ("kp: [[1, 2]]\nsetpoint: [0, .inf]", "setpoint needs finite"),
        ("kp: [[1, 2]]\nsetpoint: [0, 0]\nhigh: [3]", "go beyond"),
        ("kp: [[1, 2]]\nsetpoint: [0, 0]\nlow: [1]\nhigh: [1]", "below high"),
        ("- kp", "mapping"),
    ],
)
def test_what_is_no_controller_is_one_sentence(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "pid.yaml").write_text(text)
    with pytest.raises(UserError, match=word) as error:
        load_pid(tmp_path / "pid.yaml", **LIMITS)
    assert "pid.yaml" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no settings file"):
        load_pid(tmp_path / "none.yaml", **LIMITS)
