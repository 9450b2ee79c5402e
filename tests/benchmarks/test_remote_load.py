"""What `benchmarks/remote_load.py` counts, with tiny rows. Times are not judged here."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import remote_load

ROW_BYTES = 1 << 16


@pytest.mark.parametrize("source", remote_load.SOURCES)
def test_a_row_is_stored_loaded_and_stored_again_at_one_address(source: str) -> None:
    passed = remote_load.pass_row(source, ROW_BYTES)
    assert passed.stored == passed.loaded == passed.stored_again


@pytest.mark.parametrize("source", remote_load.SOURCES)
def test_a_row_is_where_jax_uses_it_in_place(source: str) -> None:
    assert remote_load.pass_row(source, ROW_BYTES).loaded % 64 == 0


@pytest.mark.parametrize("source", remote_load.SOURCES)
def test_a_later_store_leaves_the_loaded_value(source: str) -> None:
    passed = remote_load.pass_row(source, ROW_BYTES)
    np.testing.assert_array_equal(passed.loaded_values, np.ones(ROW_BYTES // 4))
    np.testing.assert_array_equal(passed.row_values, np.full(ROW_BYTES // 4, 2.0))


@pytest.mark.parametrize("source", remote_load.SOURCES)
def test_a_row_to_be_timed_holds_ones(source: str) -> None:
    np.testing.assert_array_equal(np.asarray(remote_load.make_row(source, ROW_BYTES)), np.ones(ROW_BYTES // 4))


@pytest.mark.parametrize("use", ["segment", "store"])
def test_an_unrolled_program_loads_as_often_as_it_says(use: str) -> None:
    attached = remote_load.Attached(remote_load.unrolled(ROW_BYTES, 7, use))
    with ExitStack() as sessions:
        attached.open(sessions, np.ones(ROW_BYTES // 4, np.float32)).run()
        assert attached.memory.counters.loads == 7
        # One of the stores is the row that `open` puts there.
        assert attached.memory.counters.stores == (8 if use == "store" else 1)


@pytest.mark.parametrize("ir", [remote_load.unrolled(ROW_BYTES, 7, "segment"), remote_load.looped(ROW_BYTES, 7)])
def test_a_timed_program_uses_each_row_that_it_loads(ir: object) -> None:
    attached = remote_load.Attached(ir)
    with ExitStack() as sessions:
        (total,) = attached.open(sessions, np.ones(ROW_BYTES // 4, np.float32)).run().values()
        assert attached.memory.counters.loads == 7
        np.testing.assert_array_equal(total, [7.0])


def test_the_watched_tier_sees_a_copy() -> None:
    tier = remote_load.WatchedTier()
    tier.open([remote_load.BufferSpec(1, (4,), np.dtype(np.float32), entries=2)])
    row = np.arange(8, dtype=np.float32)[::2]
    tier.store(1, 0, row)
    assert tier.transfers[0].address != row.ctypes.data


def test_eviction_keeps_the_files(tmp_path: Path) -> None:
    (tmp_path / "row").write_bytes(os.urandom(5000))
    before = (tmp_path / "row").read_bytes()
    remote_load.evict(tmp_path)
    assert (tmp_path / "row").read_bytes() == before


def test_it_runs_and_reports_each_source_and_both_tiers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = ["--bytes", str(ROW_BYTES), "--count", "2", "--rounds", "2", "--directory", str(tmp_path)]
    assert remote_load.main(sizes) == 0
    out = capsys.readouterr().out
    assert " NO " not in out
    for words in (*remote_load.SOURCES, "64 KiB", "a run, cold", "Not measured"):
        assert words in out
