"""What `benchmarks/ram_tier.py` compares, with small rows. Times are not judged here."""

from __future__ import annotations

import numpy as np
import pytest
import ram_tier

import popxl


@pytest.mark.parametrize("stores", [False, True])
def test_only_one_of_the_two_programs_stores_its_results(stores: bool) -> None:
    ir, rows = ram_tier.looped(1 << 16, 5, stores=stores)
    memory = popxl.StreamingMemory("ram")
    with popxl.Session(ir, streaming_memory=memory) as session:
        (last,) = session.run().values()
        assert memory.counters.stores == (10 if stores else 5)
        np.testing.assert_array_equal(last, [5.0])
        expected = (5.0, 4.0) if stores else (0.0, 0.0)
        for entry, value in enumerate(expected):
            np.testing.assert_array_equal(np.asarray(memory.tier.load(rows.remote_buffer_id, entry)), value)


def test_it_runs_and_reports_each_row_and_the_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert ram_tier.main([f"--bytes={1 << 20}", "--count=3", "--rounds=2"]) == 0
    out = capsys.readouterr().out
    assert " NO " not in out
    for words in ("4 KiB", "64 KiB", "1 MiB", "memcpy", "a store by the tier alone", "Not measured"):
        assert words in out
