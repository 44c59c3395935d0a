"""The policy of behaviour cloning: a network of a Lipschitz family between two affine scalings.

The bound L is in raw units of observation and action. With mean c and one scale s for all observations (one scale,
because a scale per component would cost the l2 bound a factor), the policy is

    pi(x) = clip( u_0 + L s g((x - c) / s) ),   g 1-Lipschitz.

In normalised units each signal is first divided by its standard deviation in the data, and L bounds the map between the
divided signals: the choice for plants whose signals have different units.

Where the bound is learned, g is exp(b)-Lipschitz with b adjusted from 0, and pi is L exp(b)-Lipschitz.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from lipctrl.nn.network import lipschitz_mlp
from lipctrl.nn.normalise import deployed
from lipctrl.nn.plain import PlainNet
from lipctrl.seeding import seed_of

Array = NDArray[np.float64]
Units = Literal["raw", "normalised"]


class BCPolicy(BasePolicy):
    """Deterministic policy pi(x) = clip(u_0 + scale * g((x - c) / s)) with g from a Lipschitz family.

    Args:
        units: "raw" or "normalised", of `lip`.
        lip: l2 bound in those units, by construction for every family but "unconstrained"; None only for that one.
        family, activation, hidden: of g, see `nn.network`.
        seed: of the initial weights.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *,
        lip: float | None = 2.0,
        family: str = "sandwich",
        activation: str = "tanh",
        hidden: tuple[int, ...] = (64, 64),
        units: Units = "raw",
        seed: int = 0,
    ) -> None:
        super().__init__(observation_space, action_space)
        n, m = observation_space.shape[0], action_space.shape[0]
        self.lip, self.units, self.by_construction = lip, units, family != "unconstrained"
        self.net = lipschitz_mlp(
            family,
            (n, *hidden, m),
            1.0 if self.by_construction else None,
            activation=activation,
            seed=seed_of(seed, "network"),
        )
        self.observation_mean: Tensor
        self.observation_std: Tensor
        self.observation_unit: Tensor
        self.observation_scale: Tensor
        self.action_offset: Tensor
        self.action_unit: Tensor
        self.action_scale: Tensor
        self.register_buffer("observation_mean", torch.zeros(n, dtype=torch.float64))
        self.register_buffer("observation_std", torch.ones(n, dtype=torch.float64))
        self.register_buffer("observation_unit", torch.ones(n, dtype=torch.float64))
        self.register_buffer("action_unit", torch.ones(m, dtype=torch.float64))
        self.register_buffer("observation_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("action_offset", torch.zeros(m, dtype=torch.float64))
        self.register_buffer("action_scale", torch.ones((), dtype=torch.float64))
        self.multiplier: Tensor
        self.register_buffer("multiplier", torch.ones((), dtype=torch.float64))  # of the constraint in training
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1))

    def set_scales(self, observations: Array, labels: Array) -> None:
        """Take centre and scale from training data (N, n) and labels (N, m)."""
        std, label_std = observations.std(0), labels.std(0)
        std, label_std = np.where(std > 0, std, 1.0), np.where(label_std > 0, label_std, 1.0)
        unit, action_unit = (
            (std, label_std) if self.units == "normalised" else (np.ones_like(std), np.ones_like(label_std))
        )
        scale = float(np.sqrt(((observations / unit).std(0) ** 2).mean())) or 1.0
        if self.lip is not None and self.by_construction:
            action_scale = self.lip * scale
        else:
            action_scale = float((labels / action_unit).std()) or 1.0
        for buffer, value in (
            (self.observation_mean, observations.mean(0)),
            (self.observation_std, std),
            (self.observation_unit, unit),
            (self.action_unit, action_unit),
            (self.observation_scale, np.array(scale)),
            (self.action_offset, labels.mean(0)),
            (self.action_scale, np.array(action_scale)),
        ):
            buffer.copy_(torch.from_numpy(np.asarray(value, dtype=np.float64)))

    def forward(self, observation: Tensor) -> Tensor:
        """Actions (batch, m) before clipping, for observations (batch, n)."""
        x = (observation.double() - self.observation_mean) / (self.observation_scale * self.observation_unit)
        y = self.net(x.float())
        action: Tensor = self.action_offset.float() + (self.action_scale * self.action_unit).float() * y
        return action

    def bound(self) -> Tensor:
        """The bound that holds by construction, in its units; infinite for an unconstrained network."""
        if self.lip is None or not self.by_construction:
            return torch.full((), torch.inf)
        return self.net.log_lip.exp() * self.lip

    def jacobian(self, observation: Tensor) -> Tensor:
        """Jacobians (batch, m, n) before clipping, in the units of the bound, differentiable in the parameters."""
        x = observation.detach().requires_grad_()
        rows = [torch.autograd.grad(u.sum(), x, create_graph=True)[0] for u in self.forward(x).unbind(1)]
        return torch.stack(rows, 1) * self.observation_unit.float() / self.action_unit.float()[:, None]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.forward(observation)

    def to_plain(self, *, input_names: tuple[str, ...] = (), output_names: tuple[str, ...] = ()) -> PlainNet:
        """The deployed policy in raw units, float64, clipped to the action limits.

        Args:
            input_names, output_names: names with units, for certificates and reports.
        """
        space = self.action_space
        assert isinstance(space, spaces.Box)
        net = deployed(
            self.net.to_plain(),
            mean=self.observation_mean.cpu().numpy(),
            scale=(self.observation_scale * self.observation_unit).cpu().numpy(),
            output_offset=self.action_offset.cpu().numpy(),
            output_scale=(self.action_scale * self.action_unit).cpu().numpy(),
            low=space.low.astype(np.float64),
            high=space.high.astype(np.float64),
        )
        return replace(
            net,
            input_mean=self.observation_mean.cpu().numpy(),
            input_scale=self.observation_std.cpu().numpy(),
            input_names=input_names,
            output_names=output_names,
        )
