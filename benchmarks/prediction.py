"""Is a run predicted before it runs? `Session.estimate` beside what its runs take, for many programs and budgets.

Targets: bytes of each tier within 2 %, the time of a step within 10 % (5 % is the goal).

Each configuration is estimated and run in turn, several times, each time by a new session: the medians are compared.
Of the runs of a session the first does not count. *Itself* is how far the rounds' own medians of what was measured lie
apart: no prediction can be closer to a machine than the machine is to itself. A step is a run and all its stores
(`Session.run` and `Session.wait`). Bytes: what is loaded and stored are the tier's
own counts; *ram* are the sizes of the rows that it holds; *file* is what the files take on the disk after two commits;
*device* is the most that JAX's arrays, rows lent to the program, and outputs and temporaries of the computation that
is dispatched have together, in a session that may take exactly the predicted peak, less what lived before; *host* is a
limit, which with the device's peak must not be less than the memory that rows have taken, the program's included.

Not measured: GPUs, several processes, file systems without direct I/O.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import tempfile
import time
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import numpy as np
from _measure import OtherLoad, print_table, print_verdict, spread
from streamed_stack import Sizes, forward, training
from streaming import weights

import popxl
from popxl import ops
from popxl.plan.steps import HostLoad

MIB = 1 << 20
BYTES_LIMIT, TIME_LIMIT, TIME_GOAL = 0.02, 0.10, 0.05
Feeds = Mapping[popxl.HostToDeviceStream, np.ndarray]


@dataclass(frozen=True)
class Config:
    """A program, where its rows lie, and its budgets: bytes above the plan's peak, and of host memory."""

    kind: str
    width: int = 256
    layers: int = 4
    batch: int = 1
    memory: str = "file"
    above_peak: int | None = None
    host: int | None = None

    @property
    def name(self) -> str:
        """In words."""
        parts = [self.kind, f"width {self.width}"]
        if self.kind in ("forward", "training"):
            parts += [f"{self.layers} layers", f"batch {self.batch}", self.memory]
        if self.above_peak is not None:
            parts.append("device: peak" + (f" + {self.above_peak // MIB} MiB" if self.above_peak else ""))
        if self.host is not None:
            parts.append(f"host: {self.host // MIB} MiB")
        return ", ".join(parts)


CONFIGS = (
    Config("forward", 1024, 4, 1, "ram"),
    Config("forward", 1024, 4, 1),
    Config("forward", 1024, 16, 1, "ram"),
    Config("forward", 1024, 16, 1),
    Config("forward", 1024, 16, 2),
    Config("forward", 1024, 16, 8),
    Config("forward", 1024, 16, 1, above_peak=0),
    Config("forward", 1024, 16, 1, above_peak=64 * MIB),
    Config("forward", 1024, 16, 1, host=17 * MIB),
    Config("forward", 1024, 8, 1, host=1024 * MIB),
    Config("forward", 1024, 16, 1, host=500 * MIB),
    Config("forward", 256, 16, 1, "ram"),
    Config("forward", 256, 16, 1),
    Config("forward", 256, 16, 8),
    Config("forward", 256, 4, 2),
    Config("training", 256, 4, 2, "ram"),
    Config("training", 256, 4, 2),
    Config("training", 256, 16, 1),
    Config("training", 256, 16, 8, "ram"),
    Config("training", 256, 16, 8),
    Config("training", 256, 16, 2, above_peak=0),
    Config("training", 256, 16, 2, above_peak=32 * MIB),
    Config("training", 256, 16, 2, host=4 * MIB),
    Config("training", 1024, 4, 1),
    Config("training", 1024, 4, 2),
    Config("training", 1024, 4, 8),
    Config("training", 1024, 4, 2, "ram"),
    Config("resident MLP", 512, memory="ram"),
    Config("loop of small ops", 16, memory="ram"),
)
QUICK = (
    Config("forward", 64, 2, 1),
    Config("training", 64, 2, 1, "ram"),
    Config("training", 64, 2, 1, above_peak=0),
    Config("resident MLP", 32, memory="ram"),
)


def mlp(width: int) -> tuple[popxl.Ir, Feeds]:
    """A step of gradient descent of three layers that lie on the device."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x_in = popxl.h2d_stream((64, width), popxl.float32)
        x = ops.host_load(x_in)
        values = [x]
        ws = [popxl.variable(np.eye(width, dtype=np.float32) * 0.5, name=f"w{i}") for i in range(3)]
        for w in ws:
            values.append(ops.tanh(values[-1] @ w))
        ops.host_store(popxl.d2h_stream((), popxl.float32), ops.mean(values[-1] * values[-1]))
        grad = values[-1] * (2.0 / (64 * width))
        for w, before, after in zip(reversed(ws), reversed(values[:-1]), reversed(values[1:]), strict=True):
            grad = grad * (1 - after * after)
            step = before.transpose() @ grad
            grad = grad @ w.transpose()
            ops.var_updates.accumulate_(w, step * -0.01)
    return ir, {x_in: np.random.default_rng(1).standard_normal((64, width), np.float32)}


def loop(width: int) -> tuple[popxl.Ir, Feeds]:
    """Two thousand iterations of a little arithmetic that the host drives, since each loads a row."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((width, width), popxl.float32, 8)
        for i in range(8):
            popxl.remote_variable(np.eye(width, dtype=np.float32), buffer, i)
        x = popxl.variable(np.ones((width, width), np.float32)) + 0.0

        def body(x: popxl.Tensor, i: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            return ops.tanh(x @ ops.remote_load(buffer, i)), (i + 1) % 8

        i = popxl.constant(0, popxl.uint32)
        x, _ = ops.repeat(ir.create_graph(body, x, i), 2000, x, i)
        ops.host_store(popxl.d2h_stream((width, width), popxl.float32), x)
    return ir, {}


def build(config: Config) -> tuple[popxl.Ir, Feeds]:
    """The program of a configuration, and its inputs."""
    if config.kind == "resident MLP":
        return mlp(config.width)
    if config.kind == "loop of small ops":
        return loop(config.width)
    width = config.width
    sizes = Sizes(config.layers, config.batch, width=width, heads=max(1, width // 64), hidden=4 * width)
    made = {"forward": forward, "training": training}[config.kind](sizes, partial(weights, sizes))
    return made.ir, {made.x_in: np.random.default_rng(99).standard_normal(sizes.input_shape, np.float32)}


def session_of(ir: popxl.Ir, config: Config, directory: Path, device_memory: int | None) -> popxl.Session:
    """A session of a configuration."""
    memory = popxl.StreamingMemory("ram")
    if config.memory == "file":
        memory = popxl.StreamingMemory(f"file:{directory}", host_memory=config.host)
    return popxl.Session(ir, "cpu", False, streaming_memory=memory, device_memory=device_memory)


@dataclass
class Result:
    """What was predicted and measured, of one configuration."""

    config: Config
    #: Of each round.
    predictions_s: list[float] = field(default_factory=list[float])
    #: Of each round, its runs.
    rounds_s: list[list[float]] = field(default_factory=list[list[float]])
    #: Predicted and measured bytes; of `host` the measured ones must only not be more.
    n_bytes: dict[str, tuple[int, int]] = field(default_factory=dict)
    estimate_s: float = 0.0
    bound: str = ""

    @property
    def predicted_s(self) -> float:
        """The median of the predictions."""
        return statistics.median(self.predictions_s)

    @property
    def measured_s(self) -> list[float]:
        """All runs that count."""
        return [s for runs in self.rounds_s for s in runs]

    @property
    def time_error(self) -> float:
        """Predicted over measured, less one: medians."""
        return self.predicted_s / statistics.median(self.measured_s) - 1

    @property
    def own_spread(self) -> float:
        """The slowest round over the fastest, less one."""
        medians = [statistics.median(runs) for runs in self.rounds_s]
        return max(medians) / min(medians) - 1

    @property
    def errors(self) -> dict[str, float]:
        """Of the bytes of each tier, without sign."""
        return {
            name: max(0, m - p) / max(p, 1) if name == "host" else abs(p - m) / max(m, 1)
            for name, (p, m) in self.n_bytes.items()
        }

    @property
    def bytes_error(self) -> float:
        """The largest of all tiers, without its sign."""
        return max(self.errors.values())


def measure(config: Config, rounds: int, runs: int, scratch: Path) -> Result:
    """Estimate a configuration and run it, in turn, and compare."""
    peak = None
    if config.above_peak is not None:
        ir, _ = build(config)
        peak = session_of(ir, config, scratch / "peak", None).figures.device.peak_bytes + config.above_peak
    result = Result(config)
    for k in range(rounds):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            measure_round(config, result, runs, Path(folder), peak, with_bytes=k == rounds - 1)
    device_bytes, _ = result.n_bytes["device"]
    result.n_bytes["device"] = device_bytes, most_device_bytes(config, scratch / "device", device_bytes)
    return result


def measure_round(
    config: Config, result: Result, runs: int, directory: Path, device_memory: int | None, *, with_bytes: bool
) -> None:
    """Estimate a configuration and run it; add to the result."""
    ir, feeds = build(config)
    session = session_of(ir, config, directory, device_memory)
    begin_s = time.perf_counter()
    predicted = session.estimate()
    result.estimate_s, result.bound = time.perf_counter() - begin_s, predicted.bound
    result.predictions_s.append(predicted.step_s)
    counters = session.streaming_memory.counters
    measured_s: list[float] = []
    with session:
        for _ in range(runs + 1):
            before = counters.bytes_loaded, counters.bytes_stored
            begin_s = time.perf_counter()
            session.run(feeds)
            session.wait()
            measured_s.append(time.perf_counter() - begin_s)
            moved = counters.bytes_loaded - before[0], counters.bytes_stored - before[1]
        result.rounds_s.append(measured_s[1:])
        if not with_bytes:
            return
        result.n_bytes["loads"] = predicted.load_bytes, moved[0]
        result.n_bytes["stores"] = predicted.store_bytes, moved[1]
        tier = predicted.tier_bytes
        result.n_bytes["device"] = tier["device"], 0
        if "ram" in tier:
            rows = session.streaming_memory.tier._rows.values()  # type: ignore[attr-defined]
            result.n_bytes["ram"] = tier["ram"], sum(row.nbytes for row in rows)
        else:
            session.commit()
            session.run(feeds)
            session.commit()
            result.n_bytes["host"] = tier["host"] + tier["device"], touched_bytes(session)
            result.n_bytes["file"] = tier["file"], slab_blocks(directory)


def touched_bytes(session: popxl.Session) -> int:
    """Memory that rows have taken: of the pool, and of those that are kept."""
    transfers = session._weights.transfers
    return sum(region.touched for region in transfers._pool._regions)  # type: ignore[attr-defined]


def slab_blocks(directory: Path) -> int:
    """What the files of rows take on the disk."""
    return sum(512 * path.stat().st_blocks for path in directory.iterdir() if path.suffix in ("", ".bin", ".slab")
               and path.stat().st_size >= 4096)  # fmt: skip


def most_device_bytes(config: Config, directory: Path, peak_bytes: int) -> int:
    """Run once over files within exactly the peak, and look before each computation what there is."""
    ir, feeds = build(config)
    # A row that is needed again soon stays in memory in between, for which it must not have much room.
    largest = max((math.prod(b.shape) * b.dtype.nbytes for b in ir.remote_buffers.values()), default=0)
    memory = popxl.StreamingMemory(f"file:{directory}", host_memory=-(-largest // 4096) * 4096)
    session = popxl.Session(ir, "cpu", False, streaming_memory=memory, device_memory=peak_bytes)
    gc.collect()
    others, most = arrays_bytes(), 0
    items: list[weakref.ref[np.ndarray]] = []
    with session:
        executor, transfers = session._executor, session._weights.transfers
        completion, pool = executor._completion, transfers._pool  # type: ignore[attr-defined]
        admit, lend, host_load = completion.admit, pool.lend, executor._host_load
        is_lending = False

        def sampled(new_bytes: int) -> None:
            admit(new_bytes)
            if not is_lending:
                look(new_bytes)

        def lent(block: object, spec: object) -> np.ndarray:
            nonlocal is_lending
            is_lending = True
            row = lend(block, spec)
            is_lending = False
            look(0)
            return row

        def look(new_bytes: int) -> None:
            nonlocal most
            transfers.drain()  # what waits to be written is the host's
            pool._reclaim()
            loaded = sum(item.nbytes for item in (ref() for ref in items) if item is not None)
            most = max(most, arrays_bytes() + pool.lent_bytes + loaded + new_bytes)

        def host_loaded(frame: list[object], step: HostLoad) -> None:
            host_load(frame, step)
            items.append(weakref.ref(frame[step.output]))

        completion.admit = sampled  # type: ignore[method-assign]
        pool.lend = lent
        executor._actions[HostLoad] = host_loaded
        session.run(feeds)
        session.wait()
    return most - others


def arrays_bytes() -> int:
    """Of all arrays of JAX that Python refers to, each memory once; constants of one number are no device's."""
    return sum(a.nbytes for a in jax.live_arrays() if not a.is_deleted())


def report(results: Iterable[Result]) -> None:
    """Print tables and verdicts."""
    results = list(results)
    rows = []
    for r in results:
        worst = max(r.errors, key=r.errors.__getitem__)
        rows.append([
            r.config.name, r.bound, f"{r.predicted_s * 1e3:.2f}", spread(r.measured_s, 1e3), f"{r.time_error:+.1%}",
            f"{r.own_spread:.1%}", f"{r.bytes_error:.1%}",
            f"{worst}: {r.n_bytes[worst][0]} / {r.n_bytes[worst][1]}", f"{r.estimate_s:.1f}",
        ])  # fmt: skip
    header = (
        "configuration",
        "bound",
        "predicted, ms",
        "measured, ms",
        "error",
        "itself",
        "bytes' error",
        "the largest",
        "took, s",
    )
    print_table(header, rows)
    errors = [abs(r.time_error) for r in results]
    within = [sum(e <= limit for e in errors) for limit in (TIME_GOAL, TIME_LIMIT)]
    print(f"{len(results)} configurations; within 5 %: {within[0]}, within 10 %: {within[1]}, "
          f"median error {statistics.median(errors):.1%}")  # fmt: skip
    spreads = [r.own_spread for r in results]
    allowed = [max(TIME_LIMIT, own) for own in spreads]
    kept = sum(e <= limit for e, limit in zip(errors, allowed, strict=True))
    print(f"rounds of one lie {statistics.median(spreads):.1%} apart (the median; at most {max(spreads):.1%})")
    print(f"errors of at most 10 %, or of no more than lies between those rounds: {kept}")
    print_verdict("the largest error of a time", max(errors), TIME_LIMIT)
    print_verdict("the largest error of bytes", max(r.bytes_error for r in results), BYTES_LIMIT)


def main(arguments: list[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=4, help="of each round")
    parser.add_argument("--quick", action="store_true", help="four tiny programs")
    parser.add_argument("--only", default="", help="configurations whose name has this in it")
    options = parser.parse_args(arguments)
    chosen = [c for c in (QUICK if options.quick else CONFIGS) if options.only in c.name]
    results: list[Result] = []
    cache = Path.cwd() / ".cache"
    with OtherLoad() as load:
        for config in chosen:
            with tempfile.TemporaryDirectory(dir=cache if cache.is_dir() else None) as folder:
                results.append(measure(config, options.rounds, options.runs, Path(folder)))
            r = results[-1]
            print(f"{config.name}: predicted {r.predicted_s:.4g} s, measured {spread(r.measured_s, 1, 4)}", flush=True)
    report(results)
    print(load.text())
    return results


if __name__ == "__main__":
    main()
