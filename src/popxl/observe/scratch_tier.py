"""A tier over a file that has no name: for measuring a disk, with nothing left behind however the process ends."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

from popxl.runtime.streaming.disk import DiskQueue, DiskSettings, direct_alignment, make_direct
from popxl.runtime.streaming.pieces import Request, Slab
from popxl.runtime.streaming.tier import BufferSpec, Capabilities, ImmutableArray, Tier
from popxl.runtime.streaming.transfer import Transfer


@final
class ScratchTier(Tier):
    """Rows in a file of a directory, moved as `popxl.runtime.streaming.FileTier` moves them. Rows begin unwritten.

    Args:
        directory: It exists.
        settings: How the disk is used.
        checksums: Whether digests are taken, as the file tier does.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(asynchronous=True)

    def __init__(self, directory: Path, settings: DiskSettings, *, checksums: bool) -> None:
        super().__init__()
        self._directory = directory
        self._settings = settings
        self._checksums = checksums
        self._offsets: dict[int, int] = {}
        self._slab: Slab | None = None
        self._queue: DiskQueue | None = None

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        size_bytes = 0
        for spec in buffers:
            self._offsets[spec.buffer_id] = size_bytes
            size_bytes += spec.entries * spec.padded_bytes
        alignment = direct_alignment(self._directory)
        fd = os.open(self._directory, os.O_RDWR | os.O_TMPFILE, 0o600)
        try:
            os.ftruncate(fd, size_bytes)
            is_direct = make_direct(fd, alignment)
        except BaseException:
            os.close(fd)
            raise
        self._slab = Slab(fd, self._directory, size_bytes, alignment if is_direct else 1)
        self._queue = DiskQueue(self._settings)

    def _detach(self) -> None:
        if self._queue is not None:
            self._queue.close()
        if self._slab is not None:
            os.close(self._slab.fd)
        self._queue = self._slab = None

    def start_reads(self, transfers: Sequence[Transfer]) -> None:
        """See `Tier.start_reads`."""
        self._start(transfers, is_write=False)

    def start_writes(self, transfers: Sequence[Transfer]) -> None:
        """See `Tier.start_writes`."""
        self._start(transfers, is_write=True)

    def _start(self, transfers: Sequence[Transfer], *, is_write: bool) -> None:
        assert self._queue is not None
        assert self._slab is not None
        slab = self._slab
        self._queue.start(
            Request(
                slab,
                self._offsets[transfer.spec.buffer_id] + transfer.entry * transfer.spec.padded_bytes,
                transfer.raw,
                transfer.spec.entry_bytes,
                is_write=is_write,
                is_hashed=self._checksums,
                on_done=functools.partial(_finish, transfer),
            )
            for transfer in transfers
        )

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        raise NotImplementedError

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        raise NotImplementedError


def _finish(transfer: Transfer, error: BaseException | None, digest: int | None) -> None:
    del digest
    transfer.finish(error)
