"""The pieces of an evaluation: one policy under one attack at one radius each, run anywhere, kept when finished.

Attacks that act step by step are one cell per radius. Searches hand on what they found from one radius to the next and
are one cell for all of them. A cell is made of words and weights alone, so that any process can run it, with the same
result to the last byte.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.attacks import SEARCHES, Attack, Search
from lipctrl.attacks.effort import Confined, with_effort
from lipctrl.attacks.threat import Threat
from lipctrl.cli.attacking import attacked, searcher
from lipctrl.cli.experts import Env, make_env
from lipctrl.cli.loops import loops_of
from lipctrl.cli.plan import Contender, Plan
from lipctrl.cli.progress import bar
from lipctrl.evaluation.engine import Engine, beat, run_all
from lipctrl.evaluation.rollout import Loops, Rollouts
from lipctrl.evaluation.search import BATCH
from lipctrl.evaluation.store import Store
from lipctrl.files import sha256_of
from lipctrl.nn.plain import PlainNet
from lipctrl.pid import PidPolicy
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.runs import package_versions


@dataclass(frozen=True)
class Victim:
    """A policy in a form that can be sent to another process: its network, itself if it is a PID controller, or the
    word that it is built from."""

    name: str
    word: str
    net: PlainNet | None
    source: Path | None
    pid: PidPolicy | None = None

    @staticmethod
    def of(one: Contender) -> "Victim":
        """The portable form of a contender."""
        pid = one.policy if isinstance(one.policy, PidPolicy) else None
        return Victim(one.name, one.word, one.net, one.source, pid)

    def contender(self, env_id: str, horizon: int) -> Contender:
        """The contender again, with a policy that has seen nothing yet."""
        policy: Policy
        if self.net is not None:
            policy = PlainPolicy(self.net)
        elif self.pid is not None:
            policy = self.pid
        elif self.word == "mpc":
            from lipctrl.cli.mpc_modes import mpc_with_backup  # torch and CasADi take seconds to import

            policy = mpc_with_backup(make_env(env_id), horizon)
        else:
            raise AssertionError(f"no policy is built from the word {self.word!r}")
        return Contender(self.name, policy, None, self.source)


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Attributes:
        env_id, threat: the loops. victim, attack: who meets whom. radii: of the attack, in the threat's units.
        episodes, seed: start states. search: closed loops per episode and radius. horizon: of MPC.
        effort: share of its effort that the attack has, None: all of it. confined: components that it may disturb, and
            the first step and the one after the last at which it does; None: all and always.
    """

    env_id: str
    threat: Threat
    victim: Victim
    attack: str
    radii: tuple[float, ...]
    episodes: int
    seed: int
    search: int
    horizon: int
    effort: float | None = None
    confined: tuple[tuple[int, ...], int, int] | None = None

    @property
    def label(self) -> str:
        """What runs, for people."""
        radii = ", ".join(f"{radius:g}" for radius in self.radii)
        return f"{self.victim.name} under {self.attack} at {radii}"

    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, as plain JSON values."""
        own = {k: v for k, v in asdict(self).items() if k not in ("victim", "horizon")}
        itself = self.victim.net or self.victim.pid
        policy = f"{self.victim.word}, horizon {self.horizon}" if itself is None else itself.sha256()
        file = Path(self.attack) if self.attack.endswith(".npz") else None
        if self.attack == "critic" and self.victim.source is not None:
            zipped = self.victim.source / "model.zip"
            file = zipped if zipped.is_file() else self.victim.source
        learned = sha256_of(file) if file is not None and file.is_file() else None
        threat = {"words": asdict(self.threat.words), "scale": self.threat.scale}
        return own | {"threat": threat, "policy": policy, "learned": learned, "versions": package_versions()}


def cells_of(plan: Plan, contenders: Sequence[Contender]) -> list[Cell]:
    """The cells of a plan: attacks as listed, every policy under one before the next begins, small radii first."""
    cells = []
    for attack in plan.attacks:
        for one in contenders:
            radii = plan.radii_of(attack)
            groups = [radii] if attack in SEARCHES else [(radius,) for radius in radii]
            cells += [cell_of(plan, one, attack, group, plan.episodes, plan.seed) for group in groups]
    return cells


def cell_of(plan: Plan, one: Contender, attack: str, radii: Sequence[float], episodes: int, seed: int) -> Cell:
    """A cell of a plan's environment and threat."""
    victim = Victim.of(one)
    return Cell(plan.env_id, plan.threat, victim, attack, tuple(radii), episodes, seed, plan.search, plan.horizon)


_kept: dict[str, Loops] = {}


def run_cell(cell: Cell) -> Rollouts:
    """Run a cell; the environments of the last one are kept for the next of the same threat."""
    key = f"{cell.env_id} {cell.threat}"
    if key not in _kept:
        _kept.clear()
        _kept[key] = loops_of(cell.env_id, cell.threat)
    loops = _kept[key]
    one = cell.victim.contender(cell.env_id, cell.horizon)
    attack = attack_of(cell, loops.envs[0], one)
    return attacked(
        loops, attack, one.policy, cell.threat, cell.radii, episodes=cell.episodes, seed=cell.seed, progress=beat
    )


def attack_of(cell: Cell, env: Env, one: Contender) -> Attack | Search:
    """The attack of a cell, with less effort or confined where the cell says so."""
    attack: Attack | Search | None = searcher(cell.attack, env, one, cell.search)
    if cell.effort is not None and attack is not None:
        attack = with_effort(attack, cell.effort)
    if attack is None:
        raise AssertionError(f"the attack {cell.attack} has no effort to give up")
    if cell.confined is None:
        return attack
    if isinstance(attack, Search):
        raise AssertionError(f"the search {cell.attack} cannot be confined")
    components, start, stop = cell.confined
    return Confined(attack, np.isin(np.arange(len(cell.threat.names)), components), start, stop)


def steps_of(found: Rollouts) -> int:
    """Environment steps behind a result."""
    return int(found.lengths.sum()) + found.cost.steps


def _beats(cell: Cell, limit: int) -> int:
    """How often a cell beats at most."""
    if cell.attack not in SEARCHES:
        return limit
    most = max(1, BATCH // cell.episodes)
    loops = cell.search if cell.effort is None else max(2, round(cell.effort * cell.search))
    generations = replace(SEARCHES[cell.attack][0], loops=loops).generations()
    return limit * (1 + sum(-(-count // most) for count in generations) * sum(radius > 0 for radius in set(cell.radii)))


@dataclass
class Runner:
    """Runs cells, with what is kept of earlier runs, within a budget.

    Attributes:
        store: finished cells. workers, engine: see `run_all`.
        budget: no cell begins once so many environment steps are spent, counted in the order of the cells whatever ran
            at the same time, so that results do not depend on the workers; None: no limit.
        spent: environment steps of the cells so far, those found in the store included.
        finished: every cell that has run, also where an error or an interrupt came in between.
        left: labels of the runs that the budget did not allow, or not whole.
    """

    store: Store = field(default_factory=lambda: Store(None))
    workers: int = 1
    engine: Engine = "local"
    budget: int | None = None
    spent: int = 0
    finished: list[tuple[Cell, Rollouts]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def run(self, cells: Sequence[Cell], label: str) -> list[Rollouts | None]:
        """The results of the cells, in their order; None for those that the budget did not allow.

        Raises:
            UserError: a policy, an environment or an attack that cannot be run; `finished` has what can be had.
        """
        found = [self.store.load(cell.facts()) for cell in cells]
        try:
            allowed = self._run(cells, found, label)
        except BaseException:
            self.finished += _present(cells, found)
            raise
        self.finished += _present(cells[:allowed], found[:allowed])
        if allowed < len(cells):
            self.left.append(label)
        return found[:allowed] + [None] * (len(cells) - allowed)

    def _run(self, cells: Sequence[Cell], found: list[Rollouts | None], label: str) -> int:
        """Fill in what is missing; how many of the cells the budget allows."""
        missing = [k for k, one in enumerate(found) if one is None]
        allowed = self._count(found, 0)
        if not missing or self._exhausted:
            return allowed
        limit = make_env(cells[0].env_id).spec.max_episode_steps or 1000  # type: ignore[union-attr]  # made by id
        beats = [_beats(cells[k], limit) for k in missing]
        with bar(label, sum(beats)) as advance:
            done, beaten = 0, 0

            def on_beat() -> None:
                nonlocal beaten
                beaten += 1
                advance()

            work = run_all(
                run_cell, [cells[k] for k in missing], workers=self.workers, engine=self.engine, on_beat=on_beat
            )
            with closing(work) as results:
                for index, result in results:
                    found[missing[index]] = result
                    self.store.save(cells[missing[index]].facts(), result)
                    done += beats[index]
                    advance(max(0, done - beaten))  # episodes that ended early, and what ran elsewhere
                    beaten = max(done, beaten)
                    allowed = self._count(found, allowed)
                    if self._exhausted:
                        break
        return allowed

    @property
    def _exhausted(self) -> bool:
        return self.budget is not None and self.spent >= self.budget

    def _count(self, found: Sequence[Rollouts | None], first: int) -> int:
        """Add up the steps of the results that follow each other from `first` on; the first that is not allowed."""
        for k in range(first, len(found)):
            one = found[k]
            if one is None or self._exhausted:
                return k
            self.spent += steps_of(one)
        return len(found)


def _present(cells: Sequence[Cell], found: Sequence[Rollouts | None]) -> list[tuple[Cell, Rollouts]]:
    return [(cell, one) for cell, one in zip(cells, found, strict=True) if one is not None]
