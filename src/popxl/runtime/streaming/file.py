"""The file tier: rows in files, one per buffer, moved past the page cache by a few threads, published by commits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from popxl.errors import PopxlValueError, StreamingMemoryError

from .alloc import aligned_bytes, frozen_entry
from .committed_row import CommittedRow
from .common_commit import commit_together, directory_name, own_directory, put_in_place_together, settle
from .directory import UndecidedCommitError, check_size, io_error, prepare, publish, put_back, sync
from .disk import DiskQueue
from .disk_settings import cached, chosen
from .layout import Generation, encode_generation, slot_offset
from .pieces import Request, Slab, SlabTruncatedError, Staging
from .room import FULL, shortage, warn_unless_room
from .slots import SlotTable
from .tier import PAGE_BYTES, BufferSpec, Capabilities, ImmutableArray, Peers, Tier
from .transfer import Transfer

_LOGGER = logging.getLogger("popxl")
# Clearing more than this takes longer than waking a thread that does it.
_CLEAR_BYTES = 256 << 10


@final
class FileTier(Tier):
    """Rows in files of a directory that this tier owns while it is open. POSIX systems only.

    A load reads into fresh memory, aligned so that JAX uses it in place; a store writes the array's memory as it is
    where the file system takes it. ``close`` leaves the files; a later ``open`` with the same buffers takes them over
    with every row zeros, or with those of the last commit.

    Threads: one calls `start_reads` and another may call `start_writes`; everything else has the tier to itself. The
    tier's own threads see requests, slabs and slot tables, never the tier.

    Args:
        directory: Missing or empty, or left by the same program. ``~`` is expanded.
        reopen: Go on with the rows of the last commit, if there is one. Otherwise every row is zeros; what was
            committed stays on disk until this session commits.
        checksums: Compare the digest of each row that is read with the one taken when it was written. Rows of
            variables get digests in any case, since the record of a commit needs them.

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

    capabilities: ClassVar[Capabilities] = Capabilities(
        persistent=True, asynchronous=True, commits=True, checksums=True
    )

    def __init__(self, directory: str | os.PathLike[str], *, reopen: bool = False, checksums: bool = True) -> None:
        super().__init__()
        name = os.fspath(directory)
        if not name or "\0" in name:
            raise PopxlValueError(f"The file tier needs a directory; got {name!r}.", hint='write "file:DIR".')
        try:
            # Absolute from the start: a later chdir must not move the rows.
            self.directory = Path(name).expanduser().absolute()
        except RuntimeError as error:
            raise PopxlValueError(f"No home directory is known for {name!r}.", hint="write out the path.") from error
        if not checksums:
            object.__setattr__(self, "capabilities", dataclasses.replace(FileTier.capabilities, checksums=False))
        self._reopen = reopen
        self._checksums = checksums
        self._buffers: dict[int, _Buffer] = {}
        self._queue: DiskQueue | None = None
        self._generation = 0
        # Also of commits that this session does not go on from: numbers of a directory never come twice.
        self._published = 0
        self._undecided: UndecidedCommitError | None = None
        self._peers: Peers | None = None
        self._release = weakref.finalize(self, _nothing)

    @property
    def direct_io(self) -> bool:
        """Whether rows move past the page cache; False while the tier is not open, or has no buffers."""
        return any(buffer.slab.alignment_bytes > 1 for buffer in self._buffers.values())

    @property
    def copy_bytes(self) -> int:
        """See `Tier.copy_bytes`: direct I/O wants whole pages, and results of computations lie anywhere."""
        settings = cached(self.directory)
        return settings.threads * settings.piece_bytes

    # Opening and closing

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        self._published = 0
        with contextlib.ExitStack() as resources:
            contents = prepare(self.directory, buffers, resources, reopen=self._reopen, settle=self._settle(buffers))
            warn_unless_room(self.directory, contents.slabs.values())
            tables = contents.generation.tables if contents.generation is not None else {}
            self._buffers = {
                spec.buffer_id: _Buffer(
                    spec,
                    contents.slabs[spec.buffer_id],
                    SlotTable(spec, tables.get(spec.buffer_id), reopen=self._reopen),
                    is_verified=self._checksums,
                )
                for spec in buffers
            }
            number = contents.generation.number if contents.generation is not None else 0
            self._published = max(self._published, number)
            self._generation = number if self._reopen else 0
            total_bytes = sum(spec.entries * spec.padded_bytes for spec in buffers)
            self._queue = DiskQueue(chosen(self.directory, total_bytes))
            # The threads end before their files are closed.
            resources.callback(self._queue.close)
            # Also frees the lock of a session that was dropped without being closed, or at exit.
            self._release = weakref.finalize(self, _let_go, resources.pop_all(), self._queue)
        if buffers and not self.direct_io:
            _LOGGER.info("The file system of %s has no direct I/O: rows go through the page cache.", self.directory)

    def _settle(self, buffers: tuple[BufferSpec, ...]) -> Callable[[], None]:
        """What finds out which commit is the last one: with other processes, the last that all have."""
        peers = self._peers
        if peers is None:
            return _nothing

        def settle_together() -> None:
            self._published = settle(self.directory, buffers, peers)

        return settle_together

    def join(self, peers: Peers) -> None:
        """See `Tier.join`. This process's rows lie in a directory of their own inside that of the job."""
        if self._peers is None:
            self.directory = own_directory(self.directory, peers)
        self._peers = peers

    def _detach(self) -> None:
        self._buffers = {}
        self._queue = None
        self._undecided = None
        self._generation = 0
        try:
            self._release()
        except OSError as error:
            raise io_error(f"The Streaming Memory directory {self.directory} was not closed cleanly", error) from error

    # Transfers

    def start_reads(self, transfers: Sequence[Transfer]) -> None:
        """See `Tier.start_reads`."""
        disk, requests = self._open_queue(), list[Request]()
        for transfer in transfers:
            buffer = self._buffers[transfer.spec.buffer_id]
            table, entry = buffer.table, transfer.entry
            slot = table.slot(entry)
            if entry in table.torn:
                transfer.finish(buffer.torn_error(entry))
            elif slot and transfer.spec.entry_bytes:
                requests.append(buffer.read_request(transfer, slot, self._generation))
            elif transfer.raw.nbytes > _CLEAR_BYTES:
                disk.run(functools.partial(_clear, transfer))
            else:
                transfer.raw.fill(0)
                transfer.finish()
        disk.start(requests)

    def start_writes(self, transfers: Sequence[Transfer]) -> None:
        """See `Tier.start_writes`."""
        disk, requests = self._open_queue(), list[Request]()
        for transfer in transfers:
            buffer = self._buffers[transfer.spec.buffer_id]
            if self._undecided is not None and transfer.spec.is_persistent:
                transfer.finish(buffer.undecided_error(transfer.entry, self._undecided))
            else:
                request = buffer.write_request(transfer)
                if request.nbytes:
                    requests.append(request)
                else:
                    request.digest_piece(0)
                    request.complete_piece(0, None)
        disk.start(requests)

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        # Whole pages are read, and an entry smaller than one does not keep the rest of it.
        memory = _page_aligned(spec) if spec.entry_bytes % PAGE_BYTES else aligned_bytes(spec)
        transfer = Transfer(spec, entry, memory)
        self.start_reads([transfer])
        transfer.wait()
        raw = memory[: spec.entry_bytes]
        if spec.entry_bytes < PAGE_BYTES:
            raw = aligned_bytes(spec)
            raw[...] = memory[: spec.entry_bytes]
        return frozen_entry(raw, spec)

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        raw = np.ascontiguousarray(np.asarray(value)).reshape(-1).view(np.uint8)
        transfer = Transfer(spec, entry, raw)
        self.start_writes([transfer])
        try:
            transfer.wait_quietly()
        except BaseException:  # an interrupt: the memory is the caller's again only once it has been written
            transfer.wait_quietly()
            raise
        transfer.wait()

    def _open_queue(self) -> DiskQueue:
        if self._queue is None:
            raise StreamingMemoryError(
                f"{self!r} is not open.", hint="load and store inside the `with session:` block."
            )
        return self._queue

    # Commits

    @property
    def generation(self) -> int:
        """See `Tier.generation`."""
        return self._generation

    def holds(self, buffer_id: int, entry: int) -> bool:
        """See `Tier.holds`."""
        spec, index = self._locate(buffer_id, entry)
        return spec.is_persistent and self._buffers[buffer_id].table.holds(index)

    def commit(self, failure: StreamingMemoryError | None = None) -> int:
        """See `Tier.commit`."""
        if failure is not None and self._peers is None:
            raise failure
        self._open_queue()
        persistent = self._persistent()
        if self._undecided is not None and self._peers is not None:
            put_in_place_together(self.directory, self._peers)
            self._undecided = None
            self._rebase(persistent)  # nothing was stored since
        number = self._published + 1

        def record() -> bytes:
            if failure is not None:
                raise failure
            self._sync(persistent)
            tables = {buffer.spec.buffer_id: buffer.table.snapshot() for buffer in persistent}
            return encode_generation(Generation(number, tables))

        self._publish(number, record)
        self._rebase(persistent)
        return self._generation

    def skip_numbers_below(self, number: int) -> None:
        """Let the next commit have this number, or the one after the last if that is larger: for copies of commits."""
        self._published = max(self._published, number - 1)

    def _rebase(self, persistent: Sequence[_Buffer]) -> None:
        """The rows as they are have been published."""
        for buffer in persistent:
            buffer.table.rebase(buffer.table.snapshot())
        self._generation = self._published

    def _sync(self, persistent: Sequence[_Buffer]) -> None:
        """Wait until all rows are on disk."""
        for buffer in persistent:
            if buffer.table.torn:
                raise StreamingMemoryError(
                    f"Nothing was committed to {self.directory}: remote buffer {buffer.spec.buffer_id}, entry "
                    f"{min(buffer.table.torn)} has no value, since the last store to it failed.",
                    hint="store it again once the cause of that error is gone, or roll back.",
                )
        for buffer in persistent:
            buffer.sync()

    def committed_reader(self, buffer_id: int, entry: int, process: int | None = None) -> CommittedRow | None:
        """See `Tier.committed_reader`. Rows of another process can be read where its directory can be seen."""
        directory = self.directory if process is None else self.directory.parent / directory_name(process)
        return CommittedRow(directory, buffer_id, entry, self._generation) if directory.is_dir() else None

    def roll_back(self) -> None:
        """See `Tier.roll_back`."""
        self._open_queue()
        if self._undecided is not None:
            if self._peers is not None:
                raise self._undecided  # the others have committed: there is no way back
            put_back(self.directory, self._undecided.before)
            self._undecided = None
        for buffer in self._persistent():
            buffer.table.roll_back()

    def _persistent(self) -> list[_Buffer]:
        return [buffer for buffer in self._buffers.values() if buffer.spec.is_persistent]

    def _publish(self, number: int, record: Callable[[], bytes]) -> None:
        try:
            if self._peers is None:
                publish(self.directory, record())
            else:
                self._published = number  # also if it fails: another process may have a record with this number
                commit_together(self.directory, self._peers, record)
        except UndecidedCommitError as error:
            self._undecided = self._undecided or error  # the first knows the record that the rows go back to
            raise
        self._undecided = None
        self._published = number

    def __repr__(self) -> str:
        return f"FileTier({str(self.directory)!r})"


@final
class _Buffer:
    """One open buffer: its slab and where its rows lie. What the tier's threads report to."""

    __slots__ = ("_is_hashed", "_is_verified", "slab", "spec", "table")

    def __init__(self, spec: BufferSpec, slab: Slab, table: SlotTable, *, is_verified: bool) -> None:
        self.spec = spec
        self.slab = slab
        self.table = table
        self._is_verified = is_verified
        self._is_hashed = is_verified or spec.is_persistent

    def read_request(self, transfer: Transfer, slot: int, generation: int) -> Request:
        return Request(
            self.slab,
            slot_offset(self.spec, transfer.entry, slot),
            transfer.raw,
            self.spec.entry_bytes,
            is_write=False,
            is_hashed=self._is_verified,
            on_done=functools.partial(self._read_done, transfer, generation),
            on_begin=None if transfer.begin_s is None else transfer.begin,
        )

    def write_request(self, transfer: Transfer) -> Request:
        slot = self.table.next_slot(transfer.entry)
        return Request(
            self.slab,
            slot_offset(self.spec, transfer.entry, slot),
            transfer.raw,
            self.spec.entry_bytes,
            is_write=True,
            is_hashed=self._is_hashed,
            on_done=functools.partial(self._write_done, transfer, slot),
            on_begin=None if transfer.begin_s is None else transfer.begin,
        )

    def _read_done(self, transfer: Transfer, generation: int, error: BaseException | None, digest: int | None) -> None:
        entry = transfer.entry
        if error is not None:
            error = self._explained(entry, error, "read from")
        elif digest is not None and digest != self.table.digest(entry):
            transfer.raw.fill(0)
            since = "committed in" if self.table.is_committed(entry) else "stored after"
            error = StreamingMemoryError(
                f"Remote buffer {self.spec.buffer_id}, entry {entry}, {since} generation {generation}: its bytes in "
                f"{self.slab.path} have the checksum {digest:016x}; those stored had {self.table.digest(entry):016x}.",
                hint="the disk, or something that wrote to the file, changed them; this row is lost.",
            )
        transfer.finish(error)

    def _write_done(self, transfer: Transfer, slot: int, error: BaseException | None, digest: int | None) -> None:
        entry = transfer.entry
        if error is None:
            self.table.set(entry, slot, digest or 0)
        else:
            if not isinstance(error, SlabTruncatedError):  # that one is noticed before a byte is written
                self.table.torn.add(entry)
            error = self._explained(entry, error, "written to")
        transfer.finish(error)

    def _explained(self, entry: int, error: BaseException, action: str) -> BaseException:
        fact = f"Remote buffer {self.spec.buffer_id}, entry {entry}"
        if isinstance(error, OSError):
            detail = shortage(self.slab, self.spec.padded_bytes) if error.errno in FULL else ""
            explained = io_error(f"{fact} cannot be {action} {self.slab.path}", error, detail)
        elif isinstance(error, SlabTruncatedError):
            explained = StreamingMemoryError(
                f"{fact}: the slab {self.slab.path} was truncated. {error}",
                hint="something else changed the file while it was in use; its rows are lost.",
            )
        else:
            return error
        explained.__cause__ = error
        return explained

    def torn_error(self, entry: int) -> StreamingMemoryError:
        return StreamingMemoryError(
            f"Remote buffer {self.spec.buffer_id}, entry {entry}: the last store to it failed half-way, so it has no "
            f"value (slab {self.slab.path}).",
            hint="store it again once the cause of that error is gone.",
        )

    def undecided_error(self, entry: int, cause: UndecidedCommitError) -> StreamingMemoryError:
        error = StreamingMemoryError(
            f"Remote buffer {self.spec.buffer_id}, entry {entry} cannot be stored: nobody knows whether the last "
            "commit is on disk, and a store could overwrite what it, or the one before, has.",
            hint="commit again, or roll back, once the cause of that error is gone.",
        )
        error.__cause__ = cause
        return error

    def sync(self) -> None:
        """Wait until what was written is on disk."""
        check_size(self.slab)  # a commit must not name rows that are lost
        if not self.table.is_dirty:
            return
        try:
            sync(self.slab)
        except StreamingMemoryError:
            # The system forgets what it failed to write, so that syncing again would succeed without it.
            self.table.tear()
            raise
        self.table.is_dirty = False


def _page_aligned(spec: BufferSpec) -> npt.NDArray[np.uint8]:
    """Memory for the whole pages of an entry."""
    return aligned_bytes(BufferSpec(spec.buffer_id, (spec.padded_bytes,), np.dtype(np.uint8), entries=1))


def _clear(transfer: Transfer, staging: Staging) -> None:
    del staging
    transfer.raw.fill(0)
    transfer.finish()


def _let_go(resources: contextlib.ExitStack, disk: DiskQueue) -> None:
    if disk.is_own_thread():
        # The garbage collector ran there; a thread cannot wait for itself.
        threading.Thread(target=resources.close, name="popxl-file-tier-close").start()
    else:
        resources.close()


def _nothing() -> None:
    pass
