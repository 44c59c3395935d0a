"""The command `lipctrl`: finds the command, runs it, turns errors into one sentence and an exit status.

Exit status: 0 done; 2 a mistake of the user's, with nothing on disk damaged; 3 a requirement that was checked does not
hold; 130 interrupted (a training run can be resumed). A bug is a traceback and status 1.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from lipctrl.files import RequirementFailed, UserError, nearest

COMMANDS = {
    "quickstart": (
        "lipctrl.cli.quickstart",
        "clone two controllers, certify, attack, write the report (about a minute)",
    ),
    "demos collect": ("lipctrl.cli.demos_collect", "record an expert in an environment"),
    "demos info": ("lipctrl.cli.demos_info", "what is in a demonstration file; convert from and to Minari"),
    "demos plan": (
        "lipctrl.cli.demos_plan",
        "what the data cover, what a certificate needs, which states to label next",
    ),
    "train bc": ("lipctrl.cli.train_bc", "Lipschitz behaviour cloning from demonstrations"),
    "train sb3": ("lipctrl.cli.train_sb3", "Stable-Baselines3's PPO, SAC or TD3, with a bounded actor on request"),
    "train sac": (
        "lipctrl.cli.train_sac",
        "soft actor-critic with smooth critics and a bounded actor, many seeds at once",
    ),
    "train mbpo": ("lipctrl.cli.train_mbpo", "the same on rollouts of a learned dynamics model: few real steps"),
    "train gail": (
        "lipctrl.cli.train_gail",
        "imitation of a few demonstrations with a learned reward, Lipschitz by penalty or by proof",
    ),
    "train model": (
        "lipctrl.cli.train_model",
        "a process model (input-convex Lipschitz RNN and others) from plant data",
    ),
    "certify": ("lipctrl.cli.certify", "proved bound and witnessed lower bound of a network; check a certificate"),
    "reward certify": (
        "lipctrl.cli.reward_certify",
        "how fast a learned reward can change: proved, per state and action",
    ),
    "reward plot": ("lipctrl.cli.reward_plot", "a learned reward over two of its inputs"),
    "export": ("lipctrl.cli.export", "a certified policy as C, ONNX, CasADi or numpy file, with its certificate"),
    "evaluate": ("lipctrl.cli.evaluate", "closed loops under attack over a grid of radii, with a report"),
    "replay": ("lipctrl.cli.replay", "the worst episodes of a report again, to the last bit, or under another policy"),
    "compare": (
        "lipctrl.cli.compare",
        "policies on the same start states, nominal and attacked: paired differences",
    ),
    "attack fit": ("lipctrl.cli.attack_fit", "train an attack against one policy and store it"),
    "attack apply": ("lipctrl.cli.attack_apply", "what a stored attack does to this and to other policies"),
    "sweep": ("lipctrl.cli.sweep", "clone under many Lipschitz bounds, attack every clone, choose the bound"),
    "oracle": ("lipctrl.cli.oracle", "audit every attack on problems whose exact worst case is known (seconds)"),
    "mpc": ("lipctrl.cli.mpc", "model predictive control of a plant in closed loop"),
    "plot": (
        "lipctrl.cli.plot",
        "trainings over their steps: the mechanism of train mbpo, the learned reward of train gail",
    ),
    "list": ("lipctrl.cli.list", "environments, agents, attacks, families, presets"),
}


def usage() -> str:
    """The text of `lipctrl --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  lipctrl {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["Controllers with proved sensitivity: learn, certify, attack, report.", "", *lines, ""]
        + ["`lipctrl COMMAND --help` lists the settings of a command with types, defaults and units."]
    )


def find(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command at the front of the arguments, and the rest.

    Raises:
        UserError: no such command; names the nearest one.
    """
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS and len(arguments) >= length:
            return name, list(arguments[length:])
    given = " ".join(word for word in arguments[:2] if not word.startswith("-"))
    within = [name for name in COMMANDS if name.split()[0] == arguments[0]]
    raise nearest(given, within or COMMANDS, "command")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # One thread per process: on small networks more threads are slower as soon as anything else runs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from lipctrl import __version__

        print(f"lipctrl {__version__}")
        return 0
    try:
        name, rest = find(arguments)
        status = importlib.import_module(COMMANDS[name][0]).main(rest)
        return int(status or 0)
    except UserError as error:
        print(f"lipctrl: {error}", file=sys.stderr)
        return 2
    except RequirementFailed as error:
        print(f"lipctrl: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("lipctrl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
