"""Data-parallel training on scikit-learn's 8 x 8 digits: several replicas, each with its part of every batch.

A replica computes the gradients of its own digits; an all-reduce takes their mean, and so all replicas make the same
update. What is equal on all replicas (here the weights and Adam's state) is held once on a device, not once for each.
The losses are those of one replica that takes the whole batch, up to rounding.

    python examples/digits_data_parallel.py                              4 replicas, and 1 to compare with
    python examples/digits_data_parallel.py --replicas 8 --batch 128
    XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/digits_data_parallel.py      4 devices
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates
from popxl.ops.collectives import replicated_all_reduce
from popxl.tensor import Variable

Array = np.ndarray[Any, Any]
Tensors = list[popxl.Tensor]
Refs = list[popxl.TensorByRef]

PIXELS, HIDDEN, CLASSES = 64, 128, 10
TEST_DIGITS = 360
RATE, BETA1, BETA2, EPSILON = 0.002, 0.9, 0.999, 1e-7

# ---------------------------------------------------------------- the data


def load_data() -> tuple[Array, Array]:
    """Return images, (1797, 64), float32 from 0 to 1, and labels, (1797,), int32; the last 360 are for the test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)


def draw_batches(steps: int, batch: int, seed: int = 1) -> tuple[Array, Array]:
    """Return images, (steps, batch, 64), and labels, (steps, batch), drawn from those to train with."""
    images, labels = load_data()
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.choice(len(labels) - TEST_DIGITS, batch, replace=False) for _ in range(steps)])
    return images[chosen], labels[chosen]


def initial_weights(seed: int = 2) -> list[Array]:
    """Return weight and bias of the hidden layer and of the output layer."""
    rng = np.random.default_rng(seed)
    weights: list[Array] = []
    for inputs, outputs in ((PIXELS, HIDDEN), (HIDDEN, CLASSES)):
        weights.append((rng.standard_normal((inputs, outputs)) * (2 / inputs) ** 0.5).astype(np.float32))
        weights.append(np.zeros(outputs, np.float32))
    return weights


# ---------------------------------------------------------------- the program


def network(x: popxl.Tensor, weights: Tensors) -> popxl.Tensor:
    """Two dense layers: images, (count, 64), to scores, (count, 10)."""
    w1, b1, w2, b2 = weights
    return ops.relu(x @ w1 + b1) @ w2 + b2


def adam(weights: Refs, firsts: Refs, seconds: Refs, step: popxl.TensorByRef, grads: Tensors) -> None:
    """Update the weights, their moments and the number of the step in place."""
    for w, m, v, grad in zip(weights, firsts, seconds, grads, strict=True):
        var_updates.accumulate_moving_average_(m, grad, BETA1)
        var_updates.accumulate_moving_average_square_(v, grad, BETA2)
        # The updater counts the step in a tensor of its own.
        x = var_updates.adam_updater(m, v, time_step=step + 0.0, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
        ops.scaled_add_(w, x, b=-RATE)
    step += 1


@dataclass(frozen=True, slots=True)
class Program:
    """A program that takes all batches in one run, and what it is fed and read by."""

    ir: popxl.Ir
    images: popxl.HostToDeviceStream
    labels: popxl.HostToDeviceStream
    loss: popxl.DeviceToHostStream
    weights: list[Variable]


def build_training(replicas: int, batch: int, steps: int) -> Program:
    """Build the program of `replicas` replicas that share batches of `batch` digits."""
    if batch % replicas:
        raise ValueError(f"{replicas} replicas cannot share a batch of {batch} digits equally.")
    ir = popxl.Ir(replication=replicas)
    ir.num_host_transfers = steps
    with ir.main_graph, popxl.in_sequence():
        # The streams are those of one replica: the host gives and gets an axis over replicas in front.
        images_stream = popxl.h2d_stream((batch // replicas, PIXELS), popxl.float32, name="images")
        labels_stream = popxl.h2d_stream((batch // replicas,), popxl.int32, name="labels")
        loss_stream = popxl.d2h_stream((), popxl.float32, name="loss")
        weights = [popxl.variable(value) for value in initial_weights()]
        firsts, seconds = ([popxl.variable(np.zeros(w.shape, np.float32)) for w in weights] for _ in range(2))
        count = popxl.variable(0.0, name="step")
        forward = ir.create_graph(network, images_stream.spec, weights)
        gradients = transforms.autodiff(forward, grads_required=forward.inputs[1:])

        def step(ws: Refs, ms: Refs, vs: Refs, count: popxl.TensorByRef) -> None:
            call = ops.call_with_info(forward, ops.host_load(images_stream), ws)
            probabilities = ops.softmax(call.outputs[0], axis=1)
            loss, grad = ops.nll_loss_with_softmax_grad(probabilities, ops.host_load(labels_stream))
            grads = ops.call(gradients.graph, grad, inputs_dict=gradients.inputs_dict(call))
            # Up to here everything differs between replicas, from here on nothing does.
            adam(ws, ms, vs, count, [replicated_all_reduce(g, "mean") for g in grads])
            ops.host_store(loss_stream, replicated_all_reduce(loss, "mean"))

        ops.repeat(ir.create_graph(step, weights, firsts, seconds, count), steps, weights, firsts, seconds, count)
    return Program(ir, images_stream, labels_stream, loss_stream, weights)


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Result:
    """The loss of each step, before its update: (steps, replicas), and the weights in the end."""

    losses: Array
    weights: list[Array]


def train(replicas: int, steps: int, batch: int, devices: int | None = None) -> Result:
    """Train for `steps` steps of `batch` digits, on `devices` devices: as many as there are, if not given."""
    program = build_training(replicas, batch, steps)
    images, labels = draw_batches(steps, batch)
    # Replica r takes the r-th part of each batch. One step, or one replica, has no axis.
    parts = (*((steps,) if steps > 1 else ()), *((replicas,) if replicas > 1 else ()), batch // replicas)
    inputs = {program.images: images.reshape(*parts, PIXELS), program.labels: labels.reshape(parts)}
    with popxl.Session(program.ir, devices=devices) as session:
        losses = session.run(inputs)[program.loss].reshape(steps, replicas)
        weights = list(session.get_tensors_data(program.weights).values())
    return Result(losses, weights)


def measure_accuracy(weights: Sequence[Array]) -> float:
    """Return which part of the 360 test digits a network of these weights gets right."""
    images, labels = (data[-TEST_DIGITS:] for data in load_data())
    ir = popxl.Ir()
    with ir.main_graph:
        scores = network(popxl.constant(images), [popxl.constant(w) for w in weights])
        found = popxl.d2h_stream((TEST_DIGITS,), popxl.int32)
        ops.host_store(found, ops.argmax(scores, dim=1))
    with popxl.Session(ir) as session:
        return float((session.run()[found] == labels).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a dense network on 8 x 8 digits, with several replicas.")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32, help="digits in a step, of all replicas together")
    options = parser.parse_args(arguments)
    if options.batch % options.replicas:
        parser.error(f"--replicas {options.replicas} does not divide --batch {options.batch}")
    results = {replicas: train(replicas, options.steps, options.batch) for replicas in (options.replicas, 1)}
    for replicas, result in results.items():
        mean_loss, accuracy = result.losses[-50:].mean(), measure_accuracy(result.weights)
        print(f"replicas {replicas}   loss of the last steps {mean_loss:.4f}   test accuracy {accuracy:.2%}")
    split, whole = (results[replicas].losses[:10, :1] for replicas in (options.replicas, 1))
    print(f"largest difference of the first ten losses {np.abs(split - whole).max():.1e}")


if __name__ == "__main__":
    main()
