"""Independent pieces of work in this process, in others, or on a Ray cluster; results do not depend on where they ran.

A piece of work is an item that can be pickled and a function of a module. Workers are new processes (`spawn`), never
copies of this one, so that no thread, random state or simulator is shared. Ctrl-C reaches only the parent, which asks
the workers to stop; long functions call `beat` once in a while, which is where they do.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from lipctrl.files import UserError

T = TypeVar("T")
R = TypeVar("R")
Engine = Literal["local", "ray"]


def _nothing() -> None:
    pass


_beat: Callable[[], object] = _nothing


class Stopped(Exception):
    """Raised in a worker whose parent no longer wants its result."""


def beat() -> None:
    """To be called by work that takes long, once per step: progress in this process, the request to stop in another."""
    _beat()


def run_all(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int = 1,
    engine: Engine = "local",
    on_beat: Callable[[], object] = _nothing,
) -> Generator[tuple[int, R], None, None]:
    """(index, result) of every item, as they finish. At most `workers` are under way at a time; closing the iterator
    stops them.

    Args:
        function: of a module, so that other processes find it.
        items: that can be pickled.
        workers: processes; 1 with the engine "local" is this one.
        engine: "local", or "ray": the cluster at RAY_ADDRESS, else this machine.
        on_beat: called at every `beat` of work in this process.

    Raises:
        UserError: what a function raised; workers that died; Ray is not installed.
    """
    if engine == "ray":
        return _ray(function, items, workers)
    if workers == 1 or len(items) < 2:
        return _here(function, items, on_beat)
    return _processes(function, items, workers)


def _here(
    function: Callable[[T], R], items: Sequence[T], on_beat: Callable[[], object]
) -> Generator[tuple[int, R], None, None]:
    for index, item in enumerate(items):
        with _beating(on_beat):
            result = function(item)
        yield index, result


@contextmanager
def _beating(on_beat: Callable[[], object]) -> Iterator[None]:
    global _beat
    before, _beat = _beat, on_beat
    try:
        yield
    finally:
        _beat = before


def _become_worker(stop: Any) -> None:
    """In a new process: one thread, deaf to Ctrl-C, stopping when told to."""
    global _beat
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def listen() -> None:
        if stop.is_set():
            raise Stopped

    _beat = listen


_pools: dict[int, tuple[ProcessPoolExecutor, Any]] = {}
"""Processes that wait for more work, because they take seconds to start, by their number, with their stop signs."""


def _pool(workers: int) -> tuple[ProcessPoolExecutor, Any]:
    if workers not in _pools:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # what the workers start with
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_become_worker, initargs=(stop,))
        _pools[workers] = pool, stop
    return _pools[workers]


def _processes(function: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[tuple[int, R], None, None]:
    pool, stop = _pool(workers)
    waiting = iter(enumerate(items))
    running: dict[Future[R], int] = {}
    whole = False
    try:
        while True:
            for index, item in _next(waiting, workers - len(running)):
                running[pool.submit(function, item)] = index
            if not running:
                whole = True
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda one: running[one]):
                index = running.pop(future)
                yield index, future.result()
    except BrokenProcessPool as error:
        raise UserError("a worker process died, perhaps for want of memory: try fewer --workers") from error
    finally:
        if not whole:
            del _pools[workers]
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _next(waiting: Iterator[T], count: int) -> list[T]:
    return [item for _, item in zip(range(count), waiting, strict=False)]


def _ray(function: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[tuple[int, R], None, None]:
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'lipctrl[ray]'") from error
    mine = not ray.is_initialized()
    if mine:
        own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, **own)
    remote, waiting = ray.remote(function), iter(enumerate(items))
    running: dict[Any, int] = {}
    try:
        while True:
            for index, item in _next(waiting, workers - len(running)):
                running[remote.remote(item)] = index
            if not running:
                return
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            index = running.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            yield index, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if mine:
            ray.shutdown()
