"""The environment cards as one page: `python -m lipctrl.envs.cards > docs/environments.md`."""

import inspect
import sys

import gymnasium
from gymnasium.envs.registration import load_env_creator

from . import ENVIRONMENTS

_HEAD = """# Environments

<!-- Generated from the class docstrings: python -m lipctrl.envs.cards > docs/environments.md -->

`import lipctrl.envs` registers these with gymnasium; `gymnasium.make(id)` makes one. Observations, actions and limits
are in physical units. Failure (a state outside its limits, a collision) terminates an episode; the time limit
truncates it, and the value of the last state still counts. `reset(options={"state": x})` starts anywhere;
`env.unwrapped.plant` is the symbolic plant that controllers and certificates use; `env.unwrapped.disturbance` is
applied at every step until it is changed.

| id | task |
|---|---|
"""


def cards() -> str:
    """Every card in Markdown, in the order of the registry."""
    rows = "".join(f"| `{name}` | {description} |\n" for name, description in ENVIRONMENTS.items())
    return _HEAD + rows + "".join(_card(name) for name in ENVIRONMENTS)


def _card(name: str) -> str:
    entry = gymnasium.spec(name).entry_point
    made_by = load_env_creator(entry) if isinstance(entry, str) else entry
    text = inspect.getdoc(made_by) or ""
    # the docstring's sections become subsections of the page
    return f"\n## {name}\n\n" + text.replace("\n## ", "\n### ") + "\n"


if __name__ == "__main__":
    sys.stdout.write(cards())
