"""Ops that pick elements at fixed places: `slice`, `slice_`, `subsample` (spec ``ops-math.md`` §6.6-§6.7)."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlValueError
from popxl.op import ShapeDtype
from popxl.ops._define import Sample, define, define_view, sample
from popxl.ops._jax import jnp, lax
from popxl.ops.shape import Shape, grid
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

Bounds = int | Sequence[int | None] | None


# Slice. Its attributes are a start, stop and step for each of `axes`, resolved against the shape: the elements are
# start, start + step, ... before stop, so that stop is -1 for a step of -1 that runs to the first element.


def slice_attributes(shape: Shape, keys: Sequence[builtins.slice[Any, Any, Any]], axes: Shape) -> dict[str, Any]:
    """Return the attributes of a slice op that takes ``keys[i]``, of step 1 or -1, along ``axes[i]``."""
    resolved = [key.indices(shape[axis]) for key, axis in zip(keys, axes, strict=True)]
    return {
        "starts": tuple(start for start, _, _ in resolved),
        "stops": tuple(stop for _, stop, _ in resolved),
        "steps": tuple(step for _, _, step in resolved),
        "axes": axes,
    }


def _checked_keys(t: Tensor, start: Bounds, stop: Bounds, step: Bounds, axis: Bounds) -> dict[str, Any]:
    given = {"start": start, "stop": stop, "step": step, "axis": axis}
    lists = {
        name: [value] if isinstance(value, int) else [None if v is None else operator.index(v) for v in value]
        for name, value in given.items()
        if value is not None
    }
    count = len(next(iter(lists.values())))
    for name, values in lists.items():
        if len(values) != count:
            raise PopxlValueError(
                f"All inputs must have same length. `{name}` has length {len(values)} != {count}.",
                hint="give start, stop, step and axis one entry for each sliced axis",
            )
    nothing: list[int | None] = [None] * count
    steps = [1 if s is None else s for s in lists.get("step", nothing)]
    if any(s not in (1, -1) for s in steps):
        raise PopxlValueError(
            f"The steps of a slice must be 1 or -1, not {steps}.", hint="use popxl.ops.subsample for strides"
        )
    bounds = zip(lists.get("start", nothing), lists.get("stop", nothing), steps, strict=True)
    return slice_attributes(t.shape, [builtins.slice(*b) for b in bounds], _checked_axes(t, lists.get("axis"), count))


def _checked_axes(t: Tensor, axes: Sequence[int | None] | None, count: int) -> Shape:
    given = [i if a is None else a for i, a in enumerate(axes if axes is not None else [None] * count)]
    for axis in given:
        if not -t.rank <= axis < t.rank:
            start = "Invalid input shape in BaseSliceOp::getSlices" if axis >= 0 else "slice op input tensor"
            raise CoreError(
                f"{start}: {t.id} of shape {list(t.shape)} has no axis {axis}.",
                hint=f"use axes in [{-t.rank}, {t.rank - 1}]" if t.rank else "a scalar cannot be sliced",
            )
    result = tuple(axis % t.rank for axis in given)
    if len(set(result)) != len(result):
        raise PopxlValueError(f"The axes {given} of a slice contain duplicates.", hint="name each axis once")
    return result


def slice(
    t: Tensor,
    start: Bounds = None,
    stop: Bounds = None,
    step: Bounds = None,
    axis: int | Sequence[int] | None = None,
) -> Tensor:
    """Take a range along some axes, with the meaning of Python's ``t[start:stop:step]``. A copy.

    Args:
        t: Any shape and dtype.
        start: First element; None for the first one in the direction of `step`.
        stop: Element to stop before; None for no limit.
        step: 1 or -1.
        axis: The axis that each entry is for; the first axes if not given.

    A number stands for a list of one. Lists must be equally long.

    Returns:
        The elements; `t` itself if start, stop and step are all None.

    Raises:
        PopxlValueError: (a `ValueError`) for lists of different lengths, another step, or an axis given twice.
        CoreError: (a `RuntimeError`) if there is no such axis.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.slice(popxl.constant([1, 2, 3, 4, 5]), 1, -1).shape
        (3,)
    """
    check_in_graph(get_current_graph(), t=t)
    if start is None and stop is None and step is None:
        return t
    return SLICE.emit({"t": t}, "slice_out", **_checked_keys(t, start, stop, step, axis))[0]


def _extents(shape: Shape, starts: Shape, stops: Shape, steps: Shape, axes: Shape) -> tuple[list[int], list[int]]:
    """First and last + 1 element of each axis, in increasing order."""
    low, high = [0] * len(shape), list(shape)
    for start, stop, step, axis in zip(starts, stops, steps, axes, strict=True):
        first, last = (start, stop) if step > 0 else (stop + 1, start + 1)
        low[axis], high[axis] = first, max(first, last)
    return low, high


def _slice_rule(t: ShapeDtype, **attributes: Shape) -> ShapeDtype:
    low, high = _extents(t.shape, **attributes)
    return ShapeDtype(tuple(b - a for a, b in zip(low, high, strict=True)), t.dtype)


def _flip(t: Any, steps: Shape, axes: Shape) -> Any:
    flipped = tuple(axis for step, axis in zip(steps, axes, strict=True) if step < 0)
    return lax.rev(t, flipped) if flipped else t


def _lower_slice(t: Any, starts: Shape, stops: Shape, steps: Shape, axes: Shape) -> Any:
    low, high = _extents(t.shape, starts, stops, steps, axes)
    return _flip(lax.slice(t, low, high), steps, axes)


def _slice_oracle(t: Any, start: Any = None, stop: Any = None, step: Any = None, axis: Any = None) -> Any:
    columns = [None if v is None else np.atleast_1d(np.array(v, object)) for v in (start, stop, step, axis)]
    count = next(len(c) for c in columns if c is not None)
    keys = [builtins.slice(None)] * t.ndim
    for i in range(count):
        first, last, stride, where = (None if c is None else c[i] for c in columns)
        keys[i if where is None else where] = builtins.slice(first, last, stride)
    return t[tuple(keys)]


def _slice_samples() -> Sequence[Sample]:
    x = grid(5)
    grid3 = grid(3, 4, 5, dtype=np.float16)
    return (
        sample(x, 1, 3, tolerance=0),
        sample(x, stop=3, step=-1, tolerance=0),
        sample(x, start=-3, step=-1, tolerance=0),
        sample(x, 3, 1, tolerance=0),
        sample(x, 5, None, -1, tolerance=0),
        sample(x, -9, 9, tolerance=0),
        sample(x, 2, 2, tolerance=0),
        sample(x, -6, None, -1, tolerance=0),
        sample(grid3, [1, None], [None, -1], [1, -1], [-1, 0], tolerance=0),
        sample(grid3, step=[-1, 1, -1], tolerance=0),
        sample(grid(4, 2, dtype=np.int32), [0, 1], [3, 2], tolerance=0),
        sample(np.array([True, False, False]), step=-1, tolerance=0),
    )


def _host_slice(t: Any, **attributes: Shape) -> Any:
    low, high = _extents(t.shape, **attributes)
    flipped = tuple(axis for step, axis in zip(attributes["steps"], attributes["axes"], strict=True) if step < 0)
    return np.flip(t[tuple(builtins.slice(a, b) for a, b in zip(low, high, strict=True))], flipped)


SLICE = define(
    "Slice",
    slice,
    lower=_lower_slice,
    rule=_slice_rule,
    oracle=_slice_oracle,
    samples=_slice_samples,
    host=_host_slice,
    differences="steps other than 1 and -1 are a `ValueError`; empty slices and `start > stop` mean what they do in "
    "NumPy",
)


def slice_(
    t: Tensor,
    start: Bounds = None,
    stop: Bounds = None,
    step: Bounds = None,
    axis: int | Sequence[int] | None = None,
) -> Tensor:
    """Do `slice` without a copy.

    Returns:
        A view of `t`: a write to either changes the elements that they share. `t` itself if start, stop and
        step are all None.
    """
    check_in_graph(get_current_graph(), t=t)
    if start is None and stop is None and step is None:
        return t
    return SLICE_.emit({"t": t}, "slice_out", **_checked_keys(t, start, stop, step, axis))[0]


def _put_slice(new: Any, t: Any, starts: Shape, stops: Shape, steps: Shape, axes: Shape) -> tuple[Any, ...]:
    low, _ = _extents(t.shape, starts, stops, steps, axes)
    return (lax.dynamic_update_slice(t, _flip(new, steps, axes), [jnp.int32(n) for n in low]),)


SLICE_ = define_view("SliceInplace", slice_, SLICE, put=_put_slice)


# Subsample


def _subsample_rule(t: ShapeDtype, strides: Shape) -> ShapeDtype:
    for i, stride in enumerate(strides):
        if stride <= 0:
            kind = "0" if stride == 0 else "Negative"
            raise CoreError(
                f"Strides invalid. {kind} stride at index {i} of {list(strides)}.", hint="strides are 1 or more"
            )
    return ShapeDtype(tuple(-(-n // k) for n, k in zip(t.shape, strides, strict=True)), t.dtype)


def subsample(t: Tensor, strides: int | Iterable[int]) -> Tensor:
    """Take every k-th element along each axis, the first one included. A copy.

    Args:
        t: Any shape and dtype.
        strides: The k of each axis; 1 for the axes beyond the last entry. A number is for the first axis.

    Raises:
        PopxlValueError: (a `ValueError`) for more strides than axes.
        CoreError: (a `RuntimeError`) for a stride below 1.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.subsample(popxl.constant([1, 2, 3, 4, 5]), 2).shape
        (3,)
    """
    check_in_graph(get_current_graph(), t=t)
    given = (strides,) if isinstance(strides, int) else tuple(operator.index(k) for k in strides)
    if len(given) > t.rank:
        raise PopxlValueError(
            f"The length of subsample `strides` must not be greater than the rank {t.rank} of {t.id}: {given}.",
            hint="give one stride for each axis at most",
        )
    return SUBSAMPLE.emit({"t": t}, "subsample_out", strides=given + (1,) * (t.rank - len(given)))[0]


def _subsample_oracle(t: Any, strides: Any) -> Any:
    for axis, stride in enumerate([strides] if isinstance(strides, int) else strides):
        t = np.take(t, range(0, t.shape[axis], stride), axis)
    return t


def _lower_subsample(t: Any, strides: Shape) -> Any:
    return lax.slice(t, (0,) * t.ndim, t.shape, strides)


def _host_subsample(t: Any, strides: Shape) -> Any:
    return t[tuple(builtins.slice(None, None, k) for k in strides)]


SUBSAMPLE = define(
    "Subsample",
    subsample,
    lower=_lower_subsample,
    rule=_subsample_rule,
    oracle=_subsample_oracle,
    samples=lambda: (
        sample(grid(5), 2, tolerance=0),
        sample(grid(4, 6, dtype=np.float16), [2, 4], tolerance=0),
        sample(grid(4, 3, dtype=np.int32), (3,), tolerance=0),
        sample(grid(2, 2), [9, 1], tolerance=0),
        sample(np.zeros((0, 4), np.float32), [2, 3], tolerance=0),
    ),
    host=_host_subsample,
    differences="leaves the list of strides as it is; takes short tuples",
)
