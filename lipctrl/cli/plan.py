"""What is evaluated: contenders, and the plan of closed loops."""

from dataclasses import dataclass
from pathlib import Path

from lipctrl.attacks.threat import Threat
from lipctrl.certify.bracket import Bracket
from lipctrl.nn.plain import PlainNet
from lipctrl.pid import PidPolicy
from lipctrl.policy import PlainPolicy, Policy


@dataclass(frozen=True)
class Contender:
    """A policy under evaluation; `bracket` is what is known of its sensitivity in raw units, None if nothing is."""

    name: str
    policy: Policy
    bracket: Bracket | None
    source: Path | None = None
    """File or run folder that it came from, in which its critic may lie."""
    group: str | None = None
    """Run folder of several trainings that it is one of, or None."""

    @property
    def net(self) -> PlainNet | None:
        """Its network, if it is one."""
        return self.policy.net if isinstance(self.policy, PlainPolicy) else None

    @property
    def sha256(self) -> str | None:
        """Hash of its numbers, of a network or a PID controller; None of what is built from a word."""
        itself = self.policy if isinstance(self.policy, PidPolicy) else self.net
        return None if itself is None else itself.sha256()

    @property
    def word(self) -> str:
        """What it is called on the command line."""
        return str(self.source) if self.source is not None else {"expert": "lqr"}.get(self.name, self.name)


@dataclass(frozen=True)
class Plan:
    """What to run: one environment, one threat, every policy under every attack at every radius."""

    env_id: str
    threat: Threat
    radii: tuple[float, ...]
    attacks: tuple[str, ...]
    episodes: int
    seed: int
    fresh: int = 0
    """Episodes on new seeds for the attack that turns out worst."""
    search: int = 100
    """Closed loops that a search may spend per episode and radius."""
    horizon: int = 10
    """Steps that MPC looks ahead, for the command that replays an episode."""
    ladder: tuple[float, ...] = ()
    """Shares of its effort with which every attack runs again at the largest radius."""
    parts: int = 0
    """Parts of the episode in which the worst attack of the first policy acts alone, beside components; 0: neither."""

    def radii_of(self, attack: str) -> tuple[float, ...]:
        """The radii at which an attack runs: the nominal loop has none but zero."""
        return (0.0,) if attack == "none" else self.radii
