"""How a disk is used best, measured once and kept beside what it stores."""

from __future__ import annotations

import logging
import mmap
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .disk import DEFAULT_SETTINGS, DiskQueue, DiskSettings, direct_alignment
from .pieces import Request, Slab
from .small_files import SETTINGS_NAME, keep_note, read_note
from .tier import PAGE_BYTES

_MAX_THREADS = 64
_MAX_PIECE_BYTES = 64 << 20

CANDIDATES = tuple(DiskSettings(threads, piece_bytes) for threads in (1, 2, 4) for piece_bytes in (1 << 20, 4 << 20))
_PROBE_BYTES = 32 << 20
#: Programs with fewer bytes of rows do not win back the time that `probe` takes.
PROBE_FROM_BYTES = 1 << 30
_LOGGER = logging.getLogger("popxl")
_ROW_BYTES = 8 << 20


def cached(directory: Path) -> DiskSettings:
    """The settings that `probe` left in a directory; the defaults if there are none that make sense.

    Example:
        >>> cached(Path("/nowhere"))
        DiskSettings(threads=4, piece_bytes=4194304)
    """
    return _found(directory) or DEFAULT_SETTINGS


def chosen(directory: Path, total_bytes: int) -> DiskSettings:
    """The settings for a file tier: those that `probe` has left, or finds now where it is worth its time.

    Args:
        directory: Of the file tier.
        total_bytes: Of all rows of the program.
    """
    found = _found(directory)
    if found is not None or total_bytes < PROBE_FROM_BYTES:
        return found or DEFAULT_SETTINGS
    try:
        return probe(directory)
    except OSError as error:  # a full disk, say: the first store will tell
        _LOGGER.info("What suits the disk of %s could not be measured: %s", directory, error)
        return DEFAULT_SETTINGS


def _found(directory: Path) -> DiskSettings | None:
    fields = read_note(directory, SETTINGS_NAME)
    threads, piece_bytes = fields.get("threads"), fields.get("piece_bytes")
    if type(threads) is not int or type(piece_bytes) is not int:
        return None
    if (
        not 1 <= threads <= _MAX_THREADS
        or not PAGE_BYTES <= piece_bytes <= _MAX_PIECE_BYTES
        or piece_bytes % PAGE_BYTES
    ):
        return None
    return DiskSettings(threads, piece_bytes)


def probe(directory: Path, *, limit_s: float = 2.0) -> DiskSettings:
    """Measure what suits the disk of a directory, with a file that has no name, and keep the answer there.

    Args:
        directory: Of a file tier that moves nothing meanwhile.
        limit_s: How long to measure at most, in seconds, but each candidate once.

    Returns:
        The settings that moved most bytes a second, written and read; the defaults where the file system has no
        direct I/O, since then it is the page cache that counts.

    Raises:
        OSError: There is no room for 32 MiB, or the directory cannot be written to.
    """
    alignment = direct_alignment(directory)
    if alignment == 1:
        return DEFAULT_SETTINGS
    fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_DIRECT, 0o600)
    try:
        os.ftruncate(fd, _PROBE_BYTES)
        slab = Slab(fd, directory, _PROBE_BYTES, alignment)
        _seconds(slab, DEFAULT_SETTINGS)  # the first writes find room in the file
        times = dict.fromkeys(CANDIDATES, float("inf"))
        end = time.monotonic() + limit_s
        while True:
            for settings in CANDIDATES:
                times[settings] = min(times[settings], _seconds(slab, settings))
                if time.monotonic() > end and max(times.values()) < float("inf"):
                    break
            if time.monotonic() > end:
                break
    finally:
        os.close(fd)
    best = min(CANDIDATES, key=lambda settings: times[settings])
    keep_note(directory, SETTINGS_NAME, asdict(best))
    return best


def _seconds(slab: Slab, settings: DiskSettings) -> float:
    """How long it takes to write and read the whole file."""
    memory = np.frombuffer(mmap.mmap(-1, _ROW_BYTES), np.uint8)
    memory.fill(0xA5)
    disk = DiskQueue(settings)
    try:
        start_s = time.monotonic()
        move_all(disk, slab, memory, is_write=True)
        move_all(disk, slab, memory, is_write=False)
        return time.monotonic() - start_s
    finally:
        disk.close()


def move_all(disk: DiskQueue, slab: Slab, memory: npt.NDArray[np.uint8], *, is_write: bool) -> None:
    """Write or read the whole of a file, in rows that all lie at one place in memory, and wait for it.

    Args:
        disk: What moves them.
        slab: The file, of a multiple of the size of a row.
        memory: Of a row: whole pages, at a page.
        is_write: Which way.

    Raises:
        OSError: The disk refuses.
    """
    left, errors = threading.Semaphore(0), list[BaseException]()

    def on_done(error: BaseException | None, digest: int | None) -> None:
        del digest
        if error is not None:
            errors.append(error)
        left.release()

    offsets = range(0, slab.size_bytes, memory.nbytes)
    disk.start(
        Request(slab, offset, memory, memory.nbytes, is_write=is_write, is_hashed=False, on_done=on_done)
        for offset in offsets
    )
    for _ in offsets:
        left.acquire()
    if errors:
        raise errors[0]
