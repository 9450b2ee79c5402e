"""The RAM tier: a store of a fresh result against a copy of its bytes, and a load, which copies nothing.

Targets: a store moves at least 0.95 of the bytes a second that a warm ``memcpy`` of the same size does; a load returns
the memory that was stored; a load of 256 MiB takes at most twice the time of 4 KiB.

Two programs, timed in turn in one process, go round a loop that adds one to a tensor, and store a row of 4 KiB, so that
the host drives both; one also stores the tensor, a fresh result each time, in the next row of a remote buffer. Their
difference is the store, with all that comes of it: a row keeps its memory, so that the next result needs other. The
copy, ``memcpy``, goes to memory that was written before. *By the tier alone* is `RamTier.store` of results that are
there already. A difference below zero says that the store is too cheap to be seen.

Not measured: GPUs, several threads, the host's copies of arrays that cannot be kept as they are.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import jax
import numpy as np
import remote_load
from _measure import OtherLoad, Timing, alternate, median_ratio, print_table, print_verdict, spread
from remote_load import in_words

import popxl
from popxl import ops
from popxl.runtime.streaming import BufferSpec, RamTier
from popxl.tensor import Tensor

WANTED = 0.95
ENTRIES = 2
SMALL_ELEMENTS = 1024


def looped(row_bytes: int, count: int, *, stores: bool) -> tuple[popxl.Ir, popxl.RemoteBuffer]:
    """Return a loop that makes a fresh result `count` times, and stores each or none; and the buffer of the results."""
    shape = (row_bytes // 4,)
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        rows = popxl.remote_buffer(shape, popxl.float32, entries=ENTRIES)
        small = popxl.remote_buffer((SMALL_ELEMENTS,), popxl.float32, entries=ENTRIES)

        def iteration(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            x = x + 1.0
            ops.remote_store(small, i, ops.slice(x, start=[0], stop=[SMALL_ELEMENTS], axis=[0]))
            if stores:
                ops.remote_store(rows, i, x)
            return ops.increment_mod(i, 1, ENTRIES), x

        i = popxl.constant(0, popxl.uint32)
        x = popxl.variable(np.zeros(shape, np.float32)) + 0.0
        _, x = ops.repeat(ir.create_graph(iteration, i, x), count, i, x)
        last = ops.slice(x, start=[0], stop=[1], axis=[0])
        ops.host_store(popxl.d2h_stream(last.shape, last.dtype), last)
    return ir, rows


def copies(row_bytes: int, count: int) -> Callable[[], object]:
    """Return what copies so many bytes `count` times, between memory that has been written."""
    source, target = np.ones(row_bytes, np.uint8), np.zeros(row_bytes, np.uint8)

    def run() -> None:
        for _ in range(count):
            ctypes.memmove(target.ctypes.data, source.ctypes.data, row_bytes)

    return run


def tier_stores(resources: ExitStack, row_bytes: int, count: int) -> Callable[[], object]:
    """Return what stores results of computations `count` times in an open tier."""
    tier = RamTier()
    tier.open([BufferSpec(1, (row_bytes // 4,), np.dtype(np.float32), ENTRIES)])
    resources.callback(tier.close)
    results = [jax.block_until_ready(jax.numpy.full(row_bytes // 4, k, np.float32)) for k in range(ENTRIES)]

    def run() -> None:
        for i in range(count):
            tier.store(1, i % ENTRIES, results[i % ENTRIES])

    return run


def measure(row_bytes: int, count: int, rounds: int) -> tuple[dict[str, Timing], bool]:
    """Return the seconds of one of each, and whether the rows hold the results that they should."""
    with ExitStack() as resources:
        sides: dict[str, Callable[[], object]] = {}
        memory = popxl.StreamingMemory("ram")
        ir, rows = looped(row_bytes, count, stores=True)
        for name, program, tier in (("stored", ir, memory), ("not", looped(row_bytes, count, stores=False)[0], "ram")):
            session = popxl.Session(program, weights_to_host_on_exit=False, streaming_memory=tier)
            sides[name] = resources.enter_context(session).run
        sides |= {
            "memcpy": copies(row_bytes, count),
            "a store by the tier alone": tier_stores(resources, row_bytes, count),
        }
        timings = {name: timing.per(count) for name, timing in alternate(sides, rounds, warm_up=2).items()}
        row = np.asarray(memory.tier.load(rows.remote_buffer_id, (count - 1) % ENTRIES))
        right = bool((row == count).all())
    timings["a store in a program"] = timings["stored"].minus(timings["not"])
    return timings, right


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=256 << 20, help="of the largest row of three")
    parser.add_argument("--count", type=int, default=16, help="stores a run")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args(argv)
    right = remote_load.report_facts(remote_load.SMALL_BYTES, args.bytes)
    table: list[list[str]] = []
    verdicts: list[tuple[str, float]] = []
    with OtherLoad() as load:
        for row_bytes in (args.bytes // 256, args.bytes // 16, args.bytes):
            timings, equal = measure(row_bytes, args.count, args.rounds)
            right &= equal
            copy = timings["memcpy"]
            for name, timing in timings.items():
                shares = [s / c for s, c in zip(timing.wall_s, copy.wall_s, strict=True)]
                table.append([in_words(row_bytes), name, spread(timing.wall_s, 1e3, 3), spread(shares)])
            for name in ("a store in a program", "a store by the tier alone"):
                verdicts.append((f"{in_words(row_bytes)}: {name} over memcpy", median_ratio(timings[name], copy)))
        loads = remote_load.measure_ram(remote_load.SMALL_BYTES, args.bytes, 200, args.rounds)
    print(f"{args.count} results a run, {args.rounds} rounds; `stored` and `not` are whole iterations.")
    print_table(["row", "what", "ms", "of memcpy"], table)
    for what, value in verdicts:
        print_verdict(what, value, 1 / WANTED)
    remote_load.report_times(loads, remote_load.SMALL_BYTES, args.bytes)
    print(load.text())
    print("Not measured: GPUs, several threads, arrays that cannot be kept as they are.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
