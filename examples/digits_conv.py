"""Training a convolutional network with dropout on scikit-learn's 8 x 8 digits.

The layers are graphs of their own, and so are their gradients: the program calls the layers in order and the gradient
graphs in reverse order, where each hands on the gradient of its input. Dropout draws from a seed that the host sends
for every step and the step splits, one for each layer; the gradient graph of a layer gets the seed of its call, and so
drops the same elements.

    python examples/digits_conv.py                 300 steps
    python examples/digits_conv.py --steps 1000
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
from popxl.ops.call import CallSiteInfo

Array = np.ndarray[Any, Any]

SIDE, CLASSES = 8, 10
TEST_DIGITS = 360
#: Steps of one `Session.run`.
STEPS_PER_RUN = 25
LEARNING_RATE, MOMENTUM = 0.05, 0.9

# ---------------------------------------------------------------- the data


@dataclass(frozen=True, slots=True)
class Digits:
    """Images, (count, 1, 8, 8), float32 from 0 to 1, and labels, (count,), int32."""

    images: Array
    labels: Array


def load_data() -> tuple[Digits, Digits]:
    """Return the digits to train with and the 360 to test with, drawn at random but always the same."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = (images[order] / 16).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
    labels = labels[order].astype(np.int32)
    train = Digits(images[TEST_DIGITS:], labels[TEST_DIGITS:])
    return train, Digits(images[:TEST_DIGITS], labels[:TEST_DIGITS])


def draw_batches(data: Digits, steps: int, batch: int, seed: int = 1) -> tuple[Array, Array]:
    """Return images, (steps, batch, 1, 8, 8), and labels, (steps, batch), without repetition within a step."""
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.choice(len(data.labels), batch, replace=False) for _ in range(steps)])
    return data.images[chosen], data.labels[chosen]


# ---------------------------------------------------------------- the layers


class Convolution(popxl.Module):
    """Dropout, 3 x 3 convolution, ReLU, maximum of 2 x 2 pixels: (batch, c, n, n) to (batch, channels, n/2, n/2)."""

    def __init__(self, channels: int, drop: float) -> None:
        self.channels = channels
        self.drop = drop

    def build(self, x: popxl.Tensor, seed: popxl.Tensor | None) -> popxl.Tensor:
        self.weight = popxl.graph_input((self.channels, x.shape[1], 3, 3), popxl.float32, "weight")
        self.bias = popxl.graph_input((self.channels, 1, 1), popxl.float32, "bias")
        if seed is not None:
            x = ops.dropout(x, seed, p=self.drop)
        x = ops.relu(ops.conv(x, self.weight, pad_type="same_upper") + self.bias)
        return ops.max_pool(x, (2, 2), stride=(2, 2))


class Classifier(popxl.Module):
    """Dropout and a dense layer: (batch, channels, n, n) to scores, (batch, 10)."""

    def __init__(self, drop: float) -> None:
        self.drop = drop

    def build(self, x: popxl.Tensor, seed: popxl.Tensor | None) -> popxl.Tensor:
        x = x.reshape((x.shape[0], -1))
        self.weight = popxl.graph_input((x.shape[1], CLASSES), popxl.float32, "weight")
        self.bias = popxl.graph_input((CLASSES,), popxl.float32, "bias")
        if seed is not None:
            x = ops.dropout(x, seed, p=self.drop)
        return x @ self.weight + self.bias


@dataclass(frozen=True, slots=True)
class Layer:
    """The graph of a layer, and its weight and bias as inputs of it."""

    graph: popxl.Graph
    weights: tuple[popxl.Tensor, popxl.Tensor]


def make_layers(ir: popxl.Ir, batch: int, *, training: bool) -> list[Layer]:
    """Make the graphs of the layers. The op `dropout` has no switch: to test, the graphs are made without it."""
    x = popxl.TensorSpec((batch, 1, SIDE, SIDE), popxl.float32)
    seed = popxl.TensorSpec((2,), popxl.uint32) if training else None
    layers: list[Layer] = []
    for module in (Convolution(16, drop=0.05), Convolution(32, drop=0.1), Classifier(drop=0.2)):
        graph = ir.create_graph(module, x, seed)
        layers.append(Layer(graph, (module.weight, module.bias)))
        x = graph.outputs[0].spec
    return layers


def initial_weights(seed: int = 2) -> list[Array]:
    """Return weight and bias of each layer: scaled to keep the variance from layer to layer, biases zero."""
    rng = np.random.default_rng(seed)
    values: list[Array] = []
    for layer in make_layers(popxl.Ir(), 1, training=False):
        weight, bias = layer.weights
        # How many numbers each feature is a sum of.
        summands = weight.nelms / bias.nelms
        values.append((rng.standard_normal(weight.shape) * (2 / summands) ** 0.5).astype(np.float32))
        values.append(np.zeros(bias.shape, np.float32))
    return values


def run_layers(
    layers: Sequence[Layer], x: popxl.Tensor, weights: Sequence[popxl.Tensor], seeds: Sequence[popxl.Tensor] = ()
) -> list[CallSiteInfo]:
    """Call the layers in order, each with its two of the weights and, if there are seeds, its own."""
    calls: list[CallSiteInfo] = []
    for k, layer in enumerate(layers):
        own = dict(zip(layer.weights, weights[2 * k : 2 * k + 2], strict=True))
        calls.append(ops.call_with_info(layer.graph, x, seeds[k : k + 1], inputs_dict=own))
        x = calls[-1].outputs[0]
    return calls


def accuracy(probabilities: popxl.Tensor, labels: popxl.Tensor) -> popxl.Tensor:
    """Return which part of the rows have their largest entry at the label."""
    right = ops.equal(ops.argmax(probabilities, dim=1), labels)
    return ops.mean(ops.cast(right, popxl.float32))


# ---------------------------------------------------------------- the programs


def momentum_update(
    weights: list[popxl.TensorByRef], velocities: list[popxl.TensorByRef], grads: list[popxl.Tensor]
) -> None:
    """Update the weights in place by SGD with momentum; velocities start at zero."""
    with popxl.in_sequence():
        for w, velocity, grad in zip(weights, velocities, grads, strict=True):
            var_updates.accumulator_scale_(velocity, MOMENTUM)
            var_updates.accumulate_(velocity, grad)
            ops.scaled_add_(w, velocity, b=-LEARNING_RATE)


@dataclass(frozen=True, slots=True)
class Program:
    """A program, the streams of its inputs and results, and its weights. Only the training program takes seeds."""

    ir: popxl.Ir
    images: popxl.HostToDeviceStream
    labels: popxl.HostToDeviceStream
    seeds: popxl.HostToDeviceStream
    loss: popxl.DeviceToHostStream
    accuracy: popxl.DeviceToHostStream
    weights: list[popxl.Variable]


def open_program(ir: popxl.Ir, batch: int, weights: Sequence[Array]) -> Program:
    """Make what both programs need in the main graph, which is empty so far."""
    return Program(
        ir,
        popxl.h2d_stream((batch, 1, SIDE, SIDE), popxl.float32, name="images"),
        popxl.h2d_stream((batch,), popxl.int32, name="labels"),
        popxl.h2d_stream((2,), popxl.uint32, name="seeds"),
        popxl.d2h_stream((), popxl.float32, name="loss"),
        popxl.d2h_stream((), popxl.float32, name="accuracy"),
        [popxl.variable(value, name=f"weight_{k}") for k, value in enumerate(weights)],
    )


def build_training(batch: int, steps: int, weights: Sequence[Array]) -> Program:
    """Build the program that takes `steps` batches in one run and updates the weights for each."""
    ir = popxl.Ir()
    ir.num_host_transfers = steps
    with ir.main_graph:
        program = open_program(ir, batch, weights)
        velocities = [popxl.variable(np.zeros(w.shape, np.float32), name=f"velocity_{w.name}") for w in program.weights]

        layers = make_layers(ir, batch, training=True)
        # Nobody wants the gradient of the images.
        gradients = [transforms.autodiff(layers[0].graph, grads_required=layers[0].weights)]
        gradients += [
            transforms.autodiff(layer.graph, grads_required=(layer.graph.inputs[0], *layer.weights))
            for layer in layers[1:]
        ]
        update = ir.create_graph(momentum_update, program.weights, velocities, program.weights)

        def step(weights: list[popxl.TensorByRef], velocities: list[popxl.TensorByRef]) -> None:
            images, labels = ops.host_load(program.images), ops.host_load(program.labels)
            seeds = ops.split_random_seed(ops.host_load(program.seeds), len(layers))
            calls = run_layers(layers, images, weights, seeds)
            probabilities = ops.softmax(calls[-1].outputs[0], axis=1)
            loss, grad = ops.nll_loss_with_softmax_grad(probabilities, labels)

            upstream, grads = [grad], []
            for info, call in zip(reversed(gradients), reversed(calls), strict=True):
                *upstream, weight_grad, bias_grad = ops.call(info.graph, *upstream, inputs_dict=info.inputs_dict(call))
                grads = [weight_grad, bias_grad, *grads]
            ops.call(update, weights, velocities, grads)
            ops.host_store(program.loss, loss)
            ops.host_store(program.accuracy, accuracy(probabilities, labels))

        ops.repeat(ir.create_graph(step, program.weights, velocities), steps, program.weights, velocities)
    return program


def build_test(batch: int, weights: Sequence[Array]) -> Program:
    """Build the program that classifies one batch."""
    ir = popxl.Ir()
    with ir.main_graph:
        program = open_program(ir, batch, weights)
        images, labels = ops.host_load(program.images), ops.host_load(program.labels)
        calls = run_layers(make_layers(ir, batch, training=False), images, program.weights)
        probabilities = ops.softmax(calls[-1].outputs[0], axis=1)
        ops.host_store(program.loss, ops.nll_loss(probabilities, labels))
        ops.host_store(program.accuracy, accuracy(probabilities, labels))
    return program


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Result:
    """Loss and accuracy of each step's batch, with dropout, and of the test digits at the end, without."""

    losses: Array
    accuracies: Array
    test_loss: float
    test_accuracy: float


def train(steps: int = 300, batch: int = 64, steps_per_run: int = STEPS_PER_RUN) -> Result:
    """Train for `steps` steps, a multiple of `steps_per_run`, and test."""
    train_data, test_data = load_data()
    images, labels = draw_batches(train_data, steps, batch)
    seeds = popxl.create_seeds(3, batches_per_step=steps)
    program = build_training(batch, steps_per_run, initial_weights())
    losses, accuracies = [], []
    with popxl.Session(program.ir) as session:
        for start in range(0, steps, steps_per_run):
            part = slice(start, start + steps_per_run)
            inputs = {program.images: images[part], program.labels: labels[part], program.seeds: seeds[part]}
            outputs = session.run(inputs)
            losses.append(outputs[program.loss])
            accuracies.append(outputs[program.accuracy])
            print(f"step {part.stop:5}   loss {losses[-1].mean():.4f}   accuracy {accuracies[-1].mean():.2%}")
        trained = session.get_tensors_data(program.weights)

    test = build_test(TEST_DIGITS, [trained[w] for w in program.weights])
    with popxl.Session(test.ir) as session:
        outputs = session.run({test.images: test_data.images, test.labels: test_data.labels})
    test_loss, test_accuracy = float(outputs[test.loss]), float(outputs[test.accuracy])
    print(f"test         loss {test_loss:.4f}   accuracy {test_accuracy:.2%}")
    return Result(np.concatenate(losses), np.concatenate(accuracies), test_loss, test_accuracy)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a convolutional network with dropout on 8 x 8 digits.")
    parser.add_argument("--steps", type=int, default=300, help=f"a multiple of {STEPS_PER_RUN}")
    parser.add_argument("--batch", type=int, default=64, help="digits in a step")
    options = parser.parse_args(arguments)
    if options.steps <= 0 or options.steps % STEPS_PER_RUN:
        parser.error(f"--steps {options.steps} is no multiple of {STEPS_PER_RUN}, the steps of a run")
    train(options.steps, options.batch)


if __name__ == "__main__":
    main()
