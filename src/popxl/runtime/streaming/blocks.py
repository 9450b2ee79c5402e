"""Memory that rows are read into, and that comes back once nobody reads it any more."""

from __future__ import annotations

import bisect
import mmap
import weakref
from collections import deque
from time import perf_counter, sleep
from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt

from .page_lock import PageLock
from .tier import PAGE_BYTES, BufferSpec

_HUGE_PAGE_BYTES = 2 << 20
#: How long to wait for rows that a computation which has ended is about to let go of, and how often to look.
_LETS_GO_WITHIN_S, _LOOK_EVERY_S = 5e-3, 1e-4


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

    def let_go(self) -> None:
        """Make the arguments of what has finished go, which are not referred to elsewhere."""
        ...

    def admit(self, new_bytes: int) -> None:
        """Wait until the program may have `new_bytes` more."""
        ...

    def add_row(self, nbytes: int) -> None:
        """Note that the program has a row more."""
        ...


@final
class Region:
    """A stretch of memory that blocks are cut from, first fit: what was touched once is used again first.

    Args:
        nbytes: Its size; memory is only taken for the pages that are touched.
        lock: Locks it for the copy engines of a GPU, which touches all of it.

    Example:
        >>> region = Region(3 * PAGE_BYTES)
        >>> region.cut(PAGE_BYTES), region.cut(PAGE_BYTES), region.cut(2 * PAGE_BYTES)
        (0, 4096, None)
        >>> region.join(0, PAGE_BYTES)
        >>> region.cut(PAGE_BYTES)
        0
    """

    def __init__(self, nbytes: int, lock: PageLock | None = None) -> None:
        self.nbytes = nbytes
        # Not shared with children: such memory is counted apart, and gets no huge pages.
        self.memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if nbytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            self.memory.madvise(mmap.MADV_HUGEPAGE)
        if lock is not None:
            address = np.frombuffer(self.memory, np.uint8).ctypes.data
            weakref.finalize(self, lock(address, nbytes))
        #: How far it has ever been used: what lies before takes memory.
        self.touched = 0
        #: Free stretches, by where they start: no two touch.
        self._starts = [0]
        self._sizes = [nbytes]

    def cut(self, nbytes: int, *, may_grow: bool = True) -> int | None:
        """Where a new block of `nbytes` starts; None if no free stretch is that long.

        `may_grow`: whether it may take memory that was not touched before.
        """
        for i, size in enumerate(self._sizes):
            start = self._starts[i]
            if size >= nbytes and (may_grow or start + nbytes <= self.touched):
                self.touched = max(self.touched, start + nbytes)
                if size == nbytes:
                    del self._starts[i], self._sizes[i]
                else:
                    self._starts[i] += nbytes
                    self._sizes[i] -= nbytes
                return start
        return None

    def join(self, start: int, nbytes: int) -> None:
        """Take a block back, and join it with the free stretches beside it."""
        i = bisect.bisect(self._starts, start)
        if i < len(self._starts) and start + nbytes == self._starts[i]:
            nbytes += self._sizes[i]
            del self._starts[i], self._sizes[i]
        if i and self._starts[i - 1] + self._sizes[i - 1] == start:
            self._sizes[i - 1] += nbytes
        else:
            self._starts.insert(i, start)
            self._sizes.insert(i, nbytes)


@final
class Block:
    """Page-aligned memory for one entry. `raw` is all of it, as bytes."""

    __slots__ = ("_region", "_start", "nbytes", "raw")

    def __init__(self, region: Region, start: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._region = region
        self._start = start
        self.raw: npt.NDArray[np.uint8] = np.ndarray((nbytes,), np.uint8, buffer=region.memory, offset=start)

    def array(self, spec: BufferSpec) -> npt.NDArray[Any]:
        """The entry in it, read-only: an array of its own, so that its end can be noticed; all views of it keep it."""
        memory, start = self._region.memory, self._start
        array: npt.NDArray[Any] = np.ndarray(spec.shape, spec.dtype, buffer=memory, offset=start)
        array.flags.writeable = False
        return array

    def free(self) -> None:
        """Let others have the memory."""
        self._region.join(self._start, self.nbytes)


@final
class BlockPool:
    """Blocks for rows: on their way, waiting for the program, and cooling; of at most `limit_bytes` together.

    A block that the program holds, lent by `lend`, does not count: it is the program's memory. It comes back when
    no Python object refers to the row any more and all computations dispatched by then have finished.

    Args:
        limit_bytes: How much memory the pool may have besides what is lent.
        clock: The computations that may read lent memory.
        lock: Locks the memory for the copy engines of a GPU, where there is one.
        lent_limit_bytes: What the program may have of rows, without padding; None for no limit.
    """

    def __init__(
        self, limit_bytes: int, clock: Clock, lock: PageLock | None = None, *, lent_limit_bytes: int | None = None
    ) -> None:
        self.limit_bytes = limit_bytes
        self._lent_limit_bytes = lent_limit_bytes
        #: Bytes of the rows that the program has, without padding.
        self.lent_bytes = 0
        self._clock = clock
        self._lock = lock
        #: Bytes of all blocks that are neither free nor lent.
        self.held_bytes = 0
        self._regions: list[Region] = []
        #: By the identity of the reference: its hash would be that of an array, which has none.
        self._lent: dict[int, tuple[weakref.ref[Any], Block, int]] = {}
        #: Rows that are gone, noticed by whichever thread dropped the last reference.
        self._gone: deque[weakref.ref[Any]] = deque()
        self._cooling: deque[tuple[int, Block]] = deque()

    def take(self, nbytes: int) -> Block | None:
        """A block of at least `nbytes`, or None if the limit leaves no room for one just now."""
        self._reclaim()
        size = _whole_pages(nbytes)
        return None if self.held_bytes + size > self.limit_bytes else self._cut(size)

    def take_at_any_cost(self, nbytes: int) -> Block:
        """A block of at least `nbytes`: wait for computations that hold one, and else go above the limit."""
        while True:
            block = self.take(nbytes)
            if block is not None:
                return block
            if not self._clock.wait_for_oldest():
                return self._cut(_whole_pages(nbytes))

    def give_back(self, block: Block) -> None:
        """Return a block that was not lent, and that nobody reads or writes."""
        self.held_bytes -= block.nbytes
        block.free()

    def lend(self, block: Block, spec: BufferSpec) -> npt.NDArray[Any]:
        """Hand the row in a block to the program; the block comes back by itself."""
        self._clock.admit(block.nbytes)
        self._await_room(spec.entry_bytes)
        self._clock.add_row(block.nbytes)
        row = block.array(spec)
        reference = weakref.ref(row, self._gone.append)
        self._lent[id(reference)] = (reference, block, spec.entry_bytes)
        self.lent_bytes += spec.entry_bytes
        self.held_bytes -= block.nbytes
        return row

    def _await_room(self, nbytes: int) -> None:
        """Wait until the program has room for a row: JAX lets go of arguments some time after results are ready."""
        limit_bytes = self._lent_limit_bytes
        if limit_bytes is None or self.lent_bytes + nbytes <= limit_bytes:
            return
        end_s = perf_counter() + _LETS_GO_WITHIN_S
        while True:
            self._clock.let_go()
            self._reclaim()
            if self.lent_bytes + nbytes <= limit_bytes:
                return
            if perf_counter() > end_s:
                # Something else keeps rows that the plan does not count, such as one that is used again soon.
                self._lent_limit_bytes = self.lent_bytes + nbytes
                return
            sleep(_LOOK_EVERY_S)

    def _cut(self, size: int) -> Block:
        self.held_bytes += size
        block = self._cut_from_regions(size, may_grow=False)
        if block is None:
            # Before more memory is taken: what has finished may still seem to be in use.
            self._clock.let_go()
            self._reclaim()
            block = self._cut_from_regions(size, may_grow=False) or self._cut_from_regions(size, may_grow=True)
        if block is not None:
            return block
        # The first, or what is lent took the room of the others. Where all of it is known it is one: between two, more
        # is lost of rows of several sizes. Locked memory is taken at once, the whole region.
        lent_bytes = 0 if self._lock is not None else self._lent_limit_bytes or 0
        region = Region(max(size, _whole_pages(self.limit_bytes + lent_bytes)), self._lock)
        self._regions.append(region)
        return Block(region, region.cut(size) or 0, size)

    def _cut_from_regions(self, size: int, *, may_grow: bool) -> Block | None:
        for region in self._regions:
            start = region.cut(size, may_grow=may_grow)
            if start is not None:
                return Block(region, start, size)
        return None

    def _reclaim(self) -> None:
        while self._gone:
            _, block, entry_bytes = self._lent.pop(id(self._gone.popleft()))
            self.lent_bytes -= entry_bytes
            self.held_bytes += block.nbytes
            # Every computation that reads the row has been dispatched by now.
            self._cooling.append((self._clock.dispatched, block))
        if self._cooling:
            self._clock.poll()
            while self._cooling and self._cooling[0][0] <= self._clock.finished:
                self.give_back(self._cooling.popleft()[1])


def _whole_pages(nbytes: int) -> int:
    return max(PAGE_BYTES, -(-nbytes // PAGE_BYTES) * PAGE_BYTES)
