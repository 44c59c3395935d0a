"""A policy as terminal controller: what comes after the horizon is the policy's own closed loop, not a quadratic guess.

The plan has N free inputs; from x_N on the policy acts for M steps, and what it costs is the terminal cost:

    V_f(x_N) = sum_{N<=k<N+M} |x_k - x_ref|_Q^2 + |pi(x_k) - u_ref|_R^2 + |x_{N+M} - x_ref|_P^2,
    x_{k+1} = f(x_k, pi(x_k)),

with the state limits at every one of these states. This is nonlinear MPC with a control horizon N shorter than its
prediction horizon N+M (Magni, De Nicolao, Magnani and Scattolini, Automatica 37, 2001). Two facts: the plan is at most
as expensive as the policy's own loop, and never cheaper than the plan with N+M free inputs; and if the policy keeps the
set where x_{N+M} must be, and P covers what it still costs there, the loop stays feasible and the cost falls.

V_f has kinks where the policy meets its limits, and at a kink a solver may find the minimum and not be able to say so.
Feasible plans no worse than the shifted one keep all of this (Scokaert, Mayne and Rawlings, IEEE TAC 44, 1999).
"""

import time
from dataclasses import dataclass, field, replace

import casadi as ca
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.mpc.controller import FEASIBLE, GENERAL, SOLVERS, UNSAFE, Solution, check_solver, solve_programme
from lipctrl.mpc.policy_mpc import policy_trajectory
from lipctrl.mpc.problem import OCP, Given
from lipctrl.mpc.shooting import HERE, Programme, Trajectory, transcribe
from lipctrl.nn.plain import PlainNet
from lipctrl.plant import Plant
from lipctrl.policy import PlainPolicy
from lipctrl.symbolic.network import to_casadi

Array = NDArray[np.float64]


def policy_step(plant: Plant, ocp: OCP, net: PlainNet) -> ca.Function:
    """(x) -> (x+, stage cost) of the plant under the policy, clipped to the input limits of the OCP; plant's units."""
    x = ca.MX.sym("x", len(ocp.x_ref))
    u = ca.fmax(ca.fmin(to_casadi(net)(x), ca.DM(ocp.u_high)), ca.DM(ocp.u_low))
    after = plant.update(x, u, ca.DM.zeros(len(plant.disturbance)))
    dx, du = x - ocp.x_ref, u - ocp.u_ref
    return ca.Function("policy_step", [x], [after, ca.bilin(ca.DM(ocp.Q), dx, dx) + ca.bilin(ca.DM(ocp.R), du, du)])


def with_policy_tail(programme: Programme, plant: Plant, ocp: OCP, net: PlainNet, steps: int) -> Programme:
    """A programme without terminal cost and set, continued from x_N by `steps` steps of the policy.

    Args:
        programme: of `ocp` with P = 0 and no terminal set. plant, net: see `PolicyTerminalMPC`.
        ocp: gives cost, limits and the terminal set, which now holds x_{N+M}.
    """
    step, nlp = policy_step(plant, ocp, net), programme.nlp
    state = ca.DM(ocp.x_ref) + ca.DM(ocp.x_scale) * nlp["x"][programme.at_x[-1].tolist()]
    rows: list[ca.MX] = [nlp["g"]]
    cost, low, high = nlp["f"], [programme.lbg], [programme.ubg]
    limited = [int(i) for i in np.flatnonzero(np.isfinite(ocp.x_low) | np.isfinite(ocp.x_high))]
    for _ in range(steps):
        state, stage = step(state)
        cost += stage
        rows.append(((state - ocp.x_ref) / ocp.x_scale)[limited])
        low.append(((ocp.x_low - ocp.x_ref) / ocp.x_scale)[limited])
        high.append(((ocp.x_high - ocp.x_ref) / ocp.x_scale)[limited])
    cost += ca.bilin(ca.DM(ocp.P), state - ocp.x_ref, state - ocp.x_ref)
    if ocp.terminal_set is not None:
        rows.append(ca.mtimes(ca.MX(ca.DM(ocp.terminal_set.H)), state))
        low.append(np.full(len(ocp.terminal_set.h), -np.inf))
        high.append(ocp.terminal_set.h)
    g = ca.vertcat(*rows)
    return replace(
        programme,
        nlp={**nlp, "f": cost, "g": g},
        lbg=np.concatenate(low),
        ubg=np.concatenate(high),
        rows=ca.Function("rows", [nlp["x"], nlp["p"]], [cost, g]),
    )


@dataclass(frozen=True, kw_only=True)
class PolicyTerminalMPC:
    """NMPC with a policy as terminal controller. Holds no state: a warm start is an argument.

    Attributes:
        plant: the model.
        ocp: the problem; its horizon is the number N of free inputs, P and the terminal set apply after the rollout.
        net: the policy, from the plant's state to its input, in raw units.
        rollout: M, steps that the policy acts after x_N.
        solver: "sqpmethod-daqp", "sqpmethod-piqp" or "ipopt".

    Raises:
        UserError: sizes differ, the rollout is shorter than one step, limits are soft, or the solver is refused.
    """

    plant: Plant
    ocp: OCP
    net: PlainNet
    rollout: int
    solver: str = "sqpmethod-daqp"
    _programme: Programme = field(init=False, repr=False)
    _solve: ca.Function = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_solver(self.solver, dict.fromkeys(GENERAL), UNSAFE)
        n, m = len(self.ocp.x_ref), len(self.ocp.u_ref)
        if (self.net.input_size, self.net.output_size) != (n, m):
            raise UserError(
                f"the terminal policy needs {n} inputs and {m} outputs, as the plant's state and input; "
                f"found {self.net.input_size} and {self.net.output_size}"
            )
        if self.rollout < 1:
            raise UserError(f"the rollout must be at least 1 step, found {self.rollout}")
        if self.ocp.soft is not None:
            raise UserError("a terminal policy needs hard state limits: its rollout has no slacks")
        self.ocp.plain_limits("a terminal policy")
        free = replace(self.ocp, P=np.zeros_like(self.ocp.P), terminal_set=None)
        programme = with_policy_tail(transcribe(self.plant.update, free), self.plant, self.ocp, self.net, self.rollout)
        plugin, options = SOLVERS[self.solver]
        options = {"print_time": False, "error_on_fail": False, **options}
        # the record is frozen for its users; these two are made here once
        object.__setattr__(self, "_programme", programme)
        object.__setattr__(self, "_solve", ca.nlpsol("policy_terminal", plugin, programme.nlp, options))

    def solve(self, x: ArrayLike, guess: Trajectory | None = None, given: Given = HERE) -> Solution:
        """The optimal plan from the measured state; arguments as for `NMPC.solve`.

        Without a guess the solver starts from the policy's own trajectory; a guess ends with the policy's input. The
        plan is the cheaper feasible one of what the solver returns and where it started, so that `feasible` does not
        need convergence (`status` tells), which clipped policies can deny. `cost` includes the rollout.

        Raises:
            UserError: a shape does not match, a number is not finite, or the policy's trajectory is not.
        """
        begin = time.perf_counter()
        if given.x_ref is not None or given.u_ref is not None or given.disturbance is not None:
            raise UserError("a terminal policy belongs to the reference and the undisturbed model of its problem")
        if guess is None:
            start = policy_trajectory(self.plant, PlainPolicy(self.net), x, self.ocp.horizon)
        else:
            start = self._continued(guess)
        found = solve_programme(self._solve, self._programme, x, start)
        cost, violation = self._programme.judge(self._programme.pack(start), self._programme.parameter(np.asarray(x)))
        if violation <= FEASIBLE and not (found.feasible and found.cost <= cost):
            status = f"the start is kept ({found.status})"
            found = replace(
                found,
                states=start[0],
                inputs=start[1],
                cost=cost,
                violation=violation,
                feasible=True,
                converged=False,
                status=status,
            )
        return replace(found, wall_time=time.perf_counter() - begin)

    def _continued(self, guess: Trajectory) -> Trajectory:
        """A shifted plan whose last step is the policy's: in the undisturbed loop it is feasible and costs less."""
        states, inputs = (np.array(part, np.float64) for part in guess)
        if states.shape == (self.ocp.horizon + 1, len(self.ocp.x_ref)) and len(inputs) == self.ocp.horizon:
            inputs[-1] = np.clip(self.net(states[-2]), self.ocp.u_low, self.ocp.u_high)
            states[-1] = self.plant.step(states[-2], inputs[-1])
        return states, inputs
