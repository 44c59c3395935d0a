"""`lipctrl attack fit`: train an attack against one policy, choose among candidates, store it."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from lipctrl.attacks import Attack, NoAttack
from lipctrl.attacks.critic import ActionValue, CriticAttack
from lipctrl.attacks.fitted import FittedAttack
from lipctrl.attacks.learned import LearnedAttack, along_direction, scaled_perturbation
from lipctrl.attacks.threat import Threat
from lipctrl.cli.attacking import deviation_of
from lipctrl.cli.contenders import contender_named
from lipctrl.cli.experts import lqr_expert, make_env, signal_names
from lipctrl.cli.loops import loops_of
from lipctrl.cli.plan import Contender
from lipctrl.cli.progress import bar
from lipctrl.config import parse
from lipctrl.disturb.sets import Ball
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.runs import package_versions
from lipctrl.seeding import generator, seed_of

if TYPE_CHECKING:
    from lipctrl.attacks.adversary import Adversary

Kind = Literal["robust-sarsa", "sa-rl", "pa-ad"]
Score = Callable[[Attack], float]
BOXES, WEIGHTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.3, 1.0, 3.0, 10.0)  # of Robust Sarsa, arXiv 2003.08938
FACTOR = 3  # of successive halving


@dataclass(frozen=True)
class AttackFitSettings:
    """Settings of `lipctrl attack fit`."""

    policy: tyro.conf.Positional[str] = ""
    """Policy: a run folder, a network file, a PID controller (YAML), "lqr" or "mpc"."""
    env: str = "lipctrl/DoubleIntegrator-v0"
    """Gymnasium id of the environment."""
    attack: Kind = "sa-rl"
    """robust-sarsa: an action value of the policy, then descended; sa-rl: PPO learns the perturbation; pa-ad: PPO
    learns the direction of the action, an inner search the perturbation."""
    threat: str = "observation:linf:raw"
    """CHANNEL:NORM:UNITS, as for `lipctrl evaluate`."""
    radius: float = 0.1
    """Radius that sa-rl and pa-ad train with and all are chosen at, in the threat's units."""
    steps: int = 100_000
    """Environment steps of training: of all candidates together (sa-rl, pa-ad), of the rollouts (robust-sarsa)."""
    candidates: int = 9
    """Settings that are tried: 1 to 27 by successive halving (sa-rl, pa-ad), 1 to 30 (robust-sarsa)."""
    start: str | None = None
    """Stored attack that sa-rl copies before it learns, for example one of robust-sarsa; null: from nothing."""
    updates: int = 6000
    """Gradient steps of each critic (robust-sarsa)."""
    exploration: float = 0.5
    """Noise on the actions of the rollouts, over the spread of the policy's own actions (robust-sarsa)."""
    episodes: int = 10
    """Episodes on which candidates are compared, and, on other seeds, reported."""
    horizon: int = 10
    """Steps that "mpc" looks ahead."""
    seed: int = 0
    """Seed of everything random."""
    out: str | None = None
    """File to write (.npz); by default attack-<attack>-<environment>-s<seed>.npz in the current folder."""

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "updates", "episodes", "horizon"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("radius", "exploration"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, found {getattr(self, name)}")
        if self.start is not None and self.attack != "sa-rl":
            raise ValueError(f"start is for sa-rl, whose outputs are perturbations; found attack {self.attack}")
        most = len(BOXES) * len(WEIGHTS) if self.attack == "robust-sarsa" else 27
        if self.candidates > most:
            raise ValueError(f"{self.attack} has {most} settings to try, found candidates {self.candidates}")
        if self.out is not None and not self.out.endswith(".npz"):
            raise ValueError(f"out must end in .npz, found {self.out}")


@dataclass(frozen=True)
class Tried:
    """One candidate: its settings in words, the steps or updates behind it, the mean return under it."""

    settings: str
    steps: int
    score: float


def fit_critic(settings: AttackFitSettings, policy: Any, score: Score) -> tuple[PlainNet, list[Tried], int]:
    """The critic whose attack hurts most, all candidates, environment steps."""
    from lipctrl.attacks.sarsa import SarsaSettings, collect, fit

    def make() -> Any:
        return make_env(settings.env)

    grid = list(itertools.product(BOXES, WEIGHTS))
    order = generator(settings.seed, "grid").permutation(len(grid))[: settings.candidates]
    discount = SarsaSettings().discount
    with bar(f"robust-sarsa on {settings.policy}", 1 + len(order)) as advance:
        data = collect(
            make,
            policy,
            steps=settings.steps,
            exploration=settings.exploration,
            discount=discount,
            seed=settings.seed,
        )
        advance()
        nets, tried = [], []
        for k in order:
            box, weight = grid[k]
            found = fit(data, SarsaSettings(box=box, weight=weight, updates=settings.updates), seed=settings.seed)
            nets.append(found.net)
            words = f"box {box:g}, weight {weight:g}, Bellman error {found.error:.2g}"
            tried.append(Tried(words, settings.updates, score(CriticAttack(ActionValue((found.net,))))))
            advance()
    best = int(np.argmin([one.score for one in tried]))
    return nets[best], tried, settings.steps + max(1, settings.steps // 10)


def fit_adversary(
    settings: AttackFitSettings, policy: Any, threat: Threat, score: Score
) -> tuple[PlainNet, list[Tried], int]:
    """The adversary that hurts most, all snapshots, environment steps."""
    from lipctrl.attacks.adversary import SHOWN, candidates, successive_halving

    steer = scaled_perturbation if settings.attack == "sa-rl" else along_direction
    ball = threat.ball(np.array([settings.radius]))
    field = candidates(settings.candidates, lambda: make_env(settings.env), policy, ball, steer, seed=settings.seed)
    copied = None if settings.start is None else begin(settings, field, policy, ball)
    with bar(f"{settings.attack} on {settings.policy}", settings.steps) as advance:
        search = successive_halving(field, steps=settings.steps, score=score, factor=FACTOR, advance=advance)
    words = [
        f"learning rate {t.settings[0]:g}, entropy {t.settings[1]:g}, clip {t.settings[2]:g}" for t in search.trials
    ]
    tried = [Tried(text, trial.steps, trial.score) for text, trial in zip(words, search.trials, strict=True)]
    if copied is None:
        return search.best.net, tried, search.steps
    first = score(copied)
    best = copied if first < search.score else search.best
    spent = search.steps + SHOWN + int(start_of(settings).facts["training steps"])
    return best.net, [Tried(f"copy of {settings.start}", SHOWN, first), *tried], spent


def start_of(settings: AttackFitSettings) -> FittedAttack:
    """The stored attack that the candidates begin as."""
    return FittedAttack.load(Path(str(settings.start)))


def begin(settings: AttackFitSettings, field: Sequence["Adversary"], policy: Any, ball: Ball) -> LearnedAttack:
    """Let all candidates begin as copies of the stored attack; the first one's copy.

    Raises:
        UserError: no stored attack, or one that is for other spaces.
    """
    from lipctrl.attacks.adversary import SHOWN, AdversaryEnv, shown

    env = AdversaryEnv(make_env(settings.env), policy, ball, scaled_perturbation)
    observed, acted = env.observation_space.shape, env.env.action_space.shape
    assert observed and acted
    attack = start_of(settings).attack(observed[0], acted[0])
    with bar(f"copying {settings.start}", SHOWN) as advance:
        states, outputs = shown(env, attack, seed=seed_of(settings.seed, "shown"), advance=advance)
        for one in field:
            one.copy(states, outputs)
    return field[0].attack()


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        AttackFitSettings(),
        group="attack",
        prog="lipctrl attack fit",
        description="Train an attack against one policy, choose the candidate that hurts most, report it on other "
        "seeds and store it. Then the file is an attack: lipctrl evaluate POLICY --attacks none mad FILE.",
        args=arguments,
    )
    if not settings.policy:
        raise UserError("attack fit needs a policy: lipctrl attack fit POLICY")
    path = Path(settings.out or f"attack-{settings.attack}-{settings.env.split('/')[-1]}-s{settings.seed}.npz")
    if path.exists():
        raise UserError(f"output file {path} exists; choose another --out or remove it")
    env = make_env(settings.env)
    victim = contender_named(
        settings.policy, env, lqr_expert(env) if settings.policy == "lqr" else None, settings.horizon
    )
    threat = Threat.parse(settings.threat, deviation_of((victim.net,), env), signal_names(env)[0])
    fitted, tried, nominal = fit_attack(settings, victim, threat)
    fitted.save(path)
    show(tried, nominal)
    facts = fitted.facts
    print(
        f"{path}: on new seeds the mean return falls from {facts['nominal']:.6g} to {facts['attacked']:.6g}; "
        f"{facts['training steps']} training steps"
    )


def fit_attack(
    settings: AttackFitSettings, victim: Contender, threat: Threat
) -> tuple[FittedAttack, list[Tried], float]:
    """The candidate that hurts a policy most, all candidates, and the nominal return on the seeds of the choice."""
    loops = loops_of(settings.env, threat)

    def mean_return(attack: Attack, purpose: str) -> float:
        found = loops.run(
            victim.policy,
            attack,
            threat,
            (settings.radius,),
            episodes=settings.episodes,
            seed=seed_of(settings.seed, purpose),
        )
        return float(found.returns.mean())

    def score(attack: Attack) -> float:
        return mean_return(attack, "choose")

    critic = settings.attack == "robust-sarsa"
    net, tried, steps = (
        fit_critic(settings, victim.policy, score) if critic else fit_adversary(settings, victim.policy, threat, score)
    )
    observed, acted = loops.envs[0].observation_space.shape, loops.envs[0].action_space.shape
    assert observed and acted
    facts = facts_of(settings, victim, threat) | {
        "training steps": steps,
        "nominal": mean_return(NoAttack(), "report"),
        "attacked": mean_return(FittedAttack(settings.attack, net, {}).attack(observed[0], acted[0]), "report"),
    }
    return FittedAttack(settings.attack, net, facts), tried, score(NoAttack())


def facts_of(settings: AttackFitSettings, victim: Contender, threat: Threat) -> dict[str, Any]:
    """What the file says of its making."""
    return {
        "policy": victim.name,
        "policy sha256": victim.sha256,
        "env": settings.env,
        "threat": settings.threat,
        "deviation": list(threat.deviation or ()),
        "radius": settings.radius,
        "start": None if settings.start is None else start_of(settings).sha256(),
        "candidates": settings.candidates,
        "episodes": settings.episodes,
        "seed": settings.seed,
        "versions": package_versions(),
    }


def show(tried: Sequence[Tried], nominal: float) -> None:
    """Print every candidate."""
    table = Table("candidate", "steps", "mean return", title=f"chosen on these seeds; nominal {nominal:.6g}")
    for one in tried:
        table.add_row(one.settings, str(one.steps), f"{one.score:.6g}")
    Console().print(table)
