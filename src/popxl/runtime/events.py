"""What happens while a program runs, and when: for whoever wants to see what waits for what."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, Literal, NamedTuple, TypeAlias, final

from popxl.plan.lookahead import Row

#: ``compute``: the device. ``load`` and ``store``: Streaming Memory. ``host``: the thread that called `Session.run`.
Lane = Literal["compute", "load", "store", "host"]
#: On the host: a row that was asked for and need not be read; it takes no time.
IN_MEMORY = "row in memory"


class Event(NamedTuple):
    """Something that took time; a tuple, since the program waits while one is made.

    Times are those of `time.perf_counter`, in seconds. Events of the lane ``host`` do not overlap; those of others may:
    a computation begins when it is dispatched, though the device may still be busy with the one before.

    Args:
        lane: What was busy.
        kind: ``compute``, ``load`` or ``store``; on the host what the thread did, or what it waited for.
        n_bytes: Of the row, without padding; of a computation, what it allocates; of an item of a host stream; else 0.
        begin_s: When it began.
        end_s: When it ended.
        label: Which one.
        row: Buffer and entry, of what was about a row.
        reads: Of a computation, the rows that were loaded for it.
    """

    lane: Lane
    kind: str
    n_bytes: int
    begin_s: float
    end_s: float
    label: str
    row: Row | None = None
    reads: tuple[Row, ...] = ()


Sink = Callable[[Event], None]


def row_label(buffer_id: int, entry: int) -> str:
    """How events call a row."""
    return f"buffer {buffer_id}, entry {entry}"


@final
class LoadedRows:
    """Which values are rows, so that a computation can be told from which rows it was given.

    Example:
        >>> import numpy as np
        >>> rows, row = LoadedRows(), np.zeros(2)
        >>> rows.note(row, (1, 0))
        >>> rows.read_by([np.ones(2), row])
        ((1, 0),)
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # By identity, and by reference too, since the next object may be where this one was.
        self._known: dict[int, tuple[weakref.ref[Any], Row]] = {}

    def note(self, value: Any, row: Row) -> None:
        """A value is a row."""
        self._known[id(value)] = weakref.ref(value), row

    def read_by(self, values: Iterable[Any]) -> tuple[Row, ...]:
        """Those values that are rows."""
        found = ((value, self._known.get(id(value))) for value in values)
        return tuple(known[1] for value, known in found if known is not None and known[0]() is value)

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


@final
class Events:
    """Hands events to a sink while there is one. All methods are for the thread of the run, which calls the sink too.

    Whoever wants to report something asks `now` first; without a sink that is None, and there is nothing to report.

    Example:
        >>> events, seen = Events(), []
        >>> events.now()
        >>> events.sink = seen.append
        >>> begin_s = events.now()
        >>> events.emit("host", "host load", 8, begin_s)
        >>> seen[0].kind, seen[0].begin_s <= seen[0].end_s
        ('host load', True)
    """

    __slots__ = ("_begun", "_watch", "sink")

    def __init__(self) -> None:
        self.sink: Sink | None = None
        #: Computations that the thread of the run itself looks after, oldest first; the watch has only older ones.
        self._begun: deque[_Begun] = deque()
        self._watch: _Watch | None = None

    def now(self) -> float | None:
        """The time, in seconds; None if nobody looks."""
        return None if self.sink is None else perf_counter()

    def wait_begins(self) -> float | None:
        """The time, as `now`, of a wait: what ends meanwhile is noted by another thread."""
        if self.sink is None:
            return None
        if self._begun:
            self._hand_over()
        return perf_counter()

    def emit(
        self, lane: Lane, kind: str, n_bytes: int, begin_s: float, label: str = "", end_s: float | None = None
    ) -> None:
        """Report something that began at ``begin_s`` and ended at ``end_s``, or now."""
        if self.sink is not None:
            self.sink(Event(lane, kind, n_bytes, begin_s, perf_counter() if end_s is None else end_s, label))

    def emit_row(
        self, lane: Lane, kind: str, n_bytes: int, begin_s: float, row: Row, end_s: float | None = None
    ) -> None:
        """Report something about a row, as `emit` does."""
        if self.sink is not None:
            end_s = perf_counter() if end_s is None else end_s
            self.sink(Event(lane, kind, n_bytes, begin_s, end_s, row_label(*row), row))

    def emit_when_ready(
        self, token: Any, n_bytes: int, begin_s: float, label: str, reads: tuple[Row, ...] = ()
    ) -> None:
        """Report a computation once its token is ready; at the latest by `settle`."""
        self._begun.append((token, n_bytes, begin_s, label, reads))
        self._report_ended()

    def settle(self) -> None:
        """Report every computation; wait for those that are under way."""
        self._hand_over()
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            self._report(watch)

    def _hand_over(self) -> None:
        """Leave what is under way to the watch: this thread is about to wait."""
        if self._begun:
            if self._watch is None:
                self._watch = _Watch()
            self._watch.add(tuple(self._begun))
            self._begun.clear()

    def _report_ended(self) -> None:
        if self._watch is not None:
            self._report(self._watch)
            if self._watch.is_busy:
                return
        while self._begun and self._begun[0][0].is_ready():
            event = _ended(self._begun.popleft())
            if self.sink is not None:
                self.sink(event)

    def _report(self, watch: _Watch) -> None:
        while watch.ended:
            event = watch.ended.popleft()
            if self.sink is not None:
                self.sink(event)


#: Of a computation, its token and what `Events.emit_when_ready` was told.
_Begun: TypeAlias = tuple[Any, int, float, str, tuple[Row, ...]]


def _ended(begun: _Begun) -> Event:
    """The event of a computation that has just ended."""
    _, n_bytes, begin_s, label, reads = begun
    return Event("compute", "compute", n_bytes, begin_s, perf_counter(), label, None, reads)


@final
class _Watch:
    """A thread that waits for one token after the other while the thread of the run waits for something else.

    Handing over costs more than a small computation, so the thread of the run does it only where it has time.
    """

    def __init__(self) -> None:
        #: Computations that have ended.
        self.ended: deque[Event] = deque()
        self._added = 0
        self._done = 0
        self._begun: queue.SimpleQueue[tuple[_Begun, ...] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._wait, name="popxl-events", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether it has something that has not ended."""
        return self._done < self._added

    def add(self, begun: tuple[_Begun, ...]) -> None:
        self._added += 1
        self._begun.put(begun)

    def close(self) -> None:
        self._begun.put(None)
        self._thread.join()

    def _wait(self) -> None:
        while (batch := self._begun.get()) is not None:
            for begun in batch:
                with contextlib.suppress(Exception):  # it failed: whoever reads the results hears of it
                    begun[0].block_until_ready()
                self.ended.append(_ended(begun))
                del begun
            self._done += 1
            del batch
