"""How a disk is used best, measured once and kept beside what it stores."""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from .disk import DEFAULT_SETTINGS, DiskQueue, DiskSettings, direct_alignment
from .pieces import Request, Slab
from .tier import PAGE_BYTES

SETTINGS_NAME = "disk-settings.json"
#: What `popxl.observe.disk_probe` leaves there.
SPEEDS_NAME = "disk-speeds.json"
_TEMPORARY_NAME = SETTINGS_NAME + ".tmp"
_MAX_SETTINGS_BYTES = 4096
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
    try:
        fd = os.open(directory / SETTINGS_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            found: Any = json.loads(file.read(_MAX_SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    fields = cast("dict[str, object]", found)
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
    _keep(directory, best)
    return best


def _seconds(slab: Slab, settings: DiskSettings) -> float:
    """How long it takes to write and read the whole file."""
    memory = np.frombuffer(mmap.mmap(-1, _ROW_BYTES), np.uint8)
    memory.fill(0xA5)
    left, errors = threading.Semaphore(0), list[BaseException]()

    def on_done(error: BaseException | None, digest: int | None) -> None:
        del digest
        if error is not None:
            errors.append(error)
        left.release()

    disk = DiskQueue(settings)
    try:
        start = time.monotonic()
        for is_write in (True, False):
            offsets = range(0, _PROBE_BYTES, _ROW_BYTES)
            disk.start(
                Request(slab, offset, memory, _ROW_BYTES, is_write=is_write, is_hashed=False, on_done=on_done)
                for offset in offsets
            )
            for _ in offsets:
                left.acquire()
        elapsed = time.monotonic() - start
    finally:
        disk.close()
    if errors:
        raise errors[0]
    return elapsed


def _keep(directory: Path, settings: DiskSettings) -> None:
    temporary = directory / _TEMPORARY_NAME
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump({"threads": settings.threads, "piece_bytes": settings.piece_bytes}, file)
    temporary.rename(directory / SETTINGS_NAME)
