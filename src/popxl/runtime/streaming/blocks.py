"""Memory that rows are read into, and that comes back once nobody reads it any more."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from .tier import PAGE_BYTES, BufferSpec

_HUGE_PAGE_BYTES = 2 << 20


class Clock(Protocol):
    """Counts computations, so that memory which one of them reads is not filled again before it has run."""

    dispatched: int
    finished: int

    def poll(self) -> None:
        """Bring `finished` up to date."""
        ...

    def wait_for_oldest(self) -> bool:
        """Wait until one more has finished; return whether one was under way."""
        ...


@final
class Block:
    """Page-aligned memory for one entry. `raw` is all of it, as bytes."""

    __slots__ = ("_memory", "nbytes", "raw")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory = mmap.mmap(-1, nbytes)
        if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.raw: npt.NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8)

    def array(self, spec: BufferSpec) -> npt.NDArray[Any]:
        """The entry in it, read-only: an array of its own, so that its end can be noticed; all views of it keep it."""
        array: npt.NDArray[Any] = np.ndarray(spec.shape, spec.dtype, buffer=self._memory)
        array.flags.writeable = False
        return array


@final
class BlockPool:
    """Blocks under way, waiting, cooling and free; of at most `limit_bytes` together.

    A block that the program holds, lent by `lend`, does not count: it is the program's memory. It comes back when
    no Python object refers to the row any more and all computations dispatched by then have finished.

    Args:
        limit_bytes: How much memory the pool may have besides what is lent.
        clock: The computations that may read lent memory.
    """

    def __init__(self, limit_bytes: int, clock: Clock) -> None:
        self.limit_bytes = limit_bytes
        self._clock = clock
        #: Bytes of all blocks that are not lent.
        self.held_bytes = 0
        self._free: dict[int, list[Block]] = {}
        #: By the identity of the reference: its hash would be that of an array, which has none.
        self._lent: dict[int, tuple[weakref.ref[Any], Block]] = {}
        #: Rows that are gone, noticed by whichever thread dropped the last reference.
        self._gone: deque[weakref.ref[Any]] = deque()
        self._cooling: deque[tuple[int, Block]] = deque()

    @property
    def lent_bytes(self) -> int:
        """Bytes that the program has."""
        return sum(block.nbytes for _, block in self._lent.values())

    def take(self, nbytes: int) -> Block | None:
        """A block of at least `nbytes`, or None if the limit leaves no room for one just now."""
        size = max(PAGE_BYTES, -(-nbytes // PAGE_BYTES) * PAGE_BYTES)
        self._reclaim()
        free = self._free.get(size)
        if free:
            return free.pop()
        if self.held_bytes + size > self.limit_bytes:
            self._drop_free(self.held_bytes + size - self.limit_bytes)
            if self.held_bytes + size > self.limit_bytes:
                return None
        self.held_bytes += size
        return Block(size)

    def take_at_any_cost(self, nbytes: int) -> Block:
        """A block of at least `nbytes`: wait for computations that hold one, and else go above the limit."""
        while True:
            block = self.take(nbytes)
            if block is not None:
                return block
            if not self._clock.wait_for_oldest():
                break
        size = max(PAGE_BYTES, -(-nbytes // PAGE_BYTES) * PAGE_BYTES)
        self.held_bytes += size
        return Block(size)

    def give_back(self, block: Block) -> None:
        """Return a block that was not lent, and that nobody reads or writes."""
        self._keep(block)

    def lend(self, block: Block, spec: BufferSpec) -> npt.NDArray[Any]:
        """Hand the row in a block to the program; the block comes back by itself."""
        row = block.array(spec)
        reference = weakref.ref(row, self._gone.append)
        self._lent[id(reference)] = (reference, block)
        self.held_bytes -= block.nbytes
        return row

    def _reclaim(self) -> None:
        while self._gone:
            _, block = self._lent.pop(id(self._gone.popleft()))
            self.held_bytes += block.nbytes
            # Every computation that reads the row has been dispatched by now.
            self._cooling.append((self._clock.dispatched, block))
        if self._cooling:
            self._clock.poll()
            while self._cooling and self._cooling[0][0] <= self._clock.finished:
                self._keep(self._cooling.popleft()[1])

    def _keep(self, block: Block) -> None:
        if self.held_bytes > self.limit_bytes:
            self.held_bytes -= block.nbytes
        else:
            self._free.setdefault(block.nbytes, []).append(block)

    def _drop_free(self, wanted_bytes: int) -> None:
        """Let go of free blocks of other sizes."""
        for blocks in self._free.values():
            while blocks and wanted_bytes > 0:
                wanted_bytes -= blocks[-1].nbytes
                self.held_bytes -= blocks.pop().nbytes
