"""Twenty-four layers, one compilation. Target: the first run of 24 layers compiles in at most 1.3x the time of one.

A graph that is called many times is one executable; so are layers that were built one by one but compute the
same. Programs over one transformer layer are timed in turn, from a finished graph to the first result:

* ``1 layer``: the layer's graph, called once;
* ``shared``: the same graph, called N times;
* ``separate``: N graphs, built one after the other, each called once;
* ``written out``: no graph of its own, the N layers follow each other in the main graph. For comparison, one round.

What happens once is making the session (planning, compiling) and what the first run takes longer than a later one.
Uploading the weights grows with the layers and has its own column. JAX's caches are cleared before each session, the
weights are new in each round, and no persistent cache is used. Compilations are counted twice: by
`Session.executable_count`, and by the events that JAX itself reports.

Not measured: building the graph (`build_graph.py`), backward passes, devices other than the CPU.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import jax
import numpy as np
from _measure import OtherLoad, Timing, median_ratio, print_table, print_verdict, ratio, spread, timed

import popxl
from popxl import ops
from popxl.tensor import Tensor, Variable

LIMIT = 1.3
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
BASE, TARGETS, CONTRAST = "1 layer", ("shared", "separate"), "written out"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the stack: layers, features, tokens, heads."""

    layers: int = 24
    width: int = 256
    tokens: int = 64
    heads: int = 4


Pair = tuple[float, float]


@dataclass(slots=True)
class Samples:
    """What was measured of one program, one item a round; times are (wall, CPU) seconds.

    Attributes:
        session: Making the session; this plans and compiles.
        upload: Attaching it, which uploads the weights.
        first: The first run.
        later: A later run.
        executables: `Session.executable_count`.
        compiled: Compilations that JAX reported while the session was made.
        compiled_later: The same from then on to the first result.
        result: The output, to compare programs that compute the same.
    """

    session: list[Pair] = field(default_factory=list[Pair])
    upload: list[Pair] = field(default_factory=list[Pair])
    first: list[Pair] = field(default_factory=list[Pair])
    later: list[Pair] = field(default_factory=list[Pair])
    executables: list[int] = field(default_factory=list[int])
    compiled: list[int] = field(default_factory=list[int])
    compiled_later: list[int] = field(default_factory=list[int])
    result: np.ndarray | None = None

    @property
    def once(self) -> Timing:
        """What only the first run needs: the session, and the first run less a later one."""
        return _timing(self.session).plus(_timing(self.first)).minus(_timing(self.later))

    @property
    def total(self) -> Timing:
        """From the graph to the first result, with everything."""
        return _timing(self.session).plus(_timing(self.upload)).plus(_timing(self.first))


def _timing(samples: Sequence[tuple[float, float]]) -> Timing:
    return Timing(*map(tuple, zip(*samples, strict=True)))


def weights(sizes: Sizes, rng: np.random.Generator) -> list[Variable]:
    """Variables of one layer, in the order in which `layer` takes them."""
    d = sizes.width
    shapes = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [popxl.variable(rng.normal(0.0, 0.05, shape).astype(np.float32)) for shape in shapes]


def make_layer(sizes: Sizes) -> Callable[..., Tensor]:
    """Return the function of one transformer layer: attention and a two-layer perceptron, both residual."""
    d, s, h = sizes.width, sizes.tokens, sizes.heads

    def heads(t: Tensor, part: int, permutation: tuple[int, ...]) -> Tensor:
        t = ops.slice(t, start=[part * d], stop=[(part + 1) * d], axis=[1])
        return ops.transpose(ops.reshape(t, (s, h, d // h)), permutation)

    def layer(x: Tensor, *w: Tensor) -> Tensor:
        qkv = ops.layer_norm(x, w[0], w[1]) @ w[2] + w[3]
        scores = heads(qkv, 0, (1, 0, 2)) @ heads(qkv, 1, (1, 2, 0)) * (1.0 / math.sqrt(d // h))
        mixed = ops.softmax(scores, axis=-1) @ heads(qkv, 2, (1, 0, 2))
        x = x + ops.reshape(ops.transpose(mixed, (1, 0, 2)), (s, d)) @ w[4] + w[5]
        hidden = ops.gelu(ops.layer_norm(x, w[6], w[7]) @ w[8] + w[9])
        return x + hidden @ w[10] + w[11]

    return layer


def build(program: str, sizes: Sizes, seed: int) -> tuple[popxl.Ir, popxl.HostToDeviceStream, popxl.DeviceToHostStream]:
    """Return one of the programs, with its input and output stream."""
    rng = np.random.default_rng(seed)
    ir = popxl.Ir()
    layer = make_layer(sizes)
    count = 1 if program == BASE else sizes.layers
    with ir.main_graph:
        source = popxl.h2d_stream((sizes.tokens, sizes.width), popxl.float32)
        target = popxl.d2h_stream((sizes.tokens, sizes.width), popxl.float32)
        x = ops.host_load(source)
        graph = None
        for _ in range(count):
            w = weights(sizes, rng)
            if program == CONTRAST:
                x = layer(x, *w)
                continue
            if graph is None or program == "separate":
                graph = ir.create_graph(layer, x, *w)
            (x,) = ops.call(graph, x, *w)
        ops.host_store(target, x)
    return ir, source, target


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect the compilations that JAX reports inside the block."""
    events: list[str] = []

    def listen(event: str, _seconds: float, **_: object) -> None:
        if event == COMPILE_EVENT:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def run_once(program: str, sizes: Sizes, seed: int, samples: Samples) -> None:
    """Build a program, make its session with cold caches, run it three times, and add the figures to `samples`."""
    ir, source, target = build(program, sizes, seed)
    x = np.random.default_rng(seed).normal(0.0, 1.0, source.shape).astype(np.float32)
    jax.clear_caches()
    gc.collect()
    sessions: list[popxl.Session] = []
    with compilations() as made:
        samples.session.append(timed(lambda: sessions.append(popxl.Session(ir))))
    session = sessions[0]
    session.weights_to_host_on_exit = False
    outputs = session.create_host_outputs()
    with ExitStack() as attached:
        with compilations() as made_later:
            samples.upload.append(timed(lambda: attached.enter_context(session)))
            samples.first.append(timed(lambda: session.run_with_outputs({source: x}, outputs)))
        samples.result = outputs[target].copy()
        session.run({source: x})
        samples.later.append(timed(lambda: session.run_with_outputs({source: x}, outputs)))
    samples.executables.append(session.executable_count)
    samples.compiled.append(len(made))
    samples.compiled_later.append(len(made_later))


def measure(sizes: Sizes, rounds: int, programs: Sequence[str], *, warm_up: int = 1) -> dict[str, Samples]:
    """Run the programs in turn, every other round backwards, with new weights each round."""
    samples = {program: Samples() for program in programs}
    for i in range(-warm_up, rounds):
        for program in programs if i % 2 == 0 else reversed(programs):
            run_once(program, sizes, 1000 + i, samples[program] if i >= 0 else Samples())
    return samples


def report(samples: dict[str, Samples], base: Samples) -> None:
    """Print a table of the programs next to the `base`."""
    rows: list[list[str]] = []
    for program, s in samples.items():
        rows.append(
            [
                program,
                spread([wall for wall, _ in s.session]),
                spread([wall for wall, _ in s.upload], 1e3, 0),
                spread([wall for wall, _ in s.first], 1e3, 0),
                spread([wall for wall, _ in s.later], 1e3, 0),
                ratio(s.once, base.once),
                spread(s.once.cpu_s),
                ratio(s.once.cpu, base.once.cpu),
                ratio(s.total.cpu, base.total.cpu),
                " / ".join(_counts(c) for c in (s.executables, s.compiled, s.compiled_later)),
            ]
        )
    print_table(
        (
            *("program", "session s", "upload ms", "first run ms", "later run ms", "once: / 1 layer"),
            *("once: CPU s", "once: CPU / 1 layer", "all: CPU / 1 layer", "compiled"),
        ),
        rows,
    )


def _counts(counts: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(counts))))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-contrast", action="store_true", help="leave out the layers written out, which take long")
    args = parser.parse_args(argv)
    sizes = Sizes(args.layers, args.width, args.tokens, args.heads)
    with OtherLoad() as load:
        samples = measure(sizes, args.rounds, (BASE, *TARGETS))
        contrast = {} if args.no_contrast else measure(sizes, 1, (BASE, CONTRAST), warm_up=0)
    base = samples[BASE]
    print(f"{sizes.layers} layers of width {sizes.width}, {sizes.tokens} tokens, {args.rounds} rounds.")
    report(samples, base)
    for program in TARGETS:
        for clock, kind in (("wall", "seconds"), ("CPU", "CPU seconds")):
            a, b = (s.once if clock == "wall" else s.once.cpu for s in (samples[program], base))
            print_verdict(f"what happens once, {program} against 1 layer, in {kind},", median_ratio(a, b), LIMIT)
    if contrast:
        print("\nOne round of the layers written out one after the other, and of 1 layer:")
        report(contrast, contrast[BASE])
    print("once: the session, and the first run less a later one. all: the session, the upload and the first run.")
    print("compiled: executables of the session / compilations that JAX reported for it / and from then to the result.")
    print("Not measured: gradients, other devices, a persistent cache.")
    print(load.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
