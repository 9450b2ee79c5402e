"""`gather`, and what ``t[key]`` means (spec ``ops-math.md`` §6.6, §8.4; ``tensors-dtypes.md`` §5.4)."""

from __future__ import annotations

import builtins
import numbers
import operator
from collections.abc import Iterable, Sequence
from types import EllipsisType
from typing import Any, cast

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import Sample, define, sample
from popxl.ops._jax import jnp, lax
from popxl.ops.joining import checked_axis
from popxl.ops.shape import grid, squeeze
from popxl.ops.slicing import SLICE, slice_attributes, subsample
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


def check_integers(argument: str, spec: ShapeDtype) -> None:
    """Check that an index has an integer dtype.

    Raises:
        CoreError: (a `RuntimeError`) if not.
    """
    if not spec.dtype.is_int:
        raise CoreError(f"`{argument}` must be integers, not {spec.dtype.name}.", hint="cast it with popxl.ops.cast")


def wide_integers(indices: Any) -> Any:
    """Return `indices` in a type that holds any axis length; narrower ones would wrap when compared with it."""
    return indices.astype(np.int32 if indices.dtype in (np.int8, np.int16, np.uint8, np.uint16, np.int32) else np.int64)


# Gather


def _gather_rule(t: ShapeDtype, indices: ShapeDtype, axis: int, **_hints: Any) -> ShapeDtype:
    where = checked_axis(t.shape, axis, "GatherOp::setup axis =")
    check_integers("indices", indices)
    return ShapeDtype((*t.shape[:where], *indices.shape, *t.shape[where + 1 :]), t.dtype)


def gather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    available_memory_proportion: float | None = None,
    zero_OOR: bool = False,  # noqa: N803 - PopXL's name
) -> Tensor:
    """Take the slices of `t` at `indices` along an axis, as `numpy.take` does.

    Args:
        t: Any shape but a scalar, any dtype.
        indices: Any shape, integers.
        axis: The axis, which may count from the end.
        available_memory_proportion: A number or None; a hint without effect.
        zero_OOR: Promise zeros for indices outside ``0 <= index < t.shape[axis]``; without it the result
            there is unspecified. Negative indices do not count from the end.

    Returns:
        Shape ``t.shape[:axis] + indices.shape + t.shape[axis + 1:]``, dtype of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `available_memory_proportion` is no number.
        CoreError: (a `RuntimeError`) if there is no such axis or `indices` are no integers.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     table = popxl.constant([[1.0, 2.0], [3.0, 4.0]])
        ...     ops.gather(table, popxl.constant([0, 1, 1])).shape
        (3, 2)
    """
    if available_memory_proportion is not None and not isinstance(available_memory_proportion, numbers.Real):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PopxlTypeError(
            f"available_memory_proportion must be a number or None, not {available_memory_proportion!r}.",
            hint="leave it out: it has no effect here",
        )
    hint = None if available_memory_proportion is None else float(available_memory_proportion)
    return GATHER.emit(
        {"t": t, "indices": indices},
        "gather_out",
        axis=axis,
        available_memory_proportion=hint,
        zero_OOR=bool(zero_OOR),
    )[0]


def _lower_gather(t: Any, indices: Any, axis: int, **_hints: Any) -> Any:
    # Zeros outside the range, asked for or not: one rule, and gradients of such places vanish instead of moving.
    axis %= t.ndim
    length = t.shape[axis]
    if length == 0:
        return lax.full((*t.shape[:axis], *indices.shape, *t.shape[axis + 1 :]), 0, t.dtype)
    places = wide_integers(indices)
    # "fill" counts negative indices from the end; ours are out of range.
    return jnp.take(t, jnp.where(places < 0, length, places), axis, mode="fill", fill_value=0)


def _host_gather(t: Any, indices: Any, axis: int, **_hints: Any) -> Any:
    inside = (indices >= 0) & (indices < t.shape[axis])
    taken = np.take(np.moveaxis(t, axis, 0), np.where(inside, indices, 0), 0)
    taken = np.where(inside.reshape(inside.shape + (1,) * (t.ndim - 1)), taken, 0)
    front = range(inside.ndim)
    return np.moveaxis(taken, front, [axis % t.ndim + i for i in front])


def _gather_oracle(t: Any, indices: Any, axis: int = 0, *_hints: Any, **_more_hints: Any) -> Any:
    axis %= t.ndim
    result = np.zeros((*t.shape[:axis], *indices.shape, *t.shape[axis + 1 :]), t.dtype)
    for place in np.ndindex(*indices.shape):
        if 0 <= indices[place] < t.shape[axis]:
            result[(np.s_[:],) * axis + place] = np.take(t, int(indices[place]), axis)
    return result


def _gather_samples() -> Sequence[Sample]:
    table = grid(4, 3) + 1
    return (
        sample(table, np.array([3, 0, 3], np.int32), tolerance=0),
        sample(table.astype(np.float16), np.array([[2, 1], [0, 0]], np.uint32), 1, tolerance=0),
        sample(table, np.array(2, np.int32), axis=-1, tolerance=0),
        sample(table, np.zeros((0,), np.int32), tolerance=0),
        sample(table, np.array([-1, 4, 1], np.int32), zero_OOR=True, tolerance=0),
        sample(
            grid(2, 3, 4, dtype=np.int32), np.array([[1, -2], [3, 2]], np.int32), -2, 0.5, zero_OOR=True, tolerance=0
        ),
        sample(np.array([True, False]), np.array([1, 0, 0, 0, 1], np.uint8), tolerance=0),
        sample(np.ones((300,), np.float32), np.array([-1, 127], np.int8), zero_OOR=True, tolerance=0),
    )


GATHER = define(
    "Gather",
    gather,
    lower=_lower_gather,
    rule=_gather_rule,
    oracle=_gather_oracle,
    samples=_gather_samples,
    host=_host_gather,
)


# t[key]

_VALID = "Only integers, slices (`:`), integer tensors and boolean tensors are valid indices."


def _invalid(key: Any, hint: str) -> PopxlTypeError:
    return PopxlTypeError(f"{_VALID} Got {key!r}.", hint=hint)


def getitem(t: Tensor, key: Any) -> Tensor:
    """Return ``t[key]``, a copy.

    Args:
        t: Any dtype.
        key: What it may be:

            - an int, a slice or a tuple of these: as in NumPy;
            - integers as a tensor, array or list: `gather` on axis 0;
            - booleans as a tensor, array or list: `t` with zeros where the key is false. It keeps the shape:
              the key broadcasts against `t` from the right.

    Raises:
        PopxlTypeError: (a `TypeError`) for another key.
        PopxlValueError: (a `ValueError`) for an int outside the axis, or a step of 0.
        CoreError: (a `RuntimeError`) for more entries than `t` has axes.

    Example:
        >>> import popxl
        >>> with popxl.Ir().main_graph:
        ...     x = popxl.constant([[1, 2, 3], [4, 5, 6]])
        ...     x[-1].shape, x[:, ::2].shape, x[[0, 0, 1]].shape, x[[[True], [False]]].shape
        ((3,), (2, 2), (3, 3), (2, 3))
    """
    check_in_graph(get_current_graph(), t=t)
    if _is_basic(key):
        return _basic(t, (key,))
    if isinstance(key, tuple):
        entries = cast("tuple[Any, ...]", key)
        if all(_is_basic(k) for k in entries):
            return _basic(t, entries)
        if any(_is_basic(k) or k is None or isinstance(k, (bool, str, Tensor, EllipsisType)) for k in entries):
            raise _invalid(entries, "a tuple holds ints and slices only; index with one tensor or list at a time")
    return _selected(t, _index_tensor(cast(object, key)))


def _is_basic(key: object) -> bool:
    return isinstance(key, (int, builtins.slice)) and not isinstance(key, bool)


def _index_tensor(key: object) -> Tensor:
    if isinstance(key, Tensor):
        return key
    if isinstance(key, (str, bytes, np.generic)) or not isinstance(key, Iterable):
        raise _invalid(cast(object, key), "pass a Python int, a slice for each axis, or a list or array")
    return constant(cast(Any, key))


def _selected(t: Tensor, key: Tensor) -> Tensor:
    from popxl import ops

    if key.dtype.is_int:
        return gather(t, key)
    if key.dtype is dtypes.bool:
        return ops.where(key, t, constant(0, t.dtype))
    raise _invalid(key, "cast it to an integer dtype or to popxl.bool")


def _basic(t: Tensor, keys: tuple[Any, ...]) -> Tensor:
    if len(keys) > t.rank:
        raise CoreError(
            f"Invalid input shape in BaseSliceOp::getSlices: {len(keys)} indices for {t.id} of shape {list(t.shape)}.",
            hint="give at most one index for each axis",
        )
    slices = [_as_slice(t, axis, key) for axis, key in enumerate(keys)]
    units = [builtins.slice(s.start, s.stop, 1 if s.step is None or s.step > 0 else -1) for s in slices]
    axes = tuple(range(len(keys)))
    result = SLICE.emit({"t": t}, "slice_out", **slice_attributes(t.shape, units, axes))[0]
    strides = [1 if s.step is None else abs(s.step) for s in slices]
    if any(k != 1 for k in strides):
        result = subsample(result, strides)
    picked = [axis for axis, key in enumerate(keys) if isinstance(key, int)]
    return squeeze(result, picked) if picked else result


def _as_slice(t: Tensor, axis: int, key: Any) -> builtins.slice:
    if isinstance(key, int):
        length = t.shape[axis]
        if not -length <= key < length:
            raise PopxlValueError(
                f"Index {key} is outside axis {axis} of {t.id}, whose shape is {t.shape}.",
                hint=f"use an index in [{-length}, {length - 1}]" if length else "the axis is empty",
            )
        return builtins.slice(key % length, key % length + 1)
    try:
        bounds = [None if b is None else operator.index(b) for b in (key.start, key.stop, key.step)]
    except TypeError:
        raise _invalid(key, "the bounds of a slice are Python ints; see popxl.ops.dynamic_slice") from None
    if bounds[2] == 0:
        raise PopxlValueError(f"The step of {key!r} is 0.", hint="use a step of 1 or more, or of -1 or less")
    return builtins.slice(*bounds)
