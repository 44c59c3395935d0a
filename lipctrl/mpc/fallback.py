"""Certified fallback: MPC acts while it is feasible and in time, a policy with a proved constant whenever it is not.

What is proved of the policy is its Lipschitz constant, which is checked against its weights before the first step. It
bounds how much a measurement error moves the action; that the policy is stable where it takes over is a separate claim.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.certify.certificate import Certificate
from lipctrl.files import UserError
from lipctrl.mpc.mpc_policy import Controller, Decision, MPCPolicy
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy

Array = NDArray[np.float64]


def _same(observation: Array) -> Array:
    return observation


@dataclass(frozen=True, kw_only=True)
class CertifiedFallback:
    """MPC with a certified policy behind it. Pure: `MPCPolicy` decides, its decisions travel in the hidden state.

    Attributes:
        controller: solves the problem.
        net: the policy that acts on the same observation when the MPC cannot.
        certificate: of this network.
        deadline: seconds per solve, or None.
        state_of: state (n,) of the plant from one observation.

    Raises:
        UserError: the certificate belongs to other weights, or its proof does not hold.
    """

    controller: Controller
    net: PlainNet
    certificate: Certificate
    deadline: float | None = None
    state_of: Callable[[Array], Array] = _same

    def __post_init__(self) -> None:
        if self.certificate.weights_sha256 != self.net.sha256():
            raise UserError(
                "the fallback policy needs a certificate of its own weights "
                f"(hash {self.net.sha256()[:12]}), found one of {self.certificate.weights_sha256[:12]}"
            )
        if not self.certificate.verify(self.net):
            raise UserError(
                f"the certificate of the fallback policy does not verify (bound {self.certificate.bound:g})"
            )

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Array, tuple[Decision, ...]]:
        """See `MPCPolicy.predict`."""
        policy = MPCPolicy(self.controller, PlainPolicy(self.net), self.deadline, self.state_of)
        return policy.predict(observation, state, episode_start, deterministic)


@dataclass(frozen=True)
class Switch:
    """At this step and time (in the plant's unit) the policy took over for a reason, or the MPC again (None)."""

    step: int
    time: float
    reason: str | None


@dataclass(frozen=True)
class FallbackLog:
    """A run with a fallback.

    Attributes:
        share: of the steps at which the policy acted.
        reasons: those steps by reason.
        switches: every change of hands, and of the reason.
        outside: steps at which the policy acted outside the region of its certificate, where its bound is not proved.
    """

    share: float
    reasons: Mapping[str, int]
    switches: tuple[Switch, ...]
    outside: int


def summarise(
    decisions: Sequence[Decision], observations: Array, certificate: Certificate, *, dt: float
) -> FallbackLog:
    """The log of one episode.

    Args:
        decisions: in order, as `ClosedLoop.decisions`.
        observations: what the policy saw at each of these steps, shape (steps, n).
        certificate: of the policy. dt: sampling time.

    Raises:
        UserError: no decision, or as many observations as decisions are not given.
    """
    if not decisions or len(decisions) != len(observations):
        raise UserError(
            f"{len(decisions)} decisions came with {len(observations)} observations; at least one is needed"
        )
    reasons = [decision.fallback for decision in decisions]
    changes = [k for k in range(len(reasons)) if reasons[k] != (reasons[k - 1] if k else None)]
    region = certificate.region
    acted = [row for reason, row in zip(reasons, observations, strict=True) if reason is not None]
    return FallbackLog(
        share=len(acted) / len(reasons),
        reasons=Counter(reason for reason in reasons if reason is not None),
        switches=tuple(Switch(k, k * dt, reasons[k]) for k in changes),
        outside=0 if region is None else sum(not region.contains(row) for row in acted),
    )
