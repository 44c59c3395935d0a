"""Exchange with Minari: exact round trip where the extra is installed, the install command where it is not."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.demos.collect import record
from lipctrl.demos.minari import from_minari, to_minari
from lipctrl.files import UserError
from lipctrl.policy import linear_policy


def test_without_the_extra_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match=r'pip install "lipctrl\[minari\]"'):
        from_minari("some/data-v0")


def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jax", "h5py", "minari"):
        pytest.importorskip(module)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    policy = linear_policy(np.array([[0.6, 1.5]]), np.array([-1e3]), np.array([1e3]))
    env = gymnasium.make("lipctrl/DoubleIntegrator-v0")
    demos = record(env, policy, expert="gain", episodes=3, dither=0.1, seed=0, versions={}, max_steps=9)
    to_minari(demos, "lipctrl/test-v0")
    again = from_minari("lipctrl/test-v0")
    for name in ("lengths", "observations", "actions", "rewards", "terminations", "truncations"):
        assert np.array_equal(getattr(again, name), getattr(demos, name))
    assert np.array_equal(again.labels, demos.actions) and again.provenance["env_id"] == "lipctrl/DoubleIntegrator-v0"
    with pytest.raises(UserError, match="cannot write"):
        to_minari(demos, "lipctrl/test-v0")
    with pytest.raises(UserError, match="no Minari data set"):
        from_minari("lipctrl/none-v0")
