"""Reductions and running sums against torch: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from op_gradients import gradient_of, result_of

from popxl import ops
from popxl.tensor import Tensor

RNG = np.random.default_rng(5)
DATA = RNG.normal(size=(3, 4, 5))
ZEROS = RNG.normal(size=(4, 4))
ZEROS[[1, 2, 2], [1, 1, 2]] = 0
"""With rows and columns that have none, one and two zeros."""
AXES = [None, 0, -1, (0, 2), [1, -3]]


def torch_axes(axis: Any, rank: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(rank))
    return tuple(axis) if isinstance(axis, tuple | list) else (axis,)


def lower_median(t: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    """The median over several axes, of which torch takes one only."""
    reduced = sorted(a % t.ndim for a in dim)
    kept = [a for a in range(t.ndim) if a not in reduced]
    out = t.permute(*kept, *reduced).flatten(len(kept)).median(dim=-1).values
    return out.reshape([1 if a in reduced else n for a, n in enumerate(t.shape)]) if keepdim else out


def product(t: torch.Tensor, dim: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    """The product over several axes, of which torch takes one only."""
    for a in sorted((a % t.ndim for a in dim), reverse=True):
        t = t.prod(dim=a, keepdim=keepdim)
    return t


REDUCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., torch.Tensor]]] = {
    "sum": (ops.sum, lambda t, **how: torch.sum(t, **how)),
    "mean": (ops.mean, lambda t, **how: torch.mean(t, **how)),
    "max": (ops.max, lambda t, **how: torch.amax(t, **how)),
    "min": (ops.min, lambda t, **how: torch.amin(t, **how)),
    "prod": (ops.prod, product),
    "l1": (ops.l1, lambda t, **how: torch.linalg.vector_norm(t, 1, **how)),
    "l2": (ops.l2, lambda t, **how: torch.linalg.vector_norm(t, 2, **how)),
    "logsumexp": (ops.logsumexp, lambda t, **how: torch.logsumexp(t, **how)),
    "sumsquare": (ops.sumsquare, lambda t, **how: torch.sum(t * t, **how)),
    "logsum": (lambda t, *how: ops.logsum(ops.exp(t), *how), lambda t, **how: torch.log(torch.sum(t.exp(), **how))),
    "median": (ops.median, lower_median),
}


def torch_gradient(function: Callable[[torch.Tensor], torch.Tensor], data: np.ndarray, g: Any) -> np.ndarray:
    t = torch.tensor(data, requires_grad=True)
    out = function(t)
    out.backward(torch.tensor(np.broadcast_to(np.asarray(g, data.dtype), out.shape).copy()))
    assert t.grad is not None
    return t.grad.numpy()


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_give_what_torch_gives(name: str, keepdims: bool, axis: Any) -> None:
    function, expected = REDUCTIONS[name]
    out = expected(torch.tensor(DATA), dim=torch_axes(axis, DATA.ndim), keepdim=keepdims)
    actual = result_of(function, DATA, axis, keepdims)
    assert actual.shape == tuple(out.shape)
    np.testing.assert_allclose(actual, out.numpy(), rtol=1e-12)


@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", [name for name in REDUCTIONS if name != "logsum"])
def test_reductions_have_the_gradients_of_torch(name: str, axis: Any) -> None:
    function, expected = REDUCTIONS[name]
    dim = torch_axes(axis, DATA.ndim)
    wanted = torch_gradient(lambda t: expected(t, dim=dim, keepdim=False), DATA, 1.5)
    np.testing.assert_allclose(gradient_of(function, DATA, axis, g=1.5), wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_logsum_has_the_gradient_of_torch(axis: Any) -> None:
    data = np.abs(DATA)
    dim = torch_axes(axis, data.ndim)
    wanted = torch_gradient(lambda t: torch.log(torch.sum(t, dim=dim)), data, -2)
    np.testing.assert_allclose(gradient_of(ops.logsum, data, axis, g=-2), wanted, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_product_with_zeros_has_the_gradient_of_torch(axis: int) -> None:
    assert set((ZEROS == 0).sum(axis)) == {0, 1, 2}
    g = RNG.normal(size=ZEROS.shape[1 - axis])
    wanted = torch_gradient(lambda t: t.prod(dim=axis), ZEROS, g)
    np.testing.assert_allclose(gradient_of(ops.prod, ZEROS, axis, g=g), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_the_median_is_the_lower_one_as_in_torch(count: int) -> None:
    data = RNG.normal(size=(5, count))
    np.testing.assert_array_equal(result_of(ops.median, data, 1), torch.tensor(data).median(dim=1).values.numpy())


def test_the_median_with_a_nan_is_that_of_torch() -> None:
    data = np.array([[1.0, np.nan, 3.0, 0.0], [1.0, np.inf, -np.inf, 0.0]])
    np.testing.assert_array_equal(result_of(ops.median, data, 1), torch.tensor(data).median(dim=1).values.numpy())


def test_logsumexp_of_infinities_is_that_of_torch() -> None:
    inf = np.inf
    data = np.array([[-inf, -inf], [-inf, 2.0], [inf, -inf], [1e300, 1e300], [np.nan, 0.0]])
    np.testing.assert_allclose(result_of(ops.logsumexp, data, 1), torch.tensor(data).logsumexp(1).numpy(), rtol=1e-15)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cumsum_gives_what_torch_gives(dim: int) -> None:
    np.testing.assert_allclose(result_of(ops.cumsum, DATA, dim), torch.tensor(DATA).cumsum(dim).numpy(), rtol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_cumsum_has_the_gradient_of_torch(dim: int) -> None:
    g = RNG.normal(size=DATA.shape)
    wanted = torch_gradient(lambda t: t.cumsum(dim), DATA, g)
    np.testing.assert_allclose(gradient_of(ops.cumsum, DATA, dim, g=g), wanted, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("dim", [0, -1])
@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize(("function", "expected"), [(ops.argmax, torch.argmax), (ops.argmin, torch.argmin)])
def test_places_of_extremes_are_those_of_torch(
    function: Callable[..., Tensor], expected: Callable[..., torch.Tensor], keepdim: bool, dim: int, dtype: Any
) -> None:
    data = np.random.default_rng(1).permutation(40).reshape(4, 2, 5).astype(dtype)
    out = expected(torch.tensor(data), dim=dim, keepdim=keepdim).numpy()
    np.testing.assert_array_equal(result_of(function, data, dim, keepdim), out)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("name", ["sum", "max", "min", "prod", "median"])
def test_integers_are_reduced_as_by_torch_in_their_own_width(name: str, dtype: Any) -> None:
    function, expected = REDUCTIONS[name]
    limits = np.iinfo(dtype)
    data = np.random.default_rng(2).integers(limits.min, limits.max, (4, 6), dtype, endpoint=True)
    out = expected(torch.tensor(data), dim=(1,), keepdim=False).numpy().astype(dtype)
    np.testing.assert_array_equal(result_of(function, data, 1), out)
