"""Attacks that need something learned, by what the command line calls them: "critic", or a file of `attack fit`."""

from collections.abc import Iterable
from pathlib import Path

from lipctrl.attacks import DESCRIPTIONS, FITTED_ATTACKS, Attack
from lipctrl.attacks.critic import ActionValue, CriticAttack, StateValue
from lipctrl.attacks.fitted import FittedAttack
from lipctrl.cli.experts import Env
from lipctrl.cli.loading import is_model_run
from lipctrl.files import UserError, nearest
from lipctrl.nn.plain import PlainNet
from lipctrl.runs import Run


def known_attack(name: str) -> None:
    """Refuse a name that is neither an attack nor ends like a file of one; the file is read later.

    Raises:
        ValueError: with the sentence for the user, as settings raise it.
    """
    if name not in DESCRIPTIONS and not name.endswith(".npz"):
        raise ValueError(str(nearest(name, DESCRIPTIONS, "attack")))


def fitted_attack(name: str, env: Env, policy: str, source: Path | None) -> Attack:
    """The attack of a name outside the plain registries, on one policy.

    Args:
        policy: its name, for errors. source: its file or run folder, None if it has none.

    Raises:
        UserError: a policy without a critic, an attack that has to be fitted first, or one of other sizes.
    """
    observed, acted = env.observation_space.shape, env.action_space.shape
    assert observed and acted
    if name == "critic":
        return critic_attack(policy, source, observed[0])
    if name in FITTED_ATTACKS:
        raise UserError(
            f"the attack {name} is fitted first: lipctrl attack fit POLICY --attack {name} --out attack.npz, then name "
            "attack.npz as the attack"
        )
    return FittedAttack.load(Path(name)).attack(observed[0], acted[0])


def fitted_facts(attacks: Iterable[str]) -> dict[str, str]:
    """One line for a report on each attack that is a file: what it was fitted to and what that cost.

    Raises:
        UserError: a file is missing or damaged.
    """
    lines = {}
    for name in attacks:
        if name.endswith(".npz"):
            stored = FittedAttack.load(Path(name))
            facts = stored.facts
            lines[name] = (
                f"{stored.kind}, fitted to {facts['policy']} in {facts['env']}, {facts['threat']} at "
                f"{facts['radius']:g}, {facts['training steps']} training steps, sha256 {stored.sha256()[:12]}"
            )
    return lines


def critic_attack(policy: str, source: Path | None, observations: int) -> CriticAttack:
    """The attack with the critic that lies beside a policy: in its zip, or in the model.zip of its run folder.

    Raises:
        UserError: there is none.
    """
    lacking = UserError(
        f"the attack critic needs a critic, and {policy} has none: give a Stable-Baselines3 .zip or a run folder of "
        "train sb3, or fit one with lipctrl attack fit --attack robust-sarsa"
    )
    if source is None:
        raise lacking
    actor = None
    if source.is_dir() and not is_model_run(source) and (source / "model.zip").exists():
        run = Run.open(source)
        actor = PlainNet.load(run.checked("policy.npz"))
        source = run.checked("model.zip")
    if source.suffix != ".zip":
        raise lacking
    from lipctrl.nn.sb3_critic import load_critic

    nets = load_critic(source, policy=actor)
    # an action value has the actions among its inputs
    return CriticAttack(StateValue(nets[0]) if nets[0].input_size == observations else ActionValue(nets))
