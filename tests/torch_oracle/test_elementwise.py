"""Elementwise ops and their gradients against PyTorch, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from op_gradients import result_of, values_and_gradients

from popxl import ops

SMALL = np.random.default_rng(1).normal(scale=3, size=(40,))
POSITIVE = np.random.default_rng(2).uniform(0.1, 5, size=(40,))
HALVES = np.random.default_rng(3).integers(-9, 9, size=(40,)) + 0.5
UNARY: dict[str, tuple[Callable[..., Any], Callable[..., Any], np.ndarray]] = {
    "abs": (ops.abs, torch.abs, np.append(SMALL, [0.0, -0.0])),
    "ceil": (ops.ceil, torch.ceil, HALVES),
    "clip": (partial(ops.clip, min=-1, max=2), partial(torch.clip, min=-1, max=2), SMALL),
    "clip from above": (partial(ops.clip, max=2), partial(torch.clip, max=2), SMALL),
    "cos": (ops.cos, torch.cos, SMALL),
    "exp": (ops.exp, torch.exp, SMALL),
    "floor": (ops.floor, torch.floor, HALVES),
    "gelu": (ops.gelu, partial(F.gelu, approximate="tanh"), np.append(SMALL, [0.0, 50.0, -50.0])),
    "geluerf": (ops.geluerf, F.gelu, np.append(SMALL, [0.0, 50.0, -50.0])),
    "identity": (ops.identity, torch.clone, SMALL),
    "log": (ops.log, torch.log, np.append(POSITIVE, [0.0])),
    "negate": (ops.negate, torch.neg, SMALL),
    "relu": (ops.relu, F.relu, np.append(SMALL, [0.0, -0.0])),
    "sign": (ops.sign, torch.sign, np.append(SMALL, [0.0, -0.0])),
    "sin": (ops.sin, torch.sin, SMALL),
    "sqrt": (ops.sqrt, torch.sqrt, np.append(POSITIVE, [0.0])),
    "swish": (ops.swish, F.silu, np.append(SMALL, [0.0, 50.0, -50.0])),
    "tanh": (ops.tanh, torch.tanh, SMALL),
}

MATRIX = np.random.default_rng(4).normal(scale=3, size=(4, 5))
ROW = np.random.default_rng(5).normal(scale=3, size=(5,))
COLUMN = np.random.default_rng(6).normal(scale=3, size=(4, 1))
CONDITION = np.random.default_rng(7).random((4, 5)) < 0.5
# Zeros, ones and signs, each with each: here the gradients of powers are conventions.
BASES, EXPONENTS = (a.ravel() for a in np.meshgrid([0.0, 1.0, 0.5, 3.0, -2.0], [0.0, 1.0, 2.0, 3.0, 0.5, -1.0]))
SEVERAL: dict[str, tuple[Callable[..., Any], Callable[..., Any], list[Any]]] = {
    "add": (ops.add, torch.add, [MATRIX, ROW]),
    "sub": (ops.sub, torch.sub, [COLUMN, ROW]),
    "mul": (ops.mul, torch.mul, [MATRIX, COLUMN]),
    "div": (ops.div, torch.div, [ROW, MATRIX]),
    "fmod": (ops.fmod, lambda lhs, rhs: torch.fmod(lhs, rhs.detach()), [MATRIX, COLUMN]),
    "pow": (ops.pow, torch.pow, [np.abs(MATRIX), ROW]),
    "pow at conventions": (ops.pow, torch.pow, [BASES, EXPONENTS]),
    "maximum": (ops.maximum, lambda a, b, c: torch.maximum(torch.maximum(a, b), c), [MATRIX, ROW, COLUMN]),
    "where": (ops.where, torch.where, [CONDITION, MATRIX, ROW]),
    "where, stretched condition": (ops.where, torch.where, [CONDITION[:, :1], ROW, COLUMN]),
    "scaled_add": (
        partial(ops.scaled_add, a=0.5, b=-0.1),
        lambda x, y: torch.add(0.5 * x, y, alpha=-0.1),
        [MATRIX, MATRIX[::-1].copy()],
    ),
    "scaled_add by tensors": (
        ops.scaled_add,
        lambda x, y, a, b: a * x + b * y,
        [MATRIX, MATRIX[::-1].copy(), np.array([[2.5]]), np.float64(-1.5)],
    ),
}
CASES = {
    **{name: (ours, theirs, [array]) for name, (ours, theirs, array) in UNARY.items()},
    **SEVERAL,
}


def gradients_of_torch(function: Callable[..., Any], arrays: list[Any], g: np.ndarray) -> list[np.ndarray | None]:
    tensors = [torch.tensor(a, requires_grad=np.asarray(a).dtype.kind == "f") for a in arrays]
    function(*tensors).backward(torch.tensor(g))
    return [None if t.grad is None else t.grad.numpy() for t in tensors]


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_torch(name: str) -> None:
    ours, theirs, arrays = CASES[name]
    expected = theirs(*(torch.tensor(a) for a in arrays)).numpy()
    (actual,), _ = values_and_gradients(ours, arrays, {})
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_torch(name: str) -> None:
    ours, theirs, arrays = CASES[name]
    shape = np.broadcast_shapes(*(np.shape(a) for a in arrays))
    g = np.random.default_rng(8).normal(size=shape)
    expected = gradients_of_torch(theirs, arrays, g)
    wrt = [i for i, gradient in enumerate(expected) if gradient is not None]
    assert wrt
    _, found = values_and_gradients(ours, arrays, {0: g}, wrt)
    for i, actual in zip(wrt, found, strict=True):
        np.testing.assert_allclose(actual, expected[i], rtol=1e-9, atol=1e-9)


def test_log2_is_that_of_torch() -> None:
    expected = torch.log2(torch.tensor(POSITIVE)).numpy()
    np.testing.assert_allclose(result_of(ops.log2, POSITIVE), expected, rtol=1e-12, atol=1e-12)


EDGES = np.array([0.0, -0.0, 1.5, np.inf, -np.inf, np.nan])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(ops.isnan, torch.isnan), (ops.isinf, torch.isinf), (ops.isfinite, torch.isfinite)],
    ids=["isnan", "isinf", "isfinite"],
)
def test_kinds_of_numbers_are_those_of_torch(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    np.testing.assert_array_equal(result_of(ours, EDGES), theirs(torch.tensor(EDGES)).numpy())


@pytest.mark.parametrize("name", ["abs", "ceil", "exp", "floor", "log", "relu", "sqrt", "tanh", "clip"])
def test_values_at_edges_are_those_of_torch(name: str) -> None:
    ours, theirs, _ = UNARY[name]
    np.testing.assert_allclose(result_of(ours, EDGES), theirs(torch.tensor(EDGES)).numpy(), rtol=1e-12)
