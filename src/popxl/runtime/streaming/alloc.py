"""Aligned memory. JAX on CPU uses NumPy memory in place only where it starts at a multiple of 64 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from popxl.errors import StreamingMemoryError

from .tier import PAGE_BYTES, BufferSpec

JAX_ALIGNMENT_BYTES = 64


def aligned_bytes(spec: BufferSpec, *, zeros: bool = False) -> npt.NDArray[np.uint8]:
    """Fresh memory for one entry, as raw bytes.

    Entries of a page or more start at a page, as direct I/O will want; smaller ones at 64 bytes, since an extra page
    each would cost more than they hold.

    Args:
        spec: The buffer that the entry belongs to.
        zeros: Whether to clear it. Large cleared memory takes no physical page until somebody writes to it.

    Returns:
        uint8, shape ``(spec.entry_bytes,)``, writeable.

    Raises:
        StreamingMemoryError: There is not that much memory.

    Example:
        >>> raw = aligned_bytes(BufferSpec(1, (3,), np.dtype("float32"), entries=1))
        >>> raw.shape, raw.ctypes.data % 64
        ((12,), 0)
    """
    try:
        return _aligned(spec.entry_bytes, np.zeros if zeros else np.empty)
    except (MemoryError, ValueError, OverflowError) as error:  # NumPy's three ways to say "too large"
        raise StreamingMemoryError(
            f"There is no memory for one entry of remote buffer {spec.buffer_id}: {spec.entry_bytes} bytes for shape "
            f"{spec.shape} and dtype {spec.dtype}.",
            hint="split the tensor over several entries.",
        ) from error


def _aligned(nbytes: int, allocate: Callable[[int, Any], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    alignment = PAGE_BYTES if nbytes >= PAGE_BYTES else JAX_ALIGNMENT_BYTES
    block = allocate(nbytes + alignment, np.uint8)
    start = -block.ctypes.data % alignment
    return block[start : start + nbytes]


def frozen_entry(raw: npt.NDArray[np.uint8], spec: BufferSpec) -> npt.NDArray[Any]:
    """The entry that ``raw`` holds: a read-only view of the buffer's shape and dtype, no copy."""
    entry = raw.view(spec.dtype).reshape(spec.shape)
    entry.flags.writeable = False
    return entry


def is_aligned(array: npt.NDArray[Any]) -> bool:
    """Whether JAX on CPU uses the array in place; a smaller one than a page is not worth the question."""
    return array.nbytes < PAGE_BYTES or array.ctypes.data % JAX_ALIGNMENT_BYTES == 0


def aligned_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only copy that nobody else knows and that JAX on CPU uses in place.

    Args:
        array: Any shape and dtype.

    Raises:
        StreamingMemoryError: There is not that much memory.

    Example:
        >>> copy = aligned_copy(np.ones((2, 3), np.float32).T)
        >>> copy.shape, copy.flags.c_contiguous, copy.ctypes.data % 64
        ((3, 2), True, 0)
    """
    # No BufferSpec: its checks would cost a small item of a stream more than its copy.
    try:
        copy = _aligned(array.nbytes, np.empty).view(array.dtype).reshape(array.shape)
    except MemoryError as error:
        raise StreamingMemoryError(
            f"There is no memory for a copy of {array.nbytes} bytes, shape {array.shape}, dtype {array.dtype}.",
            hint="split the tensor over several entries or items.",
        ) from error
    copy[...] = array
    copy.flags.writeable = False
    return copy
