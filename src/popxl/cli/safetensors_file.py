"""The safetensors format, header only: the tensors themselves stream past and are never all in memory.

A file is 8 bytes of length, a JSON object of that length, and the tensors one after the other without gaps. Described
at https://huggingface.co/docs/safetensors. Nothing here trusts a file.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from popxl.errors import PopxlValueError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_BYTES = 2**63 - 1
DTYPE_CODES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file.

    Args:
        name: Its name, unique in the file.
        dtype: The format's code, such as ``"F32"``.
        shape: Its shape.
        start: Where it starts, in bytes after the header.
        end: Where it ends.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def lay_out(tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> list[TensorEntry]:
    """Place tensors one after the other.

    Args:
        tensors: Name, NumPy dtype, shape and bytes of each.

    Raises:
        PopxlValueError: The format has no such dtype, or two tensors have one name.

    Example:
        >>> lay_out([("a", "float32", (2,), 8), ("b", "int8", (), 1)])[1]
        TensorEntry(name='b', dtype='I8', shape=(), start=8, end=9)
    """
    if sys.byteorder != "little":
        raise PopxlValueError("safetensors files are little-endian, and this machine is not; that is not supported.")
    placed: dict[str, TensorEntry] = {}
    start = 0
    for name, dtype, shape, nbytes in tensors:
        if dtype not in DTYPE_CODES:
            raise PopxlValueError(f"{name!r} has dtype {dtype}, which safetensors files cannot hold.")
        if name in placed or name == _METADATA:
            raise PopxlValueError(f"The name {name!r} cannot be used: it belongs to another tensor, or to the format.")
        placed[name] = TensorEntry(name, DTYPE_CODES[dtype], shape, start, start + nbytes)
        start += nbytes
    return list(placed.values())


def encode_header(tensors: Sequence[TensorEntry], metadata: Mapping[str, str]) -> bytes:
    """Everything before the first tensor, padded so that it starts at a multiple of 8 bytes.

    Raises:
        PopxlValueError: A name is no valid Unicode, or the header would be too long.
    """
    fields: dict[str, object] = {_METADATA: dict(metadata)}
    for tensor in tensors:
        fields[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (tensor.start, tensor.end),
        }
    try:
        content = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise PopxlValueError(f"A name is no valid Unicode, so no file can hold it ({error.reason}).") from error
    content += b" " * (-len(content) % 8)
    if len(content) > MAX_HEADER_BYTES:
        raise PopxlValueError(f"The header would have {len(content)} bytes; the format allows {MAX_HEADER_BYTES}.")
    return len(content).to_bytes(8, "little") + content


def read_header(file: BinaryIO, path: str) -> tuple[list[TensorEntry], int]:
    """Read a header that anybody may have written.

    Args:
        file: At its beginning.
        path: Its name, for messages.

    Returns:
        The tensors by rising offset, and where in the file the first one starts.

    Raises:
        PopxlValueError: It is no such file, or is damaged: the tensors overlap, leave gaps, or do not end where the
            file does.
    """
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(path, "it is not a regular file")
    file_bytes = status.st_size
    start = file.read(8)
    header_bytes = int.from_bytes(start, "little")
    if len(start) < 8 or header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise _damaged(path, f"its header would have {header_bytes} bytes, and the file has {file_bytes}")
    try:
        header: Any = json.loads(file.read(header_bytes).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    fields = cast("dict[str, object]", header)
    fields.pop(_METADATA, None)
    tensors = sorted((_tensor(name, fields[name], path) for name in fields), key=lambda t: (t.start, t.end))
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            raise _damaged(path, f"{tensor.name!r} starts at byte {tensor.start} of the tensors, and not at {end}")
        end = tensor.end
    if 8 + header_bytes + end != file_bytes:
        raise _damaged(path, f"it has {file_bytes} bytes, and its tensors end at {8 + header_bytes + end}")
    return tensors, 8 + header_bytes


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("two fields have the same name")
    return fields


def _tensor(name: str, item: object, path: str) -> TensorEntry:
    fields: Mapping[str, object] = cast("Mapping[str, object]", item) if isinstance(item, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    lengths, ends = _sizes(shape), _sizes(offsets)
    if not isinstance(dtype, str) or lengths is None or ends is None or len(ends) != 2 or ends[0] > ends[1]:
        raise _damaged(path, f"its header says nonsense of {_short(name)}")
    return TensorEntry(name, dtype, lengths, ends[0], ends[1])


def _sizes(value: object) -> tuple[int, ...] | None:
    """The sizes in a JSON list, or None if it is no list of sizes."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    sizes = [n for n in items if isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MAX_BYTES]
    return tuple(sizes) if len(sizes) == len(items) <= 64 else None


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(text[:57] + "...")


def _damaged(path: str, reason: str) -> PopxlValueError:
    return PopxlValueError(f"{path} is no safetensors file, or is damaged: {reason}.", hint="get the file again.")
