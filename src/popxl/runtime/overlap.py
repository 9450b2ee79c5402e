"""Reading ahead and write-behind: what is transferred when, with the values of program order.

The thread of the run calls `load` and `store` in program order; it decides everything, and the tier's threads only
move bytes. See ``docs/explanation/streaming-engine.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from popxl.op import Op
from popxl.plan.lookahead import ComingLoad, ComingStore, Row, Walk
from popxl.plan.window import READ_BATCH_BYTES, Window
from popxl.runtime.events import IN_MEMORY, Events
from popxl.runtime.streaming.blocks import Block, BlockPool
from popxl.runtime.streaming.tier import BufferSpec, Tier
from popxl.runtime.streaming.transfer import Transfer
from popxl.runtime.transfers import Transfers
from popxl.runtime.write_behind import WriteBehind

Array = Any


@dataclass(slots=True, eq=False)
class _Fetched:
    """The value of a row for `uses` coming loads: on its way into a block, or known."""

    uses: int
    value: Array = None
    transfer: Transfer | None = None
    block: Block | None = None


@final
class OverlappedTransfers(Transfers):
    """For asynchronous tiers: reads ahead, write-behind, forwarding, back-pressure in bytes.

    Args:
        tier: The tier, open.
        specs: Its buffers.
        pool: Memory to read into. What it may hold bounds the reading ahead.
        write_bytes: How much may be unwritten before a store waits.
        cache_bytes: How much may be kept of rows that the program is done with. The first rows stay: programs go
            round, and of a round that does not fit, the rows used longest ago are the next to be used.
        events: Hears of rows that were moved, and of waits.
    """

    def __init__(
        self,
        tier: Tier,
        specs: Iterable[BufferSpec],
        pool: BlockPool,
        write_bytes: int,
        cache_bytes: int = 0,
        events: Events | None = None,
    ) -> None:
        self._tier = tier
        self._specs = {spec.buffer_id: spec for spec in specs}
        self._pool = pool
        self._events = events or Events()
        self._writes = WriteBehind(tier, write_bytes, self._events)
        self._batch_bytes = min(READ_BATCH_BYTES, pool.limit_bytes // 4)
        self._window = Window({i: spec.entries for i, spec in self._specs.items()}, self._fetch)
        self._fetched: dict[Row, _Fetched] = {}
        self._to_start: list[Transfer] = []
        self._to_start_bytes = 0
        self._cache: dict[Row, Array] = {}
        self._cache_room = cache_bytes

    # The run

    def begin(self, walk: Walk) -> None:
        """See `Transfers.begin`."""
        self._writes.collect()
        self._window.begin(walk)
        self._window.look()
        self._start()

    def load(self, buffer_id: int, entry: int) -> Array:
        """See `Transfers.load`."""
        row = (buffer_id, entry)
        self._window.pass_by(ComingLoad, row)
        fetched = self._fetched.get(row)
        value = self._load_now(row) if fetched is None else self._take(row, fetched)
        self._window.look()
        return value

    def store(self, buffer_id: int, entry: int, value: Array, op: Op | None = None) -> None:
        """See `Transfers.store`."""
        row = (buffer_id, entry)
        followers = self._window.pass_by(ComingStore, row)
        self._store_now(row, value, op)
        self._go_on(followers)

    def load_each(self, buffer_id: int, entries: Sequence[int]) -> list[Array]:
        """See `Transfers.load_each`."""
        self._window.pass_by(ComingLoad, (buffer_id, entries[0]))
        values = [self._load_now((buffer_id, entry)) for entry in entries]
        self._window.look()
        return values

    def change_each(
        self, buffer_id: int, entries: Sequence[int], changed: Callable[[int, Array], Array], op: Op | None = None
    ) -> None:
        """See `Transfers.change_each`."""
        followers = self._window.pass_by(ComingStore, (buffer_id, entries[0]))
        for entry in entries:
            row = (buffer_id, entry)
            self._store_now(row, changed(entry, self._load_now(row)), op)
        self._go_on(followers)

    def branch(self, taken: bool) -> None:
        """See `Transfers.branch`."""
        self._window.branch(taken)
        self._window.look()

    def end(self, failure: BaseException | None = None) -> None:
        """See `Transfers.end`."""
        self._window.end()
        self._start()
        for fetched in self._fetched.values():
            if fetched.transfer is not None and fetched.block is not None:
                fetched.transfer.wait_quietly()
                self._pool.give_back(fetched.block)
        self._fetched.clear()
        self._writes.flush()
        if failure is not None:
            for error in self._writes.settle():
                failure.add_note(f"  Besides: {error}")

    def drain(self) -> None:
        """See `Transfers.drain`."""
        self._writes.drain()

    def close(self) -> None:
        """See `Transfers.close`."""
        self.end()
        self._writes.settle()  # whoever wants to know of errors has drained before
        self._writes.close()
        self._cache.clear()

    # Values

    def _fetch(self, row: Row) -> bool:
        """Provide for one more coming load of a row; False if there is no memory for it."""
        fetched = self._fetched.get(row)
        if fetched is not None:
            fetched.uses += 1
            return True
        value = self._in_memory(row)
        if value is not None:
            self._fetched[row] = _Fetched(1, value)
            return True
        spec = self._specs[row[0]]
        block = self._pool.take(spec.padded_bytes)
        if block is None:
            return False
        transfer = Transfer(spec, row[1], block.raw)
        self._fetched[row] = _Fetched(1, transfer=transfer, block=block)
        self._to_start.append(transfer)
        self._to_start_bytes += block.nbytes
        # In the order of the run, as far as neighbours in a file are not worth a detour: its first rows come first.
        if self._to_start_bytes >= self._batch_bytes:
            self._start()
        return True

    def _start(self) -> None:
        if self._to_start:
            transfers, self._to_start, self._to_start_bytes = self._to_start, [], 0
            self._start_reads(transfers)

    def _start_reads(self, transfers: Sequence[Transfer]) -> None:
        if self._events.sink is not None:
            for transfer in transfers:
                transfer.begin_s = self._events.now()
        self._tier.start_reads(transfers)

    def _take(self, row: Row, fetched: _Fetched) -> Array:
        """The value that was fetched for a load."""
        fetched.uses -= 1
        if not fetched.uses:
            del self._fetched[row]
        if fetched.transfer is not None and fetched.block is not None:
            if not fetched.transfer.is_done:
                self._start()
            try:
                fetched.value = self._receive(fetched.transfer, fetched.block)
            except BaseException:
                self._fetched.pop(row, None)
                raise
            fetched.transfer = fetched.block = None
        else:
            self._report_in_memory(row)
        return fetched.value

    def _store_now(self, row: Row, value: Array, op: Op | None) -> None:
        self._writes.add(self._specs[row[0]], row[1], value, op)
        self._keep(row, value)

    def _go_on(self, followers: Iterable[Row]) -> None:
        """Read ahead after a store; first what had to wait for it."""
        for row in followers:
            self._fetch(row)
        self._window.look()

    def _load_now(self, row: Row) -> Array:
        """The value of a row that was not fetched."""
        self._writes.check(row)
        value = self._in_memory(row)
        if value is not None:
            self._report_in_memory(row)
            return value
        spec = self._specs[row[0]]
        self._start()
        block = self._pool.take_at_any_cost(spec.padded_bytes)
        transfer = Transfer(spec, row[1], block.raw)
        self._start_reads([transfer])
        return self._receive(transfer, block)

    def _receive(self, transfer: Transfer, block: Block) -> Array:
        wait_s = None if transfer.is_done else self._events.wait_begins()
        try:
            transfer.wait()
        except BaseException:
            transfer.wait_quietly()  # an interrupt must not give away memory that is being filled
            self._pool.give_back(block)
            raise
        if self._events.sink is not None:
            self._report(transfer, wait_s)
        self._tier.counters.loads += 1
        self._tier.counters.bytes_loaded += transfer.spec.entry_bytes
        value = self._pool.lend(block, transfer.spec)
        self._keep((transfer.spec.buffer_id, transfer.entry), value)
        return value

    def _report(self, transfer: Transfer, wait_s: float | None) -> None:
        n_bytes, row = transfer.spec.entry_bytes, (transfer.spec.buffer_id, transfer.entry)
        if wait_s is not None:
            self._events.emit_row("host", "wait for row", n_bytes, wait_s, row)
        if transfer.begin_s is not None:
            self._events.emit_row("load", "load", n_bytes, transfer.begin_s, row, transfer.end_s)

    def _report_in_memory(self, row: Row) -> None:
        begin_s = self._events.now()
        if begin_s is not None:
            self._events.emit_row("host", IN_MEMORY, self._specs[row[0]].entry_bytes, begin_s, row, begin_s)

    def _in_memory(self, row: Row) -> Array | None:
        """The value of a row as far as the run has come, if it need not be read."""
        value = self._writes.value(row)
        return self._cache.get(row) if value is None else value

    def _keep(self, row: Row, value: Array) -> None:
        """Keep the value of a row for later loads if there is room."""
        nbytes = self._specs[row[0]].padded_bytes
        if row in self._cache:
            self._cache[row] = value
        elif nbytes <= self._cache_room:
            self._cache_room -= nbytes
            self._cache[row] = value
