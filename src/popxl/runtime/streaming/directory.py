"""The directory of a file tier: who may use it, the lock, the manifest, the slab files.

Order matters and is the point of this module. Everything that can refuse looks before anything is touched; the
manifest is on disk before the first slab, so a directory without a manifest never holds rows of ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from popxl.errors import StreamingMemoryError

from .layout import (
    LOCK_NAME,
    MANIFEST_NAME,
    MANIFEST_TEMPORARY_NAME,
    MAX_MANIFEST_BYTES,
    decode_manifest,
    describe_difference,
    encode_manifest,
    slab_bytes,
    slab_name,
)
from .tier import BufferSpec

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
# A link or a pipe under one of our names is not ours: never follow the one nor wait on the other.
_SAFE_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK

_HINTS = {
    errno.ENOSPC: "free space on that disk, or name a directory on another one.",
    errno.EDQUOT: "free space within your disk quota, or name a directory on another disk.",
    errno.EFBIG: "the file system or `ulimit -f` limits the file size; use another directory or fewer entries.",
    errno.EACCES: "choose a directory that you may write to.",
    errno.EPERM: "choose a directory that you may write to.",
    errno.EROFS: "that file system is read-only; choose a directory on another one.",
    errno.ENOTDIR: "part of the path is a file; name a directory.",
    errno.EEXIST: "the path is a file; name a directory.",
    errno.ELOOP: "the name is a symbolic link; remove it.",
    errno.EMFILE: "a buffer takes one open file; raise `ulimit -n`.",
    errno.EIO: "the disk failed; see the system log, and name a directory on another disk.",
}


def io_error(fact: str, error: OSError) -> StreamingMemoryError:
    """``fact`` with the system's own words and a hint; the result carries the ``errno``."""
    code = error.errno
    name = errno.errorcode.get(code, str(code)) if code is not None else "no errno"
    wrapped = StreamingMemoryError(
        f"{fact}: {error.strerror or error} ({name}).",
        hint=_HINTS.get(code or 0, "check that the directory exists and that its disk works."),
    )
    wrapped.errno = code
    return wrapped


@contextlib.contextmanager
def _io_errors(fact: str) -> Generator[None]:
    try:
        yield
    except StreamingMemoryError:
        raise  # it is an OSError too, and says more than we could
    except OSError as error:
        raise io_error(fact, error) from error


@dataclass(frozen=True, slots=True)
class Slab:
    """An open slab file: its descriptor, its path and the size it must have, in bytes."""

    fd: int
    path: Path
    size_bytes: int


def inspect(directory: Path, buffers: Sequence[BufferSpec]) -> bool:
    """Look, without touching anything, whether a directory may hold ``buffers``.

    Returns:
        True if it holds a manifest of the same buffers, False if it is missing or empty.

    Raises:
        StreamingMemoryError: It holds something else, or cannot be read.
    """
    with _io_errors(f"The Streaming Memory directory {directory} cannot be used"):
        try:
            names = {path.name for path in directory.iterdir()}
        except FileNotFoundError:
            return False
        if MANIFEST_NAME not in names:
            # An interrupted first open leaves these two behind, and nothing else.
            strangers = sorted(names - {LOCK_NAME, MANIFEST_TEMPORARY_NAME})
            if strangers:
                raise StreamingMemoryError(
                    f"The directory {directory} is not empty and holds no Streaming Memory: it has {strangers[0]!r}"
                    f"{f' and {len(strangers) - 1} more' if len(strangers) > 1 else ''}, but no {MANIFEST_NAME}.",
                    hint="name an empty directory, or one that does not exist yet.",
                )
            return False
        path = directory / MANIFEST_NAME
        difference = describe_difference(decode_manifest(_read_manifest(path), str(path)), buffers)
    if difference is not None:
        raise StreamingMemoryError(
            f"The directory {directory} holds the Streaming Memory of another program: {difference}.",
            hint="name another directory; or, if nobody needs it any more, delete this one.",
        )
    return True


def _read_manifest(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | _SAFE_OPEN)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            raise StreamingMemoryError(
                f"The manifest {path} is damaged: it is not a regular file of at most {MAX_MANIFEST_BYTES} bytes.",
                hint="choose another directory.",
            )
        return file.read(MAX_MANIFEST_BYTES)


def prepare(directory: Path, buffers: Sequence[BufferSpec], resources: contextlib.ExitStack) -> dict[int, Slab]:
    """Lock a directory and make its slabs, all zeros.

    Args:
        directory: Where; created if it is missing.
        buffers: The buffers to make room for.
        resources: Gets what must be closed: the lock and the open files. The caller closes it, also on errors.

    Returns:
        The open slabs by buffer id.

    Raises:
        StreamingMemoryError: The directory is in use, holds something else, or the system refuses.
    """
    sizes = {spec.buffer_id: slab_bytes(spec) for spec in buffers}
    inspect(directory, buffers)
    with _io_errors(f"The Streaming Memory directory {directory} cannot be used"):
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        _lock(directory, resources)
    made: list[Path] = []
    try:
        # Again, now that nobody else can change it.
        if not inspect(directory, buffers):
            made.append(directory / MANIFEST_NAME)
            _write_manifest(directory, encode_manifest(buffers))
        slabs: dict[int, Slab] = {}
        for buffer_id, size_bytes in sizes.items():
            path = directory / slab_name(buffer_id)
            slabs[buffer_id] = Slab(_open_slab(path, made, resources), path, size_bytes)
        for slab in slabs.values():  # only now that every file has proved to be ours
            with _io_errors(f"The slab {slab.path} of {slab.size_bytes} bytes cannot be made"):
                os.ftruncate(slab.fd, 0)
                os.ftruncate(slab.fd, slab.size_bytes)
    except BaseException:
        # A half-made directory would be taken for another program's once the buffers are changed to fit.
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return slabs


def _lock(directory: Path, resources: contextlib.ExitStack) -> None:
    # thread_local=False: a session may be closed by another thread than the one that opened it.
    lock = FileLock(directory / LOCK_NAME, timeout=0, mode=FILE_MODE, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise StreamingMemoryError(
            f"The Streaming Memory directory {directory} is in use by another session, in this or another process.",
            hint="close that session, or name another directory.",
        ) from error
    resources.callback(lock.release)


def _write_manifest(directory: Path, content: bytes) -> None:
    """Write atomically: after a crash the manifest is there whole, or not at all."""
    temporary = directory / MANIFEST_TEMPORARY_NAME
    with _io_errors(f"The manifest {directory / MANIFEST_NAME} cannot be written"):
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE_OPEN, FILE_MODE), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(directory / MANIFEST_NAME)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _open_slab(path: Path, made: list[Path], resources: contextlib.ExitStack) -> int:
    with _io_errors(f"The slab {path} cannot be opened"):
        try:
            fd = os.open(path, os.O_RDWR | _SAFE_OPEN)
        except FileNotFoundError:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE_OPEN, FILE_MODE)
            made.append(path)
        resources.callback(os.close, fd)
        status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise StreamingMemoryError(
            f"The slab {path} is not a regular file of its own (mode {stat.filemode(status.st_mode)}, "
            f"{status.st_nlink} links), so it is not touched.",
            hint="remove it, or choose another directory.",
        )
    return fd
