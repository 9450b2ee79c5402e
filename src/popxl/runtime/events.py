"""What happens while a program runs, and when: for whoever wants to see what waits for what."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, final

#: ``compute``: the device. ``load`` and ``store``: Streaming Memory. ``host``: the thread that called `Session.run`.
Lane = Literal["compute", "load", "store", "host"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that took time.

    Times are those of `time.perf_counter`, in seconds. Events of the lane ``host`` do not overlap; those of others may:
    a computation begins when it is dispatched, though the device may still be busy with the one before.

    Args:
        lane: What was busy.
        kind: ``compute``, ``load`` or ``store``; on the host what the thread did, or what it waited for.
        n_bytes: Of the row, without padding; of a computation, what it allocates; of an item of a host stream; else 0.
        begin_s: When it began.
        end_s: When it ended.
        label: Which one.
    """

    lane: Lane
    kind: str
    n_bytes: int
    begin_s: float
    end_s: float
    label: str


Sink = Callable[[Event], None]


def row_label(buffer_id: int, entry: int) -> str:
    """How events call a row."""
    return f"buffer {buffer_id}, entry {entry}"


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

    __slots__ = ("_watch", "sink")

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self._watch: _Watch | None = None

    def now(self) -> float | None:
        """The time, in seconds; None if nobody looks."""
        return None if self.sink is None else perf_counter()

    def emit(
        self, lane: Lane, kind: str, n_bytes: int, begin_s: float, label: str = "", end_s: float | None = None
    ) -> None:
        """Report something that began at ``begin_s`` and ended at ``end_s``, or now."""
        if self.sink is not None:
            self.sink(Event(lane, kind, n_bytes, begin_s, perf_counter() if end_s is None else end_s, label))

    def emit_when_ready(self, token: Any, n_bytes: int, begin_s: float, label: str) -> None:
        """Report a computation once its token is ready; at the latest by `settle`."""
        if self._watch is None:
            self._watch = _Watch()
        self._watch.add(token, Event("compute", "compute", n_bytes, begin_s, begin_s, label))
        self._report(self._watch)

    def settle(self) -> None:
        """Report every computation; wait for those that are under way."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
            self._report(watch)

    def _report(self, watch: _Watch) -> None:
        while watch.ended:
            event = watch.ended.popleft()
            if self.sink is not None:
                self.sink(event)


@final
class _Watch:
    """A thread that waits for one token after the other: the thread of the run learns too late that one is ready."""

    def __init__(self) -> None:
        #: Computations that have ended.
        self.ended: deque[Event] = deque()
        self._begun: queue.SimpleQueue[tuple[Any, Event] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._wait, name="popxl-events", daemon=True)
        self._thread.start()

    def add(self, token: Any, event: Event) -> None:
        self._begun.put((token, event))

    def close(self) -> None:
        self._begun.put(None)
        self._thread.join()

    def _wait(self) -> None:
        while (item := self._begun.get()) is not None:
            token, event = item
            with contextlib.suppress(Exception):  # it failed: whoever reads the results hears of it
                token.block_until_ready()
            self.ended.append(replace(event, end_s=perf_counter()))
            del item, token
