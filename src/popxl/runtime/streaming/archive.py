"""Archives of committed generations in object stores: push, pull, and what is there (extra ``object``).

Nothing of a push is visible before its record is, and that is written last; nothing of a pull is before the
directory's own commit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from popxl.errors import PopxlValueError, StreamingMemoryError

from .archive_format import (
    CODECS,
    MAX_RECORD_BYTES,
    ArchiveRecord,
    decode_record,
    encode_record,
    generations_in,
    record_key,
)
from .archive_pull import Pull, refuse_other_program
from .archive_push import AT_ONCE, OnProgress, Push
from .archive_store import ObjectStore
from .committed import CommittedDirectory
from .file import FileTier


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

    @classmethod
    def of(cls, record: ArchiveRecord, transfer: Push | Pull) -> Moved:
        """The sum of a transfer of this generation."""
        return cls(record.generation, record.n_rows, record.row_bytes, transfer.chunks, transfer.object_bytes)


class Archive:
    """The archive at a URL.

    Args:
        url: ``s3://bucket/prefix``, ``gs://...``, ``az://...`` or ``file:///directory``. Credentials come from where
            the store's own tools take them, such as the environment variables ``AWS_...``.
        create: Whether to make the directory of a ``file:`` URL if it is missing.

    Raises:
        PopxlError: The extra ``object`` is not installed.
        PopxlValueError: The URL names no store.

    Example:
        >>> import tempfile, numpy as np
        >>> from popxl.runtime.streaming import BufferSpec
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     tier = FileTier(scratch + "/here")
        ...     tier.open([BufferSpec(1, (2,), np.dtype("float32"), entries=4, names=((3, "w"),))])
        ...     tier.store(1, 3, np.ones(2, np.float32))
        ...     _ = tier.commit()
        ...     tier.close()
        ...     archive = Archive(Path(scratch, "archive").as_uri(), create=True)
        ...     archive.push(scratch + "/here").row_bytes, archive.pull(scratch + "/there").generation
        (8, 1)
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self.url = url
        self._objects = ObjectStore(url, create=create)

    def generations(self) -> list[int]:
        """The generations that it holds, rising."""
        return generations_in(self._objects.keys("generations/"))

    def record(self, generation: int | None = None) -> ArchiveRecord:
        """The record of a generation; of the last one, if none is named.

        Raises:
            StreamingMemoryError: There is none, it is damaged, or the store fails.
        """
        return self._record(self.generations(), generation)

    def _record(self, known: list[int], generation: int | None) -> ArchiveRecord:
        if not known:
            raise StreamingMemoryError(f"{self.url} holds no archive.", hint="push one: `popxl buffers push DIR URL`.")
        if generation is None:
            generation = known[-1]
        key = record_key(generation)
        content = self._objects.get(key, MAX_RECORD_BYTES)
        if content is None:
            raise StreamingMemoryError(
                f"{self.url} has no generation {generation}; the last is {known[-1]}.",
                hint="list them: `popxl buffers generations URL`.",
            )
        record = decode_record(content, f"{self.url}: {key}")
        if record.generation != generation:
            raise StreamingMemoryError(
                f"{self.url}: {key} is of generation {record.generation}.", hint="push it again."
            )
        return record

    def push(
        self, directory: str | PathLike[str], codec: str = "none", on_progress: OnProgress = lambda _: None
    ) -> Moved:
        """Archive what the last commit of a directory published. A session may have it open.

        Args:
            directory: The directory of a file tier.
            codec: ``"zstd"`` compresses the chunks of those buffers of which it saves 5 % or more. A buffer that the
                archive has already keeps its codec.
            on_progress: Told how many bytes of rows are done.

        Raises:
            StreamingMemoryError: Nothing was committed, the directory is damaged, a session commits meanwhile, the
                archive has a later generation or another of this number, or the store fails. The archive shows
                nothing new then.
        """
        if codec not in CODECS:
            raise PopxlValueError(f"Unknown codec {codec!r}.", hint=f"choose one of {', '.join(CODECS)}.")
        with CommittedDirectory.open(directory) as committed:
            number = committed.generation
            if not number:
                raise StreamingMemoryError(f"{committed.path} has no commit yet, so there is nothing to push.")
            known = self.generations()
            if number not in known and number < max(known, default=0):
                # It would never be the last one there, so that no pull would find it.
                raise StreamingMemoryError(
                    f"{self.url} has generation {known[-1]}, and {committed.path} is only at {number}.",
                    hint="it was pushed from another directory; pull it first, or push to another URL.",
                )
            last = self._last_record(known)
            with Push(self._objects, committed, codec, on_progress) as pushed:
                buffers = {
                    spec.buffer_id: pushed.buffer(spec, None if last is None else last.buffers.get(spec.buffer_id))
                    for spec in committed.buffers
                    if spec.is_persistent
                }
            record = ArchiveRecord(number, committed.buffers, buffers)
        content, key = encode_record(record), record_key(number)
        if not self._objects.create(key, content) and self._objects.get(key, MAX_RECORD_BYTES) != content:
            raise StreamingMemoryError(
                f"{self.url} has another generation {number}: it was pushed from another directory, or with another "
                "codec.",
                hint="pull it first, or push to another URL.",
            )
        return Moved.of(record, pushed)

    def _last_record(self, known: list[int]) -> ArchiveRecord | None:
        try:
            return self._record(known, None)
        except StreamingMemoryError:
            return None  # none, or one that nobody can use: everything is pushed

    def pull(
        self,
        directory: str | PathLike[str],
        generation: int | None = None,
        on_progress: OnProgress = lambda _: None,
    ) -> Moved:
        """Make a directory hold what an archive does, by one commit; what it held stands until then.

        Rows that it has already, undamaged, are not fetched. A session goes on from it with
        ``StreamingMemory("file:DIR", reopen=True)``, and what that commits can be pushed to the same archive: the
        commit gets the number of the archive's last generation, or a later one.

        Args:
            directory: Missing, empty, or of the same program; no session may have it open.
            generation: Which one; the last, if not given.
            on_progress: Told how many bytes of rows are done.

        Raises:
            StreamingMemoryError: The directory is in use, or of another program; the archive is damaged, or the store
                fails.
        """
        known = self.generations()
        record = self._record(known, generation)
        path = Path(directory)
        refuse_other_program(path, record.specs)
        tier = FileTier(path, reopen=True)
        tier.open(record.specs)
        try:
            # Only now that nobody else can commit to it.
            with CommittedDirectory.open(path) as committed, ThreadPoolExecutor(AT_ONCE) as pool:
                pulled = Pull(self._objects, tier, committed, pool, on_progress)
                for buffer in record.buffers.values():
                    pulled.buffer(buffer)
            # An old one becomes the one after the last: what is committed next is then the last when it is pushed.
            least = record.generation if record.generation == known[-1] else known[-1] + 1
            if pulled.has_stored or tier.generation < least:
                tier.skip_numbers_below(least)
                tier.commit()
        finally:
            tier.close()
        return Moved.of(record, pulled)
