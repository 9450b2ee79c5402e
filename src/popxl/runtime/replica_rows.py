"""Between the host's value of a variable and what each replica holds (spec ``remote-memory.md`` §1, §6). NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from popxl.ir import Ir
from popxl.plan.shards import shard_count
from popxl.tensor import Variable

HostArray = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one variable is divided.

    Attributes:
        shape: Shape of a group's value.
        groups: Number of groups; the host's value has an axis over them if there are several.
        group: The group of each replica.
        shards: Number of shards of a group's value; 0 for a variable that is not sharded.
        rank: Which shard each replica holds.
    """

    shape: tuple[int, ...]
    groups: int
    group: tuple[int, ...]
    shards: int
    rank: tuple[int, ...]

    def rows(self, host: HostArray, replicas: Sequence[int]) -> HostArray:
        """What `replicas` hold, one row for each: a new array."""
        values = host if self.groups > 1 else host[np.newaxis]
        if self.shards:
            values = self._shards_of(values)
            return np.ascontiguousarray(values[[self.group[r] for r in replicas], [self.rank[r] for r in replicas]])
        return np.ascontiguousarray(values[[self.group[r] for r in replicas]])

    def host(self, rows: HostArray) -> HostArray:
        """The host's value, from the rows of all replicas: of each group the first that has each part."""
        values = np.stack([self._group_value(rows, g) for g in range(self.groups)])
        return values if self.groups > 1 else values[0]

    def of_each_replica(self, rows: HostArray) -> HostArray:
        """The value of each replica: its own row, or the whole of what it holds a shard of."""
        if not self.shards:
            return rows
        return np.stack([self._group_value(rows, g) for g in range(self.groups)])[list(self.group)]

    def _group_value(self, rows: HostArray, group: int) -> HostArray:
        members = [r for r, g in enumerate(self.group) if g == group]
        if not self.shards:
            return rows[members[0]]
        first = [next(r for r in members if self.rank[r] == k) for k in range(self.shards)]
        n = int(np.prod(self.shape, dtype=np.int64))
        return rows[first].reshape(-1)[:n].reshape(self.shape)

    def _shards_of(self, values: HostArray) -> HostArray:
        """The shards of each group's value, padded with zeros at the end."""
        flat = values.reshape(self.groups, -1)
        size = -(-flat.shape[1] // self.shards)
        padded = np.zeros((self.groups, self.shards * size), flat.dtype)
        padded[:, : flat.shape[1]] = flat
        return padded.reshape(self.groups, self.shards, size)


def find_layout(ir: Ir, v: Variable) -> Layout:
    """Return how a variable of a program is divided over its replicas."""
    grouping = v.replica_grouping
    count = len(grouping.assignment)
    if not v.location_info.isSharded():
        return Layout(v.shape, grouping.num_groups, tuple(grouping.assignment), 0, (0,) * count)
    shards = shard_count(ir, v)
    rank = [0] * count
    # Where a grouping has no constant stride, collectives use the finer one that has.
    for members in grouping.const_rg.members:
        for m, r in enumerate(members):
            rank[r] = m % shards
    return Layout(v.shape, grouping.num_groups, tuple(grouping.assignment), shards, tuple(rank))
