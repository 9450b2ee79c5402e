"""Sums, averages, products and extremes over axes (spec ``ops-math.md`` §5.1)."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.ops._define import Sample, sample
from popxl.ops._jax import jnp, late
from popxl.ops._reduction import Axes, define_reduction, given_axes, gradient_by, reduction_samples
from popxl.tensor import Tensor


def sum(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum over axes.

    Args:
        t: Any number dtype. Integers are not widened: they wrap around. Float16 is accumulated in float32.
        axis: Axes to sum over, negative ones counted from the end; None for all, ``[]`` for none.
        keepdims: Whether the summed axes stay, with length 1.

    Returns:
        The sums, of the same dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.sum(popxl.constant([[1, 2], [3, 4]]), axis=-1, keepdims=True).shape
        (2, 1)
    """
    return SUM.emit({"t": t}, "sum_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


SUM = define_reduction("ReduceSum", sum, late(lambda: jnp.sum), np.sum, reduction_samples)


def mean(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Average over axes.

    Args:
        t: Any number dtype. Of integers, the sum is divided with rounding down. Float16 is summed and divided in
            float32.
        axis: As for `sum`.
        keepdims: As for `sum`.

    Returns:
        The averages, of the same dtype; NaN for 0 floats.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.
    """
    return MEAN.emit({"t": t}, "mean_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _mean(t: Any, axis: Axes, keepdims: bool) -> Any:
    if not jnp.issubdtype(t.dtype, jnp.integer):
        return jnp.mean(t, axis=axis, keepdims=keepdims)
    total = jnp.sum(t, axis=axis, keepdims=keepdims)
    # The mean of no integers has no value: any divisor but 0 will do.
    count = t.size // builtins.max(total.size, 1)
    return total // builtins.max(count, 1)


def _mean_oracle(t: Any, **how: Any) -> Any:
    if t.dtype.kind == "f":
        return np.mean(t, **how)
    return np.floor(np.mean(t, **how, dtype=np.float64)).astype(np.int64)


MEAN = define_reduction(
    "ReduceMean",
    mean,
    _mean,
    _mean_oracle,
    reduction_samples,
    differences="the mean of integers is rounded down; float16 is not rounded before the division",
)


def prod(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Multiply over axes.

    The gradient of an element is the product of the others, zeros or not.

    Args:
        t: Any number dtype. Integers are not widened: they wrap around. Float16 is multiplied in float32.
        axis: As for `sum`.
        keepdims: As for `sum`.

    Returns:
        The products, of the same dtype; 1 for 0 elements.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.
    """
    return PROD.emit({"t": t}, "prod_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _prod_samples() -> Sequence[Sample]:
    # Powers of 2 above 2**16 on the way: float16 would overflow.
    half = np.resize(np.repeat(np.array([2.0, 0.5], np.float16), 20), (2, 40))
    zeros = np.array([[0.0, 2.0, -3.0], [0.0, 0.0, 5.0], [1.5, 0.5, 2.0]], np.float32)
    return (
        *(one for one in reduction_samples() if np.size(one.args[0]) < 4096),
        sample(half, 1, tolerance=0),
        sample(zeros, 1, tolerance=0),
        sample(zeros, 0, tolerance=0),
    )


PROD = define_reduction("ReduceProd", prod, late(lambda: jnp.prod), np.prod, _prod_samples)


# Extremes

_OF_TIES = gradient_by(lambda g, t, out: jnp.where(t == out, g, jnp.zeros_like(g)))


def _extreme_samples() -> Sequence[Sample]:
    return reduction_samples(of_nothing=False, smooth_ties=False)


def max(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Take the largest element over axes; NaN if there is one.

    Each element that equals the largest one receives the whole gradient.

    Args:
        t: Any number dtype.
        axis: As for `sum`.
        keepdims: As for `sum`.

    Returns:
        The largest elements, of the same dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice, or there are 0 elements to
            choose from.
    """
    return MAX.emit({"t": t}, "max_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


MAX = define_reduction(
    "ReduceMax", max, late(lambda: jnp.max), np.max, _extreme_samples, of_nothing=False, gradient=_OF_TIES
)


def min(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Take the smallest element over axes; NaN if there is one.

    Each element that equals the smallest one receives the whole gradient.

    Args:
        t: Any number dtype.
        axis: As for `sum`.
        keepdims: As for `sum`.

    Returns:
        The smallest elements, of the same dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice, or there are 0 elements to
            choose from.
    """
    return MIN.emit({"t": t}, "min_out", axes=given_axes(axis), keepdims=bool(keepdims))[0]


MIN = define_reduction(
    "ReduceMin", min, late(lambda: jnp.min), np.min, _extreme_samples, of_nothing=False, gradient=_OF_TIES
)
