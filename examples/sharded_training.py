"""Phased training of a deep network whose weights and optimiser state are sharded over replicas, in Streaming Memory.

Nothing of a layer stays on the device. Of a weight and its two moments each replica holds a shard: one n-th of the
elements, a row of a remote buffer. Two loops visit the layers:

* forward: load the shards of the weights, gather the whole weights from all replicas, compute, store the input;
* backward: load input and shards, gather, compute the layer again and its gradients; each replica takes its share of
  their sum (reduce-scatter), updates its shards by Adam, and stores them.

Each replica has its part of the batch; the losses are those of one replica with the whole batch, up to rounding.

    python examples/sharded_training.py                                          4 replicas
    python examples/sharded_training.py --directory /mnt/training            the same with its state in files
    popxl run -n 2 --replicas 4 examples/sharded_training.py --directory /mnt/training       in two processes

With --directory the state is committed every few steps, and training goes on from the last commit: start it again after
an interruption, or with more --steps, and it ends with the same fingerprint as in one go. All processes commit
together, or none does.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates
from popxl.ops.collectives import replicated_all_gather, replicated_all_reduce, replicated_reduce_scatter
from popxl.tensor import Variable

Array = np.ndarray[Any, Any]
Tensors = Sequence[popxl.Tensor]

WIDTH, CLASSES = 64, 10
RATE, BETA1, BETA2, EPSILON = 0.002, 0.9, 0.999, 1e-7
#: What is kept of each weight.
KINDS = ("weight", "first", "second")


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes: hidden layers, digits in a step of all replicas together, steps between two commits."""

    layers: int = 12
    batch: int = 32
    commit_every: int = 10


# ---------------------------------------------------------------- data and weights


def draw_batch(step: int, batch: int) -> tuple[Array, Array]:
    """Return images, (batch, 64), float32, and labels, (batch,), int32, of a step: the same whenever it is made."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.random.default_rng([1, step]).choice(len(labels), batch, replace=False)
    return (images[chosen] / 16).astype(np.float32), labels[chosen].astype(np.int32)


def initial_weights(config: Config) -> tuple[list[list[Array]], list[Array]]:
    """Return matrix and bias of each hidden layer, and those of the output layer."""
    rng = np.random.default_rng(2)

    def dense(outputs: int, scale: float) -> list[Array]:
        matrix = rng.standard_normal((WIDTH, outputs)) * scale * WIDTH**-0.5
        return [matrix.astype(np.float32), np.zeros(outputs, np.float32)]

    return [dense(WIDTH, config.layers**-0.5) for _ in range(config.layers)], dense(CLASSES, 1.0)


# ---------------------------------------------------------------- the network


def hidden(x: popxl.Tensor, weights: Tensors) -> popxl.Tensor:
    """Add a dense layer's result to its input: (count, 64), as `x`."""
    matrix, bias = weights
    return x + ops.relu(x @ matrix + bias)


def output(x: popxl.Tensor, weights: Tensors) -> popxl.Tensor:
    """Return scores, (count, 10)."""
    matrix, bias = weights
    return x @ matrix + bias


def adam(steps: popxl.Tensor, ws: Tensors, firsts: Tensors, seconds: Tensors, grads: Tensors) -> None:
    """Update shards of weights and moments in place. Nothing in it mixes elements, so shards need no others."""
    for w, m, v, grad in zip(ws, firsts, seconds, grads, strict=True):
        var_updates.accumulate_moving_average_(m, grad, BETA1)
        var_updates.accumulate_moving_average_square_(v, grad, BETA2)
        # The updater counts the step in a tensor of its own.
        x = var_updates.adam_updater(m, v, time_step=steps + 0.0, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
        ops.scaled_add_(w, x, b=-RATE)


# ---------------------------------------------------------------- state in shards


class ShardedState:
    """Weights of equal layers with Adam's moments, in remote buffers: one for each weight and each of `KINDS`."""

    def __init__(self, name: str, layers: Sequence[Sequence[Array]]) -> None:
        self.buffers = {
            kind: [popxl.replica_sharded_buffer(w.shape, popxl.float32, entries=len(layers)) for w in layers[0]]
            for kind in KINDS
        }
        # Moments get variables too: a commit keeps those buffers that have some.
        self.variables: dict[str, list[Variable]] = {
            kind: [
                make_variable(w if kind == "weight" else np.zeros_like(w), buffer, i, f"{kind}.{name}{i}.{k}")
                for i, ws in enumerate(layers)
                for k, (buffer, w) in enumerate(zip(buffers, ws, strict=True))
            ]
            for kind, buffers in self.buffers.items()
        }

    def load(self, kind: str, i: popxl.Tensor) -> Tensors:
        """Load a layer's shards."""
        return [ops.remote_load(buffer, i) for buffer in self.buffers[kind]]

    def load_weights(self, i: popxl.Tensor) -> Tensors:
        """Load shards and gather the whole weights of a layer."""
        return [replicated_all_gather(shard) for shard in self.load("weight", i)]

    def update(self, i: popxl.Tensor, steps: popxl.Tensor, grads: Tensors) -> None:
        """Update a layer's shards. `grads` are those of the loss of the replica's own digits."""
        shares = [
            replicated_reduce_scatter(g, "mean", configure_output_for_replicated_tensor_sharding=True) for g in grads
        ]
        state = {kind: self.load(kind, i) for kind in KINDS}
        adam(steps, *state.values(), shares)
        for kind, shards in state.items():
            for buffer, shard in zip(self.buffers[kind], shards, strict=True):
                ops.remote_store(buffer, i, shard)


def make_variable(value: Array, buffer: popxl.RemoteBuffer, i: int, name: str) -> Variable:
    """Make a variable whose shards are a row; with one replica the row has all elements."""
    if popxl.gcg().ir.replication_factor == 1:
        return popxl.remote_variable(value.reshape(-1), buffer, i, name=name)
    return popxl.remote_replica_sharded_variable(value, buffer, i, name=name)


# ---------------------------------------------------------------- the program


@dataclass(frozen=True, slots=True)
class Program:
    """A program that makes one step in one run. `steps` counts them, so that a commit knows how many there were."""

    ir: popxl.Ir
    images: popxl.HostToDeviceStream
    labels: popxl.HostToDeviceStream
    loss: popxl.DeviceToHostStream
    steps: Variable
    weights: list[Variable]


class Phases:
    """The graphs of the network, and the loops over its layers."""

    def __init__(self, config: Config, state: ShardedState, x: popxl.TensorSpec) -> None:
        self.count, self.state = config.layers, state
        # The input of each layer, kept for the way back: each replica has its own.
        self.inputs = popxl.remote_buffer(x.shape, x.dtype, entries=config.layers)
        specs = [popxl.TensorSpec(b.meta_shape, b.tensor_dtype) for b in state.buffers["weight"]]
        self.graph = popxl.gcg().ir.create_graph(hidden, x, specs)
        self.gradients = transforms.autodiff(self.graph)

    def forward(self, x: popxl.Tensor) -> popxl.Tensor:
        def visit(i: popxl.Tensor, x: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            ops.remote_store(self.inputs, i, x)
            # The gradients need more of the graph than its result.
            x, *_ = ops.call(self.graph, x, self.state.load_weights(i))
            return i + 1, x

        first = popxl.constant(0, popxl.uint32)
        _, x = ops.repeat(x.ir.create_graph(visit, first, x), self.count, first, x)
        return x

    def backward(self, dx: popxl.Tensor, steps: popxl.Tensor) -> None:
        def visit(after: popxl.Tensor, dx: popxl.Tensor, steps: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
            i = after - 1
            call = ops.call_with_info(self.graph, ops.remote_load(self.inputs, i), self.state.load_weights(i))
            dx, *grads = ops.call(self.gradients.graph, dx, inputs_dict=self.gradients.inputs_dict(call))
            self.state.update(i, steps, grads)
            return i, dx

        end = popxl.constant(self.count, popxl.uint32)
        ops.repeat(dx.ir.create_graph(visit, end, dx, steps), self.count, end, dx, steps)


def build_training(config: Config, ir: popxl.Ir) -> Program:
    """Build the program that makes one step, in an empty IR with the replicas that are wanted."""
    digits = config.batch // ir.replication_factor
    with ir.main_graph, popxl.in_sequence():
        images_stream = popxl.h2d_stream((digits, WIDTH), popxl.float32, name="images")
        labels_stream = popxl.h2d_stream((digits,), popxl.int32, name="labels")
        loss_stream = popxl.d2h_stream((), popxl.float32, name="loss")
        hidden_weights, output_weights = initial_weights(config)
        hidden_state, output_state = ShardedState("hidden", hidden_weights), ShardedState("output", [output_weights])
        steps = popxl.variable(0.0, popxl.float32, name="steps")
        phases = Phases(config, hidden_state, images_stream.spec)

        x = phases.forward(ops.host_load(images_stream))
        only = popxl.constant(0, popxl.uint32)
        last = ir.create_graph(output, x, output_state.load_weights(only))
        gradients = transforms.autodiff(last)
        call = ops.call_with_info(last, x, output_state.load_weights(only))
        probabilities = ops.softmax(call.outputs[0], axis=1)
        loss, grad = ops.nll_loss_with_softmax_grad(probabilities, ops.host_load(labels_stream))
        ops.host_store(loss_stream, replicated_all_reduce(loss, "mean"))
        dx, *grads = ops.call(gradients.graph, grad, inputs_dict=gradients.inputs_dict(call))
        output_state.update(only, steps, grads)
        phases.backward(dx, steps)
        steps += 1
    weights = [*hidden_state.variables["weight"], *output_state.variables["weight"]]
    return Program(ir, images_stream, labels_stream, loss_stream, steps, weights)


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Result:
    """The losses of the steps that were made, the first of which may not be step 0, and all weights in the end."""

    first_step: int
    losses: Array
    weights: dict[str, Array]

    @property
    def fingerprint(self) -> str:
        """16 digits that change with any bit of the weights."""
        return hashlib.sha256(b"".join(w.tobytes() for w in self.weights.values())).hexdigest()[:16]


def own_part(ir: popxl.Ir, data: Array) -> Array:
    """Return what the replicas of this process load of the data of all: an axis over them if there are several."""
    own = np.split(data, ir.job.process_count)[ir.job.process_id]
    replicas = ir.instance_replication_factor
    return own if replicas == 1 else own.reshape(replicas, -1, *own.shape[1:])


def train(
    config: Config,
    steps: int,
    ir: popxl.Ir,
    directory: str | None = None,
    devices: int | None = None,
) -> Result:
    """Train until `steps` steps are made.

    Args:
        config: The sizes.
        steps: How many, those before the last commit included.
        ir: An empty IR with the replicas that are wanted.
        directory: Where the state is kept in files and committed; in RAM if not given.
        devices: Devices of this process; as many as there are, if not given.
    """
    program = build_training(config, ir)
    memory = popxl.StreamingMemory(f"file:{directory}", reopen=True) if directory else popxl.StreamingMemory("ram")
    losses: list[float] = []
    with popxl.Session(ir, streaming_memory=memory, devices=devices) as session:
        first = int(session.get_tensor_data(program.steps))
        if session.generation and ir.job.process_id == 0:
            print(f"going on from commit {session.generation}, after step {first}", flush=True)
        for step in range(first, steps):
            images, labels = draw_batch(step, config.batch)
            outputs = session.run({program.images: own_part(ir, images), program.labels: own_part(ir, labels)})
            losses.append(float(np.ravel(outputs[program.loss])[0]))
            if directory and (step + 1) % config.commit_every == 0:
                session.commit()
            if ir.job.process_id == 0 and (step + 1) % max(1, steps // 10) == 0:
                print(f"step {step + 1:5}   loss {np.mean(losses[-max(1, steps // 10) :]):.4f}", flush=True)
        values = session.get_tensors_data(program.weights)
    return Result(first, np.array(losses), {v.name: np.array(value) for v, value in values.items()})


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> None:
    parser = argparse.ArgumentParser(description="Trains a deep network whose state is sharded over replicas.")
    parser.add_argument("--replicas", type=int, default=4, help="without `popxl run`, which says how many there are")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=Config().layers)
    parser.add_argument("--directory", metavar="DIR", help="keep the state in files there; in RAM if not given")
    options = parser.parse_args(arguments)
    # `popxl run` sets this for the processes that it starts.
    ir = popxl.Ir("popdist" if "POPXL_PROCESS_COUNT" in environment else options.replicas)
    config = Config(layers=options.layers)
    if config.batch % ir.replication_factor:
        parser.error(f"{ir.replication_factor} replicas cannot share a batch of {config.batch} digits equally")
    result = train(config, options.steps, ir, options.directory)
    if ir.job.process_id == 0:
        count = sum(math.prod(w.shape) for w in result.weights.values())
        print(f"fingerprint {result.fingerprint} of {count} weights on {ir.replication_factor} replicas")


if __name__ == "__main__":
    main()
