"""Reductions over axes (spec ``ops-math.md`` §5.1). All of one family: only the reducing function differs."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from popxl import dtypes
from popxl.errors import CoreError
from popxl.op import ShapeDtype
from popxl.ops._define import NUMBERS, Declaration, Sample, define, sample
from popxl.ops._jax import jnp, late
from popxl.ops.utils import element_count
from popxl.tensor import Tensor

Axes: TypeAlias = tuple[int, ...] | None

# The family


def _axes(axis: int | Iterable[int] | None) -> Axes:
    if axis is None:
        return None
    return tuple(axis) if isinstance(axis, Iterable) else (operator.index(axis),)


def _reduced(t: ShapeDtype, axes: Axes) -> frozenset[int]:
    """The axes, counted from the front.

    Raises:
        CoreError: (a `RuntimeError`) if one is out of range or given twice.
    """
    rank = len(t.shape)
    if axes is None:
        return frozenset(range(rank))
    if axes and not rank:
        raise CoreError(
            f"Reduce input rank must be greater than 0 to reduce over axis {axes[0]}.", hint="pass axis=None"
        )
    for a in axes:
        if not -rank <= a < rank:
            raise CoreError(f"Axis {a} is out of acceptable range [{-rank}, {rank - 1}].", hint=f"t has rank {rank}")
    reduced = frozenset(a % rank for a in axes)
    if len(reduced) < len(axes):
        raise CoreError(f"Axes {axes} of a tensor of rank {rank} contain an axis twice.", hint="give each axis once")
    return reduced


def _rule(t: ShapeDtype, axes: Axes, keepdims: bool) -> ShapeDtype:
    reduced = _reduced(t, axes)
    shape = [1 if i in reduced else n for i, n in enumerate(t.shape) if keepdims or i not in reduced]
    return ShapeDtype(tuple(shape), t.dtype)


def _nonempty_rule(t: ShapeDtype, axes: Axes, keepdims: bool) -> ShapeDtype:
    if not element_count(tuple(t.shape[i] for i in _reduced(t, axes))):
        raise CoreError(
            f"Cannot reduce 0 elements of shape {list(t.shape)}: there is no largest or smallest one.",
            hint="reduce over axes that have elements",
        )
    return _rule(t, axes, keepdims)


def _define_reduction(
    type: str,
    function: Callable[..., Tensor],
    reduce: Callable[..., Any],
    oracle: Callable[..., Any],
    samples: Callable[[], Sequence[Sample]],
    *,
    dtypes: tuple[dtypes.dtype, ...] = NUMBERS,
    of_nothing: bool = True,
) -> Declaration:
    """Declare a reduction.

    Args:
        type: Op type.
        function: The public function.
        reduce: Takes an array, ``axis`` and ``keepdims``. It sees float16 as float32; its result is rounded to
            the input's dtype, once.
        oracle: The same in NumPy.
        samples: As in `define`.
        dtypes: As in `define`.
        of_nothing: Whether 0 elements have a result.
    """

    def lower(t: Any, axes: Axes, keepdims: bool) -> Any:
        wide = t.astype(jnp.float32) if t.dtype == jnp.float16 else t
        return reduce(wide, axis=axes, keepdims=keepdims).astype(t.dtype)

    def numpy_oracle(t: Any, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Any:
        return oracle(t, axis=tuple(axis) if isinstance(axis, Iterable) else axis, keepdims=keepdims)

    return define(
        type,
        function,
        lower=lower,
        rule=_rule if of_nothing else _nonempty_rule,
        dtypes=dtypes,
        oracle=numpy_oracle,
        samples=samples,
    )


def _samples(*, of_nothing: bool = True) -> Sequence[Sample]:
    a = np.array([[[1.5, -2.0, 0.5], [3.0, 0.25, -1.0]], [[0.75, 1.0, 2.0], [-0.5, 4.0, 1.25]]], np.float32)
    half = np.resize(np.array([1.0, 0.25, 0.5], np.float16), (3, 4096))
    i = np.array([[7, -8, 3], [9, 3, 100]], np.int32)
    empty = np.zeros((2, 0), np.float32)
    return (
        sample(a),
        sample(a, 1),
        sample(a, axis=[-1, 0]),
        sample(a, (0, 2), keepdims=True),
        sample(a, [], tolerance=0),
        sample(a.astype(np.float64), -2, True, tolerance=1e-15),
        # Sums of thousands of float16 lose everything unless they are accumulated in float32.
        sample(half, 1, tolerance=1e-3),
        sample(np.float32(2.5)),
        sample(np.array([[np.inf, 1.0], [np.nan, 2.0]], np.float32), 1),
        sample(i, tolerance=0),
        sample(i, 1, tolerance=0),
        sample(i.astype(np.int8), 0, tolerance=0),
        sample(np.array([200, 100], np.uint8), tolerance=0),
        sample(np.array([[1, 2], [3, 2**31]], np.uint32), -1, tolerance=0),
        *((sample(empty, 1),) if of_nothing else ()),
        sample(empty, 0),
    )


# The ops


def sum(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum over axes.

    Args:
        t: Any number dtype. Integers are not widened: they wrap around. Float16 is accumulated in float32.
        axis: Axes to sum over, negative ones counted from the end; None for all, ``[]`` for none.
        keepdims: Whether the summed axes stay, with length 1.

    Returns:
        The sums, of the same dtype.

    Raises:
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.sum(popxl.constant([[1, 2], [3, 4]]), axis=-1, keepdims=True).shape
        (2, 1)
    """
    return SUM.emit({"t": t}, "sum_out", axes=_axes(axis), keepdims=keepdims)[0]


SUM = _define_reduction("ReduceSum", sum, late(lambda: jnp.sum), np.sum, _samples)


def mean(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Average over axes.

    Args:
        t: Any number dtype. Of integers, the sum is divided with rounding down. Float16 is summed and divided in
            float32.
        axis: As for `sum`.
        keepdims: As for `sum`.

    Returns:
        The averages, of the same dtype; NaN for 0 floats.

    Raises:
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice.
    """
    return MEAN.emit({"t": t}, "mean_out", axes=_axes(axis), keepdims=keepdims)[0]


def _mean(t: Any, axis: Axes, keepdims: bool) -> Any:
    if not jnp.issubdtype(t.dtype, jnp.integer):
        return jnp.mean(t, axis=axis, keepdims=keepdims)
    total = jnp.sum(t, axis=axis, keepdims=keepdims)
    # The mean of no integers has no value: any divisor but 0 will do.
    count = t.size // builtins.max(total.size, 1)
    return total // builtins.max(count, 1)


def _mean_oracle(t: Any, **how: Any) -> Any:
    if t.dtype.kind == "f":
        return np.mean(t, **how)
    return np.floor(np.mean(t, **how, dtype=np.float64)).astype(np.int64)


MEAN = _define_reduction("ReduceMean", mean, _mean, _mean_oracle, _samples)


def max(t: Tensor, axis: int | Iterable[int] | None = None, keepdims: bool = False) -> Tensor:
    """Take the largest element over axes; NaN if there is one.

    Args:
        t: Any number dtype.
        axis: As for `sum`.
        keepdims: As for `sum`.

    Returns:
        The largest elements, of the same dtype.

    Raises:
        CoreError: (a `RuntimeError`) if an axis is out of range or given twice, or there are 0 elements to
            choose from.
    """
    return MAX.emit({"t": t}, "max_out", axes=_axes(axis), keepdims=keepdims)[0]


MAX = _define_reduction(
    "ReduceMax",
    max,
    late(lambda: jnp.max),
    np.max,
    lambda: _samples(of_nothing=False),
    of_nothing=False,
)
