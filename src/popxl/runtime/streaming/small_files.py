"""Small files beside rows: read whole, replaced whole; among them notes on the disk, which are read without trust."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

FILE_MODE = 0o600
# A link or a pipe under one of our names is not ours: never follow the one nor wait on the other.
SAFE_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK

#: A note on how the disk is used best: `popxl.runtime.streaming.disk_settings`.
SETTINGS_NAME = "disk-settings.json"
#: A note on how fast it moves rows: `popxl.observe.disk_probe`.
SPEEDS_NAME = "disk-speeds.json"
_MAX_NOTE_BYTES = 4096


def _temporary(note: str) -> str:
    return f"{note}.tmp"


#: All that notes may leave in a directory.
NOTE_FILES = frozenset(name for note in (SETTINGS_NAME, SPEEDS_NAME) for name in (note, _temporary(note)))


def read_regular(path: Path, limit_bytes: int) -> bytes | None:
    """What a file holds; None if it is no regular file or has more than ``limit_bytes``.

    Raises:
        OSError: It is missing, or cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | SAFE_OPEN)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            return None
        return file.read(limit_bytes)


def replace_file(directory: Path, name: str, temporary_name: str, content: bytes) -> None:
    """Put a synced file in place of another; its new name is on disk once the directory is synced, too.

    Raises:
        OSError: It cannot be written. The one before stands, and nothing is left.
    """
    temporary = directory / temporary_name
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE_OPEN, FILE_MODE), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(directory / name)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_note(directory: Path, name: str) -> Mapping[str, Any]:
    """The fields of a note; none if it is missing or is not one of ours. Anybody may have written their values.

    Example:
        >>> read_note(Path("/nowhere"), SETTINGS_NAME)
        {}
    """
    try:
        found: Any = json.loads(read_regular(directory / name, _MAX_NOTE_BYTES) or b"")
    except (OSError, ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def keep_note(directory: Path, name: str, fields: Mapping[str, object]) -> None:
    """Keep a note in place of the one before.

    Raises:
        OSError: It cannot be written.
    """
    replace_file(directory, name, _temporary(name), json.dumps(fields).encode())
