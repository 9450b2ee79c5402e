"""How fast rows of a program's sizes are read from a directory's disk, and written to it, by the engine itself.

What was found is kept beside the data, as `popxl.runtime.streaming.disk_settings` keeps what suits the disk.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, final

import numpy as np

from popxl.plan.costs import Channel, Limits, Line
from popxl.plan.lookahead import ComingLoad, ComingStore, Walk
from popxl.runtime.completion import Completion
from popxl.runtime.overlap import OverlappedTransfers
from popxl.runtime.streaming.blocks import BlockPool, Region
from popxl.runtime.streaming.disk import JAX_ALIGNMENT_BYTES
from popxl.runtime.streaming.disk_settings import cached
from popxl.runtime.streaming.room import existing
from popxl.runtime.streaming.small_files import SPEEDS_NAME, keep_note, read_note
from popxl.runtime.streaming.tier import BufferSpec
from popxl.runtime.streaming.transfer import Transfer

from .probe import median_s
from .scratch_tier import ScratchTier

_VERSION = 2
#: Of each size, rows of about so many bytes are moved, so many times.
_BYTES, _MOST_ROWS, _TIMES = 96 << 20, 256, 3
#: Values that are stored take so much memory: more than a processor's own caches.
_VALUES_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class DiskCosts:
    """What moving rows costs.

    Args:
        read: Reading.
        write: Writing.
        row_s: Seconds of the thread of the run for each row.
    """

    read: Channel
    write: Channel
    row_s: float


@dataclass(frozen=True, slots=True)
class DiskUse:
    """How a program moves rows.

    Args:
        sizes: Bytes of its rows, distinct ones.
        limits: How much memory it may use for them.
        checksums: Whether digests are taken.
    """

    sizes: tuple[int, ...]
    limits: Limits
    checksums: bool

    @property
    def probed(self) -> tuple[int, ...]:
        """The sizes that are measured: the smallest and the largest."""
        return tuple(sorted({min(self.sizes), max(self.sizes)}))


def probe_disk(directory: Path, use: DiskUse) -> DiskCosts:
    """Measure a disk, or take what was measured before and kept in the directory.

    Args:
        directory: Of a file tier; it need not exist, and is not made.
        use: How a program moves rows.

    Raises:
        OSError: There is no room for a few hundred MiB, or the directory cannot be written to.
    """
    words = {
        "version": _VERSION, "sizes": list(use.probed), "pool_limit": use.limits.pool_bytes,
        "write_limit": use.limits.write_bytes, "checksums": use.checksums,
    }  # fmt: skip
    found = _kept(directory, words)
    if found is None:
        found = _measured(existing(directory), use)
        if directory.is_dir():
            with contextlib.suppress(OSError):
                keep_note(directory, SPEEDS_NAME, {**words, **asdict(found)})
    return found


def _measured(directory: Path, use: DiskUse) -> DiskCosts:
    reads: list[tuple[int, float]] = []
    writes: list[tuple[int, float]] = []
    alone: list[tuple[int, float, float]] = []
    row_s = 0.0
    for size in use.probed:
        with Rows(directory, use, size) as rows:
            rows.store()  # the first time finds room in the file
            rows.load()
            thread_s = time.thread_time()
            writes.append((rows.padded_bytes, median_s(rows.store, _TIMES) / rows.count))
            reads.append((rows.padded_bytes, median_s(rows.load, _TIMES) / rows.count))
            thread_s = (time.thread_time() - thread_s) / (2 * _TIMES * rows.count)
            row_s = min(row_s or thread_s, thread_s)
            alone.append((rows.padded_bytes, median_s(rows.load_one, 9), median_s(rows.store_one, 9)))
    return DiskCosts(
        Channel(_line(reads), _line([(n, r) for n, r, _ in alone])),
        Channel(_line(writes), _line([(n, w) for n, _, w in alone])),
        row_s,
    )


def _line(points: Sequence[tuple[int, float]]) -> Line:
    """The line through one or two points, with no part of it negative."""
    (small, small_s), (large, large_s) = points[0], points[-1]
    if large == small:
        return Line(0.0, large_s / max(1, large))
    slope = max(0.0, (large_s - small_s) / (large - small))
    fixed_s = max(0.0, small_s - slope * small)
    # The large rows are most of the bytes: the line goes through them.
    return Line(fixed_s, max(0.0, (large_s - fixed_s) / large))


@final
class Rows:
    """Rows of one size in a file without a name, moved by the engine.

    Args:
        directory: It exists.
        use: How a program moves rows.
        size: Bytes of a row.
    """

    def __init__(self, directory: Path, use: DiskUse, size: int) -> None:
        self.count = max(4, min(_MOST_ROWS, _BYTES // max(1, size)))
        self._spec = BufferSpec(1, (size,), np.dtype(np.uint8), self.count)
        self.padded_bytes = self._spec.padded_bytes
        self._tier = ScratchTier(directory, cached(directory), checksums=use.checksums)
        self._limits = use.limits
        # As much memory as values that wait may take would be held by a run, too; here a few stand for all.
        self._values = [_value(size) for _ in range(max(1, min(self.count, _VALUES_BYTES // self.padded_bytes)))]
        #: Rows moved so far.
        self.moved = 0

    def __enter__(self) -> Rows:
        self._tier.open([self._spec])
        pool = BlockPool(max(self._limits.pool_bytes, self.padded_bytes), Completion())
        self._transfers = OverlappedTransfers(self._tier, [self._spec], pool, self._limits.write_bytes)
        self._pool = pool
        return self

    def __exit__(self, *exc: object) -> None:
        self._transfers.close()
        self._tier.close()

    def load(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Read all rows, or those until somebody says that it is over."""
        self._transfers.begin(_walk(ComingLoad(1, entry) for entry in range(self.count)))
        for entry in range(self.count):
            if is_over():
                break
            self._transfers.load(1, entry)
            self.moved += 1
        self._transfers.end()

    def store(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Write all rows, or those until somebody says that it is over."""
        self._transfers.begin(_walk(ComingStore(1, entry) for entry in range(self.count)))
        for entry in range(self.count):
            if is_over():
                break
            self._transfers.store(1, entry, self._values[entry % len(self._values)])
            self.moved += 1
        self._transfers.end()
        self._transfers.drain()

    def load_one(self) -> None:
        """Read a row, and nothing else."""
        block = self._pool.take_at_any_cost(self.padded_bytes)
        transfer = Transfer(self._spec, 0, block.raw)
        self._tier.start_reads([transfer])
        transfer.wait()
        self._pool.give_back(block)

    def store_one(self) -> None:
        """Write a row, and nothing else."""
        transfer = Transfer(self._spec, 0, self._values[0])
        self._tier.start_writes([transfer])
        transfer.wait()


def _value(size: int) -> np.ndarray[Any, Any]:
    """A value to store, aligned as those of JAX are, and no more."""
    value = np.ndarray((size,), np.uint8, buffer=Region(size + JAX_ALIGNMENT_BYTES).memory, offset=JAX_ALIGNMENT_BYTES)
    value.fill(0xA5)
    return value


def _walk(coming: Iterable[ComingLoad | ComingStore]) -> Walk:
    yield from coming


# What computations and rows take from each other


def with_contention(
    directory: Path, use: DiskUse, costs: DiskCosts, compute: Callable[[], float], enough_s: float = 0.5
) -> DiskCosts:
    """Add what compute loses while rows are moved, and what moving them loses.

    Args:
        directory: Of a file tier.
        use: How a program moves rows.
        costs: Those of the disk alone.
        compute: Runs a computation; returns its seconds.
        enough_s: How long to compute, in seconds; at least three computations.
    """
    lost: dict[str, list[tuple[int, float]]] = {"read": [], "write": []}
    own = {"read": 0.0, "write": 0.0}
    for size in use.probed:
        with Rows(existing(directory), use, size) as rows:
            rows.store()
            for name, move, channel in (("read", rows.load, costs.read), ("write", rows.store, costs.write)):
                lost_s, own[name] = _losses(compute, move, rows, channel, enough_s)  # of the largest rows, at the end
                lost[name].append((rows.padded_bytes, lost_s))
    return replace(
        costs,
        read=replace(costs.read, contention=_line(lost["read"]), own_loss=own["read"]),
        write=replace(costs.write, contention=_line(lost["write"]), own_loss=own["write"]),
    )


def _losses(
    compute: Callable[[], float],
    move: Callable[[Callable[[], bool]], None],
    rows: Rows,
    channel: Channel,
    enough_s: float,
) -> tuple[float, float]:
    """Seconds of compute that each row costs, and the share of its speed that the disk loses."""
    alone: list[float] = []
    beside: list[tuple[float, int]] = []
    while len(beside) < 3 or sum(s for s, _ in beside) < enough_s:
        alone.append(compute())
        over = threading.Event()
        thread = threading.Thread(target=_keep_moving, args=(move, over), daemon=True)
        thread.start()
        try:
            compute()  # until the disk is at full speed
            before, begin_s = rows.moved, perf_counter()
            seconds = compute()
            # What `compute` prepares between its computations does not count.
            share = seconds / (perf_counter() - begin_s)
            beside.append((seconds, round((rows.moved - before) * share)))
        finally:
            over.set()
            thread.join()
    beside_s, moved = sum(s for s, _ in beside), sum(n for _, n in beside)
    if not moved:
        return 0.0, 0.0
    lost_s = beside_s - statistics.median(alone) * len(beside)
    slowed = 1 - moved * channel.queued.seconds(rows.padded_bytes) / beside_s
    return max(0.0, lost_s / moved), min(0.9, max(0.0, slowed))


def _keep_moving(move: Callable[[Callable[[], bool]], None], over: threading.Event) -> None:
    while not over.is_set():
        move(over.is_set)


# Keeping what was found


def _kept(directory: Path, words: dict[str, Any]) -> DiskCosts | None:
    fields = read_note(directory, SPEEDS_NAME)
    if any(fields.get(name) != value for name, value in words.items()):
        return None
    try:
        return DiskCosts(_channel(fields["read"]), _channel(fields["write"]), _number(fields["row_s"]))
    except (ValueError, KeyError, TypeError):
        return None


def _channel(fields: Any) -> Channel:
    return Channel(_line_of(fields["queued"]), _line_of(fields["alone"]))


def _line_of(fields: Any) -> Line:
    return Line(_number(fields["fixed_s"]), _number(fields["s_per_byte"]))


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e6:
        raise ValueError(value)
    return float(value)
