"""A read-only view of what the last commit of a directory published, for readers that are not the program.

It takes no lock and writes nothing, so a session that has the directory open notices nothing. That is safe because a
session never writes to the slots that its last commit names: what this view sees stays in place until the *next*
commit. A value whose digest fits the record is therefore the right one, whatever a session does meanwhile; where it
does not fit, the record on disk tells whether the value is damaged or only gone.
"""

from __future__ import annotations

import contextlib
import operator
import os
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsIndex, final

import numpy as np
import numpy.typing as npt
import xxhash

from popxl.errors import PopxlKeyError, RemoteOffsetError, StreamingMemoryError

from .alloc import aligned_bytes, frozen_entry
from .directory import io_error
from .layout import (
    GENERATION_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    EntryTable,
    Generation,
    decode_generation,
    decode_manifest,
    generation_bytes,
    slab_bytes,
    slab_name,
    slot_offset,
)
from .tier import BufferSpec

CHUNK_BYTES = 4 * 2**20
# A link or a pipe under one of our names is not ours: never follow the one nor wait on the other.
_SAFE_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_HEAD_BYTES, _DIGEST_BYTES = 32, 8


class BeingWrittenError(StreamingMemoryError):
    """A session has committed since the view was opened, so the view's rows may be gone."""


@final
class CommittedDirectory:
    """The rows that the last commit of a Streaming Memory directory published. Made by `open`; a context manager.

    Invariant: whatever it returns is of the generation that was the last one when it was opened.

    Example:
        >>> import tempfile
        >>> from popxl.runtime.streaming import FileTier
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     tier = FileTier(scratch)
        ...     tier.open([BufferSpec(1, (2,), np.dtype("float32"), entries=4, names=((3, "w"),))])
        ...     tier.store(1, 3, np.ones(2, np.float32))
        ...     _ = tier.commit()
        ...     with CommittedDirectory.open(scratch) as committed:
        ...         committed.generation, committed.read(1, 3), committed.written(1)
        ...     tier.close()
        (1, array([1., 1.], dtype=float32), array([3]))
    """

    def __init__(self, path: Path, resources: contextlib.ExitStack, directory_fd: int) -> None:
        self.path = path
        self._resources = resources
        self._directory_fd = directory_fd
        manifest_path = str(path / MANIFEST_NAME)
        manifest = self._read_whole(MANIFEST_NAME, MAX_MANIFEST_BYTES)
        if manifest is None:
            raise StreamingMemoryError(
                f"The directory {path} holds no Streaming Memory: it has no {MANIFEST_NAME}.",
                hint='name the DIR of a session\'s streaming_memory="file:DIR".',
            )
        records = decode_manifest(manifest, manifest_path)
        #: Every buffer of the directory, by rising id, also those that no commit publishes.
        self.buffers = tuple(sorted((r.spec(manifest_path) for r in records), key=lambda spec: spec.buffer_id))
        self._specs = {spec.buffer_id: spec for spec in self.buffers}
        self._slab_fds: dict[int, int] = {}
        raw = self._read_whole(GENERATION_NAME, generation_bytes(self.buffers))
        self._fingerprint = _fingerprint(raw) if raw is not None else None
        # Without a record no row was published. No tables then: nothing on disk vouches for the number of entries.
        self._generation = (
            decode_generation(raw, str(path / GENERATION_NAME), self.buffers) if raw is not None else Generation(0, {})
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Look at a directory.

        Args:
            path: The directory of a file tier, in use or not.

        Raises:
            StreamingMemoryError: It is missing, holds something else, or is damaged.
        """
        directory = Path(path)
        with contextlib.ExitStack() as resources:
            with _io_errors(f"The Streaming Memory directory {directory} cannot be read"):
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            resources.callback(os.close, fd)
            committed = cls(directory, resources, fd)
            committed._resources = resources.pop_all()
            return committed

    @property
    def generation(self) -> int:
        """The number of the commit that the rows are of; 0 if there was none."""
        return self._generation.number

    def written(self, buffer_id: int) -> npt.NDArray[np.int64]:
        """The entries of a buffer that were ever written, rising; the others are zeros. None if no commit publishes it.

        Raises:
            PopxlKeyError: No such buffer.
        """
        table = self._table(self._spec(buffer_id))
        return np.flatnonzero(table.slots) if table else np.zeros(0, np.int64)

    def holds(self, buffer_id: int, entry: SupportsIndex) -> bool:
        """Whether an entry was ever written.

        Raises:
            PopxlKeyError: No such buffer.
            RemoteOffsetError: ``entry`` is out of range.
            StreamingMemoryError: No commit publishes the buffer.
        """
        return self._slot(*self._locate(buffer_id, entry)) != 0

    def digest(self, buffer_id: int, entry: SupportsIndex) -> int:
        """xxh3_64 of an entry's bytes, as the commit recorded it; means nothing for one that was never written.

        Raises:
            PopxlKeyError: No such buffer.
            RemoteOffsetError: ``entry`` is out of range.
            StreamingMemoryError: No commit publishes the buffer.
        """
        spec, index = self._locate(buffer_id, entry)
        table = self._table(spec)
        return int(table.digests[index]) if table else 0

    def read(self, buffer_id: int, entry: SupportsIndex) -> npt.NDArray[Any]:
        """One entry, in memory of its own.

        Args:
            buffer_id: Which buffer.
            entry: Which entry, ``0 <= entry < entries``.

        Returns:
            A read-only array of the buffer's shape and dtype; zeros for an entry that was never written.

        Raises:
            PopxlKeyError: No such buffer.
            RemoteOffsetError: ``entry`` is out of range.
            StreamingMemoryError: No commit publishes the buffer; the entry is damaged; or a session has committed
                meanwhile, and the entry "is being written".
        """
        spec, index = self._locate(buffer_id, entry)
        slot = self._slot(spec, index)
        if not slot:
            return frozen_entry(aligned_bytes(spec, zeros=True), spec)
        self._slab(spec, index)  # first, so that a manifest that lies costs no memory
        raw = aligned_bytes(spec)
        self._fill(spec, index, raw.data, slot_offset(spec, index, slot))
        self._compare(spec, index, xxhash.xxh3_64_intdigest(raw.data))
        return frozen_entry(raw, spec)

    def chunks(self, buffer_id: int, entry: SupportsIndex) -> Iterator[memoryview]:
        """The bytes of one entry, piece by piece, for entries that are large. Raises what `read` raises.

        A damaged entry is found at its end: what was yielded before may be wrong then.

        Yields:
            At most 4 MiB, valid until the next piece.
        """
        spec, index = self._locate(buffer_id, entry)
        slot = self._slot(spec, index)
        piece = memoryview(bytearray(min(CHUNK_BYTES, spec.entry_bytes)))
        digest = xxhash.xxh3_64()
        for start in range(0, spec.entry_bytes, CHUNK_BYTES):
            part = piece[: spec.entry_bytes - start]
            if slot:
                self._fill(spec, index, part, slot_offset(spec, index, slot) + start)
                digest.update(part)
            yield part
        if slot:
            self._compare(spec, index, digest.intdigest())

    def verify(self) -> Iterator[tuple[BufferSpec, int, str | None]]:
        """Read every entry that was written and compare it with its digest.

        Yields:
            The buffer, the entry, and what is wrong with it, or None.

        Raises:
            BeingWrittenError: A session has committed meanwhile.
        """
        for spec in self.buffers:
            for entry in map(int, self.written(spec.buffer_id)):
                try:
                    for _ in self.chunks(spec.buffer_id, entry):
                        pass
                except BeingWrittenError:
                    raise
                except StreamingMemoryError as error:
                    yield spec, entry, error.fact
                else:
                    yield spec, entry, None

    def close(self) -> None:
        """Let go of the files. Calling it again does nothing; arrays that `read` returned stay valid."""
        self._resources.close()
        self._slab_fds.clear()
        self._directory_fd = -1  # the number may be another file's soon

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CommittedDirectory[{str(self.path)!r}, generation {self.generation}, {len(self.buffers)} buffers]"

    # Looking up

    def _spec(self, buffer_id: int) -> BufferSpec:
        spec = self._specs.get(buffer_id)
        if spec is None:
            raise PopxlKeyError(f"{self.path} has no remote buffer {buffer_id}; it has {sorted(self._specs)}.")
        return spec

    def _locate(self, buffer_id: int, entry: SupportsIndex) -> tuple[BufferSpec, int]:
        spec, index = self._spec(buffer_id), operator.index(entry)
        if not spec.is_persistent:
            raise StreamingMemoryError(
                f"No commit publishes remote buffer {buffer_id} of {self.path}: no variable lives in it.",
                hint="only buffers with names can be read.",
            )
        if not 0 <= index < spec.entries:
            raise RemoteOffsetError(
                f"Entry {index} is out of range for remote buffer {buffer_id} with {spec.entries} entries."
            )
        return spec, index

    def _table(self, spec: BufferSpec) -> EntryTable | None:
        return self._generation.tables.get(spec.buffer_id)

    def _slot(self, spec: BufferSpec, entry: int) -> int:
        table = self._table(spec)
        return int(table.slots[entry]) if table else 0

    # Reading

    def _open_regular(self, name: str) -> int:
        """Open a file of the directory, for the caller to close."""
        path = self.path / name
        fd = os.open(name, _SAFE_OPEN, dir_fd=self._directory_fd)
        status = os.fstat(fd)
        # 0 links: a commit has replaced it since, which is fine.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(fd)
            raise StreamingMemoryError(
                f"{path} is not a regular file of its own (mode {stat.filemode(status.st_mode)}, {status.st_nlink} "
                "links), so it is not read.",
                hint="restore the directory from a copy.",
            )
        return fd

    def _read_whole(self, name: str, limit_bytes: int) -> bytes | None:
        """A small file, or None if it is missing."""
        with _io_errors(f"{self.path / name} cannot be read"):
            try:
                fd = self._open_regular(name)
            except FileNotFoundError:
                return None
            with os.fdopen(fd, "rb") as file:
                if os.fstat(fd).st_size > limit_bytes:
                    raise StreamingMemoryError(
                        f"{self.path / name} is damaged: it has {os.fstat(fd).st_size} bytes, more than {limit_bytes}.",
                        hint="restore the directory from a copy.",
                    )
                return file.read(limit_bytes)

    def _slab(self, spec: BufferSpec, entry: int) -> int:
        """The open slab of a buffer, of the right size at this moment."""
        name = slab_name(spec.buffer_id)
        try:
            with _io_errors(f"{self.path / name} cannot be read"):
                if spec.buffer_id not in self._slab_fds:
                    fd = self._slab_fds[spec.buffer_id] = self._open_regular(name)
                    self._resources.callback(os.close, fd)
                fd = self._slab_fds[spec.buffer_id]
                found_bytes = os.fstat(fd).st_size
        except StreamingMemoryError as error:
            raise self._trouble(spec, entry, error.fact, error) from error
        if found_bytes < slab_bytes(spec):
            raise self._trouble(spec, entry, f"{name} has {found_bytes} of {slab_bytes(spec)} bytes")
        return fd

    def _fill(self, spec: BufferSpec, entry: int, target: memoryview, offset: int) -> None:
        fd = self._slab(spec, entry)
        done = 0
        try:
            while done < len(target):
                count = os.preadv(fd, [target[done:]], offset + done)
                if count == 0:
                    raise self._trouble(spec, entry, f"{slab_name(spec.buffer_id)} ends at byte {offset + done}")
                done += count
            # Reading a whole directory must not push a running program's files out of the page cache, and the next
            # look should see the disk.
            os.posix_fadvise(fd, offset, len(target), os.POSIX_FADV_DONTNEED)
        except StreamingMemoryError:
            raise
        except OSError as error:
            wrapped = io_error(f"{slab_name(spec.buffer_id)} cannot be read", error)
            raise self._trouble(spec, entry, wrapped.fact, wrapped) from error

    def _compare(self, spec: BufferSpec, entry: int, found: int) -> None:
        wanted = int(self._generation.tables[spec.buffer_id].digests[entry])
        if found != wanted:
            raise self._trouble(
                spec,
                entry,
                f"its bytes have the digest {found:016x}, and generation {self.generation} has {wanted:016x}",
            )

    def _trouble(
        self, spec: BufferSpec, entry: int, reason: str, cause: StreamingMemoryError | None = None
    ) -> StreamingMemoryError:
        """What is wrong with an entry: damage, unless a commit explains it."""
        if self._record_changed():
            return BeingWrittenError(
                f"Remote buffer {spec.buffer_id}, entry {entry}: the directory {self.path} is being written; "
                f"generation {self.generation} is no longer the last one.",
                hint="try again, or wait until the session is closed.",
            )
        error = StreamingMemoryError(
            f"Remote buffer {spec.buffer_id}, entry {entry} of {self.path}: {reason.rstrip('.')}.",
            hint="restore the directory from a copy.",
        )
        error.errno = cause.errno if cause else None
        return error

    def _record_changed(self) -> bool:
        try:
            fd = self._open_regular(GENERATION_NAME)
        except FileNotFoundError:
            return self._fingerprint is not None
        except OSError:
            return True
        try:
            size_bytes = os.fstat(fd).st_size
            ends = os.pread(fd, _HEAD_BYTES, 0) + os.pread(fd, _DIGEST_BYTES, max(size_bytes - _DIGEST_BYTES, 0))
        except OSError:
            return True
        finally:
            os.close(fd)
        return ends != self._fingerprint


def _fingerprint(record: bytes) -> bytes:
    """What tells two records apart: the number at the start, the digest at the end."""
    return record[:_HEAD_BYTES] + record[-_DIGEST_BYTES:]


@contextlib.contextmanager
def _io_errors(fact: str) -> Generator[None]:
    try:
        yield
    except StreamingMemoryError:
        raise  # it is an OSError too, and says more than we could
    except OSError as error:
        raise io_error(fact, error) from error
