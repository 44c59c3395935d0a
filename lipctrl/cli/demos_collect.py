"""`lipctrl demos collect`: record an expert in an environment."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lipctrl.cli.experts import Env, lqr_expert, make_env, swing_up_expert
from lipctrl.cli.loading import load_network
from lipctrl.cli.mpc import mpc_policy
from lipctrl.cli.progress import bar
from lipctrl.config import parse
from lipctrl.demos.collect import record
from lipctrl.demos.demonstrations import Demonstrations
from lipctrl.files import UserError
from lipctrl.policy import PlainPolicy, Policy
from lipctrl.runs import package_versions

MPC_HORIZON = 20


@dataclass(frozen=True)
class CollectSettings:
    """Settings of `lipctrl demos collect`."""

    env: str = "lipctrl/DoubleIntegrator-v0"
    """Gymnasium id of the environment."""
    expert: str = "lqr"
    """"lqr" (from the environment's own linearisation), "mpc" (NMPC of its plant), "swing-up" (of Pendulum-v1), or a
    run folder or network file."""
    episodes: int = 20
    """Number of episodes."""
    dither: float = 0.1
    """Standard deviation of the noise added to the expert's action, in the action's raw unit."""
    max_steps: int | None = None
    """Truncate episodes after this many steps; none: the environment's own time limit."""
    seed: int = 0
    """Seed of start states and dither."""
    out: str | None = None
    """File to write (.npz); by default demos-<environment>-s<seed>.npz in the current folder."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, found {self.episodes}")
        if not self.dither >= 0:
            raise ValueError(f"dither must not be negative, found {self.dither}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, found {self.max_steps}")


def named_expert(name: str, env: Env) -> tuple[Policy, str]:
    """The expert that a setting names, and one line that says what it is.

    Raises:
        UserError: the environment has no such expert, or a network of other sizes.
    """
    if name == "lqr":
        expert = lqr_expert(env)
        return expert.policy, expert.description
    if name == "mpc":
        return mpc_policy(env, MPC_HORIZON), f"NMPC, horizon {MPC_HORIZON}"
    if name == "swing-up":
        return swing_up_expert(env), "energy-based swing-up with a linear gain above"
    net = load_network(Path(name))
    sizes = (net.input_size,), (net.output_size,)
    if sizes != (env.observation_space.shape, env.action_space.shape):
        assert env.spec is not None
        raise UserError(
            f"the expert maps {sizes[0]} observations to {sizes[1]} actions; {env.spec.id} has "
            f"{env.observation_space.shape} and {env.action_space.shape}"
        )
    return PlainPolicy(net), f"policy {name}, sha256 {net.sha256()[:12]}"


def collect_demonstrations(settings: CollectSettings) -> Demonstrations:
    """Record what the settings say."""
    env = make_env(settings.env)
    policy, description = named_expert(settings.expert, env)
    with bar(f"demonstrations, {settings.env}", settings.episodes) as advance:
        demos = record(
            env,
            policy,
            expert=description,
            episodes=settings.episodes,
            dither=settings.dither,
            seed=settings.seed,
            max_steps=settings.max_steps,
            versions=package_versions(),
            progress=lambda _: advance(),
        )
    env.close()
    return demos


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        CollectSettings(),
        group="demos",
        prog="lipctrl demos collect",
        description="Record an expert in an environment, with dither, into one documented file.",
        args=arguments,
    )
    name = settings.env.split("/")[-1]
    path = Path(settings.out or f"demos-{name}-s{settings.seed}.npz")
    if path.exists():
        raise UserError(f"output file {path} exists; choose another --out or remove it")
    demos = collect_demonstrations(settings)
    demos.save(path)
    steps = int(demos.lengths.sum())
    print(f"{path}: {len(demos.lengths)} episodes, {steps} steps, mean return {demos.returns.mean():.6g}")
