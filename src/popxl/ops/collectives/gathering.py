"""Gathering tensors of several replicas, and slices of a replica's own tensor (spec ``collectives.md`` §5, §7)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Literal

from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlIndexError, PopxlValueError
from popxl.op import Across, Gradient, Op, ShapeDtype
from popxl.ops._define import Declaration, define
from popxl.ops.collectives import _lowering
from popxl.ops.collectives.collectives import Members, members_of
from popxl.ops.shape import RESHAPE, TRANSPOSE
from popxl.ops.utils import check_in_graph, element_count
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Tensor

Shape = tuple[int, ...]
_OUTPUT_SHAPES = ("new_axis", "concat", "meta_shape", "auto")

# All-gather


def replicated_all_gather(
    t: Tensor,
    axis: int = 0,
    group: ReplicaGrouping | None = None,
    output_shape: Literal["new_axis", "concat", "meta_shape", "auto"] = "auto",
) -> Tensor:
    """Gather `t` from the members of each group of replicas, by rank; every member of a group gets the result.

    The gradient of a replica's `t` is its own part of its own gradient of the result: nothing is added up over the
    replicas.

    Args:
        t: One tensor of the same shape on each replica. Any dtype.
        axis: The axis along which the tensors are joined, for "concat" only; it may count from the end.
        group: Which replicas are gathered from; all of them if not given. It needs a constant stride. With k members
            each.
        output_shape: What the result is:

            - "concat": joined along `axis`;
            - "new_axis": stacked, shape ``(k, *t.shape)``;
            - "meta_shape": the tensor of shape ``t.meta_shape`` that the members have shards of; without a meta shape,
              all elements in one axis;
            - "auto": "meta_shape" if `t` has one, else "concat".

    Raises:
        PopxlValueError: (a `ValueError`) for an axis that is no int, another `output_shape`, or a grouping of another
            `popxl.Ir` or replication factor.
        PopxlIndexError: (an `IndexError`) for "concat" if there is no such axis, for "new_axis" if `t` is a scalar.
        PopxlNotImplementedError: (a `NotImplementedError`) for a grouping without a constant stride.
        CoreError: (a `RuntimeError`) if the members have fewer elements than the meta shape.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir(replication=4).main_graph:
        ...     x = popxl.variable([[1.0, 2.0]])
        ...     gathered = ops.collectives.replicated_all_gather(x)
        ...     shard = ops.collectives.replica_sharded_slice(x)
        ...     gathered.shape, shard.shape, ops.collectives.replicated_all_gather(shard).shape
        ((4, 2), (1,), (1, 2))
    """
    check_in_graph(get_current_graph(), t=t)
    _check_int(axis)
    if output_shape not in _OUTPUT_SHAPES:
        raise PopxlValueError(
            f"output_shape must equal one of {', '.join(_OUTPUT_SHAPES)}, not {output_shape!r}.", hint='use "auto"'
        )
    members = members_of(group)
    how = ("meta_shape" if t.meta_shape else "concat") if output_shape == "auto" else output_shape
    k = len(members[0])
    if how == "meta_shape":
        shape = t.meta_shape or (k * t.nelms,)
        return ALL_GATHER.emit({"t": t}, f"{t.name}_all_gathered", shape=shape, members=members)[0]
    if how == "new_axis":
        _checked_axis(t, 0)
        return _reshape(_gather_flat(t, members), (k, *t.shape))
    axis = _checked_axis(t, axis)
    front = _to_front(t, axis)
    joined = _reshape(_gather_flat(front, members), (k * front.shape[0], *front.shape[1:]))
    return _from_front(joined, axis)


def _gather_flat(t: Tensor, members: Members) -> Tensor:
    shape = (len(members[0]) * t.nelms,)
    return ALL_GATHER.emit({"t": _reshape(t, (t.nelms,))}, f"{t.name}_all_gathered", shape=shape, members=members)[0]


def _all_gather_rule(t: ShapeDtype, shape: Shape, members: Members) -> ShapeDtype:
    have = len(members[0]) * element_count(t.shape)
    if have < element_count(shape):
        raise CoreError(
            f"{len(members[0])} replicas with {element_count(t.shape)} elements each have {have} elements in all, too "
            f"few for the meta shape {list(shape)}.",
            hint="gather over the group that the tensor was sharded over",
        )
    return ShapeDtype(shape, t.dtype)


def _gradient_like(other: Declaration, op: Op, grads: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """The gradient of an op that gathers or slices: the other one of the two, into the shape of the input."""
    (t,) = op.inputs
    how: dict[str, Any] = {"shape": t.shape, "members": op.attributes["members"]}
    (gradient,) = other.emit({"t": grads[0]}, f"Gradient___{t.name}", **how)
    gradient.meta_shape = t.meta_shape
    return (gradient,)


def _all_gather_gradient(op: Op, grads: Mapping[int, Tensor], _wrt: tuple[int, ...]) -> tuple[Tensor, ...]:
    return _gradient_like(SHARDED_SLICE, op, grads)


ALL_GATHER = define(
    "ReplicatedAllGather",
    replicated_all_gather,
    lower=_lowering.all_gather,
    rule=_all_gather_rule,
    gradient=Gradient(emit=_all_gather_gradient),
    across=Across.SAME,
    differences='`axis` may be negative, and "new_axis" ignores it; takes more dtypes',
)

# Slices of a replica's own tensor


def replica_sharded_slice(t: Tensor, group: ReplicaGrouping | None = None) -> Tensor:
    """Return the replica's shard of its own `t`. Nothing is sent.

    The gradient gathers the gradients of the shards.

    Args:
        t: Any dtype, n elements.
        group: Which replicas share `t`; all of them if not given. It needs a constant stride. With k members each.

    Returns:
        Shape ``(ceil(n / k),)``, meta shape ``t.shape``: of the flat `t`, padded with zeros, the piece whose number is
        the replica's rank in its group.

    Raises:
        PopxlValueError: (a `ValueError`) for a grouping of another `popxl.Ir` or replication factor.
        PopxlNotImplementedError: (a `NotImplementedError`) for a grouping without a constant stride.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir(replication=2).main_graph:
        ...     shard = ops.collectives.replica_sharded_slice(popxl.variable([[1.0, 2.0, 3.0]]))
        >>> shard.shape, shard.meta_shape
        ((2,), (1, 3))
    """
    check_in_graph(get_current_graph(), t=t)
    members = members_of(group)
    shape = (_lowering.shard_size(t.nelms, members),)
    (shard,) = SHARDED_SLICE.emit({"t": t}, f"{t.name}_sharded_slice", shape=shape, members=members)
    shard.meta_shape = t.shape
    return shard


def _slice_rule(t: ShapeDtype, shape: Shape, members: Members) -> ShapeDtype:
    return ShapeDtype(shape, t.dtype)


def _slice_gradient(op: Op, grads: Mapping[int, Tensor], _wrt: tuple[int, ...]) -> tuple[Tensor, ...]:
    return _gradient_like(ALL_GATHER, op, grads)


SHARDED_SLICE = define(
    "ReplicaShardedSlice",
    replica_sharded_slice,
    lower=_lowering.own_slice,
    rule=_slice_rule,
    gradient=Gradient(emit=_slice_gradient),
    across=Across.OWN,
    differences="the gradient has the shape of `t`; takes more dtypes",
    reference_type="ReplicatedReduceScatter",
)


def replicated_slice(t: Tensor, axis: int = 0, group: ReplicaGrouping | None = None) -> Tensor:
    """Return the replica's block of its own `t`, of equal blocks along an axis. Nothing is sent.

    The gradient gathers the gradients of the blocks.

    Args:
        t: Any dtype.
        axis: The axis, which may count from the end.
        group: Which replicas share `t`; all of them if not given. It needs a constant stride. With k members each.

    Returns:
        The block whose number is the replica's rank in its group. The length of `axis` is divided by k; if that gives
        1, the axis is removed.

    Raises:
        PopxlValueError: (a `ValueError`) if k does not divide the length of the axis, the axis is no int, or the
            grouping belongs to another `popxl.Ir` or replication factor.
        PopxlIndexError: (an `IndexError`) if there is no such axis.
        PopxlNotImplementedError: (a `NotImplementedError`) for a grouping without a constant stride.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir(replication=2).main_graph:
        ...     x = popxl.variable([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
        ...     ops.collectives.replicated_slice(x).shape, ops.collectives.replicated_slice(x, 1).shape
        ((2, 2), (4,))
    """
    check_in_graph(get_current_graph(), t=t)
    _check_int(axis)
    members = members_of(group)
    axis = _checked_axis(t, axis)
    length, remainder = divmod(t.shape[axis], len(members[0]))
    if remainder:
        raise PopxlValueError(
            f"Replicated slice must equally divide axis. Axis {axis} of {t.id} has length {t.shape[axis]}, and the "
            f"groups have {len(members[0])} members.",
            hint="use a group size that divides the axis, or popxl.ops.collectives.replica_sharded_slice, which pads",
        )
    front = _to_front(t, axis)
    flat = _reshape(front, (t.nelms,))
    shape = (t.nelms // len(members[0]),)
    (block,) = SHARDED_SLICE.emit({"t": flat}, f"{t.name}_sliced", shape=shape, members=members)
    if length == 1:
        return _reshape(block, front.shape[1:])
    return _from_front(_reshape(block, (length, *front.shape[1:])), axis)


# Axes


def _check_int(axis: object) -> None:
    if not isinstance(axis, Integral):
        raise PopxlValueError(
            f"Axis should be an int. It is {axis!r}.", hint="axes count from 0, or from -1 at the end"
        )


def _checked_axis(t: Tensor, axis: int) -> int:
    """The axis, counted from the front."""
    if not -t.rank <= axis < t.rank:
        raise PopxlIndexError(
            f"Axis {axis} does not exist: {t.id} has shape {t.shape}.",
            hint="reshape a scalar to (1,) first" if not t.rank else f"use an axis in [{-t.rank}, {t.rank - 1}]",
        )
    return int(axis) % t.rank


def _reshape(t: Tensor, shape: Shape) -> Tensor:
    return RESHAPE.emit({"t": t}, f"{t.name}_reshaped", shape=shape)[0]


def _to_front(t: Tensor, axis: int) -> Tensor:
    return _transpose(t, (axis, *(a for a in range(t.rank) if a != axis))) if axis else t


def _from_front(t: Tensor, axis: int) -> Tensor:
    return _transpose(t, (*range(1, axis + 1), 0, *range(axis + 1, t.rank))) if axis else t


def _transpose(t: Tensor, permutation: Shape) -> Tensor:
    return TRANSPOSE.emit({"t": t}, f"{t.name}_T", permutation=permutation)[0]
