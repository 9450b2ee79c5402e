"""How much memory a model in files takes, for models of three sizes. Target: what was planned, whatever the size.

A forward pass over a stack of equal layers whose weights lie in files, with one, four and sixteen times as many layers,
each in a fresh process with ``device_memory`` and ``host_memory`` given. *Planned* is the sum of the two: the plan's
peak, what runs ahead of it, and the memory for rows. *Resident* is the anonymous memory of the process at its peak
from the first run on, less that of a process that ran a program of one addition. File pages, which is code, do not
count; weights never are among them, since they move past the page cache.

Targets: resident is at most 1.05 of planned, and of the largest model at most 1.05 of that of the smallest.

The parent samples ``/proc/PID/status`` and so does not disturb the child; Linux only. *Upload* is the peak before the
first run: making the weights one row at a time, writing them, compiling. The variants with ``MALLOC_`` settings tell
how much of an excess is memory that was freed and that glibc has kept.

Not measured: GPUs, programs that store, other allocators.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from _measure import OtherLoad, print_table, print_verdict, spread
from _watch import watch

LIMIT = 1.05
TIMES = (1, 4, 16)
USUAL = "as it is"
VARIANTS: Mapping[str, Mapping[str, str]] = {
    USUAL: {},
    "freed at once": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    "one arena": {"MALLOC_ARENA_MAX": "1"},
}
MIB = 1 << 20


# ---------------------------------------------------------------- the child


def say(*words: object) -> None:
    """Tell the parent."""
    print(*words, flush=True)


def run_addition() -> None:
    """The empty process: all that a program needs, and next to no program."""
    import popxl
    from popxl import ops

    ir = popxl.Ir()
    with ir.main_graph:
        ops.host_store(popxl.d2h_stream((), popxl.float32), popxl.variable(1.0) + 1.0)
    with popxl.Session(ir) as session:
        say("phase", "run")
        session.run()


def run_model(layers: int, width: int, runs: int, slack: int, host_memory: int, directory: str) -> None:
    """A forward pass over `layers` layers in files."""
    from streamed_stack import Sizes, forward

    import popxl

    sizes = Sizes(layers, batch=1, width=width, heads=max(1, width // 64), hidden=4 * width)
    program = forward(sizes, lambda layer: np.broadcast_to(np.float32(0.001 * (layer % 7)), sizes.layer_bytes // 4))
    peak = popxl.Session(program.ir).figures.device.peak_bytes
    memory = popxl.StreamingMemory(f"file:{directory}", host_memory=host_memory)
    session = popxl.Session(
        program.ir, weights_to_host_on_exit=False, streaming_memory=memory, device_memory=peak + slack
    )
    model = session.figures.streaming_bytes
    for name, value in (("device", peak), ("slack", slack), ("host", host_memory), ("model", model)):
        say("fact", name, value)
    with session:
        say("phase", "run")
        x = np.ones(sizes.input_shape, np.float32)
        for _ in range(runs):
            session.run({program.x_in: x})
        say("phase", "end")
        session._detach()  # without a commit  # pyright: ignore[reportPrivateUsage]
        os._exit(0)


# ---------------------------------------------------------------- the parent


@dataclass(slots=True)
class Seen:
    """What was seen of the processes with a model of one size, in bytes; less what an empty one had."""

    facts: Mapping[str, int] = field(default_factory=dict[str, int])
    empty: list[int] = field(default_factory=list[int])
    upload: list[int] = field(default_factory=list[int])
    resident: list[int] = field(default_factory=list[int])

    @property
    def planned(self) -> int:
        """What was planned."""
        return self.facts["device"] + self.facts["slack"] + self.facts["host"]

    @property
    def share(self) -> list[float]:
        """Resident of planned."""
        return [resident / self.planned for resident in self.resident]

    def row(self) -> list[str]:
        """As cells of a table, in MiB."""
        sizes = [f"{n / MIB:.0f}" for n in (self.facts["model"], self.planned)]
        return [*sizes, *(spread(n, 1 / MIB, 0) for n in (self.empty, self.upload, self.resident)), spread(self.share)]


def measure(args: argparse.Namespace, times: int, environment: Mapping[str, str], seen: Seen) -> None:
    """Run an empty process and one with a model, and note what was seen."""
    command = [sys.executable, __file__, "--child"]
    empty = watch([*command, "empty"], environment).peaks["run"]
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch:
        sizes = [times * args.layers, args.width, args.runs, args.slack_mib * MIB, args.host_mib * MIB]
        child = watch([*command, ",".join([*map(str, sizes), str(Path(scratch) / "rows")])], environment)
    seen.facts = child.facts
    seen.empty.append(empty)
    seen.upload.append(child.peaks["start"] - empty)
    seen.resident.append(child.peaks["run"] - empty)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="of the smallest model")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=7, help="as it is; the variants get a third of them")
    parser.add_argument("--slack-mib", type=int, default=64, help="device_memory above the plan's peak")
    parser.add_argument("--host-mib", type=int, default=128)
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        *numbers, directory = args.child.split(",")
        run_model(*map(int, numbers), directory) if numbers else run_addition()
        return 0
    seen = {(variant, times): Seen() for variant in VARIANTS for times in TIMES}
    with OtherLoad() as load:
        for i in range(args.rounds):
            for (variant, times), one in seen.items():
                if variant == USUAL or i % 3 == 0:
                    measure(args, times, VARIANTS[variant], one)
    print(f"Planned: the plan's peak + {args.slack_mib} MiB device_memory above it + {args.host_mib} MiB host_memory.")
    header = ["malloc", "model", "planned", "empty", "upload", "resident", "resident / planned"]
    print_table(header, [[variant, *one.row()] for (variant, _), one in seen.items()])
    print("MiB; empty is a process without a model, upload and resident are less that.")
    for times in TIMES:
        share = statistics.median(seen[USUAL, times].share)
        print_verdict(f"resident over planned, {times} x {args.layers} layers,", share, LIMIT)
    least, most = (statistics.median(seen[USUAL, times].resident) for times in (TIMES[0], TIMES[-1]))
    print_verdict(f"resident with {TIMES[-1]} times the layers over that with one", most / least, LIMIT)
    print(load.text())
    print("Not measured: GPUs, programs that store, other allocators.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
