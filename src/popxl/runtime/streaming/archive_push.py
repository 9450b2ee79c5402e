"""One push: what of a commit an archive lacks is read and put there. The record is the caller's to write, last."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from .archive_codec import compressed, is_worthwhile
from .archive_format import CHUNK_BYTES, ArchivedBuffer, Chunk, chunk_key, chunks_of
from .archive_store import ObjectStore
from .committed import CommittedDirectory
from .tier import BufferSpec

#: How many objects are on their way at once; each is up to 8 MiB.
AT_ONCE = 8
#: Told how many bytes of rows are done.
OnProgress = Callable[[int], None]


class Push:
    """Reads chunks in order, and puts those that the archive lacks; a context manager.

    Invariant: at most `AT_ONCE` + 1 chunks are in memory, however large a row is.

    Args:
        objects: The archive's.
        committed: What is pushed.
        codec: For buffers that the archive does not have yet.
        on_progress: Told how many bytes of rows are done.

    Attributes:
        chunks: Objects that were put.
        object_bytes: Their size.
    """

    def __init__(
        self, objects: ObjectStore, committed: CommittedDirectory, codec: str, on_progress: OnProgress
    ) -> None:
        self._objects, self._committed, self._codec, self._on_progress = objects, committed, codec, on_progress
        self._there = set(objects.keys("chunks/"))
        self._done_bytes = 0
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._under_way: deque[Future[None]] = deque()
        self.chunks = self.object_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait until everything is there; after an error, only for what is under way."""
        try:
            while self._under_way and kind is None:
                self._under_way.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def buffer(self, spec: BufferSpec, last: ArchivedBuffer | None) -> ArchivedBuffer:
        """Put what is new of a buffer. `last` is what the last archived generation has of it."""
        if last is not None and (last.spec.shape, last.spec.dtype) != (spec.shape, spec.dtype):
            last = None
        rows = tuple(map(int, self._committed.written(spec.buffer_id)))
        digests = tuple(f"{self._committed.digest(spec.buffer_id, row):016x}" for row in rows)
        chunks = chunks_of(spec, len(rows))
        codec = self._codec if last is None else last.codec
        if last is None and codec != "none" and chunks:
            sample = next(self._contents(spec, rows, chunks[:1]))
            codec = codec if is_worthwhile(sample, spec) else "none"
        known = _known_names(last, rows, digests, chunks)
        names: list[str] = []
        for _, pieces in itertools.groupby(chunks, lambda chunk: chunk.first):
            names += self._row(spec, rows, list(pieces), known, codec)
        return ArchivedBuffer(spec, rows, digests, tuple(names), codec)

    def _row(
        self, spec: BufferSpec, rows: Sequence[int], pieces: Sequence[Chunk], known: dict[Chunk, str], codec: str
    ) -> Iterator[str]:
        """The names of the pieces of a row, or of one chunk of several; it is read if the archive lacks any."""
        names = [known.get(piece) for piece in pieces]
        is_there = all(name is not None and chunk_key(name, codec) in self._there for name in names)
        contents = itertools.repeat(b"") if is_there else self._contents(spec, rows, pieces)
        for piece, known_name, content in zip(pieces, names, contents, strict=False):
            name = known_name if is_there and known_name else hashlib.sha256(content).hexdigest()
            if chunk_key(name, codec) not in self._there:
                self._put(chunk_key(name, codec), content, codec, spec)
            yield name
            self._done_bytes += piece.n_bytes
            self._on_progress(self._done_bytes)
        for _ in contents if not is_there else ():
            pass  # to its end, where a large row is compared with its digest

    def _contents(self, spec: BufferSpec, rows: Sequence[int], pieces: Sequence[Chunk]) -> Iterator[bytes]:
        """The bytes of the pieces of one row, or of one chunk of several; rows are compared with their digests."""
        first = pieces[0]
        if spec.entry_bytes <= CHUNK_BYTES:
            entries = rows[first.first : first.first + first.count]
            yield b"".join(np.asarray(self._committed.read(spec.buffer_id, entry)).tobytes() for entry in entries)
            return
        parts = bytearray()
        for part in self._committed.chunks(spec.buffer_id, rows[first.first]):
            parts += part
            if len(parts) >= CHUNK_BYTES:
                yield bytes(parts[:CHUNK_BYTES])
                del parts[:CHUNK_BYTES]
        if parts:
            yield bytes(parts)

    def _put(self, key: str, content: bytes, codec: str, spec: BufferSpec) -> None:
        while len(self._under_way) >= AT_ONCE:
            self._under_way.popleft().result()
        self._there.add(key)
        stored = content if codec == "none" else compressed(content, spec)
        self.chunks += 1
        self.object_bytes += len(stored)
        self._under_way.append(self._pool.submit(self._objects.put, key, stored))


def _known_names(
    last: ArchivedBuffer | None, rows: Sequence[int], digests: Sequence[str], chunks: Sequence[Chunk]
) -> dict[Chunk, str]:
    """What the last archive calls those chunks that have the same rows with the same digests in it."""
    if last is None:
        return {}
    old = dict(zip(chunks_of(last.spec, len(last.rows)), last.chunks, strict=True))
    known: dict[Chunk, str] = {}
    for chunk in chunks:
        places = slice(chunk.first, chunk.first + chunk.count)
        is_same = last.rows[places] == rows[places] and last.digests[places] == digests[places]
        if is_same and chunk in old:
            known[chunk] = old[chunk]
    return known
