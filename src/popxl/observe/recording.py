"""What was seen of some runs: their events, their times, and the memory of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import final

from popxl.runtime.events import Event, Lane

#: Beyond this many events the rest is only counted: a million take some 200 MB.
MOST_EVENTS = 1_000_000
_SAMPLE_S = 0.02
_KIB = 1024

LANES: tuple[Lane, ...] = ("compute", "load", "store", "host")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program, in seconds of `time.perf_counter`; the last one ends when all it started is finished."""

    begin_s: float
    end_s: float


@final
class Recording:
    """The events of a session from now until its end, and the memory of the process meanwhile.

    `Session.trace` makes one. It is a context manager; at the end of the block, or when the session is left, it waits
    for what is under way, ends, and is written if a path was given.

    Args:
        stop: Called once at the end; returns when nothing is under way any more.
        path: Where to write the trace to, if anywhere.

    Attributes:
        events: What happened, in the order in which the thread of the run heard of it.
        runs: When runs began and ended.
        memory: Anonymous memory of the process, in bytes, every 20 ms: (seconds of `time.perf_counter`, bytes).
        dropped: Events that were not kept, since there were more than `MOST_EVENTS`.
    """

    def __init__(self, stop: Callable[[], None], path: str | Path | None = None) -> None:
        self.events: list[Event] = []
        self.runs: list[Run] = []
        self.memory: list[tuple[float, int]] = []
        self.dropped = 0
        self.path = None if path is None else Path(path)
        self._stop = stop
        self._run_s: float | None = None
        self._is_over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="popxl-memory", daemon=True)
        self._sampler.start()

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._is_over.is_set()

    def add(self, event: Event) -> None:
        """Keep an event: what a session calls."""
        if len(self.events) < MOST_EVENTS:
            self.events.append(event)
        else:
            self.dropped += 1

    def begin_run(self) -> None:
        """A run begins."""
        if not self.is_over:
            self._run_s = perf_counter()

    def end_run(self) -> None:
        """A run has returned."""
        if self._run_s is not None:
            self.runs.append(Run(self._run_s, perf_counter()))
            self._run_s = None

    def end(self) -> None:
        """Wait for what is under way, stop listening, and write the trace. Once it has ended, it does nothing."""
        if self.is_over:
            return
        self._is_over.set()
        begin_s = perf_counter()
        try:
            self._stop()
        finally:
            self._sampler.join()
        if self.runs:
            last = self.runs.pop()
            # What it started after it had returned belongs to it, but not what the caller did in between.
            self.runs.append(Run(last.begin_s, last.end_s + perf_counter() - begin_s))
        if self.path is not None:
            from .trace import write_trace

            write_trace(self, self.path)

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.end()

    # What the events say

    @property
    def wall_s(self) -> float:
        """Seconds of all runs together."""
        return sum(run.end_s - run.begin_s for run in self.runs)

    def of(self, lane: Lane) -> list[Event]:
        """The events of a lane."""
        return [event for event in self.events if event.lane == lane]

    def busy_s(self, *lanes: Lane) -> float:
        """Seconds in which at least one of the lanes was busy during a run; of all lanes, if none is named."""
        spans = [(e.begin_s, e.end_s) for e in self.events if not lanes or e.lane in lanes]
        return overlap_s(merged(spans), [(run.begin_s, run.end_s) for run in self.runs])

    def waits_s(self) -> dict[str, float]:
        """What the thread of the run waited for, and how long."""
        waits: dict[str, float] = {}
        for event in self.of("host"):
            if event.kind.startswith("wait for "):
                cause = event.kind.removeprefix("wait for ")
                waits[cause] = waits.get(cause, 0.0) + event.end_s - event.begin_s
        return waits

    def _sample(self) -> None:
        is_over = False
        while True:
            n_bytes = anonymous_bytes()
            if n_bytes is None:
                return
            self.memory.append((perf_counter(), n_bytes))
            if is_over:
                return
            is_over = self._is_over.wait(_SAMPLE_S)

    def __repr__(self) -> str:
        return f"Recording[{len(self.runs)} runs, {len(self.events)} events]"


Span = tuple[float, float]


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same moments, as spans that do not touch.

    Example:
        >>> merged([(3, 4), (0, 2), (1, 2.5), (4, 4)])
        [(0, 2.5), (3, 4)]
    """
    result: list[Span] = []
    for begin, end in sorted(spans):
        if result and begin <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((begin, end))
    return result


def overlap_s(spans: Iterable[Span], others: Iterable[Span]) -> float:
    """Seconds that are in both; neither touches itself.

    Example:
        >>> overlap_s([(0, 2), (3, 5)], [(1, 4)])
        2
    """
    spans, others = list(spans), list(others)
    total, i, j = 0, 0, 0
    while i < len(spans) and j < len(others):
        (a, b), (c, d) = spans[i], others[j]
        total += max(0, min(b, d) - max(a, c))
        i, j = (i + 1, j) if b < d else (i, j + 1)
    return total


def bytes_under_way(events: Iterable[Event]) -> list[tuple[float, int]]:
    """Bytes of events that have begun and not ended, from each moment on at which one does.

    Example:
        >>> bytes_under_way([Event("load", "load", 8, 0.0, 2.0, ""), Event("load", "load", 4, 2.0, 3.0, "")])
        [(0.0, 8), (2.0, 0), (2.0, 4), (3.0, 0)]
    """
    events = list(events)
    changes = [(e.begin_s, e.n_bytes) for e in events] + [(e.end_s, -e.n_bytes) for e in events]
    # At one moment what ends goes first, so that no peak is shown that was not there.
    changes.sort()
    return list(zip((s for s, _ in changes), accumulate(n for _, n in changes), strict=True))


def anonymous_bytes() -> int | None:
    """Memory of this process that no file backs; None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return sum(int(fields.get(name, "0 kB").split()[0]) * _KIB for name in ("RssAnon", "RssShmem"))
