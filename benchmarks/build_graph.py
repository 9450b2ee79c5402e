"""How long it takes to build a graph of 10,000 ops on tensors of 100 distinct shapes. Target: under 2 s.

Most ops of a large program repeat few shapes, so shape rules are cached; what remains is Python: checks, names,
the op itself. *Cold* is a fresh process with an empty cache, and its time includes every shape rule that is
traced with JAX; *warm* builds the same graph again in that process. Importing JAX is told apart.

Not measured: planning and compiling, which are the session's (`layer_stack.py`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from _measure import OtherLoad, print_table, print_verdict, spread

import popxl
from popxl import ops
from popxl.ops._define import infer
from popxl.tensor import Tensor

LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Built:
    """One build: what it cost, and what was counted.

    Attributes:
        seconds: Wall seconds.
        cpu_seconds: Processor seconds.
        op_count: Ops in the graph.
        shape_count: Distinct shapes among their outputs.
        rules_run: Shape rules that were not in the cache.
    """

    seconds: float
    cpu_seconds: float
    op_count: int
    shape_count: int
    rules_run: int


def step(t: Tensor) -> Tensor:
    """Ten ops on four shapes: from (2, n) over (n, 2), (4, n) and (2, 2n) back to (2, n)."""
    rows, columns = t.shape
    t = ops.softmax(ops.gelu(t + t), axis=1)
    t = ops.transpose(ops.transpose(t))
    t = ops.slice(ops.concat([t * t, t], axis=0), start=[0], stop=[rows], axis=[0])
    return ops.slice(ops.concat([t, t], axis=1), start=[0], stop=[columns], axis=[1])


OPS_PER_STEP, SHAPES_PER_STEP = 10, 4


def build(op_count: int, shape_count: int) -> Built:
    """Build a graph of `op_count` ops on chains of tensors, in which `shape_count` shapes occur (rounded up to 4)."""
    ir = popxl.Ir()
    chains = -(-shape_count // SHAPES_PER_STEP)
    with ir.main_graph:
        # n is odd and at least 5, so that no two chains share a shape.
        tensors = [popxl.variable(np.zeros((2, 2 * i + 5), np.float32)) for i in range(chains)]
        rules, cpu, wall = infer.cache_info().misses, time.process_time(), time.perf_counter()
        for i in range(-(-op_count // OPS_PER_STEP)):
            tensors[i % chains] = step(tensors[i % chains])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    made = ir.main_graph.ops
    shapes = {t.shape for op in made for t in op.outputs}
    return Built(wall, cpu, len(made), len(shapes), infer.cache_info().misses - rules)


def child(op_count: int, shape_count: int) -> None:
    """Import JAX, build twice, print the figures as JSON."""
    import_s = time.perf_counter()
    import jax  # noqa: F401 (timed here so that the first shape rule does not pay for it)

    import_s = time.perf_counter() - import_s
    print(json.dumps([import_s, *(asdict(build(op_count, shape_count)) for _ in range(2))]))


def measure(op_count: int, shape_count: int, processes: int) -> tuple[list[float], list[Built], list[Built]]:
    """Return the seconds that importing JAX took, the cold builds and the warm ones, one per fresh process."""
    imports: list[float] = []
    cold: list[Built] = []
    warm: list[Built] = []
    for _ in range(processes):
        command = [sys.executable, __file__, "--child", f"--ops={op_count}", f"--shapes={shape_count}"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        import_s, first, second = json.loads(out)
        imports.append(import_s)
        cold.append(Built(**first))
        warm.append(Built(**second))
    return imports, cold, warm


def report(imports: list[float], cold: list[Built], warm: list[Built]) -> None:
    """Print the table and the verdict."""
    rows: list[list[str]] = []
    for name, builds in (("cold: fresh process", cold), ("warm: again in it", warm)):
        seconds = [b.seconds for b in builds]
        rows.append(
            [
                name,
                spread(seconds),
                spread([b.cpu_seconds for b in builds]),
                spread([b.seconds / b.op_count for b in builds], 1e6, 1),
                str(builds[0].rules_run),
            ]
        )
    first = cold[0]
    print(f"{first.op_count} ops, {first.shape_count} distinct shapes; fresh processes: {len(cold)}.")
    print(f"Importing JAX took {spread(imports)} s, which is in none of the rows.")
    print_table(["build", "s", "CPU s", "µs an op", "shape rules run"], rows)
    middle = sorted(b.seconds for b in cold)[len(cold) // 2]
    print_verdict("a cold build in seconds", middle, LIMIT_S)
    print("Not measured: planning and compiling; several graphs; ops with gradients.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=10_000)
    parser.add_argument("--shapes", type=int, default=100)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--child", action="store_true", help="build once cold and once warm, and print JSON")
    args = parser.parse_args(argv)
    if args.child:
        child(args.ops, args.shapes)
        return 0
    with OtherLoad() as load:
        figures = measure(args.ops, args.shapes, args.processes)
    report(*figures)
    print(load.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
