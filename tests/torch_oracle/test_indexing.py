"""Indexing ops against torch, in float64: values, and gradients where the two agree on what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from op_gradients import gradients, values

import popxl
from popxl import ops

Shape = tuple[int, ...]
Rng = np.random.Generator


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(7)


def numbers(rng: Rng, *shape: int) -> np.ndarray:
    """Different numbers; none is 0, which ties with what torch starts from, in gradients."""
    return rng.permutation(int(np.prod(shape))).reshape(shape) / 4 - 2.0625


def places(rng: Rng, length: int, *shape: int) -> np.ndarray:
    return rng.integers(0, length, shape).astype(np.int32)


def distinct_places(rng: Rng, length: int, axis: int, *shape: int) -> np.ndarray:
    """Places of which no two meet."""
    columns = list(shape)
    columns[axis] = length
    orders = np.argsort(rng.random(columns), axis)
    return np.take(orders, range(shape[axis]), axis).astype(np.int32)


def compare(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    *,
    floats: Sequence[int],
) -> None:
    """Compare values, and gradients of the arguments `floats`, of two functions of the same arrays."""
    tensors = [torch.tensor(a.astype(np.int64) if a.dtype.kind == "i" else a) for a in arrays]
    for i in floats:
        tensors[i].requires_grad_()
    expected = theirs(*tensors)
    (actual, *_) = values(ours, *arrays)
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-14, atol=1e-14)
    given = np.linspace(0.5, 1.5, actual.size).reshape(actual.shape)
    expected.backward(torch.tensor(given))
    for i, grad in zip(floats, gradients(ours, arrays, given, floats), strict=True):
        found = tensors[i].grad
        assert found is not None
        np.testing.assert_allclose(grad, found.numpy(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_gather_of_a_vector_of_indices(rng: Rng, axis: int) -> None:
    compare(
        lambda t, i: ops.gather(t, i, axis),
        lambda t, i: torch.index_select(t, axis, i),
        [numbers(rng, 4, 3, 5), places(rng, 3, 7)],
        floats=[0],
    )


def test_gather_is_an_embedding(rng: Rng) -> None:
    compare(
        ops.gather,
        lambda t, i: torch.nn.functional.embedding(i, t),
        [numbers(rng, 6, 4), places(rng, 6, 3, 5)],
        floats=[0],
    )


@pytest.mark.parametrize(("axis", "shape"), [(0, (5, 4)), (1, (3, 2)), (-1, (3, 4)), (0, (2, 4)), (1, (1, 1))], ids=str)
def test_scatter_to_distinct_places(rng, axis: int, shape: Shape) -> None:
    t = numbers(rng, 5, 4)
    compare(
        lambda t, i, v: ops.scatter(t, i, v, axis),
        lambda t, i, v: torch.scatter(t, axis, i, v),
        [t, distinct_places(rng, t.shape[axis], axis % 2, *shape), numbers(rng, *shape)],
        floats=[0, 2],
    )


REDUCTIONS = [("sum", "sum"), ("max", "amax"), ("min", "amin")]


@pytest.mark.parametrize(("ours", "theirs"), REDUCTIONS)
@pytest.mark.parametrize(("axis", "shape"), [(0, (6, 4)), (1, (5, 9)), (0, (3, 2))], ids=str)
def test_scatter_reduce_with_initial_values(rng: Rng, ours: Any, theirs: str, axis: int, shape: Shape) -> None:
    data, initial = numbers(rng, *shape), numbers(rng, 5, 4) + 0.125
    compare(
        lambda d, i, s: ops.scatter_reduce(d, i, ours, s, axis, enable_index_broadcast=False),
        lambda d, i, s: torch.scatter_reduce(s, axis, i, d, theirs),
        [data, places(rng, initial.shape[axis], *shape), initial],
        floats=[0, 2],
    )


@pytest.mark.parametrize(("ours", "theirs"), REDUCTIONS)
def test_scatter_reduce_without_initial_values(rng: Rng, ours: Any, theirs: str) -> None:
    compare(
        lambda d, i: ops.scatter_reduce(d, i, ours, axis=1, axis_size=5),
        lambda d, i: torch.scatter_reduce(torch.zeros(4, 5, dtype=d.dtype), 1, i, d, theirs, include_self=False),
        [numbers(rng, 4, 7), places(rng, 5, 4, 7)],
        floats=[0],
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scatter_reduce_of_slices_is_index_add(rng: Rng, axis: int) -> None:
    data, initial = numbers(rng, 4, 3, 5), numbers(rng, 4, 3, 5)
    compare(
        lambda d, i, s: ops.scatter_reduce(d, i, "sum", s, axis),
        lambda d, i, s: torch.index_add(s, axis, i, d),
        [data, places(rng, initial.shape[axis], data.shape[axis]), initial],
        floats=[0, 2],
    )


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("axis", "k"), [(0, 3), (1, 2), (1, 6)])
def test_topk(rng: Rng, axis: int, k: int, largest: bool) -> None:
    t = numbers(rng, 4, 6)
    compare(
        lambda x: ops.topk(x, k, axis, largest, True),
        lambda x: torch.topk(x, k, axis, largest, True).values,
        [t],
        floats=[0],
    )
    _, indices = values(lambda x: ops.topk(x, k, axis, largest, True), t)
    np.testing.assert_array_equal(indices, torch.topk(torch.tensor(t), k, axis, largest, True).indices.numpy())


def test_topk_of_nan_and_infinities() -> None:
    t = np.array([np.inf, np.nan, -np.inf, 0.5, np.nan])
    for largest in (True, False):
        taken, _ = values(lambda x, largest=largest: ops.topk(x, 5, 0, largest, True), t)
        np.testing.assert_array_equal(taken, torch.topk(torch.tensor(t), 5, 0, largest, True).values.numpy())


def test_onehot(rng: Rng) -> None:
    t = places(rng, 4, 3, 2)
    (found,) = values(lambda i, v: ops.onehot(i, popxl.constant(4), v, -1), t, np.array([0, 1], np.int32))
    np.testing.assert_array_equal(found, torch.nn.functional.one_hot(torch.tensor(t.astype(np.int64)), 4).numpy())
