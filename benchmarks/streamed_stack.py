"""The transformer stack of the yardstick as programs whose weights, and Adam's state, live in Streaming Memory.

A layer's four matrices are rows of a remote buffer each, and its eight vectors one row together: a matrix that is a row
of its own goes into a computation without a copy. `forward` and `training` build the programs; the benchmarks run them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates
from popxl.tensor import Tensor

RATE, BETA1, BETA2, EPS = 1e-5, 0.9, 0.999, 1e-8
Array = np.ndarray[Any, Any]
#: Gives the weights of a layer, one after the other in one array.
Source = Callable[[int], Array]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the model: layers, features, heads, hidden features, samples, tokens of each."""

    layers: int
    batch: int
    width: int = 1024
    heads: int = 16
    hidden: int = 4096
    tokens: int = 128

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights of a layer, in the yardstick's order."""
        d, f = self.width, self.hidden
        return {
            "ln1w": (d,), "ln1b": (d,), "wqkv": (3 * d, d), "bqkv": (3 * d,), "wo": (d, d), "bo": (d,),
            "ln2w": (d,), "ln2b": (d,), "w1": (f, d), "b1": (f,), "w2": (d, f), "b2": (d,),
        }  # fmt: skip

    @property
    def vectors(self) -> dict[str, tuple[int, ...]]:
        """Those that share a row."""
        return {name: shape for name, shape in self.shapes.items() if len(shape) == 1}

    @property
    def rows(self) -> dict[str, tuple[int, ...]]:
        """What a layer's rows are."""
        matrices = {name: shape for name, shape in self.shapes.items() if len(shape) == 2}
        return {**matrices, "vectors": (sum(n for (n,) in self.vectors.values()),)}

    @property
    def layer_bytes(self) -> int:
        """Bytes of the weights of a layer."""
        return 4 * sum(int(np.prod(shape)) for shape in self.rows.values())

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of what goes through the layers."""
        return (self.batch, self.tokens, self.width)


def row_of(sizes: Sizes, flat: Array, row: str) -> Array:
    """One row of a layer, from its weights one after the other."""
    parts: dict[str, Array] = {}
    start = 0
    for name, shape in sizes.shapes.items():
        count = int(np.prod(shape))
        parts[name] = flat[start : start + count].reshape(shape)
        start += count
    return parts[row] if row in parts else np.concatenate([parts[name] for name in sizes.vectors])


def block(sizes: Sizes, x: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """One layer: attention and a feed-forward part, pre-norm."""
    w = dict(zip(sizes.rows, rows, strict=True))
    start = 0
    for name, (count,) in sizes.vectors.items():
        w[name] = ops.slice(w["vectors"], start, start + count, axis=0)
        start += count
    batch, tokens, d = sizes.input_shape
    size = d // sizes.heads
    x = x.reshape((batch * tokens, d))
    h = ops.layer_norm(x, w["ln1w"], w["ln1b"])
    qkv = (h @ w["wqkv"].transpose() + w["bqkv"]).reshape((batch, tokens, 3, sizes.heads, size))
    q, k, v = (ops.squeeze(part, [2]) for part in ops.split(qkv, 3, axis=2))
    scores = ops.softmax((q.transpose((0, 2, 1, 3)) @ k.transpose((0, 2, 3, 1))) * size**-0.5, -1)
    attended = (scores @ v.transpose((0, 2, 1, 3))).transpose((0, 2, 1, 3)).reshape((batch * tokens, d))
    x = x + (attended @ w["wo"].transpose() + w["bo"])
    h = ops.layer_norm(x, w["ln2w"], w["ln2b"])
    x = x + (ops.geluerf(h @ w["w1"].transpose() + w["b1"]) @ w["w2"].transpose() + w["b2"])
    return x.reshape(sizes.input_shape)


def _buffers(sizes: Sizes, source: Source | None, copies: int = 1) -> list[popxl.RemoteBuffer]:
    """A buffer for each row of a layer; entry i * copies + k is copy k for layer i. Without a source, zeros."""

    def lazy(layer: int, row: str, shape: tuple[int, ...]) -> Callable[[], Array]:
        return lambda: np.zeros(shape, np.float32) if source is None else row_of(sizes, source(layer), row)

    buffers: list[popxl.RemoteBuffer] = []
    for row, shape in sizes.rows.items():
        buffer = popxl.remote_buffer(shape, popxl.float32, sizes.layers * copies)
        for entry in range(sizes.layers * copies):
            popxl.remote_variable(lazy(entry // copies, row, shape), buffer, entry)
        buffers.append(buffer)
    return buffers


@dataclass(frozen=True, slots=True)
class Program:
    """A program with one input, the activations, and one output."""

    ir: popxl.Ir
    x_in: popxl.HostToDeviceStream
    out: popxl.DeviceToHostStream


def forward(sizes: Sizes, source: Source) -> Program:
    """The layers, one after the other, each loaded when it is needed."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x_in = popxl.h2d_stream(sizes.input_shape, popxl.float32)
        out = popxl.d2h_stream(sizes.input_shape, popxl.float32)
        buffers = _buffers(sizes, source)
        x = ops.host_load(x_in)

        def layer(x: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
            rows = [ops.remote_load(buffer, i) for buffer in buffers]
            return block(sizes, x, rows), i + 1

        i = popxl.constant(0, popxl.uint32)
        x, _ = ops.repeat(ir.create_graph(layer, x, i), sizes.layers, x, i)
        ops.host_store(out, x)
    return Program(ir, x_in, out)


def training(sizes: Sizes, source: Source) -> Program:
    """A step of Adam; the output is the loss before it. Weights and moments are loaded and stored layer by layer.

    The inputs of the layers stay on the device; the backward pass computes each layer anew.
    """
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        x_in = popxl.h2d_stream(sizes.input_shape, popxl.float32)
        out = popxl.d2h_stream((), popxl.float32)
        weights, moments = _buffers(sizes, source), _buffers(sizes, None, copies=2)
        step = popxl.variable(0.0, name="step")
        x = ops.host_load(x_in)
        rows = [popxl.TensorSpec(shape, popxl.float32) for shape in sizes.rows.values()]
        i = popxl.constant(0, popxl.uint32)

        block_graph = ir.create_graph(lambda x, rows: block(sizes, x, rows), x, rows)
        gradients = transforms.autodiff(block_graph)

        def layer(x: Tensor, i: Tensor) -> Tensor:
            return block(sizes, x, [ops.remote_load(buffer, i) for buffer in weights])

        def backward(x: Tensor, grad: Tensor, i: Tensor, step: Tensor) -> Tensor:
            ws = [ops.remote_load(buffer, i) for buffer in weights]
            moment_rows = [(i * 2, i * 2 + 1)] * len(moments)
            ms = [
                tuple(ops.remote_load(buffer, row) for row in pair)
                for buffer, pair in zip(moments, moment_rows, strict=True)
            ]
            call = ops.call_with_info(block_graph, x, ws)
            grad, *grads = ops.call(gradients.graph, grad, inputs_dict=gradients.inputs_dict(call))
            updated = ops.call(adam, step, ws, [m for m, _ in ms], [v for _, v in ms], grads)
            for k, (buffer, moment, pair) in enumerate(zip(weights, moments, moment_rows, strict=True)):
                w, m, v = updated[k], updated[len(ws) + k], updated[2 * len(ws) + k]
                ops.remote_store(buffer, i, w)
                ops.remote_store(moment, pair[0], m)
                ops.remote_store(moment, pair[1], v)
            return grad

        adam = ir.create_graph(_adam, step, rows, rows, rows, rows)
        layer_graph = ir.create_graph(layer, x, i)
        backward_graph = ir.create_graph(backward, x, x, i, step)
        inputs: list[Tensor] = []
        for k in range(sizes.layers):
            inputs.append(x)
            (x,) = ops.call(layer_graph, x, popxl.constant(k, popxl.uint32))
        ops.host_store(out, ops.mean(x * x))
        grad = x * (2.0 / float(np.prod(sizes.input_shape)))
        for k in reversed(range(sizes.layers)):
            (grad,) = ops.call(backward_graph, inputs[k], grad, popxl.constant(k, popxl.uint32), step)
        step += 1
    return Program(ir, x_in, out)


def _adam(step: Tensor, ws: list[Tensor], ms: list[Tensor], vs: list[Tensor], gs: list[Tensor]) -> tuple[Tensor, ...]:
    """Adam for each row of a layer; returns weights, first and second moments."""
    new_ws: list[Tensor] = []
    new_ms: list[Tensor] = []
    new_vs: list[Tensor] = []
    for w, m, v, g in zip(ws, ms, vs, gs, strict=True):
        m = m * BETA1 + g * (1 - BETA1)
        v = v * BETA2 + g * g * (1 - BETA2)
        # The updater counts the step in a tensor of its own.
        x = var_updates.adam_updater(m, v, time_step=step + 0.0, beta1=BETA1, beta2=BETA2, epsilon=EPS)
        new_ws.append(w - x * RATE)
        new_ms.append(m)
        new_vs.append(v)
    return (*new_ws, *new_ms, *new_vs)
