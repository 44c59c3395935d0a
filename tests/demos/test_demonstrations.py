"""Demonstrations: shapes, endings, file format, damage."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipctrl.demos.demonstrations import Demonstrations, Trajectory, check_environment
from lipctrl.files import UserError


def trajectory(steps: int, *, terminated: bool = False, seed: int = 0) -> Trajectory:
    r = np.random.default_rng(seed)
    actions = r.normal(size=(steps, 1))
    return Trajectory(
        r.normal(size=(steps + 1, 2)), actions, actions + 1, r.normal(size=steps), terminated, not terminated
    )


@pytest.fixture
def demos() -> Demonstrations:
    episodes = [trajectory(3), trajectory(5, terminated=True, seed=1)]
    return Demonstrations.from_trajectories(episodes, {"env_id": "Some-v0", "seed": 4})


def test_round_trip(demos: Demonstrations, tmp_path: Path) -> None:
    demos.save(tmp_path / "d.npz")
    again = Demonstrations.load(tmp_path / "d.npz")
    assert again.sha256() == demos.sha256() and again.provenance == {"env_id": "Some-v0", "seed": 4}
    first, second = again.trajectories()
    assert len(first.observations) == 4 and not first.terminated and first.truncated
    assert second.terminated and not second.truncated
    assert np.array_equal(second.labels, trajectory(5, seed=1).actions + 1)


def test_pairs_leave_out_last_observations(demos: Demonstrations) -> None:
    x, u = demos.pairs()
    assert x.shape == (8, 2) and u.shape == (8, 1)
    assert np.array_equal(x[3], list(demos.trajectories())[1].observations[0])


def parts(demos: Demonstrations, **changes: Any) -> dict[str, Any]:
    names = ("lengths", "observations", "actions", "labels", "rewards", "terminations", "truncations")
    return {name: getattr(demos, name).copy() for name in names} | changes


@pytest.mark.parametrize(
    ("field", "change", "words"),
    [
        ("observations", lambda a: np.where(np.arange(len(a))[:, None] == 2, np.nan, a), "not finite"),
        ("actions", lambda a: a[:-1], "expected"),
        ("rewards", lambda a: a[:-1], "expected"),
        ("lengths", lambda a: np.array([8, 0]), "without steps"),
        ("lengths", lambda a: a[:0], "zero episodes"),
        ("truncations", lambda a: ~a, "end"),
    ],
)
def test_invalid_content_is_refused(demos: Demonstrations, field: str, change: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Demonstrations(**parts(demos, **{field: change(getattr(demos, field))}))


def test_damage_and_tampering_are_noticed(demos: Demonstrations, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    demos.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="whole"):
        Demonstrations.load(path)
    with np.load(io.BytesIO(whole)) as stored:
        arrays = dict(stored)
    arrays["rewards"] = arrays["rewards"] + 1
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="hash"):
        Demonstrations.load(path)
    with pytest.raises(UserError, match="no demonstrations"):
        Demonstrations.load(tmp_path / "none.npz")


def test_environment_check(demos: Demonstrations) -> None:
    check_environment(demos, "Some-v0", 2, 1)
    with pytest.raises(UserError, match="recorded in Some-v0"):
        check_environment(demos, "Other-v0", 2, 1)
    with pytest.raises(UserError, match="2 observations and 1 actions"):
        check_environment(demos, "Some-v0", 3, 1)


def test_pairs_become_episodes_without_mixing_them() -> None:
    x, u = np.random.default_rng(0).normal(size=(53, 3)), np.arange(106.0).reshape(53, 2)
    demos = Demonstrations.from_pairs(x, u, {"expert": "a file"})
    assert len(demos.lengths) == 10 and demos.truncations.sum() == 10 and not demos.terminations.any()
    np.testing.assert_array_equal(demos.pairs()[0], x)
    np.testing.assert_array_equal(demos.pairs()[1], u)
    for observations, actions, words in ((x, u[:-1], "shapes"), (x[:, 0], u, "shapes"), (x[:4], u[:4], "4 pairs")):
        with pytest.raises(UserError, match=words):
            Demonstrations.from_pairs(observations, actions, {})
