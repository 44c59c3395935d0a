"""Policies by what the command line calls them, with what is proved of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lipctrl.certify.bracket import certify
from lipctrl.cli.experts import Env, Expert, signal_names
from lipctrl.cli.loading import is_pid, load_network, pid_of
from lipctrl.cli.mpc_modes import mpc_with_backup
from lipctrl.cli.plan import Contender
from lipctrl.cli.trainings import members
from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet
from lipctrl.policy import PlainPolicy


def contender_named(
    name: str, env: Env, expert: Expert | None, horizon: int, *, activation: str | None = None
) -> Contender:
    """What a word of the command line stands for.

    Args:
        horizon: steps that "mpc" looks ahead. activation: between the layers of a torch state dict.

    Raises:
        UserError: no such policy, or one of other sizes.
    """
    if name == "mpc":
        return Contender("mpc", mpc_with_backup(env, horizon), None)
    if is_pid(Path(name)):
        return Contender(name, pid_of(Path(name), env), None, Path(name))
    net = expert.policy.net if name == "lqr" and expert is not None else load_network(Path(name), activation=activation)
    if (net.input_size,) != env.observation_space.shape or (net.output_size,) != env.action_space.shape:
        assert env.spec is not None
        raise UserError(
            f"{name} maps {net.input_size} observations to {net.output_size} actions; {env.spec.id} has "
            f"{env.observation_space.shape} and {env.action_space.shape}"
        )
    found = contender("expert" if name == "lqr" else name, net, env_names=signal_names(env))
    return found if name == "lqr" else replace(found, source=Path(name))


def contenders_named(
    names: Sequence[str], env: Env, expert: Expert | None, horizon: int, *, activation: str | None = None
) -> list[Contender]:
    """All of them; a run folder of several trainings stands for one contender per training, its group."""
    found = []
    for name in names:
        own = members(name)
        group = name if own != [name] else None
        loaded = [contender_named(member, env, expert, horizon, activation=activation) for member in own]
        found += [replace(one, group=group) for one in loaded]
    return found


def contender(name: str, net: PlainNet, *, env_names: tuple[tuple[str, ...], tuple[str, ...]]) -> Contender:
    """A policy with its bracket in raw units; signal names are filled in from the environment where missing."""
    if not net.input_names:
        net = replace(net, input_names=env_names[0], output_names=env_names[1])
    return Contender(name, PlainPolicy(net), certify(net))
