"""Where Python's time goes: what one step of a plan costs the executor, next to a bare call of a compiled function.

Each program does one thing many times, and its row is the time of a run divided by that number; the fixed cost of a
run, which stands below the table, is spread over them. The bare calls run as many times in a plain loop. Arrays have
4 KiB, small enough that the bytes do not count; the RAM tier passes them by reference.

Not measured: large arrays (`remote_load.py`), the device's own time where it is more than the dispatch, other tiers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import jax
import numpy as np
from _measure import OtherLoad, Timing, alternate, print_table, ratio, spread

import popxl
from popxl import ops
from popxl.remote_buffer import RemoteBuffer
from popxl.tensor import Tensor

ELEMENTS = 1024
#: A called graph of fewer ops is compiled into its caller.
BODY_OPS = 17


@dataclass(frozen=True, slots=True)
class Step:
    """One row: what a program does many times, and the class names of the steps that each adds to the main plan."""

    name: str
    body: Callable[[int, Tensor, RemoteBuffer, popxl.Graph], Tensor]
    adds: tuple[str, ...]


def _load_and_use(i: int, x: Tensor, buffer: RemoteBuffer, _graph: popxl.Graph) -> Tensor:
    return x + ops.remote_load(buffer, i % buffer.entries)


def _load_and_store(i: int, x: Tensor, buffer: RemoteBuffer, _graph: popxl.Graph) -> Tensor:
    ops.remote_store(buffer, (i + 1) % buffer.entries, ops.remote_load(buffer, i % buffer.entries))
    return x


def _call(_i: int, x: Tensor, _buffer: RemoteBuffer, graph: popxl.Graph) -> Tensor:
    return ops.call(graph, x)[0]


STEPS = (
    Step("remote load + remote store", _load_and_store, ("RemoteLoad", "RemoteStore", "Free")),
    Step("remote load + segment of one add", _load_and_use, ("RemoteLoad", "Compute", "Free")),
    Step(f"call of a graph with one segment of {BODY_OPS} ops", _call, ("Call", "Free")),
)
LOOP = "iteration of a host-driven loop: load, offset + 1, segment of one add"


def body(x: Tensor) -> Tensor:
    """Tiny work of `BODY_OPS` ops."""
    for _ in range(BODY_OPS):
        x = x + x
    return x


def unrolled(step: Step | None, count: int) -> popxl.Ir:
    """Return a program that does `step` `count` times in the main graph."""
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((ELEMENTS,), popxl.float32, entries=4)
        x = popxl.variable(np.zeros(ELEMENTS, np.float32))
        graph = ir.create_graph(body, x)
        y = x + 1.0
        for i in range(count if step else 0):
            assert step is not None
            y = step.body(i, y, buffer, graph)
        ops.host_store(popxl.d2h_stream(y.shape, y.dtype), y)
    return ir


def looped(count: int) -> popxl.Ir:
    """Return a program with a loop that the host drives, because its body loads from Streaming Memory."""
    ir = popxl.Ir()

    def iteration(i: Tensor, x: Tensor, buffer: RemoteBuffer) -> tuple[Tensor, Tensor]:
        return ops.increment_mod(i, 1, 4), x + ops.remote_load(buffer, i)

    with ir.main_graph:
        buffer = popxl.remote_buffer((ELEMENTS,), popxl.float32, entries=4)
        x = popxl.variable(np.zeros(ELEMENTS, np.float32))
        i = popxl.constant(0, popxl.uint32)
        graph = ir.create_graph(iteration, i, x, buffer)
        _, y = ops.repeat(graph, count, i, x)
        ops.host_store(popxl.d2h_stream(y.shape, y.dtype), y)
    return ir


def bare_calls(count: int) -> dict[str, Callable[[], object]]:
    """Return loops of `count` calls of compiled functions with one argument and one result, which is passed on."""
    x0 = jax.device_put(np.zeros(ELEMENTS, np.float32))
    jitted = jax.jit(lambda x: x + x)
    compiled = jitted.lower(x0).compile()
    on_host = np.zeros(ELEMENTS + 16, np.float32)
    start = -on_host.ctypes.data % 64 // 4
    on_host = on_host[start : start + ELEMENTS]
    on_host.flags.writeable = False

    def loop(function: Callable[..., jax.Array]) -> Callable[[], object]:
        def run() -> None:
            x = x0
            for _ in range(count):
                x = function(x)
            x.block_until_ready()

        return run

    def from_numpy() -> None:
        for _ in range(count - 1):
            compiled(on_host)
        compiled(on_host).block_until_ready()

    return {"jitted": loop(jitted), "compiled": loop(compiled), "compiled, NumPy argument": from_numpy}


def step_names(session: popxl.Session) -> list[str]:
    """Return the class of each step of the main graph's plan."""
    return [type(step).__name__ for step in session.plan.steps]


def measure(count: int, rounds: int) -> tuple[dict[str, Timing], Timing, dict[str, Timing]]:
    """Return seconds for one step of each kind, for a whole run with next to nothing in it, and for one bare call."""
    programs = {step.name: unrolled(step, count) for step in STEPS} | {LOOP: looped(count)}
    with ExitStack() as sessions:

        def session(ir: popxl.Ir) -> Callable[[], object]:
            made = popxl.Session(ir)
            made.weights_to_host_on_exit = False
            return sessions.enter_context(made).run

        bare = bare_calls(count)
        sides = {name: session(ir) for name, ir in programs.items()} | bare
        timings = alternate(sides | {"run": session(unrolled(None, 0))}, rounds)
    each = {name: timings[name].per(count) for name in sides}
    return {name: each[name] for name in programs}, timings["run"], {name: each[name] for name in bare}


def report(steps: dict[str, Timing], run: Timing, bare: dict[str, Timing]) -> None:
    """Print the table."""
    reference = bare["compiled"]
    rows: list[list[str]] = []
    named = {f"bare call, {name}": t for name, t in bare.items()} | steps
    for name, t in named.items():
        rows.append([name, spread(t.wall_s, 1e6, 1), spread(t.cpu_s, 1e6, 1), ratio(t, reference)])
    print_table(["once", "µs", "CPU µs", "/ bare compiled call"], rows)
    print(f"A whole run with one segment and one host store: {spread(run.wall_s, 1e6, 0)} µs.")
    print("CPU µs count all threads, so also the device's own work. Not measured: large arrays, other tiers.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="how often a program does what is measured")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    with OtherLoad() as load:
        figures = measure(args.count, args.rounds)
    print(f"Each {args.count} times a run, {args.rounds} rounds.")
    report(*figures)
    print(load.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
