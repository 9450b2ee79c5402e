"""The checks of ``popxl doctor`` that look at a directory: whether ``streaming_memory="file:DIR"`` works there."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Generator, Iterator
from pathlib import Path

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming.committed import CommittedDirectory
from popxl.runtime.streaming.directory import inspect, io_error, sync_directory
from popxl.runtime.streaming.disk import direct_alignment, make_direct
from popxl.runtime.streaming.layout import FORMAT_VERSION, LOCK_NAME, MANIFEST_NAME, slab_bytes, slab_name
from popxl.runtime.streaming.room import existing
from popxl.runtime.streaming.tier import PAGE_BYTES
from popxl.units import format_bytes

from .file_system import Mount, is_locked, mount_of, read_mounts, scratch_file
from .finding import Finding, Level

_IN_MEMORY = ("ramfs", "tmpfs")
_REMOTE = ("9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "smb2", "smb3", "smbfs")
_LOCAL_DISK = "name a directory on a local disk"
_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are
_LEAST_FREE_BYTES = 1 << 20
_FILE_SIZES_BYTES = (1 << 40, 1 << 36, (1 << 32) - PAGE_BYTES, 1 << 30)
# A manifest, a record, a lock, their successors while they are written, and a few buffers.
_LEAST_FREE_FILES = 100


def check_directory(directory: Path) -> Iterator[Finding]:
    """Look at a directory, or where it would be made. Nothing is left there.

    Args:
        directory: Of a session, or for one.
    """
    place = existing(directory)
    contents = contents_finding(directory, place)
    yield contents
    if place.is_dir():
        mount = mount_of(place, read_mounts())
        if mount is not None:
            yield file_system_finding(mount)
        yield space_finding(place, 0 if contents.level is Level.FAIL else _missing_bytes(directory))
        yield from _file_findings(place)


def contents_finding(directory: Path, place: Path) -> Finding:
    """Whether a directory is free for a program, or what it holds.

    Args:
        directory: The directory.
        place: It, or the nearest one above it that exists.
    """
    if not place.is_dir():
        return Finding(Level.FAIL, "directory", f"{place} is not a directory", "name another one")
    if place != directory:
        return Finding(Level.OK, "directory", f"{directory} is not there yet; a session makes it in {place}")
    try:
        if not (directory / MANIFEST_NAME).exists():
            inspect(directory, ())
            return Finding(Level.OK, "directory", f"{directory} is free for a program")
        with CommittedDirectory.open(directory) as committed:
            rows = sum(spec.entries * spec.entry_bytes for spec in committed.buffers)
            count = len(committed.buffers)
            fact = (
                f"{directory} has format {FORMAT_VERSION}, generation {committed.generation}, {count} remote "
                f"buffer{'' if count == 1 else 's'} with rows of {format_bytes(rows)}"
            )
    except StreamingMemoryError as error:
        return Finding(Level.FAIL, "directory", error.fact, error.hint or "")
    except OSError as error:
        return _refused("directory", f"{directory} cannot be read", error)
    if is_locked(directory / LOCK_NAME):
        return Finding(Level.WARN, "directory", f"{fact}; a session has it open", "close that session to open another")
    return Finding(Level.OK, "directory", fact)


def _missing_bytes(directory: Path) -> int:
    """What a directory's slabs take once every slot is written, beyond what they take now."""
    if not (directory / MANIFEST_NAME).exists():
        return 0
    missing = 0
    with CommittedDirectory.open(directory) as committed:
        for spec in committed.buffers:
            try:
                taken = (directory / slab_name(spec.buffer_id)).stat().st_blocks * _BLOCK_BYTES
            except OSError:
                taken = 0
            missing += max(0, slab_bytes(spec) - taken)
    return missing


def file_system_finding(mount: Mount) -> Finding:
    """Whether a file system is one that rows belong on."""
    fact = f"{mount.kind} on {mount.point}"
    if mount.kind in _IN_MEMORY:
        return Finding(Level.WARN, "file system", f"{fact}: its files are in RAM, and gone with it", _LOCAL_DISK)
    if mount.kind in _REMOTE or mount.kind.startswith("fuse"):
        trouble = "another program or machine serves it, which decides how fast it is and what locks and commits mean"
        return Finding(Level.WARN, "file system", f"{fact}: {trouble}", _LOCAL_DISK)
    if mount.kind in ("aufs", "overlay"):
        return Finding(
            Level.WARN, "file system", f"{fact}: a layer of a container, gone with it", "name a directory of a volume"
        )
    return Finding(Level.OK, "file system", fact)


def space_finding(place: Path, missing_bytes: int) -> Finding:
    """Whether there is room.

    Args:
        place: The directory.
        missing_bytes: What the directory's own files may take beyond what they have.
    """
    status = os.statvfs(place)
    free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    fact = f"{format_bytes(free)} of {format_bytes(total)} free"
    if free < _LEAST_FREE_BYTES:
        return Finding(Level.FAIL, "space", fact, "free space on that disk, or name a directory on another one")
    if status.f_files and status.f_favail < _LEAST_FREE_FILES:
        return Finding(Level.WARN, "space", f"{fact}, and only {status.f_favail} inodes", "delete files on that disk")
    if missing_bytes > free:
        needed = f"the rows in it take {format_bytes(missing_bytes)} more once all are written"
        return Finding(Level.WARN, "space", f"{fact}, and {needed}", "free space before all rows are written")
    return Finding(Level.OK, "space", f"{fact}; a variable takes twice its size, for commits")


def _file_findings(place: Path) -> Generator[Finding]:
    """What a file of the directory can do."""
    try:
        with scratch_file(place) as (first, second):
            yield lock_finding(first, second)
            yield direct_finding(first, direct_alignment(place))
            yield sync_finding(first, place)
            yield size_finding(first)
    except OSError as error:
        yield _refused("writing", f"{place} cannot be written to", error)


def _refused(what: str, fact: str, error: OSError) -> Finding:
    wrapped = io_error(fact, error)
    return Finding(Level.FAIL, what, wrapped.fact, wrapped.hint or "")


def lock_finding(first: int, second: int) -> Finding:
    """Whether a lock keeps a second session out.

    Args:
        first: A file.
        second: The same, opened apart.
    """
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return Finding(Level.FAIL, "locks", f"the file system has none ({error.strerror})", _LOCAL_DISK)
    try:
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Finding(Level.OK, "locks", "a second session is kept out")
    finally:
        fcntl.flock(first, fcntl.LOCK_UN)
    mend = f"never open a directory there twice at a time, or {_LOCAL_DISK}"
    return Finding(Level.WARN, "locks", "they keep nobody out, so two sessions can spoil each other's rows", mend)


def direct_finding(fd: int, alignment: int) -> Finding:
    """Whether rows can pass by the page cache.

    Args:
        fd: A file.
        alignment: What `direct_alignment` says of its directory.
    """
    if make_direct(fd, alignment) and _writes_a_page(fd):
        return Finding(Level.OK, "direct I/O", f"from memory at multiples of {alignment} bytes")
    trouble = "the file system has none, so rows take room in the page cache too, and are copied once more"
    return Finding(Level.WARN, "direct I/O", trouble, f"{_LOCAL_DISK}, with ext4 or xfs")


def _writes_a_page(fd: int) -> bool:
    with mmap.mmap(-1, PAGE_BYTES) as page:
        try:
            return os.pwritev(fd, [page], 0) == PAGE_BYTES
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False


def sync_finding(fd: int, place: Path) -> Finding:
    """Whether a commit can wait until its files are on disk."""
    try:
        os.fdatasync(fd)
        sync_directory(place)
    except OSError as error:
        return Finding(Level.FAIL, "commits", f"files cannot be synced ({error.strerror})", _LOCAL_DISK)
    return Finding(Level.OK, "commits", "files and directories can be synced")


def size_finding(fd: int) -> Finding:
    """How large a file may be, and whether it takes no more room than what is written to it.

    Args:
        fd: A file that may be cut.
    """
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        return Finding(Level.WARN, "file size", f"`ulimit -f` allows {format_bytes(limit)}", "ulimit -f unlimited")
    if not _sparse_at(fd, 1 << 20):
        return Finding(Level.WARN, "file size", "a file takes its full size at once: it cannot be sparse", _LOCAL_DISK)
    largest = next((size for size in _FILE_SIZES_BYTES if _sparse_at(fd, size)), 0)
    if largest == _FILE_SIZES_BYTES[0]:
        return Finding(Level.OK, "file size", f"{format_bytes(largest)} and more, and files are sparse")
    mend = f"use several remote buffers for larger ones, or {_LOCAL_DISK}"
    at_most = f"a file of {format_bytes(largest)} is allowed, and not a much larger one"
    return Finding(Level.WARN, "file size", at_most, mend)


def _sparse_at(fd: int, size_bytes: int) -> bool:
    try:
        os.ftruncate(fd, 0)
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EFBIG, errno.EINVAL, errno.ENOSPC):
            raise
        return False
    return os.fstat(fd).st_blocks * _BLOCK_BYTES < size_bytes // 2
