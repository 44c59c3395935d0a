"""The warm start of MPC as a channel: nothing to gain on a convex problem, another answer beside an obstacle."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

import lipctrl.envs  # noqa: F401  # registers the environments
from lipctrl.attacks import NoAttack, RandomVertex
from lipctrl.attacks.recorded import Recorded
from lipctrl.attacks.threat import Threat
from lipctrl.cli.mpc_modes import mpc_with_backup
from lipctrl.evaluation.rollout import Loops
from lipctrl.files import UserError
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.policy import FunctionPolicy, Playback, SolvingPolicy

HORIZON = 5


def double_integrator() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("lipctrl/DoubleIntegrator-v0", max_episode_steps=8)


def warm(line: str, env: gymnasium.Env[Any, Any]) -> Threat:
    return Threat.parse(line, np.ones(2), ("a", "b"), env, horizon=HORIZON)


def test_on_a_convex_problem_no_warm_start_changes_an_answer() -> None:
    loops, policy = Loops(double_integrator), mpc_with_backup(double_integrator(), HORIZON)
    assert isinstance(policy, SolvingPolicy)
    threat = warm("warm_start:linf:raw", double_integrator())
    nominal = loops.run(policy, NoAttack(), threat, (0.0,), episodes=2, seed=0)
    found = loops.run(policy, RandomVertex(), threat, (0.0, 50.0), episodes=2, seed=0)
    assert np.array_equal(found.returns[0], nominal.returns[0])
    for calm, attacked in zip(found.traces[0].actions, found.traces[1].actions, strict=True):
        assert attacked == pytest.approx(calm, abs=1e-6)
    assert found.returns[1] == pytest.approx(found.returns[0], rel=1e-6)
    assert (found.traces[1].disturbances != 0).all() and not found.fallbacks.any()
    assert (found.iterations >= 1).all()


def test_the_offset_is_added_to_the_shifted_plan() -> None:
    policy, x = mpc_with_backup(double_integrator(), HORIZON), np.array([[1.0, 0.0], [0.3, -0.2]])
    _, hidden = policy.predict(x)
    offsets = np.arange(2.0 * (HORIZON + 2 * (HORIZON + 1))).reshape(2, -1)
    for row, decision in enumerate(policy.nudged(hidden, offsets)):
        states, inputs = decision.guess()
        before, controls = hidden[row].solution.shifted()
        assert (inputs - controls).ravel() == pytest.approx(offsets[row, :HORIZON])
        assert (states - before).ravel() == pytest.approx(offsets[row, HORIZON:])
    assert policy.nudged(None, offsets) is None
    with pytest.raises(UserError, match="offsets of shape"):
        policy.nudged(hidden, offsets[:, 1:])


class Started(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The robot in front of the obstacle in every episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={"state": np.array([-2.2, 0.1, 0.0])})


def test_beside_an_obstacle_the_warm_start_decides_on_which_side_to_pass() -> None:
    """In the loop, as when the solver is asked for the second step from a plan that is moved to one side."""
    loops = Loops(lambda: Started(gymnasium.make("lipctrl/Robot-v0", max_episode_steps=2)))
    threat = Threat.parse("warm_start:linf:raw", np.ones(4), ("a",) * 4, loops.envs[0], horizon=15)
    policy = mpc_with_backup(loops.envs[0], 15)

    def sideways(shift: float) -> tuple[NDArray[np.float64], float]:
        """The plan of the second step, from a warm start whose positions are moved to one side, and its cost."""
        states = np.zeros((16, 3))
        states[:, 1] = shift
        offsets = np.concatenate([np.zeros(30), states.ravel()])[None]
        env = loops.envs[0]
        first, hidden = policy.predict(env.reset()[0][None])
        action, (decision,) = policy.predict(env.step(first[0])[0][None], policy.nudged(hidden, offsets))
        assert decision.fallback is None
        found = loops.run(policy, Recorded(offsets.repeat(2, 0)), threat, (1.0,), episodes=1, seed=0)
        assert found.traces[0].actions == pytest.approx(np.vstack([first, action]), abs=1e-6)
        return decision.solution.states[:, 1], decision.solution.cost

    (left, shorter), (right, longer) = sideways(1.0), sideways(-1.0)
    assert left.max() > 0.3 and left.min() > 0 and right.min() < -0.3 and longer > 1.05 * shorter


def test_a_policy_that_the_channel_does_not_touch_is_refused() -> None:
    loops, threat = Loops(double_integrator), warm("warm_start:linf:raw", double_integrator())
    rule = FunctionPolicy(lambda x: -x[:, :1])
    with pytest.raises(UserError, match="needs MPC"):
        loops.run(rule, RandomVertex(), threat, (0.0, 1.0), episodes=1, seed=0)
    calm = loops.run(rule, NoAttack(), threat, (0.0,), episodes=1, seed=0)  # what does nothing is the floor of a report
    again = loops.run(Playback(calm.traces[0].actions), RandomVertex(), threat, (1.0,), episodes=1, seed=0)
    assert np.array_equal(again.returns, calm.returns)


def test_units_are_half_widths_of_inputs_and_states() -> None:
    env = gymnasium.make("lipctrl/CartPole-v0")
    threat = warm("warm_start:linf:normalised", env)
    assert threat.scale == (10.0,) * HORIZON + (2.4, 0.8, 20.0, 20.0) * (HORIZON + 1)
    assert threat.names[0] == "stage 0: force [N]" and threat.names[-1] == "stage 5: rate [rad/s]"
    with pytest.raises(UserError, match="no finite range"):
        warm("warm_start:linf:normalised", gymnasium.make("lipctrl/Robot-v0"))
    assert isinstance(mpc_with_backup(env, HORIZON), MPCPolicy)
