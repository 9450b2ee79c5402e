"""Five optimisers put together from `popxl.ops.var_updates`, side by side on scikit-learn's 8 x 8 digits.

An optimiser is a function that updates one weight in place. It becomes a graph for each shape of weight, whose inputs
by reference are the weight and what the optimiser remembers about it. None of them is built in: change one, or write
another and put it in the table below them.

    python examples/optimisers.py                 300 steps of each
    python examples/optimisers.py --only LAMB     of one
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates

Array = np.ndarray[Any, Any]

PIXELS, HIDDEN, CLASSES = 64, 64, 10
TRAIN_DIGITS, BATCH = 1437, 64
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7

# ---------------------------------------------------------------- the optimisers


def momentum(w: popxl.TensorByRef, grad: popxl.Tensor, velocity: popxl.TensorByRef) -> None:
    """SGD with momentum: the velocity is a sum of gradients in which each fades by a tenth a step."""
    var_updates.accumulator_scale_(velocity, 0.9)
    var_updates.accumulate_(velocity, grad)
    ops.scaled_add_(w, velocity, b=-0.05)


def adam(
    w: popxl.TensorByRef, grad: popxl.Tensor, m: popxl.TensorByRef, v: popxl.TensorByRef, step: popxl.TensorByRef
) -> None:
    """Adam: the average gradient over the root of the average square. `adam_updater` adds 1 to the step first."""
    var_updates.accumulate_moving_average_(m, grad, BETA1)
    var_updates.accumulate_moving_average_square_(v, grad, BETA2)
    x = var_updates.adam_updater(m, v, time_step=step, beta1=BETA1, beta2=BETA2, epsilon=EPSILON)
    ops.scaled_add_(w, x, b=-0.002)


def adamw(
    w: popxl.TensorByRef, grad: popxl.Tensor, m: popxl.TensorByRef, v: popxl.TensorByRef, step: popxl.TensorByRef
) -> None:
    """AdamW: Adam, and the weight decays at a rate of its own, which the gradient's averages do not see."""
    var_updates.accumulate_moving_average_(m, grad, BETA1)
    var_updates.accumulate_moving_average_square_(v, grad, BETA2)
    x = var_updates.adam_updater(
        m, v, weight=w, time_step=step, weight_decay=0.1, beta1=BETA1, beta2=BETA2, epsilon=EPSILON
    )
    ops.scaled_add_(w, x, b=-0.002)


def adamax(
    w: popxl.TensorByRef, grad: popxl.Tensor, m: popxl.TensorByRef, v: popxl.TensorByRef, step: popxl.TensorByRef
) -> None:
    """AdaMax: Adam with a fading maximum of the gradient's size in place of the root."""
    var_updates.accumulate_moving_average_(m, grad, BETA1)
    # There is no op for this accumulator: it is computed, then assigned.
    var_updates.copy_var_update_(v, ops.maximum(v * BETA2, ops.abs(grad)))
    x = var_updates.adamax_updater(m, v, time_step=step, beta1=BETA1, epsilon=EPSILON)
    ops.scaled_add_(w, x, b=-0.004)


def lamb(
    w: popxl.TensorByRef, grad: popxl.Tensor, m: popxl.TensorByRef, v: popxl.TensorByRef, step: popxl.TensorByRef
) -> None:
    """LAMB: AdamW's step, scaled to the length of the weight, but at most 10, times the learning rate."""
    var_updates.accumulate_moving_average_(m, grad, BETA1)
    var_updates.accumulate_moving_average_square_(v, grad, BETA2)
    x = var_updates.lamb_updater(
        m, v, weight=w, time_step=step, weight_decay=0.01, beta1=BETA1, beta2=BETA2, epsilon=EPSILON
    )
    # `adam_var_update` overwrites the weight although its name does not end in an underscore.
    var_updates.adam_var_update(w, x, ops.lamb_square(w), ops.lamb_square(x), learning_rate=0.02, max_weight_norm=10.0)


@dataclass(frozen=True, slots=True)
class Optimiser:
    """How to update a weight, and what is kept with it: moments shaped like it, and perhaps a count of the steps."""

    update: Callable[..., None]
    moments: int
    counts_steps: bool

    def make_state(self, weight: popxl.Variable) -> list[popxl.Variable]:
        """Return what is kept with `weight`, all zero."""
        moments = [popxl.variable(np.zeros(weight.shape, np.float32)) for _ in range(self.moments)]
        return [*moments, popxl.variable(0.0)] if self.counts_steps else moments


OPTIMISERS: Mapping[str, Optimiser] = {
    "SGD with momentum": Optimiser(momentum, moments=1, counts_steps=False),
    "Adam": Optimiser(adam, moments=2, counts_steps=True),
    "AdamW": Optimiser(adamw, moments=2, counts_steps=True),
    "AdaMax": Optimiser(adamax, moments=2, counts_steps=True),
    "LAMB": Optimiser(lamb, moments=2, counts_steps=True),
}

# ---------------------------------------------------------------- data and network


def load_data() -> tuple[Array, Array]:
    """Return images, (1797, 64), float32 from 0 to 1, and labels, int32, in an order that is always the same."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)


def draw_batches(steps: int) -> tuple[Array, Array]:
    """Return images, (steps, 64, 64), and labels, (steps, 64), of the digits to train with."""
    images, labels = load_data()
    chosen = np.random.default_rng(1).integers(TRAIN_DIGITS, size=(steps, BATCH))
    return images[chosen], labels[chosen]


def initial_weights() -> list[Array]:
    """Return the weights and biases of two dense layers."""
    rng = np.random.default_rng(2)
    shapes = ((PIXELS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    # Biases too are not quite zero: LAMB's steps are as long as what they change.
    return [(rng.standard_normal(shape) * (0.15 if len(shape) == 2 else 0.01)).astype(np.float32) for shape in shapes]


def network(x: popxl.Tensor, weights: list[popxl.Tensor]) -> popxl.Tensor:
    """Images, (count, 64), to scores, (count, 10)."""
    hidden_weight, hidden_bias, output_weight, output_bias = weights
    return ops.relu(x @ hidden_weight + hidden_bias) @ output_weight + output_bias


# ---------------------------------------------------------------- training


@dataclass(frozen=True, slots=True)
class Result:
    """Loss of each step's batch before its update, and what the trained network makes of digits it has not seen."""

    losses: Array
    test_loss: float
    test_accuracy: float


def train(optimiser: Optimiser, steps: int) -> Result:
    """Train with one optimiser and test, all in one run of one program."""
    images, labels = load_data()
    ir = popxl.Ir()
    ir.num_host_transfers = steps
    with ir.main_graph, popxl.in_sequence():
        images_in = popxl.h2d_stream((BATCH, PIXELS), popxl.float32, name="images")
        labels_in = popxl.h2d_stream((BATCH,), popxl.int32, name="labels")
        losses_out = popxl.d2h_stream((), popxl.float32, name="losses")
        weights = [popxl.variable(value) for value in initial_weights()]
        state = [optimiser.make_state(w) for w in weights]

        forward = ir.create_graph(network, images_in.spec, weights)
        gradients = transforms.autodiff(forward, grads_required=forward.inputs[1:])
        updates = [ir.create_graph(optimiser.update, w, w, *s) for w, s in zip(weights, state, strict=True)]

        def step(weights: list[popxl.TensorByRef], *state: popxl.TensorByRef) -> None:
            call = ops.call_with_info(forward, ops.host_load(images_in), weights)
            loss, grad = ops.nll_loss_with_softmax_grad(ops.softmax(call.outputs[0], axis=1), ops.host_load(labels_in))
            grads = ops.call(gradients.graph, grad, inputs_dict=gradients.inputs_dict(call))
            own = len(state) // len(weights)
            for k, update in enumerate(updates):
                ops.call(update, weights[k], grads[k], state[k * own : (k + 1) * own])
            ops.host_store(losses_out, loss)

        all_state = [t for own in state for t in own]
        ops.repeat(ir.create_graph(step, weights, *all_state), steps, weights, all_state)

        # After the loop: the digits left over. A graph has fixed shapes, so these take one of their own.
        test_images = popxl.constant(images[TRAIN_DIGITS:])
        test_labels = popxl.constant(labels[TRAIN_DIGITS:])
        (scores,) = ops.call(ir.create_graph(network, test_images, weights), test_images, weights)
        right = ops.equal(ops.argmax(scores, dim=1), test_labels)
        test_loss, test_accuracy = popxl.d2h_stream((), popxl.float32), popxl.d2h_stream((), popxl.float32)
        ops.host_store(test_loss, ops.nll_loss(ops.softmax(scores, axis=1), test_labels))
        ops.host_store(test_accuracy, ops.mean(ops.cast(right, popxl.float32)))

    batch_images, batch_labels = draw_batches(steps)
    with popxl.Session(ir) as session:
        outputs = session.run({images_in: batch_images, labels_in: batch_labels})
    # Every stream has a place for each step of the loop; the test fills the first.
    return Result(outputs[losses_out], float(outputs[test_loss][0]), float(outputs[test_accuracy][0]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compares five optimisers on 8 x 8 digits.")
    parser.add_argument("--steps", type=int, default=300, help="at least 2")
    parser.add_argument("--only", choices=OPTIMISERS, help="run just this one")
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps must be at least 2")
    print(f"{'':18} {'first loss':>11} {'last loss':>11} {'test loss':>11} {'accuracy':>11}")
    for name in [options.only] if options.only else OPTIMISERS:
        result = train(OPTIMISERS[name], options.steps)
        first, last = result.losses[0], result.losses[-10:].mean()
        print(f"{name:18} {first:11.4f} {last:11.4f} {result.test_loss:11.4f} {result.test_accuracy:11.2%}", flush=True)


if __name__ == "__main__":
    main()
