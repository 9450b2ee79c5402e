"""What ops that read and write at computed places give, on `Approx` arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from op_interpreter import UNIT, Approx, Array, rounded, settle
from op_meanings import moved, widest

Place = tuple[int, ...]


# Reading


def take(t: Approx, indices: Approx, axis: int, zero_OOR: bool) -> Approx:  # noqa: N803 - PopXL's name
    """Slices at indices; zeros outside the range."""
    where_to = indices.value.astype(object)
    inside = np.asarray((where_to >= 0) & (where_to < t.shape[axis]), bool)
    settle(zero_OOR or inside.all())
    axis %= t.value.ndim

    def pick(a: Array) -> Array:
        result = np.zeros((*a.shape[:axis], *inside.shape, *a.shape[axis + 1 :]), a.dtype)
        for place in np.ndindex(*inside.shape):
            if inside[place]:
                result[(np.s_[:],) * axis + place] = np.take(a, int(indices.value[place]), axis)
        return result

    return t.moved(pick)


def window(shape: tuple[int, ...], index: Approx, axes: Iterable[int], sizes: Iterable[int]) -> tuple[slice, ...]:
    """The region of a dynamic slice; a start that would take it out of the tensor is moved to the nearest valid one."""
    result = [slice(None)] * len(shape)
    for start, axis, size in zip(index.value.ravel().tolist(), axes, sizes, strict=True):
        first = min(max(start, 0), shape[axis] - size)
        result[axis] = slice(first, first + size)
    return tuple(result)


def dynamic_slice(t: Approx, index: Approx, axes: Any, sizes: Any, no_overlap: bool) -> Approx:
    return t.moved(lambda a: a[window(t.shape, index, axes, sizes)].copy())


def grouped_take(t: Approx, indices: Approx, axis: int, group_size: int, zero_OOR: bool) -> Approx:  # noqa: N803
    """The first axis counts groups of both."""
    parts = [
        take(t.moved(lambda a, q=q: a[q]), indices.moved(lambda a, q=q: a[q]), axis - 1, zero_OOR)
        for q in range(group_size)
    ]
    return moved(lambda *a: np.stack(a))(*parts)


def onehot(t: Approx, values: Approx, num_classes: int, axis: int) -> Approx:
    """``values`` is [off, on]; numbers outside the range are off everywhere."""
    classes = np.arange(num_classes).astype(object).reshape(num_classes, *[1] * t.value.ndim)
    hot = np.asarray(t.value.astype(object)[None] == classes, bool)
    return values.moved(lambda a: np.moveaxis(np.where(hot, a[1], a[0]), 0, axis))


# Writing


def dynamic_update(t: Approx, index: Approx, update: Approx, axes: Any, sizes: Any, no_overlap: bool) -> Approx:
    def put(a: Array, new: Array) -> Array:
        result = a.copy()
        result[window(t.shape, index, axes, sizes)] = new
        return result

    return moved(put)(t, update)


def _targets(indices: Approx, shape: Place, length: int, axis: int) -> Iterator[tuple[Place, Place]]:
    """For each place of an array of `shape`, in order, where its element goes; those outside are left out."""
    for place in np.ndindex(*shape):
        to = int(indices.value[place])
        if 0 <= to < length:
            yield place, (*place[:axis], to, *place[axis + 1 :])


def scatter(t: Approx, indices: Approx, values: Approx, axis: int) -> Approx:
    axis %= t.value.ndim

    def put(a: Array, new: Array) -> Array:
        result = a.copy()
        for place, to in _targets(indices, indices.shape, t.shape[axis], axis):
            result[to] = new[place]
        return result

    return moved(put)(t, values)


def scatter_reduce(
    data: Approx, indices: Approx, *initial: Approx, reduction: str, axis: int, axis_size: int | None = None
) -> Approx:
    """Indices are as many as data, or a vector along the axis."""
    axis %= data.value.ndim
    if indices.shape != data.shape:
        along = (len(indices.value.ravel()), *[1] * (data.value.ndim - axis - 1))
        indices = indices.moved(lambda a: np.broadcast_to(a.reshape(along), data.shape))
    start = initial[0] if initial else None
    shape = start.shape if start else (*data.shape[:axis], axis_size, *data.shape[axis + 1 :])
    found: dict[Place, list[Place]] = {}
    for place, to in _targets(indices, data.shape, shape[axis] or 0, axis):
        found.setdefault(to, []).append(place)
    value, error = (np.zeros(shape, a.dtype) if start is None else a for a in _parts(start or data))
    value, error, exact = value.copy(), error.copy(), np.ones(value.shape, bool)
    if start is not None and data.is_float:
        exact = start.is_small.copy()
    for to, places in found.items():
        values, errors = (np.array([a[p] for p in places]) for a in (data.value, data.error))
        if start is not None and reduction != "none":
            values, errors = np.append(values, value[to]), np.append(errors, error[to])
        value[to], error[to] = _reduced(reduction, values, errors, data)
        if reduction == "sum" and data.is_float:
            exact[to] &= bool(np.all(data.is_small)) and abs(values).sum() < 2**10
    if reduction != "sum" or not data.is_float:
        return Approx(data.dtype, value, error)
    return rounded(data.dtype, value, error, exact=exact)


def _parts(a: Approx) -> tuple[Array, Array]:
    return a.value, a.error


def _reduced(reduction: str, values: Array, errors: Array, data: Approx) -> tuple[Any, Any]:
    match reduction:
        case "sum":
            own = UNIT[widest(data.dtype)] * len(values) * abs(values).sum() if data.is_float else 0
            return values.sum(dtype=values.dtype), errors.sum() + own
        case "max":
            return values.max(), errors.max()
        case "min":
            return values.min(), errors.max()
        case _:
            return values[-1], errors[-1]


def sparse_accumulate(t: Approx, x: Approx, indices: Approx, axis: int, f: float | None = None) -> Approx:
    """``t[..., indices[p], ...] += f x[..., p, ...]``, in float32 at least, rounded once."""
    if f == 0:
        return t
    axis %= t.value.ndim
    factor = 1.0 if f is None else f
    flat = indices.value.ravel()
    slices = (*t.shape[:axis], flat.size, *t.shape[axis + 1 :])
    value, error, size = t.value.copy(), t.error.copy(), abs(t.value)
    every = (np.s_[:],) * axis
    for p, to in enumerate(flat):
        if 0 <= int(to) < t.shape[axis]:
            place, source = (*every, int(to)), (*every, p)
            value[place] += factor * x.value.reshape(slices)[source]
            error[place] += abs(factor) * x.error.reshape(slices)[source]
            size[place] += abs(factor * x.value.reshape(slices)[source])
    exact = bool(np.all(t.is_small) and np.all(x.is_small)) & (factor * 16 % 1 == 0) & (size < 2**9)
    spread = error + (math.prod(indices.shape) + 4) * UNIT[widest(t.dtype, x.dtype)] * (size + error)
    return rounded(t.dtype, value, spread, exact=exact)
