"""`lipctrl oracle`: every attack against problems whose exact worst case is known. None may exceed it.

The loop is the double integrator x+ = [[1, 0.1], [0, 1]] x + [0.005, 0.1]' u with Q = I, R = 0.1, 8 steps from (1, 0),
its optimal gain, and a detuned one; radius 0.1 per step, energy 0.5 per episode. Searches over closed loops run on
every channel, from drawn start states. A search that reports more than the exact optimum has left its set or counts
wrongly; one that stays far below it is weak. Both are bugs, and the command exits with status 3.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lipctrl.attacks import ATTACKS, PLANT_ATTACKS, SEARCHES, Attack, Context
from lipctrl.attacks.critic import CriticAttack
from lipctrl.attacks.linear import LinearLoop, Quadratic, finite_horizon_gain, peak_gains
from lipctrl.attacks.lookahead import Lookahead
from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.attacks.planned import Episode, PlannedCrossEntropy, PlannedGradient, Sequences, quadratic_costs
from lipctrl.attacks.threat import Threat
from lipctrl.certify.stability import hinf_norm
from lipctrl.cli.experts import Env, make_env
from lipctrl.cli.progress import bar
from lipctrl.config import parse
from lipctrl.disturb.sets import Ball
from lipctrl.envs.linear import linear_plant
from lipctrl.evaluation.rollout import Loops, surrounded
from lipctrl.evaluation.search import run_search
from lipctrl.files import RequirementFailed, write_text
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import Norm
from lipctrl.policy import PlainPolicy
from lipctrl.seeding import seed_of

Array = NDArray[np.float64]
A, B = np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.005], [0.1]])
Q, R, X0 = np.eye(2), np.array([[0.1]]), np.array([1.0, 0.0])
P = scipy.linalg.solve_discrete_are(A, B, Q, R)
S = R + B.T @ P @ B
K, DETUNED = np.linalg.solve(S, B.T @ P @ A), np.array([[1.0, 3.0]])
RADIUS, STEPS, BUDGET = 0.1, 8, 0.5
TIGHT = 1e-6  # what an exact search may miss
FREE = 1e9  # limits that nothing reaches
PLANT = linear_plant(A, B, state_limit=FREE, input_limit=FREE)
COSTS = quadratic_costs(Q, R, P, [0, 0], [0])


@dataclass(frozen=True)
class OracleSettings:
    """Settings of `lipctrl oracle`."""

    seed: int = 0
    """Seed of every search."""
    episodes: int = 16
    """Episodes of the attacks that draw at random."""
    out: str | None = None
    """Where to write the table as JSON; by default nowhere."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, found {self.episodes}")


@dataclass(frozen=True)
class Check:
    """One comparison: `found` may be `least` to `exact` less `below`, both up to rounding."""

    problem: str
    search: str
    exact: float
    found: float
    least: float
    below: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the search is neither above the optimum nor weaker than it has to be."""
        slack = 1e-9 * max(1.0, abs(self.exact))
        return self.least - slack <= self.found <= self.exact - self.below + slack


def linear_policy(gain: Array) -> PlainPolicy:
    """u = -gain x as a network without hidden layers."""
    return PlainPolicy(PlainNet(({0: -gain},), (np.zeros(len(gain)),), ()))


@dataclass(frozen=True)
class ExactValue:
    """The action value of u = -gain x, a critic without error: minus the cost of u now and of the gain from then on."""

    gain: Array

    def __call__(self, context: Context, d: Array) -> tuple[Array, Array]:
        """See `lipctrl.attacks.critic.Critic`."""
        closed = A - B @ self.gain
        W = scipy.linalg.solve_discrete_lyapunov(closed.T, Q + self.gain.T @ R @ self.gain)
        x, u = context.observation, context.act(context.observation + d)
        y = x @ A.T + u @ B.T
        value = -((x @ Q * x).sum(1) + (u @ R * u).sum(1) + (y @ W * y).sum(1))
        slope = -2 * (u @ R + y @ W @ B)
        return value, np.einsum("bm,bmn->bn", slope, context.jacobian(context.observation + d))


def attack_named(name: str, gain: Array) -> Attack:
    """An attack of the library on a gain; "critic" with the exact action value."""
    if name in ATTACKS:
        return ATTACKS[name][0]()
    if name == "critic":
        return CriticAttack(ExactValue(gain))
    return Lookahead(PLANT, *COSTS, horizon=STEPS, iterations=50)


def attacked_cost(name: str, gain: Array, norm: Norm, settings: OracleSettings) -> float:
    """The largest cost over episodes of the linear loop under an attack of the library, which acts step by step."""
    policy, rng = linear_policy(gain), np.random.default_rng(settings.seed)
    attack = attack_named(name, gain)
    rows = settings.episodes
    ball = Ball(norm, np.full(rows, RADIUS), np.ones(2))
    x, total = np.tile(X0, (rows, 1)), np.zeros(rows)
    for _ in range(STEPS):
        d = attack.perturb(Context(x, policy, ball, rows, rng))
        assert ball.contains(d), f"{name} left its set"
        u = policy.predict(x + d)[0]
        total += ((x @ Q) * x).sum(1) + ((u @ R) * u).sum(1)
        x = x @ A.T + u @ B.T
    return float((total + ((x @ P) * x).sum(1)).max())


def step_checks(settings: OracleSettings) -> Iterator[Check]:
    """Every attack on the optimal gain, whose worst case separates over time; maximal action deviation attains it."""
    nominal = float(X0 @ P @ X0)
    for norm in ("l2", "linf"):
        extra = lqr_extra_cost(K, S, norm=norm, radius=RADIUS, scale=np.ones(2), steps=STEPS)
        for name in (*ATTACKS, *PLANT_ATTACKS, "critic"):
            found = attacked_cost(name, K, norm, settings)
            least = nominal + extra - TIGHT if name in ("mad", "lookahead", "critic") else nominal
            yield Check(f"LQR cost, {norm}", name, nominal + extra, found, least)


def planned_checks(settings: OracleSettings) -> Iterator[Check]:
    """Sequences over the episode: energy budgets and limits per step, on the optimal and on a detuned gain."""
    for label, gain in (("optimal", K), ("detuned", DETUNED)):
        episode = Episode(PLANT, linear_policy(gain), X0, *COSTS)
        loop = LinearLoop(A, B, gain, Q, R, P)
        form, nominal = loop.stacked(X0, STEPS), loop.cost(X0, np.zeros((STEPS, 2)))
        energy = Sequences("episode", "l2", BUDGET, np.ones(2), STEPS)
        limits = Sequences("step", "linf", RADIUS, np.ones(2), STEPS)
        for name, allowed, exact in (
            ("energy", energy, form.largest_in_ball(BUDGET)[0]),
            ("linf", limits, form.largest_at_vertices(RADIUS)[0]),
        ):
            problem = f"{label} gain, {name}"
            planned = PlannedGradient(iterations=2000).search(episode, allowed, seed=settings.seed).cost
            yield Check(problem, "planned gradient", exact, planned, exact - TIGHT)
            found = PlannedCrossEntropy().search(episode, allowed, seed=settings.seed).cost
            yield Check(problem, "cross-entropy", exact, found, nominal + 0.9 * (exact - nominal))
    greedy = attacked_cost("mad", DETUNED, "linf", settings)
    yield Check("detuned gain, linf", "mad, greedy", exact, greedy, nominal, below=1e-3)
    for name in ("lookahead", "critic"):
        found = attacked_cost(name, DETUNED, "linf", settings)
        yield Check("detuned gain, linf", name, exact, found, nominal + 0.9 * (exact - nominal))


def short_loop() -> Env:
    """The loop as an environment, which ends after 8 steps and has no terminal cost."""
    return make_env("lipctrl/Linear-v0", max_episode_steps=STEPS)


def search_checks(settings: OracleSettings) -> Iterator[Check]:
    """Searches over closed loops on every channel of the detuned loop; costs are summed over start states."""
    loop, policy, episodes = LinearLoop(A, B, DETUNED, Q, R, np.zeros((2, 2))), linear_policy(DETUNED), 4
    starts = [short_loop().reset(seed=seed_of(settings.seed, "episode", e))[0] for e in range(episodes)]
    held = ("constant-search", "random-search")
    problems: list[tuple[str, Callable[[Array], Quadratic], tuple[str, ...], float]] = [
        ("observation:l2:raw", lambda x: loop.held(x, STEPS, "observation"), held, 0.9),
        ("action:l2:raw", lambda x: loop.held(x, STEPS, "action"), held, 0.9),
        ("disturbance:l2:raw", lambda x: loop.held(x, STEPS, "disturbance"), held, 0.9),
        ("initial_state:l2:raw", lambda x: loop.displaced(x, STEPS), held, 0.9),
        ("action:l2:raw:episode", lambda x: loop.stacked(x, STEPS, "action"), tuple(SEARCHES), 0.5),
    ]
    for line, form, names, share in problems:
        forms = [form(x) for x in starts]
        nominal, exact = sum(f.c for f in forms), sum(f.largest_in_ball(RADIUS)[0] for f in forms)
        threat = Threat.parse(line, np.ones(2), ("x1 [-]", "x2 [-]"), short_loop())
        loops = Loops(partial(_surrounded, threat))
        for name in names:
            found = run_search(
                loops, policy, SEARCHES[name][0], threat, (RADIUS,), episodes=episodes, seed=settings.seed
            )
            weak = name == "random-search" or (share < 0.9 and name == "constant-search")
            least = nominal if weak else nominal + share * (exact - nominal)
            yield Check(f"detuned gain, {line}", name, exact, -float(found.returns.sum()), least)


def _surrounded(threat: Threat) -> Env:
    return surrounded(short_loop(), threat)


def gain_checks() -> Iterator[Check]:
    """Gains from below: over finite horizons against the H-infinity norm, constant inputs against peak gains."""
    one, closed, C = np.eye(1), A - B @ K, np.vstack([np.eye(2), -np.sqrt(R) @ K])
    for problem, (a, b, c) in {"x+ = 0.9 x + w": (0.9 * one, one, one), "LQR loop": (closed, B, C)}.items():
        norm = hinf_norm(a, b, c)
        for steps, least in ((10, 0.0), (400, 0.99 * norm)):
            found = finite_horizon_gain(a, b, c, steps)
            yield Check(f"H-infinity, {problem}", f"{steps} steps", norm, found, least)
    x = np.zeros(1)
    for _ in range(400):
        x = 0.9 * x + 1.0
    peak = float(peak_gains(0.9 * one, one, one)[0])
    yield Check("peak gain, x+ = 0.9 x + w", "constant input", peak, float(x[0]), 9.99)


def deviation_checks(settings: OracleSettings) -> Iterator[Check]:
    """How far one action can be moved: closed forms of linear policies; a constant one cannot be moved at all."""
    rng = np.random.default_rng(settings.seed)
    W = rng.normal(size=(2, 3))
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1)
    exact = {"l2": float(np.linalg.norm(W, 2)), "linf": float(np.linalg.norm(W @ signs, axis=0).max())}
    for norm, largest in exact.items():
        ball = Ball(norm, np.full(settings.episodes, RADIUS), np.ones(3))  # type: ignore[arg-type]  # both are norms
        for policy, gain in (("linear", W), ("constant", 0 * W)):
            x, actor = rng.normal(size=(settings.episodes, 3)), linear_policy(gain)
            for name in ATTACKS:
                d = ATTACKS[name][0]().perturb(Context(x, actor, ball, settings.episodes, rng))
                found = float(np.linalg.norm(d @ gain.T, axis=1).max())
                top = RADIUS * largest if policy == "linear" else 0.0
                least = top - TIGHT if name == "mad" else 0.0
                yield Check(f"{policy} policy, {norm}", name, top, found, least)


def main(arguments: Sequence[str]) -> None:
    """Entry point.

    Raises:
        RequirementFailed: a check fails.
    """
    settings = parse(
        OracleSettings(),
        group="oracle",
        prog="lipctrl oracle",
        description="Audit every attack on problems whose exact worst case is known: none may exceed it, the exact "
        "ones must reach it. Takes seconds; exits with status 3 if a check fails.",
        args=arguments,
    )
    parts: list[Callable[[], Iterator[Check]]] = [
        lambda: step_checks(settings),
        lambda: planned_checks(settings),
        lambda: search_checks(settings),
        gain_checks,
        lambda: deviation_checks(settings),
    ]
    checks: list[Check] = []
    with bar("auditing the attacks", len(parts)) as advance:
        for part in parts:
            checks += part()
            advance()
    show(checks)
    if settings.out is not None:
        rows = [asdict(check) | {"passed": check.passed} for check in checks]
        write_text(Path(settings.out), json.dumps(rows, indent=1) + "\n")
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = failed[0]
        raise RequirementFailed(
            f"{len(failed)} of {len(checks)} checks fail; the first: {worst.search} on {worst.problem} found "
            f"{worst.found:.9g}, allowed is {worst.least:.9g} to {worst.exact - worst.below:.9g}"
        )
    print(f"all {len(checks)} checks pass: no search exceeds an exact optimum")


def show(checks: Sequence[Check]) -> None:
    """Print the table."""
    table = Table("problem", "search", "exact", "found", "")
    for check in checks:
        mark = "pass" if check.passed else "FAIL"
        table.add_row(check.problem, check.search, f"{check.exact:.8g}", f"{check.found:.8g}", mark)
    Console().print(table)
