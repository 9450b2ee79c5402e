"""``popxl doctor --measure``: how fast a disk writes and reads, with a file that leaves nothing behind."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from popxl.runtime.streaming.disk import DEFAULT_SETTINGS, direct_alignment, make_direct
from popxl.units import format_bytes

from .file_system import scratch_file
from .finding import Finding, Level

_FILE_BYTES = 256 << 20
_ROUNDS = 3


def speed_finding(place: Path) -> Finding:
    """Write and read 256 MiB three times, as a session does by default: four threads, 4 MiB at a time.

    Args:
        place: A directory. It exists.

    Raises:
        OSError: The disk refuses.
    """
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    if free < 2 * _FILE_BYTES:
        fact = f"not measured: it takes {format_bytes(_FILE_BYTES)}, and {format_bytes(free)} are free"
        return Finding(Level.WARN, "speed", fact, "free space on that disk")
    with scratch_file(place) as (fd, _):
        if not make_direct(fd, direct_alignment(place)):
            fact = "not measured: without direct I/O it would be the page cache's"
            return Finding(Level.WARN, "speed", fact, "see direct I/O above")
        os.ftruncate(fd, _FILE_BYTES)
        write_s, read_s = _least_seconds(fd)
    written, read = (f"{_FILE_BYTES / seconds / 1e9:.2f} GB/s" for seconds in (write_s, read_s))
    return Finding(Level.OK, "speed", f"{written} written, {read} read, the best of {_ROUNDS} times 256 MiB")


def _least_seconds(fd: int) -> tuple[float, float]:
    piece_bytes = DEFAULT_SETTINGS.piece_bytes
    offsets = range(0, _FILE_BYTES, piece_bytes)
    with mmap.mmap(-1, piece_bytes) as source, ThreadPoolExecutor(DEFAULT_SETTINGS.threads) as pool:
        source.write(os.urandom(4096) * (piece_bytes // 4096))
        targets = [mmap.mmap(-1, piece_bytes) for _ in offsets[: 2 * DEFAULT_SETTINGS.threads]]

        def write_at(offset: int) -> int:
            return os.pwritev(fd, [source], offset)

        def read_at(offset: int) -> int:
            return os.preadv(fd, [targets[offset // piece_bytes % len(targets)]], offset)

        def write() -> None:
            _expect(pool.map(write_at, offsets), piece_bytes)
            os.fdatasync(fd)

        def read() -> None:
            _expect(pool.map(read_at, offsets), piece_bytes)

        write()  # the first time finds room in the file
        seconds = [(_timed(write), _timed(read)) for _ in range(_ROUNDS)]
        return min(pair[0] for pair in seconds), min(pair[1] for pair in seconds)


def _expect(counts: Iterable[int], piece_bytes: int) -> None:
    if any(count != piece_bytes for count in list(counts)):
        raise OSError(errno.EIO, "the disk moved less than it was asked to")


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
