"""The directory of a file tier: who may use it, the lock, the manifest, the slab files.

Order matters and is the point of this module. Everything that can refuse looks before anything is touched; the
manifest is on disk before the first slab, so a directory without a manifest never holds rows of ours; and a slab is
never shortened, nor a slot written that the record of a commit names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from filelock import FileLock, Timeout

from popxl.errors import StreamingMemoryError

from .disk import direct_alignment, make_direct
from .layout import (
    GENERATION_NAME,
    GENERATION_TEMPORARY_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    MANIFEST_TEMPORARY_NAME,
    MAX_MANIFEST_BYTES,
    Generation,
    decode_generation,
    decode_manifest,
    describe_difference,
    encode_manifest,
    generation_bytes,
    slab_bytes,
    slab_name,
)
from .pieces import Slab
from .small_files import FILE_MODE, NOTE_FILES, SAFE_OPEN, read_regular, replace_file
from .tier import BufferSpec

DIRECTORY_MODE = 0o700

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


def io_error(fact: str, error: OSError, detail: str = "") -> StreamingMemoryError:
    """``fact`` with the system's own words, more detail and a hint; the result carries the ``errno``."""
    code = error.errno
    name = errno.errorcode.get(code, str(code)) if code is not None else "no errno"
    wrapped = StreamingMemoryError(
        f"{fact}: {error.strerror or error} ({name}).{detail}",
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
class Contents:
    """What a directory holds, once it is ours.

    Args:
        slabs: The open slabs by buffer id.
        generation: The record of the last commit, if there is one.
    """

    slabs: dict[int, Slab]
    generation: Generation | None


@final
class UndecidedCommitError(StreamingMemoryError):
    """A commit of which nobody can tell whether a crash would leave it or the one before.

    Attributes:
        before: The record before, for `put_back`; None if there was none.
    """

    before: bytes | None = None


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
            # What an interrupted first open leaves behind, and a probe of the disk before it, interrupted or not.
            strangers = sorted(names - {LOCK_NAME, MANIFEST_TEMPORARY_NAME} - NOTE_FILES)
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
    raw = read_regular(path, MAX_MANIFEST_BYTES)
    if raw is None:
        raise StreamingMemoryError(
            f"The manifest {path} is damaged: it is not a regular file of at most {MAX_MANIFEST_BYTES} bytes.",
            hint="choose another directory.",
        )
    return raw


def read_generation(directory: Path, buffers: Sequence[BufferSpec], name: str = GENERATION_NAME) -> Generation | None:
    """The record of the last commit, or another one, by the name of its file; None if there is none.

    Raises:
        StreamingMemoryError: It is damaged, or cannot be read.
    """
    path = directory / name
    limit_bytes = generation_bytes(buffers)
    with _io_errors(f"The record of the last commit, {path}, cannot be read"):
        try:
            raw = read_regular(path, limit_bytes)
        except FileNotFoundError:
            return None
    if raw is None:
        raise StreamingMemoryError(
            f"The record of the last commit, {path}, is damaged: it is not a regular file of at most {limit_bytes} "
            "bytes.",
            hint="if nobody needs what the directory holds, delete it; otherwise choose another directory.",
        )
    return decode_generation(raw, str(path), buffers)


def prepare(
    directory: Path,
    buffers: Sequence[BufferSpec],
    resources: contextlib.ExitStack,
    *,
    reopen: bool = False,
    settle: Callable[[], None] = lambda: None,
) -> Contents:
    """Lock a directory and open its slabs, making what is missing.

    Args:
        directory: Where; created if it is missing.
        buffers: The buffers to make room for.
        resources: Gets what must be closed: the lock and the open files. The caller closes it, also on errors.
        reopen: Whether the rows of the last commit are wanted, so that nothing of them may be missing.
        settle: Called once the directory is locked, before the record of the last commit is read.

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
        is_ours, manifest = inspect(directory, buffers), encode_manifest(buffers)
        settle()
        generation = read_generation(directory, buffers) if is_ours else None
        if not is_ours:
            made.append(directory / MANIFEST_NAME)
            _write_manifest(directory, manifest)
        alignment = direct_alignment(directory)
        slabs: dict[int, Slab] = {}
        for buffer_id, size_bytes in sizes.items():
            path = directory / slab_name(buffer_id)
            fd = _open_slab(path, made, resources)
            slabs[buffer_id] = Slab(fd, path, size_bytes, alignment if make_direct(fd, alignment) else 1)
        if generation is not None and reopen:
            for buffer_id in generation.tables:
                check_size(slabs[buffer_id])
        for slab in slabs.values():  # only now that every file has proved to be ours
            with _io_errors(f"The slab {slab.path} of {slab.size_bytes} bytes cannot be made"):
                # Sparse: unwritten extents that `posix_fallocate` makes took their first write at 0.75 of 1.1 GB/s.
                os.ftruncate(slab.fd, slab.size_bytes)
        if is_ours and _read_manifest(directory / MANIFEST_NAME) != manifest:
            _write_manifest(directory, manifest)  # the same buffers, but variables of other names
    except BaseException:
        # A half-made directory would be taken for another program's once the buffers are changed to fit.
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    return Contents(slabs, generation)


def check_size(slab: Slab) -> None:
    """Whether a slab still has all its slots.

    Raises:
        StreamingMemoryError: It ends before.
    """
    size_bytes = os.fstat(slab.fd).st_size
    if size_bytes < slab.size_bytes:
        raise StreamingMemoryError(
            f"The slab {slab.path} was truncated. Expected a file of {slab.size_bytes} bytes, found {size_bytes}.",
            hint="something else changed the file, and its rows are lost; start from a copy, or from zeros.",
        )


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
    with _io_errors(f"The manifest {directory / MANIFEST_NAME} cannot be written"):
        replace_file(directory, MANIFEST_NAME, MANIFEST_TEMPORARY_NAME, content)
        sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync(slab: Slab) -> None:
    """Wait until everything written to a slab is on disk.

    Raises:
        StreamingMemoryError: It is not, and never will be.
    """
    with _io_errors(f"The slab {slab.path} cannot be synced"):
        os.fdatasync(slab.fd)


def publish(directory: Path, content: bytes) -> None:
    """Put the record of a commit in place of the one before, atomically, and wait until it is on disk.

    Raises:
        UndecidedCommitError: Neither that could be done nor the record before be put back.
        StreamingMemoryError: The record before stands.
    """
    path = directory / GENERATION_NAME
    before: bytes | None = None
    with _io_errors(f"The record of the commit, {path}, cannot be written"):
        with contextlib.suppress(FileNotFoundError):
            before = path.read_bytes()
        replace_file(directory, GENERATION_NAME, GENERATION_TEMPORARY_NAME, content)
        try:
            sync_directory(directory)
        except OSError as error:
            # The new name may or may not be on disk. As long as nobody knows, no slot of either may be written to.
            _put_back_after(error, directory, before)
            raise


def write_synced(directory: Path, name: str, content: bytes) -> None:
    """Write a record under a name of its own, and wait until it is on disk.

    Raises:
        StreamingMemoryError: It is not.
    """
    with _io_errors(f"The record of the commit, {directory / name}, cannot be written"):
        replace_file(directory, name, GENERATION_TEMPORARY_NAME, content)
        sync_directory(directory)


def put_in_place(directory: Path, name: str) -> None:
    """Make a record that is on disk under another name that of the last commit, and wait until it is.

    Raises:
        StreamingMemoryError: Nobody knows whether it is.
    """
    with _io_errors(f"The record of the commit, {directory / name}, cannot be put in place"):
        (directory / name).rename(directory / GENERATION_NAME)
        sync_directory(directory)


def put_back(directory: Path, before: bytes | None) -> None:
    """Make the record of a commit what it was, and wait until it is on disk.

    Raises:
        StreamingMemoryError: It still is not.
    """
    with _io_errors(f"The record of the commit before, {directory / GENERATION_NAME}, cannot be put back"):
        if before is None:
            (directory / GENERATION_NAME).unlink(missing_ok=True)
        else:
            replace_file(directory, GENERATION_NAME, GENERATION_TEMPORARY_NAME, before)
        sync_directory(directory)


def _put_back_after(cause: OSError, directory: Path, before: bytes | None) -> None:
    try:
        put_back(directory, before)
    except StreamingMemoryError as error:
        undecided = UndecidedCommitError(
            f"The record of the commit, {directory / GENERATION_NAME}, cannot be synced ({cause}), nor the one before "
            f"be put back ({error.strerror or error.errno}); a crash now would leave one or the other.",
            hint="commit again, or roll back, once the cause is gone; until then no variable can be stored.",
        )
        undecided.errno = error.errno
        undecided.before = before
        raise undecided from error


def _open_slab(path: Path, made: list[Path], resources: contextlib.ExitStack) -> int:
    with _io_errors(f"The slab {path} cannot be opened"):
        try:
            fd = os.open(path, os.O_RDWR | SAFE_OPEN)
        except FileNotFoundError:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFE_OPEN, FILE_MODE)
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
