"""`lipctrl replay`: the worst episodes of a report once more, to the last bit, or another policy in their place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from lipctrl.attacks.threat import Threat
from lipctrl.cli.contenders import contender_named
from lipctrl.cli.experts import lqr_expert, make_env, signal_names
from lipctrl.cli.loops import loops_of
from lipctrl.config import parse
from lipctrl.evaluation.recording import Recording
from lipctrl.files import RequirementFailed, UserError


@dataclass(frozen=True)
class ReplaySettings:
    """Settings of `lipctrl replay`."""

    episode: tyro.conf.Positional[str] = ""
    """A recorded episode (episode-0-0.npz), or a run folder of `lipctrl evaluate`, whose episodes are all replayed."""
    policy: str | None = None
    """A policy to put into the loop: it meets the same start state and disturbances. By default the recorded one."""


def main(arguments: Sequence[str]) -> None:
    """Entry point.

    Raises:
        RequirementFailed: a played-back episode does not give its recorded return.
    """
    settings = parse(
        ReplaySettings(),
        group="replay",
        prog="lipctrl replay",
        description="Play recorded episodes back: the same start state, disturbances and actions must give the same "
        "return to the last bit (else exit status 3); then put a policy into the loop.",
        args=arguments,
    )
    if not settings.episode:
        raise UserError("replay needs a recorded episode or a run folder: lipctrl replay RUN")
    for path in recordings(Path(settings.episode)):
        replay(path, settings.policy)


def recordings(path: Path) -> list[Path]:
    """The recorded episodes behind a path.

    Raises:
        UserError: there are none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("episode-*.npz"))
    if not found:
        raise UserError(f"no recorded episode in {path}; lipctrl evaluate writes them beside its report")
    return found


def replay(path: Path, word: str | None) -> None:
    """Play one episode back and print what came out.

    Raises:
        UserError: a damaged file, or a policy that does not fit.
        RequirementFailed: another return than the recorded one.
    """
    recording = Recording.load(path)
    facts = recording.facts
    env = make_env(facts.env)
    threat = Threat.parse(facts.threat, recording.deviation, signal_names(env)[0], env, horizon=facts.horizon)
    loops = loops_of(facts.env, threat)
    found = recording.replay(loops, threat)
    print(
        f"{path.name}: {facts.policy} under {facts.attack} at radius {facts.radius:g}, {facts.env}, seed {facts.seed}"
    )
    print(f"  recorded return {facts.result!r} in {facts.length} steps{', failed' if facts.failed else ''}")
    if found != facts.result:
        raise RequirementFailed(f"played back, {path} gives {found!r}, recorded is {facts.result!r}: other versions?")
    print(f"  played back     {found!r}: equal to the last bit")
    name = word or facts.policy
    expert = lqr_expert(env) if name == "lqr" else None
    try:
        contender = contender_named(name, env, expert, facts.horizon)
    except UserError as error:
        if word is not None:
            raise
        print(f"  the policy itself was not asked again: {error}")
        return
    if word is None and facts.weights and contender.sha256 != facts.weights:
        print(f"  {name} has other weights or gains today than when the episode was recorded")
    result, trace = recording.against(loops, threat, contender.policy)
    steps = min(len(trace.actions), len(recording.actions))
    apart = float(np.abs(trace.actions[:steps] - recording.actions[:steps]).max())
    print(f"  {name} in the loop: return {result!r}, largest difference of an action {apart:.3g}")
