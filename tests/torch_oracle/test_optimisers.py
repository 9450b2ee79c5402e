"""Optimisers made of the updates, against torch.optim, both in float64 (spec ops-updates.md §5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import popxl
from popxl import ops
from popxl.ops.var_updates import (
    accumulate_,
    accumulate_moving_average_,
    accumulate_moving_average_square_,
    accumulator_scale_,
    adam_updater,
    adamax_updater,
    copy_var_update_,
)
from popxl.tensor import Tensor

Build = Callable[[dict[str, Tensor], Tensor], None]
RATE = 0.05


@pytest.fixture
def start() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(4, 3))


@pytest.fixture
def grads() -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    # Some gradients are zero, some tiny: there epsilon decides.
    return [rng.normal(size=(4, 3)) * np.array([1.0, 1e-7, float(k != 2)]) for k in range(8)]


def ours(start: np.ndarray, build: Build, grads: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The weight after every step."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream(start.shape, popxl.float64)
        s = {name: popxl.variable(np.zeros_like(start), popxl.float64, name=name) for name in ("m", "v")}
        s |= {"w": popxl.variable(start, popxl.float64), "t": popxl.variable(0, popxl.int32)}
        build(s, ops.host_load(stream))
    weights = []
    with popxl.Session(ir) as session:
        for grad in grads:
            session.run({stream: grad})
            weights.append(session.get_tensor_data(s["w"]).copy())
    return weights


def theirs(start: np.ndarray, make: Callable[[Any], torch.optim.Optimizer], grads: Sequence[np.ndarray]) -> Any:
    w = torch.tensor(start, requires_grad=True)
    optimizer = make([w])
    weights = []
    for grad in grads:
        w.grad = torch.tensor(grad)
        optimizer.step()
        weights.append(w.detach().numpy().copy())
    return weights


def assert_equal(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_gradient_descent(start: np.ndarray, grads: list[np.ndarray]) -> None:
    got = ours(start, lambda s, grad: ops.scaled_add_(s["w"], grad, b=-RATE) and None, grads)
    assert_equal(got, theirs(start, lambda ws: torch.optim.SGD(ws, RATE), grads))


def test_gradient_descent_with_momentum_and_l2(start: np.ndarray, grads: list[np.ndarray]) -> None:
    def build(s: dict[str, Tensor], grad: Tensor) -> None:
        accumulator_scale_(s["m"], 0.9)
        accumulate_(s["m"], ops.scaled_add(grad, s["w"], b=0.1))
        ops.scaled_add_(s["w"], s["m"], b=-RATE)

    expected = theirs(start, lambda ws: torch.optim.SGD(ws, RATE, momentum=0.9, weight_decay=0.1), grads)
    assert_equal(ours(start, build, grads), expected)


def test_gradient_descent_with_dampening(start: np.ndarray, grads: list[np.ndarray]) -> None:
    # torch's first step sets m to the gradient undampened; ours starts at zero, so it starts with m = g by itself.
    def build(s: dict[str, Tensor], grad: Tensor) -> None:
        accumulator_scale_(s["m"], 0.9)
        accumulate_(s["m"], grad, 0.3)
        ops.scaled_add_(s["w"], s["m"], b=-RATE)

    first = grads[0] / 0.3
    expected = theirs(start, lambda ws: torch.optim.SGD(ws, RATE, momentum=0.9, dampening=0.7), grads)
    assert_equal(ours(start, build, [first, *grads[1:]]), expected)


def moments(s: dict[str, Tensor], grad: Tensor) -> None:
    accumulate_moving_average_(s["m"], grad, 0.9)
    accumulate_moving_average_square_(s["v"], grad, 0.99)


def test_adam_with_decoupled_weight_decay(start: np.ndarray, grads: list[np.ndarray]) -> None:
    # Epsilon is added outside the root and after the correction by both.
    def build(s: dict[str, Tensor], grad: Tensor) -> None:
        moments(s, grad)
        x = adam_updater(s["m"], s["v"], s["w"], s["t"], weight_decay=0.1, beta1=0.9, beta2=0.99, epsilon=1e-6)
        ops.scaled_add_(s["w"], x, b=-RATE)

    expected = theirs(
        start, lambda ws: torch.optim.AdamW(ws, RATE, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1), grads
    )
    assert_equal(ours(start, build, grads), expected)


def test_adam_with_l2(start: np.ndarray, grads: list[np.ndarray]) -> None:
    def build(s: dict[str, Tensor], grad: Tensor) -> None:
        moments(s, ops.scaled_add(grad, s["w"], b=0.1))
        x = adam_updater(s["m"], s["v"], time_step=s["t"], beta1=0.9, beta2=0.99, epsilon=1e-6)
        ops.scaled_add_(s["w"], x, b=-RATE)

    expected = theirs(
        start, lambda ws: torch.optim.Adam(ws, RATE, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1), grads
    )
    assert_equal(ours(start, build, grads), expected)


def test_adamax(start: np.ndarray, grads: list[np.ndarray]) -> None:
    # torch adds epsilon to the gradient's absolute value, before the maximum; adamax_updater adds it to the maximum.
    def build(s: dict[str, Tensor], grad: Tensor) -> None:
        accumulate_moving_average_(s["m"], grad, 0.9)
        epsilon, beta2 = (popxl.constant(x, popxl.float64) for x in (1e-6, 0.99))
        copy_var_update_(s["v"], ops.maximum(ops.mul(s["v"], beta2), ops.add(ops.abs(grad), epsilon)))
        ops.scaled_add_(s["w"], adamax_updater(s["m"], s["v"], time_step=s["t"], beta1=0.9, epsilon=0.0), b=-RATE)

    expected = theirs(start, lambda ws: torch.optim.Adamax(ws, RATE, betas=(0.9, 0.99), eps=1e-6), grads)
    assert_equal(ours(start, build, grads), expected)
