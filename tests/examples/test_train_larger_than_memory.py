"""examples/train_larger_than_memory.py: against a plain JAX version, resident, and across kill -9."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

Array = Any
SIZES = ["--layers", "3", "--width", "16", "--length", "16", "--device-memory", "4MiB", "--write", "0"]


def run(example: ModuleType, out: Path, steps: int, *options: str) -> list[float]:
    """Train in this process; return the losses."""
    example.main([*SIZES, "--out", str(out), "--steps", str(steps), "--commit-every", "3", *options])
    return read_losses(out)


def read_losses(out: Path) -> list[float]:
    path = out / "losses.txt"
    return [float.fromhex(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---------------------------------------------------------------- the oracle


def norm(x: Array, scale: Array, shift: Array) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale + shift


def layer(x: Array, w: dict[str, Array], heads: int) -> Array:
    length, width = x.shape[1:]
    q, k, v = jnp.split(norm(x, w["norms"][0], w["norms"][1]) @ w["qkv"], 3, axis=-1)
    parts = []
    for i in range(heads):
        one = slice(i * width // heads, (i + 1) * width // heads)
        scores = jnp.einsum("bqd,bkd->bqk", q[..., one], k[..., one]) / math.sqrt(width // heads)
        allowed = jnp.tril(jnp.ones((length, length), bool))
        parts.append(jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), axis=-1) @ v[..., one])
    x = x + jnp.concatenate(parts, axis=-1) @ w["out"]
    h = norm(x, w["norms"][2], w["norms"][3]) @ w["up"]
    return x + jax.nn.gelu(h, approximate=True) @ w["down"]


def losses_of(weights: dict[str, Any], batch: Array, heads: int) -> tuple[Array, Array]:
    """Mean loss of one micro-batch, and what the op reports: it adds 1e-7 to probabilities, for the value alone."""
    x = weights["outer"]["symbols"][batch[:, :-1]] + weights["outer"]["positions"]
    for w in weights["layers"]:
        x = layer(x, w, heads)
    scores = norm(x, weights["outer"]["scale"], weights["outer"]["shift"]) @ weights["outer"]["symbols"].T
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), batch[:, 1:, None], axis=-1)
    return -chosen.mean(), -jnp.log(jnp.exp(chosen) + 1e-7).mean()


def expected_losses(example: ModuleType, steps: int) -> list[float]:
    """Train in float64 with `jax.grad` and Adam as the paper has it."""
    config = example.Config(layers=3, width=16, length=16)
    text = example.read_text(2_000_000)
    with jax.enable_x64(True):

        def wide(name: str, i: int = 0) -> Array:
            return jnp.asarray(example.initial(config, "weight", name, i), jnp.float64)

        weights: dict[str, Any] = {
            "outer": {name: wide(name) for name in config.outer},
            "layers": [{name: wide(name, i) for name in config.layer} for i in range(config.layers)],
        }
        m = v = jax.tree.map(jnp.zeros_like, weights)

        def mean_loss(weights: dict[str, Any], batches: Array) -> tuple[Array, Array]:
            losses, reported = zip(*(losses_of(weights, batch, config.heads) for batch in batches), strict=True)
            return sum(losses) / len(losses), sum(reported) / len(reported)

        step_of = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
        losses = []
        for step in range(steps):
            (_, reported), grads = step_of(weights, example.draw_batches(text, config, step))
            losses.append(float(reported))
            t, b1, b2 = step + 1, example.BETA1, example.BETA2
            rate = config.learning_rate * min(1.0, t / config.warm_up)
            m = jax.tree.map(lambda m, g, b1=b1: b1 * m + (1 - b1) * g, m, grads)
            v = jax.tree.map(lambda v, g, b2=b2: b2 * v + (1 - b2) * g * g, v, grads)
            weights = jax.tree.map(
                lambda w, m, v, t=t, b1=b1, b2=b2, rate=rate: (
                    w - rate * (m / (1 - b1**t)) / (jnp.sqrt(v / (1 - b2**t)) + example.EPSILON)
                ),
                weights, m, v,
            )  # fmt: skip
    return losses


# ---------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def losses(train_larger_than_memory: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return run(train_larger_than_memory, tmp_path_factory.mktemp("whole"), 12)


def test_it_trains_as_a_plain_jax_program_does(train_larger_than_memory: ModuleType, losses: list[float]) -> None:
    np.testing.assert_allclose(losses[:6], expected_losses(train_larger_than_memory, 6), rtol=2e-6)
    assert losses[-1] < losses[0]


def test_the_resident_form_has_the_same_losses_bit_for_bit(
    train_larger_than_memory: ModuleType, losses: list[float], tmp_path: Path
) -> None:
    assert run(train_larger_than_memory, tmp_path, 6, "--resident") == losses[:6]


def test_it_goes_on_from_the_last_commit_when_it_is_killed(
    train_larger_than_memory: ModuleType, losses: list[float], tmp_path: Path
) -> None:
    program = train_larger_than_memory.__file__
    command = [
        sys.executable,
        str(program),
        *SIZES,
        "--out",
        str(tmp_path),
        "--steps",
        "1000000",
        "--commit-every",
        "3",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if "step     3 " in line:
            break
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    done = len(read_losses(tmp_path))
    assert done >= 3
    longer = max(12, done)
    resumed = run(train_larger_than_memory, tmp_path, longer)
    assert len(resumed) == longer
    assert resumed[:12] == losses
