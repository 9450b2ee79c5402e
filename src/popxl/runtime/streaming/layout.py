"""The on-disk format of the file tier: slot arithmetic and the manifest. Pure functions; nothing here opens a file.

The format is described for people in ``docs/explanation/streaming-memory.md``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from popxl.errors import StreamingMemoryError

from .alloc import PAGE_BYTES
from .tier import STORAGE_DTYPES, BufferSpec

MANIFEST_NAME = "streaming-memory.json"
MANIFEST_TEMPORARY_NAME = MANIFEST_NAME + ".tmp"
LOCK_NAME = ".lock"
FORMAT_NAME = "popxl-streaming-memory"
FORMAT_VERSION = 1
# About 100 bytes a buffer: far more than any program has, and little enough to read without fear.
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**63 - 1  # off_t


def slot_bytes(spec: BufferSpec) -> int:
    """Bytes from one entry to the next in the slab: the entry, padded to whole pages.

    Example:
        >>> import numpy as np
        >>> slot_bytes(BufferSpec(1, (1025,), np.dtype("float32"), entries=2))
        8192
    """
    return -(-spec.entry_bytes // PAGE_BYTES) * PAGE_BYTES


def slot_offset(spec: BufferSpec, entry: int) -> int:
    """Where an entry starts in its slab, in bytes."""
    return entry * slot_bytes(spec)


def slab_bytes(spec: BufferSpec) -> int:
    """The size of a buffer's slab file.

    Raises:
        StreamingMemoryError: No file can be that large.
    """
    total_bytes = spec.entries * slot_bytes(spec)
    if total_bytes > MAX_FILE_BYTES:
        raise StreamingMemoryError(
            f"Remote buffer {spec.buffer_id} needs a file of {total_bytes} bytes ({spec.entries} entries of "
            f"{slot_bytes(spec)}), more than a file can hold.",
            hint="use fewer entries, or several buffers.",
        )
    return total_bytes


def slab_name(buffer_id: int) -> str:
    """The file name of a buffer's slab. It is made from the number alone, so it cannot leave the directory."""
    return f"buffer-{buffer_id:d}.slab"


@dataclass(frozen=True, slots=True)
class SlabRecord:
    """One buffer as the manifest describes it. Compared with the program's buffers, never used to size anything."""

    buffer_id: int
    shape: tuple[int, ...]
    dtype: str
    entries: int
    slot_bytes: int

    @classmethod
    def of(cls, spec: BufferSpec) -> SlabRecord:
        """The record that describes ``spec``."""
        return cls(spec.buffer_id, spec.shape, spec.dtype.name, spec.entries, slot_bytes(spec))


def encode_manifest(buffers: Iterable[BufferSpec]) -> bytes:
    """The manifest of a directory that holds ``buffers``: UTF-8 JSON, one line a field, buffers by rising id."""
    records = sorted(map(SlabRecord.of, buffers), key=lambda record: record.buffer_id)
    manifest = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "byte_order": sys.byteorder,
        "page_bytes": PAGE_BYTES,
        "buffers": [
            {
                "id": record.buffer_id,
                "shape": list(record.shape),
                "dtype": record.dtype,
                "entries": record.entries,
                "slot_bytes": record.slot_bytes,
            }
            for record in records
        ],
    }
    return (json.dumps(manifest, indent=1) + "\n").encode()


def decode_manifest(raw: bytes, path: str) -> tuple[SlabRecord, ...]:
    """Read a manifest that anybody may have written.

    Args:
        raw: The content of the file.
        path: The file's name, for messages.

    Returns:
        The buffers it lists.

    Raises:
        StreamingMemoryError: It is not JSON, not our format, of a newer version or another byte order, or a field is
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
            hint="update OpenPopXL, or choose another directory.",
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
    """How the buffers of a manifest differ from a program's, the first difference by id; ``None`` if they agree."""
    old = {record.buffer_id: record for record in found}
    new = {spec.buffer_id: SlabRecord.of(spec) for spec in wanted}
    for buffer_id in sorted(old.keys() | new.keys()):
        before, after = old.get(buffer_id), new.get(buffer_id)
        if before is None:
            return f"buffer {buffer_id} is in the program but not in the directory"
        if after is None:
            return f"buffer {buffer_id} is in the directory but not in the program"
        for name in ("shape", "dtype", "entries", "slot_bytes"):
            there, here = getattr(before, name), getattr(after, name)
            if there != here:
                return f"buffer {buffer_id} has {name} {there} in the directory and {here} in the program"
    return None


def _record(item: object, path: str) -> SlabRecord:
    if not isinstance(item, dict):
        raise _damaged(path, "a buffer is not a JSON object")
    fields = cast("Mapping[str, object]", item)
    _only(fields, {"id", "shape", "dtype", "entries", "slot_bytes"}, path)
    shape, dtype = fields.get("shape"), fields.get("dtype")
    if not isinstance(shape, list):
        raise _damaged(path, f"shape is {_short(shape)}, not a list")
    lengths = cast("list[object]", shape)
    if not isinstance(dtype, str) or dtype not in STORAGE_DTYPES:
        raise _damaged(path, f"dtype is {_short(dtype)}")
    return SlabRecord(
        buffer_id=_integer(fields, "id", path),
        shape=tuple(_integer({"shape": length}, "shape", path) for length in lengths),
        dtype=dtype,
        entries=_integer(fields, "entries", path),
        slot_bytes=_integer(fields, "slot_bytes", path),
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
    except ValueError:  # an integer with more digits than Python prints
        text = "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."


def _damaged(path: str, reason: str) -> StreamingMemoryError:
    return StreamingMemoryError(
        f"The manifest {path} is damaged: {reason}.",
        hint="if nobody needs what the directory holds, delete it; otherwise choose another directory.",
    )
