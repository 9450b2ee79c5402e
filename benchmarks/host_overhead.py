"""What the host spends on a remote load and on a remote store in a loop that it drives. Target: at most 30 µs each.

The body of a `repeat` loads rows of 1 KiB at an offset that the loop counts, computes with them in one segment, and
stores the segment's results at that offset. Three such loops, timed in turn in one process:

* ``base``: one load and one store an iteration;
* ``loads``: eight loads more, each an argument more of the segment;
* ``stores``: eight stores more, each a fresh result more of the segment.

A load costs (``loads`` - ``base``) / 8 an iteration, a store (``stores`` - ``base``) / 8, round by round. A loop with
no transfer at all is no base: it is compiled whole and the host does not drive it. Two times are taken of a round:
until `run` returns, which is what the program waits for, and until its stores are written. In the file tier all rows
are in the host's cache, so loads read no file; stores do write theirs, behind the program, and the threads that write
share the interpreter and the cores with it.

Not measured: the first load of a row, loops whose offsets the device computes, GPUs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _measure import OtherLoad, Timing, alternate, print_table, print_verdict, spread, timed

import popxl
from popxl import ops
from popxl.tensor import Tensor

LIMIT_US = 30.0
ELEMENTS = 256
MORE = 8
#: Loads and stores of an iteration.
LOOPS = {"base": (1, 1), "loads": (1 + MORE, 1), "stores": (1, 1 + MORE)}


@dataclass(frozen=True, slots=True)
class Loop:
    """A program that goes round `count` times, and what it returns: the sum of the rows that it loaded."""

    ir: popxl.Ir
    out: popxl.DeviceToHostStream
    count: int
    loads: int
    stores: int


def build(count: int, loads: int, stores: int) -> Loop:
    """Return a loop with so many loads and stores an iteration.

    Each has a remote buffer of its own, of ones where it is loaded from. A variable lives in each, so that the files
    are those of a model: with two slots a row, and checksums.
    """
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffers = [popxl.remote_buffer((ELEMENTS,), popxl.float32, entries=count) for _ in range(loads + stores)]
        for buffer in buffers:
            popxl.remote_variable(np.ones(ELEMENTS, np.float32), buffer, 0)
        sources, sinks = buffers[:loads], buffers[loads:]

        def iteration(i: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            for row in [ops.remote_load(buffer, i) for buffer in sources]:
                total = total + row
            results = [total + float(k) for k in range(stores)]
            for buffer, result in zip(sinks, results, strict=True):
                ops.remote_store(buffer, i, result)
            return i + 1, total

        i = popxl.constant(0, popxl.uint32)
        total = popxl.constant(np.zeros(ELEMENTS, np.float32))
        _, total = ops.repeat(ir.create_graph(iteration, i, total), count, i, total)
        out = popxl.d2h_stream(total.shape, total.dtype)
        ops.host_store(out, total)
    return Loop(ir, out, count, loads, stores)


def opened(sessions: ExitStack, loop: Loop, spec: str) -> popxl.Session:
    """Enter a session whose rows that are loaded hold ones."""
    row_bytes = 4096  # rows take whole pages
    rows = loop.count * (loop.loads + loop.stores)
    # The usual pool, copies of stored rows, and a cache for every row of the program besides.
    options = {} if spec == "ram" else {"host_memory": (80 << 20) + rows * row_bytes}
    memory = popxl.StreamingMemory(spec, **options)
    session = popxl.Session(loop.ir, weights_to_host_on_exit=False, streaming_memory=memory)
    sessions.enter_context(session)
    sources = list(loop.ir.remote_buffers)[: loop.loads]
    for buffer_id in sources:
        for entry in range(loop.count):
            memory.tier.store(buffer_id, entry, np.ones(ELEMENTS, np.float32))
    return session


def side(session: popxl.Session, runs: list[tuple[float, float]]) -> Callable[[], object]:
    """Return what runs a session once, to the very end; it appends the seconds until `run` returned to `runs`."""

    def run() -> None:
        runs.append(timed(session.run))
        session.wait()

    return run


def per_transfer(timings: dict[str, Timing], count: int) -> dict[str, Timing]:
    """Return the seconds of one load and of one store, and of an iteration of the base."""
    one = {f"one {what[:-1]}": timings[what].minus(timings["base"]).per(MORE * count) for what in ("loads", "stores")}
    return {**one, "an iteration of the base": timings["base"].per(count)}


def measure(spec: str, count: int, rounds: int) -> tuple[dict[str, dict[str, Timing]], bool]:
    """Return seconds by where a round ends and what was done, and whether every loop saw the right rows."""
    with ExitStack() as sessions:
        loops = {name: build(count, *numbers) for name, numbers in LOOPS.items()}
        running = {
            name: opened(sessions, loop, spec if spec == "ram" else f"{spec}-{name}") for name, loop in loops.items()
        }
        right = all(
            np.array_equal(running[name].run()[loop.out], np.full(ELEMENTS, loop.count * loop.loads, np.float32))
            for name, loop in loops.items()
        )
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
        written = alternate({name: side(session, runs[name]) for name, session in running.items()}, rounds, warm_up=2)
    returned = {name: Timing(*map(tuple, zip(*taken[-rounds:], strict=True))) for name, taken in runs.items()}
    found = {"it returns": per_transfer(returned, count), "all is written": per_transfer(written, count)}
    if spec == "ram":
        del found["all is written"]  # the same
    return found, right


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="iterations a run")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="where the file tier may write")
    args = parser.parse_args(argv)
    tiers = {"RAM": "ram"}
    verdicts: list[tuple[str, float]] = []
    rows: list[list[str]] = []
    right = True
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch, OtherLoad() as load:
        tiers["files, all in the cache"] = f"file:{Path(scratch) / 'rows'}"
        for tier, spec in tiers.items():
            found, equal = measure(spec, args.count, args.rounds)
            right &= equal
            for end, timings in found.items():
                for what, timing in timings.items():
                    rows.append([tier, what, end, spread(timing.wall_s, 1e6, 1), spread(timing.cpu_s, 1e6, 1)])
                    if what.startswith("one "):
                        verdicts.append(
                            (f"{tier}: {what}, until {end}, in µs,", statistics.median(timing.wall_s) * 1e6)
                        )
    print(f"{args.count} iterations a run, rows of {ELEMENTS * 4} bytes, {args.rounds} rounds.")
    print_table(["tier", "what", "until", "µs", "CPU µs"], rows)
    for what, value in verdicts:
        print_verdict(what, value, LIMIT_US)
    print(load.text())
    print("CPU µs count all threads. Not measured: first loads, offsets that the device computes, GPUs.")
    if not right:
        print("A loop did not load the rows that it should have.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
