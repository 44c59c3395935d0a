"""Look ahead: above greedy where that is not optimal, within its set, repeatable, refused where it must be."""

import numpy as np
import pytest

from lipctrl.attacks import Context, MaximalActionDeviation
from lipctrl.attacks.attack import Attack
from lipctrl.attacks.lookahead import Lookahead
from lipctrl.attacks.planned import quadratic_costs
from lipctrl.cli.oracle import A, B, P, Q, R
from lipctrl.disturb.sets import Ball
from lipctrl.envs.linear import linear_plant
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm
from lipctrl.policy import FunctionPolicy, PlainPolicy

STEPS, ROWS = 12, 4


def attack() -> Lookahead:
    plant = linear_plant(A, B, state_limit=1e6, input_limit=1e6)
    return Lookahead(plant, *quadratic_costs(Q, R, P, [0, 0], [0]), horizon=STEPS)


def run(searcher: Attack, gain: np.ndarray, norm: Norm, radii: list[float], *, seed: int = 0) -> np.ndarray:
    """Costs with terminal cost of rows that start at (1, 0), one radius each."""
    policy = PlainPolicy(PlainNet(({0: -gain},), (np.zeros(1),), ()))
    ball, rng = Ball(norm, np.array(radii), np.array([1.0, 2.0])), np.random.default_rng(seed)
    x, total = np.tile([1.0, 0.0], (len(radii), 1)), np.zeros(len(radii))
    for _ in range(STEPS):
        d = searcher.perturb(Context(x, policy, ball, 1, rng))
        assert ball.contains(d)
        u = policy.predict(x + d)[0]
        total += ((x @ Q) * x).sum(1) + ((u @ R) * u).sum(1)
        x = x @ A.T + u @ B.T
    return np.asarray(total + ((x @ P) * x).sum(1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_it_hurts_more_than_greedy_and_more_at_larger_radii(norm: Norm) -> None:
    gain, radii = np.array([[1.0, 3.0]]), [0.0, 0.05, 0.1, 0.2]
    ahead, greedy = run(attack(), gain, norm, radii), run(MaximalActionDeviation(), gain, norm, radii)
    assert ahead[0] == greedy[0] and (np.diff(ahead) > 0).all()
    assert (ahead[1:] - ahead[0] > 1.5 * np.abs(greedy[1:] - greedy[0])).all()
    assert run(attack(), gain, norm, radii).tobytes() == ahead.tobytes()


def test_a_policy_without_gradient_is_refused() -> None:
    context = Context(
        np.ones((ROWS, 2)),
        FunctionPolicy(lambda x: -x[:, :1]),
        Ball("l2", np.full(ROWS, 0.1), np.ones(2)),
        ROWS,
        np.random.default_rng(0),
    )
    with pytest.raises(UserError, match="needs the gradient"):
        attack().perturb(context)
