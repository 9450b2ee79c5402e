"""What an archive of a committed generation consists of: chunks named by their content, and a record. Pure functions.

The format is described for people in ``docs/explanation/archives.md``.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from popxl.errors import StreamingMemoryError

from .layout import MAX_MANIFEST_BYTES, decode_manifest, encode_manifest
from .tier import BufferSpec

FORMAT_NAME = "popxl-archive"
FORMAT_VERSION = 1
CHUNK_BYTES = 8 * 2**20
#: About 30 bytes a row: ten million rows. A record is read as a whole.
MAX_RECORD_BYTES = 2**29
#: What JSON keeps exactly everywhere. A directory counts on from the generation that it pulled, so there must be room.
MAX_GENERATION = 2**53 - 1
CODECS = ("none", "zstd")
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{16}", re.ASCII)
_RECORD_NAME = re.compile(r"generations/([1-9]\d{0,15})\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a buffer's rows: some whole rows, or a piece of one.

    Attributes:
        first: Place of its first row among the rows that were written.
        count: How many rows it has; 1 for a piece.
        start: Where the piece starts in its row, in bytes.
        n_bytes: Its size.
    """

    first: int
    count: int
    start: int
    n_bytes: int


def chunks_of(spec: BufferSpec, rows: int) -> list[Chunk]:
    """Cut the rows of a buffer that were written, `rows` many, into chunks of about 8 MiB.

    Example:
        >>> import numpy as np
        >>> spec = BufferSpec(1, (2**20,), np.dtype("float32"), entries=9)
        >>> [(c.first, c.count, c.n_bytes >> 20) for c in chunks_of(spec, 5)]
        [(0, 2, 8), (2, 2, 8), (4, 1, 4)]
    """
    size = spec.entry_bytes
    if not size:
        return []
    if size > CHUNK_BYTES:
        starts = range(0, size, CHUNK_BYTES)
        return [Chunk(row, 1, start, min(CHUNK_BYTES, size - start)) for row in range(rows) for start in starts]
    together = max(1, CHUNK_BYTES // size)
    firsts = range(0, rows, together)
    return [Chunk(first, min(together, rows - first), 0, min(together, rows - first) * size) for first in firsts]


def chunk_count(spec: BufferSpec, rows: int) -> int:
    """How many chunks `chunks_of` would give. For sizes that nobody has checked yet: it takes no memory.

    Example:
        >>> import numpy as np
        >>> chunk_count(BufferSpec(1, (2**20,), np.dtype("float32"), entries=9), 5)
        3
    """
    size = spec.entry_bytes
    if size > CHUNK_BYTES:
        return rows * -(-size // CHUNK_BYTES)
    return -(-rows // (CHUNK_BYTES // size)) if size else 0


@dataclass(frozen=True, slots=True)
class ArchivedBuffer:
    """The rows of one buffer.

    Attributes:
        spec: The buffer.
        rows: The entries that were written, rising.
        digests: xxh3_64 of each, as 16 hexadecimal digits.
        chunks: SHA-256 of each chunk of `chunks_of`, before the codec.
        codec: How its chunks are stored.
    """

    spec: BufferSpec
    rows: tuple[int, ...]
    digests: tuple[str, ...]
    chunks: tuple[str, ...]
    codec: str = "none"

    def key(self, number: int) -> str:
        """The name of a chunk's object."""
        return chunk_key(self.chunks[number], self.codec)


@dataclass(frozen=True, slots=True)
class ArchiveRecord:
    """One generation of a directory.

    Attributes:
        generation: Its number.
        specs: All buffers of the directory, also those that no commit publishes.
        buffers: By id, those that it does.
    """

    generation: int
    specs: tuple[BufferSpec, ...]
    buffers: Mapping[int, ArchivedBuffer]

    @property
    def n_rows(self) -> int:
        """How many rows were written."""
        return sum(len(buffer.rows) for buffer in self.buffers.values())

    @property
    def row_bytes(self) -> int:
        """Their size."""
        return sum(len(buffer.rows) * buffer.spec.entry_bytes for buffer in self.buffers.values())


def chunk_key(sha256: str, codec: str) -> str:
    """The name of a chunk's object, from its content before the codec."""
    return f"chunks/{sha256[:2]}/{sha256}{'' if codec == 'none' else '.' + codec}"


def record_key(generation: int) -> str:
    """The name of the object that lists a generation."""
    return f"generations/{generation:d}.json"


def generations_in(keys: Iterable[str]) -> list[int]:
    """The generations among the names of objects, rising."""
    found = (_RECORD_NAME.fullmatch(key) for key in keys)
    numbers = (int(match[1]) for match in found if match)
    return sorted(number for number in numbers if 1 <= number <= MAX_GENERATION)


def encode_record(record: ArchiveRecord) -> bytes:
    """The record as JSON; the buffers are described as in a directory's manifest.

    Raises:
        StreamingMemoryError: It would be larger than `MAX_RECORD_BYTES`.
    """
    content = json.dumps(
        {
            "format": FORMAT_NAME,
            "version": FORMAT_VERSION,
            "generation": record.generation,
            "manifest": encode_manifest(record.specs).decode(),
            "buffers": {
                str(buffer_id): {"codec": b.codec, "rows": b.rows, "digests": b.digests, "chunks": b.chunks}
                for buffer_id, b in sorted(record.buffers.items())
            },
        },
        separators=(",", ":"),
    ).encode()
    if len(content) > MAX_RECORD_BYTES:
        raise StreamingMemoryError(
            f"The record of generation {record.generation} would have {len(content)} bytes, more than "
            f"{MAX_RECORD_BYTES}.",
            hint="use fewer and larger rows.",
        )
    return content


def decode_record(content: bytes, where: str) -> ArchiveRecord:
    """Read a record that anybody may have written.

    Args:
        content: The object.
        where: Its name, for messages.

    Raises:
        StreamingMemoryError: It is not JSON, of another format or version, or anything in it is not as it must be.
    """
    try:
        fields: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"it is not JSON ({error})") from error
    if not isinstance(fields, dict) or cast("dict[str, Any]", fields).get("format") != FORMAT_NAME:
        raise _damaged(where, f"it is not of the format {FORMAT_NAME!r}")
    known = cast("dict[str, Any]", fields)
    if known.get("version") != FORMAT_VERSION:
        raise StreamingMemoryError(
            f"{where} is of archive version {_short(known.get('version'))}; this OpenPopXL reads {FORMAT_VERSION}.",
            hint="update OpenPopXL.",
        )
    generation, manifest, buffers = known.get("generation"), known.get("manifest"), known.get("buffers")
    if not _is_count(generation) or not isinstance(manifest, str) or not isinstance(buffers, dict):
        raise _damaged(where, "generation, manifest or buffers is missing or of the wrong kind")
    if not 1 <= cast("int", generation) <= MAX_GENERATION:
        raise _damaged(where, f"its generation is {generation}")
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise _damaged(where, f"its manifest has {len(manifest)} characters")
    specs = tuple(record.spec(where) for record in decode_manifest(manifest.encode(), where))
    persistent = {spec.buffer_id: spec for spec in specs if spec.is_persistent}
    named = cast("dict[str, Any]", buffers)
    if set(named) != set(map(str, persistent)):
        raise _damaged(where, "its buffers are not those of its manifest")
    archived = {i: _buffer(spec, named[str(i)], where) for i, spec in persistent.items()}
    return ArchiveRecord(cast("int", generation), specs, archived)


def _buffer(spec: BufferSpec, fields: Any, where: str) -> ArchivedBuffer:
    what = f"buffer {spec.buffer_id}"
    if not isinstance(fields, dict):
        raise _damaged(where, f"{what} is not an object")
    known = cast("dict[str, Any]", fields)
    rows, digests, chunks = (_list(known.get(name), f"{what}: {name}", where) for name in ("rows", "digests", "chunks"))
    if known.get("codec") not in CODECS:
        raise _damaged(where, f"{what} has the codec {_short(known.get('codec'))}")
    if not all(_is_count(row) and row < spec.entries for row in rows):
        raise _damaged(where, f"{what} has rows that are no entries below {spec.entries}")
    if any(a >= b for a, b in itertools.pairwise(rows)):
        raise _damaged(where, f"the rows of {what} do not rise")
    if len(digests) != len(rows) or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests):
        raise _damaged(where, f"{what} has no digest for each row")
    wanted = chunk_count(spec, len(rows))
    if len(chunks) != wanted or not all(isinstance(c, str) and _SHA256.fullmatch(c) for c in chunks):
        raise _damaged(where, f"{what} has {len(chunks)} names of chunks, and {wanted} are wanted")
    return ArchivedBuffer(spec, tuple(rows), tuple(digests), tuple(chunks), cast("str", known["codec"]))


def _list(value: object, what: str, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise _damaged(where, f"{what} is not a list")
    return cast("list[Any]", value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _short(value: object) -> str:
    return repr(value)[:60]


def _damaged(where: str, reason: str) -> StreamingMemoryError:
    return StreamingMemoryError(
        f"The archive's record {where} is damaged: {reason}.", hint="pull another generation, or push it again."
    )
