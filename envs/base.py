"""PlantEnv: a gymnasium environment that steps a Plant and charges a stage cost. Every task is one subclass.

A subclass hands its physics, cost and start states to the initialiser and overrides nothing. Failure (a state outside
the limits of the plant, a collision) terminates an episode and costs `failure_cost`; the time limit of the registration
truncates it. The two are never mixed, because after truncation the value of the last state still counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lipctrl.files import UserError
from lipctrl.plant import Plant, Signal

from .drawing import Picture, Scene, draw

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """The stage cost (x - x_ref)' Q (x - x_ref) + (u - u_ref)' R (u - u_ref)."""

    Q: Array
    R: Array
    x_ref: Array
    u_ref: Array

    def __post_init__(self) -> None:
        for name, weight, size in (("Q", self.Q, len(self.x_ref)), ("R", self.R, len(self.u_ref))):
            if weight.shape != (size, size):
                raise UserError(f"weight {name} needs shape ({size}, {size}), found {weight.shape}")

    def __call__(self, x: Array, u: Array) -> float:
        dx, du = x - self.x_ref, u - self.u_ref
        return float(dx @ self.Q @ dx + du @ self.R @ du)


def uniform_start(low: Sequence[float], high: Sequence[float]) -> Callable[[np.random.Generator], Array]:
    """Start states drawn uniformly from a box."""
    return lambda rng: rng.uniform(low, high)


class PlantEnv(gymnasium.Env[Array, Array]):
    """Steps a plant. See the subclasses for tasks.

    Attributes:
        plant: the Plant, for controllers and certificates. stage_cost: function (x, u) -> cost; the reward is minus
        this value at the state before the step. Q, R: weights if the cost is quadratic, else None. margin: function
        of the state that is negative in collision, a constraint for controllers; None if there is none. observed:
        names, units and limits of the observation. observe: function from state (n,) to observation. state_of:
        function from observation to state (n,), what a state-feedback controller needs. state: current state x, shape
        (n,). disturbance: w, shape (d,), applied at every step until it is changed; zero after a reset. reference:
        displacement of the set point, shape (n,): cost and observation are of the state less this; zero after a reset.
        failure_cost: subtracted from the reward once, when an episode fails.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        plant: Plant,
        *,
        stage_cost: Callable[[Array, Array], float],
        start: Callable[[np.random.Generator], Array],
        scene: Callable[[Array], Scene],
        render_mode: str | None,
        failure_cost: float = 0.0,
        margin: Callable[[Any], Any] | None = None,
        margin_scale: float = 1.0,
        observed: Signal | None = None,
        observe: Callable[[Array], Array] = np.copy,
        state_of: Callable[[Array], Array] = np.copy,
        advance: Callable[[Array, Array, Array], Array] | None = None,
    ) -> None:
        """A task on a plant.

        Args:
            plant: the dynamical system; leaving the limits of its state is failure.
            stage_cost: function (x, u) -> cost of one step.
            start: draws a start state from a generator.
            scene: picture of a state.
            render_mode: "rgb_array" for pictures from `render`, or None.
            failure_cost: cost of failing, charged once.
            margin: function of the state, negative in collision, for numbers and CasADi expressions.
            margin_scale: size of the margin, in which a violation is counted.
            observed, observe, state_of: names and limits of the observation, the function from state to observation,
                and its inverse; by default the observation is the state.
            advance: function (x, u, w) -> next state, if not the plant's own update.
        """
        self.plant, self.stage_cost, self.failure_cost = plant, stage_cost, failure_cost
        self.Q: Array | None = stage_cost.Q if isinstance(stage_cost, Quadratic) else None
        self.R: Array | None = stage_cost.R if isinstance(stage_cost, Quadratic) else None
        self.margin, self.observe, self.state_of = margin, observe, state_of
        self._margin_scale = margin_scale
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode must be 'rgb_array' or None, found {render_mode!r}")
        self.render_mode, self._start, self._scene = render_mode, start, scene
        self._advance, self._own = advance or plant.step, advance is None
        self._factors = np.ones(len(plant.constants))
        self.observed = observed or plant.state
        self.observation_space = gymnasium.spaces.Box(*_limits(self.observed), dtype=np.float64)
        self.action_space = gymnasium.spaces.Box(*_limits(plant.input), dtype=np.float64)
        self._low, self._high = _limits(plant.state)
        self._u_low, self._u_high = _limits(plant.input)
        self.state = plant.equilibrium[0].copy()
        self.disturbance = np.zeros(len(plant.disturbance))
        self.reference = np.zeros(len(plant.state))

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the constants that `vary` changes; none where it is not the plant's own update that is stepped."""
        return tuple(self.plant.constants) if self._own else ()

    def vary(self, factors: ArrayLike) -> None:
        """From now on step the plant with its constants times factors (k,). `plant`, which controllers know, stays.

        Raises:
            UserError: it is not the plant's own update that is stepped; see also `Plant.varied`.
        """
        if not self._own:
            raise UserError(f"{type(self).__name__} steps no plant by its equations, whose constants could be changed")
        wanted = np.array(factors, dtype=np.float64)
        if not np.array_equal(wanted, self._factors):
            self._advance = self.plant.step if (wanted == 1).all() else self.plant.varied(wanted).step
            self._factors = wanted

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode, at `options["state"]` (n,) if given, else at a drawn state.

        Raises:
            UserError: an option other than "state", or a state of wrong shape or not finite.
        """
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"state"}:
            raise UserError(f"reset knows the option 'state' only, found {sorted(unknown)}")
        drawn = options["state"] if "state" in options else self._start(self.np_random)
        self.state = _vector("start state", drawn, len(self.plant.state))
        self.disturbance = np.zeros(len(self.plant.disturbance))
        self.reference = np.zeros(len(self.plant.state))
        return self.observe(self.state), {"state": self.state.copy(), "stage_cost": 0.0, "failed": False}

    def step(self, action: ArrayLike) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Apply an action, clipped to its limits, for one sampling period.

        Returns:
            Observation, reward, failed, False, and info with "state", "stage_cost" (without failure cost), "failed" and
            "violation": the most by which the state exceeds its limits, in half widths of their range (raw where that
            is infinite), or by which its margin is negative, in its scale; 0 where it keeps them.

        Raises:
            UserError: an action, disturbance or reference of wrong shape or not finite.
        """
        u = np.clip(_vector("action", action, len(self.plant.input)), self._u_low, self._u_high)
        w = _vector("disturbance", self.disturbance, len(self.plant.disturbance))
        reference = _vector("reference", self.reference, len(self.plant.state))
        cost = self.stage_cost(self.state - reference, u)
        self.state = self._advance(self.state, u, w)
        # written so that NaN fails
        inside = bool(np.all((self._low <= self.state) & (self.state <= self._high)))
        failed = not inside or (self.margin is not None and bool(self.margin(self.state) < 0))
        reward = -cost - (self.failure_cost if failed else 0.0)
        info = {"state": self.state.copy(), "stage_cost": cost, "failed": failed, "violation": self._violation()}
        return self.observe(self.state - reference), reward, failed, False, info

    def _violation(self) -> float:
        half = (self._high - self._low) / 2
        beyond = np.maximum(self._low - self.state, self.state - self._high) / np.where(np.isfinite(half), half, 1.0)
        collision = 0.0 if self.margin is None else -float(self.margin(self.state)) / self._margin_scale
        return max(0.0, float(beyond.max()), collision)

    def render(self) -> Picture | None:
        """Picture of the current state, shape (240, 320, 3), or None without render_mode="rgb_array"."""
        return draw(self._scene(self.state)) if self.render_mode == "rgb_array" else None


def _limits(signal: Signal) -> tuple[Array, Array]:
    return np.array(signal.low, dtype=np.float64), np.array(signal.high, dtype=np.float64)


def _vector(name: str, value: ArrayLike, size: int) -> Array:
    vector = np.array(value, dtype=np.float64)
    if vector.shape != (size,) or not np.all(np.isfinite(vector)):
        raise UserError(f"{name} needs {size} finite numbers, found {vector.tolist()}")
    return vector
