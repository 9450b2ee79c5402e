"""Writing single elements at places that are known when the program runs (spec ``ops-math.md`` §8.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.op import Gradient, ShapeDtype
from popxl.ops import _along
from popxl.ops._along import as_places, corner, padded, replaced, with_corner
from popxl.ops._define import INTS, Sample, define, sample
from popxl.ops._jax import jnp
from popxl.ops._scatter_forms import AXIS_ERROR, check_inside, check_rank, check_same_dtype
from popxl.ops.joining import checked_axis
from popxl.ops.shape import grid
from popxl.ops.utils import checked_memory_hint
from popxl.tensor import Tensor


def _scatter_rule(t: ShapeDtype, indices: ShapeDtype, values: ShapeDtype, axis: int, **_hints: Any) -> ShapeDtype:
    where = checked_axis(t.shape, axis, AXIS_ERROR)
    check_rank(indices.shape, len(t.shape), "t")
    check_rank(indices.shape, len(values.shape), "values")
    check_inside(indices.shape, "values", values.shape)
    check_inside(indices.shape, "t", t.shape, where)
    check_same_dtype(t, values=values)
    return t


def scatter(
    t: Tensor,
    indices: Tensor,
    values: Tensor,
    axis: int = 0,
    available_memory_proportion: float | None = None,
) -> Tensor:
    """Write single elements into a copy of `t`: for each position p of `indices`, ``out[p'] = values[p]``.

    p' is p with ``indices[p]`` as its entry for `axis`. If elements go to one place, the last one wins; those
    outside ``0 <= index < t.shape[axis]`` are dropped.

    Args:
        t: Any shape but a scalar, any dtype.
        indices: Integers, of the rank of `t`, and no longer than it along the other axes.
        values: Dtype and rank of `t`, and no axis shorter than that of `indices`; what is beyond is not used.
        axis: The axis, which may count from the end.
        available_memory_proportion: A number or None; a hint without effect.

    Returns:
        Shape and dtype of `t`. In the gradient of `values`, each element written has the gradient of its place,
        including those that lost; that of `t` is 0 at places written to.

    Raises:
        PopxlTypeError: (a `TypeError`) if `available_memory_proportion` is no number.
        CoreError: (a `RuntimeError`) if there is no such axis, the shapes do not fit, the dtypes differ or
            `indices` are no integers.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.scatter(popxl.constant([1, 2, 3]), popxl.constant([2, 0]), popxl.constant([9, 8])).shape
        (3,)
    """
    return SCATTER.emit(
        {"t": t, "indices": indices, "values": values},
        "scatter_out",
        axis=axis,
        available_memory_proportion=checked_memory_hint(available_memory_proportion),
    )[0]


def _lower_scatter(t: Any, indices: Any, values: Any, axis: int, **_hints: Any) -> Any:
    axis %= t.ndim
    places = as_places(indices, indices.shape, t.shape[axis])
    reached = corner(t, replaced(indices.shape, axis, t.shape[axis]))
    return with_corner(t, _along.put(reached, places, corner(values, indices.shape), axis))


def _scatter_gradient(
    grads: Sequence[Any], inputs: Sequence[Any], _outputs: Any, axis: int, **_hints: Any
) -> Sequence[Any]:
    (g,), (t, indices, values) = grads, inputs
    axis %= t.ndim
    places = as_places(indices, indices.shape, t.shape[axis])
    reached = corner(g, replaced(indices.shape, axis, t.shape[axis]))
    kept = jnp.where(_along.last_writer(places, axis, t.shape[axis]) < 0, reached, 0)
    return [with_corner(g, kept), None, padded(_along.take(reached, places, axis), values.shape)]


def _scatter_oracle(t: Any, indices: Any, values: Any, axis: int = 0, *_hints: Any) -> Any:
    result = t.copy()
    for place in np.ndindex(*indices.shape):
        if 0 <= indices[place] < t.shape[axis]:
            target = list(place)
            target[axis] = int(indices[place])
            result[tuple(target)] = values[place]
    return result


def _scatter_samples() -> Sequence[Sample]:
    i, x = np.int32, grid(3, 4)
    half = x.astype(np.float16)
    return (
        sample(x, np.array([[2, 0, 1, 2], [0, 1, 2, 1]], i), -grid(2, 4), tolerance=0),
        sample(half, np.array([[3, 0], [1, 2]], np.uint32), -half, 1, 0.5, tolerance=0),
        sample(x, np.array([[1]], i), -grid(2, 3), axis=-1, tolerance=0),
        sample(grid(2, 2, dtype=i), np.array([[0, 0], [1, 0], [1, 0]], i), -grid(3, 2, dtype=i), tolerance=0),
        sample(grid(4), np.array([1, 1, 2, 1], i), -grid(4), tolerance=0, smooth=False),
        sample(grid(4), np.array([-1, 4, 2], i), -grid(3), tolerance=0),
        sample(x, np.zeros((0, 4), i), np.zeros((0, 4), np.float32), tolerance=0),
        sample(np.array([True, False]), np.array([1], np.int8), np.array([True]), tolerance=0),
        sample(grid(2), np.array([0], i), np.array([np.nan], np.float32), tolerance=0),
        sample(grid(300), np.array([-1, 127], np.int8), -grid(2), tolerance=0),
    )


SCATTER = define(
    "Scatter",
    scatter,
    lower=_lower_scatter,
    rule=_scatter_rule,
    dtypes={"indices": INTS},
    oracle=_scatter_oracle,
    samples=_scatter_samples,
    gradient=Gradient(_scatter_gradient, wrt=(0, 2)),
    differences="the last element for a place wins; indices outside the axis are dropped",
)
