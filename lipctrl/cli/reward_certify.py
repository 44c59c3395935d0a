"""`lipctrl reward certify`: what is proved of a learned reward, per block of its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.table import Table

from lipctrl.certify.reward import RewardCertificate, certify_reward
from lipctrl.cli.certify import parse_region
from lipctrl.cli.progress import CONSOLE
from lipctrl.config import parse
from lipctrl.files import RequirementFailed, UserError
from lipctrl.nn.reward import LearnedReward
from lipctrl.nn.reward_forms import REWARD_FORMS


@dataclass(frozen=True)
class RewardCertifySettings:
    """Settings of `lipctrl reward certify`."""

    file: tyro.conf.Positional[str] = ""
    """File of a learned reward, reward.npz."""
    region: str | None = None
    """Box of the network's inputs in raw units, "LOW:HIGH" per input separated by commas; none: everywhere."""
    method: str = "auto"
    """Method of the upper bounds; auto takes the smallest of all that apply."""
    require: float | None = None
    """Exit with status 3 if the proved constant of the reward over all inputs is larger than this."""
    units: Literal["raw", "normalised"] = "raw"
    """Units of --require: raw, or standard deviations of the reward's normaliser."""
    check: str | None = None
    """Check this certificate file against the reward instead of computing one."""
    seed: int = 0
    """Seed of the search for the lower bounds."""
    out: str | None = None
    """Where to save the certificate; by default beside the reward."""

    def __post_init__(self) -> None:
        if self.require is not None and not self.require >= 0:
            raise ValueError(f"require must not be negative, found {self.require}")


def show(title: str, reward: LearnedReward, found: RewardCertificate) -> None:
    """Print form, limits, and attained and proved slopes of every block."""
    form = REWARD_FORMS[found.form]
    clip = "" if found.clip is None else f", logit clipped to [-{found.clip:g}, {found.clip:g}]"
    print(f"{title}  sha256 {found.reward_sha256[:12]}\nreward {form.formula}{clip}")
    limits = ("-inf" if found.low is None else f"{found.low:.6g}", "inf" if found.high is None else f"{found.high:.6g}")
    print(f"it lies in [{limits[0]}, {limits[1]}]{sign_note(reward)}")
    table = Table("inputs", "units", "logit: attained .. proved", "reward: attained .. proved", "method")
    for slope in found.slopes:
        logit = f"{slope.logit_witness.bound:.6g} .. {slope.logit.bound:.6g}"
        both = f"{slope.reward_witness.bound:.6g} .. {slope.reward:.6g}"
        table.add_row(slope.block, slope.units, logit, both, slope.logit.method)
    Console().print(table)


def sign_note(reward: LearnedReward) -> str:
    """What the sign of a reward does to the length of episodes; empty where nothing is to be said."""
    sign = REWARD_FORMS[reward.form].sign
    if sign == 0 or reward.absorbing is not None:
        return ""
    if sign > 0:
        return ": it pays for every step that an episode lasts, and favours staying alive"
    return ": it charges for every step that an episode lasts, and favours ending"


def check_certificate(path: Path, reward: LearnedReward) -> None:
    """Verify a certificate file.

    Raises:
        UserError: not a certificate, or of another reward. RequirementFailed: a proof does not hold.
    """
    certificate = RewardCertificate.load(path)
    if certificate.reward_sha256 != reward.sha256():
        raise UserError(
            f"{path} was made for the reward {certificate.reward_sha256[:12]}; this one is {reward.sha256()[:12]}"
        )
    if not certificate.verify(reward):
        raise RequirementFailed(f"{path}: a proof does not hold")
    print(f"verified: {len(certificate.slopes)} bounds of the reward {reward.sha256()[:12]}")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        RewardCertifySettings(),
        group="reward-certify",
        prog="lipctrl reward certify",
        description="Prove how fast a learned reward can change with the state, with the action and with both, in raw "
        "and in normalised units, and save the certificate.",
        args=arguments,
    )
    if not settings.file:
        raise UserError("reward certify needs a file: lipctrl reward certify FILE")
    path = Path(settings.file)
    reward = LearnedReward.load(path)
    if settings.check is not None:
        check_certificate(Path(settings.check), reward)
        return
    if settings.require is not None and settings.units == "normalised" and reward.logit.input_scale is None:
        raise UserError("--units normalised needs a reward with a normaliser")
    region = None if settings.region is None else parse_region(settings.region, reward.logit)
    with CONSOLE.status("certifying") as status:
        found = certify_reward(
            reward,
            region=region,
            method=settings.method,
            seed=settings.seed,
            progress=lambda text: status.update(f"certifying: {text}"),
        )
    show(str(path), reward, found)
    target = Path(settings.out) if settings.out else path.with_suffix(".certificate.json")
    found.save(target)
    print(f"certificate: {target}")
    if settings.require is not None:
        bound = found.of("all", settings.units).reward
        if bound > settings.require:
            raise RequirementFailed(f"the proved constant {bound:.6g} is larger than {settings.require:g}")
