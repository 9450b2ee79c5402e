"""The file tier alone: rows in and out, against raw calls past the page cache, and a commit.

Targets: for rows of 1, 16 and 64 MiB at least 0.97 of the best raw loop's bandwidth, for 64 KiB at least 0.85; with
checksums at least 0.97 of that without; a commit of 4 GiB whose stores are written takes at most 20 ms.

Sides, timed in turn in one process, each moving the same bytes with at most 64 MiB or two rows under way:

* ``tier``: `FileTier.start_reads` and `start_writes`, in calls of up to 4 MiB, as the engine makes them;
* ``tier, no checksums``: the same without;
* ``tier, XLA's memory``: stores from memory that starts 64 bytes into a page, as large arrays of XLA on CPU do, with
  checksums: it is copied on its way, where direct I/O wants more than that;
* ``raw N``: N threads with one `os.preadv` or `os.pwritev` of 4 MiB at most at a time, past the page cache;
* ``raw N, digests``: the same, and each thread takes the digest of what it moved. It is what checksums must cost at
  least on this machine: the bytes have to go through a core, which the disk's transfers and the other threads share.

Memory is page-aligned on all sides but that one. Not measured: other file systems, full disks.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from _measure import OtherLoad, Timing, alternate, print_table, print_verdict, ratio, spread, timed

from popxl.runtime.completion import Completion
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.streaming.transfer import Transfer

PIECE_BYTES = 4 << 20
WINDOW_BYTES = 64 << 20


class Rows:
    """Memory for rows under way, used round and round; it starts `shift` bytes into a page."""

    def __init__(self, row_bytes: int, shift: int = 0) -> None:
        self.memory = slice(shift, shift + row_bytes)
        count = max(2, WINDOW_BYTES // row_bytes)
        pool = BlockPool(2 * count * row_bytes, Completion())
        self.blocks = [pool.take(row_bytes + shift) for _ in range(count)]
        for block in self.blocks:
            assert block is not None
            block.raw[:] = 7

    def raw(self, entry: int) -> np.ndarray:
        """The memory of an entry."""
        block = self.blocks[entry % len(self.blocks)]
        assert block is not None
        return block.raw[self.memory]


def tier_sides(tier: FileTier, spec: BufferSpec, rows: Rows) -> tuple[Callable[[], None], Callable[[], None]]:
    """Loads and stores of every row."""
    batch = max(1, PIECE_BYTES // spec.entry_bytes)

    def move(start: Callable[[list[Transfer]], None]) -> None:
        under_way: deque[Transfer] = deque()
        for first in range(0, spec.entries, batch):
            entries = range(first, min(first + batch, spec.entries))
            while len(under_way) + len(entries) > len(rows.blocks):
                under_way.popleft().wait()
            transfers = [Transfer(spec, entry, rows.raw(entry)) for entry in entries]
            start(transfers)
            under_way.extend(transfers)
        for transfer in under_way:
            transfer.wait()

    return partial(move, tier.start_reads), partial(move, tier.start_writes)


def raw_sides(
    path: Path, row_bytes: int, entries: int, rows: Rows, pool: ThreadPoolExecutor, *, is_hashed: bool = False
):
    """The same by calls of the operating system."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    os.ftruncate(fd, row_bytes * entries)
    size = min(row_bytes, PIECE_BYTES)
    depth = len(rows.blocks) * row_bytes // size

    def piece(call: Callable[..., int], entry: int, start: int) -> None:
        view = memoryview(rows.raw(entry))[start : start + size]
        assert call(fd, [view], entry * row_bytes + start) == size
        if is_hashed:
            xxhash.xxh3_64_intdigest(view)

    def move(call: Callable[..., int]) -> None:
        under_way: deque = deque()
        for entry in range(entries):
            for start in range(0, row_bytes, size):
                if len(under_way) == depth:
                    under_way.popleft().result()
                under_way.append(pool.submit(piece, call, entry, start))
        for future in under_way:
            future.result()

    return partial(move, os.preadv), partial(move, os.pwritev)


def compare(row_bytes: int, total_bytes: int, rounds: int, scratch: Path, wanted: float) -> None:
    """Time rows of one size and print table and verdicts."""
    entries = total_bytes // row_bytes
    spec = BufferSpec(1, (row_bytes,), np.dtype(np.uint8), entries, ((0, "rows"),))
    plain = BufferSpec(1, (row_bytes,), np.dtype(np.uint8), entries)
    rows = Rows(row_bytes)
    loads: dict[str, Callable[[], object]] = {}
    stores: dict[str, Callable[[], object]] = {}
    tiers = {"tier": (FileTier(scratch / f"a{row_bytes}"), spec)}
    tiers["tier, no checksums"] = (FileTier(scratch / f"b{row_bytes}", checksums=False), plain)
    for name, (tier, buffer) in tiers.items():
        tier.open([buffer])
        loads[name], stores[name] = tier_sides(tier, buffer, rows)
    _, stores["tier, XLA's memory"] = tier_sides(*tiers["tier"], Rows(row_bytes, shift=64))
    pools = {f"raw {n}": ThreadPoolExecutor(n) for n in (1, 2, 4)}
    for name, pool in pools.items():
        for raw_name, is_hashed in ((name, False), (f"{name}, digests", True)):
            path = scratch / f"{raw_name}-{row_bytes}"
            loads[raw_name], stores[raw_name] = raw_sides(path, row_bytes, entries, rows, pool, is_hashed=is_hashed)
    written, read = alternate(stores, rounds, warm_up=2), alternate(loads, rounds)
    table: list[list[str]] = []
    for what, timings in (("load", read), ("store", written)):
        best = min(pools, key=lambda name: float(np.median(timings[name].wall_s)))
        for name, timing in timings.items():
            gbs = spread([total_bytes / s / 1e9 for s in timing.wall_s])
            table.append([what, name, gbs, ratio(timings[best], timing), spread(timing.cpu_s)])
        share = _share(timings[best], timings["tier"])
        print_verdict(f"{row_bytes >> 10} KiB {what}: {best}'s bandwidth over ours", 1 / share, 1 / wanted)
        share = _share(timings["tier, no checksums"], timings["tier"])
        print_verdict(f"{row_bytes >> 10} KiB {what}: bandwidth without checksums over ours", 1 / share, 1 / 0.97)
        hashed = min((f"{name}, digests" for name in pools), key=lambda name: float(np.median(timings[name].wall_s)))
        print(f"{row_bytes >> 10} KiB {what}: ours over {hashed}: {ratio(timings[hashed], timings['tier'])}")
    print_table((f"rows of {row_bytes >> 10} KiB", "side", "GB/s", "of the best raw", "CPU s"), table)
    for tier, _ in tiers.values():
        tier.close()
    for pool in pools.values():
        pool.shutdown()


def _share(other: Timing, ours: Timing) -> float:
    return float(np.median([a / b for a, b in zip(other.wall_s, ours.wall_s, strict=True)]))


def commits(total_bytes: int, rounds: int, scratch: Path) -> None:
    """Time a commit after all rows were stored."""
    row_bytes = 16 << 20
    spec = BufferSpec(1, (row_bytes,), np.dtype(np.uint8), total_bytes // row_bytes, ((0, "rows"),))
    tier = FileTier(scratch / "commits")
    tier.open([spec])
    _, store = tier_sides(tier, spec, Rows(row_bytes))
    taken: list[float] = []
    for _ in range(rounds):
        store()
        taken.append(timed(tier.commit)[0])
    record_bytes = (scratch / "commits" / "generation").stat().st_size
    print(f"\ncommit of {total_bytes >> 20} MiB: {spread(taken, 1e3, 1)} ms; its record has {record_bytes} bytes")
    print_verdict("a commit, in ms,", float(np.median(taken)) * 1e3, 20)
    tier.close()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=512, help="moved in a round")
    parser.add_argument("--commit-mib", type=int, default=4096)
    options = parser.parse_args(arguments)
    total_bytes = options.mib << 20
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, OtherLoad() as load:
        for row_bytes, wanted in ((64 << 10, 0.85), (1 << 20, 0.97), (16 << 20, 0.97), (64 << 20, 0.97)):
            if row_bytes <= total_bytes:
                compare(row_bytes, total_bytes, options.rounds, Path(folder), wanted)
        commits(options.commit_mib << 20, min(5, options.rounds), Path(folder))
    print(load.text())


if __name__ == "__main__":
    main()
