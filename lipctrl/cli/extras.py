"""What a report shows beside its table: headlines, signs of a misleading result, effort, weak spots, worst episodes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks import NoAttack
from lipctrl.cli.animate import film
from lipctrl.cli.cells import Runner
from lipctrl.cli.loops import loops_of
from lipctrl.cli.plan import Contender, Plan
from lipctrl.cli.probes import Results, evidence_of, floor_of, map_of, rungs_of
from lipctrl.evaluation.figures import Part
from lipctrl.evaluation.headline import Headline, headline
from lipctrl.evaluation.health import Rung, Sign, signs
from lipctrl.evaluation.recording import Facts, Recording, line_of
from lipctrl.evaluation.rollout import Loops, Rollouts, Trace
from lipctrl.evaluation.summary import Row

Array = NDArray[np.float64]
MANY = 8  # policies of which more get neither a recorded episode each nor a transfer matrix


@dataclass(frozen=True)
class Episode:
    """The worst episode of a policy: its recording, its trace, the undisturbed one from the same start, a film."""

    recording: Recording
    worst: Trace
    nominal: Trace
    gif: str


@dataclass(frozen=True)
class Extras:
    """See the module.

    Attributes:
        headlines: one per policy. health: signs by policy. rungs: by policy and attack.
        components, times: of the first policy. episodes: one per policy.
        transfer: return of every policy (column) in the worst episode of every policy (row).
    """

    headlines: tuple[Headline, ...]
    health: Mapping[str, Sequence[Sign]]
    rungs: Mapping[str, Mapping[str, Sequence[Rung]]]
    components: Sequence[Part]
    times: Sequence[Part]
    episodes: tuple[Episode, ...]
    transfer: tuple[tuple[float, ...], ...]


def extras_of(
    plan: Plan,
    runner: Runner,
    contenders: Sequence[Contender],
    results: Results,
    table: Sequence[Row],
    fresh: Mapping[str, Rollouts],
    *,
    animate: bool,
) -> Extras:
    """Run what is missing and put everything together; `fresh` holds the pairs of loops on new seeds, by policy."""
    loops = loops_of(plan.env_id, plan.threat)
    floor, env = floor_of(plan, loops), loops.envs[0]
    rungs = rungs_of(plan, runner, env, contenders, results)
    headlines, health = [], {}
    for one in contenders:
        worst = min((row for row in table if row.policy == one.name), key=lambda row: row.mean)
        pair = fresh.get(one.name) or _pair(results, one.name, worst)
        headlines.append(headline(one.name, table, pair, one.name in fresh, floor))
        health[one.name] = signs(evidence_of(plan, one, results, table, rungs[one.name]))
    components, times = map_of(plan, runner, env, contenders[0], results, headlines[0].attack)
    shown = contenders if len(contenders) <= MANY else ()
    episodes = tuple(_episode(plan, loops, one, results, animate and k == 0) for k, one in enumerate(shown))
    transfer: tuple[tuple[float, ...], ...] = ()
    if len(episodes) > 1:
        transfer = tuple(
            tuple(e.recording.against(loops, plan.threat, one.policy)[0] for one in contenders) for e in episodes
        )
    return Extras(tuple(headlines), health, rungs, components, times, episodes, transfer)


def _pair(results: Results, policy: str, worst: Row) -> Rollouts:
    """The nominal loop and the worst one of the table as if they had run together, for want of new seeds."""
    found = results[policy, worst.attack]
    rows = [int(np.argmin(found.radii)), list(found.radii).index(worst.radius)]
    return found.at(rows)


def _episode(plan: Plan, loops: Loops, one: Contender, results: Results, animate: bool) -> Episode:
    """The lowest return of all attacks and radii."""
    lowest: Callable[[str], float] = lambda attack: float(results[one.name, attack].returns.min())  # noqa: E731
    attack = min(plan.attacks, key=lowest)
    found = results[one.name, attack]
    r = int(found.returns.min(1).argmin())
    trace = found.worst[r]
    facts = Facts(
        plan.env_id,
        line_of(plan.threat.words),
        float(found.radii[r]),
        one.word,
        one.sha256 or "",
        plan.horizon,
        attack,
        plan.seed,
        trace.episode,
        float(found.returns[r, trace.episode]),
        len(trace.actions),
        bool(found.terminated[r, trace.episode]),
    )
    deviation = np.array(plan.threat.deviation or (1.0,) * trace.observations.shape[1])
    recording = Recording(facts, trace.disturbances, trace.actions, deviation)
    episodes = trace.episode + 1
    calm = loops.run(
        one.policy, NoAttack(), plan.threat, (0.0,), episodes=episodes, seed=plan.seed, shown=trace.episode
    )
    return Episode(recording, trace, calm.traces[0], (film(recording, plan.threat) or "") if animate else "")
