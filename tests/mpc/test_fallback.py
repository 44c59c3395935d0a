"""The certified fallback: who acts, when and why; certificates of other weights are refused."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import ArrayLike

from lipctrl.certify.bracket import certify
from lipctrl.certify.certificate import Box
from lipctrl.envs.linear import linear_plant
from lipctrl.files import UserError
from lipctrl.mpc.controller import Solution
from lipctrl.mpc.fallback import CertifiedFallback, Switch, summarise
from lipctrl.mpc.linear import LinearMPC
from lipctrl.mpc.loop import ClosedLoop, simulate
from lipctrl.mpc.lqr import lqr
from lipctrl.mpc.mpc_policy import Controller
from lipctrl.mpc.problem import OCP, Given, regulation
from lipctrl.mpc.shooting import HERE, Trajectory
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy

MASS = linear_plant([[1.0, 0.1], [0.0, 1.0]], [0.005, 0.1], dt=0.1, state_limit=5.0, input_limit=2.0)
Q, R = np.eye(2), np.array([[0.1]])
K = lqr(*MASS.linearise(*MASS.equilibrium)[:2], Q, R).K
NET = PlainNet(({0: -0.6 * K},), (np.zeros(1),), (), low=np.array([-2.0]), high=np.array([2.0]))
CERTIFICATE = certify(NET).upper


@dataclass(frozen=True)
class Troubled:
    """A controller whose answers at given calls come late, or not at all."""

    controller: Controller
    late: tuple[int, ...]
    infeasible: tuple[int, ...]
    calls: list[int]

    @property
    def ocp(self) -> OCP:
        return self.controller.ocp

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        solution, k = self.controller.solve(x, guess), len(self.calls)
        self.calls.append(k)
        return replace(solution, wall_time=9.0 if k in self.late else 0.0, feasible=k not in self.infeasible)


def run(late: tuple[int, ...] = (), infeasible: tuple[int, ...] = ()) -> ClosedLoop:
    controller = Troubled(LinearMPC(MASS, regulation(MASS, Q, R, horizon=10)), late, infeasible, [])
    policy = CertifiedFallback(controller=controller, net=NET, certificate=CERTIFICATE, deadline=1.0)
    return simulate(MASS, policy, [2.0, 0.0], 60, stage_cost=lambda x, u: float(x @ Q @ x + u @ R @ u))


def test_switching_is_logged_with_times_reasons_and_counts() -> None:
    loop = run(late=(3, 4, 10), infeasible=(5,))
    log = summarise(loop.decisions, loop.states[:-1], CERTIFICATE, dt=MASS.dt)
    assert log.reasons == {"late": 3, "infeasible": 1} and log.share == pytest.approx(4 / 60)
    steps = [(s.step, s.reason) for s in log.switches]
    assert steps == [(3, "late"), (5, "infeasible"), (6, None), (10, "late"), (11, None)]
    assert log.switches[0] == Switch(3, pytest.approx(0.3), "late") and log.outside == 0
    policy = PlainPolicy(NET)
    for k in (3, 4, 5, 10):
        np.testing.assert_array_equal(loop.inputs[k], policy.predict(loop.states[k])[0])


def test_without_trouble_the_mpc_acts_alone() -> None:
    loop = run()
    log = summarise(loop.decisions, loop.states[:-1], CERTIFICATE, dt=MASS.dt)
    assert log.share == 0 and log.switches == () and log.reasons == {}


def test_a_loop_that_switches_all_the_time_is_held_and_costs_between_both() -> None:
    best, worst = run(), run(late=tuple(range(60)))
    mixed = run(late=tuple(range(0, 60, 2)), infeasible=tuple(range(1, 60, 4)))
    assert np.abs(mixed.states[-1]).max() < 0.05 and mixed.state_excess.max() == 0
    assert best.cost - 1e-9 <= mixed.cost <= worst.cost + 1e-9 and best.cost < worst.cost - 0.1


def test_a_real_deadline_that_cannot_be_met_hands_over_every_step() -> None:
    controller = LinearMPC(MASS, regulation(MASS, Q, R, horizon=10))
    policy = CertifiedFallback(controller=controller, net=NET, certificate=CERTIFICATE, deadline=1e-9)
    loop = simulate(MASS, policy, [2.0, 0.0], 20, stage_cost=lambda x, u: 0.0)
    log = summarise(loop.decisions, loop.states[:-1], CERTIFICATE, dt=MASS.dt)
    assert log.share == 1 and [s.step for s in log.switches] == [0]


def test_acting_outside_the_certified_region_is_counted() -> None:
    loop = run(late=tuple(range(60)))
    near = certify(NET, region=Box((-1.0, -1.0), (1.0, 1.0))).upper
    expected = int((np.abs(loop.states[:-1]) > 1).any(1).sum())
    assert 0 < expected < 60
    assert summarise(loop.decisions, loop.states[:-1], near, dt=MASS.dt).outside == expected


def test_refusals() -> None:
    controller = LinearMPC(MASS, regulation(MASS, Q, R, horizon=3))
    other = replace(NET, biases=(np.array([1e-9]),))
    with pytest.raises(UserError, match="certificate of its own weights"):
        CertifiedFallback(controller=controller, net=other, certificate=CERTIFICATE)
    lie = replace(CERTIFICATE, bound=CERTIFICATE.bound / 2)
    with pytest.raises(UserError, match="does not verify"):
        CertifiedFallback(controller=controller, net=NET, certificate=lie)
    with pytest.raises(UserError, match="0 decisions"):
        summarise([], np.zeros((0, 2)), CERTIFICATE, dt=0.1)
