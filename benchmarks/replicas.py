"""What several replicas on one CPU cost: time for each sample, and memory. Target: 1.15 of one replica's time.

A step of the transformer stack of the yardstick, trained by Adam with its weights and moments in Streaming Memory (RAM
tier): all replicas on one device, each with its part of the batch. Two programs:

* *equal*: each replica has all weights; gradients are all-reduced, and the update is made once;
* *sharded*: rows are sharded over the replicas; weights are gathered, gradients reduced and scattered.

Two comparisons with one replica of the *equal* program:

* *same total*: the batch is divided over the replicas, so that both sides compute the same;
* *same each*: each replica has a batch of the size that the one replica has; seconds are for each sample.

Then memory, as figures and as measured: weights of a data-parallel program on the device, eight replicas over one
(target: 1.2), and host memory of a sharded variable over its own size (target: 1.2).

Not measured: several devices, several processes, GPUs, files, other optimisers, tensor parallelism.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from _measure import OtherLoad, alternate, median_ratio, print_table, print_verdict, ratio, spread
from streamed_stack import BETA1, BETA2, EPS, RATE, Sizes, block, row_of

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates
from popxl.ops.collectives import replicated_all_gather, replicated_all_reduce, replicated_reduce_scatter
from popxl.tensor import Tensor

Array = np.ndarray[Any, Any]
TIME_LIMIT, MEMORY_LIMIT = 1.15, 1.2
MIB = 1 << 20
WAYS = ("equal", "sharded")


# ---------------------------------------------------------------- the step


@dataclass(frozen=True, slots=True)
class Program:
    """A program that makes one step in one run."""

    ir: popxl.Ir
    x_in: popxl.HostToDeviceStream
    loss: popxl.DeviceToHostStream


def initial_weights(sizes: Sizes, layer: int) -> Array:
    """The weights of a layer, one after the other: matrices at random, norms at one, biases at zero."""
    rng = np.random.default_rng(layer)

    def make(name: str, shape: tuple[int, ...]) -> Array:
        if len(shape) == 2:
            return rng.standard_normal(shape, np.float32) * np.float32(0.5 * shape[1] ** -0.5)
        return np.full(shape, 1.0 if name in ("ln1w", "ln2w") else 0.0, np.float32)

    return np.concatenate([make(name, shape).ravel() for name, shape in sizes.shapes.items()])


class State:
    """Weights and moments of the layers, each a list of remote buffers: one for each row of a layer."""

    def __init__(self, sizes: Sizes, is_sharded: bool) -> None:
        self._is_sharded = is_sharded
        make = popxl.replica_sharded_buffer if is_sharded else popxl.remote_buffer
        self.weights, self.firsts, self.seconds = (
            [make(shape, popxl.float32, entries=sizes.layers) for shape in sizes.rows.values()] for _ in range(3)
        )
        variable = popxl.remote_replica_sharded_variable if is_sharded else popxl.remote_variable
        for i in range(sizes.layers):
            flat = initial_weights(sizes, i)
            for buffer, row in zip(self.weights, sizes.rows, strict=True):
                variable(row_of(sizes, flat, row), buffer, i)

    def whole_weights(self, i: Tensor) -> list[Tensor]:
        """The rows of a layer's weights."""
        rows = [ops.remote_load(buffer, i) for buffer in self.weights]
        return [replicated_all_gather(row) for row in rows] if self._is_sharded else rows

    def update(self, i: Tensor, step: Tensor, grads: Sequence[Tensor]) -> None:
        """One update by Adam; the gradients are those of a replica's own samples."""
        for w_buffer, m_buffer, v_buffer, grad in zip(self.weights, self.firsts, self.seconds, grads, strict=True):
            g = (
                replicated_reduce_scatter(grad, "mean", configure_output_for_replicated_tensor_sharding=True)
                if self._is_sharded
                else replicated_all_reduce(grad, "mean")
            )
            w, m, v = (ops.remote_load(buffer, i) for buffer in (w_buffer, m_buffer, v_buffer))
            m = m * BETA1 + g * (1 - BETA1)
            v = v * BETA2 + g * g * (1 - BETA2)
            # The updater counts the step in a tensor of its own.
            x = var_updates.adam_updater(m, v, time_step=step + 0.0, beta1=BETA1, beta2=BETA2, epsilon=EPS)
            for buffer, value in ((w_buffer, w - x * RATE), (m_buffer, m), (v_buffer, v)):
                ops.remote_store(buffer, i, value)


def training(sizes: Sizes, replicas: int, is_sharded: bool) -> Program:
    """A step of `replicas` replicas with `sizes.batch` samples each."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        x_in = popxl.h2d_stream(sizes.input_shape, popxl.float32)
        loss = popxl.d2h_stream((), popxl.float32)
        state = State(sizes, is_sharded)
        step = popxl.variable(0.0, name="step")
        x = ops.host_load(x_in)
        i = popxl.constant(0, popxl.uint32)
        rows = [popxl.TensorSpec(shape, popxl.float32) for shape in sizes.rows.values()]
        block_graph = ir.create_graph(lambda x, rows: block(sizes, x, rows), x, rows)
        gradients = transforms.autodiff(block_graph)

        def forward(x: Tensor, i: Tensor) -> Tensor:
            return block(sizes, x, state.whole_weights(i))

        def backward(x: Tensor, grad: Tensor, i: Tensor, step: Tensor) -> Tensor:
            call = ops.call_with_info(block_graph, x, state.whole_weights(i))
            grad, *grads = ops.call(gradients.graph, grad, inputs_dict=gradients.inputs_dict(call))
            state.update(i, step, grads)
            return grad

        forward_graph = ir.create_graph(forward, x, i)
        backward_graph = ir.create_graph(backward, x, x, i, step)
        inputs: list[Tensor] = []
        for k in range(sizes.layers):
            inputs.append(x)
            (x,) = ops.call(forward_graph, x, popxl.constant(k, popxl.uint32))
        ops.host_store(loss, replicated_all_reduce(ops.mean(x * x), "mean"))
        grad = x * (2.0 / x.nelms)
        for k in reversed(range(sizes.layers)):
            (grad,) = ops.call(backward_graph, inputs[k], grad, popxl.constant(k, popxl.uint32), step)
        step += 1
    return Program(ir, x_in, loss)


# ---------------------------------------------------------------- time


@dataclass(slots=True)
class Side:
    """A program that runs, and the losses of its steps."""

    session: popxl.Session
    run: Callable[[], None]
    losses: list[float]
    samples: int


def start(sizes: Sizes, replicas: int, is_sharded: bool) -> Side:
    """Compile and attach a program, and make one step."""
    program = training(sizes, replicas, is_sharded)
    session = popxl.Session(program.ir, weights_to_host_on_exit=False, devices=1)
    samples = replicas * sizes.batch
    x = np.random.default_rng(0).standard_normal((samples, sizes.tokens, sizes.width), np.float32)
    x = x if replicas == 1 else x.reshape(replicas, *sizes.input_shape)
    losses: list[float] = []

    def run() -> None:
        losses.append(float(np.ravel(session.run({program.x_in: x})[program.loss])[0]))
        session.wait()

    session.__enter__()
    run()
    return Side(session, run, losses, samples)


def measure_time(sizes: Sizes, counts: Sequence[int], rounds: int) -> None:
    """Time all programs in turn."""
    most = max(counts)
    cases = {("equal", 1, most): (1, False), ("equal", 1, 1): (1, False)}
    cases |= {(way, r, most // r): (r, way == "sharded") for way in WAYS for r in counts if r > 1}
    cases |= {(way, r, 1): (r, way == "sharded") for way in WAYS for r in counts if r > 1}
    sides: dict[tuple[str, int, int], Side] = {}
    try:
        for case, (replicas, is_sharded) in cases.items():
            sides[case] = start(replace(sizes, batch=case[2]), replicas, is_sharded)
        check_losses(sides)
        with OtherLoad() as load:
            timings = alternate({repr(case): side.run for case, side in sides.items()}, rounds)
    finally:
        for side in sides.values():
            side.session.__exit__(None, None, None)
    per_sample = {case: timings[repr(case)].per(side.samples) for case, side in sides.items()}
    rows, worst = [], {"same total": 0.0, "same each": 0.0}
    for case, timing in per_sample.items():
        way, replicas, batch = case
        for comparison, base in (("same total", ("equal", 1, most)), ("same each", ("equal", 1, 1))):
            if batch * replicas == most if comparison == "same total" else batch == 1:
                one = per_sample[base]
                rows.append([
                    comparison, way, str(replicas), str(batch), spread(timing.wall_s, 1e3, 1), ratio(timing, one),
                    ratio(timing.cpu, one.cpu),
                ])  # fmt: skip
                if replicas > 1:
                    worst[comparison] = max(worst[comparison], median_ratio(timing, one))
    rows.sort(key=lambda row: (row[0] != "same total", WAYS.index(row[1]), int(row[2])))
    print_table(
        ("comparison", "program", "replicas", "batch of each", "ms a sample", "over one replica", "in CPU seconds"),
        rows,
    )
    for comparison, value in worst.items():
        print_verdict(f"time for a sample over one replica's, {comparison}, at worst", value, TIME_LIMIT)
    print(load.text())


def check_losses(sides: dict[tuple[str, int, int], Side]) -> None:
    """Programs with the same samples must have the same loss."""
    of_total: dict[int, list[float]] = {}
    for side in sides.values():
        of_total.setdefault(side.samples, []).append(side.losses[0])
    for losses in of_total.values():
        if not np.allclose(losses, losses[0], rtol=1e-5):
            raise AssertionError(f"programs of the same samples have losses {losses}")


# ---------------------------------------------------------------- memory


def resident(replicas: int, width: int) -> tuple[int, int]:
    """Bytes of the weights of a data-parallel program on the device: as planned, and as they lie there."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        x_in = popxl.h2d_stream((2, width), popxl.float32)
        weights = [popxl.variable(np.eye(width, dtype=np.float32), name=f"w{i}") for i in range(4)]
        graph = ir.create_graph(lambda x, ws: ops.relu(ops.relu(x @ ws[0]) @ ws[1]) @ ws[2] @ ws[3], x_in.spec, weights)
        gradients = transforms.autodiff(graph, grads_required=graph.inputs[1:])
        call = ops.call_with_info(graph, ops.host_load(x_in), weights)
        grads = ops.call(gradients.graph, call.outputs[0], inputs_dict=gradients.inputs_dict(call))
        for w, grad in zip(weights, grads, strict=True):
            ops.scaled_add_(w, replicated_all_reduce(grad, "mean"), b=-1e-3)
    session = popxl.Session(ir, weights_to_host_on_exit=False, devices=1)
    names = {w.name for w in weights}
    planned = sum(t.bytes for t in session.figures.device.live if t.is_fixed and t.name in names)
    x = np.ones((replicas, 2, width) if replicas > 1 else (2, width), np.float32)
    with session:
        session.run({x_in: x})
        session.wait()
        held = {id(a): a.nbytes for v, a in session._weights.values.items() if v.name in names}  # pyright: ignore[reportPrivateUsage]
        measured = sum(held.values())
    return planned, measured


def sharded(replicas: int, width: int) -> tuple[int, int, int]:
    """Size of a sharded variable, and its bytes in host memory: as planned, and as the RAM tier has them."""
    ir = popxl.Ir(replication=replicas)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.replica_sharded_buffer((width, width), popxl.float32)
        v = popxl.remote_replica_sharded_variable(np.ones((width, width), np.float32), buffer)
        ops.remote_store(buffer, 0, ops.remote_load(buffer, 0) * 2.0)
    session = popxl.Session(ir, weights_to_host_on_exit=False, devices=1)
    with session:
        session.run()
        session.wait()
        row = session.streaming_memory.tier.load(buffer.remote_buffer_id, 0)
        measured = int(np.asarray(row).nbytes)
    return 4 * math.prod(v.shape), session.figures.streaming_bytes, measured


def measure_memory(replicas: int, width: int) -> None:
    """Print what eight replicas have once."""
    one, many = resident(1, width), resident(replicas, width)
    size, planned, held = sharded(replicas, width)

    def row(what: str, found: int, base: int) -> list[str]:
        return [what, f"{found / MIB:.2f}", f"{base / MIB:.2f}", f"{found / base:.2f}"]

    rows = [
        row(f"weights on the device, {replicas} replicas over 1, planned", many[0], one[0]),
        row(f"weights on the device, {replicas} replicas over 1, held", many[1], one[1]),
        row(f"variable sharded over {replicas}, in host memory over its size, planned", planned, size),
        row(f"variable sharded over {replicas}, in host memory over its size, held", held, size),
    ]
    print_table(("memory", "MiB", "over MiB", "ratio"), rows)
    print_verdict(
        f"weights of {replicas} replicas over those of one",
        max(a / b for a, b in zip(many, one, strict=True)),
        MEMORY_LIMIT,
    )
    print_verdict("a sharded variable over its size", max(planned, held) / size, MEMORY_LIMIT)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=512, help="features; there are four times as many hidden ones")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--replicas", default="1,2,4,8", help="numbers of replicas, powers of two joined by commas")
    options = parser.parse_args(arguments)
    counts = [int(r) for r in options.replicas.split(",")]
    width = options.width
    sizes = Sizes(options.layers, 1, width, max(1, width // 64), 4 * width, options.tokens)
    print(
        f"{sizes.layers} layers of {sizes.layer_bytes / MIB:.1f} MiB, {sizes.tokens} tokens a sample, "
        f"{options.rounds} rounds."
    )
    measure_time(sizes, counts, options.rounds)
    gc.collect()
    measure_memory(max(counts), width)


if __name__ == "__main__":
    main()
