"""Closed loops that a report needs beside its table: less effort, one component, part of the episode, no control."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks import PLANT_ATTACKS, SEARCHES, NoAttack, Search
from lipctrl.attacks.effort import with_effort
from lipctrl.certify.bracket import upper_bounds
from lipctrl.cli.attacking import searcher
from lipctrl.cli.cells import Runner, cell_of
from lipctrl.cli.experts import Env
from lipctrl.cli.plan import Contender, Plan
from lipctrl.evaluation.figures import Part
from lipctrl.evaluation.health import Evidence, Family, Rung
from lipctrl.evaluation.rollout import Loops, Rollouts
from lipctrl.evaluation.summary import Row
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.norms import NormPair
from lipctrl.policy import FunctionPolicy

Array = NDArray[np.float64]
STATES = 20  # at which gradients are checked
COMPONENTS = 32  # more are not attacked one by one
Results = Mapping[tuple[str, str], Rollouts]


def family_of(attack: str) -> Family:
    """How an attack finds what it does."""
    if attack == "none":
        return "none"
    if attack in ("uniform", "vertex", "constant"):
        return "blind"
    return "gradient" if attack in ("mad", "critic", *PLANT_ATTACKS) else "query"


def floor_of(plan: Plan, loops: Loops) -> float:
    """Mean return of a controller that does nothing: the action zero, or the nearest to it; -inf where it diverges."""
    idle = np.clip(np.zeros(loops.space.shape), loops.space.low, loops.space.high).astype(np.float64)
    policy = FunctionPolicy(lambda x: np.tile(idle, (len(x), 1)))
    try:
        found = loops.run(policy, NoAttack(), plan.threat, (0.0,), episodes=plan.episodes, seed=plan.seed)
    except UserError:
        return -np.inf
    return float(found.returns.mean())


def rungs_of(
    plan: Plan, runner: Runner, env: Env, contenders: Sequence[Contender], results: Results
) -> dict[str, dict[str, list[Rung]]]:
    """By policy, every attack at the largest radius, with all shares of the ladder and with the whole effort."""
    top = max(plan.radii)
    cells = [
        replace(cell_of(plan, one, name, (top,), plan.episodes, plan.seed), effort=share)
        for one in contenders
        for name in plan.attacks
        for share in sorted(plan.ladder)
        if top > 0 and with_effort(searcher(name, env, one, plan.search), share) is not None
    ]
    ladders: dict[str, dict[str, list[Rung]]] = {one.name: {} for one in contenders}
    for cell, found in zip(cells, runner.run(cells, f"{plan.env_id}, less effort"), strict=True):
        if found is not None and cell.effort is not None:
            rung = Rung(cell.attack, cell.effort, _calls(found, 1), found.returns[0])
            ladders[cell.victim.name].setdefault(cell.attack, []).append(rung)
    for one in contenders:
        for name in plan.attacks if top > 0 else ():
            if name != "none":
                whole = results[one.name, name]
                used = sum(radius > 0 for radius in plan.radii) if name in SEARCHES else len(whole.radii)
                last = whole.returns[int(np.argmax(whole.radii))]
                ladders[one.name].setdefault(name, []).append(Rung(name, 1.0, _calls(whole, used), last))
    return ladders


def _calls(found: Rollouts, radii: int) -> float:
    cost = found.cost
    return (cost.evaluations + cost.jacobians + cost.steps) / float(radii * found.returns.shape[1])


def evidence_of(
    plan: Plan,
    contender: Contender,
    results: Results,
    table: Sequence[Row],
    rungs: Mapping[str, Sequence[Rung]],
) -> Evidence:
    """What the signs of a misleading result are judged from."""
    own = {attack: results[contender.name, attack] for attack in plan.attacks}
    met = np.concatenate([trace.observations for found in own.values() for trace in found.traces])
    return Evidence(
        contender.policy,
        contender.net,
        own,
        {attack: family_of(attack) for attack in plan.attacks},
        [row for row in table if row.policy == contender.name],
        rungs,
        met[np.linspace(0, len(met) - 1, min(STATES, len(met))).astype(int)],
        plan.threat.seen,
    )


def map_of(
    plan: Plan, runner: Runner, env: Env, one: Contender, results: Results, worst: str
) -> tuple[list[Part], list[Part]]:
    """Which component and which part of the episode the worst attack needs, each alone; ([], []) where it has none."""
    attack, threat = searcher(worst, env, one, plan.search), plan.threat
    nominal, size = _nominal(results, one.name, plan.attacks), len(plan.threat.names)
    if not plan.parts or nominal is None or worst == "none" or isinstance(attack, Search):
        return [], []
    if threat.kind.lasts == "episode" or size > COMPONENTS:
        return [], []
    steps, top = (env.spec and env.spec.max_episode_steps) or 1000, max(plan.radii)
    edges = np.linspace(0, steps, plan.parts + 1).astype(int).tolist()
    times = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]
    cell = cell_of(plan, one, worst, (top,), plan.episodes, plan.seed)
    cells = [replace(cell, confined=((i,), 0, steps)) for i in range(size)]
    cells += [replace(cell, confined=(tuple(range(size)), a, b)) for a, b in times]
    found = runner.run(cells, f"{plan.env_id}, {worst} confined")
    names = [*threat.names, *(f"steps {a} to {b - 1}" for a, b in times)]
    net = one.net if threat.seen else None
    parts = [
        Part(
            name,
            nominal - float(run.returns.mean()),
            float(run.deviation.max()),
            top * column_bound(net, i) * threat.scale[i] if net is not None and i < size else None,
        )
        for i, (name, run) in enumerate(zip(names, found, strict=True))
        if run is not None
    ]
    return (parts[:size], parts[size:]) if None not in found else ([], [])


def _nominal(results: Results, policy: str, attacks: Sequence[str]) -> float | None:
    for attack in attacks:
        found = results[policy, attack]
        if 0 in found.radii:
            return float(found.returns[list(found.radii).index(0)].mean())
    return None


def column_bound(net: PlainNet, i: int) -> float:
    """Proved l2 change of the action per raw unit of one observation, whatever the values of the others.

    The others are constants of the first layer then, and a global bound holds for all of them.
    """
    blocks = tuple({j: block[:, i : i + 1] if j == 0 else block for j, block in layer.items()} for layer in net.blocks)
    part = replace(net, blocks=blocks, input_mean=None, input_scale=None, multipliers=None, input_names=())
    return upper_bounds(part, NormPair("l2", "l2"))[0].bound * (1 + 1e-12)
