"""The conformance suite of asynchronous tiers, besides that of every tier."""

# ruff: noqa: D102 - a test's name says what it shows

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from popxl.runtime.streaming import BufferSpec, Tier
from popxl.runtime.streaming.transfer import Transfer

from .tiers import BUFFERS, TierTests, assert_row, assert_rows, fill, sample, zeros

__all__ = ["AsynchronousTierTests"]


class AsynchronousTierTests(TierTests):
    """What a tier with ``capabilities.asynchronous`` must do besides.

    Example:
        >>> from popxl.testing.faults import FaultTier
        >>> class TestFaultTier(AsynchronousTierTests):
        ...     def make_tier(self, directory):
        ...         return FaultTier()
    """

    def test_capability_asynchronous_is_declared(self, tier: Tier) -> None:
        assert tier.capabilities.asynchronous

    def test_started_reads_bring_what_was_stored(self, tier: Tier) -> None:
        rows = fill(tier)
        reads = _started_reads(tier, rows)
        for key, expected in rows.items():
            assert_row(_read(reads[key]), expected)

    def test_started_read_of_a_row_that_was_never_written_brings_zeros(self, tier: Tier) -> None:
        tier.open(BUFFERS)
        reads = _started_reads(tier, [(spec.buffer_id, 0) for spec in BUFFERS])
        for spec in BUFFERS:
            assert_row(_read(reads[spec.buffer_id, 0]), zeros(spec))

    def test_started_writes_are_what_a_load_finds(self, tier: Tier) -> None:
        tier.open(BUFFERS)
        assert_rows(tier, _written(tier, seed=1))

    def test_started_writes_replace_older_rows(self, tier: Tier) -> None:
        fill(tier)
        assert_rows(tier, _written(tier, seed=2))

    @pytest.mark.parametrize("order", [1, -1])
    def test_neighbours_of_one_call_keep_apart(self, tier: Tier, order: int) -> None:
        spec = BufferSpec(1, (1030,), np.dtype("float32"), entries=300)
        tier.open([spec])
        rows = {(1, entry): sample(spec, entry) for entry in range(300)[::order]}
        writes = [Transfer(spec, entry, _bytes(row)) for (_, entry), row in rows.items()]
        tier.start_writes(writes)
        for write in writes:
            write.wait()
        reads = _started_reads(tier, rows, [spec])
        for key, expected in rows.items():
            assert_row(_read(reads[key]), expected)

    @pytest.mark.parametrize("nbytes", [4 << 20, (4 << 20) + 1, 9_000_001])
    def test_large_rows_pass_each_other_unharmed(self, tier: Tier, nbytes: int) -> None:
        spec = BufferSpec(1, (nbytes,), np.dtype("uint8"), entries=4)
        tier.open([spec])
        for seed in range(2):
            old = {(1, entry): sample(spec, 10 * seed + entry) for entry in range(2)}
            for (_, entry), row in old.items():
                tier.store(1, entry, row)
            new = {(1, entry): sample(spec, 10 * seed + entry) for entry in range(2, 4)}
            writes = [Transfer(spec, entry, _bytes(row)) for (_, entry), row in new.items()]
            tier.start_writes(writes)
            reads = _started_reads(tier, old, [spec])
            for transfer in writes:
                transfer.wait()
            for key, expected in old.items():
                assert_row(_read(reads[key]), expected)
            assert_rows(tier, new)

    def test_write_from_memory_of_any_alignment(self, tier: Tier) -> None:
        spec = BufferSpec(1, (9001,), np.dtype("uint8"), entries=8)
        tier.open([spec])
        memory = sample(BufferSpec(1, (10_000,), np.dtype("uint8"), entries=1), seed=5)
        writes = [Transfer(spec, entry, memory[1 << entry :][:9001]) for entry in range(8)]
        tier.start_writes(writes)
        for write in writes:
            write.wait()
        for entry in range(8):
            assert_row(tier.load(1, entry), memory[1 << entry :][:9001])

    def test_nothing_to_start_is_fine(self, tier: Tier) -> None:
        tier.open(BUFFERS)
        tier.start_reads([])
        tier.start_writes([])

    def test_close_finishes_what_is_under_way(self, tier: Tier) -> None:
        rows = fill(tier)
        reads = _started_reads(tier, rows)
        tier.close()
        for key, expected in rows.items():
            assert_row(_read(reads[key]), expected)


def _bytes(row: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(row).reshape(-1).view(np.uint8)


def _started_reads(
    tier: Tier, keys: Iterable[tuple[int, int]], buffers: Iterable[BufferSpec] = BUFFERS
) -> dict[tuple[int, int], Transfer]:
    specs = {spec.buffer_id: spec for spec in buffers}
    reads: dict[tuple[int, int], Transfer] = {}
    for key in keys:
        spec = specs[key[0]]
        # Dirty memory at a page, as the engine's comes.
        raw = np.frombuffer(mmap.mmap(-1, max(1, spec.padded_bytes)), np.uint8)[: spec.padded_bytes]
        raw.fill(0xA5)
        reads[key] = Transfer(spec, key[1], raw)
    tier.start_reads(list(reads.values()))
    return reads


def _read(transfer: Transfer) -> npt.NDArray[Any]:
    transfer.wait()
    spec = transfer.spec
    return transfer.raw[: spec.entry_bytes].view(spec.dtype).reshape(spec.shape)


def _written(tier: Tier, seed: int) -> dict[tuple[int, int], npt.NDArray[Any]]:
    rows: dict[tuple[int, int], npt.NDArray[Any]] = {}
    writes: list[Transfer] = []
    for spec in BUFFERS:
        for entry in range(spec.entries):
            rows[spec.buffer_id, entry] = row = sample(spec, 1000 * seed + 10 * spec.buffer_id + entry)
            writes.append(Transfer(spec, entry, _bytes(row)))
    tier.start_writes(writes)
    for write in writes:
        write.wait()
    return rows
