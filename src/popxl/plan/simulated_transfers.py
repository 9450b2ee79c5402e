"""Reading ahead and write-behind in simulated time: what `popxl.runtime.overlap` decides, with sizes for rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from popxl.plan.costs import Limits
from popxl.plan.lookahead import ComingLoad, ComingStore, Row, Walk
from popxl.plan.simulated_machine import Machine, Request
from popxl.plan.simulated_values import Ledger, Value
from popxl.plan.window import READ_BATCH_BYTES, WRITE_BATCH, WRITE_BATCH_BYTES, Window

_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BufferSize:
    """How many rows a buffer has, and the bytes of each."""

    row_bytes: int
    entries: int


def padded(nbytes: int) -> int:
    """The bytes of a row on disk and in memory: whole pages."""
    return -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES


@final
class Completions:
    """How far the thread may run ahead of the device: what `popxl.runtime.completion` decides."""

    def __init__(self, machine: Machine, slack_bytes: int | None) -> None:
        self._machine = machine
        self._slack_bytes = slack_bytes
        self._tokens: deque[tuple[int, int]] = deque()
        self._unfinished_bytes = 0
        self._loaded_bytes = 0

    def admit(self, new_bytes: int) -> None:
        """Wait until there is room for a computation or a row."""
        if self._slack_bytes is None:
            return
        while self._tokens and self._unfinished_bytes + new_bytes > self._slack_bytes:
            self.wait_for_oldest()

    def add_row(self, nbytes: int) -> None:
        """A row was loaded."""
        self._loaded_bytes += nbytes
        self._unfinished_bytes += nbytes

    def add(self, number: int, new_bytes: int) -> None:
        """A computation was dispatched."""
        self._tokens.append((number, new_bytes + self._loaded_bytes))
        self._unfinished_bytes += new_bytes
        self._loaded_bytes = 0
        if len(self._tokens) >= 64:
            self.poll()

    def poll(self) -> None:
        """Find out what has finished."""
        while self._tokens and self._tokens[0][0] <= self._machine.finished:
            self._unfinished_bytes -= self._tokens.popleft()[1]

    def wait_for_oldest(self) -> bool:
        """Wait for the oldest one under way; return whether there was one."""
        self.poll()
        if not self._tokens:
            return False
        number = self._tokens[0][0]
        self._machine.wait(lambda: self._machine.finished >= number, "computation")
        self.poll()
        return True


@final
class Pool:
    """Memory for rows: what `popxl.runtime.streaming.blocks` decides."""

    def __init__(self, limit_bytes: int, machine: Machine, completions: Completions) -> None:
        self._limit_bytes = limit_bytes
        self._machine = machine
        self._completions = completions
        self._held_bytes = 0
        self.gone: deque[int] = deque()
        self._cooling: deque[tuple[int, int]] = deque()

    def take(self, nbytes: int) -> bool:
        """Take a block; False if there is none just now."""
        while self.gone:
            block = self.gone.popleft()
            self._held_bytes += block
            self._cooling.append((self._machine.dispatched, block))
        if self._cooling:
            self._completions.poll()
        while self._cooling and self._cooling[0][0] <= self._machine.finished:
            self._held_bytes -= self._cooling.popleft()[1]
        if self._held_bytes + nbytes > self._limit_bytes:
            return False
        self._held_bytes += nbytes
        return True

    def take_at_any_cost(self, nbytes: int) -> None:
        """Take a block; wait for computations that hold one, and else go above the limit."""
        while not self.take(nbytes):
            if not self._completions.wait_for_oldest():
                self._held_bytes += nbytes
                return

    def lend(self, nbytes: int) -> None:
        """Give a block to the program."""
        self._completions.admit(nbytes)
        self._completions.add_row(nbytes)
        self._held_bytes -= nbytes


@dataclass(slots=True, eq=False)
class _Write:
    row: Row
    nbytes: int
    value: Value
    request: Request
    after: _Write | None


@final
class Writes:
    """Stores that finish later: what `popxl.runtime.write_behind` decides."""

    def __init__(self, machine: Machine, limit_bytes: int) -> None:
        self._machine = machine
        self._limit_bytes = limit_bytes
        self._pending: deque[_Write] = deque()
        self._pending_bytes = 0
        self._latest: dict[Row, _Write] = {}
        self._held: list[_Write] = []
        self._held_bytes = 0
        self._settling: deque[_Write] = deque()
        machine.on_finished = self.settle

    def value(self, row: Row) -> Value | None:
        """What a store gives to a row, if it is not known to be written."""
        write = self._latest.get(row)
        return None if write is None else write.value

    def add(self, row: Row, nbytes: int, value: Value) -> None:
        """Store a value; wait only for room."""
        while self._pending and self._pending_bytes + nbytes > self._limit_bytes:
            self._wait_for_oldest()
            self.collect()
        write = _Write(row, nbytes, value, Request(padded(nbytes), True, nbytes), self._latest.get(row))
        self._pending.append(write)
        self._pending_bytes += nbytes
        self._latest[row] = write
        self._held.append(write)
        self._held_bytes += padded(nbytes)
        if len(self._held) >= WRITE_BATCH or self._held_bytes >= WRITE_BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand over what has been stored so far."""
        self._settling += self._held
        self._held, self._held_bytes = [], 0
        self.settle()

    def settle(self) -> None:
        """Start the writes whose values are there, in their order."""
        while self._settling:
            write = self._settling[0]
            if write.value.number > self._machine.finished or (write.after and not write.after.request.is_done):
                return
            write.after = None
            self._settling.popleft()
            self._machine.transfer(write.request)

    def collect(self) -> None:
        """Forget what has been written."""
        while self._pending and self._pending[0].request.is_done:
            write = self._pending.popleft()
            self._pending_bytes -= write.nbytes
            if self._latest.get(write.row) is write:
                del self._latest[write.row]

    def drain(self) -> None:
        """Wait until everything is written."""
        while self._pending:
            self._wait_for_oldest()
            self.collect()

    def _wait_for_oldest(self) -> None:
        self.flush()
        request = self._pending[0].request

        def is_done() -> bool:
            self.settle()  # a write that had to wait for another of its row
            return request.is_done

        self._machine.wait(is_done, "store")


@dataclass(slots=True, eq=False)
class _Fetched:
    uses: int
    value: Value | None = None
    request: Request | None = None


@final
class Transfers:
    """Loads and stores of a run over a disk.

    Args:
        machine: Its disk moves the rows.
        completions: Bounds what is under way.
        limits: How much memory there is.
        ledger: Counts the memory of values.
        buffers: The buffers, by id.
    """

    def __init__(
        self,
        machine: Machine,
        completions: Completions,
        limits: Limits,
        ledger: Ledger,
        buffers: Mapping[int, BufferSize],
    ) -> None:
        self._machine = machine
        self._pool = Pool(limits.pool_bytes, machine, completions)
        self._writes = Writes(machine, limits.write_bytes)
        self._ledger = ledger
        self._nbytes = {i: size.row_bytes for i, size in buffers.items()}
        self._batch_bytes = min(READ_BATCH_BYTES, limits.pool_bytes // 4)
        self._window = Window({i: size.entries for i, size in buffers.items()}, self._fetch)
        self._fetched: dict[Row, _Fetched] = {}
        self._to_start: list[Request] = []
        self._to_start_bytes = 0
        self._kept: set[Row] = set()
        self._kept_room = limits.cache_bytes

    def keep(self, rows: Iterable[Row]) -> None:
        """Rows have been stored before the first run."""
        for row in rows:
            if row[0] in self._nbytes:
                self._keep(row)

    def begin(self, walk: Walk) -> None:
        """A run begins."""
        self._writes.collect()
        self._window.begin(walk)
        self._window.look()
        self._start()

    def load(self, row: Row) -> Value:
        """The run has come to a load."""
        self._window.pass_by(ComingLoad, row)
        fetched = self._fetched.get(row)
        value = self._load_now(row) if fetched is None else self._take(row, fetched)
        self._window.look()
        return value

    def store(self, row: Row, value: Value) -> None:
        """The run has come to a store."""
        followers = self._window.pass_by(ComingStore, row)
        self._writes.add(row, self._nbytes[row[0]], value)
        self._keep(row)
        for follower in followers:
            self._fetch(follower)
        self._window.look()

    def branch(self, *, taken: bool) -> None:
        """The device has decided a branch."""
        self._window.branch(taken)
        self._window.look()

    def end(self) -> None:
        """The run is over; stores are still under way."""
        self._window.end()
        self._fetched.clear()
        self._writes.flush()

    def drain(self) -> None:
        """Wait for all stores."""
        self._writes.drain()

    def _fetch(self, row: Row) -> bool:
        fetched = self._fetched.get(row)
        if fetched is not None:
            fetched.uses += 1
            return True
        value = self._in_memory(row)
        if value is not None:
            self._fetched[row] = _Fetched(1, value)
            return True
        nbytes = padded(self._nbytes[row[0]])
        if not self._pool.take(nbytes):
            return False
        request = Request(nbytes, False, self._nbytes[row[0]])
        self._fetched[row] = _Fetched(1, request=request)
        self._to_start.append(request)
        self._to_start_bytes += nbytes
        if self._to_start_bytes >= self._batch_bytes:
            self._start()
        return True

    def _start(self) -> None:
        for request in self._to_start:
            self._machine.transfer(request)
        self._to_start, self._to_start_bytes = [], 0

    def _take(self, row: Row, fetched: _Fetched) -> Value:
        fetched.uses -= 1
        if not fetched.uses:
            del self._fetched[row]
        if fetched.request is not None:
            if not fetched.request.is_done:
                self._start()
            fetched.value = self._receive(row, fetched.request)
            fetched.request = None
        assert fetched.value is not None
        return fetched.value

    def _load_now(self, row: Row) -> Value:
        value = self._in_memory(row)
        if value is not None:
            return value
        self._start()
        nbytes = padded(self._nbytes[row[0]])
        self._pool.take_at_any_cost(nbytes)
        request = Request(nbytes, False, self._nbytes[row[0]])
        self._machine.transfer(request)
        return self._receive(row, request)

    def _receive(self, row: Row, request: Request) -> Value:
        self._machine.wait(lambda: request.is_done, "row")
        self._pool.lend(request.n_bytes)
        value = Value(self._ledger, self._nbytes[row[0]])
        if self._keep(row):
            return value  # its block does not come back
        value.on_gone = lambda: self._pool.gone.append(request.n_bytes)
        return value

    def _in_memory(self, row: Row) -> Value | None:
        value = self._writes.value(row)
        if value is None and row in self._kept:
            return Value(self._ledger, self._nbytes[row[0]])
        return value

    def _keep(self, row: Row) -> bool:
        """Whether a row stays in memory when the program is done with it."""
        nbytes = padded(self._nbytes[row[0]])
        if row not in self._kept and nbytes <= self._kept_room:
            self._kept_room -= nbytes
            self._kept.add(row)
        return row in self._kept
