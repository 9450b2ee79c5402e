"""Ops that change the shape or the order of axes, and `detach` (spec ``ops-math.md`` §6.1-§6.3, §6.8)."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import Sample, define, define_view, sample
from popxl.ops.utils import check_in_graph, element_count
from popxl.tensor import Tensor

Shape = tuple[int, ...]


def grid(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Distinct values, so that a sample tells every element's place."""
    return np.arange(math.prod(shape)).reshape(shape).astype(dtype)


# Reshape


def _checked_shape(t: Tensor, shape: Iterable[int]) -> Shape:
    """`shape` with its -1 filled in; an element count that does not fit is left to the shape rule."""
    if not isinstance(shape, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PopxlTypeError(f"The shape of a reshape must be a tuple, not {shape!r}.", hint=f"write ({shape!r},)")
    wanted = tuple(operator.index(n) for n in shape)
    if any(n < -1 or n == 0 for n in wanted):
        raise PopxlValueError(
            f"Invalid shape value in reshape. Must be '>0' or '-1'. Provided {wanted}.",
            hint=f"tensor {t.id} has shape {t.shape}",
        )
    if wanted.count(-1) > 1:
        raise PopxlValueError(
            f"Reshape shape can contain at most one '-1' value. Provided {wanted}.",
            hint="give the length of all axes but one",
        )
    rest = math.prod(n for n in wanted if n != -1)
    return tuple(t.nelms // rest if n == -1 else n for n in wanted)


def _reshape_rule(t: ShapeDtype, shape: Shape) -> ShapeDtype:
    if element_count(shape) != element_count(t.shape):
        raise CoreError(
            f"Failure in ReshapeOp::setup(): {list(t.shape)} has {element_count(t.shape)} elements, "
            f"{list(shape)} has {element_count(shape)}.",
            hint="reshape keeps the number of elements",
        )
    return ShapeDtype(shape, t.dtype)


def reshape(t: Tensor, shape: Shape) -> Tensor:
    """Give the elements of `t`, in row-major order, another shape. A copy.

    Args:
        t: Any shape and dtype.
        shape: The new shape; one entry may be -1, which stands for what is left.

    Returns:
        Shape `shape`, dtype of `t`.

    Raises:
        PopxlValueError: (a `ValueError`) for an entry that is 0 or less than -1, or for two entries of -1.
        CoreError: (a `RuntimeError`) if the number of elements would change.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.reshape(popxl.constant([1, 2, 3, 4, 5, 6]), (2, -1)).shape
        (2, 3)
    """
    check_in_graph(get_current_graph(), t=t)
    return _reshape(t, _checked_shape(t, shape))


def _reshape(t: Tensor, shape: Shape) -> Tensor:
    return RESHAPE.emit({"t": t}, f"{t.name}_reshaped", shape=shape)[0]


def _reshape_oracle(t: Any, shape: Any) -> Any:
    wanted = [t.size // -math.prod(shape) if n == -1 else n for n in shape]
    result = np.empty(wanted, t.dtype)
    result.flat[:] = list(t.flat)
    return result


def _reshape_samples() -> Sequence[Sample]:
    return (
        sample(grid(2, 3), (3, 2), tolerance=0),
        sample(grid(2, 3, 4, dtype=np.float16), (4, -1), tolerance=0),
        sample(np.int32(7), (1, 1), tolerance=0),
        sample(np.array([[True]]), (), tolerance=0),
        sample(grid(4, 1, dtype=np.uint8), [2, 2], tolerance=0),
    )


def _lower_reshape(t: Any, shape: Shape) -> Any:
    return t.reshape(shape)


RESHAPE = define(
    "Reshape",
    reshape,
    lower=_lower_reshape,
    rule=_reshape_rule,
    oracle=_reshape_oracle,
    samples=_reshape_samples,
    host=_lower_reshape,
)


def reshape_(t: Tensor, shape: Shape) -> Tensor:
    """Do `reshape` without a copy.

    Returns:
        A view of `t`: a write to either changes both.
    """
    check_in_graph(get_current_graph(), t=t)
    return _reshape_view(t, _checked_shape(t, shape))


def _reshape_view(t: Tensor, shape: Shape) -> Tensor:
    return RESHAPE_.emit({"t": t}, f"{t.name}_reshaped", shape=shape)[0]


def _put_reshape(new: Any, t: Any, shape: Shape) -> tuple[Any, ...]:
    return (new.reshape(t.shape),)


RESHAPE_ = define_view("ReshapeInplace", reshape_, RESHAPE, put=_put_reshape)


def flatten(t: Tensor) -> Tensor:
    """Return the elements of `t`, in row-major order, as a vector; a scalar gives shape ``(1,)``. A copy."""
    check_in_graph(get_current_graph(), t=t)
    return _reshape(t, (t.nelms,))


def flatten_(t: Tensor) -> Tensor:
    """Do `flatten` without a copy. Returns a view of `t`."""
    check_in_graph(get_current_graph(), t=t)
    return _reshape_view(t, (t.nelms,))


def squeeze(t: Tensor, axes: Iterable[int] | None = None) -> Tensor:
    """Remove axes of length 1. A copy.

    Args:
        t: Any shape and dtype.
        axes: The axes, which may count from the end; all axes of length 1 if not given.

    Raises:
        PopxlValueError: (a `ValueError`) if an axis occurs twice, does not exist, or is not of length 1.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     x = popxl.constant([[[1], [2]]])
        ...     ops.squeeze(x).shape, ops.squeeze(x, [-1]).shape
        ((2,), (1, 2))
    """
    check_in_graph(get_current_graph(), t=t)
    if axes is None:
        return _reshape(t, tuple(n for n in t.shape if n != 1))
    dropped = [a + t.rank if a < 0 else a for a in axes]
    if len(set(dropped)) != len(dropped):
        raise PopxlValueError(
            f"Axes contains duplicates: {dropped} (counted from the front).", hint="name each axis once"
        )
    for axis in dropped:
        if not 0 <= axis < t.rank:
            given = axis if axis >= 0 else axis - t.rank
            raise PopxlValueError(
                f"Can't squeeze axis '{given}' as tensor has rank {t.rank}: {t.id} has shape {t.shape}.",
                hint=f"use axes in [{-t.rank}, {t.rank - 1}]",
            )
        if t.shape[axis] != 1:
            raise PopxlValueError(
                f"Can't squeeze axis '{axis}' as length of axis is >1: {t.shape[axis]}. "
                f"Tensor {t.id} has shape {t.shape}.",
                hint="leave `axes` out to remove just the axes of length 1",
            )
    return _reshape(t, tuple(n for axis, n in enumerate(t.shape) if axis not in dropped))


# Transpose


def _checked_permutation(t: Tensor, permutation: Iterable[int] | None) -> Shape:
    if permutation is None:
        return tuple(reversed(range(t.rank)))
    order = tuple(operator.index(axis) for axis in permutation)
    if any(axis >= t.rank for axis in order):
        raise PopxlValueError(
            f"Values in permutation must be less than the tensor's rank {t.rank}. Found {order}.",
            hint=f"tensor {t.id} has shape {t.shape}",
        )
    if any(axis < 0 for axis in order) or len(set(order)) != len(order):
        raise PopxlValueError(
            f"Values in permutation must be distinct and not negative. Found {order}.",
            hint=f"name each axis from 0 to {t.rank - 1} once",
        )
    return order


def _transpose_rule(t: ShapeDtype, permutation: Shape) -> ShapeDtype:
    if len(permutation) != len(t.shape):
        raise CoreError(
            f"Rank of permutation tensor {list(permutation)} is {len(permutation)}, "
            f"but the tensor of shape {list(t.shape)} has rank {len(t.shape)}.",
            hint="name every axis once",
        )
    return ShapeDtype(tuple(t.shape[axis] for axis in permutation), t.dtype)


def transpose(t: Tensor, permutation: Shape | None = None) -> Tensor:
    """Permute the axes of `t`. A copy.

    Args:
        t: Any shape and dtype.
        permutation: Axis ``permutation[i]`` of `t` becomes axis ``i``; reversed order if not given.

    Raises:
        PopxlValueError: (a `ValueError`) if an entry is not an axis of `t` or occurs twice.
        CoreError: (a `RuntimeError`) if an axis is missing.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.transpose(popxl.constant([[1, 2, 3]])).shape
        (3, 1)
    """
    check_in_graph(get_current_graph(), t=t)
    return TRANSPOSE.emit({"t": t}, f"{t.name}_T", permutation=_checked_permutation(t, permutation))[0]


def _transpose_oracle(t: Any, permutation: Any = None) -> Any:
    order = list(permutation) if permutation is not None else list(range(t.ndim))[::-1]
    result = np.empty([t.shape[axis] for axis in order], t.dtype)
    for place in np.ndindex(*result.shape):
        source = [0] * t.ndim
        for axis, i in zip(order, place, strict=True):
            source[axis] = i
        result[place] = t[tuple(source)]
    return result


def _transpose_samples() -> Sequence[Sample]:
    return (
        sample(grid(2, 3), tolerance=0),
        sample(grid(2, 3, 4), (1, 2, 0), tolerance=0),
        sample(grid(2, 3, 2, dtype=np.float16), permutation=[2, 0, 1], tolerance=0),
        sample(np.int32(3), tolerance=0),
        sample(np.zeros((0, 2), np.uint32), tolerance=0),
        sample(np.array([[True, False, False]]), tolerance=0),
    )


def _lower_transpose(t: Any, permutation: Shape) -> Any:
    return t.transpose(permutation)


TRANSPOSE = define(
    "Transpose",
    transpose,
    lower=_lower_transpose,
    rule=_transpose_rule,
    oracle=_transpose_oracle,
    samples=_transpose_samples,
    host=_lower_transpose,
    differences="negative and repeated axes are a `ValueError`",
)


def transpose_(t: Tensor, permutation: Shape | None = None) -> Tensor:
    """Do `transpose` without a copy.

    Returns:
        A view of `t`: a write to either changes both.
    """
    check_in_graph(get_current_graph(), t=t)
    return TRANSPOSE_.emit({"t": t}, f"{t.name}_T", permutation=_checked_permutation(t, permutation))[0]


def _put_transpose(new: Any, _t: Any, permutation: Shape) -> tuple[Any, ...]:
    return (new.transpose([permutation.index(axis) for axis in range(len(permutation))]),)


TRANSPOSE_ = define_view("TransposeInplace", transpose_, TRANSPOSE, put=_put_transpose)


# Detach


def detach(t: Tensor) -> Tensor:
    """Return a copy of `t` through which no gradient flows."""
    return DETACH.emit({"t": t}, "detach_out")[0]


def _same(t: ShapeDtype) -> ShapeDtype:
    return t


def _lower_detach(t: Any) -> Any:
    return t


DETACH = define(
    "Detach",
    detach,
    lower=_lower_detach,
    rule=_same,
    oracle=np.copy,
    samples=lambda: (
        sample(grid(2, 3), tolerance=0),
        sample(grid(3, dtype=np.float16), tolerance=0),
        sample(np.bool_(True), tolerance=0),
        sample(np.zeros((0,), np.int32), tolerance=0),
    ),
    gradient=None,
    host=np.asarray,
    elementwise=True,
)


def detach_(t: Tensor) -> Tensor:
    """Return a view of `t` through which no gradient flows."""
    return DETACH_.emit({"t": t}, "detach_out")[0]


def _put_detach(new: Any, _t: Any) -> tuple[Any, ...]:
    return (new,)


DETACH_ = define_view("DetachInplace", detach_, DETACH, put=_put_detach)
