"""A transformer layer split over replicas (tensor parallelism), in several copies with a batch each (data parallelism).

The layer's attention heads and hidden features are divided over the replicas of a *tensor group*. Each replica computes
its part from the whole input; the products by the rows of the second matrices are partial sums, which an all-reduce
over the group adds up. With two tensor groups of four the eight replicas are

    tensor groups   0 1 2 3 | 4 5 6 7           share a batch, differ in their part of the layer
    data groups     0 4 | 1 5 | 2 6 | 3 7       share their part of the layer, differ in the batch

A variable that is split has a value for each data group: the stride of its `ReplicaGrouping` is the size of a tensor
group. The gradient is that of the sum over all replicas, so each replica starts with its share of the loss's; an
all-reduce over those that hold the same weight then gives what the unsplit layer has.

    python examples/tensor_parallel.py                           4 parts of the layer, 2 copies, 5 steps of SGD
    python examples/tensor_parallel.py --tensor 2 --data 1

It prints the losses, and how far they and the trained weights are from those of one replica with the unsplit layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import popxl
from popxl import ops, transforms
from popxl.ops.collectives import replicated_all_reduce
from popxl.tensor import Variable

Array = np.ndarray[Any, Any]

SEQUENCES, LENGTH, WIDTH, HEADS, HIDDEN = 8, 16, 64, 8, 256
RATE = 1.0


@dataclass(frozen=True, slots=True)
class Grid:
    """How many parts the layer has, and how many copies of it there are."""

    tensor: int
    data: int

    @property
    def replicas(self) -> int:
        """Replica number = number of the copy x parts + number of the part."""
        return self.tensor * self.data


# ---------------------------------------------------------------- weights, whole and in parts


def initial_weights(seed: int = 0) -> dict[str, Array]:
    """Return the weights of the whole layer: matrices (inputs, outputs), float32."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return (rng.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)

    def norm(name: str) -> dict[str, Array]:
        return {f"{name}_scale": np.ones(WIDTH, np.float32), f"{name}_shift": np.zeros(WIDTH, np.float32)}

    return {
        **norm("norm1"), "query": normal(WIDTH, WIDTH), "key": normal(WIDTH, WIDTH), "value": normal(WIDTH, WIDTH),
        "out": normal(WIDTH, WIDTH),
        **norm("norm2"), "up": normal(WIDTH, HIDDEN), "up_bias": np.zeros(HIDDEN, np.float32),
        "down": normal(HIDDEN, WIDTH), "down_bias": np.zeros(WIDTH, np.float32),
    }  # fmt: skip


#: The axis that a weight is split along. Heads are equal parts of the columns of query, key and value and of the rows
#: of out. What is not here is equal on all replicas.
SPLIT_AXIS: Mapping[str, int] = {"query": 1, "key": 1, "value": 1, "out": 0, "up": 1, "up_bias": 0, "down": 0}


def split(name: str, whole: Array, parts: int) -> Array:
    """Return what a variable is made of: the parts on a new axis in front, if there are several."""
    if name not in SPLIT_AXIS or parts == 1:
        return whole
    return np.stack(np.split(whole, parts, axis=SPLIT_AXIS[name]))


def join(name: str, value: Array, parts: int) -> Array:
    """Undo `split`."""
    return value if name not in SPLIT_AXIS or parts == 1 else np.concatenate(list(value), axis=SPLIT_AXIS[name])


def make_data(seed: int = 1) -> tuple[Array, Array]:
    """Return inputs and targets: (rows, width), float32, with a row for each position of each sequence."""
    rng = np.random.default_rng(seed)
    x, target = rng.standard_normal((2, SEQUENCES * LENGTH, WIDTH)).astype(np.float32)
    return x, target


# ---------------------------------------------------------------- the layer


def layer(grid: Grid, x: popxl.Tensor, weights: Sequence[popxl.Tensor]) -> popxl.Tensor:
    """Add attention, then a network of two layers: (rows, width), as `x`. Each replica has some heads."""
    w = dict(zip(initial_weights(), weights, strict=True))
    group = x.ir.replica_grouping(group_size=grid.tensor)
    heads, size = HEADS // grid.tensor, WIDTH // HEADS

    def in_heads(t: popxl.Tensor) -> popxl.Tensor:
        return t.reshape((-1, LENGTH, heads, size)).transpose((0, 2, 1, 3))

    h = ops.layer_norm(x, w["norm1_scale"], w["norm1_shift"])
    query, key, value = (in_heads(h @ w[name]) for name in ("query", "key", "value"))
    scores = ops.softmax((query * size**-0.5) @ key.transpose((0, 1, 3, 2)), axis=-1)
    attended = (scores @ value).transpose((0, 2, 1, 3)).reshape((-1, heads * size))
    x = x + replicated_all_reduce(attended @ w["out"], group=group)
    h = ops.layer_norm(x, w["norm2_scale"], w["norm2_shift"])
    h = ops.gelu(h @ w["up"] + w["up_bias"])
    # A bias that all replicas have is added once: after the sum.
    return x + replicated_all_reduce(h @ w["down"], group=group) + w["down_bias"]


@dataclass(frozen=True, slots=True)
class Program:
    """A program that makes one step of SGD in one run."""

    ir: popxl.Ir
    x: popxl.HostToDeviceStream
    target: popxl.HostToDeviceStream
    loss: popxl.DeviceToHostStream
    weights: dict[str, Variable]


def build_training(grid: Grid) -> Program:
    """Build the program of all replicas of a grid; a grid of one is the unsplit layer."""
    ir = popxl.Ir(replication=grid.replicas)
    # With one copy each group has one member, and nothing is to be added up.
    same_part = ir.replica_grouping(stride=grid.tensor, group_size=grid.data)
    shape = (SEQUENCES // grid.data * LENGTH, WIDTH)
    with ir.main_graph, popxl.in_sequence():
        x_stream, target_stream = (popxl.h2d_stream(shape, popxl.float32, name=n) for n in ("x", "target"))
        loss_stream = popxl.d2h_stream((), popxl.float32, name="loss")
        weights = {
            name: popxl.variable(
                split(name, w, grid.tensor), name=name, replica_grouping=same_part if name in SPLIT_AXIS else None
            )
            for name, w in initial_weights().items()
        }
        graph = ir.create_graph(layer, grid, x_stream.spec, list(weights.values()))
        gradients = transforms.autodiff(graph, grads_required=graph.inputs[1:])

        call = ops.call_with_info(graph, ops.host_load(x_stream), list(weights.values()))
        difference = call.outputs[0] - ops.host_load(target_stream)
        ops.host_store(loss_stream, replicated_all_reduce(ops.mean(difference * difference), "mean"))
        share = difference * (2.0 / (difference.nelms * grid.replicas))
        grads = ops.call(gradients.graph, share, inputs_dict=gradients.inputs_dict(call))
        for (name, w), grad in zip(weights.items(), grads, strict=True):
            total = replicated_all_reduce(grad, group=same_part if name in SPLIT_AXIS else None)
            ops.scaled_add_(w, total, b=-RATE)
    return Program(ir, x_stream, target_stream, loss_stream, weights)


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Result:
    """The loss of each step, before its update, and the whole weights in the end."""

    losses: Array
    weights: dict[str, Array]


def train(grid: Grid, steps: int, devices: int | None = None) -> Result:
    """Make some steps with the same batch, on `devices` devices: as many as there are, if not given."""
    program = build_training(grid)
    # Replicas of a tensor group load the same.
    x, target = (
        np.repeat(data.reshape(grid.data, *program.x.shape), grid.tensor, axis=0).reshape(
            *((grid.replicas,) if grid.replicas > 1 else ()), *program.x.shape
        )
        for data in make_data()
    )
    with popxl.Session(program.ir, devices=devices) as session:
        losses = [np.ravel(session.run({program.x: x, program.target: target})[program.loss])[0] for _ in range(steps)]
        values = session.get_tensors_data(program.weights.values())
    return Result(np.array(losses), {name: join(name, values[v], grid.tensor) for name, v in program.weights.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a transformer layer that is split over replicas.")
    parser.add_argument("--tensor", type=int, default=4, help=f"parts of the layer; divides its {HEADS} heads")
    parser.add_argument("--data", type=int, default=2, help=f"copies of it; divides the {SEQUENCES} sequences")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.tensor < 1 or HEADS % options.tensor:
        parser.error(f"--tensor {options.tensor} does not divide {HEADS}, the number of heads")
    if options.data < 1 or SEQUENCES % options.data:
        parser.error(f"--data {options.data} does not divide {SEQUENCES}, the number of sequences")
    grid = Grid(options.tensor, options.data)
    found, expected = train(grid, options.steps), train(Grid(1, 1), options.steps)
    print("losses   ", " ".join(f"{loss:.6f}" for loss in found.losses))
    print("unsplit  ", " ".join(f"{loss:.6f}" for loss in expected.losses))
    print(f"largest difference of the losses  {np.abs(found.losses - expected.losses).max():.1e}")
    furthest = max(np.abs(w - expected.weights[name]).max() for name, w in found.weights.items())
    print(f"largest difference of the weights {furthest:.1e}")


if __name__ == "__main__":
    main()
