"""`lipctrl train gail`: imitation of demonstrations with a learned reward, certified on request."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lipctrl.agents.critic_bound import bound_line, episodes_end
from lipctrl.agents.gail import GAIL
from lipctrl.agents.monitor import CollapseWarning
from lipctrl.agents.off_policy import ImitationSettings
from lipctrl.agents.sac import SAC
from lipctrl.agents.sqil import SQIL
from lipctrl.certify.reward import Units, proved_slopes
from lipctrl.cli.demos_info import read
from lipctrl.cli.experts import signal_names
from lipctrl.cli.off_policy import Prepared, Training, complete, environments_and_agents, start
from lipctrl.cli.progress import CONSOLE
from lipctrl.config import parse
from lipctrl.demos.demonstrations import Demonstrations, check_environment
from lipctrl.files import UserError
from lipctrl.nn.reward import Block, LearnedReward
from lipctrl.nn.reward_forms import REWARD_FORMS
from lipctrl.runs import write_metrics


@dataclass(frozen=True)
class TrainSettings(ImitationSettings):
    """Settings of `lipctrl train gail`."""

    out: str | None = None
    """Run folder; by default the first free runs/gail-<environment>-<k>."""
    resume: str | None = None
    """Run folder of an interrupted run to go on with, exactly; all other settings are read from it."""


class GailTraining(Training):
    """A training in progress, with what is particular to imitation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demos = demonstrations_of(self.settings)

    @staticmethod
    def prepare(settings: Any) -> Prepared:
        """See `Training`; checks the demonstrations too."""
        demos = demonstrations_of(settings)
        agents = environments_and_agents(settings)
        check_demonstrations(demos, settings, agents[0])
        for agent in agents:
            assert isinstance(agent, GAIL | SQIL)
            agent.set_demonstrations(demos)
        return Prepared(agents, known_of(demos))

    def losses(self) -> Sequence[str]:
        """See `Training`; those of a learned reward too."""
        return (*super().losses(), *(("reward/loss", "reward/penalty") if self.settings.method == "gail" else ()))

    def train(self) -> None:
        """See `Training`; the first diagnosis of a collapse is printed and kept in run.json."""
        with collapse_noted(self.note):
            super().train()

    def note(self, advice: str) -> None:
        """Print a warning, once per run."""
        if "warning" not in self.run.record:
            self.run.record["warning"] = advice
            self.run.write()
            CONSOLE.print(f"warning: {advice}", highlight=False, soft_wrap=True)

    def save_more(self, agent: SAC, folder: Path) -> None:
        """The learned reward and the rows of diagnostics."""
        if not isinstance(agent, GAIL):
            return
        self.reward_of(agent).save(folder / "reward.npz")
        if agent.history:
            write_metrics(folder / "imitation.csv", complete(agent.history))

    def reward_of(self, agent: GAIL) -> LearnedReward:
        """The reward of now, with the names of its inputs and where it comes from."""
        reward = agent.learned_reward()
        states, actions = signal_names(self.test.env)
        bit = () if reward.absorbing is None else ("absorbing [-]",)
        rest = {"state-action": actions, "state": (), "state-next": tuple(f"next {name}" for name in states)}
        names = (*states, *bit, *rest[reward.inputs])
        logit = replace(reward.logit, input_names=names, output_names=("logit [-]",))
        of_demos = {"demos_sha256": self.demos.sha256(), "demonstrations": len(self.demos.lengths)}
        return replace(reward, logit=logit, provenance={**reward.provenance, "env_id": self.settings.env, **of_demos})

    def closing(self) -> list[str]:
        """See `Training`: the return beside the expert's, the slope of a learned reward, what its form favours."""
        of_agents = [rows[-1]["evaluation/mean_return"] for rows in self.rows]
        agents = [agent for agent in self.agents if isinstance(agent, GAIL)]
        lines = [beside_expert(float(np.mean(of_agents)), self.demos)]
        if agents:
            lines += [slope_line(self.settings, [self.reward_of(agent) for agent in agents], agents)]
            lines += [bound_line([agent.history[-1] for agent in agents if agent.history])]
            lines += [favoured(self.settings, ended=any(map(episodes_end, agents)))]
        self.run.record["findings"] = [line for line in lines if line]
        folder = self.folder(0)
        commands = (
            *([f"lipctrl plot {self.run.path}"] if agents else []),
            f"lipctrl certify {folder / 'policy.npz'}",
            *([f"lipctrl reward certify {folder / 'reward.npz'}"] if agents else []),
            f"lipctrl evaluate {folder / 'policy.npz'} --env {self.settings.env}",
        )
        return [*self.run.record["findings"], "next: " + commands[0], *(f"      {command}" for command in commands[1:])]


def demonstrations_of(settings: ImitationSettings) -> Demonstrations:
    """The episodes that the settings name.

    Raises:
        UserError: no file is named, it is missing or damaged, or it holds fewer episodes.
    """
    if not settings.demos:
        raise UserError("imitation needs demonstrations: --demos FILE (record some with `lipctrl demos collect`)")
    demos = read(settings.demos)
    count = settings.demonstrations
    if count is None:
        return demos
    if count > len(demos.lengths):
        raise UserError(f"{settings.demos} holds {len(demos.lengths)} episodes; demonstrations asks for {count}")
    return Demonstrations.from_trajectories(list(demos.trajectories())[:count], demos.provenance)


def known_of(demos: Demonstrations) -> dict[str, Any]:
    """What run.json says of the demonstrations."""
    expert = float(demos.returns.mean()) if demos.rewards.any() else None
    return {"demos_sha256": demos.sha256(), "expert_return": expert}


def check_demonstrations(demos: Demonstrations, settings: ImitationSettings, agent: SAC) -> None:
    """Check that demonstrations fit the environment and the steps of a target.

    Raises:
        UserError: of another environment or other spaces, or an episode shorter than a target's window.
    """
    assert agent.observation_space.shape and agent.action_space.shape
    check_environment(demos, settings.env, agent.observation_space.shape[0], agent.action_space.shape[0])
    shortest, steps = int(np.argmin(demos.lengths)), settings.imitation.n_step
    if demos.lengths[shortest] < steps:
        raise UserError(
            f"episode {shortest} of the demonstrations has {demos.lengths[shortest]} steps, a target sums {steps}: "
            "lower imitation.n_step or leave the episode out"
        )


@contextmanager
def collapse_noted(note: Callable[[str], None]) -> Iterator[None]:
    """Within the block the diagnosis of a collapse goes to a function, other warnings where they went before."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CollapseWarning)
        show = warnings.showwarning

        def sorted_out(message: Warning | str, category: type[Warning], *where: Any, **others: Any) -> None:
            if issubclass(category, CollapseWarning):
                note(str(message))
            else:
                show(message, category, *where, **others)

        warnings.showwarning = sorted_out
        yield


def beside_expert(mean: float, demos: Demonstrations) -> str:
    """A line with the mean return of the agents beside the expert's; a share only of a positive one."""
    expert = float(demos.returns.mean())
    if not demos.rewards.any():
        return f"mean return {mean:.4g}; the demonstrations hold no rewards to compare it with"
    share = f", {mean / expert:.0%} of it" if expert > 0 else ""
    return f"mean return {mean:.4g}, the expert's {expert:.4g}{share}"


def slope_line(settings: ImitationSettings, rewards: Sequence[LearnedReward], agents: Sequence[GAIL]) -> str:
    """A line about the slope of the learned reward: proved if it is certified, else measured."""
    if settings.reward.certified:
        found = [proved_slopes(reward) for reward in rewards]

        def largest(block: Block, unit: Units) -> str:
            return f"{max(one[block, unit] for one in found):.4g}"

        units: tuple[Units, ...] = ("normalised", "raw")
        blocks = rewards[0].blocks[1:]

        def of_blocks(unit: Units) -> str:
            return f" ({', '.join(f'{block} {largest(block, unit)}' for block in blocks)})" if blocks else ""

        parts = [f"{largest('all', unit)} in {unit} units{of_blocks(unit)}" for unit in units]
        return f"slope of the reward, proved: at most {' and '.join(parts)}"
    last = [agent.history[-1] for agent in agents if agent.history]
    if not last:
        return ""
    high, top = (max(row[f"reward/slope_{name}"] for row in last) for name in ("95", "max"))
    return (
        f"slope of the logit at sampled pairs, normalised units: 95 % below {high:.4g}, largest {top:.4g}; an "
        "estimate, not a bound (reward.regulariser certified proves one)"
    )


def favoured(settings: ImitationSettings, *, ended: bool) -> str:
    """What the sign of the reward favours where episodes can end, or nothing.

    Args:
        ended: whether the expert or the agents saw an end that is no time limit.
    """
    form, sign = settings.reward.form, REWARD_FORMS[settings.reward.form].sign
    if not ended or sign == 0 or (sign < 0 and settings.reward.absorbing):
        return ""
    if settings.reward.absorbing:
        return (
            f"episodes end here and the reward {form} is positive: staying alive pays by itself; the absorbing state, "
            "whose reward is learned, is what outweighs it"
        )
    what = "positive: it favours survival" if sign > 0 else "negative: it favours an early end"
    return f"episodes end here and the reward {form} is {what}, whatever the expert did; --reward.absorbing is the cure"


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        TrainSettings(),
        group="gail",
        prog="lipctrl train gail",
        description="Off-policy adversarial imitation: TD3 or SAC on a reward learned from demonstrations, with a "
        "penalty on its slope or a proved bound of it, several seeds as one batch; for comparison SQIL, LS-IQ and "
        "behaviour cloning, which learn none. Writes policy.npz, reward.npz, model.zip, metrics.csv, imitation.csv and "
        "a checkpoint into a run folder; an interrupted run is resumed exactly.",
        args=arguments,
    )
    if settings.method == "bc" and settings.resume is None:
        from lipctrl.cli.clone import clone

        clone(settings)
        return
    start(settings, "gail", GailTraining)
