"""Partitions of the replicas into groups of equal size. Follows tensors-dtypes.md section 8."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import pairwise

from popxl.errors import ContextError, PopxlNotImplementedError, PopxlTypeError, PopxlValueError

__all__ = ["ReplicaGrouping"]


class ReplicaGrouping:
    """A partition of all replicas into equal groups; variables and collectives are per group.

    Made by ``Ir.replica_grouping``, ``Ir.replica_grouping_from_assignments`` and :meth:`transpose`. The replicas
    of one group of a *constant-stride* grouping are all ``stride`` apart; other groupings hold variables, and
    collectives do not take them. Two groupings are equal if they belong to the same IR and put the replicas into
    the same groups; there is no hash.

    Raises:
        ContextError: On construction. It is a ``RuntimeError``.
    """

    __slots__ = ("_assignment", "_group_size", "_ir", "_stride")

    _ir: Hashable
    _assignment: tuple[int, ...]
    _group_size: int
    _stride: int | None

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise ContextError(
            "Cannot create a popxl.ReplicaGrouping directly: it belongs to an Ir.",
            hint="use ir.replica_grouping(stride=1, group_size=2)",
        )

    @classmethod
    def _make(cls, ir: Hashable, assignment: Sequence[int], group_size: int, stride: int | None) -> ReplicaGrouping:
        self = object.__new__(cls)
        self._ir = ir
        self._assignment = tuple(assignment)
        self._group_size = group_size
        self._stride = stride
        return self

    @classmethod
    def _from_stride(
        cls, ir: Hashable, num_replicas: int, stride: int = 1, group_size: int | None = None
    ) -> ReplicaGrouping:
        """What ``Ir.replica_grouping`` returns; ``ir`` is only compared."""
        where = f"replica_grouping(stride={stride}, group_size={group_size}) of {num_replicas} replicas"
        if not 0 < stride <= num_replicas or num_replicas % stride:
            raise PopxlValueError(
                f"stride is {stride}, which does not divide the {num_replicas} replicas.",
                where=where,
                hint=f"use one of {_divisors(num_replicas)}",
            )
        if group_size is None:
            group_size = num_replicas // stride
        if not 0 < group_size <= num_replicas:
            raise PopxlValueError(
                f"group_size is {group_size}, outside 1 to {num_replicas}.",
                where=where,
                hint=f"use one of {_divisors(num_replicas // stride)}",
            )
        if group_size == 1:
            stride = 1
        block = stride * group_size
        if num_replicas % block:
            raise PopxlValueError(
                f"stride * group_size is {stride} * {group_size} = {block}, which does not divide the "
                f"{num_replicas} replicas.",
                where=where,
                hint=f"with this stride, use a group_size of {_divisors(num_replicas // stride)}",
            )
        assignment = [r % stride + stride * (r // block) for r in range(num_replicas)]
        return cls._make(ir, assignment, group_size, stride)

    @classmethod
    def _from_assignment(cls, ir: Hashable, assignment: Sequence[int], num_replicas: int) -> ReplicaGrouping:
        """What ``Ir.replica_grouping_from_assignments`` returns; ``ir`` is only compared."""
        groups = [int(group) for group in assignment]
        _check_assignment(groups, num_replicas)
        gaps = _gaps(_members(groups))
        group_size = num_replicas // (max(groups) + 1)
        if not gaps:
            return cls._from_stride(ir, num_replicas, 1, 1)
        if len(gaps) == 1:
            # Equal gaps, and groups numbered by first appearance, are always the closed form of a stride.
            return cls._from_stride(ir, num_replicas, gaps.pop(), group_size)
        return cls._make(ir, groups, group_size, None)

    @property
    def stride(self) -> int:
        """The distance between neighbours in a group; 1 if the groups have one member.

        Raises:
            PopxlNotImplementedError: The distance is not constant.
        """
        if self._stride is None:
            raise PopxlNotImplementedError(
                f"{self!r} has no stride: the replicas of a group are not equally far apart.",
                hint="look at is_const first, or use the finer constant-stride grouping const_rg",
            )
        return self._stride

    @property
    def group_size(self) -> int:
        """The number of replicas in each group."""
        return self._group_size

    @property
    def num_groups(self) -> int:
        """The number of groups."""
        return len(self._assignment) // self._group_size

    @property
    def assignment(self) -> list[int]:
        """The group of each replica; a new list, one number per replica."""
        return list(self._assignment)

    @property
    def members(self) -> list[list[int]]:
        """The replicas of each group in increasing order; new lists, ``num_groups`` of ``group_size``."""
        return _members(self._assignment)

    @property
    def is_const(self) -> bool:
        """Whether the grouping has a constant stride."""
        return self._stride is not None

    @property
    def const_rg(self) -> ReplicaGrouping:
        """A constant-stride grouping each of whose groups lies in one group of this one; itself if it has a stride.

        Groups are cut into runs with the smallest gap m that occurs. Where all runs are a multiple of g > 1 long,
        stride m and size g fit: a run stays in one column of replicas equal modulo m, the runs of a column follow
        each other without a gap, and so each starts at a multiple of g in its column.
        """
        if self.is_const:
            return self
        smallest = min(_gaps(self.members))
        run_length = 0
        for group in self.members:
            breaks = [i for i, (a, b) in enumerate(pairwise(group), start=1) if b - a > smallest]
            run_length = math.gcd(run_length, *(b - a for a, b in pairwise([0, *breaks, len(group)])))
        return self._from_stride(self._ir, len(self._assignment), smallest if run_length > 1 else 1, run_length)

    @property
    def to_device_map(self) -> list[int] | None:
        """For each group of ``const_rg``, the group of this grouping that it lies in; None if ``is_const``."""
        if self.is_const:
            return None
        return [self._assignment[group[0]] for group in self.const_rg.members]

    @property
    def to_host_map(self) -> list[int] | None:
        """For each group, the first group of ``const_rg`` that lies in it; None if ``is_const``."""
        to_device = self.to_device_map
        return None if to_device is None else [to_device.index(group) for group in range(self.num_groups)]

    def belongs_to(self, ir: Hashable) -> bool:
        """Whether the grouping was made by this IR."""
        return self._ir == ir

    def transpose(self) -> ReplicaGrouping:
        """The grouping whose i-th group holds the i-th member of each group of this one.

        Returns:
            A grouping of the same IR with ``num_groups`` and ``group_size`` exchanged. It may have no constant
            stride even if this one has.
        """
        num_replicas = len(self._assignment)
        if self._stride is not None and (self._stride == 1 or self._stride * self._group_size == num_replicas):
            stride = 1 if self._stride > 1 else self._group_size
            return self._from_stride(self._ir, num_replicas, stride, self.num_groups)
        place = [0] * num_replicas
        for group in self.members:
            for i, replica in enumerate(group):
                place[replica] = i
        return self._from_assignment(self._ir, place, num_replicas)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ReplicaGrouping):
            raise PopxlTypeError(
                f"Cannot compare a ReplicaGrouping with a value of type {type(other).__name__}.",
                hint="compare its assignment, or test for None with `is`",
            )
        return self._ir == other._ir and self._assignment == other._assignment

    # Comparing with other types raises, so a grouping would fail at random among the keys of a dict.
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        if self._stride is None:
            return f"ReplicaGrouping(assignment={self.assignment})"
        return (
            f"ReplicaGrouping(num_replicas={len(self._assignment)}, stride={self._stride}, "
            f"group_size={self._group_size}, num_groups={self.num_groups})"
        )


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _members(assignment: Sequence[int]) -> list[list[int]]:
    """The replicas of each group."""
    members: list[list[int]] = [[] for _ in range(max(assignment) + 1)]
    for replica, group in enumerate(assignment):
        members[group].append(replica)
    return members


def _gaps(members: Sequence[Sequence[int]]) -> set[int]:
    """The distances that occur between neighbours in a group."""
    return {b - a for group in members for a, b in pairwise(group)}


def _check_assignment(groups: list[int], num_replicas: int) -> None:
    """Raise unless ``groups`` is an equal partition, numbered in the order of first appearance."""
    where = f"replica_grouping_from_assignments({groups}) of {num_replicas} replicas"
    if len(groups) != num_replicas:
        raise PopxlValueError(
            f"The assignment has {len(groups)} entries for {num_replicas} replicas.",
            where=where,
            hint="give the group of each replica",
        )
    seen = list(dict.fromkeys(groups))
    if sorted(seen) != list(range(len(seen))):
        raise PopxlValueError(
            f"The groups are numbered {sorted(seen)}, not from 0 to {len(seen) - 1}.",
            where=where,
            hint=f"number them {list(range(len(seen)))}",
        )
    if seen != sorted(seen):
        raise PopxlValueError(
            f"The groups appear in the order {seen}, not by increasing number.",
            where=where,
            hint=f"number them in that order: {[seen.index(group) for group in groups]}",
        )
    sizes = [groups.count(group) for group in seen]
    if len(set(sizes)) > 1:
        raise PopxlValueError(
            f"The groups have {sizes} members, not equally many.", where=where, hint="give all groups the same size"
        )
