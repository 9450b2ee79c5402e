"""Which file system a directory is on, and a file of it that leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_LOCKS = Path("/proc/locks")
_ESCAPE = re.compile(r"\\([0-7]{3})")
#: What a file system without files that have no name answers.
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a file system is mounted.

    Attributes:
        point: The directory.
        kind: The kernel's name for the file system, such as ``"ext4"``.
        source: What is mounted.
    """

    point: Path
    kind: str
    source: str


def read_mounts(path: Path = _MOUNTS) -> list[Mount]:
    """Return what is mounted, later ones over earlier ones; nothing where the system does not tell.

    Args:
        path: The list, as Linux writes it.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    mounts: list[Mount] = []
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) > 4 and len(rest) > 1:
            mounts.append(Mount(Path(_unescape(fields[4])), rest[0], _unescape(rest[1])))
    return mounts


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)


def mount_of(directory: Path, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that a directory is in.

    Args:
        directory: It exists.
        mounts: All there are.
    """
    resolved = directory.resolve()
    around = [mount for mount in mounts if resolved.is_relative_to(mount.point)]
    # Of two at one point the later one hides the other.
    return max(reversed(around), key=lambda mount: len(mount.point.parts), default=None)


def is_locked(path: Path, locks: Path = _LOCKS) -> bool:
    """Whether some process holds a lock of a file, without taking it for a moment, which could stop a session.

    Args:
        path: The file; it need not exist.
        locks: The list of locks, as Linux writes it.
    """
    try:
        status = path.stat()
        lines = locks.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(wanted in line.split() and "->" not in line for line in lines)


@contextlib.contextmanager
def scratch_file(directory: Path) -> Generator[tuple[int, int]]:
    """A file of a directory, opened twice. It has no name, or loses it at once, so nothing can leave it behind.

    Args:
        directory: It exists.

    Raises:
        OSError: The directory does not take files.
    """
    with contextlib.ExitStack() as resources:
        try:
            first = os.open(directory, os.O_RDWR | os.O_TMPFILE, 0o600)
            resources.callback(os.close, first)
            second = os.open(f"/proc/self/fd/{first}", os.O_RDWR)
        except OSError as error:
            if error.errno not in (*_NO_UNNAMED, errno.ENOENT) or not directory.is_dir():
                raise
            first, name = tempfile.mkstemp(dir=directory, prefix=".popxl-doctor-")
            resources.callback(os.close, first)
            try:
                second = os.open(name, os.O_RDWR)
            finally:
                Path(name).unlink()
        resources.callback(os.close, second)
        yield first, second
