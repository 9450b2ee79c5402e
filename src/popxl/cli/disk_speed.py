"""``popxl doctor --measure``: how fast a disk writes and reads, with a file that leaves nothing behind."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import numpy as np

from popxl.runtime.streaming.disk import DEFAULT_SETTINGS, DiskQueue, direct_alignment, make_direct
from popxl.runtime.streaming.disk_settings import move_all
from popxl.runtime.streaming.pieces import Slab
from popxl.runtime.streaming.room import free_bytes
from popxl.runtime.streaming.tier import PAGE_BYTES
from popxl.units import format_bytes

from .file_system import scratch_file
from .finding import Finding, Level

_FILE_BYTES = 256 << 20
#: Large, so that what is moved at a time lies at several places.
_ROW_BYTES = 32 << 20
_ROUNDS = 3


def speed_finding(place: Path) -> Finding:
    """Write and read 256 MiB three times, as a session does by default: four threads, 4 MiB at a time.

    Args:
        place: A directory. It exists.

    Raises:
        OSError: The disk refuses.
    """
    free = free_bytes(place)
    if free is not None and free < 2 * _FILE_BYTES:
        fact = f"not measured: it takes {format_bytes(_FILE_BYTES)}, and {format_bytes(free)} are free"
        return Finding(Level.WARN, "speed", fact, "free space on that disk")
    with scratch_file(place) as (fd, _):
        alignment = direct_alignment(place)
        if not make_direct(fd, alignment):
            fact = "not measured: without direct I/O it would be the page cache's"
            return Finding(Level.WARN, "speed", fact, "see direct I/O above")
        os.ftruncate(fd, _FILE_BYTES)
        write_s, read_s = _least_seconds(Slab(fd, place, _FILE_BYTES, alignment))
    written, read = (f"{_FILE_BYTES / seconds / 1e9:.2f} GB/s" for seconds in (write_s, read_s))
    return Finding(Level.OK, "speed", f"{written} written, {read} read, the best of {_ROUNDS} times 256 MiB")


def _least_seconds(slab: Slab) -> tuple[float, float]:
    memory = np.frombuffer(mmap.mmap(-1, _ROW_BYTES), np.uint8)
    memory.reshape(-1, PAGE_BYTES)[:] = np.frombuffer(os.urandom(PAGE_BYTES), np.uint8)
    write_s: list[float] = []
    read_s: list[float] = []
    disk = DiskQueue(DEFAULT_SETTINGS)
    try:
        move_all(disk, slab, memory, is_write=True)  # the first time finds room in the file
        for _ in range(_ROUNDS):
            begin_s = time.perf_counter()
            move_all(disk, slab, memory, is_write=True)
            os.fdatasync(slab.fd)
            written_s = time.perf_counter()
            move_all(disk, slab, memory, is_write=False)
            write_s.append(written_s - begin_s)
            read_s.append(time.perf_counter() - written_s)
    finally:
        disk.close()
    return min(write_s), min(read_s)
