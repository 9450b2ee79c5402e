"""A model whose weights, and whose Adam state, lie in files: how close is a step to the slower of compute and transfer?

Targets: max(C, L) / time of a forward pass is at least 0.95, and max(C, L + S) / time of a training step is at least
0.95. Each is also measured at a batch at which compute and transfer take about equally long, min / max at least 0.5,
which is where there is most to overlap: the batch is chosen by measuring both first.

Sides, timed in turn in one process:

* ``files``: the program over ``file:DIR``, nothing of it in RAM;
* ``RAM``: the same program with its rows in RAM, which is C, the time of compute;
* ``loads`` and ``stores``: the tier alone moves the rows of one run, as many as the pool holds at a time: L and S;
* ``side by side``: ``RAM`` in one thread while another does ``loads`` and then ``stores``, from page-aligned memory,
  and neither waits for the other. No order of a program is kept, nothing is handed over, so no engine on this machine
  can be faster than this with the same computations and the same tier: what it loses against max(C, L + S) is what
  compute and transfer take from each other, the cores and the memory's bandwidth.

Results of ``files`` and ``RAM`` are compared bit for bit. Files are read past the page cache, so every pass is cold for
the guest's kernel. The bound max(C, L, S) would need a disk that reads and writes at full speed at once; it is shown
without a target. Not measured: other file systems, GPUs, memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from _measure import OtherLoad, Timing, alternate, median_ratio, print_table, print_verdict, ratio, spread
from _raw_tier import RawTier
from streamed_stack import Program, Sizes, forward, training

import popxl


def weights(sizes: Sizes, layer: int) -> np.ndarray:
    """The weights of a layer, one after the other."""
    rng = np.random.default_rng(layer)

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 2:
            return rng.standard_normal(shape, np.float32) * np.float32(0.02)
        return (np.ones if name in ("ln1w", "ln2w") else np.zeros)(shape, np.float32)

    return np.concatenate([one(name, shape).ravel() for name, shape in sizes.shapes.items()])


def run_of(program: Program, memory: str, x: np.ndarray) -> tuple[popxl.Session, Callable[[], np.ndarray]]:
    """Enter a session; return it and what runs the program once, to the very end."""
    session = popxl.Session(program.ir, weights_to_host_on_exit=False, streaming_memory=memory)
    session.__enter__()

    def run() -> np.ndarray:
        result = session.run({program.x_in: x})[program.out]
        session.wait()
        return np.asarray(result)

    return session, run


def balanced_batch(make: Callable[..., Program], sizes: Sizes, scratch: Path) -> int:
    """The batch at which compute takes about as long as transfer, from the compute of two batches; at least 1.

    Compute is taken to grow evenly with the batch; what is left of a training step without samples is Adam's.
    """
    compute: dict[int, float] = {}
    for batch in (1, 4):
        tried = dataclasses.replace(sizes, batch=batch)
        session, run = run_of(make(tried, partial(weights, tried)), "ram", np.ones(tried.input_shape, np.float32))
        compute[batch] = min(alternate({"C": run}, 3)["C"].wall_s)
        moved = session.figures.load_bytes, session.figures.store_bytes
        session._detach()  # pyright: ignore[reportPrivateUsage]
        del session, run
    loads, stores = (round(n / sizes.layer_bytes) for n in moved)
    raw = RawTier(scratch / "try", sizes.layer_bytes, loads, 4)
    seconds = alternate({"L": raw.loads, "S": raw.stores}, 3)
    transfer = min(seconds["L"].wall_s) + min(seconds["S"].wall_s) * stores / loads
    raw.close()
    shutil.rmtree(scratch / "try")
    slope = max((compute[4] - compute[1]) / 3, 1e-9)
    return max(1, round(1 + (transfer - compute[1]) / slope))


def compare(name: str, make: Callable[..., Program], sizes: Sizes, rounds: int, scratch: Path) -> None:
    """Time one program and print its table and verdict."""
    x = np.random.default_rng(99).standard_normal(sizes.input_shape, np.float32)
    source = partial(weights, sizes)
    files, run_files = run_of(make(sizes, source), f"file:{scratch / 'rows'}", x)
    ram, run_ram = run_of(make(sizes, source), "ram", x)
    # A session of its own, since each run of a training step goes on from the one before.
    beside, run_beside = run_of(make(sizes, source), "ram", x)
    results: dict[str, list[bytes]] = {"files": [], "RAM": [], "side by side": []}
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
    with ThreadPoolExecutor(1) as other:
        moves = [raw.loads] if stored is None else [raw.loads, stored.stores]
        sides["side by side"] = lambda: results["side by side"].append(side_by_side(other, run_beside, moves).tobytes())
        timings = alternate(sides, rounds)
    print(f"\n{name}: {sizes.layers} layers of {row_bytes / 1e6:.1f} MB, batch {sizes.batch} x {sizes.tokens}")
    report(timings, {"loads": figures.load_bytes, "stores": figures.store_bytes})
    for session in (files, ram, beside):
        session._detach()  # what is left behind is deleted  # pyright: ignore[reportPrivateUsage]
    for tier in (raw, stored):
        if tier is not None:
            tier.close()
    shutil.rmtree(scratch)
    scratch.mkdir()
    if not results["files"] == results["RAM"] == results["side by side"]:
        sys.exit("files and RAM gave different results")


def side_by_side(
    other: ThreadPoolExecutor, run: Callable[[], np.ndarray], moves: Sequence[Callable[[], None]]
) -> np.ndarray:
    """Compute here and move rows in the other thread, until both are done."""
    moved = other.submit(lambda: [move() for move in moves])
    result = run()
    moved.result()
    return result


def report(timings: Mapping[str, Timing], moved_bytes: Mapping[str, int]) -> None:
    """Print the table, the bounds, and the verdict."""
    transfer = timings["loads"] if "stores" not in timings else timings["loads"].plus(timings["stores"])
    compute = timings["RAM"]
    bound = Timing(
        *(tuple(map(max, a, b)) for a, b in ((compute.wall_s, transfer.wall_s), (compute.cpu_s, transfer.cpu_s)))
    )
    rows = [[side, spread(t.wall_s), ratio(timings["files"], t), spread(t.cpu_s)] for side, t in timings.items()]
    print_table(("side", "s", "files / it", "CPU s"), rows)
    print(f"C, compute: {spread(compute.wall_s)} s")
    for what, moved, side in (("L", moved_bytes["loads"], "loads"), ("S", moved_bytes["stores"], "stores")):
        if side in timings:
            speed = spread([moved / s / 1e9 for s in timings[side].wall_s])
            print(f"{what}, {side}: {spread(timings[side].wall_s)} s for {moved / 1e9:.2f} GB, {speed} GB/s")
    balance = [min(c, t) / max(c, t) for c, t in zip(compute.wall_s, transfer.wall_s, strict=True)]
    print(f"min / max of C and L + S: {spread(balance)}; C / (L + S): {ratio(compute, transfer)}")
    three = (timings[side] for side in ("RAM", "loads", "stores") if side in timings)
    ideal = Timing(*(tuple(map(max, *seconds)) for seconds in zip(*((t.wall_s, t.cpu_s) for t in three), strict=True)))
    print(f"bound max(C, L, S): {spread(ideal.wall_s)} s; it / time: {ratio(ideal, timings['files'])}")
    print(f"bound max(C, L + S): {spread(bound.wall_s)} s; it / time: {ratio(bound, timings['files'])}")
    limit = timings["side by side"]
    print(f"max(C, L + S) / side by side: {ratio(bound, limit)}; side by side / time: {ratio(limit, timings['files'])}")
    # What overlap could save at most is the smaller of the two.
    rounds_of = zip(compute.wall_s, transfer.wall_s, timings["files"].wall_s, strict=True)
    gained = [(c + t - f) / min(c, t) for c, t, f in rounds_of]
    print(f"of what overlap could save, it saved {spread(gained)}")
    # The cores share: work of all sides that one process cannot do faster on this machine's cores.
    busy = [(a + b) / (os.cpu_count() or 1) for a, b in zip(compute.cpu_s, transfer.cpu_s, strict=True)]
    print(f"processor seconds of both over the cores: {spread(busy)} s")
    print_verdict("the time over max(C, L + S)", median_ratio(timings["files"], bound), 1 / 0.95)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="forward,training")
    parser.add_argument("--balanced", action="store_true", help="only the batch at which both take equally long")
    parser.add_argument("--layers", type=int, default=0, help="instead of 32 and 16")
    parser.add_argument("--batch", type=int, default=0, help="instead of 1, 8, and the one measured")
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args(arguments)
    width = options.width
    shape = {"width": width, "heads": max(1, width // 64), "hidden": 4 * width}
    with tempfile.TemporaryDirectory(dir=Path.cwd() / ".cache" if (Path.cwd() / ".cache").is_dir() else None) as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        with OtherLoad() as load:
            for word, name, make, layers, batches in (
                ("forward", "Forward pass", forward, 32, (1, 8)),
                ("training", "Training step", training, 16, (8,)),
            ):
                if word not in options.only.split(","):
                    continue
                sizes = Sizes(layers=options.layers or layers, batch=1, **shape)
                chosen = [options.batch] if options.batch else [*batches, balanced_batch(make, sizes, scratch)]
                for batch in [chosen[-1]] if options.balanced else dict.fromkeys(chosen):
                    compare(name, make, dataclasses.replace(sizes, batch=batch), options.rounds, scratch)
    print(load.text())


if __name__ == "__main__":
    main()
