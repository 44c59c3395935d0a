"""Work that is spread over processes: the same results, errors in one sentence, nothing left behind."""

import importlib.util
import multiprocessing
import os
import time
from collections.abc import Iterator

import pytest

from lipctrl.disturb.budget import Budget
from lipctrl.evaluation import engine
from lipctrl.evaluation.engine import beat, run_all
from lipctrl.files import UserError


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    for pool, stop in engine._pools.values():
        stop.set()
        pool.shutdown()
    engine._pools.clear()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_once(workers: int) -> None:
    items = [f"sparse={k}" for k in range(1, 8)]
    found = dict(run_all(Budget.parse, items, workers=workers))
    assert found == {k: Budget("sparse", k + 1) for k in range(7)}
    assert dict(run_all(Budget.parse, items[:3], workers=workers)) == {k: found[k] for k in range(3)}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_through_and_ends_it(workers: int) -> None:
    with pytest.raises(UserError, match="unknown budget 'spase'"):
        dict(run_all(Budget.parse, ["step", "spase", "step", "step"], workers=workers))


def test_a_worker_that_dies_is_a_sentence() -> None:
    with pytest.raises(UserError, match="a worker process died"):
        dict(run_all(os._exit, [1, 1], workers=2))


def test_work_in_this_process_is_lazy_and_reports_its_steps() -> None:
    calls: list[int] = []

    def work(item: int) -> int:
        beat()
        calls.append(item)
        return -item

    beats: list[None] = []
    results = run_all(work, [1, 2, 3], on_beat=lambda: beats.append(None))
    assert next(results) == (0, -1) and next(results) == (1, -2)
    results.close()
    assert calls == [1, 2] and len(beats) == 2
    beat()  # nobody listens any more
    assert len(beats) == 2


def test_closing_stops_what_waits() -> None:
    start = time.perf_counter()
    results = run_all(time.sleep, [0.0] + [0.2] * 200, workers=2)
    assert next(results) == (0, None)
    results.close()
    assert time.perf_counter() - start < 20  # 20 s of sleep would have been left, beside the start of the workers


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"lipctrl\[ray\]"):
        dict(run_all(Budget.parse, ["step"], engine="ray"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra")
def test_a_local_ray_of_two_workers() -> None:
    items = [f"sparse={k}" for k in range(1, 6)]
    assert dict(run_all(Budget.parse, items, workers=2, engine="ray")) == dict(run_all(Budget.parse, items))
    with pytest.raises(UserError, match="unknown budget 'spase'"):
        dict(run_all(Budget.parse, ["step", "spase"], workers=2, engine="ray"))
