"""`lipctrl attack apply`: what a stored attack does to policies, the one it was fitted to and others (transfer)."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from lipctrl.attacks import MaximalActionDeviation, RandomVertex
from lipctrl.attacks.fitted import FittedAttack
from lipctrl.attacks.threat import Threat
from lipctrl.cli.attacking import deviation_of
from lipctrl.cli.contenders import contender_named
from lipctrl.cli.experts import lqr_expert, make_env, signal_names
from lipctrl.cli.loops import loops_of
from lipctrl.cli.progress import bar
from lipctrl.config import parse
from lipctrl.files import UserError, write_text


@dataclass(frozen=True)
class AttackApplySettings:
    """Settings of `lipctrl attack apply`."""

    attack: tyro.conf.Positional[str] = ""
    """File of `lipctrl attack fit`."""
    policies: tyro.conf.Positional[tuple[str, ...]] = ()
    """Policies: run folders, network files, PID controllers (YAML), "lqr", "mpc"."""
    env: str | None = None
    """Gymnasium id of the environment; by default the one that the attack was fitted in."""
    threat: str | None = None
    """CHANNEL:NORM:UNITS; by default that of the fit."""
    radius: float | None = None
    """Radius in the threat's units; by default that of the fit."""
    episodes: int = 20
    """Episodes, with the same start states for all."""
    horizon: int = 10
    """Steps that "mpc" looks ahead."""
    seed: int = 1
    """Seed of start states and attacks."""
    out: str | None = None
    """Where to write the table as JSON; by default nowhere."""

    def __post_init__(self) -> None:
        for name in ("episodes", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.radius is not None and not 0 <= self.radius < math.inf:
            raise ValueError(f"radius must be finite and not negative, found {self.radius}")


@dataclass(frozen=True)
class Line:
    """Mean returns of one policy: nominal, under random extreme points, under `mad`, under the stored attack."""

    policy: str
    nominal: float
    vertex: float
    mad: float
    fitted: float
    failures: int
    """Episodes that ended early under the stored attack."""


def apply(settings: AttackApplySettings) -> list[Line]:
    """One line per policy.

    Raises:
        UserError: no such file or policy, or sizes that do not fit.
    """
    if not settings.attack or not settings.policies:
        raise UserError("attack apply needs an attack and a policy: lipctrl attack apply FILE POLICY [POLICY ...]")
    stored = FittedAttack.load(Path(settings.attack))
    env_id = settings.env or str(stored.facts["env"])
    radius = float(stored.facts["radius"]) if settings.radius is None else settings.radius
    env = make_env(env_id)
    expert = lqr_expert(env) if "lqr" in settings.policies else None
    found = [contender_named(name, env, expert, settings.horizon) for name in settings.policies]
    deviation = deviation_of((one.net for one in found), env)
    threat = Threat.parse(settings.threat or str(stored.facts["threat"]), deviation, signal_names(env)[0])
    assert env.observation_space.shape and env.action_space.shape
    attack = stored.attack(env.observation_space.shape[0], env.action_space.shape[0])
    loops = loops_of(env_id, threat)
    lines = []
    for one in found:
        runs = []
        for search in (RandomVertex(), MaximalActionDeviation(), attack):
            with bar(f"{one.name} under {type(search).__name__}", loops.limit) as advance:
                runs.append(
                    loops.run(
                        one.policy,
                        search,
                        threat,
                        (0.0, radius),
                        episodes=settings.episodes,
                        seed=settings.seed,
                        progress=advance,
                    )
                )
        vertex, mad, fitted = (float(run.returns[1].mean()) for run in runs)
        failures = int(runs[-1].terminated[1].sum())
        lines.append(Line(one.name, float(runs[0].returns[0].mean()), vertex, mad, fitted, failures))
    return lines


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        AttackApplySettings(),
        group="attack",
        prog="lipctrl attack apply",
        description="Apply a stored attack to policies, beside random extreme points and maximal action deviation.",
        args=arguments,
    )
    lines = apply(settings)
    table = Table(
        "policy", "nominal", "vertex", "mad", "this attack", "failed", title=f"mean return, {settings.attack}"
    )
    for one in lines:
        numbers = [f"{value:.6g}" for value in (one.nominal, one.vertex, one.mad, one.fitted)]
        table.add_row(one.policy, *numbers, f"{one.failures}/{settings.episodes}")
    Console().print(table)
    if settings.out is not None:
        write_text(Path(settings.out), json.dumps([asdict(one) for one in lines], indent=1) + "\n")
