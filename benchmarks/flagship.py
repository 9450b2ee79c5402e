"""The flagship, `examples/train_larger_than_memory.py`: how close to the limit, in how much memory.

Targets: max(C, L + S) / time of a step at least 0.95; resident memory at most 1.05 of what was planned; weights and
moments at least 20 times the budget of the device; the same losses as with everything in RAM.

Sides, timed in turn in one process, each a step of training:

* ``files``: the example's program over files, with the example's budgets;
* ``RAM``: the same program with its rows in RAM, without budgets, which is C;
* ``loads`` and ``stores``: the tier alone moves as many bytes as a step does, in rows of the size of a layer: L and S;
* ``side by side``: ``RAM`` in one thread while another moves the rows, neither waiting for the other: what the machine
  can do at best.

*Planned* is device memory and host memory, as given to the session; *resident* is the anonymous memory of a process
that trains a few steps over files, at its peak from the first step on, less that of a process that imported the example
and ran one addition. Two shares of the rest are shown, which no plan has: what building and compiling the program has
left before the first step, and what glibc keeps of freed memory, which it gives back when asked to after the last step.

Not measured: GPUs, other file systems.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from _examples import import_example
from _measure import OtherLoad, alternate, print_verdict, spread
from _raw_tier import RawTier
from _watch import anonymous_bytes, watch
from resident_memory import run_addition, say
from streaming import report, side_by_side


def session_of(flagship: ModuleType, config: Any, memory: Any, budget: str | None) -> tuple[Any, Callable[[], float]]:
    """Enter a session; return it and what trains one step more, to the very end, and returns the loss."""
    import popxl

    text = flagship.read_text(2_000_000)
    training = flagship.build_training(config)
    session = popxl.Session(training.ir, weights_to_host_on_exit=False, streaming_memory=memory, device_memory=budget)
    session.__enter__()
    steps = iter(range(1_000_000))

    def step() -> float:
        k = next(steps)
        rate = config.learning_rate * min(1.0, (k + 1) / config.warm_up)
        inputs = {training.symbols: flagship.draw_batches(text, config, k), training.rate: np.float32(rate)}
        loss = float(session.run(inputs)[training.loss])
        session.wait()
        return loss

    return session, step


def files(directory: Path, host: str) -> Any:
    """Streaming Memory as the example has it."""
    import popxl

    return popxl.StreamingMemory(f"file:{directory}", host_memory=host)


def compare(flagship: ModuleType, config: Any, options: argparse.Namespace, scratch: Path) -> None:
    """Time the sides; print tables and verdicts."""
    in_files, step_in_files = session_of(flagship, config, files(scratch / "rows", options.host), options.device)
    in_ram, step_in_ram = session_of(flagship, config, "ram", None)
    beside, step_beside = session_of(flagship, config, "ram", None)
    losses: dict[str, list[float]] = {"files": [], "RAM": [], "side by side": []}
    figures = in_files.figures
    row_bytes = 4 * sum(int(np.prod(shape)) for shape in config.layer.values())
    moved = {"loads": figures.load_bytes, "stores": figures.store_bytes}
    raw = {what: RawTier(scratch / what, row_bytes, round(n / row_bytes), 4) for what, n in moved.items()}
    moves = [raw["loads"].loads, raw["stores"].stores]
    with ThreadPoolExecutor(1) as other:
        sides: dict[str, Callable[[], object]] = {
            "files": lambda: losses["files"].append(step_in_files()),
            "RAM": lambda: losses["RAM"].append(step_in_ram()),
            "loads": moves[0],
            "stores": moves[1],
            "side by side": lambda: losses["side by side"].append(side_by_side(other, step_beside, moves)),
        }
        timings = alternate(sides, options.rounds)
    report(timings, moved)
    for session in (in_files, in_ram, beside):
        session._detach()  # pyright: ignore[reportPrivateUsage]
    for tier in raw.values():
        tier.close()
    if not losses["files"] == losses["RAM"] == losses["side by side"]:
        sys.exit("files and RAM gave different losses")
    print(f"the losses of {len(losses['files'])} steps are equal bit for bit")


def train_alone(config: Any, flagship: ModuleType, options: argparse.Namespace) -> None:
    """Train a few steps over files, and say when they begin."""
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        session, step = session_of(flagship, config, files(Path(folder) / "rows", options.host), options.device)
        say("fact", "compiled", anonymous_bytes(os.getpid()))
        say("phase", "run")
        for _ in range(options.steps):
            step()
        say("phase", "end")
        before = anonymous_bytes(os.getpid())
        ctypes.CDLL(None).malloc_trim(0)
        say("fact", "freed", before - anonymous_bytes(os.getpid()))
        session._detach()  # pyright: ignore[reportPrivateUsage]


def resident(options: argparse.Namespace, planned_bytes: int) -> None:
    """Watch processes that train; print what they took."""
    words = ["--device", options.device, "--host", options.host, "--layers", str(options.layers)]
    words += ["--micro-batches", str(options.micro_batches)]
    taken: list[int] = []
    compiled: list[int] = []
    freed: list[int] = []
    for _ in range(3):
        empty = watch([sys.executable, __file__, "--child", "empty"], {}).peaks["run"]
        child = watch([sys.executable, __file__, "--child", "train", *words], {})
        taken.append(child.peaks["run"] - empty)
        compiled.append(child.facts["compiled"] - empty)
        freed.append(child.facts["freed"])
    print(f"resident, less an empty process: {spread(taken, 2**-20, 0)} MiB; planned: {planned_bytes / 2**20:.0f} MiB")
    print(f"there before the first step: {spread(compiled, 2**-20, 0)} MiB")
    print(f"free at the end, but kept by glibc: {spread(freed, 2**-20, 0)} MiB")
    print_verdict("resident over planned", statistics.median(taken) / planned_bytes, 1.05)


def main(arguments: Sequence[str] | None = None) -> None:
    flagship = import_example("train_larger_than_memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=0, help="instead of the example's")
    parser.add_argument("--micro-batches", type=int, default=0, help="instead of the example's")
    parser.add_argument("--device", default=flagship.DEVICE_MEMORY, metavar="SIZE")
    parser.add_argument("--host", default=flagship.HOST_MEMORY, metavar="SIZE")
    parser.add_argument("--steps", type=int, default=3, help="of a process whose memory is watched")
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    given = {"layers": options.layers, "micro_batches": options.micro_batches}
    config = flagship.Config(**{name: size for name, size in given.items() if size})
    if options.child == "empty":
        run_addition()
        return
    if options.child:
        train_alone(config, flagship, options)
        return
    from popxl.units import parse_bytes

    device, host = parse_bytes(options.device) or 0, parse_bytes(options.host) or 0
    sizes = f"{config.layers} layers, {config.micro_batches} micro-batches of {config.batch} sequences"
    print(f"{sizes}; weights and moments {config.state_bytes / 2**20:.0f} MiB, device {options.device}")
    print_verdict("the device's budget, times 20, over the weights and moments", 20 * device / config.state_bytes, 1)
    with OtherLoad() as load:
        resident(options, device + host)
        with tempfile.TemporaryDirectory(dir=options.directory) as folder:
            compare(flagship, config, options, Path(folder))
    print(load.text())
    print(f"Not measured: GPUs, other file systems. {os.cpu_count()} cores.")


if __name__ == "__main__":
    main()
