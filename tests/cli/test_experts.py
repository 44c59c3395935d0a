"""Experts and linearisations against finite differences of the simulator itself."""

import gymnasium
import numpy as np
import pytest

from lipctrl.cli.closed_loop import loop_of
from lipctrl.cli.demos_collect import CollectSettings, collect_demonstrations
from lipctrl.cli.experts import lqr_expert, make_env, signal_names
from lipctrl.envs.mujoco_tasks.linearise import linearise
from lipctrl.files import UserError


def test_pendulum_linearisation_agrees_with_steps_of_the_task() -> None:
    env = gymnasium.make("InvertedPendulum-v5").unwrapped
    env.reset(seed=0)
    a, b = linearise(env)
    h = 1e-5

    def step(x: np.ndarray, u: float) -> np.ndarray:
        env.set_state(x[:2], x[2:])  # type: ignore[attr-defined]
        return np.asarray(env.step(np.array([u]))[0])

    fd_a = np.array([(step(h * e, 0.0) - step(-h * e, 0.0)) / (2 * h) for e in np.eye(4)]).T
    fd_b = (step(np.zeros(4), h) - step(np.zeros(4), -h)) / (2 * h)
    # the task integrates with Runge-Kutta, the linearisation with Euler: they differ in second order of 0.02 s
    assert np.abs(a - fd_a).max() < 0.03 and np.abs(b[:, 0] - fd_b).max() < 0.03
    assert np.abs(a - fd_a).max() > 1e-6


def test_double_integrator_expert_is_the_known_gain() -> None:
    expert = lqr_expert(make_env("lipctrl/DoubleIntegrator-v0"))
    assert np.allclose(expert.solution.K, [[0.57917087, 1.54562698]], atol=1e-8) and expert.exact
    assert np.allclose(expert.solution.P, [[2.66868908, 1.72660617], [1.72660617, 2.88116887]], atol=1e-8)
    action = expert.policy.predict(np.array([1.0, 0.0]))[0]
    assert action == pytest.approx([-0.57917087], abs=1e-8)


def test_a_discrete_nonlinear_plant_has_no_exact_worst_case() -> None:
    """Its LQR is optimal for the linearisation only: attacks exceed the closed form, which must not be printed."""
    assert not lqr_expert(make_env("lipctrl/Pendulum-v0")).exact


def test_pendulum_expert_balances_a_whole_episode() -> None:
    env = make_env("InvertedPendulum-v5")
    expert = lqr_expert(env)
    x, _ = env.reset(seed=3)
    steps, done = 0, False
    while not done:
        x, _, end, cut, _ = env.step(expert.policy.predict(x)[0].astype(np.float32))
        steps, done = steps + 1, end or cut
    assert steps == 1000 and not end and np.abs(expert.solution.eigenvalues).max() < 1


@pytest.mark.parametrize(
    ("env_id", "kind", "least"), [("InvertedDoublePendulum-v5", "lqr", 9300), ("Pendulum-v1", "swing-up", -420)]
)
def test_experts_of_gymnasium_tasks_do_them(env_id: str, kind: str, least: float) -> None:
    """The double pendulum to its last step, where 10 a step are paid; the pendulum from wherever it starts."""
    settings = CollectSettings(env=env_id, expert=kind, episodes=3, dither=0.0)
    demos = collect_demonstrations(settings)
    assert demos.returns.min() > least and not demos.terminations.any()


def test_experts_of_other_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="swing-up is one of Pendulum-v1, found InvertedPendulum-v5"):
        collect_demonstrations(CollectSettings(env="InvertedPendulum-v5", expert="swing-up"))
    with pytest.raises(UserError, match="observations that are the state"):
        loop_of(make_env("InvertedDoublePendulum-v5"))


def test_names_and_unknown_environments() -> None:
    names = signal_names(make_env("InvertedPendulum-v5"))
    assert names[0][1] == "pole angle [rad]"
    with pytest.raises(UserError, match="did you mean 'InvertedPendulum-v5'"):
        make_env("InvertedPendulumm-v5")
    with pytest.raises(UserError, match="box of one axis"):
        make_env("CartPole-v1")
    with pytest.raises(UserError, match="no LQR expert"):
        lqr_expert(make_env("HalfCheetah-v5"))
