"""Closed loops on the batched stepper against the same loops in single gymnasium environments, bit for bit."""

from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from lipctrl.attacks import ATTACKS, SEARCHES
from lipctrl.attacks.threat import Threat
from lipctrl.disturb.channel import SensorNoise
from lipctrl.envs.mujoco_tasks.disturbed import DisturbedTask
from lipctrl.evaluation.rollout import Loops, Rollouts, surrounded
from lipctrl.evaluation.search import run_search
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy

Array = NDArray[np.float64]
RADII = {
    "delay": (0.0, 2.0),
    "actuator_delay": (0.0, 2.0),
    "deadline": (0.0, 1.0),
    "wrench@torso:l2:raw": (0.0, 30.0),
}


def policy_for(env: gymnasium.Env) -> PlainPolicy:  # type: ignore[type-arg]
    """A network with random weights that moves the robot about."""
    assert env.observation_space.shape and env.action_space.shape
    n, m, random = env.observation_space.shape[0], env.action_space.shape[0], np.random.default_rng(0)
    weights = [random.normal(size=(16, n)) / np.sqrt(n), random.normal(size=(m, 16)) / 4]
    net = PlainNet.mlp(weights, [np.zeros(16), np.zeros(m)], "tanh")
    return PlainPolicy(PlainNet(net.blocks, net.biases, net.activations, low=-np.ones(m), high=np.ones(m)))


def both(task: str, line: str) -> tuple[Loops, Loops, Threat]:
    """The same loops one by one and batched."""
    env = gymnasium.make(task)
    assert env.observation_space.shape
    names = tuple(f"x{i}" for i in range(env.observation_space.shape[0]))
    threat = Threat.parse(line, np.full(len(names), 0.5), names, env)

    def make() -> gymnasium.Env:  # type: ignore[type-arg]
        return surrounded(gymnasium.make(task), threat)

    return Loops(make), Loops(make, batched=partial(DisturbedTask, task, channels=threat.channels)), threat


def assert_equal(a: Rollouts, b: Rollouts) -> None:
    for name in ("returns", "lengths", "terminated", "deviation", "roughness", "saturated", "final"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for one, other in zip(a.traces + a.worst, b.traces + b.worst, strict=True):
        for name in ("observations", "seen", "actions", "last", "disturbances", "episode"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert a.cost == b.cost


@pytest.mark.parametrize("attack", ["none", "uniform", "vertex", "constant", "mad"])
def test_attacks_on_the_observation(attack: str) -> None:
    plain, batched, threat = both("Hopper-v5", "observation:linf:normalised")
    found = [
        loops.run(policy_for(plain.envs[0]), ATTACKS[attack][0](), threat, (0.0, 0.3), episodes=4, seed=3)
        for loops in (plain, batched)
    ]
    assert_equal(*found)
    assert len(set(found[0].lengths.ravel().tolist())) > 1  # rows end one after the other
    assert attack == "none" or (found[0].returns[0] != found[0].returns[1]).any()


@pytest.mark.parametrize(
    "line",
    ["action:linf:raw", "force:linf:raw", "force@rooty:l2:raw:rate=0.2", "wrench@torso:l2:raw", "gain", "friction"]
    + [
        "damping",
        "mass",
        "mass@torso",
        "parameters",
        "delay",
        "actuator_delay",
        "deadline",
        "initial_state:linf:raw",
    ],
)
def test_every_channel(line: str) -> None:
    plain, batched, threat = both("Hopper-v5", line)
    radii = RADII.get(line, (0.0, 0.3) if not line.startswith("initial") else (0.0, 0.01))
    for seed in (0, 1):  # nothing of a run is left in the next one
        found = [
            loops.run(policy_for(plain.envs[0]), ATTACKS["uniform"][0](), threat, radii, episodes=3, seed=seed)
            for loops in (plain, batched)
        ]
        assert_equal(*found)
        # (the first action stands in for what a late actuator lacks; the first observation changes what is done)
        assert (found[0].returns[0] != found[0].returns[1]).any()


def test_a_task_with_contact_forces_and_a_search() -> None:
    plain, batched, threat = both("HalfCheetah-v5", "action:l2:raw:episode")
    search = SEARCHES["pulse-search"][0]
    search = replace(search, loops=4)
    run = partial(run_search, policy=policy_for(plain.envs[0]), search=search, threat=threat, episodes=2, seed=0)
    assert_equal(run(plain, radii=(0.0, 3.0)), run(batched, radii=(0.0, 3.0)))


def test_results_do_not_depend_on_the_threads() -> None:
    _, batched, threat = both("Hopper-v5", "friction")
    threaded = Loops(
        lambda: surrounded(gymnasium.make("Hopper-v5"), threat),
        batched=partial(DisturbedTask, "Hopper-v5", channels=threat.channels, threads=3),
    )
    runs = [
        loops.run(policy_for(batched.envs[0]), ATTACKS["vertex"][0](), threat, (0.5,), episodes=5, seed=0)
        for loops in (batched, threaded)
    ]
    assert_equal(*runs)


@pytest.mark.parametrize("which", [0, 1])
def test_a_simulation_that_blows_up_is_refused(which: int, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo would begin again from the start state and say nothing but a line in a log file."""
    monkeypatch.chdir(str(tmp_path))  # MuJoCo's log
    plain, batched, threat = both("HalfCheetah-v5", "force:linf:raw")
    loops = (plain, batched)[which]
    with pytest.raises(UserError, match="HalfCheetah-v5 diverged"):
        loops.run(policy_for(plain.envs[0]), ATTACKS["vertex"][0](), threat, (1e12,), episodes=1, seed=0)


def test_unknown_channels_are_refused() -> None:
    with pytest.raises(UserError, match="sensor_noise"):
        DisturbedTask("Hopper-v5", 2, [(SensorNoise(), 11)])
