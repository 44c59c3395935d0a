"""Robust Sarsa: fit the action value of a fixed policy, smooth enough to attack (Zhang et al. 2020, arXiv 2003.08938).

    minimise  smooth-L1(Q(s, a) - r - g Q(s', pi(s')))  +  weight * mean(max(upper - Q, Q - lower)^2)

where lower and upper bound Q over an l_inf box around (s, a) *together*, not around the action alone, in standard
deviations of the data. Without the second term a critic fits values and not slopes, and its attack points nowhere. The
box is zero for the first third of the updates, grows over the second, and is whole in the last, over which the learning
rate falls to zero. The bounds mix a backward linear relaxation (first) with interval propagation (last), as CROWN-IBP
(arXiv 1906.06316).

Differs from the paper: the next action is the deployed policy's (the paper's is drawn from a stochastic one), and
exploration noise on the actions takes the place of that spread, because a deterministic policy alone shows one action
per state and so nothing of dQ/da. Rewards are divided by the spread of the discounted returns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import Policy
from lipctrl.seeding import generator, seed_of

Array = NDArray[np.float64]
Env = gymnasium.Env[Any, Any]
PARALLEL = 16  # environments that one call of the policy serves


@dataclass(frozen=True)
class SarsaSettings:
    """Settings of one fit.

    Attributes:
        box: half width of the box (in standard deviations of the data). weight: of the regularisation.
        updates, batch, learning_rate, hidden: of the critic's training. discount: of the return.
    """

    box: float = 0.1
    weight: float = 1.0
    updates: int = 6000
    batch: int = 64
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99

    def __post_init__(self) -> None:
        if self.box < 0 or self.weight < 0 or self.updates < 1 or not 0 <= self.discount < 1:
            raise UserError(
                f"Robust Sarsa needs box and weight not negative, updates and a discount below 1; found {self}"
            )


@dataclass(frozen=True)
class Transitions:
    """(s, a, r, s', pi(s')) with `last` where the episode failed, so that nothing follows; leading axis: steps."""

    observation: Array
    action: Array
    reward: Array
    after: Array
    answer: Array
    last: Array
    spread: float
    """Standard deviation of the discounted returns."""


def collect(
    make: Callable[[], Env], policy: Policy, *, steps: int, exploration: float, discount: float, seed: int
) -> Transitions:
    """Steps of the policy with noise on its actions.

    Args:
        exploration: standard deviation of the noise over that of the policy's own actions, found on a tenth of the
            steps without noise: what an input limit allows says little of what a policy does.
    """
    envs = [make() for _ in range(min(PARALLEL, steps))]
    quiet = _run(envs, policy, max(1, steps // 10), np.zeros(1), discount, generator(seed, "sarsa", "quiet"))
    noise = exploration * (quiet.action.std(axis=0) + 1e-6)
    return _run(envs, policy, steps, noise, discount, generator(seed, "sarsa", "noisy"))


def _run(
    envs: Sequence[Env], policy: Policy, steps: int, noise: Array, discount: float, rng: np.random.Generator
) -> Transitions:
    space = envs[0].action_space
    assert isinstance(space, gymnasium.spaces.Box)

    def restarted(i: int) -> Array:
        return np.asarray(envs[i].reset(seed=int(rng.integers(2**31)))[0], dtype=np.float64)

    x = np.array([restarted(i) for i in range(len(envs))])
    running, returns = np.zeros(len(envs)), []
    hidden, fresh = None, np.ones(len(envs), dtype=bool)
    rows: list[tuple[Array, ...]] = []
    for _ in range(-(-steps // len(envs))):
        nominal, hidden = _act(policy, x, hidden, fresh)
        u = np.clip(nominal + noise * rng.standard_normal(nominal.shape), space.low, space.high)
        reached, reward, last, ended = x.copy(), np.zeros(len(envs)), np.zeros(len(envs)), []
        for i, env in enumerate(envs):
            after, r, failed, cut, _ = env.step(u[i].astype(space.dtype))
            reached[i], reward[i], last[i] = after, float(r), float(failed)
            if failed or cut:  # a time limit ends the episode, not the value of what follows
                ended.append(i)
        rows.append((x, u, reward, reached, _act(policy, reached, hidden)[0], last))
        running = discount * running + reward
        returns.append(running.copy())
        x, fresh = reached.copy(), np.isin(np.arange(len(envs)), ended)
        for i in ended:
            running[i], x[i] = 0.0, restarted(i)
    stacked = [np.concatenate([row[k] for row in rows])[:steps] for k in range(6)]
    return Transitions(*stacked, float(np.std(returns)) + 1e-8)  # type: ignore[call-arg, arg-type]  # six arrays


def _act(policy: Policy, x: Array, hidden: Any, fresh: Any = None) -> tuple[Array, Any]:
    action, hidden = policy.predict(x, hidden, fresh, deterministic=True)
    return np.asarray(action, dtype=np.float64), hidden


def value_bounds(layers: Sequence[nn.Linear], x: Tensor, radius: float, mix: float) -> tuple[Tensor, Tensor]:
    """(lower, upper), each (batch,), of a ReLU network with one output over the l_inf ball around x (batch, k).

    Args:
        mix: weight of the backward linear relaxation; the rest is interval propagation. Both are sound, so is any mix.
    """
    centre, spread, hidden = x, torch.full_like(x, radius), []
    for layer in layers[:-1]:
        centre, spread = layer(centre), spread @ layer.weight.abs().T
        hidden.append((centre - spread, centre + spread))
        low, high = (end.relu() for end in hidden[-1])
        centre, spread = (high + low) / 2, (high - low) / 2
    last = layers[-1]
    middle, width = last(centre)[:, 0], (spread @ last.weight.abs().T)[:, 0]
    lower, upper = middle - width, middle + width
    if mix > 0:
        lower = (1 - mix) * lower + mix * _relaxed(layers, hidden, x, radius, 1.0)
        upper = (1 - mix) * upper - mix * _relaxed(layers, hidden, x, radius, -1.0)
    return lower, upper


def _relaxed(
    layers: Sequence[nn.Linear], hidden: Sequence[tuple[Tensor, Tensor]], x: Tensor, radius: float, sign: float
) -> Tensor:
    """Lower bound of sign times the network: every ReLU between two lines, put together from the output back."""
    slope, offset = (
        sign * layers[-1].weight.expand(len(x), -1),
        sign * layers[-1].bias.expand(len(x), 1)[:, 0],  # what a lower bound adds
    )
    for layer, (low, high) in zip(reversed(layers[:-1]), reversed(hidden), strict=True):
        low, high = low.clamp(max=0), high.clamp(min=0)
        chord = high / (high - low).clamp(min=1e-9)
        below = (high > -low).to(x.dtype)
        down, up = slope.clamp(min=0), slope.clamp(max=0)
        offset = offset - (up * chord * low).sum(1)
        slope = down * below + up * chord
        offset, slope = offset + slope @ layer.bias, slope @ layer.weight
    return (slope * x).sum(1) + offset - radius * slope.abs().sum(1)


@dataclass(frozen=True)
class FittedValue:
    """A critic and how well it fits: `error` is the mean squared Bellman error over the variance of its targets."""

    net: PlainNet
    error: float


def fit(data: Transitions, settings: SarsaSettings, *, seed: int) -> FittedValue:
    """The action value, from (observation, action) side by side, in raw units of both and of the reward."""
    pairs = np.concatenate([data.observation, data.action], axis=1)
    nexts = np.concatenate([data.after, data.answer], axis=1)
    mean, scale = pairs.mean(0), pairs.std(0) + 1e-8
    source = torch.Generator().manual_seed(seed_of(seed, "critic"))
    layers = _layers((pairs.shape[1], *settings.hidden, 1), source)
    x, y = (torch.tensor((p - mean) / scale, dtype=torch.float32) for p in (pairs, nexts))
    reward = torch.tensor(data.reward / data.spread, dtype=torch.float32)
    kept = torch.tensor(settings.discount * (1 - data.last), dtype=torch.float32)
    optimiser = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=settings.learning_rate)
    for k in range(settings.updates):
        third = 3 * k / settings.updates
        ramp = min(1.0, max(0.0, third - 1))
        optimiser.param_groups[0]["lr"] = settings.learning_rate * min(1.0, 3 - third)
        rows = torch.randint(len(x), (settings.batch,), generator=source)
        q = _value(layers, x[rows])
        with torch.no_grad():
            target = reward[rows] + kept[rows] * _value(layers, y[rows])
        loss = nn.functional.smooth_l1_loss(q, target)
        if ramp > 0 and settings.weight > 0:
            lower, upper = value_bounds(layers, x[rows], ramp * settings.box, 1 - ramp)
            loss = loss + settings.weight * torch.maximum(upper - q, q - lower).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        target = reward + kept * _value(layers, y)
        error = float((_value(layers, x) - target).square().mean() / target.var().clamp(min=1e-12))
    return FittedValue(_to_plain(layers, mean, scale, data.spread), error)


def _layers(sizes: Sequence[int], source: torch.Generator) -> list[nn.Linear]:
    layers = []
    for before, after in zip(sizes[:-1], sizes[1:], strict=True):
        layer = nn.Linear(before, after)
        with torch.no_grad():  # drawn from our own generator
            layer.weight.normal_(0, (2 / before) ** 0.5, generator=source)
            layer.bias.zero_()
        layers.append(layer)
    return layers


def _value(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    for layer in layers[:-1]:
        x = layer(x).relu()
    value: Tensor = layers[-1](x)[:, 0]
    return value


def _to_plain(layers: Sequence[nn.Linear], mean: Array, scale: Array, spread: float) -> PlainNet:
    """The network with normalisation of inputs and value folded in."""
    weights = [layer.weight.detach().double().numpy() for layer in layers]
    biases = [layer.bias.detach().double().numpy() for layer in layers]
    weights[0] = weights[0] / scale
    biases[0] = biases[0] - weights[0] @ mean
    weights[-1], biases[-1] = spread * weights[-1], spread * biases[-1]
    return PlainNet.mlp(weights, biases, "relu")
