"""Experts, environments and names by what the command line calls them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from lipctrl.envs import ENVIRONMENTS
from lipctrl.envs.base import PlantEnv, Quadratic
from lipctrl.envs.mujoco_tasks.linearise import linearise
from lipctrl.files import UserError, nearest
from lipctrl.mpc.linear import is_linear
from lipctrl.mpc.lqr import LqrSolution, lqr
from lipctrl.policy import FunctionPolicy, PlainPolicy, linear_policy

Array = NDArray[np.float64]
Env = gymnasium.Env[Any, Any]

NAMES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "InvertedPendulum-v5": (
        ("cart position [m]", "pole angle [rad]", "cart velocity [m/s]", "pole rate [rad/s]"),
        ("motor command [-]",),
    ),
}
# State and input weights of LQR experts for tasks that do not declare a quadratic cost.
WEIGHTS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "InvertedPendulum-v5": ((1.0, 10.0, 0.1, 0.1), (1.0,)),
    "InvertedDoublePendulum-v5": ((1.0, 10.0, 10.0, 0.1, 0.1, 0.1), (1.0,)),
}
# Where the observation is not the state: the entry that stands for each state near the equilibrium, out of how many.
OBSERVED: Mapping[str, tuple[tuple[int, ...], int]] = {
    "InvertedDoublePendulum-v5": ((0, 1, 2, 5, 6, 7), 9),  # sines for angles
}


def make_env(env_id: str, **arguments: Any) -> Env:
    """Make an environment by its gymnasium id.

    Raises:
        UserError: no such environment (names the nearest), or its spaces are not boxes of one axis.
    """
    if env_id not in gymnasium.registry:
        raise nearest(env_id, gymnasium.registry, "environment")
    env: Env = gymnasium.make(env_id, **arguments)
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"{env_id} has {name} in {space}; lipctrl needs a box of one axis")
    return env


def plant_env(name: str) -> Env:
    """The environment of a plant by its short name, such as "cstr" or "quad-tank", or by its id.

    Raises:
        UserError: no such plant or environment (names the nearest).
    """
    known = {_short(env_id): env_id for env_id in ENVIRONMENTS}
    if "/" not in name and name not in known and name not in gymnasium.registry:
        raise nearest(name, known, "plant")
    return make_env(known.get(name, name))


def _short(env_id: str) -> str:
    """ "lipctrl/QuadTank-v0" -> "quad-tank"."""
    words = env_id.split("/")[-1].rsplit("-v", 1)[0]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", words).lower()


def signal_names(env: Env) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names with units of observations and actions."""
    inner = env.unwrapped
    if isinstance(inner, PlantEnv):
        return inner.observed.names, inner.plant.input.names
    assert env.spec is not None and env.observation_space.shape and env.action_space.shape
    if env.spec.id in NAMES:
        return NAMES[env.spec.id]
    observations = tuple(f"observation {i} [-]" for i in range(env.observation_space.shape[0]))
    return observations, tuple(f"action {i} [-]" for i in range(env.action_space.shape[0]))


def reference_of(env: Env) -> Array | None:
    """The observation that a plant with quadratic cost is to hold, or None."""
    inner = env.unwrapped
    if not isinstance(inner, PlantEnv) or not isinstance(inner.stage_cost, Quadratic):
        return None
    return np.asarray(inner.observe(inner.stage_cost.x_ref), dtype=np.float64)


@dataclass(frozen=True)
class Expert:
    """An LQR expert: the policy, what it is, and the Riccati solution behind it."""

    policy: PlainPolicy
    description: str
    solution: LqrSolution
    exact: bool
    """Whether the plant is linear and the cost quadratic, so that the solution is optimal for the task itself."""


def swing_up_expert(env: Env) -> FunctionPolicy:
    """Swings gymnasium's pendulum up by its energy and holds it by a linear gain; mean return about -140.

    Raises:
        UserError: another environment.
    """
    if env.spec is None or env.spec.id != "Pendulum-v1":
        raise UserError(f"the expert swing-up is one of Pendulum-v1, found {env.spec and env.spec.id}")
    gravity = 15.0  # 3 g / (2 l): energy is rate^2 / 2 + 15 cos(angle), 15 at rest above

    def action(seen: Array) -> Array:
        angle, rate = np.arctan2(seen[:, 1], seen[:, 0]), seen[:, 2]
        lacking = gravity - 0.5 * rate**2 - gravity * seen[:, 0]
        pumped = 2 * lacking * np.where(rate < 0, -1.0, 1.0)
        held = -8 * angle - 2 * rate
        return np.clip(np.where(seen[:, 0] > 0.9, held, pumped), -2, 2)[:, None]

    return FunctionPolicy(action)


def lqr_expert(env: Env) -> Expert:
    """LQR of the environment's own linearisation at its equilibrium.

    Raises:
        UserError: the environment declares neither a quadratic cost nor weights for this.
    """
    inner, space = env.unwrapped, env.action_space
    assert env.spec is not None and isinstance(space, gymnasium.spaces.Box)
    if isinstance(inner, PlantEnv) and inner.Q is not None and inner.R is not None:
        a, b, _ = inner.plant.linearise(*inner.plant.equilibrium)
        x, u = inner.plant.equilibrium
        if np.any(x) or np.any(u):
            raise UserError(f"the LQR expert regulates to the origin; {env.spec.id} has its equilibrium at {x}")
        weights, source = (inner.Q, inner.R), "its plant"
    elif env.spec.id in WEIGHTS:
        a, b = linearise(env)
        weights = tuple(np.diag(w) for w in WEIGHTS[env.spec.id])  # type: ignore[assignment]  # two of two
        source = "MuJoCo's finite-difference linearisation (mjd_transitionFD)"
    else:
        raise UserError(f"no LQR expert for {env.spec.id}: it declares neither a quadratic cost nor weights")
    solution = lqr(a, b, *weights)
    gain = solution.K
    if env.spec.id in OBSERVED:
        entries, size = OBSERVED[env.spec.id]
        gain = np.zeros((len(gain), size))
        gain[:, list(entries)] = solution.K
    policy = linear_policy(gain, space.low.astype(np.float64), space.high.astype(np.float64))
    gains = ", ".join(f"{k:.5g}" for k in solution.K.ravel())
    exact = isinstance(inner, PlantEnv) and is_linear(inner.plant)
    return Expert(policy, f"LQR from {source}, K = ({gains})", solution, exact)
