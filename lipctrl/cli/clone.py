"""`lipctrl train gail --method bc`: the demonstrations of an imitation, cloned, in the run folder of an imitation."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stable_baselines3.common.monitor import Monitor

from lipctrl.agents.bc import BC, BCSettings
from lipctrl.agents.expert import subsampled
from lipctrl.agents.off_policy import ImitationSettings
from lipctrl.cli.experts import make_env
from lipctrl.cli.off_policy import evaluated
from lipctrl.cli.train_bc import prepare, train
from lipctrl.cli.train_gail import TrainSettings, beside_expert, demonstrations_of, known_of
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.runs import Run


def cloning(settings: ImitationSettings, seed: int) -> BCSettings:
    """The settings of `lipctrl train bc` that these stand for."""
    return BCSettings(
        env=settings.env,
        demos=settings.demos,
        lip=settings.lip,
        family="unconstrained" if settings.lip is None else settings.family,
        activation=settings.activation if settings.lip is None else "tanh",  # as the bounded actors of td3 and sac
        hidden=settings.hidden,
        updates=settings.timesteps,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch,
        validation=0.0,
        log_interval=settings.log_interval,
        seed=seed,
        device=settings.device,
    )


def pairs(demos: Demonstrations, every: int, *, seed: int) -> Demonstrations:
    """The pairs that an agent of this seed and subsampling imitates, as one episode."""
    rows = subsampled(demos, every, seed=seed)
    return Demonstrations.from_pairs(rows.states, rows.labels, demos.provenance, episodes=1)


def clone(settings: TrainSettings) -> None:
    """Clone the demonstrations once per seed, each into its folder of a new run.

    Raises:
        UserError: no demonstrations, or they do not fit.
        KeyboardInterrupt: interrupted between two gradient steps.
    """
    demos, seeds = demonstrations_of(settings), range(settings.seed, settings.seed + settings.seeds)
    kept = [pairs(demos, settings.imitation.subsample, seed=seed) for seed in seeds]
    agents = [prepare(cloning(settings, seed), rows) for seed, rows in zip(seeds, kept, strict=True)]
    run = Run.create(settings.out, f"gail-{settings.env.split('/')[-1]}", settings, seed=settings.seed)
    run.record |= known_of(demos)
    run.write()
    try:
        seconds = _train(run, settings, agents, kept)
    except KeyboardInterrupt:
        run.finish("interrupted")
        print(f"interrupted; behaviour cloning of {run.path} is started anew, not resumed")
        raise
    returns = [agent.history[-1]["evaluation/mean_return"] for agent in agents]
    run.record["findings"] = [beside_expert(float(np.mean(returns)), demos)]
    run.finish(results={"mean_return": returns}, seconds={"updates": seconds})
    policy = _folder(run, settings, 0) / "policy.npz"
    print(f"{run.path}: mean return {', '.join(f'{value:.4g}' for value in returns)}; time: {seconds:g} s")
    print(run.record["findings"][0])
    print(f"next: lipctrl certify {policy}\n      lipctrl evaluate {policy} --env {settings.env}")


def _folder(run: Run, settings: TrainSettings, k: int) -> Path:
    return run.path if settings.seeds == 1 else run.path / f"seed-{settings.seed + k}"


def _train(run: Run, settings: TrainSettings, agents: Sequence[BC], kept: Sequence[Demonstrations]) -> float:
    """Train one agent after the other; wall time in seconds."""
    test, start = Monitor(make_env(settings.env)), time.perf_counter()
    for k, (agent, rows) in enumerate(zip(agents, kept, strict=True)):
        folder = _folder(run, settings, k)
        folder.mkdir(exist_ok=True)
        train(
            agent,
            cloning(settings, settings.seed + k),
            rows,
            folder,
            evaluate=lambda one: evaluated(one, test, settings.episodes),
        )
    return round(time.perf_counter() - start, 1)
