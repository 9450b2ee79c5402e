"""A recording as a file for Perfetto (https://ui.perfetto.dev) or ``chrome://tracing``: the Trace Event Format in JSON.

One track per lane, and more where events of a lane overlap; counters of bytes under way; arrows from the load of a row
to the computation that it was loaded for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from popxl.plan.lookahead import Row
from popxl.runtime.events import Event, Lane, row_label

from .recording import LANES, Recording, bytes_under_way

_PID = 1
#: Numbers of a lane's tracks begin here; the runs have a track above all.
_FIRST_TRACK: Mapping[Lane, int] = {"host": 100, "compute": 200, "load": 300, "store": 400}
_RUNS_TRACK = 1
_COUNTERS: Mapping[Lane, str] = {
    "compute": "bytes of computations under way",
    "load": "bytes of loads under way",
    "store": "bytes of stores under way",
}
Entry = dict[str, object]


def write_trace(recording: Recording, path: Path) -> None:
    """Write a recording; the file is there as a whole or not at all.

    Args:
        recording: What was seen.
        path: The file, replaced if it is there.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","otherData":')
            file.write(json.dumps({"events not kept": recording.dropped, "runs": len(recording.runs)}))
            file.write(',"traceEvents":[\n')
            separator = ""
            for entry in trace_entries(recording):
                file.write(separator)
                file.write(json.dumps(entry, separators=(",", ":")))
                separator = ",\n"
            file.write("\n]}\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def trace_entries(recording: Recording) -> Iterator[Entry]:
    """Yield what the file lists. Times are microseconds from the first moment on."""
    moments = [run.begin_s for run in recording.runs] + [event.begin_s for event in recording.events]
    start_s = min(moments, default=0.0)
    yield {"ph": "M", "pid": _PID, "name": "process_name", "args": {"name": "popxl"}}
    yield _name(_RUNS_TRACK, "runs")
    for i, run in enumerate(recording.runs):
        yield {
            "ph": "X", "pid": _PID, "tid": _RUNS_TRACK, "name": f"run {i + 1}",
            "ts": _us(run.begin_s - start_s), "dur": _us(run.end_s - run.begin_s),
        }  # fmt: skip
    tracks: dict[Lane, _Arranged] = {lane: _arranged(recording.of(lane), is_one=lane == "compute") for lane in LANES}
    for lane in LANES:
        arranged = tracks[lane]
        for track in range(1 + max((track for track, _, _ in arranged), default=-1)):
            yield _name(_FIRST_TRACK[lane] + track, lane if track == 0 else f"{lane} {track + 1}")
        for track, begin_s, event in arranged:
            yield _slice(event, _FIRST_TRACK[lane] + track, begin_s, start_s)
    for lane in _COUNTERS:
        yield from _counter(lane, recording.of(lane), start_s)
    yield from _arrows(tracks["load"], tracks["compute"], start_s)


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _name(track: int, name: str) -> Entry:
    return {"ph": "M", "pid": _PID, "tid": track, "name": "thread_name", "args": {"name": name}}


_Arranged = list[tuple[int, float, Event]]


def _arranged(events: Sequence[Event], *, is_one: bool) -> _Arranged:
    """Give each event a track on which it overlaps no other, and its begin there.

    `is_one`: a device does one computation after the other, so one that was dispatched early begins when the one before
    has ended, on one track.
    """
    result: _Arranged = []
    ends_s: list[float] = []
    for event in sorted(events, key=lambda e: (e.begin_s, e.end_s)):
        if is_one:
            begin_s = min(max(event.begin_s, ends_s[0] if ends_s else event.begin_s), event.end_s)
            ends_s = [max(event.end_s, ends_s[0] if ends_s else event.end_s)]
            result.append((0, begin_s, event))
            continue
        track = next((i for i, end_s in enumerate(ends_s) if end_s <= event.begin_s), len(ends_s))
        ends_s[track : track + 1] = [event.end_s]
        result.append((track, event.begin_s, event))
    return result


def _slice(event: Event, track: int, begin_s: float, start_s: float) -> Entry:
    details: Entry = {"bytes": event.n_bytes}
    if event.label:
        details["which"] = event.label
    if event.reads:
        details["reads"] = [row_label(*row) for row in event.reads]
    if begin_s > event.begin_s:
        details["dispatched, us"] = _us(event.begin_s - start_s)
    return {
        "ph": "X", "pid": _PID, "tid": track, "cat": event.lane, "name": _title(event),
        "ts": _us(begin_s - start_s), "dur": _us(event.end_s - begin_s), "args": details,
    }  # fmt: skip


def _title(event: Event) -> str:
    return event.label if event.lane != "host" and event.label else event.kind


def _counter(lane: Lane, events: Sequence[Event], start_s: float) -> Iterator[Entry]:
    for moment_s, n_bytes in bytes_under_way(events):
        yield {
            "ph": "C", "pid": _PID, "tid": 0, "name": _COUNTERS[lane],
            "ts": _us(moment_s - start_s), "args": {"bytes": n_bytes},
        }  # fmt: skip


def _arrows(loads: _Arranged, computations: _Arranged, start_s: float) -> Iterator[Entry]:
    """Yield an arrow from each load that a computation was given to that computation."""
    by_row: dict[Row | None, _Arranged] = {}
    for load in loads:
        by_row.setdefault(load[2].row, []).append(load)
    number = 0
    for track, begin_s, event in computations:
        for row in event.reads:
            before = [load for load in by_row.get(row, ()) if load[2].end_s <= event.begin_s]
            if not before:  # the value came from memory
                continue
            load_track, load_begin_s, load = before[-1]
            number += 1
            yield _arrow("s", number, _FIRST_TRACK["load"] + load_track, (load_begin_s + load.end_s) / 2 - start_s)
            yield _arrow("f", number, _FIRST_TRACK["compute"] + track, (begin_s + event.end_s) / 2 - start_s)


def _arrow(phase: str, number: int, track: int, moment_s: float) -> Entry:
    # An arrow ends at the slice that encloses the moment.
    end = {"bp": "e"} if phase == "f" else {}
    return {
        "ph": phase, "pid": _PID, "tid": track, "cat": "row", "name": "row", "id": number, "ts": _us(moment_s), **end,
    }  # fmt: skip
