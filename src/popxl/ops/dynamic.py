"""Regions whose place is known when the program runs (spec ``ops-math.md`` §8.3)."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._along import wide_integers
from popxl.ops._define import INTS, Sample, define, define_inplace, sample
from popxl.ops._jax import jnp, lax
from popxl.ops.shape import Shape, grid
from popxl.ops.utils import element_count
from popxl.tensor import Tensor


def _region(t: ShapeDtype, index: ShapeDtype, axes: Shape, sizes: Shape) -> Shape:
    """Shape of the region, which the arguments must describe."""
    if element_count(index.shape) != len(axes) or len(sizes) != len(axes) or len(set(axes)) != len(axes):
        raise CoreError(
            f"A dynamic slice needs one index and one size for each axis, not {element_count(index.shape)} indices "
            f"and sizes {list(sizes)} for axes {list(axes)}.",
            hint="give `index` len(axes) elements and name each axis once",
        )
    region = list(t.shape)
    for axis, size in zip(axes, sizes, strict=True):
        if not 0 <= axis < len(region) or not 0 <= size <= region[axis]:
            raise CoreError(
                f"A dynamic slice of size {size} along axis {axis} does not fit shape {list(t.shape)}.",
                hint="axes count from 0; sizes are at most the length of the axis",
            )
        region[axis] = size
    return tuple(region)


def _dynamic_slice_rule(t: ShapeDtype, index: ShapeDtype, axes: Shape, sizes: Shape, **_hints: Any) -> ShapeDtype:
    return ShapeDtype(_region(t, index, axes, sizes), t.dtype)


def _starts(shape: Shape, index: Any, axes: Shape, sizes: Shape) -> list[Any]:
    """Start along every axis, moved into the range: XLA has folded constant starts without doing so (issue 49121)."""
    starts: list[Any] = [jnp.int32(0)] * len(shape)
    flat = wide_integers(index.reshape((-1,)))
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        starts[axis] = jnp.clip(flat[i], 0, shape[axis] - size).astype(np.int32)
    return starts


def _integers(values: Iterable[int]) -> Shape:
    return tuple(operator.index(v) for v in values)


def dynamic_slice(t: Tensor, index: Tensor, axes: Iterable[int], sizes: Iterable[int], no_overlap: bool) -> Tensor:
    """Take a region whose place is known when the program runs.

    Args:
        t: Any shape and dtype.
        index: Start along each of `axes`: integers, ``len(axes)`` of them in any shape. A start that would
            take the region out of `t` is moved to the nearest one that does not.
        axes: The axes to slice, counted from the front.
        sizes: Length of the region along each of `axes`.
        no_overlap: A hint without effect.

    Returns:
        Shape of `t` with the given axes cut to `sizes`, dtype of `t`.

    Raises:
        CoreError: (a `RuntimeError`) if `index`, `axes` and `sizes` do not fit each other or `t`.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.dynamic_slice(popxl.constant([[1, 2], [3, 4]]), popxl.constant([1]), [0], [1], True).shape
        (1, 2)
    """
    return DYNAMIC_SLICE.emit(
        {"t": t, "index": index},
        "dynamic_slice_out",
        axes=_integers(axes),
        sizes=_integers(sizes),
        no_overlap=bool(no_overlap),
    )[0]


def _lower_dynamic_slice(t: Any, index: Any, axes: Shape, sizes: Shape, **_hints: Any) -> Any:
    region = list(t.shape)
    for axis, size in zip(axes, sizes, strict=True):
        region[axis] = size
    return lax.dynamic_slice(t, _starts(t.shape, index, axes, sizes), region)


def _window(t: Any, index: Any, axes: Any, sizes: Any) -> tuple[builtins.slice, ...]:
    """The region as NumPy indices, moved into `t`."""
    window = [builtins.slice(None)] * t.ndim
    for start, axis, size in zip(np.ravel(index).tolist(), axes, sizes, strict=True):
        inside = min(max(start, 0), t.shape[axis] - size)
        window[axis] = builtins.slice(inside, inside + size)
    return tuple(window)


def _dynamic_slice_samples() -> Sequence[Sample]:
    return (
        sample(grid(5, 3), np.array([1], np.int32), [0], [2], True, tolerance=0),
        sample(grid(5, 3, dtype=np.float16), np.array([[2, 1]], np.uint32), [1, 0], [1, 4], False, tolerance=0),
        sample(grid(4, dtype=np.int32), np.array(4, np.int32), (0,), (2,), no_overlap=True, tolerance=0),
        sample(grid(4, dtype=np.int32), np.array(-3, np.int32), (0,), (2,), no_overlap=True, tolerance=0),
        sample(grid(300), np.array(100, np.int8), [0], [200], True, tolerance=0),
        sample(grid(3, 2), np.array([3], np.int32), [0], [0], True, tolerance=0),
        sample(np.array([True, False]), np.zeros((1,), np.int32), [0], [1], True, tolerance=0),
    )


def _host_dynamic_slice(t: Any, index: Any, axes: Any, sizes: Any, no_overlap: bool) -> Any:
    return t[_window(t, index, axes, sizes)]


DYNAMIC_SLICE = define(
    "DynamicSlice",
    dynamic_slice,
    lower=_lower_dynamic_slice,
    rule=_dynamic_slice_rule,
    dtypes={"index": INTS},
    oracle=_host_dynamic_slice,
    samples=_dynamic_slice_samples,
    host=_host_dynamic_slice,
    differences="a region out of range moves to the nearest place that fits",
)


def dynamic_update(
    t: Tensor, index: Tensor, t_update: Tensor, axes: Iterable[int], sizes: Iterable[int], no_overlap: bool
) -> Tensor:
    """Return a copy of `t` with a region overwritten.

    Args:
        t: Any shape and dtype.
        index: As for `dynamic_slice`.
        t_update: What to write: the shape of the region, of which a leading 1 may be missing; dtype of `t`.
            The shape is compared when a session is made.
        axes: As for `dynamic_slice`.
        sizes: As for `dynamic_slice`.
        no_overlap: A hint without effect.

    Raises:
        CoreError: (a `RuntimeError`) as for `dynamic_slice`, and if the dtypes differ.
    """
    return DYNAMIC_UPDATE.emit(
        {"t": t, "index": index, "t_update": t_update},
        "dynamic_update_out",
        axes=_integers(axes),
        sizes=_integers(sizes),
        no_overlap=bool(no_overlap),
    )[0]


def _dynamic_update_rule(
    t: ShapeDtype, index: ShapeDtype, t_update: ShapeDtype, axes: Shape, sizes: Shape, **_hints: Any
) -> ShapeDtype:
    _region(t, index, axes, sizes)
    if t_update.dtype != t.dtype:
        raise CoreError(
            f"A dynamic update of {t.dtype.name} with {t_update.dtype.name} would need a cast.",
            hint="cast `t_update` with popxl.ops.cast",
        )
    return t


def _lower_dynamic_update(t: Any, index: Any, t_update: Any, axes: Shape, sizes: Shape, **_hints: Any) -> Any:
    region = list(t.shape)
    for axis, size in zip(axes, sizes, strict=True):
        region[axis] = size
    shape = list(t_update.shape)
    if shape != region and [1, *shape] != region:
        raise CoreError(
            f"The update of shape {shape} does not fit the region of shape {region}.",
            hint="reshape `t_update` to the shape of the region",
        )
    return lax.dynamic_update_slice(t, t_update.reshape(region), _starts(t.shape, index, axes, sizes))


def _dynamic_update_oracle(t: Any, index: Any, t_update: Any, axes: Any, sizes: Any, no_overlap: bool) -> Any:
    result = t.copy()
    result[_window(t, index, axes, sizes)] = t_update
    return result


def _dynamic_update_samples() -> Sequence[Sample]:
    i, x = np.int32, grid(3, 4)
    return (
        sample(grid(5, 3), np.array([1], i), -grid(2, 3), [0], [2], True, tolerance=0),
        sample(
            x.astype(np.float16), np.array([2, 1], i), -grid(2, 1, dtype=np.float16), [1, 0], [1, 2], False, tolerance=0
        ),
        sample(grid(4, dtype=i), np.array(4, np.uint32), -grid(2, dtype=i), [0], [2], True, tolerance=0),
        sample(grid(4, 3), np.array(2, i), -grid(3), [0], [1], True, tolerance=0),
        sample(grid(3, 2), np.array([1], i), np.zeros((0, 2), np.float32), [0], [0], True, tolerance=0),
    )


DYNAMIC_UPDATE = define(
    "DynamicUpdate",
    dynamic_update,
    lower=_lower_dynamic_update,
    rule=_dynamic_update_rule,
    dtypes={"index": INTS},
    oracle=_dynamic_update_oracle,
    samples=_dynamic_update_samples,
    differences="a region out of range moves to the nearest place that fits",
)


def dynamic_update_(
    t: Tensor, index: Tensor, t_update: Tensor, axes: Iterable[int], sizes: Iterable[int], no_overlap: bool
) -> Tensor:
    """Do `dynamic_update` in place. Returns an alias of `t`."""
    return DYNAMIC_UPDATE_.emit(
        {"t": t, "index": index, "t_update": t_update},
        "dynamicupdateinplace_out",
        axes=_integers(axes),
        sizes=_integers(sizes),
        no_overlap=bool(no_overlap),
    )[0]


DYNAMIC_UPDATE_ = define_inplace("DynamicUpdateInplace", dynamic_update_, DYNAMIC_UPDATE)
