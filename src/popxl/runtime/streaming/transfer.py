"""One entry on its way between memory and a tier: what the engine asks for, and how it hears that it is done."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import final

import numpy as np
import numpy.typing as npt

from .tier import BufferSpec


@final
class Transfer:
    """A read or a write of one entry that a tier with ``capabilities.asynchronous`` performs in its own time.

    The engine makes it, hands it to `Tier.start_reads` or `Tier.start_writes`, and waits. The tier calls `finish`
    exactly once, from any thread, after its last access to ``raw``, and may call `begin` before the first.

    Args:
        spec: The buffer.
        entry: The entry, in range.
        raw: The entry's memory, uint8, C-contiguous. For a read it starts at a page and has
            ``spec.padded_bytes`` bytes, of which those after the entry mean nothing. For a write it has
            ``spec.entry_bytes`` and any alignment, and nobody changes it until the write is done.

    Example:
        >>> spec = BufferSpec(1, (2,), np.dtype("float32"), entries=4)
        >>> transfer = Transfer(spec, 3, np.zeros(8, np.uint8))
        >>> transfer.is_done
        False
        >>> transfer.finish()
        >>> transfer.wait()
        >>> transfer.is_done
        True
    """

    __slots__ = ("_done", "begin_s", "end_s", "entry", "error", "raw", "spec")

    def __init__(self, spec: BufferSpec, entry: int, raw: npt.NDArray[np.uint8]) -> None:
        self.spec = spec
        self.entry = entry
        self.raw = raw
        #: Why it failed, once it is done.
        self.error: BaseException | None = None
        #: When it began, in seconds of `time.perf_counter`; None if nobody wants to know, and then it is not noted.
        self.begin_s: float | None = None
        #: When it ended, if `begin_s` is noted.
        self.end_s: float | None = None
        # A bare lock: an Event costs ten times as much to make, and small rows are many.
        self._done = threading.Lock()
        self._done.acquire()

    @property
    def is_done(self) -> bool:
        """Whether it has been finished."""
        return not self._done.locked()

    def begin(self) -> None:
        """Say that bytes are moved from now on; without it the transfer began when the tier got it."""
        if self.begin_s is not None:
            self.begin_s = perf_counter()

    def finish(self, error: BaseException | None = None) -> None:
        """Say that it is done, or why it failed. The tier's to call, once."""
        self.error = error
        if self.begin_s is not None:
            self.end_s = perf_counter()
        self._done.release()

    def wait(self) -> None:
        """Wait until it is done.

        Raises:
            StreamingMemoryError: It failed; every call raises the same error.
        """
        self.wait_quietly()
        if self.error is not None:
            raise self.error

    def wait_quietly(self) -> None:
        """Wait until it is done or has failed."""
        with self._done:
            pass

    def __repr__(self) -> str:
        state = "under way" if not self.is_done else "failed" if self.error else "done"
        return f"Transfer[buffer {self.spec.buffer_id}, entry {self.entry}, {state}]"
