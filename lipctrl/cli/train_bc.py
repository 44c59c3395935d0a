"""`lipctrl train bc`: Lipschitz behaviour cloning into a run folder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from lipctrl.agents.bc import BC, BCSettings, build, load
from lipctrl.agents.dagger import aggregate
from lipctrl.cli.demos_collect import named_expert
from lipctrl.cli.experts import make_env, signal_names
from lipctrl.cli.interrupt import deferred_interrupt
from lipctrl.cli.progress import bar
from lipctrl.config import parse, read_config, updated
from lipctrl.demos.demonstrations import Demonstrations, check_environment
from lipctrl.files import UserError, write_atomically
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.runs import Run, write_metrics

Evaluate = Callable[[BC], dict[str, float]]


@dataclass(frozen=True)
class TrainSettings(BCSettings):
    """Settings of `lipctrl train bc`."""

    out: str | None = None
    """Run folder; by default the first free runs/bc-<environment>-<k>."""
    expert: str | None = None
    """Who labels in DAgger rounds and whose Jacobians are matched: "lqr", "mpc", a run folder or a network file."""
    resume: str | None = None
    """Run folder of an interrupted run to go on with; all other settings are read from it."""


class _Checkpoint(BaseCallback):
    """Advances a bar every step, evaluates and writes a checkpoint at every logged row, stops when interrupted."""

    def __init__(
        self, folder: Path, interval: int, advance: Any, interrupted: Callable[[], bool], evaluate: Evaluate | None
    ) -> None:
        super().__init__()
        self.folder, self.interval, self.advance, self.interrupted = folder, interval, advance, interrupted
        self.evaluate = evaluate

    def _on_step(self) -> bool:
        self.advance()
        history = self.model.history  # type: ignore[attr-defined]  # the model is the BC that called
        if self.evaluate is not None and history and history[-1]["update"] == self.num_timesteps:
            history[-1] |= self.evaluate(self.model)  # type: ignore[arg-type]
        if self.num_timesteps % self.interval == 0:
            save(self.model, self.folder)  # type: ignore[arg-type]  # the model is the BC that called
        return not self.interrupted()


def save(agent: BC, folder: Path) -> None:
    """Write checkpoint and metrics."""
    write_atomically(folder / "model.zip", lambda stream: agent.save(stream))  # type: ignore[arg-type]  # a binary file
    if agent.history:
        write_metrics(folder / "metrics.csv", agent.history)


def train(
    agent: BC,
    settings: BCSettings,
    demos: Demonstrations,
    folder: Path,
    expert: Policy | None = None,
    evaluate: Evaluate | None = None,
) -> None:
    """Train to the end, with checkpoints; then write the checkpoint, the metrics and the plain network.

    With DAgger the updates are split evenly; between two parts the expert labels what the learner visits, and the data
    so far are kept in the run folder as demos.npz.

    Args:
        agent: new, or loaded from the run folder with the data so far. demos: those data.
        expert: labels in DAgger rounds. evaluate: what else a logged row holds.

    Raises:
        KeyboardInterrupt: interrupted between two updates, after a checkpoint was written.
    """
    env, parts = make_env(settings.env), settings.dagger_rounds + 1
    with deferred_interrupt() as interrupted, bar(f"cloning, {settings.env}", settings.updates) as advance:
        advance(agent.num_timesteps)
        for part in range(int(demos.provenance.get("dagger_rounds", 0)), parts):
            agent.learn(
                settings.updates * (part + 1) // parts,
                callback=_Checkpoint(folder, settings.log_interval, advance, interrupted, evaluate),
                log_interval=settings.log_interval,
                reset_num_timesteps=False,
            )
            save(agent, folder)
            if interrupted():
                raise KeyboardInterrupt
            if part < settings.dagger_rounds:
                assert expert is not None
                learner = PlainPolicy(agent.policy.to_plain())
                demos = aggregate(demos, env, learner, expert, episodes=settings.dagger_episodes, seed=settings.seed)
                demos.save(folder / "demos.npz")
                agent.set_demonstrations(demos, expert)
    inputs, outputs = signal_names(env)
    agent.policy.to_plain(input_names=inputs, output_names=outputs).save(folder / "policy.npz")


def prepare(settings: BCSettings, demos: Demonstrations, expert: Policy | None = None) -> BC:
    """The agent of these settings for these demonstrations, after checking that they fit."""
    env = make_env(settings.env)
    assert env.observation_space.shape and env.action_space.shape
    check_environment(demos, settings.env, env.observation_space.shape[0], env.action_space.shape[0])
    return build(settings, env, demos, expert)


def _expert(settings: TrainSettings) -> Policy | None:
    """The expert that the settings name.

    Raises:
        UserError: one is needed and none is named, or the environment has no such expert.
    """
    if settings.expert is not None:
        return named_expert(settings.expert, make_env(settings.env))[0]
    if settings.dagger_rounds or settings.jacobian_weight:
        raise UserError("DAgger and matching Jacobians need somebody to ask: add --expert lqr, mpc or a network")
    return None


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        TrainSettings(),
        group="bc",
        prog="lipctrl train bc",
        description="Train a policy of bounded sensitivity on demonstrations. Writes model.zip, policy.npz (the plain "
        "network), metrics.csv and settings.yaml into a run folder.",
        args=arguments,
    )
    if settings.resume is not None:
        resume(Path(settings.resume))
        return
    if not settings.demos:
        raise UserError("training needs demonstrations: --demos FILE (record some with `lipctrl demos collect`)")
    demos = Demonstrations.load(Path(settings.demos))
    expert = _expert(settings)
    agent = prepare(settings, demos, expert)
    run = Run.create(settings.out, f"bc-{settings.env.split('/')[-1]}", settings, seed=settings.seed)
    run.record["demos_sha256"] = demos.sha256()
    finish(run, agent, settings, demos, expert)


def resume(path: Path) -> None:
    """Go on with an interrupted run.

    Raises:
        UserError: not a run folder, already finished, or its demonstrations changed.
    """
    run = Run.open(path)
    if run.record.get("status") == "finished":
        raise UserError(f"run {path} is finished; there is nothing to resume")
    data, source = read_config(str(path / "settings.yaml"), "bc")
    settings = updated(TrainSettings(), data, source)
    demos = Demonstrations.load(Path(settings.demos))
    if demos.sha256() != run.record.get("demos_sha256"):
        raise UserError(f"{settings.demos} is not the data set that run {path} was trained on")
    if (path / "demos.npz").exists():
        demos = Demonstrations.load(path / "demos.npz")
    expert = _expert(settings)
    agent = load(run.checked("model.zip"), make_env(settings.env), demos, expert, device=settings.device)
    finish(run, agent, settings, demos, expert)


def finish(
    run: Run,
    agent: BC,
    settings: TrainSettings,
    demos: Demonstrations,
    expert: Policy | None,
    *,
    quiet: bool = False,
) -> None:
    """Train to the end and close the run, or mark it interrupted; print a line unless `quiet`."""
    try:
        train(agent, settings, demos, run.path, expert)
    except KeyboardInterrupt:
        run.finish("interrupted")  # with the last checkpoint: what is in memory may be half an update
        if not quiet:
            print(f"interrupted after {agent.num_timesteps} updates; go on with: lipctrl train bc --resume {run.path}")
        raise
    last = agent.history[-1]
    run.finish(results=last)
    if quiet:
        return
    bound = f", bound {last['train/bound']:.5g}" if "train/bound" in last else ""
    print(
        f"{run.path}: validation loss {last['validation/loss']:.3e} (relative), worst residual "
        f"{last['validation/worst_residual']:.4g}{bound}; certify it with: lipctrl certify {run.path}"
    )
