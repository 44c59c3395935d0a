"""MPCPolicy: SB3's predict, warm start by hidden state, fallback when infeasible or late."""

from dataclasses import replace

import numpy as np
import pytest

from lipctrl.envs.linear import double_integrator
from lipctrl.files import UserError
from lipctrl.mpc.controller import NMPC
from lipctrl.mpc.linear import LinearMPC
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import MPCPolicy
from lipctrl.mpc.problem import regulation
from lipctrl.policy import FunctionPolicy, Policy, linear_policy

PLANT, Q, R = double_integrator()
OCP = replace(
    regulation(PLANT, Q, R, horizon=10),
    x_low=np.full(2, -10.0),
    x_high=np.full(2, 10.0),
    u_low=np.array([-1.0]),
    u_high=np.array([1.0]),
)
GAIN = lqr([[1.0, 1.0], [0.0, 1.0]], [[0.0], [1.0]], Q, R).K
OUTSIDE = np.array([9.0, 5.0])  # leaves |x| <= 10 whatever the input


def constant(value: float) -> FunctionPolicy:
    return FunctionPolicy(lambda x: np.full((len(x), 1), value))


def test_single_observation_and_batch() -> None:
    policy = MPCPolicy(LinearMPC(PLANT, OCP))
    assert isinstance(policy, Policy)
    x = np.array([[0.5, 0.0], [-0.2, 0.1], [3.0, 0.0]])
    actions, decisions = policy.predict(x)
    assert actions.shape == (3, 1) and len(decisions) == 3
    np.testing.assert_allclose(actions[:2], -x[:2] @ GAIN.T, atol=1e-8)
    assert actions[2, 0] == pytest.approx(-1.0)
    single, _ = policy.predict(x[0])
    assert single.shape == (1,)
    np.testing.assert_array_equal(single, actions[0])


def test_hidden_state_is_the_warm_start() -> None:
    guesses = []

    class Watched:
        ocp = OCP

        def solve(self, x, guess, given):  # type: ignore[no-untyped-def]
            guesses.append(guess)
            return LinearMPC(PLANT, OCP).solve(x, guess)

    policy = MPCPolicy(Watched(), fallback=constant(0.0))
    x = np.array([1.0, 0.0])
    _, hidden = policy.predict(x)
    policy.predict(x, hidden)
    policy.predict(x, hidden, episode_start=np.array([True]))
    assert guesses[0] is None and guesses[2] is None
    states, inputs = guesses[1]
    np.testing.assert_array_equal(states[0], hidden[0].solution.states[1])
    np.testing.assert_array_equal(inputs[-1], hidden[0].solution.inputs[-1])
    _, hidden = policy.predict(OUTSIDE)
    policy.predict(x, hidden)
    assert guesses[-1] is None  # an infeasible plan is not a start


def test_fallback_acts_when_infeasible() -> None:
    policy = MPCPolicy(NMPC(PLANT, OCP), fallback=constant(0.25))
    action, (decision,) = policy.predict(OUTSIDE)
    assert decision.fallback == "infeasible" and action.tolist() == [0.25]
    action, (decision,) = policy.predict([1.0, 0.0])
    assert decision.fallback is None and action[0] == pytest.approx(-0.579171, abs=1e-6)


def test_fallback_acts_when_late() -> None:
    x = [1.0, 0.0]
    action, (decision,) = MPCPolicy(LinearMPC(PLANT, OCP), constant(0.25), deadline=1e-9).predict(x)
    assert decision.fallback == "late" and action.tolist() == [0.25]
    _, (decision,) = MPCPolicy(LinearMPC(PLANT, OCP), constant(0.25), deadline=60.0).predict(x)
    assert decision.fallback is None


def test_without_fallback_there_is_one_sentence() -> None:
    with pytest.raises(UserError, match="infeasible"):
        MPCPolicy(LinearMPC(PLANT, OCP)).predict(OUTSIDE)
    with pytest.raises(UserError, match="late"):
        MPCPolicy(LinearMPC(PLANT, OCP), deadline=1e-9).predict([1.0, 0.0])


def test_state_comes_from_the_observation() -> None:
    policy = MPCPolicy(LinearMPC(PLANT, OCP), state_of=lambda observation: observation[:2] / 10)
    action, _ = policy.predict([5.0, 0.0, 99.0])
    np.testing.assert_allclose(action, -GAIN @ [0.5, 0.0], atol=1e-8)


def test_certified_policy_as_fallback() -> None:
    policy = MPCPolicy(LinearMPC(PLANT, OCP), linear_policy(GAIN, OCP.u_low, OCP.u_high))
    action, (decision,) = policy.predict(OUTSIDE)
    assert decision.fallback == "infeasible" and action.tolist() == [-1.0]


def test_hidden_state_of_another_batch_is_refused() -> None:
    policy = MPCPolicy(LinearMPC(PLANT, OCP))
    _, hidden = policy.predict([1.0, 0.0])
    with pytest.raises(UserError, match="hidden states"):
        policy.predict(np.zeros((2, 2)), hidden)
