"""The codec of archives, and what else of the extra ``object`` they use."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from popxl.errors import PopxlError

from .tier import BufferSpec

#: A codec must save this much of the first chunk of a buffer.
_LEAST_SAVING = 0.05


def compressed(content: bytes, spec: BufferSpec) -> bytes:
    """Bytes of equal significance together, then zstd: the high bytes of floating-point numbers are alike."""
    zstandard: Any = extra("zstandard")
    size = spec.dtype.itemsize
    shuffled = np.frombuffer(content, np.uint8).reshape(-1, size).T.tobytes() if size > 1 else content
    return bytes(zstandard.ZstdCompressor(level=1).compress(shuffled))


def decompressed(stored: bytes, spec: BufferSpec, n_bytes: int) -> bytes | None:
    """What was compressed; None if it is damaged, or not of this size."""
    zstandard: Any = extra("zstandard")
    try:
        if zstandard.frame_content_size(stored) != n_bytes:  # before memory is taken for it
            return None
        plain: bytes = zstandard.ZstdDecompressor().decompress(stored, max_output_size=n_bytes)
    except zstandard.ZstdError:
        return None
    size = spec.dtype.itemsize
    return np.frombuffer(plain, np.uint8).reshape(size, -1).T.tobytes() if size > 1 else plain


def is_worthwhile(sample: bytes, spec: BufferSpec) -> bool:
    """Whether the codec saves enough of a chunk."""
    return len(compressed(sample, spec)) <= (1 - _LEAST_SAVING) * len(sample)


def extra(name: str) -> Any:
    """A module of the extra; loaded when it is used.

    Raises:
        PopxlError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PopxlError(
            f"Archives in object stores need {name.partition('.')[0]}, which is not installed.",
            hint='pip install "openpopxl[object]"',
        ) from error
