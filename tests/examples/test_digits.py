"""The training examples, against the same networks and optimisers in NumPy and float64.

The oracle's gradients and updates are written out by hand. It takes the examples' weights, images and labels, and the
numbers that belong to an optimiser are repeated here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops

Array = np.ndarray[Any, Any]
ORACLE_STEPS = 20

# ---------------------------------------------------------------- the oracle


def batch_gradients(weights: list[Array], x: Array, labels: Array) -> tuple[float, list[Array]]:
    """Loss and gradients of two dense layers with ReLU between them, by hand."""
    w1, b1, w2, b2 = weights
    hidden = x @ w1 + b1
    active = np.maximum(hidden, 0)
    scores = active @ w2 + b2
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    count = len(labels)
    loss = -np.log(probabilities[np.arange(count), labels]).mean()
    d_scores = (probabilities - np.eye(10)[labels]) / count
    d_hidden = d_scores @ w2.T * (hidden > 0)
    return float(loss), [x.T @ d_hidden, d_hidden.sum(axis=0), active.T @ d_scores, d_scores.sum(axis=0)]


def momentum(w: Array, g: Array, memory: dict[str, Any], *, rate: float) -> Array:
    memory["velocity"] = 0.9 * memory.get("velocity", 0) + g
    return w - rate * memory["velocity"]


def corrected_moments(g: Array, memory: dict[str, Any]) -> tuple[Array, Array]:
    memory["t"] = memory.get("t", 0) + 1
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
    memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * g**2
    return memory["m"] / (1 - 0.9 ** memory["t"]), memory["v"] / (1 - 0.999 ** memory["t"])


def adam(w: Array, g: Array, memory: dict[str, Any], *, rate: float, decay: float = 0.0) -> Array:
    m, v = corrected_moments(g, memory)
    return w - rate * (m / (np.sqrt(v) + 1e-7) + decay * w)


def adamax(w: Array, g: Array, memory: dict[str, Any], *, rate: float) -> Array:
    m, _ = corrected_moments(g, memory)
    memory["largest"] = np.maximum(0.999 * memory.get("largest", 0), np.abs(g))
    return w - rate * m / (memory["largest"] + 1e-7)


def lamb(w: Array, g: Array, memory: dict[str, Any], *, rate: float) -> Array:
    m, v = corrected_moments(g, memory)
    x = m / (np.sqrt(v) + 1e-7) + 0.01 * w
    return w - rate * min(np.linalg.norm(w), 10.0) / np.linalg.norm(x) * x


def oracle_losses(
    weights: list[Array], images: Array, labels: Array, update: Callable[..., Array], **constants: float
) -> list[float]:
    """Loss of each batch, before the update that it brings."""
    weights = [w.astype(np.float64) for w in weights]
    memories: list[dict[str, Any]] = [{} for _ in weights]
    losses: list[float] = []
    for x, y in zip(images.astype(np.float64), labels, strict=True):
        loss, grads = batch_gradients(weights, x, y)
        losses.append(loss)
        weights = [update(w, g, mem, **constants) for w, g, mem in zip(weights, grads, memories, strict=True)]
    return losses


def test_gradients_of_the_oracle_are_differences_of_its_losses() -> None:
    rng = np.random.default_rng(5)
    weights = [rng.standard_normal(shape) for shape in ((4, 3), (3,), (3, 10), (10,))]
    x, labels = rng.standard_normal((6, 4)), rng.integers(10, size=6)
    _, grads = batch_gradients(weights, x, labels)
    directions = [rng.standard_normal(w.shape) for w in weights]
    ahead, behind = (
        batch_gradients([w + h * d for w, d in zip(weights, directions, strict=True)], x, labels)[0]
        for h in (1e-6, -1e-6)
    )
    along = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    assert (ahead - behind) / 2e-6 == pytest.approx(along, rel=1e-6)


# ---------------------------------------------------------------- digits.py


@pytest.mark.parametrize(("optimiser", "update", "rate"), [("momentum", momentum, 0.05), ("adam", adam, 0.002)])
def test_losses_of_the_first_steps_are_those_of_numpy(
    optimiser: str, update: Callable[..., Array], rate: float, digits: ModuleType
) -> None:
    train_data, _ = digits.load_data()
    images, labels = digits.draw_batches(train_data, ORACLE_STEPS, 32)
    weights = list(digits.initial_weights().values())
    expected = oracle_losses(weights, images, labels, update, rate=rate)
    result = digits.train(optimiser, steps=ORACLE_STEPS, batch=32, steps_per_run=10)
    np.testing.assert_allclose(result.losses, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_dense_network_learns_the_digits(
    optimiser: str, digits: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    digits.main(["--optimiser", optimiser, "--steps", "400"])
    test_line = capsys.readouterr().out.splitlines()[-1]
    assert test_line.startswith("test")
    assert float(test_line.split()[-1].rstrip("%")) >= 96


def test_number_of_steps_must_fill_the_runs(digits: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        digits.main(["--steps", "70"])
    assert "--steps 70 is no multiple of 50" in capsys.readouterr().err


def test_test_digits_are_not_trained_with(digits: ModuleType) -> None:
    train_data, test_data = digits.load_data()
    assert (len(train_data.labels), len(test_data.labels)) == (1437, 360)
    trained = {image.tobytes() for image in train_data.images}
    assert not any(image.tobytes() in trained for image in test_data.images)


# ---------------------------------------------------------------- digits_conv.py


@pytest.fixture(scope="module")
def conv_result(digits_conv: ModuleType) -> Any:
    return digits_conv.train(steps=200, steps_per_run=50)


def test_convolutional_network_learns_the_digits(conv_result: Any) -> None:
    assert conv_result.test_accuracy >= 0.96


def test_convolutional_network_does_better_without_dropout(conv_result: Any) -> None:
    assert conv_result.test_accuracy > conv_result.accuracies[-50:].mean()


def test_seed_decides_what_is_dropped(digits_conv: ModuleType) -> None:
    values = digits_conv.initial_weights()
    ir = popxl.Ir()
    with ir.main_graph:
        images = popxl.constant(digits_conv.load_data()[0].images[:4])
        weights = [popxl.constant(value) for value in values]
        seed_in = popxl.h2d_stream((2,), popxl.uint32)
        seeds = ops.split_random_seed(ops.host_load(seed_in), 3)
        calls = digits_conv.run_layers(digits_conv.make_layers(ir, 4, training=True), images, weights, seeds)
        scores = popxl.d2h_stream((4, 10), popxl.float32)
        ops.host_store(scores, calls[-1].outputs[0])
    with popxl.Session(ir) as session:
        first, again, other = (session.run({seed_in: np.full(2, s, np.uint32)})[scores] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# ---------------------------------------------------------------- optimisers.py


UPDATES = [
    pytest.param("SGD with momentum", momentum, {"rate": 0.05}, id="momentum"),
    pytest.param("Adam", adam, {"rate": 0.002}, id="adam"),
    pytest.param("AdamW", adam, {"rate": 0.002, "decay": 0.1}, id="adamw"),
    pytest.param("AdaMax", adamax, {"rate": 0.004}, id="adamax"),
    pytest.param("LAMB", lamb, {"rate": 0.02}, id="lamb"),
]


@pytest.mark.parametrize(("name", "update", "constants"), UPDATES)
def test_optimiser_follows_numpy_and_its_loss_falls(
    name: str, update: Callable[..., Array], constants: dict[str, float], optimisers: ModuleType
) -> None:
    images, labels = optimisers.draw_batches(60)
    result = optimisers.train(optimisers.OPTIMISERS[name], steps=60)
    expected = oracle_losses(
        optimisers.initial_weights(), images[:ORACLE_STEPS], labels[:ORACLE_STEPS], update, **constants
    )
    np.testing.assert_allclose(result.losses[:ORACLE_STEPS], expected, rtol=0, atol=1e-4)
    assert result.losses[-10:].mean() < 0.5 * result.losses[0]


def test_table_has_a_row_for_each_optimiser(optimisers: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    optimisers.main(["--steps", "2", "--only", "AdaMax"])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split("  ")[-1].strip() == "accuracy"
    assert row.startswith("AdaMax ")
    assert row.endswith("%")
