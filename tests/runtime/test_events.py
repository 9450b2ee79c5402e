"""What a sink is told of a run: each row once, computations, host steps, and what the thread of the run waited for."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import StreamingMemoryError
from popxl.plan.lookahead import ComingLoad, Walk
from popxl.runtime.completion import Completion
from popxl.runtime.events import Event, Events
from popxl.runtime.overlap import OverlappedTransfers
from popxl.runtime.streaming import BufferSpec, StreamingMemory
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.write_behind import WriteBehind
from popxl.testing.faults import FaultTier

ENTRIES = 6
SPEC = BufferSpec(1, (8,), np.dtype("float32"), ENTRIES)


def of_lane(events: list[Event], lane: str) -> list[Event]:
    return [e for e in events if e.lane == lane]


class Sweep:
    """Adds one to every row of a buffer, and takes and gives an item of a host stream."""

    def __init__(self) -> None:
        self.ir = popxl.Ir()
        with self.ir.main_graph, popxl.in_sequence():
            self.buffer = popxl.remote_buffer((3, 1000), popxl.float32, ENTRIES)
            self.given = popxl.h2d_stream((5,), popxl.float32)
            self.taken = popxl.d2h_stream((5,), popxl.float32)
            for entry in range(ENTRIES):
                row = ops.remote_load(self.buffer, entry)
                ops.remote_store(self.buffer, entry, row + 1)
            ops.host_store(self.taken, ops.host_load(self.given) * 2)

    def run(self, session: popxl.Session) -> None:
        session.run({self.given: np.ones(5, np.float32)})


def observe(session: popxl.Session, sink: Any) -> None:
    session._observe(sink)


@dataclass
class Seen:
    events: list[Event] = field(default_factory=list)
    moved: Any = None
    figures: Any = None


@pytest.fixture
def seen(memory: str) -> Seen:
    sweep, events = Sweep(), list[Event]()
    with popxl.Session(sweep.ir, streaming_memory=memory, weights_to_host_on_exit=False) as session:
        observe(session, events.append)
        sweep.run(session)
        observe(session, None)
        return Seen(events, session.streaming_memory.counters, session.figures)


# A whole run


def test_every_row_moved_is_seen_once_with_its_bytes(seen: Seen) -> None:
    expected = [(f"buffer 1, entry {entry}", 12_000) for entry in range(ENTRIES)]
    for lane in ("load", "store"):
        events = of_lane(seen.events, lane)
        assert Counter(e.kind for e in events) == {lane: ENTRIES}
        assert sorted((e.label, e.n_bytes) for e in events) == expected


def test_bytes_are_those_of_the_counters_and_figures(seen: Seen) -> None:
    loaded = sum(e.n_bytes for e in of_lane(seen.events, "load"))
    stored = sum(e.n_bytes for e in of_lane(seen.events, "store"))
    assert loaded == seen.moved.bytes_loaded == seen.figures.load_bytes
    assert stored == seen.moved.bytes_stored == seen.figures.store_bytes


def test_nothing_ends_before_it_begins(seen: Seen) -> None:
    assert all(e.begin_s <= e.end_s for e in seen.events)


def test_row_is_stored_after_it_was_loaded(seen: Seen) -> None:
    loads = {e.label: e.end_s for e in of_lane(seen.events, "load")}
    assert all(loads[e.label] <= e.begin_s for e in of_lane(seen.events, "store"))


def test_host_does_one_thing_at_a_time(seen: Seen) -> None:
    events = sorted(of_lane(seen.events, "host"), key=lambda e: e.begin_s)
    assert all(a.end_s <= b.begin_s for a, b in itertools.pairwise(events))


def test_items_of_host_streams_are_seen_with_their_bytes(seen: Seen) -> None:
    items = {e.kind: e.n_bytes for e in of_lane(seen.events, "host") if "wait" not in e.kind}
    assert items == {"HostLoad": 20, "HostStore": 20, "fetch outputs": 0}


def test_every_computation_is_seen_once_with_the_line_that_made_it(way: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        v = popxl.variable(np.zeros(3, np.float32))
        graph = ir.create_graph(lambda t: t * 2 + 1, v)
        out = popxl.d2h_stream((3,), popxl.float32)
        ops.host_store(out, ops.repeat(graph, 5, v)[0])
    events: list[Event] = []
    with popxl.Session(ir) as session:
        observe(session, events.append)
        session.run()
        session.wait()
    computations = of_lane(events, "compute")
    assert len(computations) == (1 if way == "compiled" else 5)
    assert all("test_events.py" in e.label for e in computations)


def test_offset_that_the_device_computes_is_waited_for(memory: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.float32, ENTRIES)
        x = popxl.variable(np.zeros((1200, 1200), np.float32))
        y = x
        for _ in range(8):  # long enough that it is still under way when the offset is wanted
            y = y @ x
        row = ops.remote_load(buffer, ops.cast(ops.max(y), popxl.uint32))
        out = popxl.d2h_stream((2,), popxl.float32)
        ops.host_store(out, row)
    events: list[Event] = []
    with popxl.Session(ir, streaming_memory=memory, weights_to_host_on_exit=False) as session:
        observe(session, events.append)
        session.run()
        observe(session, None)
    (wait,) = [e for e in events if e.kind == "wait for value"]
    (load,) = of_lane(events, "load")
    assert "RemoteLoad" in wait.label
    assert wait.end_s <= load.begin_s


def test_nothing_is_reported_without_a_sink_or_after_it(memory: str) -> None:
    sweep, events = Sweep(), list[Event]()
    with popxl.Session(sweep.ir, streaming_memory=memory, weights_to_host_on_exit=False) as session:
        sweep.run(session)
        observe(session, events.append)
        observe(session, None)
        sweep.run(session)
    assert [e for e in events if e.lane != "host"] == []


def test_sink_is_called_by_the_thread_of_the_run_alone(memory: str) -> None:
    sweep, threads = Sweep(), set[int]()
    with popxl.Session(sweep.ir, streaming_memory=memory) as session:
        observe(session, lambda _: threads.add(threading.get_ident()))
        sweep.run(session)
        observe(session, None)
    assert threads == {threading.get_ident()}


def test_observing_leaves_no_thread_behind() -> None:
    sweep = Sweep()
    with popxl.Session(sweep.ir) as session:
        observe(session, lambda _: None)
        sweep.run(session)
    assert "popxl-events" not in {thread.name for thread in threading.enumerate()}


# Rows under way


class Played:
    """An engine over a tier that is slow to finish, and what a sink was told."""

    def __init__(self, write_bytes: int = 1 << 20, **faults: Any) -> None:
        self.events: list[Event] = []
        told = Events()
        told.sink = self.events.append
        self.tier = FaultTier(delay_s=0.1, **faults)  # not there when it is first asked for
        self.tier.open([SPEC])
        pool = BlockPool(1 << 20, Completion(events=told))
        self.engine = OverlappedTransfers(self.tier, [SPEC], pool, write_bytes, events=told)

    def close(self) -> None:
        self.engine.close()
        self.tier.close()

    def kinds(self) -> list[str]:
        return [e.kind for e in self.events]


ROW = np.ones(8, np.float32)


def test_load_of_a_row_that_is_not_there_yet_is_a_wait_for_it() -> None:
    played = Played()
    played.engine.load(1, 4)
    played.close()
    wait, load = played.events
    assert (wait.lane, wait.kind, wait.n_bytes, wait.label) == ("host", "wait for row", 32, "buffer 1, entry 4")
    assert load.lane == "load"
    assert load.begin_s <= load.end_s <= wait.end_s


def walk() -> Walk:
    yield ComingLoad(1, 4)


def test_row_read_ahead_that_is_there_is_no_wait() -> None:
    played = Played()
    played.engine.begin(walk())
    (fetched,) = played.engine._fetched.values()
    assert fetched.transfer is not None
    fetched.transfer.wait()
    played.engine.load(1, 4)
    played.close()
    assert played.kinds() == ["load"]


def test_store_that_finds_too_much_unwritten_waits_for_the_oldest() -> None:
    played = Played(write_bytes=32)
    played.engine.store(1, 0, ROW)
    played.engine.store(1, 1, ROW)
    assert played.kinds() == ["wait for store", "store"]
    assert played.events[0].label == "buffer 1, entry 0"
    played.close()


def test_row_that_is_taken_from_memory_was_not_loaded() -> None:
    played = Played()
    played.engine.store(1, 0, ROW)
    played.engine.load(1, 0)
    played.engine.drain()
    played.close()
    assert played.kinds() == ["row in memory", "wait for store", "store"]


def test_row_that_cannot_be_read_was_not_loaded() -> None:
    played = Played(fails=lambda kind, buffer_id, entry: kind == "read")
    with pytest.raises(StreamingMemoryError):
        played.engine.load(1, 0)
    played.close()
    assert "load" not in played.kinds()


def test_io_of_the_file_tier_begins_when_a_disk_thread_takes_it_up(tmp_path: Path) -> None:
    tier = StreamingMemory(f"file:{tmp_path}").tier
    spec = BufferSpec(1, (3 << 20,), np.dtype("float32"), 4)  # in several pieces
    tier.open([spec])
    events: list[Event] = []
    told = Events()
    told.sink = events.append
    writes = WriteBehind(tier, 1 << 30, told)
    for entry in range(4):
        writes.add(spec, entry, np.full(3 << 20, entry, np.float32), None)
    writes.drain()
    writes.close()
    tier.close()
    begins = [e.begin_s for e in events if e.lane == "store"]
    assert begins == sorted(set(begins))


# Computations


@dataclass
class Token:
    """Of a computation that goes on until it is told."""

    error: Exception | None = None
    blocks: bool = True
    finished: threading.Event = field(default_factory=threading.Event)

    def finish(self) -> float:
        now = time.perf_counter()
        self.finished.set()
        return now

    def is_ready(self) -> bool:
        return self.finished.is_set()

    def block_until_ready(self) -> None:
        if self.blocks:
            self.finished.wait()
        if self.error is not None:
            raise self.error


def test_computation_ends_when_its_token_is_ready_not_when_somebody_asks() -> None:
    events, told, token = list[Event](), Events(), Token()
    told.sink = events.append
    told.emit_when_ready(token, 16, 1.0, "first")
    finished_s = token.finish()
    told.settle()
    (event,) = events
    assert (event.lane, event.kind, event.n_bytes, event.label, event.begin_s) == (
        "compute",
        "compute",
        16,
        "first",
        1.0,
    )
    assert event.end_s >= finished_s


def test_computation_that_fails_ends_too() -> None:
    events, told, token = list[Event](), Events(), Token(RuntimeError("broken"))
    told.sink = events.append
    told.emit_when_ready(token, 16, 1.0, "first")
    token.finish()
    told.settle()
    assert [e.label for e in events] == ["first"]


def test_wait_for_a_computation_is_an_event_of_the_host() -> None:
    events, told, token = list[Event](), Events(), Token(blocks=False)
    told.sink = events.append
    completion = Completion(slack_bytes=0, events=told)
    completion.add(token, 16)
    completion.admit(16)
    assert [(e.lane, e.kind) for e in events] == [("host", "wait for computation")]
