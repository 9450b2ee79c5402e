"""Reading and writing at computed places along one axis: what gathers, scatters and their gradients are made of.

*Places* are the indices, shaped to the rank of the tensor that they address. Off the axis, a length of 1 stands for
all elements, so that whole slices are moved at once; other lengths are those of the tensor. A place below 0 or past
the end is outside: it reads zeros, and what is written there is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from popxl.ops._jax import jnp, lax

Shape = tuple[int, ...]


def wide_integers(indices: Any) -> Any:
    """Return `indices` in a type that holds any axis length; narrower ones would wrap when compared with it."""
    if indices.dtype == np.uint64:
        # Its largest numbers would become negative ones.
        indices = jnp.minimum(indices, np.uint64(np.iinfo(np.int64).max))
    return indices.astype(np.int32 if indices.dtype in (np.int8, np.int16, np.uint8, np.uint16, np.int32) else np.int64)


def as_places(indices: Any, shape: Shape, length: int) -> Any:
    """Return `indices` as places of the given shape along an axis of `length`."""
    wide = wide_integers(indices)
    # JAX counts negative indices from the end; one past the end is outside for it, too.
    outside = (wide < 0) | (wide >= length)
    return jnp.where(outside, length, wide).astype(np.int32).reshape(shape)


def replaced(shape: Shape, axis: int, length: int) -> Shape:
    """Return `shape` with another length of one axis."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def corner(t: Any, shape: Shape) -> Any:
    """Return the first elements of `t` along each axis, as many as `shape` says."""
    return t if t.shape == shape else lax.slice(t, (0,) * t.ndim, shape)


def with_corner(t: Any, new: Any) -> Any:
    """Return `t` with its first elements along each axis replaced by `new`."""
    return new if t.shape == new.shape else lax.dynamic_update_slice(t, new, [jnp.int32(0)] * t.ndim)


def padded(t: Any, shape: Shape) -> Any:
    """Return `t` with zeros after its last element along each axis, up to `shape`."""
    return with_corner(jnp.zeros(shape, t.dtype), t)


def take(t: Any, places: Any, axis: int) -> Any:
    """Read `t` at places along an axis; zeros outside."""
    return jnp.take_along_axis(t, places, axis, mode="fill", fill_value=0)


def _combine(scatter: Callable[..., Any], t: Any, places: Any, values: Any, axis: int, distinct: bool = False) -> Any:
    shape: Shape = places.shape
    whole = tuple(d for d, n in enumerate(shape) if n == 1 and d != axis)
    indexed = [d for d in range(len(shape)) if d not in whole]
    matched = tuple(d for d in indexed if d != axis)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=whole,
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=matched,
        scatter_indices_batching_dims=tuple(indexed.index(d) for d in matched),
    )
    starts = places.reshape((*(shape[d] for d in indexed), 1))
    return scatter(t, starts, values, numbers, unique_indices=distinct, mode=lax.GatherScatterMode.FILL_OR_DROP)


def add(t: Any, places: Any, values: Any, axis: int, *, distinct: bool = False) -> Any:
    """Return `t` with `values` added at places along an axis; `distinct` promises that no two places are one."""
    return _combine(lax.scatter_add, t, places, values, axis, distinct)


def maximum(t: Any, places: Any, values: Any, axis: int) -> Any:
    """Return the maximum of `t` and the `values` for its places along an axis."""
    return _combine(lax.scatter_max, t, places, values, axis)


def minimum(t: Any, places: Any, values: Any, axis: int) -> Any:
    """Return the minimum of `t` and the `values` for its places along an axis."""
    return _combine(lax.scatter_min, t, places, values, axis)


def last_writer(places: Any, axis: int, length: int) -> Any:
    """For each element of an axis of `length`, the last position in `places` that addresses it; -1 for none.

    A maximum of integers, so that it is the same on every device: XLA writes duplicates in any order.
    """
    positions = lax.broadcasted_iota(np.int32, places.shape, axis)
    return maximum(jnp.full(replaced(places.shape, axis, length), -1, np.int32), places, positions, axis)


def put(t: Any, places: Any, values: Any, axis: int) -> Any:
    """Return `t` with `values` at places along an axis; the last of those for one place wins."""
    last = last_writer(places, axis, t.shape[axis])
    count = places.shape[axis]
    return jnp.where(last < 0, t, take(values, jnp.where(last < 0, count, last), axis))
