"""Joining tensors and cutting them apart (spec ``ops-math.md`` §6.4-§6.5)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlIndexError, PopxlTypeError, PopxlValueError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import Sample, define, define_view, sample
from popxl.ops._jax import jnp, lax
from popxl.ops.shape import Shape, grid
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor


class ZeroPartsError(PopxlValueError, ZeroDivisionError):
    """A tensor cannot be cut into 0 parts."""


# Concatenate


def _named(ts: Iterable[Tensor]) -> dict[str, Tensor]:
    named = {f"ts_{i}": t for i, t in enumerate(ts)}
    if not named:
        raise PopxlValueError("A concat operation needs at least one tensor.", hint="pass a list of tensors")
    check_in_graph(get_current_graph(), **named)
    found = list(dict.fromkeys(t.dtype for t in named.values()))
    if len(found) > 1:
        raise PopxlTypeError(
            f"All inputs to a concat operation must have the same type: {', '.join(d.name for d in found)}.",
            hint="cast them with popxl.ops.cast",
        )
    return named


def checked_axis(shape: Shape, axis: int, start: str) -> int:
    """Return `axis` counted from the front.

    Raises:
        CoreError: (a `RuntimeError`) whose message starts with `start` if there is no such axis.
    """
    rank = len(shape)
    if not -rank <= axis < rank:
        raise CoreError(
            f"{start} {axis} is outside the acceptable range [{-rank}, {rank - 1}] for shape {list(shape)}.",
            hint="axes count from 0, or from -1 at the end",
        )
    return axis % rank


def _concat_rule(*ts: ShapeDtype, axis: int) -> ShapeDtype:
    first = ts[0].shape
    where = checked_axis(first, axis, "Concat axis")
    for i, t in enumerate(ts):
        if len(t.shape) != len(first):
            raise CoreError(
                f"Input {i} of {len(ts)} to concat does not have matching output rank: "
                f"{list(t.shape)} has rank {len(t.shape)}, input 0 has rank {len(first)}.",
                hint="reshape it first",
            )
        if any(n != m for a, (n, m) in enumerate(zip(t.shape, first, strict=True)) if a != where):
            raise CoreError(
                f"Input {i} to concat does not have matching shape. {list(t.shape)} and {list(first)} differ "
                f"outside axis {where}.",
                hint="only the lengths along `axis` may differ",
            )
    joined = sum(t.shape[where] for t in ts)
    return ShapeDtype((*first[:where], joined, *first[where + 1 :]), ts[0].dtype)


def concat(ts: Iterable[Tensor], axis: int = 0) -> Tensor:
    """Join tensors along an axis. A copy.

    Args:
        ts: One or more tensors of one dtype, with equal shapes but for `axis`.
        axis: The axis, which may count from the end.

    Raises:
        PopxlValueError: (a `ValueError`) without any tensor.
        PopxlTypeError: (a `TypeError`) if the dtypes differ.
        CoreError: (a `RuntimeError`) if there is no such axis or the shapes do not fit.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.concat([popxl.constant([[1], [2]]), popxl.constant([[3, 4], [5, 6]])], axis=1).shape
        (2, 3)
    """
    return CONCAT.emit(_named(ts), "concat_out", axis=axis)[0]


def _concat_samples() -> Sequence[Sample]:
    a = grid(2, 3)
    return (
        sample([a, a + 10], tolerance=0),
        sample([a, grid(2, 1) - 5, a], 1, tolerance=0),
        sample([a.astype(np.float16), a.astype(np.float16)], axis=-2, tolerance=0),
        sample([np.zeros((0, 2), np.int32), grid(3, 2, dtype=np.int32)], tolerance=0),
        sample([np.array([True, False])], tolerance=0),
    )


def _concat_oracle(ts: Any, axis: int = 0) -> Any:
    rows = [row for t in ts for row in np.moveaxis(t, axis, 0)]
    return np.moveaxis(np.stack(rows), 0, axis)


def _lower_concat(*ts: Any, axis: int) -> Any:
    return jnp.concatenate(ts, axis)


def _host_concat(*ts: Any, axis: int) -> Any:
    return np.concatenate(ts, axis)


CONCAT = define(
    "Concat",
    concat,
    lower=_lower_concat,
    rule=_concat_rule,
    oracle=_concat_oracle,
    samples=_concat_samples,
    host=_host_concat,
)


def concat_(ts: Iterable[Tensor], axis: int = 0) -> Tensor:
    """Do `concat` without a copy.

    Returns:
        A view of all of `ts`: each is a region of it. If one tensor occurs twice, a write to the view
        does not reach it.
    """
    return CONCAT_.emit(_named(ts), "concat_out", axis=axis)[0]


def _put_concat(new: Any, *ts: Any, axis: int) -> tuple[Any, ...]:
    return _split(new, tuple(t.shape[axis] for t in ts), axis)


def _split(t: Any, splits: Shape, axis: int) -> tuple[Any, ...]:
    ends = itertools.accumulate(splits)
    return tuple(lax.slice_in_dim(t, end - n, end, axis=axis) for end, n in zip(ends, splits, strict=True))


CONCAT_ = define_view("ConcatInplace", concat_, CONCAT, put=_put_concat)


# Split


def _split_rule(t: ShapeDtype, splits: Shape, axis: int) -> tuple[ShapeDtype, ...]:
    where = checked_axis(t.shape, axis, "Axis")
    if sum(splits) != t.shape[where] or any(n < 0 for n in splits):
        raise CoreError(
            f"splits {sum(splits)} invalid for dimension of size {t.shape[where]}: "
            f"{list(splits)} along axis {where} of {list(t.shape)}.",
            hint="the lengths must add up to the length of the axis",
        )
    return tuple(ShapeDtype((*t.shape[:where], n, *t.shape[where + 1 :]), t.dtype) for n in splits)


def split(t: Tensor, splits: int | Iterable[int], axis: int = 0) -> list[Tensor]:
    """Cut `t` into parts along an axis.

    Args:
        t: Any shape and dtype.
        splits: Number of equal parts, or the length of each part.
        axis: The axis, which may count from the end.

    Returns:
        The parts, each a copy.

    Raises:
        PopxlValueError: (a `ValueError`) if the axis does not divide into that many equal parts.
        PopxlIndexError: (an `IndexError`) if there is no such axis to divide.
        CoreError: (a `RuntimeError`) if the lengths do not add up, or there is no such axis.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     [part.shape for part in ops.split(popxl.constant([1, 2, 3, 4, 5]), [2, 3])]
        [(2,), (3,)]
    """
    check_in_graph(get_current_graph(), t=t)
    lengths = _equal_lengths(t, splits, axis) if isinstance(splits, int) else tuple(splits)
    names = [f"{t.name}_split_{i}" for i in range(len(lengths))]
    return list(SPLIT.emit({"t": t}, names, splits=lengths, axis=axis))


def _equal_lengths(t: Tensor, parts: int, axis: int) -> Shape:
    if not -t.rank <= axis < t.rank:
        raise PopxlIndexError(
            f"Cannot split axis {axis} of {t.id}, whose shape is {t.shape}.",
            hint="axes count from 0, or from -1 at the end",
        )
    if parts == 0:
        raise ZeroPartsError(f"Cannot split {t.id} into 0 parts.", hint="pass 1 or more")
    length = t.shape[axis]
    if parts < 0 or length % parts:
        raise PopxlValueError(
            f"Split {parts} does not equally divide tensor axis {axis} of length {length}.",
            hint="pass the length of each part as a list",
        )
    return (length // parts,) * parts


def _split_samples() -> Sequence[Sample]:
    return (
        sample(grid(4, 3), 2, tolerance=0),
        sample(grid(2, 6, dtype=np.float16), [1, 0, 5], axis=-1, tolerance=0),
        sample(grid(3, dtype=np.int32), 3, 0, tolerance=0),
        sample(np.zeros((0, 2), np.uint8), 3, tolerance=0),
    )


def _split_oracle(t: Any, splits: Any, axis: int = 0) -> Any:
    lengths = [t.shape[axis] // splits] * splits if isinstance(splits, int) else splits
    return [np.take(t, range(sum(lengths[:i]), sum(lengths[: i + 1])), axis) for i in range(len(lengths))]


def _split_gradient(grads: Sequence[Any], _inputs: Any, _outputs: Any, splits: Shape, axis: int) -> Sequence[Any]:
    return [jnp.concatenate(grads, axis)]


SPLIT = define(
    "Split",
    split,
    lower=_split,
    rule=_split_rule,
    oracle=_split_oracle,
    samples=_split_samples,
    gradient=Gradient(_split_gradient),
)
