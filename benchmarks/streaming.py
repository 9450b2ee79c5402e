"""A model whose weights, and whose Adam state, lie in files: how close is a step to the slower of compute and transfer?

Targets: max(C, L) / time of a forward pass is at least 0.95, and max(C, L + S) / time of a training step is at least
0.95.

Sides, timed in turn in one process:

* ``files``: the program over ``file:DIR``, nothing of it in RAM;
* ``RAM``: the same program with its rows in RAM, which is C, the time of compute;
* ``loads`` and ``stores``: the tier alone moves the rows of one run, as many as the pool holds at a time: L and S.

Results of ``files`` and ``RAM`` are compared bit for bit. Files are read past the page cache, so every pass is cold for
the guest's kernel. Not measured: other file systems, GPUs, memory.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from _measure import OtherLoad, Timing, alternate, median_ratio, print_table, print_verdict, ratio, spread
from streamed_stack import Program, Sizes, forward, training

import popxl
from popxl.runtime.completion import Completion
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.blocks import BlockPool
from popxl.runtime.streaming.transfer import Transfer


def weights(sizes: Sizes, layer: int) -> np.ndarray:
    """The weights of a layer, one after the other."""
    rng = np.random.default_rng(layer)

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 2:
            return rng.standard_normal(shape, np.float32) * np.float32(0.02)
        return (np.ones if name in ("ln1w", "ln2w") else np.zeros)(shape, np.float32)

    return np.concatenate([one(name, shape).ravel() for name, shape in sizes.shapes.items()])


class RawTier:
    """A file tier with rows of one size, moved as fast as it can with a few in memory."""

    def __init__(self, directory: Path, row_bytes: int, rows: int, in_flight: int) -> None:
        self._tier = FileTier(directory)
        self._spec = BufferSpec(1, (row_bytes,), np.dtype(np.uint8), rows, ((0, "rows"),))
        self._tier.open([self._spec])
        pool = BlockPool(in_flight * self._spec.padded_bytes, Completion())
        blocks = [pool.take(self._spec.padded_bytes) for _ in range(in_flight)]
        self._memory = [block.raw for block in blocks if block is not None]
        for raw in self._memory:
            raw[:] = 1
        self.stores()

    def loads(self) -> None:
        """Read every row once."""
        self._move(self._tier.start_reads, self._spec.padded_bytes)

    def stores(self) -> None:
        """Write every row once."""
        self._move(self._tier.start_writes, self._spec.entry_bytes)

    def _move(self, start: Callable[[list[Transfer]], None], nbytes: int) -> None:
        under_way: deque[Transfer] = deque()
        for entry in range(self._spec.entries):
            if len(under_way) == len(self._memory):
                under_way.popleft().wait()
            transfer = Transfer(self._spec, entry, self._memory[entry % len(self._memory)][:nbytes])
            start([transfer])
            under_way.append(transfer)
        for transfer in under_way:
            transfer.wait()

    def close(self) -> None:
        """Close the files."""
        self._tier.close()


def run_of(program: Program, memory: str, x: np.ndarray) -> tuple[popxl.Session, Callable[[], np.ndarray]]:
    """Enter a session; return it and what runs the program once, to the very end."""
    session = popxl.Session(program.ir, weights_to_host_on_exit=False, streaming_memory=memory)
    session.__enter__()

    def run() -> np.ndarray:
        result = session.run({program.x_in: x})[program.out]
        session.wait()
        return np.asarray(result)

    return session, run


def compare(name: str, make: Callable[..., Program], sizes: Sizes, rounds: int, scratch: Path) -> None:
    """Time one program and print its table and verdict."""
    x = np.random.default_rng(99).standard_normal(sizes.input_shape, np.float32)
    source = partial(weights, sizes)
    files, run_files = run_of(make(sizes, source), f"file:{scratch / 'rows'}", x)
    ram, run_ram = run_of(make(sizes, source), "ram", x)
    results: dict[str, list[bytes]] = {"files": [], "RAM": []}
    sides: dict[str, Callable[[], object]] = {
        "files": lambda: results["files"].append(run_files().tobytes()),
        "RAM": lambda: results["RAM"].append(run_ram().tobytes()),
    }
    figures = files.figures
    row_bytes = sizes.layer_bytes
    raw = RawTier(scratch / "raw", row_bytes, round(figures.load_bytes / row_bytes), 4)
    sides["loads"] = raw.loads
    stored = None
    if figures.store_bytes:
        stored = RawTier(scratch / "raw-stores", row_bytes, round(figures.store_bytes / row_bytes), 4)
        sides["stores"] = stored.stores
    timings = alternate(sides, rounds)
    transfer = timings["loads"] if stored is None else timings["loads"].plus(timings["stores"])
    compute = timings["RAM"]
    bound = Timing(
        *(tuple(map(max, a, b)) for a, b in ((compute.wall_s, transfer.wall_s), (compute.cpu_s, transfer.cpu_s)))
    )
    rows = [[side, spread(t.wall_s), ratio(timings["files"], t), spread(t.cpu_s)] for side, t in timings.items()]
    print(f"\n{name}: {sizes.layers} layers of {row_bytes / 1e6:.1f} MB, batch {sizes.batch} x {sizes.tokens}")
    print_table(("side", "s", "files / it", "CPU s"), rows)
    for what, moved, timing in (("loads", figures.load_bytes, "loads"), ("stores", figures.store_bytes, "stores")):
        if timing in timings:
            print(
                f"{what}: {moved / 1e9:.2f} GB, {spread([moved / s / 1e9 for s in timings[timing].wall_s])} GB/s alone"
            )
    overlap = 1 / median_ratio(timings["files"], bound)
    print(f"max(C, L + S) / time: {ratio(bound, timings['files'])}, of which C / (L + S) is {ratio(compute, transfer)}")
    print_verdict("the time over max(C, L + S)", 1 / overlap, 1 / 0.95)
    for session in (files, ram):
        session._detach()  # what is left behind is deleted  # pyright: ignore[reportPrivateUsage]
    for tier in (raw, stored):
        if tier is not None:
            tier.close()
    shutil.rmtree(scratch)
    scratch.mkdir()
    if results["files"] != results["RAM"]:
        sys.exit("files and RAM gave different results")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="forward,training")
    parser.add_argument("--layers", type=int, default=0, help="instead of 32 and 16")
    parser.add_argument("--batch", type=int, default=0, help="instead of 1, 8 and 8")
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args(arguments)
    width = options.width
    shape = {"width": width, "heads": max(1, width // 64), "hidden": 4 * width}
    with tempfile.TemporaryDirectory(dir=Path.cwd() / ".cache" if (Path.cwd() / ".cache").is_dir() else None) as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        with OtherLoad() as load:
            if "forward" in options.only:
                for batch in [options.batch] if options.batch else [1, 8]:
                    sizes = Sizes(layers=options.layers or 32, batch=batch, **shape)
                    compare("Forward pass", forward, sizes, options.rounds, scratch)
            if "training" in options.only:
                sizes = Sizes(layers=options.layers or 16, batch=options.batch or 8, **shape)
                compare("Training step", training, sizes, options.rounds, scratch)
    print(load.text())


if __name__ == "__main__":
    main()
