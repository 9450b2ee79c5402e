"""Whether a disk has room for rows that are not written yet."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from popxl.units import format_bytes

from .pieces import Slab

_LOGGER = logging.getLogger("popxl")
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are
FULL = (errno.ENOSPC, errno.EDQUOT)


def existing(directory: Path) -> Path:
    """What there is at the path of a directory, or at the nearest one above it: it need not be a directory.

    Example:
        >>> existing(Path("/nowhere/rows"))
        PosixPath('/')
    """
    return next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))


def free_bytes(path: Path) -> int | None:
    """How much a user may still write to the disk of a path, quotas aside; None if the system does not tell.

    Example:
        >>> free_bytes(Path("/nowhere"))
    """
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def warn_unless_room(directory: Path, slabs: Iterable[Slab]) -> None:
    """Say so if the slabs cannot all be filled. No error: a program need not write every row.

    Args:
        directory: Where they are.
        slabs: Open, of their full size.
    """
    statuses = [(slab, os.fstat(slab.fd)) for slab in slabs]
    needed = sum(max(0, slab.size_bytes - status.st_blocks * _BLOCK_BYTES) for slab, status in statuses)
    free = free_bytes(directory)
    if free is not None and needed > free:
        _LOGGER.warning(
            "The rows in %s take %s more once all of them are written, and the disk has %s free: a store may fail.",
            directory,
            format_bytes(needed),
            format_bytes(free),
        )


def shortage(slab: Slab, needed_bytes: int) -> str:
    """What to add to the error of a disk that is full."""
    free = free_bytes(slab.path)
    return (
        "" if free is None else f" It takes {format_bytes(needed_bytes)}, and the disk has {format_bytes(free)} free."
    )
