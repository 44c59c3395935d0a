"""`lipctrl quickstart`: clone two controllers, certify them, attack them, write the report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lipctrl.agents.bc import BCSettings
from lipctrl.attacks.threat import Threat
from lipctrl.cli.contenders import contender
from lipctrl.cli.demos_collect import CollectSettings, collect_demonstrations
from lipctrl.cli.evaluate import EvaluateSettings, provenance, show
from lipctrl.cli.experts import lqr_expert, make_env, signal_names
from lipctrl.cli.plan import Plan
from lipctrl.cli.sections import evaluate
from lipctrl.cli.train_bc import prepare, train
from lipctrl.config import parse, read_config, to_yaml, updated
from lipctrl.evaluation.report import Section, write
from lipctrl.files import write_text
from lipctrl.nn.plain import PlainNet
from lipctrl.runs import Run

TASKS = ("inverted-pendulum", "double-integrator")


@dataclass(frozen=True)
class QuickstartSettings:
    """Settings of `lipctrl quickstart`."""

    seed: int = 0
    """Seed of everything random."""
    out: str | None = None
    """Run folder; by default the first free runs/quickstart-<k>."""
    device: str = "auto"
    """Torch device: auto, cpu, cuda."""
    updates: int | None = None
    """Gradient steps per policy; none: as in the presets."""
    episodes: int | None = None
    """Episodes per policy, attack and radius; none: as in the presets."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, found {self.seed}")
        for name, value in (("updates", self.updates), ("episodes", self.episodes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")


def _preset(group: str, name: str, default: Any, changes: dict[str, Any]) -> Any:
    data, source = read_config(name, group)
    return updated(default, {**data, **changes}, source)


def run_task(task: str, folder: Path, settings: QuickstartSettings) -> Section:
    """One task from expert to section; everything it makes goes into `folder`."""
    folder.mkdir()
    collecting = _preset("demos", task, CollectSettings(), {"seed": settings.seed})
    demos = collect_demonstrations(collecting)
    demos.save(folder / "demos.npz")
    changes: dict[str, Any] = {"seed": settings.seed, "device": settings.device, "demos": str(folder / "demos.npz")}
    cloning = _preset("bc", task, BCSettings(), changes | _given(updates=settings.updates))
    write_text(folder / "settings.yaml", to_yaml(cloning))
    agent = prepare(cloning, demos)
    train(agent, cloning, demos, folder)
    env = make_env(cloning.env)
    names = signal_names(env)
    expert = lqr_expert(env)
    policy = contender("Lipschitz policy", PlainNet.load(folder / "policy.npz"), env_names=names)
    lqr = contender("expert", expert.policy.net, env_names=names)
    policy = replace(policy, source=folder / "policy.npz")
    assert policy.bracket is not None and policy.net is not None and policy.net.input_scale is not None
    policy.bracket.upper.save(folder / "certificate.json")
    evaluating = _preset(
        "evaluate", task, EvaluateSettings(), {"seed": settings.seed} | _given(episodes=settings.episodes)
    )
    threat = Threat.parse(evaluating.threat, policy.net.input_scale, names[0])
    plan = Plan(
        evaluating.env,
        threat,
        evaluating.radii,
        evaluating.attacks,
        evaluating.episodes,
        evaluating.seed,
        ladder=evaluating.ladder or (),
        parts=evaluating.parts or 0,
    )
    last = agent.history[-1]
    facts = {
        "expert": expert.description,
        "demonstrations": f"{len(demos.lengths)} episodes, {int(demos.lengths.sum())} steps, dither "
        f"{collecting.dither:g}, sha256 {demos.sha256()[:12]}",
        "policy": f"{cloning.family}, {cloning.activation}, hidden {cloning.hidden}, bound {cloning.lip:g}, "
        f"{cloning.updates} updates",
        "validation": f"relative loss {last['validation/loss']:.2e}, worst residual "
        f"{last['validation/worst_residual']:.3g}",
        "weights sha256": policy.net.sha256(),
    }
    return evaluate(plan, [policy, lqr], expert=expert, animate=True, facts=facts)


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    settings = parse(
        QuickstartSettings(),
        group="quickstart",
        prog="lipctrl quickstart",
        description="Clone an LQR expert of a MuJoCo pendulum and of a double integrator into policies of bounded "
        "sensitivity, certify them, attack them, and write one report.",
        args=arguments,
    )
    run = Run.create(settings.out, "quickstart", settings, seed=settings.seed)
    sections = [run_task(task, run.path / task, settings) for task in TASKS]
    page = write(run.path, "lipctrl quickstart", sections, provenance(settings.seed))
    run.finish()
    for section in sections:
        show(section)
    print(f"report: {page}")
