"""What collectives mean, replica by replica in NumPy, written from the formulas of spec ``collectives.md``.

Everything takes one array per replica and returns one array per replica. Floats are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce as fold
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Groups:
    """Groups of `k` replicas, `s` apart, of `count` replicas."""

    count: int
    s: int
    k: int

    def group(self, r: int) -> int:
        """The group of replica r."""
        return r % self.s + self.s * (r // (self.s * self.k))

    def rank(self, r: int) -> int:
        """The rank of replica r in its group."""
        return (r // self.s) % self.k

    def members(self, g: int) -> list[int]:
        """The replicas of group g, by rank."""
        base = (g // self.s) * (self.s * self.k) + g % self.s
        return [base + i * self.s for i in range(self.k)]

    def all_members(self) -> tuple[tuple[int, ...], ...]:
        """The replicas of every group."""
        return tuple(tuple(self.members(g)) for g in range(self.count // self.k))

    def of_group(self, xs: Arrays, r: int) -> list[np.ndarray]:
        """The arrays of the members of the group of replica r, by rank."""
        return [np.asarray(xs[m]) for m in self.members(self.group(r))]


def groupings(count: int) -> list[Groups]:
    """All constant-stride groupings of `count` replicas."""
    numbers = range(1, count + 1)
    return [Groups(count, s, k) for s in numbers for k in numbers if count % (s * k) == 0 and (k > 1 or s == 1)]


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype.kind == "f" else x


_PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.logical_and,
    "or": np.logical_or,
}


def reduction(op: str, xs: Arrays) -> np.ndarray:
    """The reduction of arrays of one shape, elementwise."""
    wide = [_wide(x) for x in xs]
    if op == "square_add":
        return reduction("add", [x * x for x in wide])
    if op == "mean":
        total = reduction("add", wide)
        return total / len(xs) if total.dtype.kind == "f" else np.floor_divide(total, len(xs))
    return fold(_PAIRS[op], wide)


def all_reduce(xs: Arrays, op: str, groups: Groups) -> list[np.ndarray]:
    return [reduction(op, groups.of_group(xs, r)) for r in range(groups.count)]


def piece(x: np.ndarray, i: int, k: int) -> np.ndarray:
    """Flat piece i of k of an array that is padded with zeros at the end."""
    size = -(-x.size // k)
    result = np.zeros(size, x.dtype)
    for j in range(size):
        if i * size + j < x.size:
            result[j] = x.flat[i * size + j]
    return result


def reduce_scatter(xs: Arrays, op: str, groups: Groups) -> list[np.ndarray]:
    reduced = all_reduce(xs, op, groups)
    return [piece(x, groups.rank(r), groups.k) for r, x in enumerate(reduced)]


def sharded_slice(xs: Arrays, groups: Groups) -> list[np.ndarray]:
    return [piece(np.asarray(x), groups.rank(r), groups.k) for r, x in enumerate(xs)]


def gather_concat(xs: Arrays, axis: int, groups: Groups) -> list[np.ndarray]:
    return [np.concatenate(groups.of_group(xs, r), axis) for r in range(groups.count)]


def gather_new_axis(xs: Arrays, groups: Groups) -> list[np.ndarray]:
    return [np.stack(groups.of_group(xs, r)) for r in range(groups.count)]


def gather_meta_shape(xs: Arrays, meta_shape: tuple[int, ...], groups: Groups) -> list[np.ndarray]:
    n = int(np.prod(meta_shape))
    flat = [np.concatenate([x.ravel() for x in groups.of_group(xs, r)]) for r in range(groups.count)]
    return [x[:n].reshape(meta_shape) for x in flat]


def replicated_slice(xs: Arrays, axis: int, groups: Groups) -> list[np.ndarray]:
    blocks = [np.split(np.asarray(x), groups.k, axis)[groups.rank(r)] for r, x in enumerate(xs)]
    return [np.squeeze(b, axis) if b.shape[axis] == 1 else b for b in blocks]
