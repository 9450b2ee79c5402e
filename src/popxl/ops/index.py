"""What ``t[key]`` means (spec ``ops-math.md`` §6.6; ``tensors-dtypes.md`` §5.4)."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable
from types import EllipsisType
from typing import Any, cast

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.ops.gathers import gather
from popxl.ops.shape import squeeze
from popxl.ops.slicing import SLICE, slice_attributes, subsample
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

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
