"""A program has no more rows than its plan has room for, although JAX lets go of arguments late."""

from __future__ import annotations

from typing import Any

import numpy as np

from popxl.runtime.completion import Completion
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.streaming.tier import PAGE_BYTES, BufferSpec

SPEC = BufferSpec(1, (1000,), np.dtype(np.uint8), 4)


class Late:
    """Refers to a row until it has been asked three times to let go."""

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.asked = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.asked == 3:
            self.held.clear()


def lend(pool: BlockPool) -> Any:
    return pool.lend(pool.take_at_any_cost(SPEC.entry_bytes), SPEC)


def test_a_row_waits_until_the_one_before_it_is_gone() -> None:
    late = Late()
    pool = BlockPool(8 * PAGE_BYTES, Completion(let_go=late), lent_limit_bytes=1500)
    late.held.append(lend(pool))
    row = lend(pool)
    assert (late.held, pool.lent_bytes) == ([], row.nbytes)


def test_a_row_that_stays_is_waited_for_once() -> None:
    late = Late()
    pool = BlockPool(8 * PAGE_BYTES, Completion(let_go=late), lent_limit_bytes=1500)
    rows = [lend(pool) for _ in range(2)]  # the plan has room for one, and something keeps both
    asked = late.asked
    assert asked > 3
    del rows[1]
    rows.append(lend(pool))
    assert pool.lent_bytes == 2000
    assert late.asked == asked
