"""The file tier: rows in preallocated files, one per buffer, read and written at page-aligned slots."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from popxl.errors import PopxlValueError, StreamingMemoryError

from .alloc import aligned_bytes, frozen_entry
from .directory import Slab, io_error, prepare
from .layout import slot_offset
from .tier import BufferSpec, Capabilities, ImmutableArray, Tier


@final
class FileTier(Tier):
    """Rows in files of a directory that this tier owns while it is open. POSIX systems only.

    A load reads into fresh memory, aligned so that JAX uses it in place; a store writes the array's memory as it is.
    ``close`` leaves the files; a later ``open`` with the same buffers takes them over and zeroes every row.

    Args:
        directory: Missing or empty, or left by the same program. ``~`` is expanded.

    Raises:
        PopxlValueError: ``directory`` is empty text, has a NUL in it, or starts with a ``~`` nobody knows.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     tier = FileTier(scratch)
        ...     tier.open([BufferSpec(1, (2,), np.dtype("float32"), entries=4)])
        ...     tier.store(1, 3, np.ones(2, np.float32))
        ...     tier.load(1, 3), tier.load(1, 0)
        ...     tier.close()
        (array([1., 1.], dtype=float32), array([0., 0.], dtype=float32))
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        super().__init__()
        name = os.fspath(directory)
        if not name or "\0" in name:
            raise PopxlValueError(f"The file tier needs a directory; got {name!r}.", hint='write "file:DIR".')
        try:
            # Absolute from the start: a later chdir must not move the rows.
            self.directory = Path(name).expanduser().absolute()
        except RuntimeError as error:
            raise PopxlValueError(f"No home directory is known for {name!r}.", hint="write out the path.") from error
        self._slabs: dict[int, Slab] = {}
        # Entries whose last store failed half-way: neither the old nor the new value, so never handed out.
        self._torn: set[tuple[int, int]] = set()
        self._release = weakref.finalize(self, _nothing)

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        with contextlib.ExitStack() as resources:
            self._slabs = prepare(self.directory, buffers, resources)
            # Also frees the lock of a session that was dropped without being closed, or at exit.
            self._release = weakref.finalize(self, resources.pop_all().close)

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        slab = self._slabs[spec.buffer_id]
        if (spec.buffer_id, entry) in self._torn:
            raise StreamingMemoryError(
                f"Remote buffer {spec.buffer_id}, entry {entry}: the last store to it failed half-way, so it has no "
                f"value (slab {slab.path}).",
                hint="store it again once the cause of that error is gone.",
            )
        raw = aligned_bytes(spec)
        offset = slot_offset(spec, entry)
        try:
            found_bytes = _read_fully(slab.fd, raw.data, offset)
        except OSError as error:
            raise io_error(
                f"Remote buffer {spec.buffer_id}, entry {entry} cannot be read from {slab.path}", error
            ) from error
        if found_bytes != spec.entry_bytes:
            raise StreamingMemoryError(
                f"Remote buffer {spec.buffer_id}, entry {entry}: the slab {slab.path} was truncated. Expected "
                f"{spec.entry_bytes} bytes at offset {offset}, found {found_bytes}.",
                hint="something else changed the file while it was in use; its rows are lost.",
            )
        return frozen_entry(raw, spec)

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        slab = self._slabs[spec.buffer_id]
        raw = np.ascontiguousarray(np.asarray(value)).reshape(-1).view(np.uint8)
        try:
            size_bytes = os.fstat(slab.fd).st_size
            if size_bytes >= slab.size_bytes:
                self._torn.add((spec.buffer_id, entry))
                _write_fully(slab.fd, raw.data, slot_offset(spec, entry))
        except OSError as error:
            raise io_error(
                f"Remote buffer {spec.buffer_id}, entry {entry} cannot be written to {slab.path}", error
            ) from error
        if size_bytes < slab.size_bytes:
            # Writing would extend the file again and hide that rows are lost.
            raise StreamingMemoryError(
                f"Remote buffer {spec.buffer_id}, entry {entry}: the slab {slab.path} was truncated. Expected a file "
                f"of {slab.size_bytes} bytes, found {size_bytes}.",
                hint="something else changed the file while it was in use; its rows are lost.",
            )
        self._torn.discard((spec.buffer_id, entry))

    def _detach(self) -> None:
        self._slabs = {}
        self._torn.clear()
        try:
            self._release()
        except OSError as error:
            raise io_error(f"The Streaming Memory directory {self.directory} was not closed cleanly", error) from error

    def __repr__(self) -> str:
        return f"FileTier({str(self.directory)!r})"


def _nothing() -> None:
    pass


# Python itself retries both calls when a signal interrupts them (PEP 475); what is left to us is doing part of the
# work, which Linux does from 2 GiB on, and network file systems when they please.
def _read_fully(fd: int, target: memoryview, offset: int) -> int:
    """Fill ``target`` from ``offset``; returns the bytes read, fewer only where the file ends."""
    done = 0
    while done < len(target):
        count = os.preadv(fd, [target[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _write_fully(fd: int, source: memoryview, offset: int) -> None:
    done = 0
    while done < len(source):
        count = os.pwritev(fd, [source[done:]], offset + done)
        if count == 0:
            raise OSError(errno.EIO, f"wrote {done} of {len(source)} bytes and no more")
        done += count
