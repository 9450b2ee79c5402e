"""The on-disk format of the file tier: slots, the manifest, the commit record. Pure functions; none opens a file.

The format is described for people in ``docs/explanation/streaming-memory.md``.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xxhash

from popxl.errors import StreamingMemoryError

from .tier import PAGE_BYTES, STORAGE_DTYPES, BufferSpec

MANIFEST_NAME = "streaming-memory.json"
MANIFEST_TEMPORARY_NAME = MANIFEST_NAME + ".tmp"
LOCK_NAME = ".lock"
FORMAT_NAME = "popxl-streaming-memory"
FORMAT_VERSION = 2
GENERATION_NAME = "generation"
GENERATION_TEMPORARY_NAME = GENERATION_NAME + ".tmp"
GENERATION_MAGIC = b"popxl-generation"
# About 100 bytes a buffer and 30 a name: far more than any program has, and little enough to read without fear.
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**63 - 1  # off_t
# 9 bytes an entry, and an entry is at least a page: half a terabyte of the smallest ones.
MAX_GENERATION_BYTES = 2**30
MAX_NAME_CHARACTERS = 4096
MAX_AXES = 64  # NumPy's limit

_HEADER = struct.Struct("<16sQQ")  # magic, version, number
_TABLE_HEADER = struct.Struct("<QQ")  # buffer id, entries
_DIGEST = struct.Struct("<Q")


def slot_offset(spec: BufferSpec, entry: int, slot: int) -> int:
    """Where one of an entry's slots starts in its slab, in bytes.

    Slot 1 of all entries comes first, then slot 2 of all: neighbouring entries stay neighbours on disk.

    Args:
        spec: The buffer.
        entry: The entry.
        slot: 1 or 2; a buffer that is not persistent has slot 1 only.

    Example:
        >>> spec = BufferSpec(1, (1025,), np.dtype("float32"), entries=2, names=((0, "w"),))
        >>> slot_offset(spec, 1, 1), slot_offset(spec, 1, 2)
        (8192, 24576)
    """
    return ((slot - 1) * spec.entries + entry) * spec.padded_bytes


def slab_bytes(spec: BufferSpec) -> int:
    """The size of a buffer's slab file: one slot an entry, or two if the buffer is persistent.

    Raises:
        StreamingMemoryError: No file can be that large.
    """
    slots = 2 if spec.is_persistent else 1
    total_bytes = slots * spec.entries * spec.padded_bytes
    if total_bytes > MAX_FILE_BYTES:
        raise StreamingMemoryError(
            f"Remote buffer {spec.buffer_id} needs a file of {total_bytes} bytes ({spec.entries} entries of "
            f"{slots} x {spec.padded_bytes}), more than a file can hold.",
            hint="use fewer entries, or several buffers.",
        )
    return total_bytes


def slab_name(buffer_id: int) -> str:
    """The file name of a buffer's slab. It is made from the number alone, so it cannot leave the directory."""
    return f"buffer-{buffer_id:d}.slab"


@dataclass(frozen=True, slots=True)
class SlabRecord:
    """One buffer as the manifest describes it: to be compared with the program's, or checked by `spec`."""

    buffer_id: int
    shape: tuple[int, ...]
    dtype: str
    entries: int
    slot_bytes: int
    names: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(cls, spec: BufferSpec) -> SlabRecord:
        """The record that describes ``spec``."""
        return cls(spec.buffer_id, spec.shape, spec.dtype.name, spec.entries, spec.padded_bytes, spec.names)

    @property
    def persistent(self) -> bool:
        """Whether a commit publishes its rows."""
        return bool(self.names)

    def spec(self, path: str) -> BufferSpec:
        """The buffer, for readers that have no program to compare with.

        Args:
            path: The manifest's name, for messages.

        Raises:
            StreamingMemoryError: Its sizes do not fit together, or no file or array can be that large.
        """
        spec = BufferSpec(self.buffer_id, self.shape, np.dtype(self.dtype), self.entries, self.names)
        # An axis of length 0 hides the others from the size, but not from NumPy.
        if math.prod(max(length, 1) for length in self.shape) * spec.dtype.itemsize > MAX_FILE_BYTES:
            raise _damaged(path, f"buffer {self.buffer_id} has the shape {_short(self.shape)}, which no array has")
        if self.slot_bytes != spec.padded_bytes:
            raise _damaged(
                path,
                f"buffer {self.buffer_id} has slot_bytes {self.slot_bytes} for entries of {spec.entry_bytes} bytes",
            )
        slab_bytes(spec)
        return spec


def encode_manifest(buffers: Iterable[BufferSpec]) -> bytes:
    """The manifest of a directory that holds ``buffers``: UTF-8 JSON, one line a buffer, by rising id.

    Raises:
        StreamingMemoryError: A name is too long, or there are too many names or entries.
    """
    specs = sorted(buffers, key=lambda spec: spec.buffer_id)
    generation_bytes(specs)  # better refused now than at the first commit
    records = [SlabRecord.of(spec) for spec in specs]
    for record in records:
        for _, name in record.names:
            if len(name) > MAX_NAME_CHARACTERS:
                raise StreamingMemoryError(
                    f"A variable in remote buffer {record.buffer_id} has a name of {len(name)} characters, more than "
                    f"{MAX_NAME_CHARACTERS}: {_short(name)}.",
                    hint="give it a shorter name.",
                )
    lines = ",\n".join(f"  {json.dumps(_fields(record))}" for record in records)
    content = (
        f'{{\n "format": "{FORMAT_NAME}",\n "version": {FORMAT_VERSION},\n "byte_order": "{sys.byteorder}",\n'
        f' "page_bytes": {PAGE_BYTES},\n "buffers": [\n{lines}\n ]\n}}\n'
    ).encode()
    if len(content) > MAX_MANIFEST_BYTES:
        raise StreamingMemoryError(
            f"The manifest of {len(records)} remote buffers would have {len(content)} bytes, more than "
            f"{MAX_MANIFEST_BYTES}.",
            hint="give the variables shorter names.",
        )
    return content


def _fields(record: SlabRecord) -> dict[str, object]:
    return {
        "id": record.buffer_id,
        "shape": record.shape,
        "dtype": record.dtype,
        "entries": record.entries,
        "slot_bytes": record.slot_bytes,
        "names": record.names,
    }


def decode_manifest(raw: bytes, path: str) -> tuple[SlabRecord, ...]:
    """Read a manifest that anybody may have written.

    Args:
        raw: The content of the file.
        path: The file's name, for messages.

    Returns:
        The buffers it lists.

    Raises:
        StreamingMemoryError: It is not JSON, not our format, of another version or byte order, or a field is
            missing, unknown, of the wrong type or out of range.
    """
    try:
        manifest: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(manifest, dict):
        raise _damaged(path, "it is not a JSON object")
    fields = cast("Mapping[str, object]", manifest)
    # Format and version first: every other field may mean something else elsewhere.
    if fields.get("format") != FORMAT_NAME:
        raise StreamingMemoryError(
            f"{path} is of the format {_short(fields.get('format'))}, not {FORMAT_NAME!r}.",
            hint="these files belong to another program; choose another directory.",
        )
    version = _integer(fields, "version", path, minimum=1)
    if version != FORMAT_VERSION:
        raise StreamingMemoryError(
            f"{path} is of format version {version}; this OpenPopXL reads version {FORMAT_VERSION}.",
            hint="update OpenPopXL, or choose another directory."
            if version > FORMAT_VERSION
            else "an older OpenPopXL wrote it; delete the directory if nobody needs it, or choose another one.",
        )
    if fields.get("byte_order") != sys.byteorder:
        raise StreamingMemoryError(
            f"{path} says byte order {_short(fields.get('byte_order'))}; this machine is {sys.byteorder}-endian.",
            hint="use a directory written on a machine of the same byte order.",
        )
    _only(fields, {"format", "version", "byte_order", "page_bytes", "buffers"}, path)
    if _integer(fields, "page_bytes", path, minimum=1) != PAGE_BYTES:
        raise _damaged(path, f"page_bytes is {fields['page_bytes']}, not {PAGE_BYTES}")
    buffers = fields.get("buffers")
    if not isinstance(buffers, list):
        raise _damaged(path, "buffers is not a list")
    records = tuple(_record(item, path) for item in cast("list[object]", buffers))
    if len({record.buffer_id for record in records}) != len(records):
        raise _damaged(path, "two buffers have the same id")
    return records


def describe_difference(found: Iterable[SlabRecord], wanted: Iterable[BufferSpec]) -> str | None:
    """How the buffers of a manifest differ from a program's, the first difference by id; ``None`` if they agree.

    What variables are called makes no difference; whether a buffer has any does, since its slab has two halves then.
    """
    old = {record.buffer_id: record for record in found}
    new = {spec.buffer_id: SlabRecord.of(spec) for spec in wanted}
    for buffer_id in sorted(old.keys() | new.keys()):
        before, after = old.get(buffer_id), new.get(buffer_id)
        if before is None:
            return f"buffer {buffer_id} is in the program but not in the directory"
        if after is None:
            return f"buffer {buffer_id} is in the directory but not in the program"
        for name in ("shape", "dtype", "entries", "slot_bytes", "persistent"):
            there, here = getattr(before, name), getattr(after, name)
            if there != here:
                return f"buffer {buffer_id} has {name} {there} in the directory and {here} in the program"
    return None


def _record(item: object, path: str) -> SlabRecord:
    if not isinstance(item, dict):
        raise _damaged(path, "a buffer is not a JSON object")
    fields = cast("Mapping[str, object]", item)
    _only(fields, {"id", "shape", "dtype", "entries", "slot_bytes", "names"}, path)
    shape, dtype = fields.get("shape"), fields.get("dtype")
    lengths = cast("list[object]", shape)
    if not isinstance(shape, list) or len(lengths) > MAX_AXES:
        raise _damaged(path, f"shape is {_short(lengths)}, not a list of at most {MAX_AXES} lengths")
    entries = _integer(fields, "entries", path)
    if not isinstance(dtype, str) or dtype not in STORAGE_DTYPES:
        raise _damaged(path, f"dtype is {_short(dtype)}")
    return SlabRecord(
        buffer_id=_integer(fields, "id", path),
        shape=tuple(_integer({"shape": length}, "shape", path) for length in lengths),
        dtype=dtype,
        entries=entries,
        slot_bytes=_integer(fields, "slot_bytes", path),
        names=_names(fields.get("names"), entries, path),
    )


def _names(names: object, entries: int, path: str) -> tuple[tuple[int, str], ...]:
    if not isinstance(names, list):
        raise _damaged(path, f"names is {_short(names)}, not a list")
    return tuple(_name(item, entries, path) for item in cast("list[object]", names))


def _name(item: object, entries: int, path: str) -> tuple[int, str]:
    match cast("Any", item):
        case [int(entry), str(name)] if (
            not isinstance(entry, bool) and 0 <= entry < entries and len(name) <= MAX_NAME_CHARACTERS
        ):
            return entry, name
        case _:
            raise _damaged(
                path,
                f"names has {_short(item)}, not an entry below {entries} and a text of at most {MAX_NAME_CHARACTERS} "
                "characters",
            )


def _integer(fields: Mapping[str, object], name: str, path: str, *, minimum: int = 0) -> int:
    value = fields.get(name)
    # bool is an int to Python, but `true` is not a number to JSON.
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MAX_FILE_BYTES:
        raise _damaged(path, f"{name} is {_short(value)}, not an integer from {minimum} to {MAX_FILE_BYTES}")
    return value


def _only(fields: Mapping[str, object], known: set[str], path: str) -> None:
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise _damaged(path, f"it has the unknown field {_short(unknown[0])}")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with more digits than Python prints; lists in lists
        text = "a huge value"
    return text if len(text) <= 60 else text[:57] + "..."


def _damaged(path: str, reason: str) -> StreamingMemoryError:
    return StreamingMemoryError(
        f"The manifest {path} is damaged: {reason}.",
        hint="if nobody needs what the directory holds, delete it; otherwise choose another directory.",
    )


# The commit record


@dataclass(frozen=True, slots=True, eq=False)
class EntryTable:
    """Where the entries of one buffer lie, and what they must be.

    Args:
        slots: uint8, shape ``(entries,)``: 0 for an entry that was never written and reads as zeros, else the slot.
        digests: uint64, shape ``(entries,)``: xxh3_64 of the entry's bytes, without padding. Means nothing for slot 0.
    """

    slots: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint64]

    @classmethod
    def empty(cls, entries: int) -> EntryTable:
        """Of a buffer that nobody has written to."""
        return cls(np.zeros(entries, np.uint8), np.zeros(entries, np.uint64))

    def copy(self) -> EntryTable:
        """The same, in arrays of its own."""
        return EntryTable(self.slots.copy(), self.digests.copy())


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """What one commit published.

    Args:
        number: Counts the commits of a directory, from 1.
        tables: By buffer id, the persistent buffers only.
    """

    number: int
    tables: dict[int, EntryTable]


def generation_bytes(specs: Iterable[BufferSpec]) -> int:
    """The size of the commit record of ``specs``, of which the persistent ones count. A record never has another.

    Raises:
        StreamingMemoryError: They have more entries than a record can list.
    """
    entries = [spec.entries for spec in specs if spec.is_persistent]
    tables_bytes = sum(_TABLE_HEADER.size + _padded(count) + 8 * count for count in entries)
    total_bytes = _HEADER.size + tables_bytes + _DIGEST.size
    if total_bytes > MAX_GENERATION_BYTES:
        raise StreamingMemoryError(
            f"The commit record of {len(entries)} remote buffers with {sum(entries)} entries would have {total_bytes} "
            f"bytes, more than {MAX_GENERATION_BYTES}.",
            hint="use fewer and larger entries.",
        )
    return total_bytes


def encode_generation(generation: Generation) -> bytes:
    """The commit record: little-endian on every machine, buffers by rising id, a digest of everything at the end.

    Example:
        >>> record = encode_generation(Generation(7, {3: EntryTable.empty(2)}))
        >>> record[:16], len(record)
        (b'popxl-generation', 80)
    """
    parts: list[bytes] = [_HEADER.pack(GENERATION_MAGIC, FORMAT_VERSION, generation.number)]
    for buffer_id, table in sorted(generation.tables.items()):
        entries = len(table.slots)
        parts.append(_TABLE_HEADER.pack(buffer_id, entries))
        parts.append(table.slots.astype(np.uint8).tobytes())
        parts.append(bytes(_padded(entries) - entries))
        parts.append(table.digests.astype("<u8").tobytes())
    content = b"".join(parts)
    return content + _DIGEST.pack(xxhash.xxh3_64_intdigest(content))


def decode_generation(raw: bytes, path: str, specs: Sequence[BufferSpec]) -> Generation:
    """Read a commit record that anybody may have written.

    Args:
        raw: The content of the file; ask `generation_bytes` before reading more.
        path: The file's name, for messages.
        specs: The buffers of the directory. They give all sizes; the record must agree.

    Returns:
        Tables in memory of their own.

    Raises:
        StreamingMemoryError: It is no commit record, of another version, of other buffers, or damaged.
    """
    if len(raw) < _HEADER.size + _DIGEST.size:
        raise _damaged_record(path, f"it has {len(raw)} bytes, too few for any record")
    magic, version, number = _HEADER.unpack_from(raw)
    if magic != GENERATION_MAGIC:
        raise _damaged_record(path, f"it starts with {magic!r}, not {GENERATION_MAGIC!r}")
    if version != FORMAT_VERSION:
        raise StreamingMemoryError(
            f"The commit record {path} is of format version {version}; this OpenPopXL reads version {FORMAT_VERSION}.",
            hint="read the directory with the OpenPopXL that wrote it.",
        )
    persistent = sorted((spec for spec in specs if spec.is_persistent), key=lambda spec: spec.buffer_id)
    expected_bytes = generation_bytes(persistent)
    if len(raw) != expected_bytes:
        raise _damaged_record(path, f"it has {len(raw)} bytes, and its buffers need {expected_bytes}")
    content = memoryview(raw)[: -_DIGEST.size]
    (stored,) = _DIGEST.unpack_from(raw, len(content))
    found = xxhash.xxh3_64_intdigest(content)
    if stored != found:
        raise _damaged_record(path, f"its bytes have the digest {found:016x}, and it says {stored:016x}")
    if not 1 <= number <= MAX_FILE_BYTES:
        raise _damaged_record(path, f"its number is {number}")
    tables: dict[int, EntryTable] = {}
    offset = _HEADER.size
    for spec in persistent:
        tables[spec.buffer_id] = _table(content, offset, path, spec)
        offset += _TABLE_HEADER.size + _padded(spec.entries) + 8 * spec.entries
    return Generation(number, tables)


def _table(content: memoryview, offset: int, path: str, spec: BufferSpec) -> EntryTable:
    buffer_id, entries = _TABLE_HEADER.unpack_from(content, offset)
    if (buffer_id, entries) != (spec.buffer_id, spec.entries):
        raise _damaged_record(
            path,
            f"it has buffer {buffer_id} with {entries} entries, and not buffer {spec.buffer_id} with {spec.entries}",
        )
    offset += _TABLE_HEADER.size
    padded = np.frombuffer(content, np.uint8, _padded(entries), offset)
    slots = padded[:entries]
    wrong = np.flatnonzero(slots > 2)
    if wrong.size:
        entry = int(wrong[0])
        raise _damaged_record(path, f"buffer {buffer_id}, entry {entry} is in slot {slots[entry]}, and there are two")
    if padded[entries:].any():
        raise _damaged_record(path, f"the padding after the slots of buffer {buffer_id} is not zero")
    digests = np.frombuffer(content, "<u8", entries, offset + _padded(entries))
    return EntryTable(slots.copy(), digests.astype(np.uint64))


def _padded(nbytes: int) -> int:
    return -(-nbytes // 8) * 8


def _damaged_record(path: str, reason: str) -> StreamingMemoryError:
    return StreamingMemoryError(
        f"The commit record {path} is damaged: {reason}.",
        hint="restore the directory from a copy; without the record nobody knows which rows belong together.",
    )
