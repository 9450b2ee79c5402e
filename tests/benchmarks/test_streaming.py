"""What `benchmarks/streaming.py` and the yardstick's plug-ins compare, for a tiny model. Times are not judged here."""

from __future__ import annotations

import file_tier
import numpy as np
import pytest
import streamed_stack
import streaming

import popxl

SIZES = streamed_stack.Sizes(layers=3, batch=2, width=16, heads=2, hidden=32, tokens=4)


def source(layer: int) -> np.ndarray:
    return streaming.weights(SIZES, layer)


def reference_forward(x: np.ndarray) -> np.ndarray:
    """The stack in NumPy, float64."""
    from scipy.special import erf

    def norm(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b

    for layer in range(SIZES.layers):
        flat, w, start = source(layer).astype(np.float64), {}, 0
        for name, shape in SIZES.shapes.items():
            w[name] = flat[start : start + int(np.prod(shape))].reshape(shape)
            start += int(np.prod(shape))
        batch, tokens, d = x.shape
        qkv = norm(x, w["ln1w"], w["ln1b"]) @ w["wqkv"].T + w["bqkv"]
        q, k, v = qkv.reshape(batch, tokens, 3, SIZES.heads, -1).transpose(2, 0, 3, 1, 4)
        scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(d / SIZES.heads))
        attended = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + attended.transpose(0, 2, 1, 3).reshape(x.shape) @ w["wo"].T + w["bo"]
        h = norm(x, w["ln2w"], w["ln2b"]) @ w["w1"].T + w["b1"]
        x = x + (h * 0.5 * (1 + erf(h / np.sqrt(2)))) @ w["w2"].T + w["b2"]
    return x


def test_forward_pass_is_that_of_the_yardstick() -> None:
    program = streamed_stack.forward(SIZES, source)
    x = np.random.default_rng(0).standard_normal(SIZES.input_shape, np.float32)
    with popxl.Session(program.ir) as session:
        found = session.run({program.x_in: x})[program.out]
    np.testing.assert_allclose(found, reference_forward(x.astype(np.float64)), rtol=1e-4, atol=1e-5)


def test_training_makes_the_loss_smaller() -> None:
    program = streamed_stack.training(SIZES, source)
    x = np.random.default_rng(0).standard_normal(SIZES.input_shape, np.float32)
    with popxl.Session(program.ir) as session:
        losses = [float(session.run({program.x_in: x})[program.out]) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)


def test_it_runs_and_compares_files_with_ram(capsys: pytest.CaptureFixture[str]) -> None:
    streaming.main(["--rounds=1", "--layers=2", "--batch=1", "--width=64"])
    out = capsys.readouterr().out
    for words in ("Forward pass", "Training step", "| files", "| RAM", "| loads", "| stores", "max(C, L + S)"):
        assert words in out


def test_it_measures_only_the_balanced_batch_if_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    streaming.main(["--rounds=1", "--layers=2", "--width=64", "--only=forward", "--balanced"])
    out = capsys.readouterr().out
    assert out.count("Forward pass") == 1
    for words in ("C, compute:", "L, loads:", "GB/s", "bound max(C, L, S)", "min / max of C and L + S"):
        assert words in out


def test_the_file_tier_is_compared_with_raw_calls(capsys: pytest.CaptureFixture[str]) -> None:
    file_tier.main(["--rounds=1", "--mib=1", "--commit-mib=16"])
    out = capsys.readouterr().out
    for words in ("rows of 64 KiB", "rows of 1024 KiB", "| raw 4", "no checksums", "commit of 16 MiB"):
        assert words in out
