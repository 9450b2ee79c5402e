"""The file tier alone, as fast as it can: what a program over files is compared with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from popxl.runtime.completion import Completion
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.streaming.transfer import Transfer


class RawTier:
    """A file tier with rows of one size, moved as fast as it can with a few in memory."""

    def __init__(self, directory: Path, row_bytes: int, rows: int, in_flight: int) -> None:
        self._tier = FileTier(directory)
        self._spec = BufferSpec(1, (row_bytes,), np.dtype(np.uint8), rows, ((0, "rows"),))
        self._tier.open([self._spec])
        pool = BlockPool(in_flight * self._spec.padded_bytes, Completion())
        blocks = [pool.take(self._spec.padded_bytes) for _ in range(in_flight)]
        self._memory = [block.raw for block in blocks if block is not None]
        for raw in self._memory:
            raw[:] = 1
        self.stores()

    def loads(self) -> None:
        """Read every row once."""
        self._move(self._tier.start_reads, self._spec.padded_bytes)

    def stores(self) -> None:
        """Write every row once."""
        self._move(self._tier.start_writes, self._spec.entry_bytes)

    def _move(self, start: Callable[[list[Transfer]], None], nbytes: int) -> None:
        under_way: deque[Transfer] = deque()
        for entry in range(self._spec.entries):
            if len(under_way) == len(self._memory):
                under_way.popleft().wait()
            transfer = Transfer(self._spec, entry, self._memory[entry % len(self._memory)][:nbytes])
            start([transfer])
            under_way.append(transfer)
        for transfer in under_way:
            transfer.wait()

    def close(self) -> None:
        """Close the files."""
        self._tier.close()
