"""Replicas and Streaming Memory as spec ``remote-memory.md`` §1 defines them, in NumPy, replica by replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Division:
    """How the host's value of a variable is divided.

    Attributes:
        assignment: The group of each replica.
        shape: Shape of a group's value.
        shards: Over how many members it is sharded; None if every member has all of it.
        sharding: The groups whose members are numbered for their shards: finer ones, where there is no constant stride.
    """

    assignment: Sequence[int]
    shape: tuple[int, ...]
    shards: int | None = None
    sharding: Sequence[int] = ()

    @property
    def replicas(self) -> int:
        return len(self.assignment)

    @property
    def groups(self) -> int:
        return max(self.assignment) + 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of what a replica holds."""
        if self.shards is None:
            return self.shape
        return ((int(np.prod(self.shape)) + self.shards - 1) // self.shards,)

    def host_shape(self) -> tuple[int, ...]:
        return (self.groups, *self.shape) if self.groups > 1 else self.shape

    def rank(self, r: int) -> int:
        """Which shard replica r holds."""
        assert self.shards is not None
        return sum(1 for other in range(r) if self.sharding[other] == self.sharding[r]) % self.shards

    def upload(self, host: Array) -> list[Array]:
        """What each replica holds."""
        values = host if self.groups > 1 else host[None]
        rows: list[Array] = []
        for r, g in enumerate(self.assignment):
            if self.shards is None:
                rows.append(values[g].copy())
                continue
            (size,) = self.row_shape
            row = np.zeros(size, host.dtype)
            for i in range(size):
                at = self.rank(r) * size + i
                if at < values[g].size:
                    row[i] = values[g].flat[at]
            rows.append(row)
        return rows

    def download(self, rows: Sequence[Array]) -> Array:
        """The host's value."""
        values = np.stack([self._whole(rows, g) for g in range(self.groups)])
        return values if self.groups > 1 else values[0]

    def download_each(self, rows: Sequence[Array]) -> Array:
        """The host's value with one for each replica."""
        if self.shards is None:
            return np.stack(list(rows))
        return np.stack([self._whole(rows, g) for g in self.assignment])

    def _whole(self, rows: Sequence[Array], group: int) -> Array:
        """The value of a group, of which the first replicas are read that hold each part."""
        members = [r for r, g in enumerate(self.assignment) if g == group]
        if self.shards is None:
            return rows[members[0]].copy()
        parts = [rows[next(r for r in members if self.rank(r) == k)] for k in range(self.shards)]
        return np.concatenate(parts)[: int(np.prod(self.shape))].reshape(self.shape)


class Buffers:
    """``RB[b]``: for each buffer an array ``[R, E, *shape]``, and only a replica's own part for each replica."""

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._rows: dict[int, Array] = {}

    def add(self, buffer: int, entries: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._rows[buffer] = np.zeros((self._replicas, entries, *shape), dtype)

    def load(self, buffer: int, offsets: Sequence[int]) -> list[Array]:
        """What each replica loads, from its own offset."""
        return [self._rows[buffer][r, o].copy() for r, o in enumerate(offsets)]

    def store(self, buffer: int, offsets: Sequence[int], values: Sequence[Array]) -> None:
        """Store each replica's value, at its own offset."""
        for r, o in enumerate(offsets):
            self._rows[buffer][r, o] = values[r]

    def row(self, buffer: int, entry: int) -> list[Array]:
        """One row, of each replica."""
        return self.load(buffer, [entry] * self._replicas)

    def set_row(self, buffer: int, entry: int, rows: Sequence[Array]) -> None:
        self.store(buffer, [entry] * self._replicas, rows)
