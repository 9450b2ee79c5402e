"""One pull: what a directory lacks of an archived generation is fetched and stored. Committing it is the caller's."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from popxl.errors import StreamingMemoryError

from .alloc import aligned_bytes, frozen_entry
from .archive_codec import decompressed
from .archive_format import CHUNK_BYTES, ArchivedBuffer, Chunk, chunks_of
from .archive_push import AT_ONCE, OnProgress
from .archive_store import ObjectStore
from .committed import CommittedDirectory
from .file import FileTier
from .layout import MANIFEST_NAME, SlabRecord, describe_difference
from .tier import BufferSpec


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A chunk to fetch, and the places of those of its rows that the directory lacks."""

    number: int
    chunk: Chunk
    lacking: tuple[int, ...]


class Pull:
    """Fetches chunks, several at once, and stores their rows in order.

    Invariant: at most `AT_ONCE` + 1 chunks are in memory, and one row.

    Args:
        objects: The archive's.
        tier: Of the directory; open, so that nobody else changes what it has.
        committed: The same directory.
        pool: Of `AT_ONCE` threads.
        on_progress: Told how many bytes of rows are done.

    Attributes:
        chunks: Objects that were fetched.
        object_bytes: Their size.
        has_stored: Whether the directory differed.
    """

    def __init__(
        self,
        objects: ObjectStore,
        tier: FileTier,
        committed: CommittedDirectory,
        pool: ThreadPoolExecutor,
        on_progress: OnProgress,
    ) -> None:
        self._objects, self._tier, self._committed, self._pool = objects, tier, committed, pool
        self._on_progress = on_progress
        self._done_bytes = 0
        self.chunks = self.object_bytes = 0
        self.has_stored = False

    def buffer(self, buffer: ArchivedBuffer) -> None:
        """Make one buffer of the tier what the archive has.

        Raises:
            StreamingMemoryError: The archive is damaged, the store fails, or the disk does.
        """
        self._clear_others(buffer)
        spec = buffer.spec
        if not spec.entry_bytes:
            for entry in buffer.rows:  # no chunk tells that they were written
                if not self._committed.holds(spec.buffer_id, entry):
                    self._store(spec, entry, aligned_bytes(spec))
            return
        row: npt.NDArray[np.uint8] | None = None
        for wanted, content in self._fetched(buffer):
            chunk = wanted.chunk
            if spec.entry_bytes <= CHUNK_BYTES:
                for place in wanted.lacking:
                    raw = aligned_bytes(spec)
                    start = (place - chunk.first) * spec.entry_bytes
                    raw[...] = np.frombuffer(content, np.uint8, spec.entry_bytes, start)
                    self._store_checked(buffer, place, raw)
            else:
                if row is None:
                    row = aligned_bytes(spec)
                row[chunk.start : chunk.start + chunk.n_bytes] = np.frombuffer(content, np.uint8)
                if chunk.start + chunk.n_bytes == spec.entry_bytes:
                    self._store_checked(buffer, chunk.first, row)
                    row = None

    def _clear_others(self, buffer: ArchivedBuffer) -> None:
        """Rows that nobody had written then read as zeros."""
        spec = buffer.spec
        others = np.setdiff1d(self._committed.written(spec.buffer_id), np.asarray(buffer.rows, np.int64))
        if others.size:
            zeros = aligned_bytes(spec, zeros=True)
            digest = f"{xxhash.xxh3_64_intdigest(zeros.data):016x}"
            for entry in map(int, others):
                if not self._has(spec, entry, digest):
                    self._store(spec, entry, zeros)

    def _has(self, spec: BufferSpec, entry: int, digest: str) -> bool:
        """Whether the directory has a row, undamaged: its digest may be right and its bytes gone since."""
        if not self._committed.holds(spec.buffer_id, entry):
            return False
        if f"{self._committed.digest(spec.buffer_id, entry):016x}" != digest:
            return False
        try:
            for _ in self._committed.chunks(spec.buffer_id, entry):
                pass
        except StreamingMemoryError:
            return False
        return True

    def _wanted(self, buffer: ArchivedBuffer) -> Iterator[_Wanted]:
        lacking: tuple[int, ...] = ()
        for number, chunk in enumerate(chunks_of(buffer.spec, len(buffer.rows))):
            if chunk.start == 0:
                places = range(chunk.first, chunk.first + chunk.count)
                lacking = tuple(p for p in places if not self._has(buffer.spec, buffer.rows[p], buffer.digests[p]))
            if lacking:
                yield _Wanted(number, chunk, lacking)
            else:
                self._progress(chunk)

    def _fetched(self, buffer: ArchivedBuffer) -> Iterator[tuple[_Wanted, bytes]]:
        """The chunks that are wanted, in order; some more are under way."""
        waiting: deque[tuple[_Wanted, Future[tuple[bytes, int]]]] = deque()

        def next_one() -> tuple[_Wanted, bytes]:
            wanted, future = waiting.popleft()
            content, n_bytes = future.result()
            self.chunks += 1
            self.object_bytes += n_bytes
            self._progress(wanted.chunk)
            return wanted, content

        for wanted in self._wanted(buffer):
            waiting.append((wanted, self._pool.submit(self._fetch, buffer, wanted)))
            if len(waiting) == AT_ONCE:
                yield next_one()
        while waiting:
            yield next_one()

    def _fetch(self, buffer: ArchivedBuffer, wanted: _Wanted) -> tuple[bytes, int]:
        """A chunk, checked, and the size of its object."""
        key, n_bytes = buffer.key(wanted.number), wanted.chunk.n_bytes
        content = self._objects.get(key, n_bytes + n_bytes // 8 + 1024)
        if content is None:
            raise StreamingMemoryError(f"{self._objects.url} lacks {key}.", hint="push the generation again.")
        plain = content if buffer.codec == "none" else decompressed(content, buffer.spec, n_bytes)
        name = buffer.chunks[wanted.number]
        if plain is None or len(plain) != n_bytes or hashlib.sha256(plain).hexdigest() != name:
            raise StreamingMemoryError(
                f"{self._objects.url}: {key} is damaged: its content is not what its name says.",
                hint="delete that object and push the generation again.",
            )
        return plain, len(content)

    def _store_checked(self, buffer: ArchivedBuffer, place: int, raw: npt.NDArray[np.uint8]) -> None:
        found = f"{xxhash.xxh3_64_intdigest(raw.data):016x}"
        if found != buffer.digests[place]:
            raise StreamingMemoryError(
                f"{self._objects.url}: remote buffer {buffer.spec.buffer_id}, entry {buffer.rows[place]} has the "
                f"digest {found}, and its record says {buffer.digests[place]}.",
                hint="pull another generation, or push this one again.",
            )
        self._store(buffer.spec, buffer.rows[place], raw)

    def _store(self, spec: BufferSpec, entry: int, raw: npt.NDArray[np.uint8]) -> None:
        self._tier.store(spec.buffer_id, entry, frozen_entry(raw, spec))
        self.has_stored = True

    def _progress(self, chunk: Chunk) -> None:
        self._done_bytes += chunk.n_bytes
        self._on_progress(self._done_bytes)


def refuse_other_program(path: Path, specs: Iterable[BufferSpec]) -> None:
    """Look whether a directory, if there is one, has the buffers of an archive.

    Raises:
        StreamingMemoryError: It has others, or cannot be read.
    """
    if not (path / MANIFEST_NAME).exists():
        return
    with CommittedDirectory.open(path) as committed:
        difference = describe_difference(map(SlabRecord.of, committed.buffers), specs)
    if difference is not None:
        reason = difference.replace("the program", "the archive")
        raise StreamingMemoryError(
            f"{path} belongs to another program than the archive: {reason}.", hint="pull into another directory."
        )
