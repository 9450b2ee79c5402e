"""Stores that finish after the program has gone on."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from popxl.op import Op
from popxl.plan.lookahead import Row
from popxl.plan.window import WRITE_BATCH, WRITE_BATCH_BYTES
from popxl.runtime.events import Events
from popxl.runtime.streaming.tier import BufferSpec, Tier
from popxl.runtime.streaming.transfer import Transfer

Array = Any
_NOTHING = np.empty(0, np.uint8)


@dataclass(slots=True, eq=False)
class Write:
    """A store under way.

    Attributes:
        transfer: Its ``raw`` is set once the device has computed the value.
        value: The value, for loads of the row; it also keeps the memory.
        op: The store, for errors.
        after: The write of the same row that must finish first.
    """

    transfer: Transfer
    value: Array
    op: Op | None
    after: Write | None

    @property
    def row(self) -> Row:
        """Buffer and entry."""
        return (self.transfer.spec.buffer_id, self.transfer.entry)


@final
class WriteBehind:
    """Stores in program order, and the thread that hands each to a tier once the device has computed its value.

    All methods are for the thread of the run.

    Args:
        tier: An asynchronous tier.
        limit_bytes: How much may be unwritten before a store waits.
        events: Hears of stores that are done, and of waits.
    """

    def __init__(self, tier: Tier, limit_bytes: int, events: Events | None = None) -> None:
        self.limit_bytes = limit_bytes
        self._events = events or Events()
        self._tier = tier
        self._pending: deque[Write] = deque()
        self._latest: dict[Row, Write] = {}
        self._pending_bytes = 0
        #: Stores that the thread does not know of yet: each time it wakes costs more than a small store.
        self._held: list[Write] = []
        self._held_bytes = 0
        self._queue: queue.SimpleQueue[Sequence[Write] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def value(self, row: Row) -> Array | None:
        """What the last store that is under way gives to a row; None if none is, or if it failed."""
        write = self._latest.get(row)
        return None if write is None or write.transfer.error is not None else write.value

    def check(self, row: Row) -> None:
        """Check that no store of a row has failed.

        Raises:
            StreamingMemoryError: The last one under way has.
        """
        write = self._latest.get(row)
        if write is not None and write.transfer.error is not None:
            raise write.transfer.error

    def add(self, spec: BufferSpec, entry: int, value: Array, op: Op | None) -> None:
        """Store a value, which nobody changes any more, and go on; wait only for room.

        Raises:
            StreamingMemoryError: An earlier store failed.
        """
        while self._pending and self._pending_bytes + spec.entry_bytes > self.limit_bytes:
            self._wait_for_oldest()
            self.collect()
        row = (spec.buffer_id, entry)
        write = Write(Transfer(spec, entry, _NOTHING), value, op, self._latest.get(row))
        write.transfer.begin_s = self._events.now()
        self._pending.append(write)
        self._pending_bytes += spec.entry_bytes
        self._latest[row] = write
        self._held.append(write)
        self._held_bytes += spec.padded_bytes
        if len(self._held) >= WRITE_BATCH or self._held_bytes >= WRITE_BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand over what has been stored so far."""
        if not self._held:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._hand_over, name="popxl-write-behind", daemon=True)
            self._thread.start()
        self._queue.put(self._held)
        self._held, self._held_bytes = [], 0

    def collect(self) -> None:
        """Forget what has been written.

        Raises:
            StreamingMemoryError: A store failed; each error is raised once.
        """
        while self._pending and self._pending[0].transfer.is_done:
            write = self._pending.popleft()
            spec, error = write.transfer.spec, write.transfer.error
            self._pending_bytes -= spec.entry_bytes
            if self._latest.get(write.row) is write:
                del self._latest[write.row]
            if error is not None:
                if write.op is not None:
                    error.add_note(f"  At: {write.op.where}")
                raise error
            self._tier.counters.stores += 1
            self._tier.counters.bytes_stored += spec.entry_bytes
            if write.transfer.begin_s is not None:
                begin_s, end_s = write.transfer.begin_s, write.transfer.end_s
                self._events.emit_row("store", "store", spec.entry_bytes, begin_s, write.row, end_s)

    def drain(self) -> None:
        """Wait until everything is written.

        Raises:
            StreamingMemoryError: The first store that failed, after all have been tried.
        """
        for error in self.settle():
            raise error

    def settle(self) -> list[Exception]:
        """Wait until everything is written or has failed; return the errors."""
        errors: list[Exception] = []
        while self._pending:
            self._wait_for_oldest()
            try:
                self.collect()
            except Exception as error:  # noqa: BLE001 - the caller decides
                errors.append(error)
        return errors

    def close(self) -> None:
        """End the thread; nothing may be pending."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _wait_for_oldest(self) -> None:
        self.flush()
        write = self._pending[0]
        begin_s = None if write.transfer.is_done else self._events.wait_begins()
        write.transfer.wait_quietly()
        if begin_s is not None:
            n_bytes = write.transfer.spec.entry_bytes
            self._events.emit_row("host", "wait for store", n_bytes, begin_s, write.row)

    # The thread's side

    def _hand_over(self) -> None:
        batch = self._queue.get()
        while batch is not None:
            self._settle(batch)
            # Nothing of what has been handed over is kept here: memory is the run's to count.
            batch = None
            batch = self._queue.get()

    def _settle(self, batch: Sequence[Write]) -> None:
        ready: list[Transfer] = []
        ready_bytes = 0
        for write in batch:
            if ready and (write.after is not None or ready_bytes >= WRITE_BATCH_BYTES):
                self._start(ready)
                ready, ready_bytes = [], 0
            try:
                if write.after is not None:
                    write.after.transfer.wait_quietly()
                    write.after = None
                write.transfer.raw = _as_bytes(write.value)
            except Exception as error:  # noqa: BLE001 - the computation failed; whoever waits hears of it
                write.transfer.finish(error)
            else:
                ready.append(write.transfer)
                ready_bytes += write.transfer.spec.padded_bytes
        self._start(ready)

    def _start(self, transfers: Sequence[Transfer]) -> None:
        if not transfers:
            return
        try:
            for transfer in transfers:
                transfer.begin()
            self._tier.start_writes(transfers)
        except Exception as error:  # noqa: BLE001 - whoever waits hears of it
            for transfer in transfers:
                transfer.finish(error)


def _as_bytes(value: Array) -> npt.NDArray[np.uint8]:
    """The memory of a value, once the device has computed it."""
    return np.ascontiguousarray(np.asarray(value)).reshape(-1).view(np.uint8)
