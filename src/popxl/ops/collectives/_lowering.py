"""What collectives compute: functions of arrays with an axis over all replicas in front.

With stride s and groups of k, the axis over replicas is made of three: blocks, ranks (k of them), and places (s of
them); the members of a group differ in the rank only. So a collective is a reshape, plain array operations over the
axis of ranks, and a reshape back, which XLA divides over devices without gathering everything first.
"""

from __future__ import annotations

import math
from typing import Any, cast

from popxl.ops._jax import at_least_float32, jax, jnp, lax
from popxl.ops.collectives.collectives import CollectiveOps, Members

Shape = tuple[int, ...]


def shard_size(count: int, members: Members) -> int:
    """The number of elements of each shard of `count` elements; the last shards are padded."""
    return -(-count // len(members[0]))


def all_reduce(t: Any, *, reduce: CollectiveOps, members: Members) -> Any:
    """The reduction over each group, for every member."""
    if len(members[0]) == 1 and reduce != "square_add":
        return t
    if len(members) == 1:
        return jnp.broadcast_to(_reduced(t, reduce, 0), t.shape)
    by_rank = _by_rank(t, members)
    reduced = jnp.expand_dims(_reduced(by_rank, reduce, 1), 1)
    return jnp.broadcast_to(reduced, by_rank.shape).reshape(t.shape)


def all_gather(t: Any, *, shape: Shape, members: Members) -> Any:
    """The members' elements one after the other, as far as they fit into `shape`, for every member."""
    count = math.prod(shape)
    if len(members) == 1:
        return jnp.broadcast_to(t.reshape(-1)[:count].reshape(shape), (t.shape[0], *shape))
    blocks, k, stride = _lengths(members)
    by_rank = _by_rank(t.reshape(t.shape[0], -1), members)
    gathered = jnp.moveaxis(by_rank, 1, 2).reshape(blocks, 1, stride, -1)[..., :count]
    return jnp.broadcast_to(gathered, (blocks, k, stride, count)).reshape(t.shape[0], *shape)


def reduce_scatter(t: Any, *, reduce: CollectiveOps, members: Members) -> Any:
    """The reduction over each group, flat, of which each member has one piece."""
    by_rank = _by_rank(_pieces(t, members), members)
    return jnp.moveaxis(_reduced(by_rank, reduce, 1), 2, 1).reshape(t.shape[0], -1)


def own_slice(t: Any, *, shape: Shape, members: Members) -> Any:
    """One piece of each replica's own elements, flat, by its rank in the group."""
    size = math.prod(shape)
    _, k, stride = _lengths(members)
    pieces = _pieces(t, members, size)
    ranks = jnp.arange(t.shape[0]) // stride % k
    return jax.vmap(_piece)(pieces, ranks).reshape(t.shape[0], *shape)


def _piece(pieces: Any, rank: Any) -> Any:
    return lax.dynamic_slice_in_dim(pieces, rank, 1)


def _lengths(members: Members) -> tuple[int, int, int]:
    """The number of blocks, the group size, and the stride."""
    first = members[0]
    k = len(first)
    stride = first[1] - first[0] if k > 1 else 1
    return len(members) // stride, k, stride


def _by_rank(t: Any, members: Members) -> Any:
    """Split the axis of replicas into blocks, ranks and places."""
    return t.reshape(*_lengths(members), *t.shape[1:])


def _pieces(t: Any, members: Members, size: int | None = None) -> Any:
    """Each replica's elements, padded with zeros, in as many pieces as a group has members: ``(R, k, size)``."""
    flat = t.reshape(t.shape[0], -1)
    size = shard_size(flat.shape[1], members) if size is None else size
    k = len(members[0])
    return jnp.pad(flat, ((0, 0), (0, k * size - flat.shape[1]))).reshape(t.shape[0], k, size)


def _reduced(t: Any, reduce: CollectiveOps, axis: int) -> Any:
    """Reduce over one axis. Float16 is accumulated in float32 and rounded once."""
    wide = at_least_float32(t)
    match reduce:
        case "add":
            result = _sum(wide, axis)
        case "mean":
            total = _sum(wide, axis)
            result = total // t.shape[axis] if jnp.issubdtype(t.dtype, jnp.integer) else total / t.shape[axis]
        case "mul":
            result = jnp.prod(wide, axis, dtype=wide.dtype)
        case "min":
            result = jnp.min(wide, axis)
        case "max":
            result = jnp.max(wide, axis)
        case "and":
            result = jnp.all(wide, axis)
        case "or":
            result = jnp.any(wide, axis)
        case "square_add":
            result = _sum(wide * wide, axis)
    return result.astype(t.dtype)


def _sum(t: Any, axis: int) -> Any:
    """The sum over one axis. On a CPU XLA takes 50 times as long for a sum over a leading axis as for this product."""

    def plain(t: Any) -> Any:
        return jnp.sum(t, axis, dtype=t.dtype)

    def product(t: Any) -> Any:
        return jnp.tensordot(jnp.ones(t.shape[axis], t.dtype), t, (0, axis))

    if not jnp.issubdtype(t.dtype, jnp.floating):
        return plain(t)
    return cast(Any, lax).platform_dependent(t, cpu=product, default=plain)


def reduce_tensors(ts: tuple[Any, ...], reduce: CollectiveOps) -> Any:
    """The reduction of arrays of one shape and dtype."""
    return _reduced(jnp.stack(ts), reduce, 0)
