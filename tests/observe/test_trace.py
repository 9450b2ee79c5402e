"""Recordings of real runs, and the files made of them, read back by the rules of the Trace Event Format."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.observe import Recording
from popxl.observe import recording as recording_module
from popxl.observe.trace import write_trace
from popxl.runtime.events import Event

ENTRIES, LENGTH = 6, 50_000
ROW_BYTES = 4 * LENGTH


class Sweep:
    """Adds one to every row of a buffer, in a loop."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph, popxl.in_sequence():
            buffer = popxl.remote_buffer((LENGTH,), popxl.float32, ENTRIES)

            def visit(k: popxl.Tensor) -> popxl.Tensor:
                ops.remote_store(buffer, k, ops.remote_load(buffer, k) + 1)
                return k + 1

            first = popxl.constant(0, popxl.uint32)
            ops.repeat(self.ir.create_graph(visit, first), ENTRIES, first)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, dict[str, Any], popxl.Session]:
    folder = tmp_path_factory.mktemp("traced")
    with popxl.Session(Sweep().ir, streaming_memory=f"file:{folder / 'rows'}") as session:
        session.run()
        with session.trace(folder / "run.json") as seen:
            session.run()
            session.wait()  # a row whose store is under way would not be loaded
            session.run()
        session.run()
    assert [path.name for path in folder.iterdir() if path.name != "rows"] == ["run.json"]
    return seen, json.loads((folder / "run.json").read_text()), session


def of_phase(trace: dict[str, Any], phase: str) -> list[dict[str, Any]]:
    return [entry for entry in trace["traceEvents"] if entry["ph"] == phase]


def test_only_the_runs_of_the_block_are_recorded(traced: tuple[Recording, Any, Any]) -> None:
    seen, _, _ = traced
    assert len(seen.runs) == 2
    assert [event.row for event in seen.of("load")] == [(1, k) for k in range(ENTRIES)] * 2
    assert sorted(event.row or (0, 0) for event in seen.of("store")) == sorted([(1, k) for k in range(ENTRIES)] * 2)
    assert len(seen.of("compute")) == 2 * ENTRIES


def test_a_computation_says_which_rows_it_was_given(traced: tuple[Recording, Any, Any]) -> None:
    seen, _, _ = traced
    assert [event.reads for event in seen.of("compute")] == [((1, k),) for k in range(ENTRIES)] * 2


def test_no_slice_of_a_track_overlaps_another(traced: tuple[Any, dict[str, Any], Any]) -> None:
    _, trace, _ = traced
    ends: dict[int, float] = defaultdict(float)
    slices = sorted(of_phase(trace, "X"), key=lambda entry: entry["ts"])
    assert len(slices) == 2 + len(traced[0].events)
    for entry in slices:
        assert entry["dur"] >= 0
        assert entry["ts"] >= ends[entry["tid"]] - 0.002  # rounded to ns
        ends[entry["tid"]] = entry["ts"] + entry["dur"]
    named = {entry["tid"] for entry in of_phase(trace, "M") if entry["name"] == "thread_name"}
    assert set(ends) == named


def test_counters_go_up_by_rows_and_end_at_zero(traced: tuple[Any, dict[str, Any], Any]) -> None:
    _, trace, _ = traced
    counters = defaultdict(list)
    for entry in of_phase(trace, "C"):
        counters[entry["name"]].append(entry["args"]["bytes"])
    for lane in ("load", "store"):
        values = counters[f"bytes of {lane}s under way"]
        assert values[-1] == 0
        assert {value % ROW_BYTES for value in values} == {0}
        assert max(values) >= ROW_BYTES


def test_an_arrow_goes_from_each_load_to_its_use(traced: tuple[Any, dict[str, Any], Any]) -> None:
    _, trace, _ = traced
    starts = {entry["id"]: entry for entry in of_phase(trace, "s")}
    ends = {entry["id"]: entry for entry in of_phase(trace, "f")}
    assert starts.keys() == ends.keys()
    assert len(starts) == 2 * ENTRIES

    def enclosing(entry: dict[str, Any]) -> dict[str, Any]:
        (found,) = [
            s for s in of_phase(trace, "X") if s["tid"] == entry["tid"] and s["ts"] <= entry["ts"] <= s["ts"] + s["dur"]
        ]
        return found

    for number, start in starts.items():
        assert start["ts"] <= ends[number]["ts"]
        load, use = enclosing(start), enclosing(ends[number])
        assert use["args"]["reads"] == [load["name"]]


def test_the_report_has_the_bytes_that_were_moved(traced: tuple[Any, Any, popxl.Session]) -> None:
    report = traced[2].report()
    assert report.loaded == report.stored == {1: ENTRIES * ROW_BYTES}
    assert report.runs == 2
    assert report.attributed is not None
    assert 0 < report.attributed <= 1
    assert report.measured is not None
    assert max(report.measured.compute_s, report.measured.load_s) <= report.measured.wall_s
    text = str(report)
    assert "1.14 MiB         | 1.14 MiB | 0 B" in text
    assert "2 runs measured" in text


def test_rows_read_and_rows_still_in_memory_are_what_was_predicted(tmp_path: Path) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((LENGTH,), popxl.float32, 2)
        for entry in (0, 0, 0, 1):  # the second and the third find what was stored just before
            ops.remote_store(buffer, entry, ops.remote_load(buffer, entry) + 1)
    with popxl.Session(ir, streaming_memory=f"file:{tmp_path / 'rows'}") as session, session.trace():
        session.run()
    report = session.report()
    assert report.loaded == {1: 2 * ROW_BYTES}
    assert report.in_memory == {1: 2 * ROW_BYTES}
    assert session.figures.load_bytes == sum(report.loaded.values()) + sum(report.in_memory.values())


def test_a_picture_is_drawn(traced: tuple[Any, Any, popxl.Session], tmp_path: Path) -> None:
    traced[2].timeline(tmp_path / "memory.svg")
    text = (tmp_path / "memory.svg").read_text()
    assert "</svg>" in text
    assert len(traced[0].memory) >= 2


def test_a_session_that_is_left_ends_its_recording(tmp_path: Path) -> None:
    with popxl.Session(Sweep().ir) as session:
        seen = session.trace(tmp_path / "run.json")
        session.run()
        assert not seen.is_over
    assert seen.is_over
    assert len(of_phase(json.loads((tmp_path / "run.json").read_text()), "X")) == 1 + len(seen.events)


def test_a_report_without_a_recording_says_how_to_make_one() -> None:
    session = popxl.Session(Sweep().ir)
    assert "with session.trace()" in str(session.report())
    with pytest.raises(popxl.errors.PopxlError, match="Nothing was recorded"):
        session.timeline("picture.png")


def test_a_failed_run_leaves_a_recording_that_ends(tmp_path: Path) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.float32, 2)
        which = popxl.h2d_stream((), popxl.uint32)
        ops.remote_store(buffer, ops.host_load(which), ops.remote_load(buffer, 0) + 1)
    with popxl.Session(ir) as session, session.trace(tmp_path / "run.json") as seen:
        with pytest.raises(ValueError, match="outside"):
            session.run({which: np.uint32(5)})
        session.run({which: np.uint32(1)})
    assert len(seen.runs) == 2
    json.loads((tmp_path / "run.json").read_text())


def test_events_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recording_module, "MOST_EVENTS", 2)
    with Recording(lambda: None) as seen:
        for k in range(5):
            seen.add(Event("host", "work", 0, k, k + 1, '<&"\n'))
    assert (len(seen.events), seen.dropped) == (2, 3)
    write_trace(seen, tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())
    assert trace["otherData"]["events not kept"] == 3
    assert of_phase(trace, "X")[0]["args"]["which"] == '<&"\n'


def test_waits_are_added_up_by_cause_and_busy_time_counts_once() -> None:
    with Recording(lambda: None) as seen:
        seen.runs.append(recording_module.Run(0.0, 10.0))
        for lane, kind, begin, end in (
            ("compute", "compute", 0.0, 4.0),
            ("load", "load", 3.0, 5.0),
            ("load", "load", 3.5, 6.0),
            ("host", "wait for row", 4.0, 6.0),
            ("host", "wait for row", 8.0, 9.0),
            ("host", "work", 9.5, 12.0),
        ):
            seen.add(Event(lane, kind, 0, begin, end, ""))  # type: ignore[arg-type]
    assert seen.waits_s() == {"row": 3.0}
    assert seen.busy_s("load") == 3.0
    # What follows the run does not count; the last run ends with the recording, a moment later.
    assert seen.busy_s() == pytest.approx(6.0 + 1.0 + 0.5, abs=0.4)
