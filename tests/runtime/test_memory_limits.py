"""How the user's budgets are divided, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from popxl.runtime.memory_limits import MemoryLimits
from popxl.runtime.streaming.tier import BufferSpec

MIB = 1 << 20
ROWS = [BufferSpec(i, (MIB,), np.dtype(np.uint8), 100) for i in range(2)]


@pytest.mark.parametrize(
    ("host", "has_stores", "pool", "cache", "copies"),
    [
        (64, True, 48, 0, 16),  # copies of stored rows come out of it
        (64, False, 64, 0, 0),
        (100, True, 64, 20, 16),  # more than four rows of each buffer and more than 64 MiB is a cache
        (18, True, 4, 0, 16),  # four rows stay for the pool, though copies may then take more than is left
        (3, True, 3, 0, 16),
    ],
)
def test_host_memory_is_for_copies_rows_on_their_way_and_a_cache(
    host: int, has_stores: bool, pool: int, cache: int, copies: int
) -> None:
    found = MemoryLimits.choose(ROWS, 8 * MIB, None, host * MIB, has_stores=has_stores, copy_bytes=16 * MIB)
    assert (found.pool_bytes, found.cache_bytes, found.copy_bytes) == (pool * MIB, cache * MIB, copies * MIB)
