"""Page-locked host memory for GPUs, whose copy engines read and write it without the processor's help.

JAX's own page-locked memory (memory kind ``pinned_host``) holds what is stored. Rows that are read from files are read
into memory of a pool, which has to be where direct I/O and huge pages want it: it is mapped by us and locked here. JAX
from 0.11 on copies from such memory directly; JAX 0.10 does not look, and copies it to its own first.

Not measured yet: no machine with a GPU has run it.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from typing import Any, final

_LOGGER = logging.getLogger("popxl")
_PORTABLE = 1  # CU_MEMHOSTREGISTER_PORTABLE: for all contexts, not only the current one
_LIBRARY = "libcuda.so.1"

#: Locks memory, given by address and size in bytes; returns what unlocks it.
PageLock = Callable[[int, int], Callable[[], None]]


@final
class CudaPageLock:
    """Locks memory by the driver of NVIDIA GPUs.

    Where that fails, as it does where ``ulimit -l`` is low, the memory stays as it is, which is slower and no error; it
    is logged once.

    Args:
        library: The driver's library, with the functions of CUDA's driver API.
        ordinal: Number of the GPU among those that the process sees.
    """

    def __init__(self, library: Any, ordinal: int) -> None:
        self._library = library
        self._context = ctypes.c_void_p()
        self._has_warned = False
        device = ctypes.c_int()
        self._is_there = (
            self._succeeds("cuInit", 0)
            and self._succeeds("cuDeviceGet", ctypes.byref(device), ordinal)
            # The context that JAX uses too; it stays for as long as the process runs.
            and self._succeeds("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        )

    def __call__(self, address: int, nbytes: int) -> Callable[[], None]:
        """Lock memory; return what unlocks it, once the GPU has done all copies that were asked for by then."""
        if not self._in_context("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), _PORTABLE):
            return _nothing

        def unlock() -> None:
            self._in_context("cuCtxSynchronize")
            self._in_context("cuMemHostUnregister", ctypes.c_void_p(address))

        return unlock

    def _in_context(self, name: str, *arguments: Any) -> bool:
        """Call a function that wants a current context, and leave the thread's as it was."""
        if not self._is_there or not self._succeeds("cuCtxPushCurrent_v2", self._context):
            return False
        try:
            return self._succeeds(name, *arguments)
        finally:
            self._succeeds("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _succeeds(self, name: str, *arguments: Any) -> bool:
        status = getattr(self._library, name)(*arguments)
        if status and not self._has_warned:
            self._has_warned = True
            _LOGGER.warning(
                "Rows go to the GPU through memory that is not page-locked, which is slower: %s failed with CUDA "
                "error %d. `ulimit -l unlimited` mends it where the limit of locked memory is too low.",
                name,
                status,
            )
        return not status


def _nothing() -> None:
    pass


def find_page_lock(platform: str, ordinal: int) -> PageLock | None:
    """Return what locks memory for a device; None for a device that needs none, or whose driver is not found.

    Args:
        platform: JAX's name for its kind.
        ordinal: Its number among the GPUs that the process sees.
    """
    if platform not in ("gpu", "cuda"):
        return None
    try:
        return CudaPageLock(ctypes.CDLL(_LIBRARY), ordinal)
    except OSError:
        _LOGGER.warning("%s was not found: rows go to the GPU through memory that is not page-locked.", _LIBRARY)
        return None
