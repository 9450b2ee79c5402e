"""Trains a language model whose weights and optimiser state are twenty times larger than the memory of the device.

The model is a deep transformer over bytes; the text is the source code of Python's own standard library. All weights
and both moments of Adam are rows of remote buffers in files. A step visits the layers one after the other, and takes
all micro-batches through a layer before it goes on: each layer's weights are loaded twice a step, its moments once, and
the device never holds more than a few layers. What the layers were given on the way up is kept in files as well.

    ./dev demo --train                                      about ten minutes on two cores; goes on where it stopped
    python examples/train_larger_than_memory.py --steps 20  the same by hand
    python examples/train_larger_than_memory.py --resident  the state on the device: the same losses, bit for bit

Every tenth step is committed. Kill the process whenever you like, `kill -9` too, and start it again: it goes on from
the last commit, and its losses are those of a run that was never killed. The folder of `--out` then has the losses, the
state, and pictures of the loss, of memory over time, and of what waited for what.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

import popxl
from popxl import observe, ops, transforms
from popxl.ops import var_updates
from popxl.ops.call import CallSiteInfo
from popxl.tensor import Variable
from popxl.units import format_bytes, parse_bytes

Array = np.ndarray[Any, Any]
Tensors = Sequence[popxl.Tensor]

SYMBOLS = 256
BETA1, BETA2, EPSILON = 0.9, 0.95, 1e-8
#: What is added to the attention scores of later positions.
MASKED = -1e9
#: What training keeps of each weight; moments start as zeros.
KINDS = ("weight", "first", "second")
#: For what is computed with, and for rows on their way.
DEVICE_MEMORY, HOST_MEMORY = "48MiB", "64MiB"
#: Steps at the end of which every row is recorded.
TRACED = 2


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes: layers, features, heads, symbols in a sequence, sequences in a micro-batch, micro-batches in a step."""

    layers: int = 112
    width: int = 256
    heads: int = 4
    length: int = 128
    batch: int = 4
    micro_batches: int = 4
    learning_rate: float = 1e-3
    warm_up: int = 10

    @property
    def outer(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights outside of the layers."""
        d = self.width
        return {"symbols": (SYMBOLS, d), "positions": (self.length, d), "scale": (d,), "shift": (d,)}

    @property
    def layer(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights of a layer: scales and shifts of both norms are one row together."""
        d = self.width
        return {"norms": (4, d), "qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}

    @property
    def x(self) -> popxl.TensorSpec:
        """What goes from layer to layer, of one micro-batch."""
        return popxl.TensorSpec((self.batch * self.length, self.width), popxl.float32)

    @property
    def state_bytes(self) -> int:
        """Bytes of all weights and moments."""
        count = sum(map(math.prod, self.outer.values())) + self.layers * sum(map(math.prod, self.layer.values()))
        return len(KINDS) * 4 * count


# ---------------------------------------------------------------- text and weights


def read_text(size: int) -> Array:
    """Return the first `size` bytes, uint8, of the standard library's modules in the order of their names."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return np.frombuffer(b"".join(file.read_bytes() for file in files)[:size], np.uint8)


def draw_batches(text: Array, config: Config, step: int) -> Array:
    """Return what a step trains with: (micro_batches, batch, length + 1), int32, at random but always the same."""
    rng = np.random.default_rng([2, step])
    starts = rng.integers(0, len(text) - config.length, (config.micro_batches, config.batch, 1))
    return text[starts + np.arange(config.length + 1)].astype(np.int32)


def initial(config: Config, kind: str, name: str, layer: int = 0) -> Array:
    """Make the first value of one row, float32. It is called when the row is uploaded, so no two are in memory."""
    shape = (config.layer | config.outer)[name]
    if kind != "weight" or name == "shift":
        return np.zeros(shape, np.float32)
    if name == "scale":
        return np.ones(shape, np.float32)
    if name == "norms":
        return np.repeat(np.asarray([1, 0, 1, 0], np.float32), config.width).reshape(shape)
    # What a layer adds to its input starts smaller the more layers there are.
    deviation = 0.02 / math.sqrt(2 * config.layers) if name in ("out", "down") else 0.02
    rng = np.random.default_rng([3, layer, *name.encode()])
    return deviation * rng.standard_normal(shape, np.float32)


# ---------------------------------------------------------------- the model, as functions of tensors


def embed(config: Config, ids: popxl.Tensor, symbols: popxl.Tensor, positions: popxl.Tensor) -> popxl.Tensor:
    """Look up symbols and their positions: (batch, length) to (batch * length, width)."""
    return (ops.gather(symbols, ids) + positions).reshape((-1, config.width))


def transformer_layer(config: Config, x: popxl.Tensor, weights: Tensors) -> popxl.Tensor:
    """Add attention to earlier positions, then a network of two layers: (rows, width), as `x`."""
    norms, qkv, out, up, down = weights
    length, heads, size = config.length, config.heads, config.width // config.heads
    scale1, shift1, scale2, shift2 = (ops.squeeze(part, [0]) for part in ops.split(norms, 4, axis=0))
    later = popxl.constant(np.triu(np.full((length, length), MASKED), 1), popxl.float32, "later")
    h = ops.layer_norm(x, scale1, shift1) @ qkv
    h = h.reshape((-1, length, 3, heads, size)).transpose((2, 0, 3, 1, 4))
    query, key, value = (ops.squeeze(part, [0]) for part in ops.split(h, 3, axis=0))
    scores = (query * size**-0.5) @ key.transpose((0, 1, 3, 2)) + later
    attended = (ops.softmax(scores, axis=-1) @ value).transpose((0, 2, 1, 3)).reshape(x.shape)
    x = x + attended @ out
    return x + ops.gelu(ops.layer_norm(x, scale2, shift2) @ up) @ down


def predict(x: popxl.Tensor, symbols: popxl.Tensor, scale: popxl.Tensor, shift: popxl.Tensor) -> popxl.Tensor:
    """Compare with the table of symbols that `embed` looks up: activations to scores, (rows, 256)."""
    return ops.layer_norm(x, scale, shift) @ symbols.T


def adam(steps: popxl.Tensor, rate: popxl.Tensor, weights: Tensors, firsts: Tensors, seconds: Tensors, grads: Tensors):
    """Return new weights, first and second moments."""
    updated: list[list[popxl.Tensor]] = [[], [], []]
    for w, m, v, grad in zip(weights, firsts, seconds, grads, strict=True):
        m = m * BETA1 + grad * (1 - BETA1)
        v = v * BETA2 + grad * grad * (1 - BETA2)
        # The updater counts the step in a tensor of its own.
        x = var_updates.adam_updater(m, v, time_step=steps + 0.0, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
        for values, value in zip(updated, (w - x * rate, m, v), strict=True):
            values.append(value)
    return [t for values in updated for t in values]


def plus(sums: Tensors, others: Tensors) -> list[popxl.Tensor]:
    """Add up gradients, each with its own; the first of them have no sums yet."""
    return [a + b for a, b in zip(sums, others, strict=True)] if sums else list(others)


class Layer:
    """What is computed for one layer, as three graphs: the same wherever its state is, so the same bits."""

    def __init__(self, config: Config, steps: popxl.Tensor, rate: popxl.Tensor) -> None:
        ir = popxl.gcg().ir
        weights = [popxl.TensorSpec(shape, popxl.float32) for shape in config.layer.values()]
        xs = [config.x] * config.micro_batches
        one = ir.create_graph(transformer_layer, config, config.x, weights)
        gradients = transforms.autodiff(one)

        def forward(xs: list[popxl.Tensor], weights: list[popxl.Tensor]) -> list[popxl.Tensor]:
            return [ops.call(one, x, weights)[0] for x in xs]

        def backward(
            xs: list[popxl.Tensor], dxs: list[popxl.Tensor], weights: list[popxl.Tensor]
        ) -> list[popxl.Tensor]:
            lower: list[popxl.Tensor] = []
            sums: list[popxl.Tensor] = []
            for x, dx in zip(xs, dxs, strict=True):
                call = ops.call_with_info(one, x, weights)
                dx, *grads = ops.call(gradients.graph, dx, inputs_dict=gradients.inputs_dict(call))
                lower.append(dx)
                # At once, so that the gradients of two micro-batches are there at a time, and no more.
                sums = plus(sums, grads)
            return lower + sums

        #: Activations and weights to activations.
        self.forward = ir.create_graph(forward, xs, weights)
        #: Activations, their gradients and weights to gradients: of activations one layer lower, and of the weights.
        self.backward = ir.create_graph(backward, xs, xs, weights)
        #: Weights, both moments and the gradients of the weights to new weights and moments.
        self.update = ir.create_graph(adam, steps, rate, weights, weights, weights, weights)


# ---------------------------------------------------------------- where the state is


class Streamed:
    """The state in remote buffers, one for each weight and each of `KINDS`; entry i is that of layer i."""

    def __init__(self, config: Config) -> None:
        self.count, self.micro_batches = config.layers, config.micro_batches
        self.outer: list[Variable] = []
        self.layers: list[list[Variable]] = [[] for _ in range(config.layers)]
        self.buffers: dict[str, list[popxl.RemoteBuffer]] = {kind: [] for kind in KINDS}
        self.outer_buffers: dict[str, list[popxl.RemoteBuffer]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            for name, shape in config.outer.items():
                buffer = popxl.remote_buffer(shape, popxl.float32, entries=1)
                self.outer_buffers[kind].append(buffer)
                value = partial(initial, config, kind, name)
                variable = popxl.remote_variable(value, buffer, 0, name=f"{kind}.{name}")
                if kind == "weight":
                    self.outer.append(variable)
            for name, shape in config.layer.items():
                buffer = popxl.remote_buffer(shape, popxl.float32, entries=config.layers)
                self.buffers[kind].append(buffer)
                for i, weights in enumerate(self.layers):
                    value = partial(initial, config, kind, name, i)
                    variable = popxl.remote_variable(value, buffer, i, name=f"{kind}.layer{i}.{name}")
                    if kind == "weight":
                        weights.append(variable)
        # What each layer was given by each micro-batch, kept for the way back. No variables: it needs no commit.
        self.inputs = popxl.remote_buffer(config.x.shape, popxl.float32, entries=config.layers * config.micro_batches)

    def load_outer(self, kind: str) -> list[popxl.Tensor]:
        """Weights or moments outside of the layers."""
        return [ops.remote_load(buffer, 0) for buffer in self.outer_buffers[kind]]

    def store_outer(self, kind: str, tensors: Tensors) -> None:
        for buffer, t in zip(self.outer_buffers[kind], tensors, strict=True):
            ops.remote_store(buffer, 0, t)

    def _load(self, kind: str, i: popxl.Tensor) -> list[popxl.Tensor]:
        return [ops.remote_load(buffer, i) for buffer in self.buffers[kind]]

    def forward(self, layer: Layer, xs: list[popxl.Tensor]) -> list[popxl.Tensor]:
        def visit(i: popxl.Tensor, xs: list[popxl.Tensor]) -> list[popxl.Tensor]:
            for m, x in enumerate(xs):
                ops.remote_store(self.inputs, i * self.micro_batches + m, x)
            return [i + 1, *ops.call(layer.forward, xs, self._load("weight", i))]

        first = popxl.constant(0, popxl.uint32)
        _, *xs = ops.repeat(popxl.gcg().ir.create_graph(visit, first, xs), self.count, first, xs)
        return xs

    def backward(
        self, layer: Layer, dxs: list[popxl.Tensor], steps: popxl.Tensor, rate: popxl.Tensor
    ) -> list[popxl.Tensor]:
        def visit(
            after: popxl.Tensor, dxs: list[popxl.Tensor], steps: popxl.Tensor, rate: popxl.Tensor
        ) -> list[popxl.Tensor]:
            i = after - 1
            xs = [ops.remote_load(self.inputs, i * self.micro_batches + m) for m in range(self.micro_batches)]
            weights = self._load("weight", i)
            results = list(ops.call(layer.backward, xs, dxs, weights))
            dxs, grads = results[: len(xs)], results[len(xs) :]
            # Only now, so that they take no memory meanwhile.
            moments = [self._load(kind, i) for kind in KINDS[1:]]
            state = ops.call(layer.update, steps, rate, weights, *moments, grads)
            buffers = [buffer for kind in KINDS for buffer in self.buffers[kind]]
            for buffer, new in zip(buffers, state, strict=True):
                ops.remote_store(buffer, i, new)
            return [i, *dxs]

        end = popxl.constant(self.count, popxl.uint32)
        body = popxl.gcg().ir.create_graph(visit, end, dxs, steps, rate)
        _, *dxs = ops.repeat(body, self.count, end, dxs, steps, rate)
        return dxs


class Resident:
    """The state in variables on the device."""

    def __init__(self, config: Config) -> None:
        def variables(kind: str, names: Iterable[str], layer: int = 0) -> list[Variable]:
            return [popxl.variable(initial(config, kind, n, layer), name=f"{kind}.layer{layer}.{n}") for n in names]

        self.outer_state = {kind: variables(kind, config.outer) for kind in KINDS}
        self.outer = self.outer_state["weight"]
        self.layers = [variables("weight", config.layer, i) for i in range(config.layers)]
        self.moments = [
            variables("first", config.layer, i) + variables("second", config.layer, i) for i in range(config.layers)
        ]

    def load_outer(self, kind: str) -> list[popxl.Tensor]:
        return list[popxl.Tensor](self.outer_state[kind])

    def store_outer(self, kind: str, tensors: Tensors) -> None:
        for variable, t in zip(self.outer_state[kind], tensors, strict=True):
            var_updates.copy_var_update_(variable, t)

    def forward(self, layer: Layer, xs: list[popxl.Tensor]) -> list[popxl.Tensor]:
        self.inputs: list[list[popxl.Tensor]] = []
        for weights in self.layers:
            self.inputs.append(xs)
            xs = list(ops.call(layer.forward, xs, weights))
        return xs

    def backward(
        self, layer: Layer, dxs: list[popxl.Tensor], steps: popxl.Tensor, rate: popxl.Tensor
    ) -> list[popxl.Tensor]:
        for i in reversed(range(len(self.layers))):
            xs, state = self.inputs[i], [*self.layers[i], *self.moments[i]]
            results = list(ops.call(layer.backward, xs, dxs, self.layers[i]))
            dxs, grads = results[: len(xs)], results[len(xs) :]
            for variable, new in zip(state, ops.call(layer.update, steps, rate, state, grads), strict=True):
                var_updates.copy_var_update_(variable, new)
        return dxs


# ---------------------------------------------------------------- the programs


@dataclass(frozen=True, slots=True)
class Training:
    """A program that makes one step in one run, its streams, and its weights: the outer ones, and each layer's."""

    ir: popxl.Ir
    symbols: popxl.HostToDeviceStream
    rate: popxl.HostToDeviceStream
    loss: popxl.DeviceToHostStream
    steps: Variable
    outer: Sequence[Variable]
    layers: Sequence[Sequence[Variable]]


def build_training(config: Config, *, resident: bool = False) -> Training:
    """Build the program that makes one step: every micro-batch through every layer, back, and the update."""
    ir = popxl.Ir()
    count = config.micro_batches
    with ir.main_graph, popxl.in_sequence():
        symbols_stream = popxl.h2d_stream((count, config.batch, config.length + 1), popxl.int32, name="symbols")
        rate_stream = popxl.h2d_stream((), popxl.float32, name="rate")
        loss_stream = popxl.d2h_stream((), popxl.float32, name="loss")
        steps = popxl.variable(0.0, popxl.float32, name="steps")
        ids, rate = ops.host_load(symbols_stream), ops.host_load(rate_stream)
        layer = Layer(config, steps, rate)
        home = Resident(config) if resident else Streamed(config)
        symbols, positions, *norm = home.load_outer("weight")

        parts = [ops.squeeze(part, [0]) for part in ops.split(ids, count, axis=0)]
        embedding = ir.create_graph(embed, config, parts[0][:, :-1], symbols, positions)
        embedded = [ops.call_with_info(embedding, part[:, :-1], symbols, positions) for part in parts]
        xs = home.forward(layer, [call.outputs[0] for call in embedded])

        prediction = ir.create_graph(predict, config.x, symbols, *norm)
        prediction_gradients = transforms.autodiff(prediction)
        losses, grads = [], list[list[popxl.Tensor]]()
        for x, part in zip(xs, parts, strict=True):
            call = ops.call_with_info(prediction, x, symbols, *norm)
            probabilities = ops.softmax(call.outputs[0], axis=-1)
            loss, grad = ops.nll_loss_with_softmax_grad(probabilities, part[:, 1:].flatten(), loss_grad=1 / count)
            losses.append(loss)
            grads.append(_gradients(prediction_gradients, grad, call))
        dxs = home.backward(layer, [dx for dx, *_ in grads], steps, rate)
        ops.host_store(loss_stream, sum(losses[1:], losses[0]) / count)

        embedding_gradients = transforms.autodiff(embedding, grads_required=embedding.inputs[1:])
        sums: list[popxl.Tensor] = []
        for dx, embedded_call, (_, dsymbols, *dnorm) in zip(dxs, embedded, grads, strict=True):
            dembedding, dpositions = _gradients(embedding_gradients, dx, embedded_call)
            sums = plus(sums, [dsymbols, dembedding, dpositions, *dnorm])
        dsymbols, dembedding, *others = sums
        gradients = [dsymbols + dembedding, *others]
        moments = [home.load_outer(kind) for kind in KINDS[1:]]
        specs = [popxl.TensorSpec(shape, popxl.float32) for shape in config.outer.values()]
        update = ir.create_graph(adam, steps, rate, specs, specs, specs, specs)
        new = ops.call(update, steps, rate, [symbols, positions, *norm], *moments, gradients)
        for k, kind in enumerate(KINDS):
            home.store_outer(kind, new[k * len(specs) : (k + 1) * len(specs)])
        steps += 1
    return Training(ir, symbols_stream, rate_stream, loss_stream, steps, home.outer, home.layers)


def _gradients(info: Any, grad: popxl.Tensor, call: CallSiteInfo) -> list[popxl.Tensor]:
    return list(ops.call(info.graph, grad, inputs_dict=info.inputs_dict(call)))


def build_writer(
    config: Config, read: Callable[[Variable], Array], trained: Training
) -> tuple[popxl.Ir, popxl.HostToDeviceStream, popxl.DeviceToHostStream]:
    """Build the model that scores what follows each symbol of one sequence; its weights are read row by row."""
    config = replace(config, batch=1, micro_batches=1)
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        symbols_stream = popxl.h2d_stream((1, config.length), popxl.int32, name="symbols")
        buffers = [popxl.remote_buffer(shape, popxl.float32, config.layers) for shape in config.layer.values()]
        for i, weights in enumerate(trained.layers):
            for buffer, variable in zip(buffers, weights, strict=True):
                popxl.remote_variable(partial(read, variable), buffer, i)
        symbols, positions, *norm = (popxl.variable(read(variable)) for variable in trained.outer)

        def visit(i: popxl.Tensor, x: popxl.Tensor) -> list[popxl.Tensor]:
            return [i + 1, transformer_layer(config, x, [ops.remote_load(buffer, i) for buffer in buffers])]

        x = embed(config, ops.host_load(symbols_stream), symbols, positions)
        first = popxl.constant(0, popxl.uint32)
        _, x = ops.repeat(ir.create_graph(visit, first, x), config.layers, first, x)
        scores = predict(x, symbols, *norm)
        scores_stream = popxl.d2h_stream(scores.shape, scores.dtype, name="scores")
        ops.host_store(scores_stream, scores)
    return ir, symbols_stream, scores_stream


# ---------------------------------------------------------------- running it


class Losses:
    """The loss of every step, a line each, in a file that outlives the process."""

    def __init__(self, path: Path, steps: int) -> None:
        """Go on after `steps` lines: those of later steps belong to a run that was killed before it committed them."""
        lines = path.read_text().splitlines()[:steps] if path.exists() else []
        if len(lines) != steps:
            raise SystemExit(f"{path} has {len(lines)} losses of {steps} steps; delete its folder, or bring it back")
        self.values = [float.fromhex(line) for line in lines]
        self._file = path.open("w")
        self._file.writelines(f"{line}\n" for line in lines)

    def add(self, loss: float) -> None:
        """Note a loss, exactly."""
        self.values.append(loss)
        self._file.write(f"{loss.hex()}\n")

    def mean(self, count: int) -> float:
        """Of the last steps."""
        return float(np.mean(self.values[-count:]))

    def sync(self) -> None:
        """Write what was noted, before the steps are committed."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Losses:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def train(config: Config, options: argparse.Namespace) -> None:
    """Train from the last commit on, and leave losses, pictures and a text."""
    text = read_text(2_000_000)
    training = build_training(config, resident=options.resident)
    memory = popxl.StreamingMemory(f"file:{options.out / 'state'}", reopen=True, host_memory=options.host_memory)
    budget = None if options.resident else options.device_memory
    session = popxl.Session(training.ir, weights_to_host_on_exit=False, streaming_memory=memory, device_memory=budget)
    print(describe(config, session, options))
    with session:
        done = int(session.get_tensor_data(training.steps))
        if done:
            print(f"going on after step {done}, from commit {session.generation}")
        with Losses(options.out / "losses.txt", done) as losses:

            def step() -> float:
                k = len(losses.values)
                rate = config.learning_rate * min(1.0, (k + 1) / config.warm_up)
                inputs = {training.symbols: draw_batches(text, config, k), training.rate: np.float32(rate)}
                losses.add(float(session.run(inputs)[training.loss]))
                return losses.values[-1]

            with observe.progress(options.steps, session, done=done) as bar:
                for k in range(done, options.steps - TRACED):
                    bar.step(loss=step())
                    if (k + 1) % options.commit_every == 0:
                        commit(session, losses)
                        print(f"step {k + 1:5}   loss {losses.mean(options.commit_every):.4f}   committed", flush=True)
                # The last steps are recorded, for the pictures.
                with session.trace(options.out / "trace.json"):
                    while len(losses.values) < options.steps:
                        bar.step(loss=step())
            commit(session, losses)
            draw_losses(losses.values, options.out / "loss.png")
        if options.steps > done:
            session.timeline(options.out / "memory.png")
            print(session.report())
        print(f"losses, trace.json, loss.png and memory.png are in {options.out}")
        if options.write:
            print("\n" + write(config, session, training, b"def ", options).decode("ascii", "replace"))


def commit(session: popxl.Session, losses: Losses) -> None:
    """Make the losses, and then the state that they led to, outlive a crash."""
    losses.sync()
    session.commit()


def draw_losses(losses: Sequence[float], path: Path) -> None:
    """Draw the loss of every step, and a running mean."""
    mpl.use("agg")
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.plot(np.arange(1, len(losses) + 1), losses, color="0.75", linewidth=1, label="step")
    window = min(10, len(losses))
    smooth = np.convolve(losses, np.full(window, 1 / window), "valid")
    axis.plot(np.arange(window, len(losses) + 1), smooth, color="tab:blue", label=f"mean of {window}")
    axis.set(xlabel="step", ylabel="loss, nats a byte", title="Training loss")
    axis.grid(color="0.93")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def describe(config: Config, session: popxl.Session, options: argparse.Namespace) -> str:
    """Say what will be where."""
    state, figures = config.state_bytes, session.figures
    home = "on the device" if options.resident else f"in {options.out / 'state'}"
    budget = parse_bytes(options.device_memory) or 0
    return (
        f"{config.layers} layers, {state // 12 / 1e6:.1f} million weights; weights and moments: "
        f"{format_bytes(state)}, {home}\n"
        + ("" if options.resident else f"device memory: {options.device_memory}, {state / budget:.1f} times less; ")
        + f"at the peak {format_bytes(figures.device.peak_bytes)} of it are needed\n"
        f"a step loads {format_bytes(figures.load_bytes)} and stores {format_bytes(figures.store_bytes)}"
    )


def write(
    config: Config, trained: popxl.Session, training: Training, start: bytes, options: argparse.Namespace
) -> bytes:
    """Continue `start`, each byte drawn at random by the model's scores; at most what the model sees at once."""
    ir, symbols_stream, scores_stream = build_writer(config, trained.get_tensor_data, training)
    rng, written = np.random.default_rng(4), bytearray(start)
    scratch = options.out / "writer"
    with popxl.Session(ir, weights_to_host_on_exit=False, streaming_memory=f"file:{scratch}") as session:
        while len(written) < min(len(start) + options.write, config.length):
            symbols = np.zeros((1, config.length), np.int32)
            symbols[0, : len(written)] = written
            scores = session.run({symbols_stream: symbols})[scores_stream][len(written) - 1].astype(np.float64)
            # The higher the power, the safer the choices.
            powers = np.exp(1.25 * (scores - scores.max()))
            written.append(rng.choice(SYMBOLS, p=powers / powers.sum()))
    shutil.rmtree(scratch)
    return bytes(written)


def main(arguments: Sequence[str] | None = None) -> None:
    usual = Config()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=usual.layers)
    parser.add_argument("--width", type=int, default=usual.width)
    parser.add_argument("--length", type=int, default=usual.length, help="symbols in a sequence")
    parser.add_argument("--device-memory", default=DEVICE_MEMORY, metavar="SIZE")
    parser.add_argument("--host-memory", default=HOST_MEMORY, metavar="SIZE", help="for rows on their way")
    parser.add_argument("--resident", action="store_true", help="keep the state on the device instead")
    parser.add_argument("--out", type=Path, default=Path(".cache/train"), metavar="DIR", help="for state and pictures")
    parser.add_argument("--fresh", action="store_true", help="delete what DIR has, and start anew")
    parser.add_argument("--commit-every", type=int, default=10, metavar="STEPS")
    parser.add_argument("--write", type=int, default=120, metavar="BYTES", help="how much to write in the end")
    options = parser.parse_args(arguments)
    if options.fresh:
        shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    train(Config(layers=options.layers, width=options.width, length=options.length), options)


if __name__ == "__main__":
    main()
