"""Reductions across replicas (spec ``collectives.md`` §4, §6)."""

from __future__ import annotations

from collections.abc import Mapping

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.op import Across, Gradient, Op, ShapeDtype
from popxl.ops._define import NUMBERS, Declaration, define, define_inplace
from popxl.ops.collectives import _lowering
from popxl.ops.collectives.collectives import CollectiveOps, Members, check_reducible, members_of, to_collective_op
from popxl.ops.utils import check_in_graph, element_count
from popxl.replica_grouping import ReplicaGrouping
from popxl.tensor import Tensor

_REDUCIBLE = (*NUMBERS, dtypes.bool)

# All-reduce


def replicated_all_reduce(t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None) -> Tensor:
    """Reduce `t` over each group of replicas, elementwise; every member of a group gets the result.

    Args:
        t: One tensor of the same shape on each replica. Numbers; bools for "and" and "or".
        op: The reduction: "add", "mean", "mul", "min", "max", "and", "or", or "square_add", the sum of squares.
            Float16 is accumulated in float32; the mean of integers is rounded down.
        group: Which replicas are reduced together; all of them if not given. It needs a constant stride.

    Returns:
        Shape, dtype and meta shape of `t`.

    Raises:
        PopxlValueError: (a `ValueError`) for an unknown reduction, or a grouping of another `popxl.Ir` or
            replication factor.
        PopxlNotImplementedError: (a `NotImplementedError`) for a grouping without a constant stride.
        CoreError: (a `RuntimeError`) if `op` does not take the dtype of `t`.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> ir = popxl.Ir(replication=4)
        >>> with ir.main_graph:
        ...     gradient = popxl.variable([1.0, 2.0], name="gradient")
        ...     ops.collectives.replicated_all_reduce(gradient, "mean", ir.replica_grouping(stride=2))
        Tensor[gradient_all_reduce popxl.dtypes.float32 (2,)]
    """
    return _all_reduce(ALL_REDUCE if op == "add" else ALL_REDUCE_OTHER, t, op, group)


def _all_reduce(declaration: Declaration, t: Tensor, op: CollectiveOps, group: ReplicaGrouping | None) -> Tensor:
    check_in_graph(get_current_graph(), t=t)
    reduce, members = to_collective_op(op), members_of(group)
    return declaration.emit({"t": t}, f"{t.name}_all_reduce", reduce=reduce, members=members)[0]


def _same_rule(t: ShapeDtype, reduce: CollectiveOps, members: Members) -> ShapeDtype:
    check_reducible(reduce, t.dtype)
    return t


def _all_reduce_gradient(op: Op, grads: Mapping[int, Tensor], _wrt: tuple[int, ...]) -> tuple[Tensor, ...]:
    return ALL_REDUCE.emit({"t": grads[0]}, f"Gradient___{op.inputs[0].name}", **op.attributes)


ALL_REDUCE = define(
    "ReplicatedAllReduce",
    replicated_all_reduce,
    lower=_lowering.all_reduce,
    rule=_same_rule,
    dtypes=NUMBERS,
    gradient=Gradient(emit=_all_reduce_gradient),
    across=Across.SAME,
    elementwise=True,
    differences='"add" has a gradient: the upstream gradients, added up over the group',
)
ALL_REDUCE_OTHER = define(
    "ReplicatedAllReduceOther",
    replicated_all_reduce,
    lower=_lowering.all_reduce,
    rule=_same_rule,
    dtypes=_REDUCIBLE,
    gradient=None,
    across=Across.SAME,
    elementwise=True,
    differences='"mul" is the product, not the mean; takes more dtypes; the mean of integers is rounded down',
    reference_type="ReplicatedAllReduce",
)


def replicated_all_reduce_(t: Tensor, op: CollectiveOps = "add", group: ReplicaGrouping | None = None) -> Tensor:
    """Do `replicated_all_reduce`, overwriting `t`.

    Returns:
        An alias of `t`.
    """
    return _all_reduce(ALL_REDUCE_, t, op, group)


ALL_REDUCE_ = define_inplace("ReplicatedAllReduceInplace", replicated_all_reduce_, ALL_REDUCE_OTHER)

# Reduce-scatter


def replicated_reduce_scatter(
    t: Tensor,
    op: CollectiveOps = "add",
    group: ReplicaGrouping | None = None,
    configure_output_for_replicated_tensor_sharding: bool = False,
) -> Tensor:
    """Reduce `t` over each group of replicas; each member of a group gets one piece of the flat result.

    Args:
        t: One tensor of the same shape on each replica, with n elements. Numbers; bools for "and" and "or".
        op: As for `replicated_all_reduce`.
        group: As for `replicated_all_reduce`; with k members each.
        configure_output_for_replicated_tensor_sharding: Whether the result is a shard of a tensor like `t`: it has
            the shape of `t` as its meta shape.

    Returns:
        Shape ``(ceil(n / k),)``: of the flat result, padded with zeros, the piece whose number is the replica's rank
        in its group.

    Raises:
        PopxlValueError: (a `ValueError`) as for `replicated_all_reduce`.
        PopxlNotImplementedError: (a `NotImplementedError`) as for `replicated_all_reduce`.
        CoreError: (a `RuntimeError`) as for `replicated_all_reduce`.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir(replication=2).main_graph:
        ...     gradient = popxl.variable([1.0, 2.0, 3.0], name="gradient")
        ...     ops.collectives.replicated_reduce_scatter(gradient)
        Tensor[gradient_reduce_scattered popxl.dtypes.float32 (2,)]
    """
    check_in_graph(get_current_graph(), t=t)
    reduce, members = to_collective_op(op), members_of(group)
    (shard,) = REDUCE_SCATTER.emit({"t": t}, f"{t.name}_reduce_scattered", reduce=reduce, members=members)
    if configure_output_for_replicated_tensor_sharding:
        shard.meta_shape = t.shape
    return shard


def _reduce_scatter_rule(t: ShapeDtype, reduce: CollectiveOps, members: Members) -> ShapeDtype:
    check_reducible(reduce, t.dtype)
    return ShapeDtype((_lowering.shard_size(element_count(t.shape), members),), t.dtype)


REDUCE_SCATTER = define(
    "ReplicatedReduceScatter",
    replicated_reduce_scatter,
    lower=_lowering.reduce_scatter,
    rule=_reduce_scatter_rule,
    dtypes=_REDUCIBLE,
    gradient=Gradient(refusal="ReplicatedReduceScatterOp: grad op is only implemented when nothing is reduced."),
    across=Across.OWN,
    differences='"mul" is the product, not the mean; takes more dtypes; shards hold the elements in their own order',
)
