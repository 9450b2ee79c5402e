"""What recording a run costs, and how much of its time the recording accounts for.

Targets: a recorded run takes at most 1.02 of one that is not; at least 0.97 of its wall time is one lane's or
another's.

Two programs, each with and without a recording, timed in turn in one process, three runs at a time: a training step of
layers whose weights and moments lie in files, and a loop that the host drives through many small rows in RAM, where
what is seen costs most beside what is done. The recording is kept in memory; writing the file happens after the runs,
and is shown apart.

Not measured: GPUs, several processes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from _measure import OtherLoad, alternate, median_ratio, print_table, print_verdict, ratio, spread, timed
from streamed_stack import Sizes, training
from streaming import run_of, weights

import popxl
from popxl import ops


def small_rows(count: int) -> tuple[popxl.Session, Callable[[], object]]:
    """A loop over rows of 1 KiB in RAM."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((256,), popxl.float32, 8)

        def visit(k: popxl.Tensor) -> popxl.Tensor:
            ops.remote_store(buffer, k % 8, ops.remote_load(buffer, k % 8) + 1)
            return k + 1

        first = popxl.constant(0, popxl.uint32)
        ops.repeat(ir.create_graph(visit, first), count, first)
    session = popxl.Session(ir)
    session.__enter__()

    def run() -> None:
        session.run()
        session.wait()

    return session, run


def compare(name: str, session: popxl.Session, run: Callable[[], object], rounds: int, file: Path) -> None:
    """Time a program with and without a recording; print table and verdicts."""
    shares: list[float] = []
    written: list[float] = []

    def plain() -> None:
        for _ in range(3):
            run()

    def traced() -> None:
        with session.trace():
            plain()
        shares.append(session.report().attributed or 0.0)

    timings = alternate({"as it is": plain, "recorded": traced}, rounds)
    with session.trace() as seen:
        plain()
    seen.path = file
    from popxl.observe.trace import write_trace

    written.append(timed(lambda: write_trace(seen, file))[0])
    print(f"\n{name}: {len(seen.events)} events of three runs")
    rows = [
        [side, spread(t.wall_s, 1e3, 1), ratio(t, timings["as it is"]), spread(t.cpu_s, 1e3, 1)]
        for side, t in timings.items()
    ]
    print_table(("side", "ms", "of as it is", "CPU ms"), rows)
    print(f"file: {file.stat().st_size / 1e6:.2f} MB, written in {written[0] * 1e3:.0f} ms")
    print_verdict(
        f"{name}: time recorded over time as it is", median_ratio(timings["recorded"], timings["as it is"]), 1.02
    )
    print_verdict(f"{name}: 0.97 over the share that is accounted for", 0.97 / float(np.median(shares)), 1)
    print(f"accounted for: {spread(shares, digits=4)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--small", type=int, default=2000, help="rows of the loop")
    options = parser.parse_args(arguments)
    sizes = Sizes(options.layers, 2, options.width, max(1, options.width // 64), 4 * options.width)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, OtherLoad() as load:
        x = np.ones(sizes.input_shape, np.float32)
        program = training(sizes, partial(weights, sizes))
        for name, (session, run) in (
            ("training step", run_of(program, f"file:{folder}/rows", x)),
            ("small rows", small_rows(options.small)),
        ):
            compare(name, session, run, options.rounds, Path(folder) / "run.json")
            session._detach()  # pyright: ignore[reportPrivateUsage]
    print(load.text())


if __name__ == "__main__":
    main()
