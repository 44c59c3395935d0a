"""Gaussian models of an environment's step: one network or many, trained as one batch (MBPO, arXiv 1906.08253).

A member maps (s, a), standardised, to mean and log-variance of (r, s' - s). The members' matrices are stacked along a
leading axis. As published: bootstrap with replacement, holdout min(20 %, 5,000), trained bounds of the log-variance,
best weights of each member restored. Three differences: gradient steps per fit are capped; targets are standardised;
and a fit goes on while the geometric mean over the outputs of the holdout error falls. With raw targets one output that
cannot be predicted, such as a reward that jumps where an episode ends, stops a fit before small outputs are learned.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipctrl.files import UserError
from lipctrl.models.gaussian import BOUNDS_PRICE, HIGHEST, LOWEST, bounded_log_variance

Array = NDArray[np.float64]
DECAY = (2.5e-5, 5e-5, 7.5e-5)  # of the first, second and further hidden layers' squared weights
LAST_DECAY = 1e-4
BETA = 0.5  # weight var^BETA of a row's likelihood: without it rows that look noisy are hardly learned
STALE = 250  # gradient steps without improvement that a fit waits at least: an epoch of little data is a few steps
IMPROVEMENT = 0.01  # relative fall of a member's holdout error that counts


@dataclass(frozen=True)
class DynamicsSettings:
    """Settings of the dynamics model."""

    members: int = 1
    """Networks trained side by side."""
    elites: int = 1
    """Members with the lowest holdout error, which predict."""
    width: int = 200
    """Width of the hidden layers."""
    depth: int = 4
    """Number of hidden layers."""
    probabilistic: bool = True
    """Gaussian likelihood with a learned variance; otherwise squared error and no noise."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""
    batch: int = 256
    """Rows per member and gradient step."""
    patience: int = 5
    """Epochs without any member's improvement after which a fit stops, and at least 250 gradient steps."""
    cap: int = 2000
    """Gradient steps per fit."""

    def __post_init__(self) -> None:
        for name in ("members", "elites", "width", "depth", "batch", "patience", "cap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.elites > self.members:
            raise ValueError(f"elites must not exceed members, found {self.elites} of {self.members}")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"learning_rate must be positive and finite, found {self.learning_rate}")


@dataclass(frozen=True)
class FitReport:
    """What a fit did.

    Attributes:
        steps, epochs: gradient steps and passes over the training rows.
        holdout_mse: of the restored weights, (members,), in raw units of (r, s' - s).
        holdout_nll: the loss of the same without regularisation, in units of the targets' deviations, (members,).
    """

    steps: int
    epochs: int
    holdout_mse: Array
    holdout_nll: Array


@dataclass
class Dynamics:
    """The model; `fit` may be called again and goes on from the weights and the optimiser's state of now.

    Args:
        observations, actions: n and m. settings: see there. seed: of weights, splits and orders. device: of tensors.

    Attributes:
        weights, biases: of each layer, (members, in, out) and (members, 1, out).
        elites: members that predict, best first.
    """

    observations: int
    actions: int
    settings: DynamicsSettings
    seed: int = 0
    device: str = "cpu"
    weights: list[Tensor] = field(init=False)
    biases: list[Tensor] = field(init=False)
    elites: Tensor = field(init=False)

    def __post_init__(self) -> None:
        s, outputs = self.settings, self.observations + 1
        self.draws = torch.Generator(self.device).manual_seed(self.seed)
        sizes = [self.observations + self.actions, *[s.width] * s.depth, 2 * outputs if s.probabilistic else outputs]
        self.weights, self.biases = [], []
        for fan_in, fan_out in zip(sizes, sizes[1:], strict=False):
            weight, std = torch.empty(s.members, fan_in, fan_out, device=self.device), 0.5 / fan_in**0.5
            torch.nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=self.draws)
            self.weights.append(weight.requires_grad_())
            self.biases.append(torch.zeros(s.members, 1, fan_out, device=self.device, requires_grad=True))
        self.highest = torch.full((outputs,), HIGHEST, device=self.device, requires_grad=s.probabilistic)
        self.lowest = torch.full((outputs,), LOWEST, device=self.device, requires_grad=s.probabilistic)
        self.mean, self.std = torch.zeros(sizes[0], device=self.device), torch.ones(sizes[0], device=self.device)
        self.shift, self.unit = torch.zeros(outputs, device=self.device), torch.ones(outputs, device=self.device)
        self.elites = torch.arange(s.elites, device=self.device)
        self.optimizer = torch.optim.Adam(self._leaves(), lr=s.learning_rate, fused=True)

    def state_dict(self) -> dict[str, Any]:
        """What the model must remember to go on exactly."""
        return {
            "leaves": [leaf.detach().clone() for leaf in (*self.weights, *self.biases, self.highest, self.lowest)],
            "scaling": [value.clone() for value in self._scaling()],
            "elites": self.elites.clone(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "draws": self.draws.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        for leaf, value in zip((*self.weights, *self.biases, self.highest, self.lowest), state["leaves"], strict=True):
            leaf.copy_(value)
        self.mean, self.std, self.shift, self.unit = (value.to(self.device) for value in state["scaling"])
        self.elites = state["elites"].to(self.device)
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"])

    def _leaves(self) -> list[Tensor]:
        bounds = [self.highest, self.lowest] if self.settings.probabilistic else []
        return [*self.weights, *self.biases, *bounds]

    def __call__(self, inputs: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of (r, s' - s), each (members, batch, n + 1).

        Args:
            inputs: raw (s, a), shape (batch, n + m), or (members, batch, n + m).
            members: indices of those to evaluate; by default all.

        The log-variance of a deterministic model is minus infinity: no noise.
        """
        mean, log_variance = self._standardised(inputs, members)
        return mean * self.unit + self.shift, log_variance + 2 * self.unit.log()

    def _standardised(self, inputs: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same in units of the targets' deviations."""
        h = (inputs - self.mean) / self.std
        h = h if h.ndim == 3 else h.expand(self.settings.members if members is None else len(members), *h.shape)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if members is not None:
                weight, bias = weight[members], bias[members]
            h = torch.baddbmm(bias, h, weight)
            if k + 1 < len(self.weights):
                h = functional.silu(h)
        if not self.settings.probabilistic:
            return h, torch.full_like(h, -torch.inf)
        mean, raw = h.chunk(2, dim=-1)
        return mean, bounded_log_variance(raw, self.highest, self.lowest)

    @torch.no_grad()
    def sample(self, states: Tensor, actions: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Next states (batch, n) and rewards (batch,), each row from a random elite's Gaussian."""
        count, elites = len(states), len(self.elites)
        each = -(-count // elites)  # rows of every elite: only the member that a row draws is evaluated for it
        order = torch.randperm(each * elites, generator=draws, device=self.device)
        inputs = torch.cat([states, actions], -1)[order % count].view(elites, each, -1)
        mean, log_variance = self(inputs, self.elites)
        noise = torch.randn(mean.shape, generator=draws, device=self.device)
        outcome = (mean + (0.5 * log_variance).exp() * noise).flatten(0, 1)
        found = torch.empty_like(outcome)
        found[order] = outcome
        return states + found[:count, 1:], found[:count, 0]

    @torch.no_grad()
    def spread(self, states: Tensor, actions: Tensor) -> Tensor:
        """Standard deviation of the next state, (batch, n): from the elites' own variance and that of their means."""
        mean, log_variance = self(torch.cat([states, actions], -1), self.elites)
        return (log_variance.exp().mean(0) + mean.var(0, correction=0))[:, 1:].sqrt()

    def fit(self, states: Tensor, actions: Tensor, rewards: Tensor, next_states: Tensor) -> FitReport:
        """Train until no member has improved for more than `patience` epochs, or the cap; keep members' best weights.

        Args:
            states, next_states: (rows, n); next states before any reset. actions: (rows, m). rewards: (rows,).

        Raises:
            UserError: fewer than two rows, or rows or errors that are not finite; the model stays as it was.
        """
        inputs = torch.cat([states, actions], -1)
        targets = torch.cat([rewards[:, None], next_states - states], -1)
        if len(inputs) < 2 or not (inputs.isfinite().all() and targets.isfinite().all()):
            raise UserError(f"a dynamics model needs at least two rows of finite numbers, found {len(inputs)} rows")
        s, count = self.settings, len(inputs)
        held = max(1, min(count // 5, 5000))
        order = torch.randperm(count, generator=self.draws, device=self.device)
        check = inputs[order[:held]], targets[order[:held]]
        inputs, targets = inputs[order[held:]], targets[order[held:]]
        before = [value.detach().clone() for value in (*self._leaves(), *self._scaling())]
        adam = copy.deepcopy(self.optimizer.state_dict())
        self.mean, self.std = _scale(inputs)
        self.shift, self.unit = _scale(targets)
        rows = torch.randint(len(inputs), (s.members, len(inputs)), generator=self.draws, device=self.device)
        best, trained = self._holdout(*check)[0], (*self.weights, *self.biases)
        kept = [value.detach().clone() for value in trained]
        steps, epochs, stale, last = 0, 0, 0, 0
        while (stale <= s.patience or steps - last < STALE) and steps < s.cap:
            steps += self._epoch(inputs, targets, rows, s.cap - steps)
            epochs += 1
            errors = self._holdout(*check)[0]
            if not errors.isfinite().all():
                self._restore(before)
                self.optimizer.load_state_dict(adam)
                raise UserError(f"the dynamics model diverged in epoch {epochs}: lower its learning rate")
            better = _geometric(errors, self.unit) < (1 - IMPROVEMENT) * _geometric(best, self.unit)
            best = torch.where(better[:, None], errors, best)
            kept = [torch.where(better[:, None, None], v.detach(), old) for v, old in zip(trained, kept, strict=True)]
            stale, last = (0, steps) if bool(better.any()) else (stale + 1, last)
        with torch.no_grad():
            for value, old in zip(trained, kept, strict=True):
                value.copy_(old)
        errors, losses = self._holdout(*check)
        self.elites = _geometric(errors, self.unit).argsort()[: s.elites]
        return FitReport(steps, epochs, errors.mean(1).double().cpu().numpy(), losses.double().cpu().numpy())

    def _scaling(self) -> list[Tensor]:
        return [self.mean, self.std, self.shift, self.unit]

    def _restore(self, before: list[Tensor]) -> None:
        with torch.no_grad():
            for value, old in zip((*self._leaves(), *self._scaling()), before, strict=True):
                value.copy_(old)

    def _epoch(self, inputs: Tensor, targets: Tensor, rows: Tensor, most: int) -> int:
        """One pass of every member over its own bootstrap in a new order, of at most `most` steps."""
        s, count = self.settings, len(inputs)
        keys = torch.rand(rows.shape, generator=self.draws, device=self.device)
        shuffled, steps = rows.gather(1, keys.argsort(1)), 0
        for begin in range(0, min(count, most * s.batch), s.batch):
            picked = shuffled[:, begin : begin + s.batch]
            loss = self._losses(inputs[picked], targets[picked], weighted=True).sum() + self._regularisation()
            leaves = self._leaves()
            for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                leaf.grad = gradient.contiguous()  # fused Adam ignores strides
            self.optimizer.step()
            steps += 1
        return steps

    def _losses(self, inputs: Tensor, targets: Tensor, *, weighted: bool) -> Tensor:
        """Mean over batch and outputs of (mu - y)^2 / var + log var, or of (mu - y)^2, standardised; (members,)."""
        mean, log_variance = self._standardised(inputs)
        squares = (mean - (targets - self.shift) / self.unit).square()
        if self.settings.probabilistic:
            squares = squares * (-log_variance).exp() + log_variance
            if weighted:
                weight = (BETA * log_variance).exp().detach()  # of mean one: the bounds keep their price
                squares = squares * weight / weight.mean(1, keepdim=True)
        return squares.mean((1, 2))

    def _regularisation(self) -> Tensor:
        """Weight decay, and a pull of the variance's bounds towards each other."""
        last = len(self.weights) - 1
        rates = [LAST_DECAY if k == last else DECAY[min(k, 2)] for k in range(last + 1)]
        decay = torch.stack([0.5 * rate * w.square().sum() for rate, w in zip(rates, self.weights, strict=True)]).sum()
        return decay + BOUNDS_PRICE * (self.highest.sum() - self.lowest.sum()) if self.settings.probabilistic else decay

    @torch.no_grad()
    def _holdout(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of every member and output, raw, (members, n + 1), and loss of every member."""
        mean, _ = self(inputs)
        return (mean - targets).square().mean(1), self._losses(inputs, targets, weighted=False)


def _scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each column; a constant one keeps its unit."""
    std, mean = torch.std_mean(rows, 0, correction=0)
    return mean, torch.where(std < 1e-12, 1.0, std)


def _geometric(errors: Tensor, unit: Tensor) -> Tensor:
    """Geometric mean over the outputs of the error per variance, (members,); below 1e-6 an output counts as learned."""
    return (errors / unit.square()).clamp(min=1e-6).log().mean(-1).exp()
