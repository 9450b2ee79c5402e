"""A tier that does what disks do on a bad day: it is slow, changes the order, tears writes and fails."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from popxl.errors import StreamingMemoryError
from popxl.runtime.streaming.alloc import aligned_bytes, frozen_entry
from popxl.runtime.streaming.tier import BufferSpec, Capabilities, ImmutableArray, Tier
from popxl.runtime.streaming.transfer import Transfer

Kind = Literal["read", "write"]
#: Whether a transfer fails: its kind, buffer and entry.
Fails = Callable[[Kind, int, int], bool]
_GARBAGE = 0xA5


def _never(kind: Kind, buffer_id: int, entry: int) -> bool:
    del kind, buffer_id, entry
    return False


@final
class FaultTier(Tier):
    """Rows in memory, behind a queue that finishes requests in any order, one at a time, by a thread of its own.

    While a transfer is under way, the memory that it will fill is garbage: the target of a read, and the row of a
    write. A read gives the row as it is when the read finishes, so whoever starts it too early gets another value. What
    the engine promises a tier is checked: no two transfers of a row at once of which one is a write.

    Args:
        seed: Of the order.
        delay_s: How long a request takes at least.
        patience: How many requests it lets gather before it finishes one, unless none comes for a while.
        fails: Which transfers fail, asked when they finish. A write that fails leaves garbage.

    Attributes:
        broken_promises: What the engine did wrong.

    Example:
        >>> tier = FaultTier(seed=1)
        >>> tier.open([BufferSpec(1, (2,), np.dtype("float32"), entries=4)])
        >>> tier.store(1, 3, np.ones(2, np.float32))
        >>> tier.load(1, 3), tier.load(1, 0)
        (array([1., 1.], dtype=float32), array([0., 0.], dtype=float32))
        >>> tier.close()
    """

    capabilities: ClassVar[Capabilities] = Capabilities(asynchronous=True)

    def __init__(self, *, seed: int = 0, delay_s: float = 0.0, patience: int = 1, fails: Fails | None = None) -> None:
        super().__init__()
        self.fails: Fails = fails or _never
        self.broken_promises: list[str] = []
        self._random = random.Random(seed)
        self._delay_s = delay_s
        self._patience = patience
        self._rows: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
        self._torn: set[tuple[int, int]] = set()
        self._pending: list[tuple[Kind, Transfer]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start_reads(self, transfers: Sequence[Transfer]) -> None:
        """See `Tier.start_reads`."""
        for transfer in transfers:
            transfer.raw[...] = _GARBAGE
        self._add("read", transfers)

    def start_writes(self, transfers: Sequence[Transfer]) -> None:
        """See `Tier.start_writes`."""
        self._add("write", transfers)

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        del buffers
        self._thread = threading.Thread(target=self._work, name="popxl-fault-tier", daemon=True)
        self._thread.start()

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        raw = aligned_bytes(spec)
        transfer = Transfer(spec, entry, raw)
        self.start_reads([transfer])
        transfer.wait()
        return frozen_entry(raw, spec)

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        raw = np.ascontiguousarray(np.asarray(value)).reshape(-1).view(np.uint8)
        transfer = Transfer(spec, entry, raw)
        self.start_writes([transfer])
        transfer.wait()

    def _detach(self) -> None:
        thread, self._thread = self._thread, None
        with self._changed:
            self._changed.notify()
        if thread is not None:
            thread.join()
        self._rows.clear()
        self._torn.clear()

    def _add(self, kind: Kind, transfers: Sequence[Transfer]) -> None:
        with self._changed:
            for transfer in transfers:
                row = (transfer.spec.buffer_id, transfer.entry)
                for other_kind, other in self._pending:
                    if (other.spec.buffer_id, other.entry) == row and "write" in (kind, other_kind):
                        self.broken_promises.append(f"a {kind} of {row} began while a {other_kind} was under way")
                if kind == "write":
                    self._rows[row] = np.full(transfer.spec.entry_bytes, _GARBAGE, np.uint8)
                self._pending.append((kind, transfer))
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                # Those who wait for one request ask for no other: then the others have to do.
                self._changed.wait_for(lambda: len(self._pending) >= self._patience or self._thread is None, 0.002)
                if not self._pending:
                    if self._thread is None:
                        return
                    continue
                kind, transfer = self._pending[self._random.randrange(len(self._pending))]
            if self._delay_s:
                time.sleep(self._delay_s)
            error = self._perform(kind, transfer)
            with self._changed:
                self._pending.remove((kind, transfer))
            transfer.finish(error)

    def _perform(self, kind: Kind, transfer: Transfer) -> StreamingMemoryError | None:
        row = (transfer.spec.buffer_id, transfer.entry)
        if self.fails(kind, *row) or (kind == "read" and row in self._torn):
            self._torn.update([row] if kind == "write" else [])
            return StreamingMemoryError(f"Remote buffer {row[0]}, entry {row[1]}: this {kind} was made to fail.")
        if kind == "read":
            nbytes = transfer.spec.entry_bytes
            transfer.raw[:nbytes] = self._rows.get(row, np.zeros(nbytes, np.uint8))
        else:
            self._rows[row] = transfer.raw[: transfer.spec.entry_bytes].copy()
            self._torn.discard(row)
        return None

    def __repr__(self) -> str:
        return "FaultTier()"
