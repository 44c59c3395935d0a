"""Progress bars of the command line."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True)


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A bar on standard error; yields the function that advances it by one, or by its argument."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=CONSOLE) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count=1: progress.advance(task, count)


def quiet_in_workers() -> None:
    """No bars in a worker process: those of several overwrite each other."""
    if multiprocessing.parent_process() is not None:
        CONSOLE.quiet = True
