"""What reductions, orders, products of matrices and normalisations give, on `Approx` arrays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from op_interpreter import DOUBLE, SINGLE, UNIT, Approx, Array, rounded, settle
from op_meanings import Meaning, spread_of_product, square, widest


def _axes(t: Approx, axis: int | Iterable[int] | None) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(t.value.ndim))
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(a % t.value.ndim for a in given)


def _quantum(a: Array) -> float:
    """The largest power of two, from 1 to 2**-20, of which all elements are multiples; else 0."""
    for n in range(0, 21, 2):
        if np.all(a * 2.0**n == np.rint(a * 2.0**n)):
            return 2.0**-n
    return 0.0


def _is_exact_sum(t: Approx, total_size: Any, quantum: float) -> Any:
    """Whether all partial sums are exact: multiples of a quantum that their dtype still tells apart."""
    bits = 53 if t.dtype == DOUBLE else 24
    return np.asarray(total_size) < 2.0**bits * quantum


def total(
    terms: Approx,
    axes: tuple[int, ...],
    keepdims: bool,
    dtype: np.dtype[Any],
    *,
    small: Any,
    divisor: float = 1,
    steps: int = 1,
) -> Approx:
    """A sum in float32 at least, divided, rounded once.

    Args:
        terms: What is added.
        axes: Over which axes.
        keepdims: Whether they stay.
        dtype: Of the result.
        small: Whether what the terms come from is small, so that they are exact.
        divisor: What the sum is divided by.
        steps: Roundings of each term, and one.
    """
    value, size, error = (a.sum(axis=axes, keepdims=keepdims) for a in (terms.value, abs(terms.value), terms.error))
    count = math.prod(terms.shape[a] for a in axes)
    settled = _is_exact_sum(terms, size, _quantum(terms.value)) & bool(np.all(small)) & (math.log2(divisor) % 1 == 0)
    spread = error + (count + steps) * UNIT[widest(terms.dtype)] * (size + error)
    return rounded(dtype, value / divisor, spread / divisor, ulps=1 if divisor == 1 else 2, exact=settled)


def sum_of(t: Approx, axis: Any, keepdims: bool) -> Approx:
    axes = _axes(t, axis)
    if not t.is_float:
        return Approx.exact(t.value.sum(axis=axes, keepdims=keepdims, dtype=t.dtype), t.dtype)
    return total(t, axes, keepdims, t.dtype, small=t.is_small)


def mean(t: Approx, axis: Any, keepdims: bool) -> Approx:
    axes = _axes(t, axis)
    count = math.prod(t.shape[a] for a in axes)
    settle(count > 0)
    if t.is_float:
        return total(t, axes, keepdims, t.dtype, small=t.is_small, divisor=count)
    sums = t.value.astype(object).sum(axis=axes, keepdims=keepdims)
    settle(np.asarray(abs(sums) < 2**62, bool))
    return Approx.exact(np.asarray(sums // count, t.dtype))


def extreme(function: Callable[..., Any]) -> Meaning:
    """The largest or smallest element."""

    def meaning(t: Approx, axis: Any, keepdims: bool) -> Approx:
        axes = _axes(t, axis)
        settle(math.prod(t.shape[a] for a in axes) > 0)
        value = np.asarray(function(t.value, axis=axes, keepdims=keepdims))
        return Approx(t.dtype, value, np.asarray(t.error.max(axis=axes, keepdims=keepdims)))

    return meaning


def prod(t: Approx, axis: Any, keepdims: bool) -> Approx:
    axes = _axes(t, axis)
    if not t.is_float:
        return Approx.exact(t.value.prod(axis=axes, keepdims=keepdims, dtype=t.dtype), t.dtype)
    value, size, least = (
        a.prod(axis=axes, keepdims=keepdims) for a in (t.value, abs(t.value) + t.error, np.maximum(abs(4 * t.value), 1))
    )
    # Products of numbers that are multiples of 1/4; a zero must not hide that others are large.
    exact = bool(np.all(t.is_small & (t.value * 4 % 1 == 0))) & (least < 2**24)
    count = math.prod(t.shape[a] for a in axes)
    spread = (size - abs(value)) * (1 + 1e-12) + count * UNIT[widest(t.dtype)] * size
    return rounded(t.dtype, value, spread, exact=exact)


def l1(t: Approx, axis: Any, keepdims: bool) -> Approx:
    return sum_of(Approx(t.dtype, abs(t.value), t.error), axis, keepdims)


def sumsquare(t: Approx, axis: Any, keepdims: bool, dtype: np.dtype[Any] | None = None) -> Approx:
    if not t.is_float:
        return sum_of(Approx.exact(t.value * t.value, t.dtype), axis, keepdims)
    return total(square(t), _axes(t, axis), keepdims, dtype or t.dtype, small=t.is_small, steps=2)


def lamb_square(t: Approx) -> Approx:
    return sumsquare(t, None, False, SINGLE)


def l2(t: Approx, axis: Any, keepdims: bool) -> Approx:
    squares = sumsquare(t, axis, keepdims, widest(t.dtype))
    settle(squares.low >= 2.0**-6)
    return rounded(t.dtype, np.sqrt(squares.value), squares.error / (2 * np.sqrt(squares.low)), ulps=4)


def logsum(t: Approx, axis: Any, keepdims: bool) -> Approx:
    sums = total(t, _axes(t, axis), keepdims, widest(t.dtype), small=t.is_small)
    settle(sums.low >= 2.0**-6)
    return rounded(t.dtype, np.log(sums.value), sums.error / sums.low, ulps=8, scale=1)


def logsumexp(t: Approx, axis: Any, keepdims: bool) -> Approx:
    axes = _axes(t, axis)
    count = math.prod(t.shape[a] for a in axes)
    settle(count > 0)
    value = np.log(np.exp(t.value).sum(axis=axes, keepdims=keepdims))
    size, error = (np.asarray(a.max(axis=axes, keepdims=keepdims)) for a in (abs(t.value), t.error))
    return rounded(t.dtype, value, error + (count + 32) * UNIT[widest(t.dtype)] * (1 + size))


def median(t: Approx, axis: Any, keepdims: bool) -> Approx:
    """The lower one, of the flattened slice."""
    axes = _axes(t, axis)
    count = math.prod(t.shape[a] for a in axes)
    settle(count > 0)
    rest = [a for a in range(t.value.ndim) if a not in axes]
    rows = t.value.transpose(*rest, *axes).reshape(*(t.shape[a] for a in rest), count)
    value = np.sort(rows, -1)[..., (count - 1) // 2]
    error = np.asarray(t.error.max(axis=axes, keepdims=keepdims))
    return Approx(t.dtype, value.reshape(error.shape), error)


def cumsum(t: Approx, dim: int) -> Approx:
    value, size, error = (np.cumsum(a, dim) for a in (t.value, abs(t.value), t.error))
    settled = _is_exact_sum(t, size, _quantum(t.value)) & bool(t.is_small.all())
    return rounded(t.dtype, value, error + (t.shape[dim] + 1) * UNIT[widest(t.dtype)] * (size + error), exact=settled)


# Order. Of equal numbers the first one comes first.


def _settle_order(t: Approx, axis: int) -> None:
    """All numbers along the axis are exact, or further apart than they may be off."""
    if t.is_float and t.value.size:
        gaps = np.diff(np.sort(t.value, axis), axis=axis)
        worst = t.error.max(axis=axis, keepdims=True)
        settle((worst == 0) | (gaps > 2 * worst) | np.zeros_like(gaps, bool))


def arg_extreme(function: Callable[..., Any]) -> Meaning:
    def meaning(t: Approx, dim: int, keepdim: bool) -> Approx:
        settle(t.shape[dim] > 0)
        _settle_order(t, dim)
        return Approx.exact(np.asarray(function(t.value, axis=dim, keepdims=keepdim), np.int32))

    return meaning


def topk(t: Approx, k: int, axis: int, largest: bool, sorted: bool) -> tuple[Approx, Approx]:
    _settle_order(t, axis)
    if largest:  # backwards, so that ties come out forwards
        back = np.argsort(np.flip(t.value, axis), axis, kind="stable")
        order = np.flip(t.shape[axis] - 1 - back, axis)
    else:
        order = np.argsort(t.value, axis, kind="stable")
    first = np.take(order, range(k), axis)
    return t.moved(lambda a: np.take_along_axis(a, first, axis)), Approx.exact(first.astype(np.int32))


def histogram(t: Approx, levels: list[float], absolute_of_input: bool) -> Approx:
    value = abs(t.value) if absolute_of_input else t.value
    settle(all(np.all((t.error == 0) | (abs(value - level) > t.error)) for level in levels))
    ends = [-math.inf, *levels, math.inf]
    counts = [np.sum((value >= a) & (value < b)) for a, b in itertools.pairwise(ends)]
    return Approx.exact(np.array(counts, np.uint32))


# Matrices and normalisation


def matmul(a: Approx, b: Approx) -> Approx:
    """Products are added in float32 at least and rounded once."""
    size = np.matmul(abs(a.value) + a.error, abs(b.value) + b.error)
    spread = size - np.matmul(abs(a.value), abs(b.value))
    unit = UNIT[widest(a.dtype)]
    settled = _is_exact_sum(a, size, _quantum(a.value) * _quantum(b.value))
    settled &= bool(a.is_small.all() and b.is_small.all())
    spread = spread * (1 + 1e-12) + (a.shape[-1] + 2) * unit * size
    return rounded(a.dtype, np.matmul(a.value, b.value), spread, exact=settled)


def softmax(t: Approx, axis: int) -> Approx:
    """Jointly over the axis and all after it."""
    settle(t.value.size > 0)
    rows, errors = (a.reshape(math.prod(t.shape[: axis % max(t.value.ndim, 1)]), -1) for a in (t.value, t.error))
    shifted = rows - rows.max(1, keepdims=True)
    weights = np.exp(shifted)
    value = weights / weights.sum(1, keepdims=True)
    unit = UNIT[widest(t.dtype)]
    own = (16 + rows.shape[1] + 2 * abs(shifted)) * unit
    spread = value * (np.expm1(2 * errors.max(1, keepdims=True)) + own * 1.1)
    return rounded(t.dtype, value.reshape(t.shape), spread.reshape(t.shape))


def group_norm(t: Approx, weight: Approx, bias: Approx, num_groups: int, eps: float = 1e-5) -> Approx:
    samples, channels = t.shape[:2]
    settle(t.value.size > 0)
    rows, errors = (a.reshape(samples * num_groups, -1) for a in (t.value, t.error))
    unit = UNIT[widest(t.dtype)]
    count = rows.shape[1]
    centred = rows - rows.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True) + eps)
    # Subtracting the mean at most doubles an error; the deviation is off by no more than its elements are.
    spread = 2 * errors.max(1, keepdims=True) + (count + 4) * unit * abs(rows).max(1, keepdims=True)
    least = deviation - spread
    settle((least > deviation / 2) & (deviation > 2.0**-4))
    normal = centred / deviation
    normal_error = spread / least + abs(centred) * spread / (deviation * least) + (count + 16) * unit * abs(normal)
    per_channel = (channels,) + (1,) * (t.value.ndim - 2)
    w, b = (Approx(a.dtype, a.value.reshape(per_channel), a.error.reshape(per_channel)) for a in (weight, bias))
    y = Approx(t.dtype, normal.reshape(t.shape), normal_error.reshape(t.shape))
    value = y.value * w.value + b.value
    spread = spread_of_product(y, w) + b.error + 3 * unit * (abs(y.value * w.value) + abs(b.value))
    return rounded(t.dtype, value, spread)
