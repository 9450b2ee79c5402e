"""The median (spec ``ops-math.md`` §5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl import dtypes
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import NUMBERS, Sample, define, sample
from popxl.ops._jax import jnp, lax
from popxl.ops._reduction import (
    Axes,
    given_axes,
    kept_shape,
    nonempty_rule,
    over_axes,
    reduced_axes,
    reduced_shape,
    reduction_samples,
)
from popxl.tensor import Tensor


def median(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Take the lower median over axes: element ``(n - 1) // 2`` of the n sorted ones; NaN if there is one.

    The op has a second output, int32: the place of that element in the slice, whose axes are flattened in order.
    The gradient goes to that element alone; of equal ones, which it is is unspecified.

    Args:
        t: Any number dtype.
        axis: Axes to take the median over, negative ones counted from the end; None for all, ``[]`` for none.
        keepdims: Whether these axes stay, with length 1.

    Returns:
        The medians, of the same dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if an axis is no integer.
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice, or there are 0 elements to
            choose from.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.median(popxl.constant([[1.0, 2.0], [3.0, 4.0]]), axis=1).shape
        (2,)
    """
    names = ("median_out", "median_indices_out")
    return MEDIAN.emit({"t": t}, names, axes=given_axes(axis), keepdims=bool(keepdims))[0]


def _rule(t: ShapeDtype, axes: Axes, keepdims: bool) -> tuple[ShapeDtype, ...]:
    result = nonempty_rule(t, axes, keepdims)
    return result, ShapeDtype(result.shape, dtypes.int32)


def _median(t: Any, axes: Axes, keepdims: bool) -> tuple[Any, ...]:
    reduced = reduced_axes(t.shape, axes)
    kept = tuple(i for i in range(t.ndim) if i not in reduced)
    count = np.prod([t.shape[i] for i in reduced], dtype=int).item()
    rows = t.transpose((*kept, *reduced)).reshape((*(t.shape[i] for i in kept), count))
    places = lax.broadcasted_iota(np.int32, rows.shape, rows.ndim - 1)
    ordered, places = lax.sort((rows, places), dimension=rows.ndim - 1, num_keys=1)
    # NaN is sorted to the end, and wins if there is one.
    last_wins = jnp.isnan(ordered[..., -1])
    shape = reduced_shape(t.shape, axes, keepdims)
    return tuple(jnp.where(last_wins, v[..., -1], v[..., (count - 1) // 2]).reshape(shape) for v in (ordered, places))


def _gradient(
    grads: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], axes: Axes, keepdims: bool
) -> Sequence[Any]:
    (t,) = inputs
    g, place = (v.reshape(kept_shape(t.shape, axes)) for v in (grads[0], outputs[1]))
    own_place = jnp.zeros(t.shape, np.int32)
    for i in reduced_axes(t.shape, axes):
        own_place = own_place * t.shape[i] + lax.broadcasted_iota(np.int32, t.shape, i)
    return [jnp.where(own_place == place, g, jnp.zeros_like(g))]


def _oracle(t: Any, axis: Any, keepdims: bool) -> Any:
    axes = tuple(range(t.ndim)) if axis is None else tuple(np.atleast_1d(np.array(axis, int)) % max(t.ndim, 1))
    values = np.empty([1 if i in axes else n for i, n in enumerate(t.shape)], t.dtype)
    places = np.empty(values.shape, np.int32)
    for corner in np.ndindex(*values.shape):
        row = t[tuple(np.s_[:] if i in axes else k for i, k in enumerate(corner))].ravel().tolist()
        order = sorted(range(len(row)), key=lambda k, row=row: (row[k] != row[k], row[k]))
        chosen = order[-1] if row[order[-1]] != row[order[-1]] else order[(len(row) - 1) // 2]
        values[corner], places[corner] = row[chosen], chosen
    gone = () if keepdims else axes
    return values.squeeze(gone), places.squeeze(gone)


def _samples() -> Sequence[Sample]:
    nan, inf = np.nan, np.inf
    return (
        *reduction_samples(of_nothing=False, smooth_ties=False),
        sample(np.array([4.0, 1.0, 3.0, 2.0], np.float32), tolerance=0),
        sample(np.array([[2.0, 1.0, 2.0, 2.0], [3.0, 3.0, 1.0, 3.0]], np.float32), 1, tolerance=0, smooth=False),
        sample(np.array([[inf, -inf, 0.0], [inf, inf, -inf], [1.0, nan, -inf]], np.float32), 1, tolerance=0),
        sample(np.zeros((0, 3), np.float32), 1),
    )


MEDIAN = define(
    "ReduceMedian",
    median,
    lower=_median,
    rule=_rule,
    dtypes=NUMBERS,
    oracle=over_axes(_oracle),
    samples=_samples,
    gradient=Gradient(_gradient),
    differences="NaN if there is a NaN",
)
