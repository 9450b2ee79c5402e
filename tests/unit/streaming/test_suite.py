"""The conformance suite can fail: each of these tiers breaks one promise, and the suite notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popxl.runtime.streaming import BufferSpec, ImmutableArray, Tier
from popxl.testing.tiers import TierTests


class HonestTier(Tier):
    """A dict of copies, the base of the broken ones."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[int, int], Any] = {}

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        self.rows = {}

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        return self.rows.get((spec.buffer_id, entry), np.zeros(spec.shape, spec.dtype))

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        self.rows[spec.buffer_id, entry] = np.array(value)

    def _detach(self) -> None:
        pass


class Forgetful(HonestTier):
    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        pass


class OneRowPerBuffer(HonestTier):
    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        self.rows.update({(spec.buffer_id, other): np.array(value) for other in range(spec.entries)})


class BuffersMixedUp(HonestTier):
    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        return next((row for key, row in self.rows.items() if key[1] == entry), np.zeros(spec.shape, spec.dtype))


class OverwritesInPlace(HonestTier):
    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        row = self.rows.setdefault((spec.buffer_id, entry), np.zeros(spec.shape, spec.dtype))
        row[...] = np.asarray(value)


class RemembersAfterClose(HonestTier):
    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        pass


class StartsWithOnes(HonestTier):
    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        return self.rows.get((spec.buffer_id, entry), np.ones(spec.shape, spec.dtype))


class AlwaysOneAxis(HonestTier):
    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        return np.asarray(super()._read(spec, entry)).reshape(-1)


class AlwaysFloat32(HonestTier):
    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        return np.asarray(super()._read(spec, entry)).astype(np.float32)


class ClampsOffsets(HonestTier):
    def load(self, buffer_id: int, entry: int) -> ImmutableArray:
        return super().load(buffer_id, min(max(entry, 0), 3))


class CountsNothing(HonestTier):
    def load(self, buffer_id: int, entry: int) -> ImmutableArray:
        value = super().load(buffer_id, entry)
        self.counters.loads = self.counters.bytes_loaded = 0
        return value


FAULTS: list[tuple[type[HonestTier], Callable[[TierTests, Tier], None]]] = [
    (Forgetful, TierTests.test_last_of_several_stores_wins),
    (OneRowPerBuffer, TierTests.test_rows_and_buffers_are_independent),
    (BuffersMixedUp, TierTests.test_rows_and_buffers_are_independent),
    (OverwritesInPlace, TierTests.test_loaded_value_outlives_a_later_store),
    (RemembersAfterClose, TierTests.test_rows_are_zeros_after_the_tier_is_opened_again),
    (StartsWithOnes, lambda suite, tier: suite.test_every_row_is_zeros_after_open(tier, "float32", (7,))),
    (AlwaysOneAxis, lambda suite, tier: suite.test_stored_value_reads_back(tier, "float32", (2, 3, 5))),
    (AlwaysFloat32, lambda suite, tier: suite.test_stored_value_reads_back(tier, "int64", (7,))),
    (ClampsOffsets, lambda suite, tier: suite.test_load_out_of_range_is_refused(tier, 4)),
    (CountsNothing, TierTests.test_counters_count_transfers_and_their_bytes),
]


class TestHonestTier(TierTests):
    def make_tier(self, directory: Path) -> HonestTier:
        return HonestTier()


@pytest.mark.parametrize(("broken", "check"), FAULTS, ids=lambda item: item.__name__)
def test_suite_notices(broken: type[HonestTier], check: Callable[[TierTests, Tier], None]) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(TierTests(), broken())


@pytest.mark.parametrize("broken", [Forgetful, OneRowPerBuffer, OverwritesInPlace, RemembersAfterClose, ClampsOffsets])
def test_random_histories_notice(broken: type[HonestTier], tmp_path: Path) -> None:
    class Suite(TierTests):
        def make_tier(self, directory: Path) -> Tier:
            return broken()

    # Hypothesis reports several different failures as one group.
    with pytest.raises((AssertionError, pytest.fail.Exception, ExceptionGroup)):
        Suite().test_any_history_reads_like_a_dict_of_arrays(tmp_path)
