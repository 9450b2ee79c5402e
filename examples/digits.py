"""Training a dense network on scikit-learn's 8 x 8 digits, with a gradient graph that the program calls itself.

Two programs share their weights by way of the host. The training program is a loop that the host feeds: every
iteration takes a batch from its streams, runs the network, calls its gradient graph, and updates the weights in place.
The other program classifies the test digits.

    python examples/digits.py                          600 steps of Adam
    python examples/digits.py --optimiser momentum     the same with SGD and momentum
    python examples/digits.py --steps 2000 --batch 64
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

Array = np.ndarray[Any, Any]

PIXELS, HIDDEN, CLASSES = 64, 128, 10
TEST_DIGITS = 360
#: Steps of one `Session.run`: the loop stays on this side of the host, and its losses come back together.
STEPS_PER_RUN = 50
LEARNING_RATE = {"momentum": 0.05, "adam": 0.002}
MOMENTUM, BETA1, BETA2, EPSILON = 0.9, 0.9, 0.999, 1e-7

# ---------------------------------------------------------------- the data


@dataclass(frozen=True, slots=True)
class Digits:
    """Images, (count, 64), float32 from 0 to 1, and labels, (count,), int32."""

    images: Array
    labels: Array


def load_data() -> tuple[Digits, Digits]:
    """Return the digits to train with and the 360 to test with, drawn at random but always the same."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    train = Digits(images[TEST_DIGITS:], labels[TEST_DIGITS:])
    return train, Digits(images[:TEST_DIGITS], labels[:TEST_DIGITS])


def draw_batches(data: Digits, steps: int, batch: int, seed: int = 1) -> tuple[Array, Array]:
    """Return images, (steps, batch, 64), and labels, (steps, batch), drawn without repetition within a step."""
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.choice(len(data.labels), batch, replace=False) for _ in range(steps)])
    return data.images[chosen], data.labels[chosen]


def initial_weights(seed: int = 2) -> dict[str, Array]:
    """Return weights for `Network` by their names: scaled to keep the variance from layer to layer, biases zero."""
    rng = np.random.default_rng(seed)
    weights: dict[str, Array] = {}
    for name, inputs, outputs in (("hidden", PIXELS, HIDDEN), ("output", HIDDEN, CLASSES)):
        weights[f"{name}_weight"] = (rng.standard_normal((inputs, outputs)) * (2 / inputs) ** 0.5).astype(np.float32)
        weights[f"{name}_bias"] = np.zeros(outputs, np.float32)
    return weights


# ---------------------------------------------------------------- the network


class Linear(popxl.Module):
    """A dense layer. Its weights are inputs of the graph that it is built in."""

    def __init__(self, name: str, features: int) -> None:
        self.name = name
        self.features = features

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        self.weight = popxl.graph_input((x.shape[1], self.features), popxl.float32, f"{self.name}_weight")
        self.bias = popxl.graph_input((self.features,), popxl.float32, f"{self.name}_bias")
        return x @ self.weight + self.bias


class Network(popxl.Module):
    """Two dense layers: images, (batch, 64), to scores, (batch, 10)."""

    def __init__(self) -> None:
        self.hidden = Linear("hidden", HIDDEN)
        self.output = Linear("output", CLASSES)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        return self.output(ops.relu(self.hidden(x)))

    @property
    def weights(self) -> list[popxl.Tensor]:
        """The weights as inputs of the graph; `initial_weights` has them in the same order."""
        return [t for layer in (self.hidden, self.output) for t in (layer.weight, layer.bias)]


def accuracy(probabilities: popxl.Tensor, labels: popxl.Tensor) -> popxl.Tensor:
    """Return which part of the rows have their largest entry at the label."""
    right = ops.equal(ops.argmax(probabilities, dim=1), labels)
    return ops.mean(ops.cast(right, popxl.float32))


# ---------------------------------------------------------------- the optimisers


def momentum_update(
    weights: list[popxl.TensorByRef], velocities: list[popxl.TensorByRef], grads: list[popxl.Tensor]
) -> None:
    """Update the weights in place by SGD with momentum; velocities start at zero."""
    with popxl.in_sequence():
        for w, velocity, grad in zip(weights, velocities, grads, strict=True):
            var_updates.accumulator_scale_(velocity, MOMENTUM)
            var_updates.accumulate_(velocity, grad)
            ops.scaled_add_(w, velocity, b=-LEARNING_RATE["momentum"])


def adam_update(weights: list[popxl.TensorByRef], state: list[popxl.TensorByRef], grads: list[popxl.Tensor]) -> None:
    """Update the weights in place by Adam. The state, all zeros at the start, is each weight's moments and step."""
    count = len(weights)
    firsts, seconds, steps = state[:count], state[count : 2 * count], state[2 * count :]
    with popxl.in_sequence():
        for w, m, v, step, grad in zip(weights, firsts, seconds, steps, grads, strict=True):
            var_updates.accumulate_moving_average_(m, grad, BETA1)
            var_updates.accumulate_moving_average_square_(v, grad, BETA2)
            # This adds 1 to the step before it uses it.
            x = var_updates.adam_updater(m, v, time_step=step, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
            ops.scaled_add_(w, x, b=-LEARNING_RATE["adam"])


def make_state(optimiser: str, weights: Sequence[popxl.Variable]) -> list[popxl.Variable]:
    """Return the optimiser's variables."""
    moments = [
        popxl.variable(np.zeros(w.shape, np.float32), name=f"{moment}_{w.name}")
        for moment in (("velocity",) if optimiser == "momentum" else ("first", "second"))
        for w in weights
    ]
    counters = [popxl.variable(0.0, name=f"step_{w.name}") for w in weights]
    return moments if optimiser == "momentum" else moments + counters


# ---------------------------------------------------------------- the programs


@dataclass(frozen=True, slots=True)
class Program:
    """A program, the streams that digits go in by and results come out by, and its weights."""

    ir: popxl.Ir
    images: popxl.HostToDeviceStream
    labels: popxl.HostToDeviceStream
    loss: popxl.DeviceToHostStream
    accuracy: popxl.DeviceToHostStream
    weights: list[popxl.Variable]


def open_program(ir: popxl.Ir, batch: int, weights: dict[str, Array]) -> Program:
    """Make what both programs need in the main graph, which is empty so far."""
    return Program(
        ir,
        popxl.h2d_stream((batch, PIXELS), popxl.float32, name="images"),
        popxl.h2d_stream((batch,), popxl.int32, name="labels"),
        popxl.d2h_stream((), popxl.float32, name="loss"),
        popxl.d2h_stream((), popxl.float32, name="accuracy"),
        [popxl.variable(value, name=name) for name, value in weights.items()],
    )


def build_training(optimiser: str, batch: int, steps: int, weights: dict[str, Array]) -> Program:
    """Build the program that takes `steps` batches in one run and updates the weights for each."""
    ir = popxl.Ir()
    ir.num_host_transfers = steps
    with ir.main_graph:
        program = open_program(ir, batch, weights)
        state = make_state(optimiser, program.weights)

        network = Network()
        forward = ir.create_graph(network, program.images.spec)
        gradients = transforms.autodiff(forward, grads_required=network.weights)
        update = ir.create_graph(
            momentum_update if optimiser == "momentum" else adam_update, program.weights, state, program.weights
        )

        def step(weights: list[popxl.TensorByRef], state: list[popxl.TensorByRef]) -> None:
            images, labels = ops.host_load(program.images), ops.host_load(program.labels)
            call = ops.call_with_info(forward, images, inputs_dict=dict(zip(network.weights, weights, strict=True)))
            probabilities = ops.softmax(call.outputs[0], axis=1)
            loss, grad = ops.nll_loss_with_softmax_grad(probabilities, labels)
            grads = ops.call(gradients.graph, grad, inputs_dict=gradients.inputs_dict(call))
            ops.call(update, weights, state, grads)
            ops.host_store(program.loss, loss)
            ops.host_store(program.accuracy, accuracy(probabilities, labels))

        ops.repeat(ir.create_graph(step, program.weights, state), steps, program.weights, state)
    return program


def build_test(batch: int, weights: dict[str, Array]) -> Program:
    """Build the program that classifies one batch."""
    ir = popxl.Ir()
    with ir.main_graph:
        program = open_program(ir, batch, weights)
        network = Network()
        forward = ir.create_graph(network, program.images.spec)
        images, labels = ops.host_load(program.images), ops.host_load(program.labels)
        (scores,) = ops.call(forward, images, inputs_dict=dict(zip(network.weights, program.weights, strict=True)))
        probabilities = ops.softmax(scores, axis=1)
        ops.host_store(program.loss, ops.nll_loss(probabilities, labels))
        ops.host_store(program.accuracy, accuracy(probabilities, labels))
    return program


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Result:
    """Loss and accuracy of each step's batch before its update, and of the test digits at the end."""

    losses: Array
    accuracies: Array
    test_loss: float
    test_accuracy: float


def train(optimiser: str = "adam", steps: int = 600, batch: int = 32, steps_per_run: int = STEPS_PER_RUN) -> Result:
    """Train for `steps` steps, a multiple of `steps_per_run`, and test."""
    train_data, test_data = load_data()
    images, labels = draw_batches(train_data, steps, batch)
    program = build_training(optimiser, batch, steps_per_run, initial_weights())
    losses, accuracies = [], []
    with popxl.Session(program.ir) as session:
        for start in range(0, steps, steps_per_run):
            part = slice(start, start + steps_per_run)
            outputs = session.run({program.images: images[part], program.labels: labels[part]})
            losses.append(outputs[program.loss])
            accuracies.append(outputs[program.accuracy])
            print(f"step {part.stop:5}   loss {losses[-1].mean():.4f}   accuracy {accuracies[-1].mean():.2%}")
        trained = session.get_tensors_data(program.weights)

    test = build_test(TEST_DIGITS, {w.name: value for w, value in trained.items()})
    with popxl.Session(test.ir) as session:
        outputs = session.run({test.images: test_data.images, test.labels: test_data.labels})
    test_loss, test_accuracy = float(outputs[test.loss]), float(outputs[test.accuracy])
    print(f"test         loss {test_loss:.4f}   accuracy {test_accuracy:.2%}")
    return Result(np.concatenate(losses), np.concatenate(accuracies), test_loss, test_accuracy)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains a dense network on 8 x 8 digits.")
    parser.add_argument("--optimiser", choices=LEARNING_RATE, default="adam")
    parser.add_argument("--steps", type=int, default=600, help=f"a multiple of {STEPS_PER_RUN}")
    parser.add_argument("--batch", type=int, default=32, help="digits in a step")
    options = parser.parse_args(arguments)
    if options.steps <= 0 or options.steps % STEPS_PER_RUN:
        parser.error(f"--steps {options.steps} is no multiple of {STEPS_PER_RUN}, the steps of a run")
    train(options.optimiser, options.steps, options.batch)


if __name__ == "__main__":
    main()
