"""Reading ahead and write-behind against a dict, over a tier that finishes requests in any order.

The run is a list of loads, stores and branches; what the engine may know beforehand of each is drawn too. Computations
are played by a clock of its own that reads the memory of loaded rows long after Python has dropped them.
"""

from __future__ import annotations

import gc
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popxl.errors import StreamingMemoryError
from popxl.plan.lookahead import Coming, ComingBranch, ComingLoad, ComingStore, Walk
from popxl.runtime.overlap import OverlappedTransfers
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.streaming.tier import BufferSpec
from popxl.runtime.streaming.transfer import Transfer
from popxl.testing.faults import FaultTier

PAGE = 4096
ENTRIES = 4
SPECS = [BufferSpec(1, (3,), np.dtype("int64"), ENTRIES), BufferSpec(2, (1500,), np.dtype("int32"), ENTRIES)]


@dataclass(frozen=True)
class Load:
    buffer_id: int
    entry: int
    known: bool = True
    keeps: int = 0  # how many further events Python holds the row for
    computes: int = 0  # how many further events a computation reads the row for


@dataclass(frozen=True)
class Store:
    buffer_id: int
    entry: int
    known: bool = True
    loaded: bool = False  # stores what was loaded last, not a new value


@dataclass(frozen=True)
class Branch:
    """The device decides whether the events in it happen."""

    taken: bool
    inside: tuple[Load | Store, ...] = ()


Event = Load | Store | Branch


@dataclass
class FakeClock:
    """Computations that read memory at some later time, whoever has dropped it."""

    dispatched: int = 0
    finished: int = 0
    _reading: deque[tuple[int, Any, bytes]] = field(default_factory=deque)
    now: int = 0

    def compute(self, row: np.ndarray, until: int) -> None:
        """Begin a computation that reads `row`, by its address: it does not keep the array."""
        self.dispatched += 1
        view = np.frombuffer((memoryview(row.base) if row.base is not None else memoryview(row)), np.uint8)
        start = row.ctypes.data - view.ctypes.data
        address = view[start : start + row.nbytes]
        self._reading.append((until, address, row.tobytes()))

    def poll(self) -> None:
        while self._reading and self._reading[0][0] <= self.now:
            self._finish()

    def wait_for_oldest(self) -> bool:
        if not self._reading:
            return False
        self._finish()
        return True

    def let_go(self) -> None:
        pass

    def admit(self, new_bytes: int) -> None:
        del new_bytes

    def add_row(self, nbytes: int) -> None:
        del nbytes

    def _finish(self) -> None:
        _, address, expected = self._reading.popleft()
        assert address.tobytes() == expected, "memory was filled again while a computation read it"
        self.finished += 1


def walk(events: tuple[Event, ...]) -> Walk:
    """What a plan would say of these events."""
    for event in events:
        if isinstance(event, Branch):
            taken = yield ComingBranch()
            if taken:
                yield from walk(event.inside)
        else:
            kind: type[Coming] = ComingLoad if isinstance(event, Load) else ComingStore
            yield kind(event.buffer_id, event.entry if event.known else None)


def fresh(buffer_id: int, number: int) -> np.ndarray:
    spec = SPECS[buffer_id - 1]
    value = np.full(spec.shape, number, spec.dtype)
    value.flags.writeable = False
    return value


@dataclass
class Run:
    """Plays events, and compares each load with a dict."""

    engine: OverlappedTransfers
    clock: FakeClock
    rows: dict[tuple[int, int], int] = field(default_factory=dict)
    held: list[tuple[int, np.ndarray, int]] = field(default_factory=list)
    last: dict[int, tuple[Any, int]] = field(default_factory=dict)
    number: int = 0

    def play(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self.clock.now += 1
            self.clock.poll()
            self._let_go()
            match event:
                case Load():
                    self._load(event)
                case Store():
                    self._store(event)
                case Branch():
                    self.engine.branch(event.taken)
                    if event.taken:
                        self.play(event.inside)

    def _load(self, event: Load) -> None:
        row = self.engine.load(event.buffer_id, event.entry)
        expected = self.rows.get((event.buffer_id, event.entry), 0)
        assert row.shape == SPECS[event.buffer_id - 1].shape
        assert (row == expected).all(), f"{event}: expected {expected}, got {row.flat[0]}"
        self.last[event.buffer_id] = (row, expected)
        if event.keeps:
            self.held.append((self.clock.now + event.keeps, row, expected))
        if event.computes:
            self.clock.compute(row, self.clock.now + event.computes)

    def _store(self, event: Store) -> None:
        self.number += 1
        value, number = fresh(event.buffer_id, self.number), self.number
        if event.loaded and event.buffer_id in self.last:
            value, number = self.last[event.buffer_id]
        self.engine.store(event.buffer_id, event.entry, value)
        self.rows[event.buffer_id, event.entry] = number

    def _let_go(self) -> None:
        if self.clock.now % 3 == 0:
            self.last.clear()
        for _until, row, expected in self.held:
            assert (row == expected).all(), "a row changed in the hands of its holder"
        self.held = [h for h in self.held if h[0] > self.clock.now]


buffers = st.integers(1, 2)
entries = st.sampled_from([0, 0, 1, 1, 2, 3])
knowing = st.sampled_from([True, True, True, False])
loads = st.builds(Load, buffers, entries, knowing, st.integers(0, 4), st.integers(0, 6))
stores = st.builds(Store, buffers, entries, knowing, st.booleans())
plain = st.one_of(loads, loads, stores)
branches = st.builds(Branch, st.booleans(), st.lists(plain, max_size=4).map(tuple))
events = st.lists(st.one_of(plain, plain, plain, branches), max_size=40).map(tuple)
#: The events of a run, and how many of them happen before it fails.
runs = st.tuples(events, st.one_of(st.just(1000), st.integers(0, 20)))
Programs = list[tuple[tuple[Event, ...], int]]


def check(programs: Programs, seed: int, patience: int, pool_pages: int, write_pages: int) -> None:
    tier = FaultTier(seed=seed, patience=patience)
    tier.open(SPECS)
    clock = FakeClock()
    pool = BlockPool(pool_pages * PAGE, clock)
    engine = OverlappedTransfers(tier, SPECS, pool, write_pages * PAGE)
    run = Run(engine, clock)
    for events, happening in programs:
        engine.begin(walk(events))
        run.play(events[:happening])
        engine.end()
    engine.drain()
    run.held.clear()
    run.last.clear()
    for (buffer_id, entry), number in run.rows.items():
        assert (np.asarray(tier.load(buffer_id, entry)) == number).all()
    while clock.wait_for_oldest():
        pass
    engine.close()
    tier.close()
    assert tier.broken_promises == []
    gc.collect(0)
    pool.take(PAGE)
    assert pool.lent_bytes == 0
    assert pool.held_bytes <= max(pool.limit_bytes, PAGE)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(runs, min_size=1, max_size=3),
    st.integers(0, 2**16),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 8),
)
def test_every_load_gives_what_the_last_store_before_it_gave(
    programs: Programs, seed: int, patience: int, pool_pages: int, write_pages: int
) -> None:
    check(programs, seed, patience, pool_pages, write_pages)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@settings(max_examples=20_000, deadline=None)
@given(
    st.lists(runs, min_size=1, max_size=3),
    st.integers(0, 2**16),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 8),
)
def test_every_load_gives_what_the_last_store_before_it_gave_many_times(
    programs: Programs, seed: int, patience: int, pool_pages: int, write_pages: int
) -> None:
    check(programs, seed, patience, pool_pages, write_pages)


# One behaviour each


@pytest.fixture
def tier() -> Iterator[FaultTier]:
    tier = FaultTier()
    tier.open(SPECS)
    yield tier
    tier.close()


def make(tier: FaultTier, *, pool_pages: int = 8, write_pages: int = 8) -> OverlappedTransfers:
    return OverlappedTransfers(tier, SPECS, BlockPool(pool_pages * PAGE, FakeClock()), write_pages * PAGE)


def test_coming_loads_are_read_before_the_run_asks(tier: FaultTier) -> None:
    engine = make(tier)
    started: list[int] = []
    start_reads = tier.start_reads
    tier.start_reads = lambda transfers: (started.extend(t.entry for t in transfers), start_reads(transfers))[1]  # type: ignore[method-assign]
    engine.begin(walk(tuple(Load(1, entry) for entry in range(4))))
    assert started == [0, 1, 2, 3]
    engine.close()


def test_rows_of_the_first_layer_are_read_before_neighbours_of_later_ones(tier: FaultTier) -> None:
    engine = make(tier)  # a quarter of its 8 pages is read at once: a row of each buffer has three
    batches: list[list[tuple[int, int]]] = []
    start_reads = tier.start_reads

    def start(transfers: Sequence[Transfer]) -> None:
        batches.append([(t.spec.buffer_id, t.entry) for t in transfers])
        start_reads(transfers)

    tier.start_reads = start  # type: ignore[method-assign]
    engine.begin(walk((Load(1, 0), Load(2, 0), Load(1, 1), Load(2, 1))))
    assert batches == [[(1, 0), (2, 0)], [(1, 1), (2, 1)]]
    engine.close()


def test_no_more_is_read_ahead_than_the_pool_holds(tier: FaultTier) -> None:
    engine = make(tier, pool_pages=2)
    started: list[int] = []
    start_reads = tier.start_reads
    tier.start_reads = lambda transfers: (started.extend(t.entry for t in transfers), start_reads(transfers))[1]  # type: ignore[method-assign]
    engine.begin(walk(tuple(Load(1, entry) for entry in range(4))))
    assert started == [0, 1]
    engine.load(1, 0)
    engine.close()


def test_load_of_a_row_under_way_to_the_tier_takes_the_value_in_memory(tier: FaultTier) -> None:
    engine = make(tier)
    value = fresh(1, 7)
    engine.begin(walk((Store(1, 2), Load(1, 2))))
    engine.store(1, 2, value)
    assert engine.load(1, 2) is value
    engine.close()


def test_two_loads_of_one_row_are_one_read(tier: FaultTier) -> None:
    engine = make(tier)
    engine.begin(walk((Load(1, 2), Load(1, 2))))
    engine.load(1, 2)
    engine.load(1, 2)
    engine.end()
    assert tier.counters.loads == 1
    engine.close()


def test_failed_read_is_raised_by_its_load_and_by_no_other(tier: FaultTier) -> None:
    tier.fails = lambda kind, _buffer, entry: kind == "read" and entry == 1
    engine = make(tier)
    engine.begin(walk((Load(1, 0), Load(1, 1), Load(1, 2))))
    engine.load(1, 0)
    with pytest.raises(StreamingMemoryError, match="entry 1"):
        engine.load(1, 1)
    engine.load(1, 2)
    engine.close()


def test_failed_write_is_raised_by_the_next_load_of_its_row(tier: FaultTier) -> None:
    engine = make(tier)
    tier.fails = lambda kind, _buffer, entry: kind == "write" and entry == 1
    engine.begin(walk((Store(1, 1), Store(1, 2), Load(1, 2))))
    engine.store(1, 1, fresh(1, 5))
    engine.store(1, 2, fresh(1, 6))
    assert (engine.load(1, 2) == 6).all()
    engine.end()
    with pytest.raises(StreamingMemoryError, match="entry 1"):
        engine.drain()
    engine.drain()
    assert (engine.load(1, 2) == 6).all()
    with pytest.raises(StreamingMemoryError, match="entry 1"):
        engine.load(1, 1)
    engine.close()


def test_store_after_a_failed_one_mends_the_row(tier: FaultTier) -> None:
    engine = make(tier)
    tier.fails = lambda kind, _buffer, _entry: kind == "write"
    engine.store(1, 1, fresh(1, 5))
    with pytest.raises(StreamingMemoryError):
        engine.drain()
    tier.fails = lambda *_: False
    engine.store(1, 1, fresh(1, 6))
    engine.drain()
    assert (engine.load(1, 1) == 6).all()
    engine.close()


@pytest.mark.parametrize("known", [(True, False), (False, True)])
def test_load_waits_for_the_later_of_two_stores_that_may_be_of_its_row(
    tier: FaultTier, known: tuple[bool, bool]
) -> None:
    engine = make(tier)
    engine.begin(walk((Store(1, 0, known[0]), Store(1, 0, known[1]), Load(1, 0))))
    engine.store(1, 0, fresh(1, 5))
    engine.store(1, 0, fresh(1, 6))
    assert (engine.load(1, 0) == 6).all()
    engine.close()


def test_run_that_is_given_up_leaves_nothing_under_way(tier: FaultTier) -> None:
    engine = make(tier)
    started: list[Transfer] = []
    start_reads = tier.start_reads
    tier.start_reads = lambda transfers: (started.extend(transfers), start_reads(transfers))[1]  # type: ignore[method-assign]
    engine.begin(walk(tuple(Load(2, entry) for entry in range(4))))
    engine.end()
    assert [t.is_done for t in started] == [True] * 4
    engine.begin(walk((Load(2, 0),)))
    assert (engine.load(2, 0) == 0).all()
    engine.close()


def test_run_that_differs_from_its_walk_is_a_fault_of_ours(tier: FaultTier) -> None:
    engine = make(tier)
    engine.begin(walk((Load(1, 0),)))
    with pytest.raises(AssertionError, match="the walk saw"):
        engine.store(1, 0, fresh(1, 1))
    engine.close()


def test_order_of_the_tier_does_not_change_the_result() -> None:
    events = tuple(
        Load(rng.randint(1, 2), rng.randrange(ENTRIES)) if rng.random() < 0.6 else Store(rng.randint(1, 2), 3)
        for rng in [random.Random(3)]
        for _ in range(200)
    )
    for seed in range(5):
        check([(events, 1000)], seed, patience=4, pool_pages=6, write_pages=2)
