"""The adversary's task against the evaluated loop, successive halving by counting, learning against exact optima."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lipctrl.attacks import Attack, Context, MaximalActionDeviation, NoAttack
from lipctrl.attacks.adversary import (
    GRID,
    PARALLEL,
    ROLLOUT,
    SHOWN,
    SPREAD,
    AdversaryEnv,
    candidates,
    shown,
    successive_halving,
)
from lipctrl.attacks.learned import LearnedAttack, along_direction, scaled_perturbation
from lipctrl.attacks.linear import LinearLoop
from lipctrl.attacks.threat import Threat
from lipctrl.cli.oracle import DETUNED, RADIUS, STEPS, X0, A, B, P, Q, R, linear_policy
from lipctrl.disturb.sets import Ball
from lipctrl.evaluation.rollout import Loops
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet

Make = Callable[..., gymnasium.Env[Any, Any]]
STEERS = {"sa-rl": scaled_perturbation, "pa-ad": along_direction}
BALL = Ball("linf", np.array([RADIUS]), np.ones(2))
THREAT = Threat.parse("observation:linf:raw", np.ones(2), ("position [m]", "velocity [m/s]"))


@pytest.mark.parametrize("kind", STEERS)
def test_the_task_is_a_proper_environment(kind: str, linear_loop: Make) -> None:
    env = AdversaryEnv(linear_loop(spread=0.1), linear_policy(DETUNED), BALL, STEERS[kind])
    assert env.action_space.shape == ((2,) if kind == "sa-rl" else (1,))
    check_env(env, skip_render_check=True, skip_close_check=True)


def test_rewards_are_minus_those_of_the_evaluated_loop(linear_loop: Make) -> None:
    """A fixed adversary: what it earns in training is what evaluation takes from the policy."""
    r = np.random.default_rng(0)
    net = PlainNet(({0: r.normal(size=(2, 2))},), (r.normal(size=2),), (), low=-np.ones(2), high=np.ones(2))
    attack, policy = LearnedAttack(net, scaled_perturbation), linear_policy(DETUNED)
    env = AdversaryEnv(linear_loop(fails=True), policy, BALL, scaled_perturbation)
    x, _ = env.reset(seed=0)
    earned, end, steps = 0.0, False, 0
    while not end:
        x, reward, end, cut, _ = env.step(net(x))
        earned, steps = earned + reward, steps + 1
        assert not cut
    found = Loops(linear_loop).run(policy, attack, THREAT, (RADIUS,), episodes=1, seed=0)
    assert steps == STEPS and earned == pytest.approx(-float(found.returns[0, 0]), rel=1e-12)


@dataclass
class Fake:
    """A candidate whose score improves with its steps, from a start of its own."""

    start: float
    settings: tuple[float, float, float] = (0.0, 0.0, 0.0)
    trained: list[int] = field(default_factory=list)

    def train(self, steps: int, advance: Callable[[int], object]) -> int:
        self.trained.append(steps)
        advance(steps)
        return steps

    def attack(self) -> Any:
        return self.start - 1e-3 * sum(self.trained)


@pytest.mark.parametrize("shape", [[1], [3, 1], [9, 3, 1], [27, 9, 3, 1], [5, 2, 1]], ids=str)
def test_halving_spends_the_same_in_every_round_and_keeps_the_best(shape: list[int]) -> None:
    count = shape[0]
    field_ = [Fake(float((7 * k) % count)) for k in range(count)]
    seen: list[int] = []
    search = successive_halving(field_, steps=5400, score=float, factor=3, advance=seen.append)  # type: ignore[arg-type]
    share = 5400 // len(shape)
    assert len(search.trials) == sum(shape) == len(seen) and search.steps == sum(seen) <= 5400
    for k, alive in enumerate(shape):
        trained = [one.trained[k] for one in field_ if len(one.trained) > k]
        assert trained == [share // alive] * alive
    best = min(field_, key=lambda one: one.start)
    assert len(best.trained) == len(shape) and search.score == best.attack() == search.best


def test_a_later_snapshot_that_is_worse_is_not_taken() -> None:
    class Forgets(Fake):
        def attack(self) -> Any:
            return self.start + sum(self.trained)

    field_ = [Forgets(float(k)) for k in range(3)]
    search = successive_halving(field_, steps=600, score=float)  # type: ignore[arg-type]
    assert search.score == min(trial.score for trial in search.trials) == 100.0


def fitted(make: Make, kind: str, *, count: int, steps: int, seed: int = 0) -> tuple[Any, list[float]]:
    """A search on the detuned loop, and the scores that it saw."""
    policy, loops, scores = linear_policy(DETUNED), Loops(make), []

    def score(attack: Attack) -> float:
        found = loops.run(policy, attack, THREAT, (RADIUS,), episodes=1, seed=0)
        scores.append(float(found.returns.mean()))
        return scores[-1]

    field_ = candidates(count, make, policy, BALL, STEERS[kind], seed=seed)
    return successive_halving(field_, steps=steps, score=score), scores


@pytest.mark.parametrize("kind", STEERS)
def test_equal_seeds_give_equal_adversaries(kind: str, linear_loop: Make) -> None:
    first, second = (fitted(linear_loop, kind, count=2, steps=2 * PARALLEL * ROLLOUT)[0] for _ in range(2))
    assert first.best.net.sha256() == second.best.net.sha256() and first.trials == second.trials
    assert first.steps == 3 * PARALLEL * ROLLOUT  # rounded up to rollouts


def test_the_grid_and_its_limits(linear_loop: Make) -> None:
    policy = linear_policy(DETUNED)
    found = candidates(9, linear_loop, policy, BALL, scaled_perturbation, seed=3)
    assert len({one.settings for one in found}) == 9 and found[0].settings == GRID[13] == (1e-3, 1e-4, 0.2)
    rates = {(one.model.learning_rate, one.model.ent_coef) for one in found}
    assert rates == {one.settings[:2] for one in found}
    for count in (0, 28):
        with pytest.raises(UserError, match="between 1 and 27"):
            candidates(count, linear_loop, policy, BALL, scaled_perturbation, seed=3)


def test_an_adversary_that_leaves_its_set_is_caught(linear_loop: Make) -> None:
    def cheat(context: Context, output: np.ndarray) -> np.ndarray:
        return 1.01 * context.ball.boundary(np.ones_like(context.observation))

    env = AdversaryEnv(linear_loop(), linear_policy(DETUNED), BALL, cheat)
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="left its set"):
        env.step(np.zeros(1))


def test_a_copy_disturbs_as_what_it_copies(linear_loop: Make) -> None:
    """A saturated linear adversary that changes sides among the states seen; the copy knows its answers only."""
    policy, rows = linear_policy(DETUNED), np.diag([40.0, 60.0])
    net = PlainNet(({0: rows},), (np.array([-24.0, 9.0]),), (), low=-np.ones(2), high=np.ones(2))
    wanted = LearnedAttack(net, scaled_perturbation)
    env = AdversaryEnv(linear_loop(spread=0.3), policy, BALL, scaled_perturbation)
    states, outputs = shown(env, wanted, seed=0)
    assert len(states) == SHOWN and np.allclose(outputs, np.clip(net(states), -1, 1), atol=1e-12)
    assert (np.abs(outputs.mean(0)) < 0.8).all()  # both sides
    (one,) = candidates(1, linear_loop, policy, BALL, scaled_perturbation, seed=0)
    before = np.square(np.clip(one.attack().net(states), -1, 1) - outputs).mean()
    one.copy(states, outputs)
    after = np.square(np.clip(one.attack().net(states), -1, 1) - outputs).mean()
    assert after < 0.05 < 0.5 < before
    assert np.allclose(one.model.policy.log_std.detach(), np.log(SPREAD))
    loops = Loops(lambda: linear_loop(spread=0.3))
    found = [loops.run(policy, a, THREAT, (RADIUS,), episodes=8, seed=1).returns.mean() for a in (wanted, one.attack())]
    calm = loops.run(policy, NoAttack(), THREAT, (RADIUS,), episodes=8, seed=1).returns.mean()
    assert found[1] - found[0] < 0.1 * (calm - found[0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", STEERS)
def test_learned_adversaries_reach_the_exact_optimum_and_never_exceed_it(kind: str, linear_loop: Make) -> None:
    """The detuned loop, whose worst sequence is known by enumeration of its 65536 vertices."""
    form = LinearLoop(A, B, DETUNED, Q, R, P).stacked(X0, STEPS)
    nominal, exact = float(form(np.zeros(2 * STEPS))), form.largest_at_vertices(RADIUS)[0]
    search, scores = fitted(linear_loop, kind, count=3, steps=40_000)
    policy, loops = linear_policy(DETUNED), Loops(linear_loop)
    greedy = -loops.run(policy, MaximalActionDeviation(), THREAT, (RADIUS,), episodes=8, seed=0).returns.min()
    found = -search.score
    assert max(-s for s in scores) <= exact + 1e-9
    assert found - nominal > 0.95 * (exact - nominal) > 5 * (greedy - nominal)
