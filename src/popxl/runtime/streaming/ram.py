"""The RAM tier: an entry is the array that was stored."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar, cast, final

import numpy as np
import numpy.typing as npt

from .alloc import aligned_bytes, aligned_copy, frozen_entry, is_aligned
from .tier import BufferSpec, Capabilities, ImmutableArray, Tier


@final
class RamTier(Tier):
    """Rows in host memory, passed by reference: neither a load nor a store copies.

    A row that was never written is one shared array of zeros per buffer. A stored NumPy array is copied only where
    keeping it would be a trap: it is not C-contiguous, it is a view of memory more than twice its size (which it
    would keep alive), a file is mapped into it (which others may change), or it is large and not aligned (JAX would
    copy it at each use).

    Example:
        >>> tier = RamTier()
        >>> tier.open([BufferSpec(1, (2,), np.dtype("float32"), entries=4)])
        >>> row = np.ones(2, np.float32)
        >>> tier.store(1, 3, row)
        >>> tier.load(1, 3) is row
        True
        >>> tier.load(1, 0)
        array([0., 0.], dtype=float32)
        >>> tier.close()
    """

    capabilities: ClassVar[Capabilities] = Capabilities(zero_copy_load=True)

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[tuple[int, int], ImmutableArray] = {}
        self._zeros: dict[int, ImmutableArray] = {}

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        pass  # rows appear when they are first used

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        row = self._rows.get((spec.buffer_id, entry))
        if row is not None:
            return row
        zeros = self._zeros.get(spec.buffer_id)
        if zeros is None:
            zeros = self._zeros[spec.buffer_id] = frozen_entry(aligned_bytes(spec, zeros=True), spec)
        return zeros

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        if isinstance(value, np.ndarray):
            array = cast("npt.NDArray[Any]", value)
            value = array if _can_be_kept(array) else aligned_copy(array)
        self._rows[spec.buffer_id, entry] = value

    def _detach(self) -> None:
        self._rows.clear()
        self._zeros.clear()


def _can_be_kept(array: npt.NDArray[Any]) -> bool:
    if not array.flags.c_contiguous or not is_aligned(array):
        return False
    root: Any = array
    owner_bytes = array.nbytes
    while isinstance(root, np.ndarray):
        if isinstance(root, np.memmap):
            return False
        owner_bytes = root.nbytes
        root = cast("Any", root.base)
    if root is not None:
        # Such as numpy.frombuffer of a small part of some bytes. Of the memory of another library, such as a
        # jax.Array, the outermost NumPy view may be all that can be seen.
        with contextlib.suppress(TypeError, ValueError, BufferError, RuntimeError):
            owner_bytes = memoryview(root).nbytes
    return 2 * array.nbytes >= owner_bytes
