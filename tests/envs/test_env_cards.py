"""The page of environment cards."""

from pathlib import Path

import gymnasium

from lipctrl.envs import ENVIRONMENTS
from lipctrl.envs.cards import cards

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == cards(), "run: python -m lipctrl.envs.cards > docs/environments.md"


def test_the_page_has_every_card_in_full() -> None:
    parts = cards().split("\n## ")[1:]
    assert [part.splitlines()[0] for part in parts] == list(ENVIRONMENTS)
    for name, part in zip(ENVIRONMENTS, parts, strict=True):
        assert part.count("\n### ") == 8
        assert f"| `{name}` | {ENVIRONMENTS[name]} |" in cards()
        doc = gymnasium.make(name).unwrapped.__doc__
        assert doc is not None and doc.splitlines()[0] in part
