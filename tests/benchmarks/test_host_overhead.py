"""What `benchmarks/host_overhead.py` counts, for short loops. Times are not judged here."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import host_overhead
import numpy as np
import pytest
from _measure import Timing

from popxl.plan.steps import Loop as LoopStep


@pytest.mark.parametrize("name", host_overhead.LOOPS)
def test_a_loop_is_driven_by_the_host(name: str) -> None:
    loop = host_overhead.build(3, *host_overhead.LOOPS[name])
    with ExitStack() as sessions:
        session = host_overhead.opened(sessions, loop, "ram")
        assert [step.count for step in session.plan.steps if isinstance(step, LoopStep)] == [3]


@pytest.mark.parametrize("name", host_overhead.LOOPS)
@pytest.mark.parametrize("tier", ["ram", "file"])
def test_a_loop_loads_and_stores_as_often_as_it_says(name: str, tier: str, tmp_path: Path) -> None:
    loop = host_overhead.build(3, *host_overhead.LOOPS[name])
    with ExitStack() as sessions:
        session = host_overhead.opened(sessions, loop, "ram" if tier == "ram" else f"file:{tmp_path / 'rows'}")
        figures = session.figures
        row_bytes = host_overhead.ELEMENTS * 4
        assert (figures.load_bytes, figures.store_bytes) == (3 * loop.loads * row_bytes, 3 * loop.stores * row_bytes)
        counters = session.streaming_memory.counters
        before = counters.stores
        np.testing.assert_array_equal(session.run()[loop.out], np.full(host_overhead.ELEMENTS, 3 * loop.loads))
        session.wait()
        assert counters.stores - before == 3 * loop.stores


def test_once_run_no_row_is_read_from_files(tmp_path: Path) -> None:
    loop = host_overhead.build(3, *host_overhead.LOOPS["loads"])
    with ExitStack() as sessions:
        session = host_overhead.opened(sessions, loop, f"file:{tmp_path / 'rows'}")
        session.run()
        before = session.streaming_memory.counters.loads
        session.run()
        assert session.streaming_memory.counters.loads == before


def test_a_transfer_costs_what_eight_more_cost_in_each_iteration() -> None:
    timings = {"base": Timing((1.0,), (2.0,)), "loads": Timing((5.0,), (2.0,)), "stores": Timing((9.0,), (10.0,))}
    found = host_overhead.per_transfer(timings, 10)
    assert found["one load"] == Timing((0.05,), (0.0,))
    assert found["one store"] == Timing((0.1,), (0.1,))


def test_it_runs_and_reports_both_tiers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert host_overhead.main(["--count=4", "--rounds=2", f"--directory={tmp_path}"]) == 0
    out = capsys.readouterr().out
    for words in ("| RAM", "| files, all in the cache", "one load", "one store", "all is written", "Not measured"):
        assert words in out
