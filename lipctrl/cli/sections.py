"""From policies, attacks and radii to one section of a report; shared by `evaluate` and `quickstart`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks import ATTACKS, FITTED_ATTACKS, PLANT_ATTACKS, SEARCHES, Attack, Search
from lipctrl.attacks.lookahead import Lookahead
from lipctrl.attacks.oracle import lqr_extra_cost
from lipctrl.attacks.planned import quadratic_costs
from lipctrl.attacks.threat import KNOWS, Threat
from lipctrl.certify.bracket import Bracket, certify
from lipctrl.cli.animate import animation
from lipctrl.cli.experts import Env, Expert, signal_names
from lipctrl.cli.fitted import fitted_attack
from lipctrl.cli.loops import loops_of
from lipctrl.cli.progress import bar
from lipctrl.envs.base import PlantEnv
from lipctrl.evaluation.plots import deviation_curves, return_curves, trajectories
from lipctrl.evaluation.report import Figure, Section, confirmed, verdict
from lipctrl.evaluation.rollout import Loops, Rollouts, Trace
from lipctrl.evaluation.search import run_search
from lipctrl.evaluation.summary import Row, rows
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.seeding import seed_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Contender:
    """A policy under evaluation; `bracket` is what is known of its sensitivity in raw units, None if nothing is."""

    name: str
    policy: Policy
    bracket: Bracket | None
    source: Path | None = None
    """File or run folder that it came from, in which its critic may lie."""

    @property
    def net(self) -> PlainNet | None:
        """Its network, if it is one."""
        return self.policy.net if isinstance(self.policy, PlainPolicy) else None


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

    def radii_of(self, attack: str) -> tuple[float, ...]:
        """The radii at which an attack runs: the nominal loop has none but zero."""
        return (0.0,) if attack == "none" else self.radii


def check_attack(name: str, threat: Threat) -> None:
    """Refuse an attack that the threat has no place for.

    Raises:
        UserError: an attack on the observation where another channel is attacked, one that acts over time where
            the channel acts once, or one that knows more than the adversary.
    """
    channel, access = threat.words.channel, threat.words.access
    if name in ("mad", "spsa") or name in PLANT_ATTACKS or name in FITTED_ATTACKS or name.endswith(".npz"):
        if channel != "observation":
            raise UserError(f"the attack {name} works on the observation; the threat is on the channel {channel}")
        if access == "black" or (access == "grey" and (name in PLANT_ATTACKS or name == "critic")):
            raise UserError(f"the attack {name} knows more than a {access}-box adversary, {KNOWS[access]}")
    if threat.kind.lasts == "episode" and name in SEARCHES and SEARCHES[name][0].family != "held":
        raise UserError(f"the attack {name} acts over time; the channel {channel} acts once per episode")
    if name == "lookahead" and threat.words.budget.kind != "step":
        raise UserError(f"the attack {name} plans within a radius per step; the budget is {threat.words.budget}")


def searcher(name: str, env: Env, contender: Contender, loops: int = 100) -> Attack | Search:
    """A new attack for one run of a contender in an environment; `loops` is the budget of a search.

    Raises:
        UserError: an attack that needs the plant's equations, a critic or a fitted network, of an environment or policy
            that it does not fit.
    """
    if name in SEARCHES:
        return replace(SEARCHES[name][0], loops=loops)
    if name in ATTACKS:
        return ATTACKS[name][0]()
    if name not in PLANT_ATTACKS:
        return fitted_attack(name, env, contender.name, contender.source)
    inner = env.unwrapped
    if not isinstance(inner, PlantEnv) or inner.Q is None or inner.R is None:
        task = type(inner).__name__ if env.spec is None else env.spec.id
        raise UserError(f"the attack {name} needs a plant of this library with a quadratic cost; {task} has none")
    if inner.observed.names != inner.plant.state.names:
        raise UserError(f"the attack {name} needs the plant's state as observation; {inner.plant.name} has others")
    if contender.net is None:
        raise UserError(f"the attack {name} needs the gradient of the policy: {contender.name} is no network")
    plant = inner.plant
    x_e, u_e = plant.equilibrium
    try:
        terminal = lqr(*plant.linearise(x_e, u_e)[:2], inner.Q, inner.R).P
    except UserError:  # what no LQR stabilises
        terminal = inner.Q
    return Lookahead(plant, *quadratic_costs(inner.Q, inner.R, terminal, x_e, u_e))


def run_attack(
    loops: Loops,
    attack: Attack | Search,
    policy: Policy,
    threat: Threat,
    radii: Sequence[float],
    *,
    episodes: int,
    seed: int,
    label: str,
) -> Rollouts:
    """Closed loops of a policy under an attack that acts step by step or searches, with a progress bar."""
    searched = sum(radius > 0 for radius in radii)
    runs = 1 + searched * len(attack.generations()) if isinstance(attack, Search) else 1
    with bar(label, runs * loops.limit) as advance:
        if isinstance(attack, Search):
            return run_search(loops, policy, attack, threat, radii, episodes=episodes, seed=seed, progress=advance)
        return loops.run(policy, attack, threat, radii, episodes=episodes, seed=seed, progress=advance)


def evaluate(
    plan: Plan, contenders: Sequence[Contender], *, expert: Expert | None, animate: bool, facts: Mapping[str, Any]
) -> Section:
    """Run the plan and write what came out as a section.

    Args:
        expert: of the contender named "expert", for the closed-form worst case on a linear plant; or None.
        animate: add an animation of the first contender under the last attack where the task can be rendered.
        facts: further lines for the report.
    """
    loops = loops_of(plan.env_id, plan.threat)
    names = signal_names(loops.envs[0])
    results = {
        (contender.name, attack): run_attack(
            loops,
            searcher(attack, loops.envs[0], contender, plan.search),
            contender.policy,
            plan.threat,
            plan.radii_of(attack),
            episodes=plan.episodes,
            seed=plan.seed,
            label=f"{contender.name} under {attack}",
        )
        for contender in contenders
        for attack in plan.attacks
    }
    table = [row for contender in contenders for row in _rows(plan, contender, results)]
    fresh = [row for contender in contenders for row in _fresh(plan, loops, contender, table)] if plan.fresh else []
    known = expert is not None and expert.exact and _compared(plan)
    exact = _exact(plan, results, expert) if known and expert is not None else []
    unit = plan.threat.words.units
    figures = [
        Figure(
            "Return against attack radius. Higher is better; the band is one standard deviation over episodes.",
            return_curves(table, unit),
        ),
        Figure(_trajectory_caption(plan), trajectories(_traces(plan, contenders, results), *names)),
    ]
    if not plan.threat.channels:  # nothing else reaches the policy alone
        text = "Largest change of the action that an attack caused (witness), below what is proved for the policy."
        figures.insert(1, Figure(text, deviation_curves(table, unit)))
    if animate:
        trace = results[contenders[0].name, plan.attacks[-1]].traces[_shown(plan)]
        frames = animation(plan.env_id, trace)
        if frames is not None:
            figures.append(
                Figure(
                    f"{contenders[0].name} under {plan.attacks[-1]} at radius {plan.radii[_shown(plan)]:g}.", gif=frames
                )
            )
    return Section(
        title=plan.env_id,
        verdicts=[verdict(table, c.name) for c in contenders] + [confirmed(fresh, c.name) for c in contenders if fresh],
        sensitivity=[_sensitivity(c.name, c.net, c.bracket) for c in contenders if c.net and c.bracket],
        threat=plan.threat.sentence(),
        units=plan.threat.table(plan.radii[-1]),
        unit_radius=plan.radii[-1],
        table=table,
        figures=figures,
        exact=exact,
        facts=facts,
        fresh=fresh,
    )


def _fresh(plan: Plan, loops: Loops, contender: Contender, table: Sequence[Row]) -> list[Row]:
    """The nominal loop and the worst attack of a contender, on seeds that had no part in choosing it."""
    worst = min((row for row in table if row.policy == contender.name), key=lambda row: row.mean)
    found = run_attack(
        loops,
        searcher(worst.attack, loops.envs[0], contender, plan.search),
        contender.policy,
        plan.threat,
        (0.0, worst.radius),
        episodes=plan.fresh,
        seed=seed_of(plan.seed, "fresh"),
        label=f"{contender.name} under {worst.attack}, new seeds",
    )
    return rows(contender.name, worst.attack, found, _proved(plan, contender, (0.0, worst.radius)))


def _rows(plan: Plan, contender: Contender, results: Mapping[tuple[str, str], Rollouts]) -> list[Row]:
    table = []
    for attack in plan.attacks:
        proved = _proved(plan, contender, plan.radii_of(attack))
        table += rows(contender.name, attack, results[contender.name, attack], proved)
    return table


def _proved(plan: Plan, contender: Contender, radii: Sequence[float]) -> list[float | None]:
    """Proved largest change of the action at each radius, None where nothing is proved of it."""
    if contender.net is None or plan.threat.channels:
        return [None] * len(radii)
    bound = deviation_bound(contender.net, plan.threat)
    return [bound * radius * (1 + 1e-12) for radius in radii]


def deviation_bound(net: PlainNet, threat: Threat) -> float:
    """Proved largest l2 change of the action per unit of radius, in the threat's own norm and units."""
    scale = threat.ball(np.zeros(1)).scale
    return certify(net, NormPair(threat.words.norm, "l2", input_scale=tuple(scale.tolist()))).upper.bound


def _compared(plan: Plan) -> bool:
    """Whether the extra cost of maximal action deviation can be told: it needs the undisturbed loop."""
    return "mad" in plan.attacks and plan.radii[0] == 0


def _exact(plan: Plan, results: Mapping[tuple[str, str], Rollouts], expert: Expert) -> list[dict[str, float]]:
    """Extra cost that the attack on the LQR expert found, against the closed form, per radius."""
    solution, rollouts = expert.solution, results["expert", "mad"]
    terminal = np.einsum("rei,ij,rej->re", rollouts.final, solution.P, rollouts.final)
    extra = (terminal - rollouts.returns) - (terminal - rollouts.returns)[:1]
    scale, steps = plan.threat.ball(np.zeros(1)).scale, int(rollouts.lengths.max())
    lines = []
    for r, radius in enumerate(plan.radii):
        if radius == 0:
            continue
        best = lqr_extra_cost(
            solution.K, solution.S, norm=plan.threat.words.norm, radius=radius, scale=scale, steps=steps
        )
        found = float(extra[r].max())
        lines.append({"radius": radius, "found": found, "exact": best, "ratio": found / best})
    return lines


def _shown(plan: Plan) -> int:
    """Index of the radius whose trajectories are drawn: the middle one."""
    return len(plan.radii) // 2


def _traces(
    plan: Plan, contenders: Sequence[Contender], results: Mapping[tuple[str, str], Rollouts]
) -> list[tuple[str, Trace]]:
    strongest = plan.attacks[-1]
    chosen = [(f"{c.name}, {strongest}", results[c.name, strongest].traces[_shown(plan)]) for c in contenders]
    weakest = results[contenders[0].name, strongest].traces[0]
    return [(f"{contenders[0].name}, radius {plan.radii[0]:g}", weakest), *chosen]


def _trajectory_caption(plan: Plan) -> str:
    return f"The first episode at radius {plan.radii[_shown(plan)]:g}, same start; true states, not what was seen."


def _sensitivity(name: str, net: PlainNet, bracket: Bracket) -> dict[str, Any]:
    upper, lower = bracket.upper, bracket.lower
    return {
        "policy": name,
        "lower": lower.bound,
        "upper": upper.bound,
        "ratio": bracket.ratio,
        "method": upper.method,
        "norm": str(upper.norm),
        "verified": upper.verify(net),
        "lower_method": lower.method,
        "weights_sha256": upper.weights_sha256,
    }


def deviation_of(nets: Iterable[PlainNet | None], env: Env) -> Array:
    """Standard deviation of each observation that defines normalised units: the first network's data, else one."""
    assert env.observation_space.shape
    scales = (net.input_scale for net in nets if net is not None and net.input_scale is not None)
    return next(scales, np.ones(env.observation_space.shape[0]))
