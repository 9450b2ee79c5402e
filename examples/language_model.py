"""A language model that learns to write Python, one byte after the other, with its training state streamed if wanted.

The model is a small transformer; the text is the source code of Python's own standard library, so it is another text
for another version of Python. Weights and activations are float16. The optimiser, AdamW, keeps float32 masters of the
weights, and the loss is scaled so that small gradients survive float16. A step adds up the gradients of several
micro-batches, which a loop takes from the host.

    python examples/language_model.py                                  about a minute on two cores
    python examples/language_model.py --phased                         the layers' state in Streaming Memory
    python examples/language_model.py --phased --memory file:/mnt/lm   in files there

`--phased` keeps one layer on the device, in three loops that visit the layers: one stores the input of each layer, one
goes back and computes each layer again before its gradients, one updates the weights. Both forms call the same graphs
with the same values: they print the same losses and the same fingerprint.
"""

from __future__ import annotations

import argparse
import hashlib
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates
from popxl.ops.call import CallSiteInfo
from popxl.ops.random_seed import create_random_seed
from popxl.tensor import Variable

Array = np.ndarray[Any, Any]
Tensors = Sequence[popxl.Tensor]
Refs = list[popxl.TensorByRef]

SYMBOLS = 256
BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.99, 1e-8, 0.01
#: A power of two: scaling by it rounds nothing.
LOSS_SCALE = 1024.0
#: What is added to the attention scores of later positions: e to this power is 0, also in float16.
MASKED = -3e4


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes: layers, features, heads, symbols in a sequence, sequences in a micro-batch, micro-batches in a step."""

    layers: int = 4
    width: int = 64
    heads: int = 4
    length: int = 64
    batch: int = 8
    micro_batches: int = 2
    dropout: float = 0.05
    learning_rate: float = 2e-3

    @property
    def rows(self) -> int:
        """Symbols in a micro-batch: the model's activations are matrices with a row for each."""
        return self.batch * self.length


# ---------------------------------------------------------------- text and weights


def read_text(size: int) -> Array:
    """Return the first `size` bytes, uint8, of the standard library's modules in the order of their names."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return np.frombuffer(b"".join(file.read_bytes() for file in files)[:size], np.uint8)


def draw_batches(text: Array, config: Config, step: int) -> Array:
    """Return what a step trains with: (micro_batches, batch, length + 1), int32, at random but always the same."""
    rng = np.random.default_rng([1, step])
    starts = rng.integers(0, len(text) - config.length, (config.micro_batches, config.batch, 1))
    return text[starts + np.arange(config.length + 1)].astype(np.int32)


def draw_seeds(config: Config, step: int) -> Array:
    """Return a seed for the dropout of each micro-batch of a step: (micro_batches, 2), uint32."""
    return popxl.create_seeds(2, offset=step, gradient_accumulation_factor=config.micro_batches).reshape(-1, 2)


def initial_weights(config: Config, seed: int = 3) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Return the weights outside of the layers and those of each layer, by name, float32."""
    rng, d = np.random.default_rng(seed), config.width

    def normal(*shape: int, scale: float = 0.02) -> Array:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> dict[str, Array]:
        return {f"{name}_scale": np.ones(d, np.float32), f"{name}_shift": np.zeros(d, np.float32)}

    outer = {"symbols": normal(SYMBOLS, d), "positions": normal(config.length, d), **norm("norm")}
    # What a layer adds to its input starts smaller the more layers there are.
    small = 0.02 / (2 * config.layers) ** 0.5
    layers = [
        {
            **norm("norm1"), "qkv": normal(d, 3 * d), "out": normal(d, d, scale=small),
            **norm("norm2"), "up": normal(d, 4 * d), "down": normal(4 * d, d, scale=small),
        }
        for _ in range(config.layers)
    ]  # fmt: skip
    return outer, layers


# ---------------------------------------------------------------- the model


def drop(x: popxl.Tensor, seed: popxl.Tensor | None, config: Config) -> popxl.Tensor:
    """Drop elements where there is a seed: not when the model writes."""
    return ops.dropout(x, seed, config.dropout) if seed is not None and config.dropout else x


def embed(config: Config, ids: popxl.Tensor, seed: popxl.Tensor | None, weights: Tensors) -> popxl.Tensor:
    """Look up symbols and their positions: ids, (batch, length), to activations, (batch * length, width)."""
    symbols, positions = weights
    x = ops.gather(symbols, ids) + positions
    return drop(x.reshape((-1, config.width)), seed, config)


def layer(config: Config, x: popxl.Tensor, seed: popxl.Tensor | None, weights: Tensors) -> popxl.Tensor:
    """Add attention to earlier positions, then a network of two layers: (batch * length, width), as `x`."""
    norm1_scale, norm1_shift, qkv, out, norm2_scale, norm2_shift, up, down = weights
    after_attention, after_network = (None, None) if seed is None else ops.split_random_seed(seed)
    length, heads, size = config.length, config.heads, config.width // config.heads
    later = popxl.constant(np.triu(np.full((length, length), MASKED), 1), popxl.float16, "later")

    h = ops.layer_norm(x, norm1_scale, norm1_shift) @ qkv
    h = h.reshape((-1, length, 3, heads, size)).transpose((2, 0, 3, 1, 4))
    query, key, value = (ops.squeeze(part, [0]) for part in ops.split(h, 3, axis=0))
    scores = (query * size**-0.5) @ key.transpose((0, 1, 3, 2)) + later
    attended = (ops.softmax(scores, axis=-1) @ value).transpose((0, 2, 1, 3)).reshape(x.shape)
    x = x + drop(attended @ out, after_attention, config)
    h = ops.gelu(ops.layer_norm(x, norm2_scale, norm2_shift) @ up)
    return x + drop(h @ down, after_network, config)


def predict(x: popxl.Tensor, weights: Tensors) -> popxl.Tensor:
    """Compare with the table of symbols that `embed` looks up: activations to scores, (rows, 256), float32."""
    symbols, norm_scale, norm_shift = weights
    return ops.cast(ops.layer_norm(x, norm_scale, norm_shift) @ symbols.T, popxl.float32)


# ---------------------------------------------------------------- the optimiser

#: What training keeps of each weight. Weights are copies of their masters; sums are of a step's gradients.
KINDS = {"weight": popxl.float16} | dict.fromkeys(("master", "first", "second", "sum"), popxl.float32)


def initial(kind: str, master: Array) -> Array:
    return (master if kind in ("weight", "master") else np.zeros_like(master)).astype(KINDS[kind].as_numpy())


def accumulate(sums: Sequence[popxl.Tensor], grads: Sequence[popxl.Tensor]) -> None:
    """Add gradients, which are as large as the scale of the loss makes them, to sums that are not."""
    for total, grad in zip(sums, grads, strict=True):
        var_updates.accumulate_(total, grad, 1 / LOSS_SCALE)


def adamw(
    config: Config, steps: popxl.Tensor, ws: Refs, masters: Refs, firsts: Refs, seconds: Refs, sums: Refs
) -> None:
    """Update what `KINDS` names in place, and start new sums."""
    for w, master, m, v, grad in zip(ws, masters, firsts, seconds, sums, strict=True):
        var_updates.accumulate_moving_average_(m, grad, BETA1)
        var_updates.accumulate_moving_average_square_(v, grad, BETA2)
        decay = WEIGHT_DECAY if len(master.shape) > 1 else 0.0
        # `adam_updater` counts the step itself, each in a copy of its own.
        step = ops.identity(steps)
        x = var_updates.adam_updater(m, v, master, step, decay, BETA1, BETA2, EPSILON)
        ops.scaled_add_(master, x, b=-config.learning_rate)
        var_updates.copy_var_update_(w, ops.cast(master, w.dtype))
        var_updates.accumulator_zero_(grad)


# ---------------------------------------------------------------- the layers, resident or phased


class Layers:
    """The graphs of a layer, which are the same wherever its state is. `masters` are the weights of each layer."""

    def __init__(self, config: Config, masters: Sequence[Mapping[str, Array]]) -> None:
        self.count, self.names = config.layers, list(masters[0])
        self.x = popxl.TensorSpec((config.rows, config.width), popxl.float16)
        specs = {kind: [popxl.TensorSpec(w.shape, KINDS[kind]) for w in masters[0].values()] for kind in KINDS}
        ir = popxl.gcg().ir
        self.forward_graph = ir.create_graph(layer, config, self.x, SEED, specs["weight"])
        x, _, *weights = self.forward_graph.inputs
        self.gradients = transforms.autodiff(self.forward_graph, grads_required=[x, *weights])
        self.update_graph = ir.create_graph(adamw, config, STEPS, *specs.values())

    def call_gradients(self, forward: CallSiteInfo, dx: popxl.Tensor) -> tuple[popxl.Tensor, ...]:
        """Return the gradients of the layer's input and of its weights."""
        return ops.call(self.gradients.graph, dx, inputs_dict=self.gradients.inputs_dict(forward))


class ResidentLayers(Layers):
    """Layers whose state is in variables, those of all layers in one list for each of `KINDS`."""

    def __init__(self, config: Config, masters: Sequence[Mapping[str, Array]]) -> None:
        super().__init__(config, masters)
        named = {f"layer{i}.{name}": w for i, ws in enumerate(masters) for name, w in ws.items()}
        self.state = make_variables(named)
        self.masters = self.state["master"]

    def _of_layer(self, i: int, tensors: Sequence[popxl.Tensor]) -> Sequence[popxl.Tensor]:
        return tensors[i * len(self.names) : (i + 1) * len(self.names)]

    def forward(self, x: popxl.Tensor, seed: popxl.Tensor, weights: Tensors) -> popxl.Tensor:
        self.calls: list[CallSiteInfo] = []
        for i in range(self.count):
            layer_seed = create_random_seed(seed, popxl.constant(i, popxl.uint32))
            self.calls.append(ops.call_with_info(self.forward_graph, x, layer_seed, self._of_layer(i, weights)))
            x = self.calls[-1].outputs[0]
        return x

    def backward(self, dx: popxl.Tensor, seed: popxl.Tensor, sums: Tensors) -> popxl.Tensor:
        for i in reversed(range(self.count)):
            dx, *grads = self.call_gradients(self.calls[i], dx)
            accumulate(self._of_layer(i, sums), grads)
        return dx

    def update(self, steps: popxl.Tensor) -> None:
        for i in range(self.count):
            ops.call(self.update_graph, steps, *(self._of_layer(i, tensors) for tensors in self.state.values()))


class PhasedLayers(Layers):
    """Layers whose state is in remote buffers, one for each weight and each of `KINDS`; entry i is that of layer i."""

    def __init__(self, config: Config, masters: Sequence[Mapping[str, Array]]) -> None:
        super().__init__(config, masters)
        # The state is out of the graphs' way: they take no variables.
        self.state: Mapping[str, list[Variable]] = {kind: [] for kind in KINDS}
        # The input of each layer, kept for the way back.
        self.inputs = popxl.remote_buffer(self.x.shape, self.x.dtype, entries=self.count)
        self.buffers = {
            kind: [popxl.remote_buffer(w.shape, dtype, entries=self.count) for w in masters[0].values()]
            for kind, dtype in KINDS.items()
        }
        # What has no variable starts as zeros.
        variables = {
            kind: [
                popxl.remote_variable(initial(kind, w), buffer, i, name=f"{kind}.layer{i}.{name}")
                for i, of_layer in enumerate(masters)
                for buffer, (name, w) in zip(self.buffers[kind], of_layer.items(), strict=True)
            ]
            for kind in ("weight", "master")
        }
        self.masters = variables["master"]

    def _load(self, kind: str, i: popxl.Tensor) -> Tensors:
        return [ops.remote_load(buffer, i) for buffer in self.buffers[kind]]

    def _store(self, kind: str, i: popxl.Tensor, tensors: Tensors) -> None:
        for buffer, t in zip(self.buffers[kind], tensors, strict=True):
            ops.remote_store(buffer, i, t)

    def forward(self, x: popxl.Tensor, seed: popxl.Tensor, _weights: Tensors) -> popxl.Tensor:
        def visit(i: popxl.Tensor, x: popxl.Tensor, seed: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            ops.remote_store(self.inputs, i, x)
            x, *_ = ops.call(self.forward_graph, x, create_random_seed(seed, i), self._load("weight", i))
            return i + 1, x

        first = popxl.constant(0, popxl.uint32)
        _, x = ops.repeat(x.ir.create_graph(visit, first, x, seed), self.count, first, x, seed)
        return x

    def backward(self, dx: popxl.Tensor, seed: popxl.Tensor, _sums: Tensors) -> popxl.Tensor:
        def visit(after: popxl.Tensor, dx: popxl.Tensor, seed: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            i = after - 1
            x, weights = ops.remote_load(self.inputs, i), self._load("weight", i)
            call = ops.call_with_info(self.forward_graph, x, create_random_seed(seed, i), weights)
            dx, *grads = self.call_gradients(call, dx)
            sums = self._load("sum", i)
            accumulate(sums, grads)
            self._store("sum", i, sums)
            return i, dx

        end = popxl.constant(self.count, popxl.uint32)
        _, dx = ops.repeat(dx.ir.create_graph(visit, end, dx, seed), self.count, end, dx, seed)
        return dx

    def update(self, steps: popxl.Tensor) -> None:
        def visit(i: popxl.Tensor, steps: popxl.Tensor) -> popxl.Tensor:
            state = {kind: self._load(kind, i) for kind in KINDS}
            ops.call(self.update_graph, steps, *state.values())
            for kind, tensors in state.items():
                self._store(kind, i, tensors)
            return i + 1

        first = popxl.constant(0, popxl.uint32)
        ops.repeat(steps.ir.create_graph(visit, first, steps), self.count, first, steps)


# ---------------------------------------------------------------- the programs

SEED = popxl.TensorSpec((2,), popxl.uint32)
STEPS = popxl.TensorSpec((), popxl.float32)


def make_variables(masters: Mapping[str, Array]) -> dict[str, list[Variable]]:
    """Make the variables of `KINDS` for each weight."""
    return {
        kind: [popxl.variable(initial(kind, w), name=f"{kind}.{name}") for name, w in masters.items()] for kind in KINDS
    }


@dataclass(frozen=True, slots=True)
class Training:
    """A program that makes one step in one run, the streams that it is fed by, and the float32 weights."""

    ir: popxl.Ir
    symbols: popxl.HostToDeviceStream
    seeds: popxl.HostToDeviceStream
    losses: popxl.DeviceToHostStream
    masters: list[Variable]


def build_training(config: Config, *, phased: bool) -> Training:
    """Build the program that makes one step: all micro-batches, then the update."""
    ir = popxl.Ir()
    ir.num_host_transfers = config.micro_batches
    outer_masters, layer_masters = initial_weights(config)
    with ir.main_graph, popxl.in_sequence():
        symbols_stream = popxl.h2d_stream((config.batch, config.length + 1), popxl.int32, name="symbols")
        seeds_stream = popxl.h2d_stream((2,), popxl.uint32, name="seeds")
        loss_stream = popxl.d2h_stream((), popxl.float32, name="loss")
        outer = make_variables(outer_masters)
        layers = (PhasedLayers if phased else ResidentLayers)(config, layer_masters)
        ids = popxl.TensorSpec((config.batch, config.length), popxl.int32)
        symbols, positions, *norm = outer["weight"]
        embedding = ir.create_graph(embed, config, ids, SEED, [symbols, positions])
        embedding_gradients = transforms.autodiff(embedding, grads_required=embedding.inputs[2:])
        prediction = ir.create_graph(predict, layers.x, [symbols, *norm])
        prediction_gradients = transforms.autodiff(prediction)

        def micro_batch(ws: Tensors, layer_ws: Tensors, sums: Refs, layer_sums: Refs) -> None:
            batch, seed = ops.host_load(symbols_stream), ops.host_load(seeds_stream)
            embed_seed, layers_seed = ops.split_random_seed(seed)
            embed_call = ops.call_with_info(embedding, batch[:, :-1], embed_seed, ws[:2])
            x = layers.forward(embed_call.outputs[0], layers_seed, layer_ws)
            call = ops.call_with_info(prediction, x, [ws[0], *ws[2:]])
            probabilities = ops.softmax(call.outputs[0], axis=-1)
            loss, grad = ops.nll_loss_with_softmax_grad(
                probabilities, batch[:, 1:].flatten(), loss_grad=LOSS_SCALE / config.micro_batches
            )
            ops.host_store(loss_stream, loss)
            dx, *grads = ops.call(prediction_gradients.graph, grad, inputs_dict=prediction_gradients.inputs_dict(call))
            accumulate([sums[0], *sums[2:]], grads)
            dx = layers.backward(dx, layers_seed, layer_sums)
            grads = ops.call(embedding_gradients.graph, dx, inputs_dict=embedding_gradients.inputs_dict(embed_call))
            accumulate(sums[:2], grads)

        inputs = [outer["weight"], layers.state["weight"], outer["sum"], layers.state["sum"]]
        ops.repeat(ir.create_graph(micro_batch, *inputs), config.micro_batches, *inputs)
        steps = popxl.variable(0.0, popxl.float32, name="steps")
        ops.call(ir.create_graph(adamw, config, STEPS, *outer.values()), steps, *outer.values())
        layers.update(steps)
        steps += 1
    return Training(ir, symbols_stream, seeds_stream, loss_stream, [*outer["master"], *layers.masters])


def build_writer(
    config: Config, masters: Sequence[Array]
) -> tuple[popxl.Ir, popxl.HostToDeviceStream, popxl.DeviceToHostStream]:
    """Build the model without dropout: it scores what follows each symbol of one sequence. `masters` as trained."""
    ir = popxl.Ir()
    with ir.main_graph:
        symbols_stream = popxl.h2d_stream((1, config.length), popxl.int32, name="symbols")
        symbols, positions, *others = (popxl.variable(w.astype(np.float16)) for w in masters)
        norm, of_layers = others[:2], others[2:]
        x = embed(config, ops.host_load(symbols_stream), None, [symbols, positions])
        for i in range(0, len(of_layers), len(of_layers) // config.layers):
            x = layer(config, x, None, of_layers[i : i + len(of_layers) // config.layers])
        scores = predict(x, [symbols, *norm])
        scores_stream = popxl.d2h_stream(scores.shape, scores.dtype, name="scores")
        ops.host_store(scores_stream, scores)
    return ir, symbols_stream, scores_stream


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Result:
    """Losses of the micro-batches, (steps, micro_batches), and the weights by name, float32."""

    losses: Array
    weights: dict[str, Array]


def train(config: Config, steps: int, text: Array, *, phased: bool = False, memory: Any = None) -> Result:
    """Train, and print the loss now and then.

    Args:
        config: The sizes.
        steps: Number of updates.
        text: Bytes, more than a sequence has.
        phased: Whether the layers' state is in Streaming Memory.
        memory: Streaming Memory, as `popxl.Session` takes it.
    """
    program = build_training(config, phased=phased)
    losses: list[Array] = []
    with popxl.Session(program.ir, streaming_memory=memory) as session:
        start_s = time.perf_counter()
        for step in range(steps):
            symbols, seeds = draw_batches(text, config, step), draw_seeds(config, step)
            if config.micro_batches == 1:
                symbols, seeds = symbols[0], seeds[0]
            losses.append(np.reshape(session.run({program.symbols: symbols, program.seeds: seeds})[program.losses], -1))
            if (step + 1) % max(1, steps // 10) == 0:
                loss = np.mean(losses[-max(1, steps // 10) :])
                print(f"step {step + 1:5}   loss {loss:.4f}   {time.perf_counter() - start_s:6.1f} s", flush=True)
        weights = {w.name: value.copy() for w, value in session.get_tensors_data(program.masters).items()}
    return Result(np.stack(losses), weights)


def write(config: Config, masters: Sequence[Array], start: bytes, count: int) -> bytes:
    """Continue `start` by `count` bytes, each drawn at random by the model's scores."""
    ir, symbols_stream, scores_stream = build_writer(config, masters)
    rng, written = np.random.default_rng(4), bytearray(start)
    with popxl.Session(ir, weights_to_host_on_exit=False) as session:
        for _ in range(count):
            seen = written[-config.length :]
            symbols = np.zeros((1, config.length), np.int32)
            symbols[0, : len(seen)] = seen
            scores = session.run({symbols_stream: symbols})[scores_stream][len(seen) - 1].astype(np.float64)
            # The higher the power, the safer the choices.
            powers = np.exp(1.25 * (scores - scores.max()))
            written.append(rng.choice(SYMBOLS, p=powers / powers.sum()))
    return bytes(written)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a small language model on Python's standard library.")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--layers", type=int, default=Config().layers)
    parser.add_argument("--width", type=int, default=Config().width)
    parser.add_argument("--phased", action="store_true", help="keep the layers' state in Streaming Memory")
    parser.add_argument("--memory", metavar="WHERE", help="with --phased: ram (the default) or file:DIR")
    parser.add_argument("--write", type=int, default=300, metavar="BYTES", help="how much to write in the end")
    options = parser.parse_args(arguments)
    config = Config(layers=options.layers, width=options.width)
    result = train(config, options.steps, read_text(2_000_000), phased=options.phased, memory=options.memory)
    weights = list(result.weights.values())
    print("fingerprint", hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()[:16])
    print("\n" + write(config, weights, b"def ", options.write).decode("ascii", "replace"))


if __name__ == "__main__":
    main()
