"""A load from the RAM tier passes a reference. Target: 256 MiB takes at most twice the time of 4 KiB on the CPU.

A program loads one row of a remote buffer many times, each time into a compiled segment that adds one element of it
to a sum: what is timed is the load as the executor does it and handing the row over, not work on its bytes. The
offsets are either numbers in an unrolled program, or the counter of a loop that the host drives. Next to it stand
the tier's own `load`, and the same program with the row stored into another row instead.

A row may come from three places, and each is timed: the upload of a remote variable, a compiled segment, and a host
stream. The addresses of what is stored, loaded and stored again are compared, and a row that is overwritten must
leave what was loaded before as it was.

The file tier is shown for its bandwidth only. *Cold*: the files were synced and dropped from the page cache, which
says nothing about caches below the operating system. *Warm*: they were read just before. It needs Linux, and a
temporary directory that is no RAM disk (`--directory` names another).

Not measured: GPUs, reading ahead, several threads, rows that a program changes between the loads.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _measure import OtherLoad, Timing, alternate, median_ratio, print_table, print_verdict, ratio, spread, timed

import popxl
from popxl import ops
from popxl.remote_buffer import RemoteBuffer
from popxl.runtime.streaming.ram import RamTier
from popxl.runtime.streaming.tier import BufferSpec, Capabilities, ImmutableArray, Tier
from popxl.tensor import Tensor

LIMIT = 2.0
SMALL_BYTES = 4 << 10
ITEM_BYTES = 4
SOURCES = ("upload", "segment", "host stream")


# ---------------------------------------------------------------- facts


@dataclass(slots=True)
class Transfer:
    """One load or store that a tier saw."""

    kind: str
    entry: int
    address: int


class WatchedTier(Tier):
    """The RAM tier, with a list of what passed through it."""

    capabilities = Capabilities(zero_copy_load=True)

    def __init__(self) -> None:
        super().__init__()
        self._ram = RamTier()
        self.transfers: list[Transfer] = []

    def _note(self, kind: str, entry: int, value: ImmutableArray) -> None:
        self.transfers.append(Transfer(kind, entry, np.asarray(value).ctypes.data))

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        self._ram.open(buffers)

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        value = self._ram.load(spec.buffer_id, entry)
        self._note("load", entry, value)
        return value

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        self._ram.store(spec.buffer_id, entry, value)
        self._note("store", entry, self._ram.load(spec.buffer_id, entry))

    def _detach(self) -> None:
        self._ram.close()


@dataclass(frozen=True, slots=True)
class Passed:
    """What happened to a row that was stored in entry 0, loaded, and stored in entry 1.

    Attributes:
        stored: Address of what entry 0 held.
        loaded: Address of what the load returned.
        stored_again: Address of what entry 1 held then.
        loaded_values: What was loaded, read after entry 0 was overwritten: ones.
        row_values: What entry 0 held in the end: twos.
    """

    stored: int
    loaded: int
    stored_again: int
    loaded_values: np.ndarray
    row_values: np.ndarray


def pass_row(source: str, row_bytes: int) -> Passed:
    """Run a program that stores a row of ones, loads it, stores it in another row, and overwrites the first."""
    shape = (row_bytes // ITEM_BYTES,)
    tier = WatchedTier()
    ir = popxl.Ir()
    inputs: dict[popxl.HostToDeviceStream, np.ndarray] = {}
    with ir.main_graph:
        buffer = popxl.remote_buffer(shape, popxl.float32, entries=2)
        if source == "upload":
            popxl.remote_variable(np.ones(shape, np.float32), buffer, 0)
        elif source == "segment":
            ops.remote_store(buffer, 0, popxl.variable(np.zeros(shape, np.float32)) + 1.0)
        else:
            stream = popxl.h2d_stream(shape, popxl.float32)
            ops.remote_store(buffer, 0, ops.host_load(stream))
            inputs[stream] = np.ones(shape, np.float32)
        row = ops.remote_load(buffer, 0)
        ops.remote_store(buffer, 1, row)
        ops.remote_store(buffer, 0, row + 1.0)
        before, after = popxl.d2h_stream(shape, popxl.float32), popxl.d2h_stream(shape, popxl.float32)
        ops.host_store(before, row)
        ops.host_store(after, ops.remote_load(buffer, 0))
    with popxl.Session(ir, streaming_memory=popxl.StreamingMemory(tier=tier)) as session:
        session.weights_to_host_on_exit = False
        outputs = session.run(inputs)
        stored, loaded, stored_again, *_ = (t.address for t in tier.transfers)
    return Passed(stored, loaded, stored_again, outputs[before], outputs[after])


# ---------------------------------------------------------------- time


def unrolled(row_bytes: int, count: int, use: str) -> popxl.Ir:
    """Return a program with `count` loads of row 0 by static offsets, into a segment or into row 1."""
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((row_bytes // ITEM_BYTES,), popxl.float32, entries=2)
        total = popxl.variable(np.zeros(1, np.float32)) + 0.0
        for _ in range(count):
            row = ops.remote_load(buffer, 0)
            if use == "store":
                ops.remote_store(buffer, 1, row)
            else:
                total = total + ops.slice(row, start=[0], stop=[1], axis=[0])
        ops.host_store(popxl.d2h_stream((1,), popxl.float32), total)
    return ir


def looped(row_bytes: int, count: int) -> popxl.Ir:
    """Return a program that loads row 0 in each iteration of a loop, by an offset that the loop computes."""

    def iteration(i: Tensor, total: Tensor, buffer: RemoteBuffer) -> tuple[Tensor, Tensor]:
        row = ops.remote_load(buffer, i)
        return ops.increment_mod(i, 1, 1), total + ops.slice(row, start=[0], stop=[1], axis=[0])

    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((row_bytes // ITEM_BYTES,), popxl.float32, entries=2)
        i = popxl.constant(0, popxl.uint32)
        total = popxl.constant(np.zeros(1, np.float32))
        _, total = ops.repeat(ir.create_graph(iteration, i, total, buffer), count, i, total)
        ops.host_store(popxl.d2h_stream((1,), popxl.float32), total)
    return ir


@dataclass(slots=True)
class Attached:
    """A program in a session of its own, whose row 0 holds what a source made."""

    ir: popxl.Ir
    memory: popxl.StreamingMemory = field(default_factory=lambda: popxl.StreamingMemory("ram"))

    def open(self, sessions: ExitStack, row: ImmutableArray) -> popxl.Session:
        """Attach, and put `row` into row 0 of the one buffer."""
        session = popxl.Session(self.ir, streaming_memory=self.memory)
        session.weights_to_host_on_exit = False
        sessions.enter_context(session)
        (buffer_id,) = self.ir.remote_buffers
        self.memory.tier.store(buffer_id, 0, row)
        return session


def make_row(source: str, row_bytes: int) -> ImmutableArray:
    """Return a row of ones as the runtime makes it: the one that `pass_row`'s program leaves in row 1."""
    shape = (row_bytes // ITEM_BYTES,)
    memory = popxl.StreamingMemory("ram")
    ir = popxl.Ir()
    inputs: dict[popxl.HostToDeviceStream, np.ndarray] = {}
    with ir.main_graph:
        buffer = popxl.remote_buffer(shape, popxl.float32, entries=2)
        if source == "upload":
            popxl.remote_variable(np.ones(shape, np.float32), buffer, 0)
            ops.remote_store(buffer, 1, ops.remote_load(buffer, 0))
        elif source == "segment":
            ops.remote_store(buffer, 1, popxl.variable(np.zeros(shape, np.float32)) + 1.0)
        else:
            stream = popxl.h2d_stream(shape, popxl.float32)
            ops.remote_store(buffer, 1, ops.host_load(stream))
            inputs[stream] = np.ones(shape, np.float32)
    with popxl.Session(ir, streaming_memory=memory) as session:
        session.weights_to_host_on_exit = False
        session.run(inputs)
        return memory.tier.load(buffer.remote_buffer_id, 1)


def measure_ram(small_bytes: int, large_bytes: int, count: int, rounds: int) -> dict[tuple[str, str], Timing]:
    """Return the seconds of one load, by what is done with it and where the row came from, for both sizes."""
    timings: dict[tuple[str, str], Timing] = {}
    for source in SOURCES:
        with ExitStack() as sessions:
            sides: dict[str, Callable[[], object]] = {}
            for size in (small_bytes, large_bytes):
                row = make_row(source, size)
                programs = {
                    "into a segment, unrolled": unrolled(size, count, "segment"),
                    "into a segment, looped": looped(size, count),
                    "into another row": unrolled(size, count, "store"),
                }
                for use, ir in programs.items():
                    sides[f"{use}/{size}"] = Attached(ir).open(sessions, row).run
                sides[f"the tier alone/{size}"] = tier_loads(sessions, row, size, count)
            taken = alternate(dict(sorted(sides.items())), rounds)  # both sizes of a pair side by side
        for side, timing in taken.items():
            use, size = side.rsplit("/", 1)
            timings[f"{use}, from {'an' if source[0] in 'aeiou' else 'a'} {source}", size] = timing.per(count)
    return timings


def tier_loads(resources: ExitStack, row: ImmutableArray, row_bytes: int, count: int) -> Callable[[], object]:
    """Return a function that asks an open RAM tier for the row `count` times."""
    tier = RamTier()
    tier.open([BufferSpec(1, (row_bytes // ITEM_BYTES,), np.dtype(np.float32), entries=1)])
    resources.callback(tier.close)
    tier.store(1, 0, row)

    def run() -> None:
        for _ in range(count):
            tier.load(1, 0)

    return run


def evict(directory: Path) -> None:
    """Sync the files of a directory and drop them from the page cache."""
    for path in directory.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def measure_file(row_bytes: int, rounds: int, directory: Path) -> dict[str, list[float]]:
    """Return bytes a second of one load of the file tier, cold and warm, alone and in a program."""
    memory = popxl.StreamingMemory(f"file:{directory}")
    found: dict[str, list[float]] = {}
    with ExitStack() as sessions:
        session = Attached(unrolled(row_bytes, 1, "segment"), memory).open(
            sessions, np.ones(row_bytes // ITEM_BYTES, np.float32)
        )
        (buffer_id,) = session.ir.remote_buffers
        for _ in range(rounds):
            for name, load in (("the tier alone", lambda: memory.tier.load(buffer_id, 0)), ("a run", session.run)):
                evict(directory)
                for state in ("cold", "warm"):
                    seconds, _ = timed(load)
                    found.setdefault(f"{name}, {state}", []).append(row_bytes / seconds)
    return found


# ---------------------------------------------------------------- report


def in_words(size_bytes: int) -> str:
    """A number of bytes with its unit."""
    for unit, bytes_each in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= bytes_each:
            return f"{size_bytes / bytes_each:g} {unit}"
    return f"{size_bytes} B"


def report_facts(small_bytes: int, large_bytes: int) -> bool:
    """Print where the rows were and what was loaded; return whether all is as it must be."""
    rows: list[list[str]] = []
    right = True
    for size in (small_bytes, large_bytes):
        for source in SOURCES:
            passed = pass_row(source, size)
            same = passed.stored == passed.loaded == passed.stored_again
            kept = bool((passed.loaded_values == 1.0).all() and (passed.row_values == 2.0).all())
            right &= same and kept
            rows.append([source, in_words(size), *("yes" if fact else "NO" for fact in (same, kept))])
    print_table(["row made by", "size", "stored, loaded, stored again: one address", "kept what it loaded"], rows)
    return right


def report_times(timings: dict[tuple[str, str], Timing], small_bytes: int, large_bytes: int) -> None:
    """Print the time of a load for both sizes, and the verdict on the worst ratio."""
    rows: list[list[str]] = []
    worst = {"seconds": 0.0, "CPU seconds": 0.0}
    for use in dict.fromkeys(use for use, _ in timings):
        small, large = timings[use, str(small_bytes)], timings[use, str(large_bytes)]
        worst["seconds"] = max(worst["seconds"], median_ratio(large, small))
        worst["CPU seconds"] = max(worst["CPU seconds"], median_ratio(large.cpu, small.cpu))
        cells = (spread(t.wall_s, 1e6, 1) for t in (small, large))
        rows.append([use, *cells, ratio(large, small), ratio(large.cpu, small.cpu)])
    sizes = [f"{in_words(s)}: µs" for s in (small_bytes, large_bytes)]
    print_table(["load", *sizes, "ratio", "CPU ratio"], rows)
    for clock, value in worst.items():
        print_verdict(
            f"the worst ratio of {in_words(large_bytes)} to {in_words(small_bytes)}, in {clock},", value, LIMIT
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=256 << 20, help="size of the large row")
    parser.add_argument("--count", type=int, default=200, help="loads a run")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--directory", type=Path, help="where the file tier may write; a temporary one if not given")
    args = parser.parse_args(argv)
    right = report_facts(SMALL_BYTES, args.bytes)
    with OtherLoad() as load:
        timings = measure_ram(SMALL_BYTES, args.bytes, args.count, args.rounds)
    print(f"RAM tier, {args.count} loads a run, {args.rounds} rounds; time of one load and of what is done with it.")
    report_times(timings, SMALL_BYTES, args.bytes)
    print(load.text())
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch, OtherLoad() as load:
        speeds = measure_file(args.bytes, min(args.rounds, 5), Path(scratch) / "rows")
    print(f"\nFile tier, one row of {in_words(args.bytes)}; no target.")
    print_table(["load", "GB/s"], [[name, spread(values, 1e-9)] for name, values in speeds.items()])
    print(load.text())
    print("Not measured: GPUs, reading ahead, several threads, caches below the operating system.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
