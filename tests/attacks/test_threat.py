"""Threats: what is written is what is meant, on every channel; what cannot be meant is refused in one sentence."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks.channels import CHANNELS
from lipctrl.attacks.threat import Threat, Words
from lipctrl.disturb.sets import Samples
from lipctrl.files import UserError

Env = gymnasium.Env[Any, Any]
PENDULUM, LINEAR, CSTR = "InvertedPendulum-v5", "lipctrl/DoubleIntegrator-v0", "lipctrl/Cstr-v0"
ONES, NAMES = np.ones(2), ("position [m]", "velocity [m/s]")


@pytest.fixture(scope="module")
def envs() -> dict[str, Env]:
    return {name: gymnasium.make(name) for name in (PENDULUM, LINEAR, CSTR)}


LINES = {
    "observation:l2:raw": (LINEAR, 2, ("adds to the observation", "Euclidean norm", "raw units", "who knows")),
    "action:linf:normalised": (CSTR, 2, ("adds to the action", "largest component", "half widths", "action limits")),
    "disturbance:l2:raw:episode:grey": (CSTR, 2, ("plant's disturbance", "sum of squared norms", "who may ask")),
    "reference:l2:raw": (LINEAR, 2, ("adds to the set point", "one step later", "Euclidean norm")),
    "reference@temperature:linf:normalised": (CSTR, 1, ("adds to the set point of temperature", "half widths")),
    "force:linf:raw:sparse=5:black": (
        PENDULUM,
        2,
        ("forces and torques", "at most 5 steps", "nothing but the returns"),
    ),
    "force@hinge:linf:raw:rate=0.5": (PENDULUM, 1, ("of hinge", "changes by at most 0.5 times the radius")),
    "wrench@pole:l2:raw": (PENDULUM, 6, ("centre of mass of pole", "Euclidean norm")),
    "gain": (PENDULUM, 1, ("Once per episode", "gain of the actuators", "parts of the nominal value")),
    "friction": (PENDULUM, 1, ("all friction",)),
    "damping:l2": (PENDULUM, 2, ("damping of the joints", "Euclidean norm")),
    "mass@cart": (PENDULUM, 1, ("mass and inertia of cart",)),
    "parameters": (PENDULUM, 5, ("gain, friction, damping and mass", "largest component")),
    "delay": (LINEAR, 1, ("delays the observation by at most the radius, in control steps",)),
    "actuator_delay": (LINEAR, 1, ("delays the action",)),
    "deadline": (LINEAR, 1, ("makes the controller late",)),
    "warm_start:linf:raw": (LINEAR, 32, ("shifted plan", "solver of MPC", "not touched")),
    "initial_state:linf:raw": (LINEAR, 2, ("moves the start state", "largest component", "raw units")),
}


def test_every_channel_is_tried() -> None:
    assert {line.split(":")[0].split("@")[0] for line in LINES} == set(CHANNELS)


@pytest.mark.parametrize("line", LINES)
def test_a_threat_prints_itself(line: str, envs: dict[str, Env]) -> None:
    env_id, size, words = LINES[line]
    threat = Threat.parse(line, ONES, NAMES, envs[env_id])
    sentence = threat.sentence()
    assert sentence.count(".") == (2 if "0.5" in line else 1) and all(word in sentence for word in words), sentence
    assert len(threat.names) == len(threat.scale) == size == len(threat.ball(np.zeros(3)).scale)
    assert all("[" in name for name in threat.names)
    for row in threat.table(0.5):
        assert row["raw"] == pytest.approx(0.5 * threat.ball(np.zeros(1)).scale[threat.names.index(str(row["name"]))])


def test_normalised_units_are_half_the_declared_range(envs: dict[str, Env]) -> None:
    env = envs[CSTR]
    space = env.action_space
    assert isinstance(space, gymnasium.spaces.Box)
    threat = Threat.parse("action:linf:normalised", ONES, NAMES, env)
    assert np.allclose(threat.ball(np.zeros(1)).scale, (space.high - space.low) / 2)
    # declared: feed temperature +-10 K, flow +-0.5 m3/h
    assert Threat.parse("disturbance:linf:normalised", ONES, NAMES, env).scale == (10.0, 0.5)
    raw = Threat.parse("disturbance:linf:raw", ONES, NAMES, env).table(5.0)
    assert [(row["raw"], row["normalised"]) for row in raw] == [(5.0, 0.5), (5.0, 10.0)]


def test_one_entry_of_a_set_point_is_moved_by_its_name(envs: dict[str, Env]) -> None:
    found = Threat.parse("reference@velocity:linf:raw", ONES, NAMES, envs[LINEAR])
    assert len(found.names) == 1 and found.names[0].startswith("velocity [")
    with pytest.raises(UserError, match="did you mean 'velocity'"):
        Threat.parse("reference@velocty:linf:raw", ONES, NAMES, envs[LINEAR])
    with pytest.raises(UserError, match="needs a plant"):
        Threat.parse("reference:linf:raw", ONES, NAMES, envs[PENDULUM])


def test_a_file_says_the_same_as_a_line(tmp_path: Path) -> None:
    path = tmp_path / "pulses.yaml"
    path.write_text("channel: force@slider\nnorm: linf\nunits: raw\nbudget: sparse=10\naccess: black\n")
    assert Words.parse(str(path)) == Words.parse("force@slider:linf:raw:sparse=10:black")
    assert Words.parse("force@slider:black:raw:sparse=10:linf") == Words.parse(str(path))  # in any order


def test_delays_are_whole_numbers_from_zero() -> None:
    box = Samples("linf", np.array([0.0, 3.0]), np.ones(1))
    assert box.contains(np.array([[0.0], [3.0]])) and box.contains(np.array([[0.0], [1.0]]))
    for wrong in (-1.0, 1.5, 4.0):
        assert not box.contains(np.array([[0.0], [wrong]]))
    assert box.project(np.array([[5.0], [1.6]])).ravel().tolist() == [0.0, 2.0]
    draws = np.random.default_rng(0).random((4000, 1))
    found = Samples("linf", np.full(4000, 3.0), np.ones(1)).inside(draws, draws)
    assert np.allclose(np.bincount(found.astype(int).ravel()) / 4000, 0.25, atol=0.03)
    with pytest.raises(UserError, match="whole number"):
        Samples("linf", np.array([0.5]), np.ones(1))


@pytest.mark.parametrize(
    ("line", "env_id", "word"),
    [
        ("actoin:l2:raw", LINEAR, "action"),
        ("action:linf", LINEAR, "needs units, raw or normalised"),
        ("action:raw", LINEAR, "needs norm, l2 or linf"),
        ("action:l3:raw", LINEAR, "l2"),
        ("action:l2:metres", LINEAR, "metres"),
        ("action:l2:raw:sparce=3", LINEAR, "sparse"),
        ("action:l2:raw:sparse=0", LINEAR, "whole number"),
        ("action:l2:raw:white:black", LINEAR, "two words"),
        ("action::raw", LINEAR, "CHANNEL:NORM:UNITS"),
        ("action:linf:raw:episode", LINEAR, "norm l2"),
        ("action@x:linf:raw", LINEAR, "takes no place"),
        ("wrench:linf:raw", PENDULUM, "wrench@NAME"),
        ("wrench@pole2:linf:raw", PENDULUM, "pole"),
        ("force@slidr:linf:raw", PENDULUM, "slider"),
        ("force:linf:normalised", PENDULUM, "raw"),
        ("force:linf:raw", LINEAR, "needs a MuJoCo task"),
        ("gain", LINEAR, "needs a MuJoCo task"),
        ("gain:sparse=2", PENDULUM, "once per episode"),
        ("disturbance:l2:raw", PENDULUM, "needs a plant"),
        ("warm_start:l2:raw", PENDULUM, "needs a plant"),
        ("initial_state:l2:normalised", LINEAR, "raw"),
        ("nowhere.yaml", LINEAR, "nowhere.yaml"),
    ],
)
def test_what_cannot_be_meant_is_refused(line: str, env_id: str, word: str, envs: dict[str, Env]) -> None:
    with pytest.raises(UserError, match=word) as error:
        Threat.parse(line, ONES, NAMES, envs[env_id])
    assert "\n" not in str(error.value)


def test_files_with_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "threat.yaml"
    for text, word in (
        ("chanel: action", "channel"),
        ("norm: l2", "names no channel"),
        ("channel: 3", "names no channel"),
        ("channel: action\nnorm: 2\nunits: raw", "l2"),
        ("- action", "mapping"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            Words.parse(str(path))


def test_factors_stay_positive_and_other_channels_need_an_environment(envs: dict[str, Env]) -> None:
    with pytest.raises(UserError, match="below 1"):
        Threat.parse("gain", ONES, NAMES, envs[PENDULUM]).ball(np.array([0.5, 1.0]))
    with pytest.raises(UserError, match="lipctrl evaluate"):
        Threat.parse("action:l2:raw", ONES, NAMES)
