"""Archives of committed generations in object stores: push, pull, and what is there (extra ``object``).

An object store is reached through `obstore`, which retries what fails for a moment. Nothing of an archive is visible
before its record is, and that is written last; nothing of a pull is before the directory's own commit.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from popxl.errors import PopxlError, PopxlValueError, StreamingMemoryError

from .alloc import aligned_bytes, frozen_entry
from .archive_codec import compressed, decompressed, extra, is_worthwhile
from .archive_format import (
    CHUNK_BYTES,
    CODECS,
    MAX_RECORD_BYTES,
    ArchivedBuffer,
    ArchiveRecord,
    Chunk,
    chunk_key,
    chunks_of,
    decode_record,
    encode_record,
    generations_in,
    record_key,
)
from .committed import CommittedDirectory
from .file import FileTier
from .layout import MANIFEST_NAME, SlabRecord, describe_difference
from .tier import BufferSpec

#: How many objects are on their way at once; each is up to 8 MiB.
_AT_ONCE = 8
#: Told how many bytes of rows are done.
OnProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """What a push or a pull did.

    Attributes:
        generation: Of the archive.
        rows: Rows of it.
        row_bytes: Their size.
        chunks: Objects that were moved.
        object_bytes: Their size.
    """

    generation: int
    rows: int
    row_bytes: int
    chunks: int
    object_bytes: int


class Archive:
    """The archive at a URL.

    Args:
        url: ``s3://bucket/prefix``, ``gs://...``, ``az://...`` or ``file:///directory``. Credentials come from where
            the store's own tools take them, such as the environment variables ``AWS_...``.

    Raises:
        PopxlError: The extra ``object`` is not installed.
        PopxlValueError: The URL names no store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._obstore = extra("obstore")
        stores: Any = extra("obstore.store")
        options = {"mkdir": True} if url.startswith("file:") else {}
        try:
            self._objects: Any = stores.from_url(url, **options)
        except Exception as error:  # of many types
            raise PopxlValueError(
                f"{url!r} names no object store: {_first_line(error)}.",
                hint="write s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory.",
            ) from error

    def generations(self) -> list[int]:
        """The generations that it holds, rising."""
        return generations_in(self._keys("generations/"))

    def record(self, generation: int | None = None) -> ArchiveRecord:
        """The record of a generation; of the last one, if none is named.

        Raises:
            StreamingMemoryError: There is none, it is damaged, or the store fails.
        """
        if generation is None:
            known = self.generations()
            if not known:
                raise StreamingMemoryError(
                    f"{self.url} holds no archive.", hint="push one: `popxl buffers push DIR URL`."
                )
            generation = known[-1]
        key = record_key(generation)
        content = self._get(key, MAX_RECORD_BYTES)
        if content is None:
            raise StreamingMemoryError(
                f"{self.url} has no generation {generation}; it has {self.generations()}.",
                hint="list them: `popxl buffers generations URL`.",
            )
        record = decode_record(content, f"{self.url}: {key}")
        if record.generation != generation:
            raise StreamingMemoryError(
                f"{self.url}: {key} is of generation {record.generation}.", hint="push it again."
            )
        return record

    # Pushing

    def push(
        self, directory: str | PathLike[str], codec: str = "none", on_progress: OnProgress = lambda _: None
    ) -> Moved:
        """Archive what the last commit of a directory published. A session may have it open.

        Args:
            directory: The directory of a file tier.
            codec: ``"zstd"`` compresses the chunks of those buffers of which it saves 5 % or more.
            on_progress: Told how many bytes of rows are done.

        Raises:
            StreamingMemoryError: Nothing was committed, the directory is damaged, a session commits meanwhile, the
                archive has another generation of this number, or the store fails. The archive shows nothing new then.
        """
        if codec not in CODECS:
            raise PopxlValueError(f"Unknown codec {codec!r}.", hint=f"choose one of {', '.join(CODECS)}.")
        with CommittedDirectory.open(directory) as committed:
            if not committed.generation:
                raise StreamingMemoryError(f"{committed.path} has no commit yet, so there is nothing to push.")
            last = self._last_record()
            there = set(self._keys("chunks/"))
            pushed = _Push(self, committed, codec, there, on_progress)
            buffers = {
                spec.buffer_id: pushed.buffer(spec, None if last is None else last.buffers.get(spec.buffer_id))
                for spec in committed.buffers
                if spec.is_persistent
            }
            pushed.finish()
            record = ArchiveRecord(committed.generation, committed.buffers, buffers)
        content, key = encode_record(record), record_key(record.generation)
        if not self._create(key, content) and self._get(key, MAX_RECORD_BYTES) != content:
            raise StreamingMemoryError(
                f"{self.url} has another generation {record.generation}: it was pushed from another directory, or with "
                "another codec.",
                hint="push to another URL.",
            )
        rows = sum(len(b.rows) for b in buffers.values())
        row_bytes = sum(len(b.rows) * b.spec.entry_bytes for b in buffers.values())
        return Moved(record.generation, rows, row_bytes, pushed.chunks, pushed.object_bytes)

    def _last_record(self) -> ArchiveRecord | None:
        try:
            return self.record()
        except StreamingMemoryError:
            return None  # none, or one that nobody can use: everything is pushed

    # Pulling

    def pull(
        self,
        directory: str | PathLike[str],
        generation: int | None = None,
        on_progress: OnProgress = lambda _: None,
    ) -> Moved:
        """Make a directory hold what an archive does, by one commit; what it held stands until then.

        Rows that it has already are not fetched. A session goes on from it with
        ``StreamingMemory("file:DIR", reopen=True)``.

        Args:
            directory: Missing, empty, or of the same program; no session may have it open.
            generation: Which one; the last, if not given.
            on_progress: Told how many bytes of rows are done.

        Raises:
            StreamingMemoryError: The directory is in use, or of another program; the archive is damaged, or the store
                fails.
        """
        record = self.record(generation)
        path = Path(directory)
        known = _known_digests(path, record.specs)
        tier = FileTier(path, reopen=True)
        tier.open(record.specs)
        chunks = object_bytes = 0
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                done_bytes = 0
                for buffer in record.buffers.values():
                    have = known.get(buffer.spec.buffer_id, {})
                    for moved in self._pull_buffer(tier, buffer, have, pool):
                        chunks += moved.n_bytes > 0
                        object_bytes += moved.n_bytes
                        done_bytes += moved.row_bytes
                        on_progress(done_bytes)
            tier.commit()
        finally:
            tier.close()
        rows = sum(len(b.rows) for b in record.buffers.values())
        row_bytes = sum(len(b.rows) * b.spec.entry_bytes for b in record.buffers.values())
        return Moved(record.generation, rows, row_bytes, chunks, object_bytes)

    def _pull_buffer(
        self, tier: FileTier, buffer: ArchivedBuffer, have: Mapping[int, str], pool: ThreadPoolExecutor
    ) -> Iterator[_Pulled]:
        """Store the rows of one buffer; yield what was fetched."""
        spec = buffer.spec
        zeros = np.zeros(spec.shape, spec.dtype)
        # Rows that nobody had written then are zeros; those of no size have no chunk.
        for entry in sorted(have.keys() - set(buffer.rows)) if spec.entry_bytes else buffer.rows:
            tier.store(spec.buffer_id, entry, zeros)
        wanted = [
            (number, chunk)
            for number, chunk in enumerate(chunks_of(spec, len(buffer.rows)))
            if any(have.get(buffer.rows[row]) != buffer.digests[row] for row in _rows_of(chunk))
        ]
        fetched = _in_order(
            pool, (lambda number=number, chunk=chunk: self._fetch(buffer, number, chunk) for number, chunk in wanted)
        )
        row: npt.NDArray[np.uint8] | None = None
        for (_, chunk), (content, n_bytes) in zip(wanted, fetched, strict=True):
            if spec.entry_bytes > CHUNK_BYTES:
                if chunk.start == 0:
                    row = aligned_bytes(spec)
                assert row is not None  # the pieces of a row follow each other
                row[chunk.start : chunk.start + chunk.n_bytes] = np.frombuffer(content, np.uint8)
                if chunk.start + chunk.n_bytes == spec.entry_bytes:
                    self._store(tier, buffer, chunk.first, row)
            else:
                for k in range(chunk.count):
                    raw = aligned_bytes(spec)
                    raw[...] = np.frombuffer(content, np.uint8, spec.entry_bytes, k * spec.entry_bytes)
                    self._store(tier, buffer, chunk.first + k, raw)
            yield _Pulled(n_bytes, chunk.n_bytes)

    def _store(self, tier: FileTier, buffer: ArchivedBuffer, place: int, raw: npt.NDArray[np.uint8]) -> None:
        found = f"{xxhash.xxh3_64_intdigest(raw.data):016x}"
        if found != buffer.digests[place]:
            raise StreamingMemoryError(
                f"{self.url}: remote buffer {buffer.spec.buffer_id}, entry {buffer.rows[place]} has the digest "
                f"{found}, and its record says {buffer.digests[place]}.",
                hint="pull another generation, or push this one again.",
            )
        tier.store(buffer.spec.buffer_id, buffer.rows[place], frozen_entry(raw, buffer.spec))

    def _fetch(self, buffer: ArchivedBuffer, number: int, chunk: Chunk) -> tuple[bytes, int]:
        """A chunk, checked, and the size of its object."""
        key = buffer.key(number)
        content = self._get(key, chunk.n_bytes + chunk.n_bytes // 8 + 1024)
        if content is None:
            raise StreamingMemoryError(f"{self.url} lacks {key}.", hint="push the generation again.")
        plain = content if buffer.codec == "none" else decompressed(content, buffer.spec, chunk.n_bytes)
        if plain is None or len(plain) != chunk.n_bytes or hashlib.sha256(plain).hexdigest() != buffer.chunks[number]:
            raise StreamingMemoryError(
                f"{self.url}: {key} is damaged: its content is not what its name says.",
                hint="delete that object and push the generation again.",
            )
        return plain, len(content)

    # The store

    def _keys(self, prefix: str) -> list[str]:
        with self._errors(f"listing {prefix}"):
            return [meta["path"] for batch in self._obstore.list(self._objects, prefix=prefix) for meta in batch]

    def _get(self, key: str, most_bytes: int) -> bytes | None:
        """An object, or None if it is not there; its size is checked before it is fetched."""
        with self._errors(f"getting {key}"):
            try:
                found = self._obstore.get(self._objects, key)
            except FileNotFoundError:
                return None
            if found.meta["size"] > most_bytes:
                raise StreamingMemoryError(
                    f"{self.url}: {key} has {found.meta['size']} bytes, and at most {most_bytes} were expected.",
                    hint="something else has written it; push the generation again.",
                )
            return bytes(found.bytes())

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        with self._errors(f"putting {key}"):
            self._obstore.put(self._objects, key, content, use_multipart=False)

    def _create(self, key: str, content: bytes) -> bool:
        """Write an object unless it is there; return whether it was not."""
        with self._errors(f"putting {key}"):
            exceptions: Any = extra("obstore.exceptions")
            try:
                self._obstore.put(self._objects, key, content, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
            return True

    @contextmanager
    def _errors(self, what: str) -> Generator[None]:
        try:
            yield
        except PopxlError:
            raise
        except Exception as error:  # of many types
            raise StreamingMemoryError(
                f"{self.url}: {what} failed: {_first_line(error)}.",
                hint="check the URL, the network and the credentials; what is archived already is not sent again.",
            ) from error


@dataclass(frozen=True, slots=True)
class _Pulled:
    n_bytes: int
    row_bytes: int


class _Push:
    """One push: reads chunks in order, and puts those that the archive lacks."""

    def __init__(
        self, archive: Archive, committed: CommittedDirectory, codec: str, there: set[str], on_progress: OnProgress
    ) -> None:
        self._archive, self._committed, self._codec, self._there = archive, committed, codec, there
        self._on_progress = on_progress
        self._done_bytes = 0
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._under_way: deque[Future[None]] = deque()
        self.chunks = self.object_bytes = 0

    def buffer(self, spec: BufferSpec, last: ArchivedBuffer | None) -> ArchivedBuffer:
        """Put what is new of a buffer. `last` is what the last archive has of it."""
        rows = tuple(map(int, self._committed.written(spec.buffer_id)))
        digests = tuple(f"{self._committed.digest(spec.buffer_id, row):016x}" for row in rows)
        chunks = chunks_of(spec, len(rows))
        codec = self._codec if last is None or not _is_alike(last, spec) else last.codec
        if codec == "zstd" and (last is None or not _is_alike(last, spec)) and chunks:
            codec = codec if is_worthwhile(self._read(spec, rows, chunks[0]), spec) else "none"
        names: list[str] = []
        for chunk in chunks:
            name = _known_name(spec, last, rows, digests, chunk)
            if name is None or chunk_key(name, codec) not in self._there:
                content = self._read(spec, rows, chunk)
                name = hashlib.sha256(content).hexdigest()
                if chunk_key(name, codec) not in self._there:
                    self._put(chunk_key(name, codec), content, codec, spec)
            names.append(name)
            self._done_bytes += chunk.n_bytes
            self._on_progress(self._done_bytes)
        return ArchivedBuffer(spec, rows, digests, tuple(names), codec)

    def _read(self, spec: BufferSpec, rows: tuple[int, ...], chunk: Chunk) -> bytes:
        """The bytes of a chunk; rows are compared with their digests."""
        parts: list[bytes] = []
        for place in _rows_of(chunk):
            row = np.asarray(self._committed.read(spec.buffer_id, rows[place])).reshape(-1).view(np.uint8)
            parts.append(
                row[chunk.start : chunk.start + chunk.n_bytes].tobytes() if chunk.count == 1 else row.tobytes()
            )
        return b"".join(parts)

    def _put(self, key: str, content: bytes, codec: str, spec: BufferSpec) -> None:
        while len(self._under_way) >= _AT_ONCE:
            self._under_way.popleft().result()
        self._there.add(key)
        stored = content if codec == "none" else compressed(content, spec)
        self.chunks += 1
        self.object_bytes += len(stored)
        self._under_way.append(self._pool.submit(self._archive.put, key, stored))

    def finish(self) -> None:
        """Wait until everything is there."""
        try:
            while self._under_way:
                self._under_way.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def _rows_of(chunk: Chunk) -> range:
    return range(chunk.first, chunk.first + chunk.count)


def _is_alike(last: ArchivedBuffer, spec: BufferSpec) -> bool:
    return (last.spec.shape, last.spec.dtype) == (spec.shape, spec.dtype)


def _known_name(
    spec: BufferSpec, last: ArchivedBuffer | None, rows: tuple[int, ...], digests: tuple[str, ...], chunk: Chunk
) -> str | None:
    """What the last archive calls a chunk of the same rows with the same digests, if it has one."""
    if last is None or not _is_alike(last, spec):
        return None
    places = slice(chunk.first, chunk.first + chunk.count)
    if last.rows[places] != rows[places] or last.digests[places] != digests[places]:
        return None
    others = chunks_of(spec, len(last.rows))
    return next((name for other, name in zip(others, last.chunks, strict=True) if other == chunk), None)


def _known_digests(path: Path, specs: Iterable[BufferSpec]) -> dict[int, dict[int, str]]:
    """The digests of the rows that a directory has, by buffer and entry; nothing, if it is missing or empty."""
    if not (path / MANIFEST_NAME).exists():
        return {}
    with CommittedDirectory.open(path) as committed:
        difference = describe_difference(map(SlabRecord.of, committed.buffers), specs)
        if difference is not None:
            reason = difference.replace("the program", "the archive")
            raise StreamingMemoryError(
                f"{path} belongs to another program than the archive: {reason}.",
                hint="pull into another directory.",
            )
        persistent = [spec.buffer_id for spec in committed.buffers if spec.is_persistent]
        return {
            i: {int(entry): f"{committed.digest(i, int(entry)):016x}" for entry in committed.written(i)}
            for i in persistent
        }


def _in_order(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], Any]]) -> Iterator[Any]:
    """Results of jobs in their order; a few more are begun than are asked for."""
    waiting: deque[Future[Any]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) > _AT_ONCE:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
