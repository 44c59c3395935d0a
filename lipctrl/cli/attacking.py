"""Attacks by what the command line calls them, and one run of them; shared by the commands that attack."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipctrl.attacks import ATTACKS, FITTED_ATTACKS, PLANT_ATTACKS, SEARCHES, Attack, Search
from lipctrl.attacks.lookahead import Lookahead
from lipctrl.attacks.planned import quadratic_costs
from lipctrl.attacks.threat import KNOWS, Threat
from lipctrl.cli.experts import Env
from lipctrl.cli.fitted import fitted_attack
from lipctrl.cli.plan import Contender
from lipctrl.cli.progress import bar
from lipctrl.envs.base import PlantEnv
from lipctrl.evaluation.rollout import Loops, Rollouts
from lipctrl.evaluation.search import run_search
from lipctrl.files import UserError
from lipctrl.mpc.lqr import lqr
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import Policy, SolvingPolicy

Array = NDArray[np.float64]


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


def check_victims(contenders: Iterable[Contender], threat: Threat) -> None:
    """Refuse policies that the channel of a threat does not touch.

    Raises:
        UserError: a policy that has no warm start, where that is attacked.
    """
    for one in contenders:
        if threat.warm and not isinstance(one.policy, SolvingPolicy):
            raise UserError(f"the channel warm_start needs MPC: {one.name} solves no problem that could start warm")


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
        return attacked(loops, attack, policy, threat, radii, episodes=episodes, seed=seed, progress=advance)


def attacked(
    loops: Loops,
    attack: Attack | Search,
    policy: Policy,
    threat: Threat,
    radii: Sequence[float],
    *,
    episodes: int,
    seed: int,
    progress: Callable[[], object],
) -> Rollouts:
    """Closed loops of a policy under an attack of either kind; `progress` is called after each step of a batch."""
    if isinstance(attack, Search):
        return run_search(loops, policy, attack, threat, radii, episodes=episodes, seed=seed, progress=progress)
    return loops.run(policy, attack, threat, radii, episodes=episodes, seed=seed, progress=progress)


def deviation_of(nets: Iterable[PlainNet | None], env: Env) -> Array:
    """Standard deviation of each observation that defines normalised units: the first network's data, else one."""
    assert env.observation_space.shape
    scales = (net.input_scale for net in nets if net is not None and net.input_scale is not None)
    return next(scales, np.ones(env.observation_space.shape[0]))
