"""What all collectives share: names of reductions, and groups of replicas (spec ``collectives.md`` §1-§2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias, get_args

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import CoreError, PopxlNotImplementedError, PopxlTypeError, PopxlValueError
from popxl.replica_grouping import ReplicaGrouping

__all__ = ["CollectiveOps", "CommGroup", "CommGroupType", "Members", "members_of", "to_collective_op"]

CollectiveOps = Literal["add", "mean", "mul", "min", "max", "and", "or", "square_add"]
"""The reductions over the members of a group."""

Members: TypeAlias = tuple[tuple[int, ...], ...]
"""The replicas of each group, by rank."""

_LOGICAL = ("and", "or")


class CommGroupType(Enum):
    """How old programs say which replicas form a group. No collective takes it: see `popxl.ReplicaGrouping`."""

    All = 0
    Consecutive = 1
    Orthogonal = 2
    Ungrouped = 3


@dataclass(frozen=True, slots=True)
class CommGroup:
    """How old programs say which replicas form a group. No collective takes it: see `popxl.ReplicaGrouping`.

    With k for `replicaGroupSize` and R replicas, the equivalents are:

    - All: ``ir.replica_grouping()``
    - Consecutive: ``ir.replica_grouping(group_size=k)``
    - Orthogonal: ``ir.replica_grouping(stride=R // k, group_size=k)``
    - Ungrouped: ``ir.replica_grouping(group_size=1)``
    """

    type: CommGroupType = CommGroupType.All
    replicaGroupSize: int = 0  # noqa: N815 - the reference's name


def to_collective_op(op: str) -> CollectiveOps:
    """Return the name of a reduction, checked.

    Raises:
        PopxlValueError: (a `ValueError`) for any other string.

    Example:
        >>> to_collective_op("add")
        'add'
    """
    for known in get_args(CollectiveOps):
        if op == known:
            return known
    raise PopxlValueError(f"Not a valid op: {op!r}.", hint=f"use one of {', '.join(get_args(CollectiveOps))}")


def check_reducible(op: CollectiveOps, dtype: dtypes.dtype) -> None:
    """Check that values of `dtype` can be reduced by `op`: bools by "and" and "or", numbers by the others.

    Raises:
        CoreError: (a `RuntimeError`) if they cannot.
    """
    if (op in _LOGICAL) != (dtype == dtypes.bool):
        fitting = "bool" if op in _LOGICAL else "numbers"
        raise CoreError(f'"{op}" reduces {fitting}, and this is {dtype.name}.', hint="cast it with popxl.ops.cast")


def members_of(group: ReplicaGrouping | None) -> Members:
    """Return the replicas of each group of a grouping, by rank.

    Args:
        group: A grouping of the current `popxl.Ir`; None for all replicas in one group.

    Raises:
        PopxlTypeError: (a `TypeError`) if it is no grouping.
        PopxlValueError: (a `ValueError`) if it belongs to another `popxl.Ir` or replication factor.
        PopxlNotImplementedError: (a `NotImplementedError`) if it has no constant stride.
    """
    ir = get_current_graph().ir
    if group is None:
        group = ir.replica_grouping()
    elif not isinstance(group, ReplicaGrouping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise PopxlTypeError(
            f"The group {group!r} is no ReplicaGrouping.",
            hint="use ir.replica_grouping(stride, group_size), or None for all replicas",
        )
    if not group.belongs_to(ir) or len(group.assignment) != ir.replication_factor:
        raise PopxlValueError(
            f"{group!r} belongs to another Ir, or to another replication factor than {ir.replication_factor}.",
            hint="make it with ir.replica_grouping(...) after setting ir.replication_factor",
        )
    if not group.is_const:
        raise PopxlNotImplementedError(
            f"Collectives take groupings with a constant stride only, and {group!r} has none.",
            hint="use its const_rg",
        )
    return tuple(tuple(replicas) for replicas in group.members)
