"""Training steps of `examples/digits.py`, which are so small that the time is that of everything but arithmetic.

Target: a step takes at most 1.2x that of hand-written `jax.jit`.

The model: 64-128-10 dense layers with ReLU, softmax cross-entropy, Adam, float32, 32 digits a step. Every side takes
its batches from arrays in host memory and gives loss and accuracy of every step back to the host. Sides, timed in turn
in one process:

* ``popxl``: one `Session.run` of the example's program, a `repeat` with a host load of each batch;
* ``jax jit``: one jitted step, state donated, called in a Python loop with each batch as NumPy arrays; results fetched
  after the loop, so that the steps do not wait for each other;
* ``jax jit, waiting``: the same, but each step's loss is fetched before the next step;
* ``jax scan``: `lax.scan` of the step over all batches, stacked: one transfer, one call, state donated.

All sides start from the same weights and see the same digits in the same order; the losses of the first 20 steps are
compared. Not measured: compilation, drawing the batches, other precisions, devices other than the CPU.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _examples import import_example
from _measure import OtherLoad, alternate, median_ratio, print_table, print_verdict, ratio, spread

import popxl

Array = np.ndarray[Any, Any]
#: Runs all steps once and returns the loss of each; the state goes on from round to round.
Round = Callable[[], Array]
LIMIT = 1.2


example = import_example("digits")
RATE, BETA1, BETA2, EPSILON = example.LEARNING_RATE["adam"], example.BETA1, example.BETA2, example.EPSILON


@dataclass(frozen=True, slots=True)
class Batches:
    """What a round trains with: images, (steps, batch, 64), and labels, (steps, batch)."""

    images: Array
    labels: Array

    @classmethod
    def draw(cls, steps: int, batch: int) -> Batches:
        train_data, _ = example.load_data()
        return cls(*example.draw_batches(train_data, steps, batch))


def popxl_round(batches: Batches) -> Round:
    steps, batch = batches.labels.shape
    program = example.build_training("adam", batch, steps, example.initial_weights())
    session = popxl.Session(program.ir)
    session.__enter__()
    inputs = {program.images: batches.images, program.labels: batches.labels}
    return lambda: session.run(inputs)[program.loss]


# jax


def jax_step(state, images, labels):
    """One step of Adam; returns the new state, and loss and accuracy before it."""
    weights, firsts, seconds, t = state

    def loss(weights):
        hidden = jax.nn.relu(images @ weights["hidden_weight"] + weights["hidden_bias"])
        scores = hidden @ weights["output_weight"] + weights["output_bias"]
        mine = jnp.take_along_axis(jax.nn.log_softmax(scores), labels[:, None], axis=1)
        return -mine.mean(), (scores.argmax(axis=1) == labels).mean()

    (value, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(weights)
    t = t + 1
    firsts = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, firsts, grads)
    seconds = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, seconds, grads)
    c1, c2 = 1 - BETA1**t, 1 - BETA2**t
    weights = jax.tree.map(lambda w, m, v: w - RATE * (m / c1) / (jnp.sqrt(v / c2) + EPSILON), weights, firsts, seconds)
    return (weights, firsts, seconds, t), (value, accuracy)


def jax_state():
    weights = {name: jnp.array(value) for name, value in example.initial_weights().items()}
    return weights, jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.zeros_like, weights), jnp.float32(0)


def jax_jit_round(batches: Batches, *, waiting: bool) -> Round:
    update = jax.jit(jax_step, donate_argnums=0)
    held = [jax_state()]

    def run() -> Array:
        state, results = held[0], []
        for images, labels in zip(batches.images, batches.labels, strict=True):
            state, result = update(state, images, labels)
            results.append(jax.device_get(result) if waiting else result)
        held[0] = state
        losses, _accuracies = zip(*jax.device_get(results), strict=True)
        return np.array(losses)

    return run


def jax_scan_round(batches: Batches) -> Round:
    @partial(jax.jit, donate_argnums=0)
    def update(state, images, labels):
        return jax.lax.scan(lambda state, batch: jax_step(state, *batch), state, (images, labels))

    held = [jax_state()]

    def run() -> Array:
        held[0], results = update(held[0], batches.images, batches.labels)
        losses, _accuracies = jax.device_get(results)
        return losses

    return run


SIDES: Mapping[str, Callable[[Batches], Round]] = {
    "popxl": popxl_round,
    "jax jit": partial(jax_jit_round, waiting=False),
    "jax jit, waiting": partial(jax_jit_round, waiting=True),
    "jax scan": jax_scan_round,
}


def first_losses(rounds: Mapping[str, Round]) -> dict[str, Array]:
    """Run each side once, compilation included, and return the loss of each step."""
    return {name: run() for name, run in rounds.items()}


def differ(losses: Mapping[str, Array]) -> bool:
    """Whether two sides computed something else; the last bits grow from step to step, so the first 20 count."""
    return not all(np.allclose(values[:20], losses["popxl"][:20], rtol=0, atol=1e-4) for values in losses.values())


def print_profile(run: Round, steps: int) -> None:
    """Print which Python functions a round spends its time in; the profiler makes all of them slower."""
    with cProfile.Profile() as profile:
        run()
    print(f"\nA round of popxl, {steps} steps, under cProfile:")
    pstats.Stats(profile).sort_stats("tottime").print_stats(18)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="steps of a round, at least 2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--profile", action="store_true", help="say where a round of popxl spends its time")
    options = parser.parse_args(arguments)
    batches = Batches.draw(options.steps, options.batch)
    with OtherLoad() as load:
        rounds = {name: make(batches) for name, make in SIDES.items()}
        losses = first_losses(rounds)
        timings = {name: t.per(options.steps) for name, t in alternate(rounds, options.rounds).items()}
    ours = timings["popxl"]
    header = ("side", "step, us", "popxl / it", "processor, us", "popxl / it, processor")
    rows = [
        [name, spread(t.wall_s, 1e6, 1), ratio(ours, t), spread(t.cpu_s, 1e6, 1), ratio(ours.cpu, t.cpu)]
        for name, t in timings.items()
    ]
    print_table(header, rows)
    print(load.text())
    print_verdict("a step over hand-written jax.jit's", median_ratio(ours, timings["jax jit"]), LIMIT)
    if options.profile:
        print_profile(rounds["popxl"], options.steps)
    if differ(losses):
        sys.exit(f"the losses differ: { {name: values[:20].tolist() for name, values in losses.items()} }")


if __name__ == "__main__":
    main()
