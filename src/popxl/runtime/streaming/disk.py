"""A queue of reads and writes, done by a few threads. They release the GIL while the disk works."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from .pieces import Request, Staging, join
from .tier import PAGE_BYTES

# Linux has both; elsewhere the page cache has to do.
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_O_TMPFILE = getattr(os, "O_TMPFILE", 0)
#: Of every array of JAX on a CPU.
JAX_ALIGNMENT_BYTES = 64


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """How a disk is used best.

    Args:
        threads: How many requests it gets at once.
        piece_bytes: How large they are at most; a multiple of the page size.
    """

    threads: int = 4
    piece_bytes: int = 4 << 20


DEFAULT_SETTINGS = DiskSettings()


@final
class DiskQueue:
    """Does requests in the background, large ones in pieces, small neighbours together.

    Any thread may hand in requests. They are begun in that order and may end in any.

    Args:
        settings: How many threads, and how large the pieces.
    """

    __slots__ = ("_threads", "_work", "settings")

    def __init__(self, settings: DiskSettings = DEFAULT_SETTINGS) -> None:
        self.settings = settings
        self._work: queue.SimpleQueue[Callable[[Staging], None] | None] = queue.SimpleQueue()
        # Daemons, though `close` always ends them, at the latest when the interpreter exits: it would wait for other
        # threads before it lets anybody close.
        self._threads = [
            threading.Thread(
                target=_serve, args=(self._work, settings.piece_bytes), name=f"popxl-disk-{number}", daemon=True
            )
            for number in range(settings.threads)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, requests: Iterable[Request]) -> None:
        """Hand in requests of one kind, all reads or all writes; each tells its owner how it ended."""
        for batch in join(requests, self.settings.piece_bytes):
            self._work.put(batch.perform)

    def run(self, work: Callable[[Staging], None]) -> None:
        """Hand in something else that takes time; it must not raise."""
        self._work.put(work)

    def is_own_thread(self) -> bool:
        """Whether the caller is one of the threads."""
        return threading.current_thread() in self._threads

    def close(self) -> None:
        """Do what has been handed in and end the threads. Not to be called by one of them."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


def _serve(work: queue.SimpleQueue[Callable[[Staging], None] | None], staging_bytes: int) -> None:
    staging = Staging(staging_bytes)
    while (item := work.get()) is not None:
        item(staging)
        staging.rest()
        # An idle thread keeps no memory of others.
        del item


def direct_alignment(directory: Path) -> int:
    """How memory must be aligned for I/O past the page cache, found out by trying with a file that has no name.

    Returns:
        64, what every array of JAX has, or the page size; 1 if the file system has no such I/O.
    """
    if not (_O_DIRECT and _O_TMPFILE):
        return 1
    try:
        fd = os.open(directory, os.O_RDWR | _O_TMPFILE | _O_DIRECT, 0o600)
    except OSError as error:
        # No files without a name, as on NFS, is not yet an answer.
        return PAGE_BYTES if error.errno in (errno.EOPNOTSUPP, errno.EISDIR) else 1
    try:
        memory = memoryview(mmap.mmap(-1, 2 * PAGE_BYTES))
        for alignment in (JAX_ALIGNMENT_BYTES, PAGE_BYTES):
            start = alignment % PAGE_BYTES
            try:
                if os.pwritev(fd, [memory[start : start + PAGE_BYTES]], 0) == PAGE_BYTES:
                    return alignment
            except OSError as error:
                if error.errno != errno.EINVAL:
                    return PAGE_BYTES  # a full disk, say: the first store will tell
        return 1
    finally:
        os.close(fd)


def make_direct(fd: int, alignment_bytes: int) -> bool:
    """Let an open file bypass the page cache from now on, unless ``alignment_bytes`` is 1; whether it does."""
    if alignment_bytes == 1:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | _O_DIRECT)
    except OSError:
        return False
    return True
