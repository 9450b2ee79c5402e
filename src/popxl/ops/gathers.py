"""Gathers: slices at indices that are known when the program runs (spec ``ops-math.md`` §8.4)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from popxl.errors import CoreError
from popxl.op import Gradient, ShapeDtype
from popxl.ops import _along
from popxl.ops._along import as_places, replaced
from popxl.ops._define import INTS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops.joining import checked_axis
from popxl.ops.shape import Shape, grid
from popxl.ops.utils import checked_memory_hint
from popxl.tensor import Tensor


def _gather_rule(t: ShapeDtype, indices: ShapeDtype, axis: int, **_hints: Any) -> ShapeDtype:
    where = checked_axis(t.shape, axis, "GatherOp::setup axis =")
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
        Shape ``t.shape[:axis] + indices.shape + t.shape[axis + 1:]``, dtype of `t`. The gradient of `t` is the
        sum of the slices' gradients, at their indices.

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
    return GATHER.emit(
        {"t": t, "indices": indices},
        "gather_out",
        axis=axis,
        available_memory_proportion=checked_memory_hint(available_memory_proportion),
        zero_OOR=bool(zero_OOR),
    )[0]


def _places(t: Any, indices: Any, axis: int, groups: int) -> tuple[Any, int]:
    """The places of `indices`, flattened, in `t`; and the axis counted from the front."""
    axis %= t.ndim
    shape = [1] * t.ndim
    if groups > 1:
        shape[0] = groups
    shape[axis] = indices.size // groups
    return as_places(indices, tuple(shape), t.shape[axis]), axis


def _lower_gather(t: Any, indices: Any, axis: int, group_size: int = 1, **_hints: Any) -> Any:
    # Zeros outside the range, asked for or not: one rule, and gradients of such places vanish instead of moving.
    places, axis = _places(t, indices, axis, group_size)
    taken = _along.take(t, places, axis)
    return taken.reshape((*t.shape[:axis], *indices.shape[group_size > 1 :], *t.shape[axis + 1 :]))


def _gather_gradient(
    grads: Sequence[Any], inputs: Sequence[Any], _outputs: Any, axis: int, group_size: int = 1, **_hints: Any
) -> Sequence[Any]:
    t, indices = inputs
    places, axis = _places(t, indices, axis, group_size)
    slices = at_least_float32(grads[0]).reshape(replaced(t.shape, axis, places.shape[axis]))
    return [_along.add(jnp.zeros(t.shape, slices.dtype), places, slices, axis), None]


def _host_gather(t: Any, indices: Any, axis: int, **_hints: Any) -> Any:
    inside = (indices >= 0) & (indices < t.shape[axis])
    if not t.shape[axis]:
        axis %= t.ndim
        return np.zeros((*t.shape[:axis], *indices.shape, *t.shape[axis + 1 :]), t.dtype)
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
        sample(np.zeros((0, 3), np.float32), np.array([0, 1], np.int32), zero_OOR=True, tolerance=0),
        sample(table, np.array([-1, 4, 1], np.int32), zero_OOR=True, tolerance=0),
        sample(
            grid(2, 3, 4, dtype=np.int32), np.array([[1, -2], [3, 2]], np.int32), -2, 0.5, zero_OOR=True, tolerance=0
        ),
        sample(np.array([[np.nan, np.inf], [1.0, 2.0]], np.float32), np.array([1, 0], np.int64), tolerance=0),
        sample(np.array([True, False]), np.array([1, 0, 0, 0, 1], np.uint8), tolerance=0),
        sample(np.ones((300,), np.float32), np.array([-1, 127], np.int8), zero_OOR=True, tolerance=0),
    )


GATHER = define(
    "Gather",
    gather,
    lower=_lower_gather,
    rule=_gather_rule,
    dtypes={"indices": INTS},
    oracle=_gather_oracle,
    samples=_gather_samples,
    gradient=Gradient(_gather_gradient, wrt=(0,)),
    host=_host_gather,
    differences="indices out of range give zeros, asked for or not; a negative axis counts from the end",
)


def tied_gather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    available_memory_proportion: float | None = None,
    zero_OOR: bool = False,  # noqa: N803 - PopXL's name
) -> Tensor:
    """Do `gather`; on an IPU, `t` keeps the memory layout that its other uses want.

    Args:
        t: As for `gather`.
        indices: As for `gather`.
        axis: As for `gather`.
        available_memory_proportion: As for `gather`.
        zero_OOR: As for `gather`.

    Returns:
        As `gather`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `available_memory_proportion` is no number.
        CoreError: (a `RuntimeError`) if there is no such axis or `indices` are no integers.
    """
    return TIED_GATHER.emit(
        {"t": t, "indices": indices},
        "tiedgather_out",
        axis=axis,
        available_memory_proportion=checked_memory_hint(available_memory_proportion),
        zero_OOR=bool(zero_OOR),
    )[0]


TIED_GATHER = define(
    "TiedGather",
    tied_gather,
    lower=_lower_gather,
    rule=_gather_rule,
    dtypes={"indices": INTS},
    oracle=_gather_oracle,
    samples=_gather_samples,
    gradient=Gradient(_gather_gradient, wrt=(0,)),
    host=_host_gather,
)


# Groups


def check_groups(group_size: int, **shapes: Shape) -> None:
    """Check that axis 0 of each named tensor has one entry for each group.

    Raises:
        CoreError: (a `RuntimeError`) if not, or if there are no groups.
    """
    if group_size < 1:
        raise CoreError(f"There cannot be {group_size} groups.", hint="group_size is 1 or more")
    for name, shape in shapes.items():
        if shape[:1] != (group_size,):
            raise CoreError(
                f"`{name}` of shape {list(shape)} does not have {group_size} groups.",
                hint="axis 0 is the groups: its length is `group_size`",
            )


def axis_in_group(shape: Shape, axis: int, start: str) -> int:
    """Return `axis` counted from the front, of tensors whose axis 0 is the groups.

    Raises:
        CoreError: (a `RuntimeError`) whose message starts with `start` if there is no such axis or it is 0.
    """
    where = checked_axis(shape, axis, start)
    if where == 0:
        raise CoreError(
            f"{start} {axis} indicates the dimension of the group, of shape {list(shape)}.",
            hint="use an axis after the first, or group_size=1",
        )
    return where


def _groupedgather_rule(t: ShapeDtype, indices: ShapeDtype, axis: int, group_size: int, **_hints: Any) -> ShapeDtype:
    where = axis_in_group(t.shape, axis, "GatherOp::setup axis =")
    check_groups(group_size, t=t.shape, indices=indices.shape)
    return ShapeDtype((*t.shape[:where], *indices.shape[1:], *t.shape[where + 1 :]), t.dtype)


def groupedgather(
    t: Tensor,
    indices: Tensor,
    axis: int = 0,
    group_size: int | None = 1,
    available_memory_proportion: float | None = None,
    zero_OOR: bool = False,  # noqa: N803 - PopXL's name
) -> Tensor:
    """Do one `gather` for each group: ``out[q] = gather(t[q], indices[q], axis - 1)``.

    Args:
        t: Any dtype. Axis 0 is the groups.
        indices: Integers. Axis 0 is the groups.
        axis: The axis of `t`, which may count from the end; not that of the groups.
        group_size: Number of groups. With 1 or None, this is `gather`, and there is no axis of groups.
        available_memory_proportion: As for `gather`.
        zero_OOR: As for `gather`.

    Returns:
        Shape ``t.shape[:axis] + indices.shape[1:] + t.shape[axis + 1:]``, dtype of `t`.

    Raises:
        PopxlTypeError: (a `TypeError`) if `available_memory_proportion` is no number.
        CoreError: (a `RuntimeError`) if there is no such axis, it is that of the groups, an axis 0 is not
            `group_size` long, or `indices` are no integers.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     tables = popxl.constant([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
        ...     ops.groupedgather(tables, popxl.constant([[2], [0]]), axis=1, group_size=2).shape
        (2, 1)
    """
    groups = 1 if group_size is None else operator.index(group_size)
    if groups == 1:
        return gather(t, indices, axis, available_memory_proportion, zero_OOR)
    return GROUPED_GATHER.emit(
        {"t": t, "indices": indices},
        "gather_out",
        axis=axis,
        group_size=groups,
        available_memory_proportion=checked_memory_hint(available_memory_proportion),
        zero_OOR=bool(zero_OOR),
    )[0]


def _groupedgather_oracle(t: Any, indices: Any, axis: int, group_size: int, *_hints: Any, **_more_hints: Any) -> Any:
    inner = axis % t.ndim - 1
    return np.stack([_gather_oracle(t[q], indices[q], inner) for q in range(group_size)])


def _groupedgather_samples() -> Sequence[Sample]:
    i = np.int32
    return (
        sample(grid(3, 5, 2), np.array([[4, 0, 0, 2], [1, 1, 3, 0], [2, 2, 2, 2]], i), 1, 3, tolerance=0),
        sample(grid(2, 2, 3, dtype=np.float16), np.array([[[2, 0]], [[1, 1]]], np.uint32), -1, 2, 0.3, tolerance=0),
        sample(grid(2, 3, 2, dtype=i), np.array([1, 2], i), axis=1, group_size=2, tolerance=0),
        sample(grid(2, 3), np.array([[-1, 3, 1], [0, -3, 2]], i), 1, 2, zero_OOR=True, tolerance=0),
        sample(np.array([[True, False], [False, True]]), np.array([[0], [1]], np.uint8), 1, 2, tolerance=0),
        sample(grid(2, 3), np.zeros((2, 0), i), 1, 2, tolerance=0),
    )


GROUPED_GATHER = define(
    "GroupedGather",
    groupedgather,
    lower=_lower_gather,
    rule=_groupedgather_rule,
    dtypes={"indices": INTS},
    oracle=_groupedgather_oracle,
    samples=_groupedgather_samples,
    gradient=Gradient(_gather_gradient, wrt=(0,)),
    differences="checks at once that axis 0 of both tensors has `group_size` entries",
)
