"""Entries cut into pieces for several threads, and small neighbours joined into one vectored request."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import xxhash

from .blocks import Region
from .tier import PAGE_BYTES

# An entry takes two vectors at most, its whole pages and its last one; the system takes 1024 in one call.
_MAX_JOINED = 256
# A program that only reads has no use for the memory that writing its weights took.
_IDLE_ROUNDS = 64
# What direct I/O moved in part it moved in whole sectors.
_SECTOR_BYTES = 512

#: Told once how a request ended: with an error, or with the digest of the entry's bytes where one was wanted.
OnDone = Callable[[BaseException | None, int | None], None]


class SlabTruncatedError(Exception):
    """A slab ends before bytes that it must have."""


@dataclass(frozen=True, slots=True)
class Slab:
    """An open slab file.

    Args:
        fd: Its descriptor.
        path: Its path, for messages.
        size_bytes: The size that it must have.
        alignment_bytes: Of memory that the system transfers without the page cache; 1 where it uses the page cache.
    """

    fd: int
    path: Path
    size_bytes: int
    alignment_bytes: int = 1


@final
class Request:
    """One entry on its way between memory and a slab, in one piece or several.

    Threads: each piece is moved by one thread, and whichever completes the request tells its owner. Digests are taken
    in the order of the bytes by whichever thread finds the next piece ready, while it still is in the cache.

    Args:
        slab: The file.
        offset: Where the entry starts in it, at a page.
        raw: The entry's memory, uint8. To read into: whole pages, at a page.
        nbytes: Bytes of the entry, not 0.
        is_write: Which way.
        is_hashed: Whether the digest is wanted.
        on_done: Told how it ended, by a thread of the queue. It must not raise.
        on_begin: Told that the first bytes will be moved, where somebody wants to know.
    """

    __slots__ = (
        "_error",
        "_error_index",
        "_hashed",
        "_hasher",
        "_is_hashing",
        "_left",
        "_lock",
        "_on_done",
        "_ready",
        "_starts",
        "digest",
        "is_hashed",
        "is_straight",
        "is_write",
        "memory",
        "nbytes",
        "offset",
        "on_begin",
        "padded_bytes",
        "raw",
        "slab",
    )

    def __init__(
        self,
        slab: Slab,
        offset: int,
        raw: npt.NDArray[np.uint8],
        nbytes: int,
        *,
        is_write: bool,
        is_hashed: bool,
        on_done: OnDone,
        on_begin: Callable[[], None] | None = None,
    ) -> None:
        self.slab = slab
        self.offset = offset
        self.raw = raw
        self.memory = raw.data
        self.nbytes = nbytes
        self.padded_bytes = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        self.is_write = is_write
        self.is_hashed = is_hashed
        self.digest: int | None = None
        #: Whether the system can transfer whole pages of the memory without a copy.
        self.is_straight = not is_write or address(raw) % slab.alignment_bytes == 0
        self.on_begin = on_begin
        self._on_done = on_done
        self._starts: Sequence[int] = ()

    def cut(self, piece_bytes: int) -> Generator[Segment]:
        """The request as pieces of at most ``piece_bytes``, equal ones, of whole pages."""
        count = -(-self.padded_bytes // piece_bytes)
        if count > 1:
            pages = -(-self.padded_bytes // (count * PAGE_BYTES))
            self._starts = (*range(0, self.padded_bytes, pages * PAGE_BYTES), self.padded_bytes)
            count = self._left = len(self._starts) - 1
            self._lock = threading.Lock()
            self._error: BaseException | None = None
            self._error_index = count
            self._hasher = xxhash.xxh3_64()
            self._hashed = 0
            self._is_hashing = False
            self._ready = [False] * count
            for index in range(count):
                yield Segment(self, index, self._starts[index], self._starts[index + 1])
        else:
            yield Segment(self, 0, 0, self.padded_bytes)

    def digest_piece(self, index: int) -> None:
        """Take a piece, whose bytes are there, into the digest; later if an earlier one is still missing."""
        if not self.is_hashed:
            return
        if not self._starts:
            self.digest = xxhash.xxh3_64_intdigest(self.memory[: self.nbytes])
            return
        with self._lock:
            self._ready[index] = True
            if self._is_hashing:
                return
            self._is_hashing = True
        while True:
            with self._lock:
                following = self._hashed
                if following == len(self._ready) or not self._ready[following]:
                    self._is_hashing = False
                    return
            stop = min(self._starts[following + 1], self.nbytes)
            self._hasher.update(self.memory[self._starts[following] : stop])
            self._hashed += 1

    def complete_piece(self, index: int, error: BaseException | None) -> None:
        """Say that a piece has been moved, or why not; after `digest_piece`."""
        if not self._starts:
            self._on_done(error, self.digest if error is None else None)
            return
        with self._lock:
            self._left -= 1
            if error is not None and index < self._error_index:
                self._error, self._error_index = error, index
            is_last = self._left == 0
        if is_last:
            # Pieces that another thread was digesting are not complete yet, so none is missing now.
            digest = self._hasher.intdigest() if self.is_hashed and self._error is None else None
            self._on_done(self._error, digest)


class Segment(NamedTuple):
    """Bytes ``start`` to ``stop`` of a request, padding included."""

    request: Request
    piece: int
    start: int
    stop: int


def address(raw: npt.NDArray[np.uint8]) -> int:
    """Where memory starts."""
    return raw.__array_interface__["data"][0]


@final
class Staging:
    """One thread's page-aligned memory, for what the system cannot take from where it lies."""

    __slots__ = ("_array", "_idle_count", "_memory", "_nbytes", "_used")

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._used = 0
        self._array: npt.NDArray[np.uint8] | None = None
        self._memory: memoryview | None = None
        self._idle_count = 0

    def clear(self) -> None:
        """Nobody reads any more what was put in."""
        self._used = 0

    def rest(self) -> None:
        """The thread has done one more thing: after many without use, the memory goes back to the system."""
        self._idle_count += 1
        if self._idle_count == _IDLE_ROUNDS:
            self._array = self._memory = None

    def put(self, raw: npt.NDArray[np.uint8], padded_bytes: int) -> memoryview:
        """A copy of ``raw``, with zeros after it."""
        array = self._array
        if array is None or self._memory is None:
            # NumPy copies without holding up the other threads, a memoryview does not. Huge pages: from scattered small
            # ones the disk takes half as many bytes a second.
            array = self._array = np.frombuffer(Region(self._nbytes).memory, np.uint8)
            self._memory = array.data
        start, stop = self._used, self._used + padded_bytes
        array[start : start + raw.size] = raw
        array[start + raw.size : stop] = 0
        self._used, self._idle_count = stop, 0
        return self._memory[start:stop]


@final
class Batch:
    """Segments that follow one another in a file, all read or all written: one call to the system."""

    __slots__ = ("segments",)

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments

    def perform(self, staging: Staging) -> None:
        """Move the bytes and tell each request; never raises."""
        for request, index, _, _ in self.segments:
            if request.on_begin is not None and index == 0:
                request.on_begin()
        try:
            if self.segments[0].request.is_write:
                self._write(staging)
            else:
                self._read()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the request hears of it
            if len(self.segments) == 1:
                request, index, _, _ = self.segments[0]
                request.complete_piece(index, error)
                return
            # One by one, so that only those fail which cannot be helped. Doing the others again does no harm.
            for segment in self.segments:
                Batch((segment,)).perform(staging)

    def _read(self) -> None:
        first = self.segments[0]
        slab, offset = first.request.slab, first.request.offset + first.start
        targets = [request.memory[start:stop] for request, _, start, stop in self.segments]
        found_bytes = _move(os.preadv, slab, targets, offset)
        for request, index, start, stop in self.segments:
            position = request.offset + start - offset
            missing_bytes = position + min(stop, request.nbytes) - start - found_bytes
            error: BaseException | None = None
            if missing_bytes > 0:
                entry_found = max(0, min(stop, request.nbytes) - missing_bytes)
                error = SlabTruncatedError(
                    f"Expected {request.nbytes} bytes at offset {request.offset}, found {max(start, entry_found)}."
                )
            else:
                request.digest_piece(index)
            request.complete_piece(index, error)

    def _write(self, staging: Staging) -> None:
        first = self.segments[0]
        slab, offset = first.request.slab, first.request.offset + first.start
        size_bytes = os.fstat(slab.fd).st_size
        if size_bytes < slab.size_bytes:
            # Writing would extend the file again and hide that rows are lost.
            raise SlabTruncatedError(f"Expected a file of {slab.size_bytes} bytes, found {size_bytes}.")
        staging.clear()
        sources: list[memoryview] = []
        for request, _, start, stop in self.segments:
            end = min(stop, request.nbytes)
            straight_end = end - end % PAGE_BYTES if request.is_straight else start
            if straight_end > start:
                sources.append(request.memory[start:straight_end])
            if straight_end < stop:
                sources.append(staging.put(request.raw[straight_end:end], stop - straight_end))
        wanted_bytes = self.segments[-1].request.offset + self.segments[-1].stop - offset
        done_bytes = _move(os.pwritev, slab, sources, offset)
        if done_bytes < wanted_bytes:
            raise OSError(errno.EIO, f"wrote {done_bytes} of {wanted_bytes} bytes and no more")
        for request, index, _, _ in self.segments:
            # Only now: the disk does not wait for the digest, it does the next threads' pieces meanwhile.
            request.digest_piece(index)
            request.complete_piece(index, None)


def join(requests: Iterable[Request], piece_bytes: int) -> Generator[Batch]:
    """The batches that do ``requests``, each of at most ``piece_bytes``: those of a file together, in their order."""
    by_slab: dict[int, list[Request]] = {}
    for request in requests:
        by_slab.setdefault(request.slab.fd, []).append(request)
    for together in by_slab.values():
        yield from _join_neighbours(together, piece_bytes)


def _join_neighbours(requests: Iterable[Request], piece_bytes: int) -> Generator[Batch]:
    """The batches that do requests of one file, in their order."""
    run: deque[Segment] = deque()
    start = stop = 0  # of the run, in its file
    for request in requests:
        if request.padded_bytes * 2 > piece_bytes:
            if run:
                yield Batch(tuple(run))
                run.clear()
            for segment in request.cut(piece_bytes):
                yield Batch((segment,))
            continue
        end = request.offset + request.padded_bytes
        is_full = len(run) == _MAX_JOINED or stop - start + request.padded_bytes > piece_bytes
        if run and (is_full or (request.offset != stop and end != start)):
            yield Batch(tuple(run))
            run.clear()
        segment = Segment(request, 0, 0, request.padded_bytes)
        if not run:
            run.append(segment)
            start, stop = request.offset, end
        elif request.offset == stop:
            run.append(segment)
            stop = end
        else:  # a loop that runs backwards through a buffer
            run.appendleft(segment)
            start = request.offset
    if run:
        yield Batch(tuple(run))


# Python itself retries a call that a signal interrupts (PEP 475); what is left to us is doing part of the work,
# which Linux does from 2 GiB on and at the end of a file, and network file systems when they please.
def _move(
    call: Callable[[int, Sequence[memoryview], int], int], slab: Slab, memory: Sequence[memoryview], offset: int
) -> int:
    """Fill or empty all of ``memory`` at ``offset``; returns the bytes moved, fewer only where there is no going on."""
    wanted_bytes = sum(map(len, memory))
    done_bytes = call(slab.fd, memory, offset)
    while done_bytes < wanted_bytes:
        # Direct I/O goes on at a sector only.
        resume = done_bytes if slab.alignment_bytes == 1 else done_bytes - done_bytes % _SECTOR_BYTES
        end = resume + call(slab.fd, _after(memory, resume), offset + resume)
        if end <= done_bytes:
            return done_bytes
        done_bytes = end
    return done_bytes


def _after(memory: Sequence[memoryview], nbytes: int) -> list[memoryview]:
    """``memory`` without its first ``nbytes``."""
    rest: list[memoryview] = []
    for view in memory:
        if nbytes < len(view):
            rest.append(view[nbytes:])
        nbytes = max(0, nbytes - len(view))
    return rest
