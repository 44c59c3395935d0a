"""Finished pieces come back to the last bit, and only for exactly what they were made with."""

from dataclasses import fields
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import ATTACKS
from lipctrl.attacks.threat import Threat
from lipctrl.evaluation.rollout import Loops, Rollouts
from lipctrl.evaluation.store import Store, joined
from lipctrl.policy import linear_policy

FACTS = {"attack": "mad", "radii": [0.0, 0.1]}
POLICY = linear_policy(np.array([[0.5, 1.0]]), np.array([-1e3]), np.array([1e3]))


def runs(radii: tuple[float, ...]) -> Rollouts:
    threat = Threat.parse("observation:l2:raw", np.ones(2), ("a", "b"))
    loops = Loops(lambda: gymnasium.make("lipctrl/DoubleIntegrator-v0"))
    return loops.run(POLICY, ATTACKS["mad"][0](), threat, radii, episodes=2, seed=0)


def assert_same(a: object, b: object) -> None:
    if hasattr(a, "__dataclass_fields__"):
        for f in fields(a):  # type: ignore[arg-type]
            assert_same(getattr(a, f.name), getattr(b, f.name))
    elif isinstance(a, tuple):
        assert isinstance(b, tuple) and len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(a, b)  # type: ignore[arg-type]
        assert np.asarray(a).dtype == np.asarray(b).dtype


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store, found = Store(tmp_path / "cells"), runs((0.0, 0.1))
    assert store.load(FACTS) is None
    store.save(FACTS, found)
    loaded = store.load(FACTS)
    assert loaded is not None
    assert_same(found, loaded)
    for other in ({**FACTS, "attack": "spsa"}, {**FACTS, "radii": [0.0, 0.1000001]}):
        assert store.load(other) is None


def test_a_damaged_file_is_run_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "cells")
    store.save(FACTS, runs((0.0,)))
    (path,) = (tmp_path / "cells").iterdir()
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", whole.replace(b"PK", b"KP")):
        path.write_bytes(broken)
        assert store.load(FACTS) is None
    Store(None).save(FACTS, runs((0.0,)))
    assert Store(None).load(FACTS) is None


def test_radii_run_apart_and_joined_are_radii_run_together() -> None:
    together, apart = runs((0.0, 0.1, 0.2)), joined([runs((radius,)) for radius in (0.0, 0.1, 0.2)])
    for name in ("radii", "lengths", "terminated"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))
    for name in (
        "returns",
        "deviation",
        "final",
        "roughness",
    ):  # a matrix product may round otherwise in larger batches
        np.testing.assert_allclose(getattr(apart, name), getattr(together, name), rtol=1e-9, atol=1e-12)
    assert apart.cost == together.cost and len(apart.traces) == len(together.traces)
    assert [trace.episode for trace in apart.worst] == [trace.episode for trace in together.worst]
    assert apart.returns[2] == pytest.approx(together.returns[2])
