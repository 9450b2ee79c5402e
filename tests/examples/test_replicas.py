"""The examples with several replicas, against the same networks in NumPy and float64, and against one replica.

The oracles know nothing of replicas: they take whole batches and whole weights. Gradients of the transformer layer are
compared with differences of the oracle's loss.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from math import erf
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import popxl

Array = np.ndarray[Any, Any]


class Adam:
    """Adam with a rate of 0.002, for a list of weights."""

    def __init__(self, weights: list[Array]) -> None:
        self.weights = [w.astype(np.float64) for w in weights]
        self._moments = [(np.zeros(w.shape), np.zeros(w.shape)) for w in weights]
        self._count = 0

    def update(self, grads: list[Array]) -> None:
        self._count += 1
        for k, g in enumerate(grads):
            m, v = self._moments[k]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self._moments[k] = m, v
            corrected = v / (1 - 0.999**self._count)
            self.weights[k] = self.weights[k] - 0.002 * (m / (1 - 0.9**self._count)) / (np.sqrt(corrected) + 1e-7)


def loss_and_gradient(scores: Array, labels: Array) -> tuple[float, Array]:
    """Mean cross entropy of scores, (count, classes), and its gradient."""
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    return float(loss), (probabilities - np.eye(scores.shape[1])[labels]) / len(labels)


# ---------------------------------------------------------------- digits_data_parallel.py


def dense_losses(weights: list[Array], images: Array, labels: Array) -> list[float]:
    """Losses of two dense layers with ReLU between them."""
    adam, losses = Adam(weights), []
    for x, y in zip(images.astype(np.float64), labels, strict=True):
        w1, b1, w2, b2 = adam.weights
        h = x @ w1 + b1
        active = np.maximum(h, 0)
        loss, ds = loss_and_gradient(active @ w2 + b2, y)
        dh = ds @ w2.T * (h > 0)
        adam.update([x.T @ dh, dh.sum(axis=0), active.T @ ds, ds.sum(axis=0)])
        losses.append(loss)
    return losses


@pytest.mark.parametrize(("replicas", "devices"), [(4, 2)])
def test_data_parallel_losses_are_those_of_numpy_with_whole_batches(
    replicas: int, devices: int, data_parallel: ModuleType
) -> None:
    result = data_parallel.train(replicas, steps=20, batch=32, devices=devices)
    expected = dense_losses(data_parallel.initial_weights(), *data_parallel.draw_batches(20, 32))
    np.testing.assert_allclose(result.losses, np.repeat(expected, replicas).reshape(20, replicas), rtol=0, atol=1e-5)


def test_data_parallel_weights_have_one_value_for_all_replicas(data_parallel: ModuleType) -> None:
    split, whole = (data_parallel.train(replicas, steps=5, batch=16, devices=1) for replicas in (4, 1))
    for a, b in zip(split.weights, whole.weights, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_data_parallel_network_learns_the_digits(data_parallel: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    data_parallel.main(["--steps", "400"])
    four, one, _ = capsys.readouterr().out.splitlines()
    assert four.startswith("replicas 4 ")
    assert one.startswith("replicas 1 ")
    assert min(float(line.split()[-1].rstrip("%")) for line in (four, one)) >= 96


def test_batch_must_be_shared_equally(data_parallel: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        data_parallel.main(["--replicas", "5"])
    assert "--replicas 5 does not divide --batch 32" in capsys.readouterr().err


# ---------------------------------------------------------------- tensor_parallel.py


def transformer_loss(weights: dict[str, Array], x: Array, target: Array, heads: int, length: int) -> float:
    """Mean square difference of a pre-norm transformer layer's result from a target; both (rows, width)."""

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}_scale"] + weights[f"{name}_shift"]

    width = x.shape[1]
    h = norm(x, "norm1")
    query, key, value = (
        (h @ weights[name]).reshape(-1, length, heads, width // heads).swapaxes(1, 2)
        for name in ("query", "key", "value")
    )
    scores = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(width // heads))
    attended = (scores / scores.sum(-1, keepdims=True)) @ value
    x = x + attended.swapaxes(1, 2).reshape(-1, width) @ weights["out"]
    h = norm(x, "norm2") @ weights["up"] + weights["up_bias"]
    h = h * 0.5 * (1 + np.vectorize(erf)(h / np.sqrt(2)))
    return float(((x + h @ weights["down"] + weights["down_bias"] - target) ** 2).mean())


@pytest.mark.parametrize(("tensor", "data", "devices"), [(2, 4, 8)])
def test_tensor_parallel_step_follows_the_gradient_of_numpy(
    tensor: int, data: int, devices: int, tensor_parallel: ModuleType
) -> None:
    before = {name: w.astype(np.float64) for name, w in tensor_parallel.initial_weights().items()}
    x, target = (a.astype(np.float64) for a in tensor_parallel.make_data())
    result = tensor_parallel.train(tensor_parallel.Grid(tensor, data), steps=1, devices=devices)

    def loss(weights: dict[str, Array]) -> float:
        return transformer_loss(weights, x, target, heads=8, length=16)

    # The example uses the tanh form of GELU, which is 5e-4 away from the exact one at most.
    assert result.losses[0] == pytest.approx(loss(before), rel=2e-4)
    rng = np.random.default_rng(6)
    for name, w in before.items():
        direction = rng.standard_normal(w.shape)
        ahead, behind = (loss({**before, name: w + h * direction}) for h in (1e-5, -1e-5))
        gradient = (w - result.weights[name]) / tensor_parallel.RATE
        along = float((gradient * direction).sum())
        size = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
        assert along == pytest.approx((ahead - behind) / 2e-5, abs=2e-3 * size), name


def test_tensor_parallel_training_is_that_of_the_unsplit_layer(
    tensor_parallel: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    tensor_parallel.main(["--tensor", "4", "--data", "2", "--steps", "2"])
    *_, losses, weights = capsys.readouterr().out.splitlines()
    assert losses.startswith("largest difference of the losses")
    assert weights.startswith("largest difference of the weights")
    assert max(float(line.split()[-1]) for line in (losses, weights)) < 1e-5


def test_heads_must_be_divided_equally(tensor_parallel: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tensor_parallel.main(["--tensor", "3"])
    assert "--tensor 3 does not divide 8, the number of heads" in capsys.readouterr().err


# ---------------------------------------------------------------- sharded_training.py


STEPS = 5


def deep_training(
    layers: list[list[Array]], last: list[Array], batch: Callable[[int], tuple[Array, Array]]
) -> tuple[list[float], list[Array]]:
    """Losses and final weights of dense layers that add to their input, and one that gives scores."""
    adam, losses = Adam([w for pair in [*layers, last] for w in pair]), []
    for step in range(STEPS):
        images, labels = batch(step)
        pairs = [adam.weights[k : k + 2] for k in range(0, len(adam.weights), 2)]
        inputs = [images.astype(np.float64)]
        for w, b in pairs[:-1]:
            inputs.append(inputs[-1] + np.maximum(inputs[-1] @ w + b, 0))
        w, b = pairs[-1]
        loss, ds = loss_and_gradient(inputs[-1] @ w + b, labels)
        grads, dx = [inputs[-1].T @ ds, ds.sum(axis=0)], ds @ w.T
        for (w, b), x in zip(reversed(pairs[:-1]), reversed(inputs[:-1]), strict=True):
            dh = dx * (x @ w + b > 0)
            grads = [x.T @ dh, dh.sum(axis=0), *grads]
            dx = dx + dh @ w.T
        adam.update(grads)
        losses.append(loss)
    return losses, adam.weights


@pytest.mark.parametrize(("replicas", "devices"), [(1, 1), (8, 2)])
def test_sharded_training_is_that_of_numpy_with_whole_batches(
    replicas: int, devices: int, sharded_training: ModuleType
) -> None:
    config = sharded_training.Config(layers=3)
    result = sharded_training.train(config, STEPS, popxl.Ir(replicas), devices=devices)
    losses, weights = deep_training(
        *sharded_training.initial_weights(config), lambda step: sharded_training.draw_batch(step, config.batch)
    )
    np.testing.assert_allclose(result.losses, losses, rtol=0, atol=1e-5)
    for found, expected in zip(result.weights.values(), weights, strict=True):
        # Adam divides gradients near zero by their size, so rounding may turn an update around: at most 2e-3 a step.
        assert np.abs(found.reshape(expected.shape) - expected).mean() < 1e-5


@pytest.fixture(scope="module")
def whole_run(sharded_training: ModuleType) -> Any:
    """Training in one go, in RAM."""
    return sharded_training.train(sharded_training.Config(layers=3), 2 * STEPS, popxl.Ir(4), devices=1)


def test_training_goes_on_from_a_commit_in_files_to_the_same_bits(
    tmp_path: Path, whole_run: Any, sharded_training: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sharded_training.Config(layers=3, commit_every=2)
    parts = [
        sharded_training.train(config, steps, popxl.Ir(4), str(tmp_path), devices=1) for steps in (STEPS, 2 * STEPS)
    ]
    assert [part.first_step for part in parts] == [0, STEPS]
    assert "going on from commit 3, after step 5" in capsys.readouterr().out
    np.testing.assert_array_equal(np.concatenate([part.losses for part in parts]), whole_run.losses)
    assert parts[-1].fingerprint == whole_run.fingerprint


def test_two_processes_train_as_one_does(tmp_path: Path, whole_run: Any, sharded_training: ModuleType) -> None:
    program = [str(sharded_training.__file__), "--layers", "3", "--directory", str(tmp_path)]
    command = [sys.executable, "-m", "popxl.cli", "run", "-n", "2", "--replicas", "4", *program]
    # Processes of the job have a device each, as they have without the settings of these tests.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, "--steps", str(2 * STEPS)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *progress, last = [line for line in done.stdout.splitlines() if line.startswith(("step", "fingerprint"))]
    losses = [float(line.split()[-1]) for line in progress]
    np.testing.assert_allclose(losses, whole_run.losses, rtol=0, atol=1e-4)
    assert last.endswith("of 13130 weights on 4 replicas")
