"""Stopping a long command between two of its steps, never inside one, so that what it saves can be resumed exactly."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lipctrl.cli.progress import CONSOLE

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Within the block the first SIGINT or SIGTERM only makes the yielded function true; ask it after every step.

    A second signal raises KeyboardInterrupt at once, as does one outside the block. Must be entered in the main thread.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        CONSOLE.print("stopping after this step; once more to stop at once")

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
